"""Holes of an image filled with its own patches: sharp where a mean of all that may be there is a blur.

From a scale where the hole is a patch wide to the image's own (Wexler et al. 2007, "Space-Time Completion of Video";
Newson et al. 2014, arXiv:1503.05528): begun from its border inwards, then every patch that touches the hole is replaced
by one from around it, where those near to the border count most. Things that continue, textures and edges, are
continued; a thing that is seen only once cannot be known.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ...corruptions.marks import filled
from ...io.images import to_tensor, to_uint8
from ...noise import generator
from ...patches import SIDE, Patches, side_and_stride

WIDE = 16  # pixels across a hole, from where on a smooth filling shows as a blur
WORK = 256  # longest side that patches are looked up at; of a larger image, they are then laid out at its own size
RATIO, COARSEST = 4 / 3, 6  # of a level's sides to those of the one before; pixels across the hole at the first one
LEAST = 2 * SIDE + 2  # pixels of the shorter side there
ROUNDS, FEW, LARGE = 12, 3, 120  # at each level, and at those whose longest side is above so many pixels
FAR = 1.5  # widths of the hole around it that patches are taken from
FADING = 1.3  # by how much a patch counts less for each pixel farther into the hole
USED = 30.0  # a patch is taken for being unused only where it fits nearly as well: else things come twice
NOISE = 0.3  # of the first look-ups, where several results are to differ


def width(hole: Bool[Tensor, "h w"]) -> int:
    """Pixels across the widest place of a hole."""
    return int(2 * depth(hole).max()) - 1 if bool(hole.any()) else 0


def depth(hole: Bool[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """How many pixels each one is from what is known, at most so: in steps along rows, columns and diagonals."""
    left, deep = F.pad(hole[None, None].float(), (1, 1, 1, 1), value=1.0), torch.zeros(hole.shape, device=hole.device)
    for _ in range(max(hole.shape)):
        if not bool(left[0, 0, 1:-1, 1:-1].any()):
            break
        deep += left[0, 0, 1:-1, 1:-1]
        left = F.pad(-F.max_pool2d(-left, 3, 1), (1, 1, 1, 1), value=1.0)
    return deep


def fits(hole: Bool[Tensor, "h w"]) -> bool:
    """Whether there is a hole that is wide, and enough around it to fill it with."""
    side = SIDE * math.ceil(max(hole.shape) / WORK)
    return min(hole.shape) >= side and width(hole) > WIDE and _whole(~hole, side)


@torch.no_grad()
def fill(
    image: UInt8[Tensor, "c h w"], hole: Bool[Tensor, "h w"], seed: int = 0, differ: bool = False
) -> UInt8[Tensor, "c h w"]:
    """The image with its hole filled; all else stays to the bit.

    Args:
        image: Of any size; of a large one only what lies around the hole is worked on.
        hole: True is filled.
        seed: Which patches are looked at.
        differ: Begin with noise, so that seeds give different results.

    Raises:
        InputError: Nowhere around is as much known as a patch.
    """
    spans = [(int(on[0]), int(on[-1]) + 1) for on in (hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0])]
    far = math.ceil(FAR * min(b - a for a, b in spans)) + 4 * SIDE
    rows, columns = (slice(max(a - far, 0), b + far) for a, b in spans)
    made = image.clone()
    x = to_tensor(image[:, rows, columns])[None]
    part = hole[rows, columns]
    inside = to_uint8(_filled(x, part, seed, differ))[0]
    made[:, rows, columns] = torch.where(part, inside, image[:, rows, columns])
    return made


def _filled(x: Float[Tensor, "1 c h w"], hole: Bool[Tensor, "h w"], seed: int, differ: bool) -> Tensor:
    h, w = hole.shape
    times = math.ceil(max(h, w) / WORK)
    around = (0, -w % times, 0, -h % times)
    x, covered = F.pad(x, around, mode="replicate"), F.pad(hole[None, None].float(), around)
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
        taken = ~part & (F.max_pool2d(part[None, None].float(), *_reach(across * size[0] / work[0], side))[0, 0] > 0)
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
    return bool((F.max_pool2d(-known[None, None].float(), side, 1) < 0).any())


def _reach(across: float, side: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a maximum over all within reach."""
    reach = math.ceil(FAR * across) + side
    return 2 * reach + 1, 1, reach


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
        seen = F.pad((~left)[None, None].float(), around)
        ring = left & (F.max_pool2d((~left)[None, None].float(), 3, 1, 1)[0, 0] > 0)
        weights = seen[0, 0].unfold(0, side, 1).unfold(1, side, 1)[ring].flatten(1)
        values = F.pad(made, around, mode="replicate")[0].unfold(1, side, 1).unfold(2, side, 1)[:, ring]
        values = values.movedim(1, 0).flatten(2)
        pairs = zip(values, weights, strict=True)
        far = torch.stack([((value - keys).square() * weight).sum((1, 2)) for value, weight in pairs])
        made[0][:, ring] = keys[far.argmin(1)][:, :, center].T
        left &= ~ring
    return made
