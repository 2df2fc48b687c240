"""Distances of images in the features of a small trained network: perceptual, and of style.

The network is our own (``scripts/train-features``; weights/README.md says from which images), so nothing is
downloaded, and no number here is "LPIPS": a distance is named after what it is. Instead of it any module will do that
gives one feature map or several, for example a pretrained one of torchvision's cut into stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..io import guarded
from ..io.checkpoints import load_tensors
from .layers import conv, records_config

Maps = Callable[[Tensor], Any]  # (b, 3, h, w) in [-1, 1] to a feature map, a list of them, or a dict
WEIGHTS = Path(__file__).parents[1] / "weights" / "features.safetensors"


class Features(nn.Module):
    """Stages of two convolutions, each half the size of the one before; the answer is every stage's map.

    Without norms a map depends on nothing beyond its pixels' surroundings: images of any size, and tiles of one, get
    the same features. Each channel is scaled to a mean of 1 over the training images (Gatys et al. 2016, sec. 2).

    Args:
        widths: Channels of the stages.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, widths: Sequence[int] = (32, 64, 96, 128)):
        super().__init__()
        inputs = (3, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(n_in, n), nn.ReLU(), conv(n, n), nn.ReLU())
            for n_in, n in zip(inputs, widths, strict=False)
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(n, 1, 1), requires_grad=False) for n in widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c H W"]]:
        """The maps, finest first; of an image too small to be halved again, as many as there are."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for stage, scale in zip(self.stages, self.scales, strict=True):
            if maps:
                if min(x.shape[-2:]) < 2:
                    break
                x = F.avg_pool2d(x, 2)
            x = stage(x)
            maps.append(x * scale)
        return maps


def load(path: str | Path) -> Features:
    """The net of a file that ``scripts/train-features`` wrote, frozen."""
    config, tensors = load_tensors(path)
    return guarded.module(path, config.get("net"), Features, tensors)


def features(device: torch.device | str = "cpu") -> Features:
    """The bundled net; one object on each device for all who ask."""
    return _opened(str(device)).to(device)


@cache
def _opened(device: str) -> Features:
    return load(WEIGHTS)


def maps(net: Maps | None, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
    """The feature maps of ``net`` (None: the bundled one) for images of one or three channels, as a list."""
    outputs = (net or features(x.device))(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3])
    outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


# ---- content --------------------------------------------------------------------------------------------------


def perceptual_distance(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], net: Maps | None = None
) -> Float[Tensor, " b"]:
    """Perceptual distance of two images: one number each, 0 for the same, differentiable.

    At each place a map's channels are scaled to unit length, and the squared differences are averaged over places and
    maps (Zhang et al. 2018, arXiv:1801.03924, eq. 1, with all weights 1 and no human judgements learned).

    Args:
        x, y: In [-1, 1], one or three channels.
        net: Other features than the bundled ones.
    """
    return map_distance(maps(net, x), maps(net, y))


def map_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, " b"]:
    """:func:`perceptual_distance` of feature maps."""
    parts = [(_unit(f) - _unit(g)).square().sum(1).flatten(1).mean(1) for f, g in zip(a, b, strict=True)]
    return torch.stack(parts).mean(0)


def _unit(f: Tensor) -> Tensor:
    return f * torch.rsqrt(f.square().sum(1, keepdim=True) + 1e-6)  # the root's slope at 0 would be infinite


# ---- style: what remains when the places are forgotten ----------------------------------------------------------


def gram(f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """Mean product of every two channels (Gatys et al. 2016, eq. 3, divided by the number of places)."""
    rows = f.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[-1]


def gram_distance(a: Float[Tensor, "b c c"], b: Float[Tensor, "b c c"]) -> Float[Tensor, " b"]:
    """|a - b|^2 / (|a| |b|) of two Gram matrices: 0 for the same, and free of the features' unit."""
    difference = (a - b).square().sum((1, 2))
    return difference / (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt().clamp(min=1e-12)


def directions(channels: int, n: int, source: torch.Generator) -> Float[Tensor, "n c"]:
    """Random unit vectors to project features on."""
    return F.normalize(torch.randn(n, channels, generator=source), dim=1)


def profile(f: Float[Tensor, "b c h w"], along: Float[Tensor, "n c"], levels: int = 256) -> Float[Tensor, "b n q"]:
    """The quantiles of a map's features along each direction, ``levels`` of them: sizes may then differ."""
    ordered = torch.einsum("nc,bcp->bnp", along.to(f), f.flatten(2)).sort(-1).values
    return F.interpolate(ordered, levels, mode="linear") if ordered.shape[-1] != levels else ordered


def sliced_distance(a: Float[Tensor, "b n q"], b: Float[Tensor, "b n q"]) -> Float[Tensor, " b"]:
    """Squared sliced 2-Wasserstein distance of two profiles, in units of ``b``'s second moment.

    Optimal transport on a line pairs the quantiles (Bonneel et al. 2015; for style, Heitz et al. 2021,
    arXiv:2006.07229, eq. 5), so unlike Gram matrices it sees the whole distribution and not its second moments.
    """
    return (a - b).square().mean((1, 2)) / b.square().mean((1, 2)).clamp(min=1e-12)


def style_distance(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c H W"], net: Maps | None = None
) -> Float[Tensor, " b"]:
    """The root of :func:`gram_distance`, averaged over the maps: how unlike two textures are."""
    pairs = zip(maps(net, x), maps(net, y), strict=True)
    return torch.stack([gram_distance(gram(a), gram(b)).clamp(min=1e-12).sqrt() for a, b in pairs]).mean(0)
