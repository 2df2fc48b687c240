"""A restoration of any size: solved tile by tile, held to the input, and blended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...errors import InputError
from ...io.images import open_image, to_tensor, to_uint8
from ...models import Model
from ...progress import Progress
from . import tiles
from .colorization import Hints, Palette, luminance
from .consistency import hold, with_plain_places
from .jpeg_files import likely
from .measurement import Measurement
from .method import takes_mean
from .options import RestoreOptions
from .solver import Solver
from .tiles import Tile

ROWS = 256  # of an image that are turned to floats at a time
GRAY_SPREAD = 4  # of 255: below this standard deviation of the channels around their mean, an image looks gray


class TiledRestoration:
    """Every tile's results, and the whole that they make.

    Args:
        measurement: The degraded image and what happened to it.
        model: Restorer or prior.
        method: "supervised", "zero-shot" or "cold"; "none" enlarges what is smaller and changes nothing else.
        options: As the caller gave them.

    Raises InputError for hints or a palette where there is nothing to colorize.
    """

    def __init__(self, measurement: Measurement, model: Model, method: str, options: RestoreOptions):
        self.measurement, self.model, self.method, self.options = measurement, model, method, options
        self.colorizes = measurement.channels == 3 and bool(measurement.names("gray"))
        if (options.hints or options.palette) and not self.colorizes:
            raise InputError("hints and palette are for colorizing: use corruption='colorize', or leave them out.")
        self.stays_gray = measurement.channels == 3 and measurement.shows_gray and model.corruption != "pairs"
        self.hints = self.palette = None
        if options.hints is not None:
            self.hints = Hints(open_image(options.hints, "hints"), measurement.shape[1:])
        if options.palette is not None:
            self.palette = Palette(options.palette)

    @torch.no_grad()
    def run(self, tile: int, overlap: int) -> UInt8[Tensor, "n c h w"]:
        """All results, on the CPU."""
        m, options = self.measurement, self.options
        total = tiles.count(m.height, m.width, tile, overlap, m.grid)
        evaluations = 0 if self.method == "none" else options.steps
        evaluations = 1 if takes_mean(options) and self.method == "supervised" else evaluations
        out = torch.empty(options.n, *m.shape, dtype=torch.uint8)
        with Progress(total=total * evaluations, desc="restoring") as bar:
            work = self.worker(bar.update)
            strips = tiles.tiled(work, m.height, m.width, tile, overlap, m.grid, m.factor, halo=overlap // 4)
            for top, strip in strips:
                out[:, :, top : top + strip.shape[2]] = to_uint8(strip)
        return out

    def worker(self, tick: Callable[[int], Any]) -> Callable[[Tile], Float[Tensor, "n c h w"]]:
        """The function from a tile to its results; ``tick`` is called with the number of evaluations done."""
        options = self.options
        solver = Solver(self.measurement, self.model, self.method, self.options, tick)

        def work(tile: Tile) -> Float[Tensor, "n c h w"]:
            operator = self.measurement.operator(tile, self.options.n)
            y = self.measurement.pixels(tile, operator).expand(self.options.n, -1, -1, -1)
            x = solver(tile, operator, y)
            if self.palette is not None:
                x = self.palette.pull(x)
            if self.hints is not None:
                x = self.hints.pull(x, self.measurement.enlarged(tile))
            if self.method == "supervised" and takes_mean(options):
                x = likely(x, y, self.measurement.corruption, self.measurement.trust)
                x = with_plain_places(x, y, self.measurement.corruption)
            x = hold(x, y, operator, self.measurement)
            return luminance(x).expand(x.shape) if self.stays_gray else x

        return work

    def lacks_color(self, images: UInt8[Tensor, "n c h w"]) -> bool:
        """Whether colors were asked for and hardly any came."""
        some = images[..., ::4, ::4].float()
        return self.colorizes and float((some - some.mean(1, keepdim=True)).square().mean().sqrt()) < GRAY_SPREAD

    def grayed(self, images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
        """The images without color. What was gray and nothing else comes back to the bit."""
        gray = self.measurement.image
        if len(self.measurement.corruption.steps) == 1:
            return gray.expand(images.shape).clone()
        rows = [to_uint8(luminance(to_tensor(one))) for one in images.split(ROWS, 2)]
        return torch.cat(rows, 2).expand(images.shape).clone()
