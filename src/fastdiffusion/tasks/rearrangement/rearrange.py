"""Other images like one image, without any model: its own patches in another order, or filling another shape.

    rearrange("photo.jpg", n=4)
    rearrange("photo.jpg", size="1600x600")     # wider: more of the same, nothing stretched

As of Granot et al. 2022 ("Drop the GAN", arXiv:2103.15545): at a scale where a patch is a large part of the image, the
image and noise are made of patches; then each finer scale is made of that one's patches, so that the layout is new
and everything in it is as it was. It is sampling with the ideal denoiser of patches at falling noise levels, where a
scale stands for a level: what noise hides first is what is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...device import best_device, device_of
from ...errors import InputError
from ...io.images import to_pil
from ...io.inputs import ImageLike, as_tensor, losses, opened
from ...io.metadata import recipe
from ...io.results import ImageResult
from ...noise import generator
from ...options import fill
from ...patches import LARGE, RATIO, SIDE, Patches, side_and_stride, times_smaller
from ...progress import Progress
from ..generation.options import image_size
from .options import LEAST, RearrangeOptions

ROUNDS, FEW = 8, 3  # at each scale; at large ones


class RearrangeStep(NamedTuple):
    """Where a run is: ``done`` of ``of`` levels, and the image so far in [-1, 1], at the size of its level."""

    done: int
    of: int
    image: Float[Tensor, "3 h w"]


def rearrange(image: ImageLike, **options: Any) -> ImageResult:
    """Other images of an image's patches: landscapes, textures, many things of a kind, or the same in another shape.

    What has to be whole, such as a face, rarely stays so at a high ``strength``.

    Args:
        image: Of any size, its file, or (c, h, w) in [-1, 1]; transparency is laid on white.
        options: The fields of :class:`RearrangeOptions <.options.RearrangeOptions>`.

    Raises:
        InputError: A number out of range, or an image or a size of less than 16 pixels a side.
        DataError: A file that is no image.
    """
    chosen = fill(RearrangeOptions, **options)
    whole, made = opened(image, "image"), []
    for seed in Progress(range(chosen.seed, chosen.seed + chosen.n), "rearranging"):
        *_, last = rearrange_steps(whole, **{**vars(chosen), "n": 1, "seed": seed})
        made.append(to_pil(last.image))
    name = Path(image).stem if isinstance(image, str | PathLike) else "image"
    names = [f"{name}-rearranged-{chosen.seed + i}" for i in range(chosen.n)]
    return ImageResult.of(made, names, recipe("rearrange", vars(chosen), image), notes=tuple(losses(image)))


@torch.no_grad()
def rearrange_steps(image: ImageLike, **options: Any) -> Iterator[RearrangeStep]:
    """One image, level by level for a live preview; to stop is to stop iterating."""
    chosen = fill(RearrangeOptions, **options)
    strength = float(chosen.strength or 0)
    source = as_tensor(opened(image, "image")).to(device_of(chosen.device or best_device()))
    height, width = source.shape[-2:]
    shape = image_size(chosen.size) or (height, width)
    if min(shape) < LEAST:
        raise InputError(f"The size must be at least {LEAST} pixels a side, got {shape[1]}x{shape[0]}.")
    times = min(times_smaller(height, width), times_smaller(*shape))
    source = F.pad(source, (0, -width % times, 0, -height % times), mode="replicate")
    work = _scaled(source, (source.shape[-2] // times, source.shape[-1] // times))
    sides = tuple(math.ceil(n / times) for n in shape)
    # The freer, the smaller a part of the image is a patch of the coarsest level, from a half to a quarter.
    least = max(SIDE * (2 + 2 * strength) / max(work.shape[-2:]), SIDE / min(*work.shape[-2:], *sides))
    count = max(math.floor(math.log(least) / math.log(1 / RATIO)), 0) + 1
    x = None
    for level in range(count):
        part = RATIO ** (level + 1 - count)
        at = _scaled(work, tuple(round(n * part) for n in work.shape[-2:]))
        size = tuple(max(round(n * part), 1) for n in sides)
        if x is None:
            noise = torch.randn(1, 3, *size, generator=generator(chosen.seed)).to(at)
            x = _scaled(at, size) + 8 * strength**3 * noise
        else:
            x = F.interpolate(x, size, mode="bicubic")
        side, stride = side_and_stride(at, x)
        large = max(at.shape[-2:]) > LARGE
        rounds, stride = (FEW, stride) if large else (ROUNDS, 1)
        known = Patches(at, side, chosen.seed)
        for i in range(rounds):
            last = i == rounds - 1 and level == count - 1
            x = known.replaced(x, stride, i % stride, source=source if last else None)
        yield RearrangeStep(level + 1, count, x[0, :, : shape[0], : shape[1]].clamp(-1, 1))


def _scaled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode="bicubic", antialias=True)
