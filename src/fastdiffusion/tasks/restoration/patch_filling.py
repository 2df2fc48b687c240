"""Holes of an image filled with its own patches: sharp where a mean of all that may be there is a blur.

From a scale where the hole is a patch wide to the image's own (Wexler et al. 2007, "Space-Time Completion of Video";
Newson et al. 2014, arXiv:1503.05528): begun from its border inwards, then every patch that touches the hole is replaced
by one from around it, where those near to the border count most. Things that continue, textures and edges, are
continued; a thing of which there is one only cannot be known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import distance_transform_cdt, find_objects, label, maximum_filter  # comes with scikit-learn
from torch import Tensor

from ...corruptions.marks import filled
from ...io.images import to_tensor, to_uint8
from ...noise import generator
from ...patches import LARGE, RATIO, SIDE, WORK, Patches, side_and_stride, times_smaller

WIDE = 16  # pixels across a hole, from where on a smooth filling shows as a blur
COARSEST, LEAST = 6, 2 * SIDE + 2  # pixels across the hole, and of the shorter side, at the first scale
ROUNDS, FEW = 12, 3  # at each scale; at large ones
FAR = 1.5  # widths of the hole around it that patches are taken from
FADING = 1.3  # by how much a patch counts less for each pixel farther into the hole
USED = 30.0  # a patch is taken for being unused only where it fits nearly as well: else things come twice
NOISE = 0.3  # of the first look-ups, where several results are to differ


def width(hole: Bool[Tensor, "h w"]) -> int:
    """Pixels across the widest place of a hole."""
    return max(2 * int(depth(hole).max()) - 1, 0)


def depth(hole: Bool[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """How many pixels each one is from what is known, in steps along rows, columns and diagonals; 0 outside."""
    return torch.from_numpy(distance_transform_cdt(hole.numpy(), "chessboard")).float()


def fits(hole: Bool[Tensor, "h w"]) -> bool:
    """Whether there is a hole that is wide, and enough around each to fill it with."""
    if width(hole) <= WIDE:
        return False
    crops = [~hole[crop] for _, crop in _apart(hole)]
    # wherever a patch of cells of the smaller image lies in it
    return all(_whole(known, (SIDE + 1) * times_smaller(*known.shape) - 1) for known in crops)


def _apart(hole: Bool[Tensor, "h w"]) -> Iterator[tuple[Bool[Tensor, "h w"], tuple[slice, slice]]]:
    """Holes that are far from each other: each one, and the part of the image that is looked at for it."""
    labels, _ = cast("tuple[np.ndarray, int]", label(maximum_filter(hole.numpy(), 4 * SIDE + 1)))
    for i, near in enumerate(find_objects(labels), 1):
        own = torch.zeros_like(hole)
        own[near] = hole[near] & torch.from_numpy(labels[near] == i)
        spans = [(int(on[0]), int(on[-1]) + 1) for on in (own.any(d).nonzero()[:, 0] for d in (1, 0))]
        shortest, longest = sorted(b - a for a, b in spans)
        far = math.ceil(FAR * shortest) + 4 * SIDE
        while far < (patch := (SIDE + 1) * math.ceil((longest + 2 * far) / WORK)):  # at the scale of the work
            far = patch
        rows, columns = (slice(max(a - far, 0), b + far) for a, b in spans)
        yield own, (rows, columns)


@torch.no_grad()
def fill(
    image: UInt8[Tensor, "c h w"], hole: Bool[Tensor, "h w"], seed: int = 0, differ: bool = False
) -> UInt8[Tensor, "c h w"]:
    """The image with its hole filled; all else stays to the bit.

    Args:
        image: Of any size, on the CPU; of a large one only what lies around the hole is worked on.
        hole: True is filled.
        seed: Which patches are looked at.
        differ: Begin with noise, so that seeds give different results.

    Raises:
        InputError: Nowhere around is as much known as a patch.
    """
    made = image.clone()
    for own, crop in _apart(hole):
        x = to_tensor(image[:, *crop])[None]
        inside = to_uint8(_filled(x, hole[crop], seed, differ))[0]
        made[:, *crop] = torch.where(own[crop], inside, made[:, *crop])
    return made


def _filled(x: Float[Tensor, "1 c h w"], hole: Bool[Tensor, "h w"], seed: int, differ: bool) -> Tensor:
    h, w = hole.shape
    times = times_smaller(h, w)
    around = (0, -w % times, 0, -h % times)
    # both alike: what lies in the hole must not come back as what is known beside it
    x, covered = (F.pad(part, around, mode="replicate") for part in (x, hole[None, None].float()))
    work = [n // times for n in x.shape[-2:]]
    across = 2 * float(depth(F.interpolate(covered, tuple(work), mode="area")[0, 0] > 0).max())
    count = 1 + max(min(math.floor(math.log(big / least) / math.log(RATIO)) for big, least in (
        (max(across, 1), COARSEST), (min(work), LEAST))), 0)  # fmt: skip
    sizes = [tuple(round(n * RATIO ** (level + 1 - count)) for n in work) for level in range(count)]
    made = None
    for level, size in enumerate(sizes):
        open_ = F.interpolate(covered, size, mode="area")
        known = F.interpolate(x * (1 - covered), size, mode="area") / (1 - open_).clamp(min=1e-3)
        part = open_[0, 0] > 1e-3
        side, stride = side_and_stride(known)
        if made is None and level < count - 1 and not _whole(~part, side):
            continue  # what is known is less than a patch at this scale
        reach = math.ceil(FAR * across * size[0] / work[0]) + side
        taken = ~part & (depth(~part) <= reach)
        taken = taken if _whole(taken, side) else ~part
        patches = Patches(known, side, seed, taken, USED)
        if made is None:
            made = _peeled(known, part, patches.rows())
        else:
            made = torch.where(part, F.interpolate(made, size, mode="bicubic"), known)
        large = max(size) > LARGE
        rounds, stride = (FEW, max(stride - 1, 1)) if large else (ROUNDS, 1)
        trust = FADING ** -depth(part)
        for i in range(rounds):
            noise = torch.randn(made.shape, generator=generator(seed, level, i)) if differ else torch.zeros_like(made)
            looked = torch.where(part, made + NOISE * (1 - (i + 1) / rounds) * noise, made)
            last = i == rounds - 1 and level == count - 1
            laid = patches.replaced(looked, stride, i % stride, part, x if last else None, trust)
            made = _joined(laid, x, covered) if last else torch.where(part, laid, known)
    assert made is not None
    return made[..., :h, :w].clamp(-1, 1)


def _joined(laid: Float[Tensor, "1 c h w"], x: Float[Tensor, "1 c h w"], hole: Float[Tensor, "1 1 h w"]) -> Tensor:
    """Without a seam: what patches differ by along the border is spread over the hole (as by Perez et al. 2003)."""
    border = F.max_pool2d(hole, 5, 1, 2) * (1 - hole)
    return laid + filled((x - laid) * border, border)


def _whole(known: Bool[Tensor, "h w"], side: int) -> bool:
    """Whether a whole patch is known somewhere."""
    if min(known.shape) < side:
        return False
    rows = F.max_pool2d(-known[None, None].float(), (side, 1), 1)
    return bool((F.max_pool2d(rows, (1, side), 1) < 0).any())


def _peeled(
    known: Float[Tensor, "1 c h w"], part: Bool[Tensor, "h w"], rows: Float[Tensor, "k p"]
) -> Float[Tensor, "1 c h w"]:
    """The hole filled from its border inwards, pixel by pixel: the middles of the patches that fit what is known."""
    made, left = known.clone(), part.clone()
    channels = known.shape[1]
    keys = rows.unflatten(1, (channels, -1))
    side = math.isqrt(keys.shape[2])
    center, around = side * (side // 2) + side // 2, (side // 2, (side - 1) // 2) * 2
    while bool(left.any()):
        visible = F.pad((~left)[None, None].float(), around)
        ring = left & (F.max_pool2d((~left)[None, None].float(), 3, 1, 1)[0, 0] > 0)
        weights = visible[0, 0].unfold(0, side, 1).unfold(1, side, 1)[ring].flatten(1)
        values = F.pad(made, around, mode="replicate")[0].unfold(1, side, 1).unfold(2, side, 1)[:, ring]
        values = values.movedim(1, 0).flatten(2)
        pairs = zip(values, weights, strict=True)
        far = torch.stack([((value - keys).square() * weight).sum((1, 2)) for value, weight in pairs])
        made[0][:, ring] = keys[far.argmin(1)][:, :, center].T
        left &= ~ring
    return made
