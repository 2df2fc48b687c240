"""What can be read off a noisy picture: its class, and how noisy it is. Both look with half a U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..denoisers import Denoiser, expand, scaling
from ..errors import InputError
from ..types import Cond
from .layers import norm, zero
from .unet import UNet


class Half(nn.Module):
    """The way down and the middle of a U-Net, averaged over the picture: (b, c, h, w) -> (b, features).

    Args:
        net: Keywords of ``UNet``.
    """

    def __init__(self, net: Mapping[str, Any]):
        super().__init__()
        whole = UNet(**net)
        self.embed, self.stem, self.encoder, self.middle = whole.embed, whole.stem, whole.encoder, whole.middle
        self.features = whole.config["width"] * whole.config["multiples"][-1]

    def forward(self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
        emb, h = self.embed(c_noise, None), self.stem(x)
        for block in (*self.encoder, *self.middle):
            h = block(h, emb)
        return h.mean((2, 3))


class Head(nn.Module):
    """Features to numbers, 0 at first."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.norm, self.hidden, self.out = norm(n_in), nn.Linear(n_in, n_in), zero(nn.Linear(n_in, n_out))

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b o"]:
        return self.out(F.silu(self.hidden(F.silu(self.norm(x)))))


class Classifier(nn.Module):
    """p(class | x; sigma) of noisy pictures or latents, for classifier guidance (Dhariwal & Nichol 2021, sec. 4).

    ``guidance.classifier(denoise, net.log_prob, scale)`` guides by it.

    Args:
        net: Keywords of ``UNet``, of which half is built.
        classes: How many it tells apart.
        sigma_data: Standard deviation of the data.
        parameterization: How noise level and input are presented to the net, as in ``Denoiser``.
    """

    def __init__(self, net: Mapping[str, Any], classes: int, sigma_data: float = 0.5, parameterization: str = "edm"):
        super().__init__()
        self.config = {
            "net": dict(net),
            "classes": classes,
            "sigma_data": sigma_data,
            "parameterization": parameterization,
        }
        self.trunk = Half(net)
        self.head = Head(self.trunk.features, classes)

    @classmethod
    def reading(cls, denoiser: Denoiser, classes: int) -> Classifier:
        """A classifier that reads the middle of a trained denoiser's U-Net: only its head has to learn.

        After the mid-block guidance of the "Grokking Stable Diffusion" notebooks. Raises InputError for other nets.
        """
        if not isinstance(denoiser.net, UNet):
            raise InputError(
                f"Only a U-Net has a middle to read, got a {type(denoiser.net).__name__}. Leave model out."
            )
        made = cls(denoiser.net.config, classes, denoiser.sigma_data, denoiser.parameterization)
        state = denoiser.net.state_dict()
        made.trunk.load_state_dict({name: state[name] for name in made.trunk.state_dict()})
        made.trunk.requires_grad_(False)
        return made

    def forward(self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        c = scaling(self.config["parameterization"], expand(sigma, x), self.config["sigma_data"])
        return self.head(self.trunk(c.c_in * x, c.c_noise.flatten()))

    def log_prob(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """log p(cond.label | x; sigma); 0 where there is no label (-1), which guides nowhere."""
        if cond is None or cond.label is None:
            raise InputError("Classifier guidance needs labels. Pass cond=Cond(label=...), or name classes.")
        chosen = self(x, sigma).log_softmax(1).gather(1, cond.label.clamp(min=0)[:, None])[:, 0]
        return torch.where(cond.label < 0, torch.zeros_like(chosen), chosen)


class NoiseLevel(nn.Module):
    """sigma of a noisy picture, by looking at it: what lets a sampler go blind (``guidance.blind``).

    The net sees the picture at unit RMS, is told that RMS, and corrects it by a factor: the first guess, RMS itself, is
    right where noise drowns the data.

    Args:
        net: Keywords of ``UNet``, of which half is built.
    """

    def __init__(self, net: Mapping[str, Any]):
        super().__init__()
        self.config = {"net": dict(net)}
        self.trunk = Half(net)
        self.head = Head(self.trunk.features, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The noise level of each picture."""
        rms = x.flatten(1).square().mean(1).sqrt().clamp(min=1e-8)
        features = self.trunk(x / expand(rms, x), rms.log() / 4)
        return rms * self.head(features)[:, 0].exp()
