"""Several denoisers in one image, each in its own place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import Cond, Denoise, Run
from .core import guidance, start

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Region(NamedTuple):
    """A place of x, in its pixels, and the denoiser that draws it."""

    denoise: Denoise
    box: Box


@guidance
def regional(denoise: Denoise, regions: Sequence[Region], size: tuple[int, int] = (0, 0), *, run: Run) -> Denoise:
    """Each region's denoiser draws its box, later ones over earlier ones, and ``denoise`` what is in none.

    Bar-Tal et al. 2023 (MultiDiffusion, arXiv:2302.08113, eq. 5) with masks that do not overlap. What a denoiser sees
    is its box, enlarged to at least ``size`` (height, width) as far as x goes: a network draws best what is as large as
    what it learned from. One region that covers all is its denoiser alone; ``denoise`` is evaluated only if something
    is left for it.
    """
    started = [Region(start(denoiser, run), box) for denoiser, box in regions]

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        height, width = x.shape[-2:]
        free = torch.ones(height, width, dtype=torch.bool)
        for _, (left, top, right, bottom) in started:
            free[top:bottom, left:right] = False
        x0 = denoise(x, sigma, cond).clone() if bool(free.any()) else torch.empty_like(x)
        for denoiser, (left, top, right, bottom) in started:
            rows, columns = _window(top, bottom, size[0], height), _window(left, right, size[1], width)
            drawn = denoiser(x[..., rows, columns].contiguous(), sigma, cond)
            inside = (slice(top - rows.start, bottom - rows.start), slice(left - columns.start, right - columns.start))
            x0[..., top:bottom, left:right] = drawn[(..., *inside)]
        return x0

    return guided


def _window(low: int, high: int, least: int, whole: int) -> slice:
    """``low`` to ``high``, enlarged to ``least`` around its middle but not beyond 0 and ``whole``."""
    length = max(high - low, min(least, whole))
    first = min(max((low + high - length) // 2, 0), whole - length)
    return slice(first, first + length)
