"""Networks from images to images: one trained on pairs, and two trained on two unpaired domains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..denoisers import Denoiser, expand
from ..errors import unknown
from ..types import Cond
from .layers import records_config
from .unet import UNet

PAIRED = ("regression", "gan", "diffusion", "bridge")
LAST = 0.999  # of a bridge's levels: at 1 it is the source itself, and sigma is infinite


def sigma(level: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The noise on the difference, sqrt(t / (1 - t)), on a ``processes.Bridge`` with std 1 at level t."""
    t = level.clamp(1e-6, LAST)
    return (t / (1 - t)).sqrt()


class Translator(nn.Module):
    """An image in, its counterpart out. The method says what the network predicts.

    - ``regression`` and ``gan``: the counterpart itself, in one evaluation (Isola et al. 2017, arXiv:1611.07004);
    - ``diffusion``: a denoiser conditioned on the source (Saharia et al. 2022, "Palette", arXiv:2111.05826);
    - ``bridge``: the end of a Brownian bridge from the source, predicted from a place on its way (Liu et al. 2023,
      "I2SB", arXiv:2302.05872; Li et al. 2023, "BBDM", arXiv:2205.07680). ``processes.Bridge`` walks it.

    Given the source too, a place x on the bridge at t has the same information as a diffusion: with
    d the difference between target and source, (x - source) / (1 - t) = d + sigma * noise at :func:`sigma`. So a bridge
    is the same network, trained at other levels and sampled along another path.

    Args:
        method: One of these.
        net: Keywords of ``UNet``, without channels.
        shape: (channels, height, width) that it was trained at; other sizes may be given.
        sigma_data: Standard deviation of the difference between source and target.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, method: str, net: Mapping[str, Any], shape: tuple[int, int, int], sigma_data: float = 0.5):
        super().__init__()
        if method not in PAIRED:
            raise unknown("method of translation", method, PAIRED)
        self.method, self.shape = method, (shape[0], shape[1], shape[2])
        channels, several = shape[0], method in ("diffusion", "bridge")
        core = UNet(**{**net, "in_channels": (1 + several) * channels, "out_channels": channels})
        self.denoiser = Denoiser(core, "edm", sigma_data, cond_channels=channels if several else 0)

    def forward(self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Cond | None = None) -> Tensor:
        """The counterpart of ``cond.image``, given it with noise, or a place on the way to it, ``x`` at ``level``."""
        assert cond is not None and cond.image is not None
        if self.method == "diffusion":
            return self.denoiser(x, level, cond)
        if self.method == "bridge":
            noisy = cond.image + (x - cond.image) / expand(1 - level.clamp(max=LAST), x)
            return self.denoiser(noisy, sigma(level), cond)
        return cond.image + self.denoiser.net(cond.image, torch.zeros_like(level), None)


class Cycle(nn.Module):
    """Two nets, there and back (CycleGAN, Zhu et al. 2017, arXiv:1703.10593). Each adds a change to its input.

    Args:
        net: Keywords of ``UNet``, without channels.
        shape: (channels, height, width) that they were trained at.
        domains: Names of the two domains.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, net: Mapping[str, Any], shape: tuple[int, int, int], domains: tuple[str, str] = ("a", "b")):
        super().__init__()
        self.shape, self.domains = (shape[0], shape[1], shape[2]), tuple(domains)
        spec = {**net, "in_channels": shape[0], "out_channels": shape[0]}
        self.there, self.reverse = UNet(**spec), UNet(**spec)

    def forward(self, x: Float[Tensor, "b c h w"], reverse: bool = False) -> Float[Tensor, "b c h w"]:
        """From the first domain to the second, or back."""
        return x + (self.reverse if reverse else self.there)(x, x.new_zeros(len(x)), None)


# ---- a source that every image has -------------------------------------------------------------------------------


@torch.no_grad()
def edges(x: Float[Tensor, "b c h w"], low: float = 0.12) -> Float[Tensor, "b 1 h w"]:
    """Black lines on white where brightness or color changes: thin ones, as drawn by a pen.

    A blur of 0.7 pixels, Sobel's gradients, and of these the places above ``low`` that are the largest across the edge
    (Canny 1986, without its hysteresis). White is 1 and black -1.
    """
    c = x.shape[1]
    taps = x.new_tensor([0.21, 0.58, 0.21])
    soft = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.outer(taps, taps).expand(c, 1, 3, 3), groups=c)
    sobel = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None].repeat(c, 1, 1, 1)
    slopes = F.conv2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), kernels, groups=c).unflatten(1, (c, 2))
    steepest = slopes.square().sum(2).argmax(1, keepdim=True)  # of the colors, the one that changes most
    dx, dy = slopes.gather(1, steepest[:, :, None].expand(-1, -1, 2, -1, -1))[:, 0].split(1, 1)
    strength = (dx.square() + dy.square()).sqrt()
    around = F.unfold(F.pad(strength, (1, 1, 1, 1)), 3).unflatten(1, (9, 1)).unflatten(-1, x.shape[-2:])
    # The direction across the edge, in eighths of a turn: which two of the eight neighbors it must exceed.
    eighth = (torch.atan2(dy, dx) * (4 / torch.pi)).round().long() % 4
    ahead = torch.tensor([5, 8, 7, 6], device=x.device)[eighth]
    one, other = (around.gather(1, place[:, None])[:, 0] for place in (ahead, 8 - ahead))
    line = (strength > low) & (strength >= one) & (strength > other)
    return 1 - 2 * line.to(x)
