"""Classifiers of noisy images and latents by class, and of images by noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..denoisers import Denoiser, expand, scaling
from ..errors import InputError
from ..types import Cond
from .layers import norm, records_config, zero
from .unet import Block, UNet

FREQUENCIES = 8  # of the noise level's embedding
SEEN = 4.0  # standard deviations of the data: above such noise the classes of latents fade


class Half(nn.Module):
    """The way down and the middle of a U-Net: (b, c, h, w) to features (b, f, h', w') and the embedding.

    Args:
        net: Keywords of ``UNet``.
    """

    def __init__(self, net: Mapping[str, Any]):
        super().__init__()
        whole = UNet(**net)
        self.embed, self.stem, self.encoder, self.mid = whole.embed, whole.stem, whole.encoder, whole.mid
        self.width, self.features = whole.config["width"], whole.config["width"] * whole.config["multiples"][-1]

    def forward(self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        emb, h = self.embed(c_noise, None), self.stem(x)
        for block in (*self.encoder, *self.mid):
            h = block(h, emb)
        return h, emb


class Head(nn.Module):
    """Features to numbers, 0 at first: a block with attention over the whole image, then the mean over it."""

    def __init__(self, half: Half, n_out: int):
        super().__init__()
        n = half.features
        self.block = Block(n, n, 4 * half.width, attention=True, head=min(n, 64))
        self.norm, self.out = norm(n), zero(nn.Linear(n, n_out))

    def forward(self, h: Float[Tensor, "b f h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b o"]:
        # the first layer that learns may be a group norm, whose backward crashes torch 2.13 in channels-last memory
        h = h if h.requires_grad else h.contiguous()
        return self.out(F.silu(self.norm(self.block(h, emb))).mean((2, 3)))


class Classifier(nn.Module):
    """p(class | x; sigma) of noisy images or latents, for classifier guidance (Dhariwal & Nichol 2021, sec. 4).

    ``guidance.classifier(denoise, net.log_prob, scale)`` guides by it.

    Args:
        net: Keywords of ``UNet``, of which half is built.
        classes: Number of classes.
        sigma_data: Standard deviation of the data.
        parameterization: How noise level and input are scaled for the net, as in ``Denoiser``.
        names: Of the classes.
    """

    config: dict[str, Any]

    @records_config
    def __init__(
        self,
        net: Mapping[str, Any],
        classes: int,
        sigma_data: float = 0.5,
        parameterization: str = "edm",
        names: Sequence[str] = (),
    ):
        super().__init__()
        if not names:
            del self.config["names"]  # files of before have no such key, and keep their hashes
        self.trunk = Half(net)
        self.head = Head(self.trunk, classes)

    @classmethod
    def from_denoiser(cls, denoiser: Denoiser, classes: int) -> Classifier:
        """A classifier of the features in the middle of a trained denoiser's U-Net: only its head has to learn.

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

    def shares_trunk(self, denoiser: Denoiser) -> bool:
        """Whether this is a classifier of the features of this very denoiser's U-Net."""
        own, net = self.trunk.state_dict(), denoiser.net.state_dict()
        asked = (denoiser.parameterization, denoiser.sigma_data)
        known = (self.config["parameterization"], self.config["sigma_data"])
        return asked == known and all(name in net and torch.equal(t, net[name].to(t)) for name, t in own.items())

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether it classifies arrays of this shape."""
        return len(shape) == 3 and shape[0] == self.config["net"]["in_channels"]

    def forward(self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        c = scaling(self.config["parameterization"], expand(sigma, x), self.config["sigma_data"])
        return self.head(*self.trunk(c.c_in * x, c.c_noise.flatten()))

    def log_prob(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """log p(cond.label | x; sigma); 0 where there is no label (-1), which guides nowhere."""
        return chosen(self(x, sigma), cond)


class LatentClassifier(nn.Module):
    """p(class | x; sigma) of noisy latents of one shape, by a residual perceptron: each latent has weights of its own.

    Which class an image of latents becomes is settled at high noise, where no detail can be seen and only the mean of
    a class, place by place, tells it from others. Half a U-Net, which averages over places, learns that slowly. Of
    Gaussian classes N(m, sigma_data^2), the log-odds are (m - m')^T x / (sigma^2 + sigma_data^2) and a constant: with
    the input at unit variance they fall as sigma_data / sigma, and so do the logits here. Without that factor, what the
    network has not learned to ignore at high noise is multiplied by sigma^2 when it guides.

    Args:
        shape: Of the latents.
        classes: Number of classes.
        sigma_data: Standard deviation of the latents.
        width: Hidden units.
        depth: Hidden layers.
        dropout: Of what each of them adds.
        names: Of the classes.
    """

    config: dict[str, Any]

    @records_config
    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        sigma_data: float = 1.0,
        width: int = 256,
        depth: int = 2,
        dropout: float = 0.1,
        names: Sequence[str] = (),
    ):
        super().__init__()
        self.shape, self.sigma_data = tuple(shape), sigma_data
        values = math.prod(self.shape)
        self.stem, self.linear = nn.Linear(values, width), zero(nn.Linear(values, classes))
        self.embed = nn.Sequential(nn.Linear(2 * FREQUENCIES, 64), nn.SiLU(), nn.Linear(64, 2 * depth * width))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.dropout, self.out = nn.Dropout(dropout), zero(nn.Linear(width, classes))

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether it classifies arrays of this shape."""
        return tuple(shape) == self.shape

    def forward(self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        flat = x.flatten(1) / (sigma.square() + self.sigma_data**2).sqrt()[:, None]
        phase = sigma.log()[:, None] / 4 * torch.arange(1, FREQUENCIES + 1, device=x.device)
        changes = self.embed(torch.cat([phase.sin(), phase.cos()], 1)).chunk(2 * len(self.hidden), 1)
        h = self.stem(flat)
        for layer, normed, scale, shift in zip(self.hidden, self.norms, changes[::2], changes[1::2], strict=True):
            h = h + self.dropout(layer(F.silu(normed(h) * (1 + scale) + shift)))
        visible = (1 + (sigma / (SEEN * self.sigma_data)).square()).rsqrt()[:, None]
        return visible * (self.out(F.silu(h)) + self.linear(flat))

    def log_prob(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """log p(cond.label | x; sigma); 0 where there is no label (-1), which guides nowhere."""
        return chosen(self(x, sigma), cond)


def chosen(logits: Float[Tensor, "b classes"], cond: Cond | None) -> Float[Tensor, " b"]:
    """The log-probability of each image's own label."""
    if cond is None or cond.label is None:
        raise InputError("Classifier guidance needs labels. Pass cond=Cond(label=...), or name classes.")
    own = logits.log_softmax(1).gather(1, cond.label.clamp(min=0)[:, None])[:, 0]
    return torch.where(cond.label < 0, torch.zeros_like(own), own)


class NoiseLevel(nn.Module):
    """sigma of a noisy image, estimated from it: for sampling without known noise levels (``guidance.blind``).

    The net gets the image at unit RMS and that RMS, which it corrects by a factor: the first guess, RMS itself, is
    right where noise drowns the data.

    Args:
        net: Keywords of ``UNet``, of which half is built.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, net: Mapping[str, Any]):
        super().__init__()
        self.trunk = Half(net)
        self.head = Head(self.trunk, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The noise level of each image."""
        rms = x.flatten(1).square().mean(1).sqrt().clamp(min=1e-8)
        return rms * self.head(*self.trunk(x / expand(rms, x), rms.log() / 4))[:, 0].exp()
