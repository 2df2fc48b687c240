"""The degraded image as a measurement: its pixels, and the operator that made each tile of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from ...corruptions import Chain, Corruption, Operator, Step, after
from ...corruptions.blurs import reach
from ...corruptions.marks import filled
from ...errors import InputError
from ...io.images import to_array, to_tensor
from . import tiles
from .method import BLURS, PLACED, operator_of, shrinking
from .tiles import Tile

SMALL = 512  # side of a copy of the whole image
DEEP = 32  # pixels into a hole, from where on the whole image says what lies around
ROUNDING = 2 / 255 / math.sqrt(12)  # standard deviation of what a file with 8 bits per channel rounds away
WIDEST = 1024  # side of a tile that a wide blur may ask for


class Measurement:
    """A degraded image, and what happened to it: ``y = A x``, tile by tile.

    Args:
        image: In L or RGB, of any size.
        corruption: What happened to it.
        channels: Of the result, 1 or 3.
        exact: Whether it is known exactly what happened, so that results are held to the input.
        device: Where tiles are worked on; the image itself stays on the CPU.
        trust: How far it is to be changed, 0 to 1: see ``jpeg_files.Written``.
        rounding: Standard deviation of what was rounded away since, at least that of 8 bits.
    """

    def __init__(
        self,
        image: Image.Image,
        corruption: Corruption,
        channels: int,
        exact: bool,
        device: torch.device | str = "cpu",
        trust: float = 1.0,
        rounding: float = 0.0,
    ):
        self.corruption, self.channels, self.exact, self.device = corruption, channels, exact, device
        self.trust, self.rounding = trust, max(rounding, ROUNDING)
        self.factor = math.prod(map(shrinking, corruption.steps))
        mode = "L" if self.names("gray") or channels == 1 else "RGB"
        self.image: UInt8[Tensor, "k p q"] = torch.from_numpy(
            to_array(image if image.mode == mode else image.convert(mode))
        )
        self.height, self.width = self.image.shape[1:]
        self.shape = (channels, self.height * self.factor, self.width * self.factor)
        self._maps = self._locate() if corruption.known else {}
        self._far = self._surroundings()

    def names(self, *kinds: str) -> list[Step]:
        """The steps of these names."""
        return [step for step in self.corruption.steps if step.name in kinds]

    @property
    def hole(self) -> Bool[Tensor, "p q"] | None:
        """Where nothing is known of the image, if that is all that happened."""
        alone = [step.name for step in self.corruption.steps] == ["mask"] and bool(self._maps)
        return self._maps[0][0][0, 0] == 0 if alone else None

    @property
    def shows_gray(self) -> bool:
        """Whether the input has three channels that are alike: nothing that is known took its colors."""
        return len(self.image) == 3 and bool((self.image.amax(0) == self.image.amin(0)).all())

    @property
    def reach(self) -> int:
        """How far a known corruption spreads a pixel."""
        return sum(reach(step.name, step.values[0]) for step in self.names(*BLURS)) if self.corruption.known else 0

    @property
    def grid(self) -> int:
        """Tiles begin at multiples of this: of JPEG's blocks, and of those of a pixelation."""
        return math.lcm(16, *(int(step.values[0]) for step in self.names("pixelate") if step.fixed))

    def tiling(self, tile: int, overlap: int) -> tuple[int, int]:
        """The side of the tiles and their overlap: a wide blur asks for more of both, or the tiles' borders show."""
        tile = max(tile, min(16 * self.reach, WIDEST), 2 * self.grid if self.grid > 16 else 0) // self.grid * self.grid
        return tile, min(max(overlap, 8 * self.reach), tile // 2)

    def enlarged(self, tile: Tile) -> Tile:
        """A tile in the pixels of the result."""
        return Tile(*(n * self.factor for n in tile))

    def _locate(self) -> dict[int, tuple[Tensor, Tensor, int]]:
        """(gain, offset, scale) of each step that lies at a place: y = gain x + offset, at ``scale`` times our size."""
        maps: dict[int, tuple[Tensor, Tensor, int]] = {}
        shape, scale = self.shape, self.factor
        for i, step in enumerate(self.corruption.steps):
            if step.name in PLACED:
                operator = step.on((1 if step.name != "logo" else shape[0], *shape[1:]), [0])
                offset = operator.mean(torch.zeros(1, *operator.shape))
                gain = operator.mean(torch.ones(1, *operator.shape)) - offset
                if step.name == "mask" and not bool(gain.any()):
                    raise InputError("The mask covers the whole image: nothing is left to fill it from. Black stays.")
                maps[i] = (gain, offset, scale)
            factor = shrinking(step)
            scale, shape = scale // factor, (shape[0], shape[1] // factor, shape[2] // factor)
        return maps

    def _surroundings(self) -> dict[int, Tensor]:
        """For each mask a small copy of the whole image, its hole filled: what a tile inside the hole cannot see."""
        fills = {}
        for i, (gain, _, scale) in self._maps.items():
            if self.corruption.steps[i].name == "mask" and scale == 1:
                every = math.ceil(max(self.height, self.width) / SMALL)
                known = (gain[:1, :1, ::every, ::every] > 0).float()
                small = to_tensor(self.image[:, ::every, ::every])[None]
                fills[i] = filled(small * known, known)
        return fills

    def _around(self, i: int, tile: Tile) -> Tensor | None:
        """The part of the filled copy that a tile covers, enlarged."""
        if i not in self._far:
            return None
        rows = (2 * (tile.top + torch.arange(tile.height) + 0.5) / self.height - 1)[:, None].expand(-1, tile.width)
        columns = (2 * (tile.left + torch.arange(tile.width) + 0.5) / self.width - 1).expand(tile.height, -1)
        at = torch.stack([columns, rows], -1)[None]
        return F.grid_sample(self._far[i], at, mode="bilinear", padding_mode="border", align_corners=False)

    def operator(self, tile: Tile, n: int) -> Operator:
        """What happened to this tile, for ``n`` results."""
        shape = (self.channels, tile.height * self.factor, tile.width * self.factor)
        if not self._maps:
            return self.corruption.on(shape, [0] * n)
        made = Chain(()).on(shape, [0] * n)
        for i, step in enumerate(self.corruption.steps):
            if i in self._maps:
                *maps, s = self._maps[i]
                top, left, height, width = (side * s for side in tile)
                gain, offset = (m[:, :, top : top + height, left : left + width] for m in maps)
                then = _pixelwise(made.out, gain, offset, step.name, n, self._around(i, tile))
            else:
                then = step.on(made.out, [0] * n)
            made = after(made, then)
        return made

    def pixels(self, tile: Tile, operator: Operator) -> Float[Tensor, "1 k p q"]:
        """A tile of the input; what lies in a hole is not looked at."""
        y = self.image[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        y = to_tensor(y)[None].to(self.device)
        if any(self.corruption.steps[i].name == "mask" for i in self._maps):
            ones = torch.ones(len(operator.text), *operator.shape, device=y.device)
            y = torch.where(operator.mean(ones)[:1] == 0, 0.0, y)
        return y

    def error(self, images: UInt8[Tensor, "n c h w"], tile: int, overlap: int) -> tuple[float, float] | None:
        """(root mean square, largest) difference between the input and the results degraded again, of 255."""
        if not self.exact or self.rounding > ROUNDING or operator_of(self.corruption, self.channels).std is not None:
            return None
        halo = overlap // 2
        squares, numbers, largest = 0.0, 0, 0.0
        for place in self._windows(tile, 2 * halo):
            top, left, height, width = self.enlarged(place)
            operator = self.operator(place, len(images))
            y = self.pixels(place, operator)
            x = to_tensor(images[..., top : top + height, left : left + width])
            difference = (operator.mean(x.to(y)).clamp(-1, 1) - y) * 127.5
            inner = [slice(0 if a == 0 else halo, None if a + m == whole else -halo or None) for a, m, whole in (
                (place.top, place.height, self.height), (place.left, place.width, self.width))]  # fmt: skip
            difference = difference[..., inner[0], inner[1]]
            squares, numbers = squares + float(difference.square().sum()), numbers + difference.numel()
            largest = max(largest, float(difference.abs().max()))
        return math.sqrt(squares / numbers), largest

    def _windows(self, tile: int, overlap: int) -> Iterator[Tile]:
        for top in tiles.places(self.height, tile, overlap, self.grid):
            for left in tiles.places(self.width, tile, overlap, self.grid):
                yield Tile(top, left, min(tile, self.height - top), min(tile, self.width - left))


def _pixelwise(
    shape: tuple[int, int, int], gain: Tensor, offset: Tensor, name: str, n: int, far: Tensor | None
) -> Operator:
    """x * gain + offset: what a watermark or a hole does to a tile; ``far`` is what lies around the hole."""

    def inverse(y: Tensor) -> Tensor:
        return torch.where(gain.to(y) > 1e-3, y / gain.to(y).clamp(min=1e-3), 0)

    def lift(y: Tensor) -> Tensor:
        if name != "mask":
            return y
        known = (gain[:, :1] > 0).to(y).expand(len(y), -1, -1, -1)
        if far is not None:  # far from all that the tile knows, what the whole image says
            deep = F.max_pool2d(known, 2 * DEEP + 1, 1, DEEP) == 0
            y, known = torch.where(deep, far.to(y), y), torch.where(deep, 1.0, known)
        return filled(y, known)

    return Operator(
        shape, shape, lambda x: x * gain.to(x) + offset.to(x), inverse=inverse, lift=lift, text=(name,) * n, gain=gain
    )
