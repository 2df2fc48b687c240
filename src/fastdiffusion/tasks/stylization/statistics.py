"""What of an image is style: its colors, and its features without their places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...device import best_device, device_of
from ...errors import InputError
from ...nets import perceptual
from ...nets.perceptual import Maps, gram, gram_distance, map_distance, maps, profile, sliced_distance
from ...noise import generator

TILE, HALO = 512, 64  # side of what is differentiated at once, and how far a feature sees, rounded up
ALONG, PLACES = 32, 1 << 13  # directions to look along, and places of each map that are looked at


def device_for(name: str | None) -> torch.device:
    """Where style is computed: on the device of that name, by default the best one that has float64."""
    if (name or best_device()).startswith("mps"):
        if name is not None:
            raise InputError("Style transfer computes colors in float64, which mps does not have. Try device='cpu'.")
        name = "cpu"
    return device_of(name)


class Colors(NamedTuple):
    """Mean and covariance of an image's colors."""

    mean: Float[Tensor, " c"]
    covariance: Float[Tensor, "c c"]


def colors(x: Float[Tensor, "1 c h w"]) -> Colors:
    """Of one image."""
    rows = x[0].flatten(1).double()
    return Colors(rows.mean(1), torch.cov(rows) + 1e-5 * torch.eye(len(rows), dtype=rows.dtype, device=x.device))


def recolored(x: Float[Tensor, "1 c h w"], to: Colors, part: float) -> Float[Tensor, "1 c h w"]:
    """A part of the way to other colors: the optimal transport between Gaussians, in closed form.

    Pitie & Kokaram 2007, eq. 8: of all linear maps of mean and covariance, the one that moves colors the least.
    """
    own = colors(x)
    root, unroot = (_power(own.covariance, exponent) for exponent in (0.5, -0.5))
    move = unroot @ _power(root @ to.covariance.to(root) @ root, 0.5) @ unroot
    rows = x[0].flatten(1).double()
    moved = move @ (rows - own.mean[:, None]) + to.mean.to(root)[:, None]
    return torch.lerp(rows, moved, part).to(x).clamp(-1, 1).reshape(x.shape)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=1e-12) ** exponent @ vectors.T


# ---- textures ---------------------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """An image's style, map by map, and its perceptual distance from another one if there was one."""

    grams: list[Float[Tensor, "1 c c"]]
    profiles: list[Float[Tensor, "1 n q"]]
    away: Tensor

    def towards(self, other: Statistics, part: float) -> Statistics:
        """A part of the way; for the profiles, that of optimal transport (McCann 1997)."""
        return Statistics(
            [torch.lerp(a, b, part) for a, b in zip(self.grams, other.grams, strict=True)],
            [torch.lerp(a, b, part) for a, b in zip(self.profiles, other.profiles, strict=True)],
            self.away,
        )

    def distance(self, goal: Statistics) -> Float[Tensor, ""]:
        """Between the styles, averaged over the maps: of the Gram matrices and of the profiles."""
        distances = [gram_distance(a, b) for a, b in zip(self.grams, goal.grams, strict=True)]
        distances += [sliced_distance(a, b) for a, b in zip(self.profiles, goal.profiles, strict=True)]
        return torch.cat(distances).sum() / len(self.grams)


