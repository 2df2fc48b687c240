"""Images of any size in pieces that fit: overlapping tiles, blended where they overlap, strip by strip.

What is in memory at a time is one row of tiles, whatever the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...noise import Stream, generator

_BLOCK = 64  # side of the squares in which a noise field is drawn


class Tile(NamedTuple):
    """A window of the image that is worked on, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def places(length: int, tile: int, overlap: int, step: int) -> list[int]:
    """Where tiles begin along an axis: multiples of ``step``, neighbours sharing at least ``overlap`` pixels."""
    if tile % step or not 0 <= overlap < tile:
        raise InputError(f"tile must be a multiple of {step} and larger than overlap, got {tile} and {overlap}.")
    if length <= tile:
        return [0]
    stride = max((tile - overlap) // step * step, step)
    starts = list(range(0, length - tile, stride))
    return [*starts, -(-(length - tile) // step) * step]


def rise(overlap: int, halo: int) -> Float[Tensor, " n"]:
    """From 0 to 1 over an overlap, whose outer ``halo`` pixels are not trusted on either side."""
    halo = min(halo, (overlap - 1) // 2)
    return ((torch.arange(overlap) - halo + 0.5) / (overlap - 2 * halo)).clamp(0, 1)


def ramp(length: int, before: int, after: int, halo: int) -> Float[Tensor, " n"]:
    """A tile's weight along an axis: rising over ``before`` pixels, falling over ``after``, else 1."""
    weight = torch.ones(length)
    if before:
        weight[:before] = rise(before, halo)
    if after:
        weight[length - after :] *= rise(after, halo).flip(0)
    return weight


def count(height: int, width: int, tile: int, overlap: int, step: int = 1) -> int:
    """How many tiles there will be."""
    return len(places(height, tile, overlap, step)) * len(places(width, tile, overlap, step))


def tiled(
    work: Callable[[Tile], Float[Tensor, "n c p q"]],
    height: int,
    width: int,
    tile: int = 256,
    overlap: int = 64,
    step: int = 1,
    scale: int = 1,
    halo: int = 0,
) -> Iterator[tuple[int, Float[Tensor, "n c p q"]]]:
    """Work on every tile and yield finished strips of the whole: (row where the strip begins, its pixels).

    Args:
        work: From a tile of the input to its result, ``scale`` times as large.
        height: Of the input.
        width: Of the input.
        tile: Side of a tile in input pixels; tiles at the right and lower border may be smaller.
        overlap: Pixels that neighbours share, over which one fades into the other.
        step: Tiles begin at multiples of this (a grid that the work depends on, such as JPEG's).
        scale: Of the output.
        halo: Pixels at a tile's inner borders that are not used, because the work does not see beyond the tile.
    """
    tops, lefts = places(height, tile, overlap, step), places(width, tile, overlap, step)
    pending: Tensor | None = None  # the part of the rows so far that the next row will still change
    for i, top in enumerate(tops):
        bottom = min(top + tile, height)
        strip, total = None, torch.zeros(1, 1, 1, width * scale)
        for j, left in enumerate(lefts):
            right = min(left + tile, width)
            done = work(Tile(top, left, bottom - top, right - left)).float().cpu()
            if strip is None:
                strip = done.new_zeros(*done.shape[:2], (bottom - top) * scale, width * scale)
            before = min(lefts[j - 1] + tile, width) - left if j else 0
            after = right - lefts[j + 1] if j + 1 < len(lefts) else 0
            weight = ramp((right - left) * scale, before * scale, after * scale, halo * scale)
            strip[..., left * scale : right * scale] += done * weight
            total[..., left * scale : right * scale] += weight
        assert strip is not None
        strip = strip / total.clamp(min=1e-6)
        if pending is not None:
            shared = pending.shape[2]
            strip[:, :, :shared] = torch.lerp(pending, strip[:, :, :shared], rise(shared, halo * scale)[:, None])
        final = (tops[i + 1] if i + 1 < len(tops) else bottom) - top
        pending = strip[:, :, final * scale :].clone()
        yield top * scale, strip[:, :, : final * scale]


class Fields:
    """The noise of a run on a tile (``noise.Fresh``), by :func:`field`: where tiles overlap it is the same."""

    def __init__(self, seeds: Sequence[int], like: Float[Tensor, "b c h w"], tile: Tile):
        self.seeds, self.like, self.tile, self.moves = list(seeds), like, tile, 0

    def draw(self, sigma: float, to: float) -> Float[Tensor, "b c h w"]:
        """Fresh at every move."""
        self.moves += 1
        drawn = [field(seed, self.like.shape[1], self.tile, self.moves) for seed in self.seeds]
        return torch.stack(drawn).to(self.like)


def field(seed: int, channels: int, tile: Tile, *keys: int) -> Float[Tensor, "c h w"]:
    """Unit noise keyed by the place in the image: overlapping tiles see the same numbers where they overlap."""
    rows = range(tile.top // _BLOCK, -(-(tile.top + tile.height) // _BLOCK))
    columns = range(tile.left // _BLOCK, -(-(tile.left + tile.width) // _BLOCK))
    whole = torch.cat(
        [
            torch.cat(
                [
                    torch.randn(channels, _BLOCK, _BLOCK, generator=generator(seed, Stream.TILE_NOISE, r, c, *keys))
                    for c in columns
                ],
                2,
            )
            for r in rows
        ],
        1,
    )
    top, left = tile.top - rows[0] * _BLOCK, tile.left - columns[0] * _BLOCK
    return whole[:, top : top + tile.height, left : left + tile.width]