def statistics(
    x: Float[Tensor, "1 3 h w"], along: Sequence[Tensor], net: Maps | None = None, content: Tensor | None = None
) -> Statistics:
    """Of an image of any size, tile by tile; ``along`` are the directions of each map's profile.

    A tile's features are forgotten once they are summed up, and computed again for the gradient (Chen et al. 2016):
    memory is that of one tile, and result and gradient are those of the whole image.
    """
    h, w = x.shape[-2:]
    tiles = [(rows, columns) for rows in _spans(h) for columns in _spans(w)]

    def measure(crop: Tensor, like: Tensor | None, core: tuple[slice, slice], place: int) -> tuple[Tensor, ...]:
        """Gram matrices (weighted by the tile's share), some of the features, and the distance from ``like``."""
        share = (core[0].stop - core[0].start) * (core[1].stop - core[1].start) / (h * w)
        here, places = [_inner(f, core, crop) for f in feature_maps(crop, net)], []
        for i, f in enumerate(here):
            kept = torch.randperm(f[0, 0].numel(), generator=generator(place, i))[: math.ceil(PLACES * share)]
            places.append(f.flatten(2)[..., kept.to(f.device)])
        away = x.new_zeros(1)
        if like is not None:
            with torch.no_grad():
                target = [_inner(f, core, crop) for f in maps(net, like)]
            away = share * map_distance(here[1:], target)
        return (*(share * gram(f) for f in here), *places, away)

    measured = []
    for place, (rows, columns) in enumerate(tiles):
        core, around = zip(*(_cut(span, n) for span, n in ((rows, h), (columns, w))), strict=True)
        crop, like = x[(..., *around)], None if content is None else content[(..., *around)]
        if len(tiles) == 1:
            measured.append(measure(crop, like, core, place))
        else:
            measured.append(checkpoint(measure, crop, like, core, place, use_reentrant=False, preserve_rng_state=False))
    n = len(along)
    gathered = list(zip(*measured, strict=True))
    profiles = [profile(torch.cat(c, -1)[:, :, None], d) for c, d in zip(gathered[n : 2 * n], along, strict=True)]
    return Statistics([torch.stack(c).sum(0) for c in gathered[:n]], profiles, torch.cat(gathered[-1]).sum())


def _inner(f: Tensor, core: tuple[slice, slice], crop: Tensor) -> Tensor:
    """The part of a map that is of a tile itself and not of its surroundings."""
    shrink = crop.shape[-1] / f.shape[-1]
    return f[(..., *(slice(round(s.start / shrink), max(round(s.stop / shrink), 1)) for s in core))]


def feature_maps(x: Tensor, net: Maps | None) -> list[Tensor]:
    """The colors themselves, 0 to 1, and what the net makes of them."""
    return [(x + 1) / 2, *maps(net, x)]


def directions(x: Tensor, net: Maps | None, seed: int) -> list[Tensor]:
    """Random directions to project each map on that ``net`` makes of images like x."""
    widths = [f.shape[1] for f in feature_maps(x[..., :16, :16], net)]
    return [perceptual.directions(n, ALONG, generator(seed, i)) for i, n in enumerate(widths)]


def _spans(n: int) -> list[tuple[int, int]]:
    """An axis of n pixels dealt out to tiles as evenly as a grid of 16 allows, so that none is a mere rest."""
    count = -(-n // TILE)
    edges = [min(round(n * i / count / 16) * 16, n) for i in range(count)]
    return list(pairwise([*edges, n]))


def _cut(span: tuple[int, int], n: int) -> tuple[slice, slice]:
    """Of a tile along an axis of n pixels: itself within its surroundings, and these."""
    start = max(span[0] - HALO, 0)
    return slice(span[0] - start, span[1] - start), slice(start, min(span[1] + HALO, n))


def edge_similarity(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """SSIM (Wang et al. 2004, eq. 13) of the gradients' strength: is everything still where it was? 1 is the same.

    Each image's gradients are measured in their own root mean square: contrast is style, places are content.
    """
    return _ssim(_edges(x), _edges(y))


def _edges(x: Tensor) -> Tensor:
    """Length of the Sobel gradient of the brightness; a quarter of it is the root mean square."""
    kernel = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    gray = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(gray, torch.stack([kernel, kernel.T])[:, None])
    strength = (slopes.square().sum(1, keepdim=True) + 1e-12).sqrt()
    return strength / (4 * strength.square().mean((1, 2, 3), keepdim=True).sqrt())


def _ssim(a: Tensor, b: Tensor, width: float = 1.5) -> Tensor:
    at = torch.arange(-5, 6.0, device=a.device)
    taps = (-at.square() / (2 * width**2)).softmax(0)

    def mean(v: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(v, taps[None, None, :, None]), taps[None, None, None])

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    value = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))
    return value.flatten(1).mean(1)
