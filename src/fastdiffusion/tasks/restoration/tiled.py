"""A restoration in tiles: windows that overlap, and the numbers that decide how they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ... import guidance, samplers, schedules
from ...corruptions import Chain, Corruption, Operator, after
from ...corruptions.blurs import reach
from ...corruptions.marks import filled
from ...errors import InputError
from ...guidance import posterior as inverse
from ...io.images import open_image, to_array, to_tensor, to_uint8
from ...models import Model
from ...samplers import processes
from ...types import Cond, Denoise
from . import tiles
from .colorization import Hints, Palette, in_gamut
from .method import (
    PLACED,
    operator_of,
    shrinking,
    strongest_noise,
    weakened,
)
from .tiles import Tile

ROUNDING = 2 / 255 / math.sqrt(12)  # standard deviation of what a file with 8 bits per channel rounds away


ROUGHNESS = 0.04  # how far off the second differences of a model's answer are thought to be, where it was blurred


BLURS = ("blur", "motion", "defocus", "kernel")


SMALL = 512  # side of a copy of the whole picture


DEEP = 32  # pixels into a hole, from where on the whole picture says what lies around


WIDEST = 1024  # side of a tile that a wide blur may ask for


DATA = 0.5  # standard deviation of photographs


START = 5.0  # noise level at which a sample begins around a degraded picture: far above any damage


class _Job:
    def __init__(
        self, what: Corruption, model: Model, method: str, n: int, answer: str, steps: int, seed: int, posterior: str,
        source: Image.Image, hints: Any, palette: str | None, self_ensemble: bool,
    ):  # fmt: skip
        self.what, self.model, self.method, self.n, self.steps, self.seed = what, model, method, n, steps, seed
        self.posterior = posterior
        self.denoise: Denoise = guidance.self_ensemble(model.denoise) if self_ensemble else model.denoise
        self.mean = answer == "mean" or (answer == "auto" and n == 1)
        if n > 1 and (self.mean or method == "cold"):
            raise InputError(
                f"The {'mean' if self.mean else 'cold method'} is one answer, {n} were asked for. Leave n at 1."
            )
        if answer == "mean" and method == "zero-shot" and not any(step.name in BLURS for step in what.steps):
            raise InputError(
                "Zero-shot answers are samples: leave answer out, or take a model that was trained for it."
            )
        self.channels = model.shape[0]
        if self.channels not in (1, 3):
            raise InputError(f"The model makes pictures of {self.channels} channels: it cannot restore files.")
        self.factor = math.prod(map(shrinking, what.steps))
        self.held = what.known and model.corruption != "pairs"  # whether it is known what to hold the answer to
        gray = any(step.name == "gray" for step in what.steps)
        mode = "L" if gray or self.channels == 1 else "RGB"
        self.source = torch.from_numpy(to_array(source if source.mode == mode else source.convert(mode)))
        self.height, self.width = self.source.shape[1:]
        self.shape = (self.channels, self.height * self.factor, self.width * self.factor)
        self.maps = self._locate()
        self.far = self._far()
        if (hints or palette) and not (gray and self.channels == 3):
            raise InputError("hints and palette are for colorizing: say by='colorize', or leave them out.")
        self.hints = None if hints is None else Hints(open_image(hints, "hints"), self.shape[1:])
        self.palette = None if palette is None else Palette(palette)

    @property
    def reach(self) -> int:
        """How far what happened spreads a pixel, where it is known."""
        blurs = [step for step in self.what.steps if step.name in BLURS] if self.what.known else []
        return sum(reach(step.name, step.values[0]) for step in blurs)

    @property
    def step(self) -> int:
        """Tiles begin at multiples of this: of JPEG's squares, and of those that were made of pixels."""
        blocks = [int(step.values[0]) for step in self.what.steps if step.name == "pixelate" and step.fixed]
        return math.lcm(16, *blocks)

    def windows(self, tile: int, overlap: int) -> tuple[int, int]:
        """The side of the tiles and how much they share: a wide blur asks for more of both, or their borders show."""
        tile = max(tile, min(16 * self.reach, WIDEST), 2 * self.step if self.step > 16 else 0) // self.step * self.step
        return tile, min(max(overlap, 8 * self.reach), tile // 2)

    def _locate(self) -> dict[int, tuple[Tensor, Tensor, int]]:
        """For each corruption that lies at a place: what it leaves of the picture and what it adds, and its grid."""
        maps: dict[int, tuple[Tensor, Tensor, int]] = {}
        shape, scale = self.shape, self.factor
        if not self.what.known:
            return maps
        for i, step in enumerate(self.what.steps):
            if step.name in PLACED:
                operator = step.on((1 if step.name != "logo" else shape[0], *shape[1:]), [0])
                offset = operator.mean(torch.zeros(1, *operator.shape))
                gain = operator.mean(torch.ones(1, *operator.shape)) - offset
                maps[i] = (gain, offset, scale)
            factor = shrinking(step)
            scale, shape = scale // factor, (shape[0], shape[1] // factor, shape[2] // factor)
        return maps

    def _far(self) -> dict[int, Tensor]:
        """For each mask the whole picture, small, its hole filled from around: what a tile in the hole cannot see."""
        fills = {}
        for i, (gain, _, scale) in self.maps.items():
            if self.what.steps[i].name == "mask" and scale == 1:
                every = math.ceil(max(self.height, self.width) / SMALL)
                known = (gain[:1, :1, ::every, ::every] > 0).float()
                small = to_tensor(self.source[:, ::every, ::every])[None]
                fills[i] = filled(small * known, known)
        return fills

    def _around(self, i: int, tile: Tile) -> Tensor | None:
        """The part of that which a tile covers, enlarged."""
        if i not in self.far:
            return None
        rows = (2 * (tile.top + torch.arange(tile.height) + 0.5) / self.height - 1)[:, None].expand(-1, tile.width)
        columns = (2 * (tile.left + torch.arange(tile.width) + 0.5) / self.width - 1).expand(tile.height, -1)
        at = torch.stack([columns, rows], -1)[None]
        return F.grid_sample(self.far[i], at, mode="bilinear", padding_mode="border", align_corners=False)

    def operator(self, tile: Tile, rows: int) -> Operator:
        """What happened to this tile, for ``rows`` answers."""
        shape = (self.channels, tile.height * self.factor, tile.width * self.factor)
        if not self.maps:
            return self.what.on(shape, [0] * rows)
        made = Chain(()).on(shape, [0] * rows)
        for i, step in enumerate(self.what.steps):
            if i in self.maps:
                gain, offset, s = self.maps[i]
                gain, offset = (
                    m[:, :, tile.top * s : (tile.top + tile.height) * s, tile.left * s : (tile.left + tile.width) * s]
                    for m in (gain, offset)
                )
                then = _affine(made.out, gain, offset, step.name, rows, self._around(i, tile))
            else:
                then = step.on(made.out, [0] * rows)
            made = after(made, then)
        return made

    def measured(self, tile: Tile, operator: Operator) -> Float[Tensor, "1 k p q"]:
        """The input of a tile; what lies in a hole is not looked at."""
        y = self.source[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        y = to_tensor(y)[None].to(self.model.device)
        if self.maps and any(self.what.steps[i].name == "mask" for i in self.maps):
            ones = torch.ones(self.n, *operator.shape, device=y.device)
            y = torch.where(operator.mean(ones)[:1] == 0, 0.0, y)
        return y

    # ---- the answers ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, tile: int, overlap: int) -> UInt8[Tensor, "n c h w"]:
        """All answers, tile by tile."""
        total = tiles.count(self.height, self.width, tile, overlap, self.step)
        evaluations = 1 if self.mean and self.method == "supervised" else self.steps
        out = torch.empty(self.n, *self.shape, dtype=torch.uint8)
        with tqdm(total=total * evaluations, desc="restoring", disable=None, leave=False) as bar:

            def work(place: Tile) -> Tensor:
                return self.answers(place, bar.update)

            strips = tiles.tiled(
                work, self.height, self.width, tile, overlap, self.step, self.factor, halo=overlap // 4
            )
            for top, strip in strips:
                out[:, :, top : top + strip.shape[2]] = to_uint8(strip)
        return out

    def answers(self, tile: Tile, tick: Callable[[int], Any]) -> Float[Tensor, "n c h w"]:
        """The answers for one tile."""
        operator = self.operator(tile, self.n)
        y = self.measured(tile, operator)
        rows = y.expand(self.n, -1, -1, -1)
        base = operator.lift(rows)
        if (
            self.method == "zero-shot"
            and self.mean
            and self._blurs(operator)
            and strongest_noise(self.model) is not None
        ):
            x = self._denoiser(self._sharpened(base, rows, operator), base.new_empty(0))  # takes away what rings
            tick(self.steps)
        elif self.method == "zero-shot":
            x = self._zero_shot(operator, rows, base, tile, tick)
        elif self.method == "cold":
            x = self._cold(base, tick)
        elif self.mean:
            x = self._restorer(base)(base, self._level(base, self.model.sigma_max), None)
            tick(1)
        else:
            table = samplers.table("dpmpp_2m", schedules.exponential(self.steps, sigma_max=START))
            x = self._sampled(self._restorer(base), base, table, tile, tick)
        return self._held(x, rows, operator, tile)

    def _held(self, x: Tensor, y: Tensor, operator: Operator, tile: Tile) -> Tensor:
        """The answer held to the input, to the hints, and to what a file can hold."""
        scaled = Tile(*(v * self.factor for v in tile))
        if self.palette is not None:
            x = self.palette.pull(x)
        if self.hints is not None:
            x = self.hints.pull(x, scaled)
        if not self.held or not operator.projects:
            return x.clamp(-1, 1)
        if operator.std is not None and bool((operator.std > 0).any()):
            return x.clamp(-1, 1)
        gray = [step.name for step in self.what.steps] == ["gray"] and self.channels == 3
        if self._blurs(operator):
            return self._sharpened(x, y, operator).clamp(-1, 1)
        for _ in range(1 if gray else 20):  # by turns what agrees with the input, and what a file can hold
            x = inverse.nearby(x.clamp(-1, 1), y, operator, _rows(x, 1.0), _rows(x, ROUNDING**2))
            if float((x.abs() - 1).max()) < 0.5 / 255:
                break
        return in_gamut(x, y) if gray else x.clamp(-1, 1)

    def _blurs(self, operator: Operator) -> bool:
        """Whether some frequencies are nearly lost, which rounding then drowns, and no other noise is."""
        noisy = operator.std is not None and bool((operator.std > 0).any())
        return operator.linear and not noisy and any(step.name in BLURS for step in self.what.steps)

    def _sharpened(self, x: Tensor, y: Tensor, operator: Operator) -> Tensor:
        """The answer that agrees with a blurred input, as far as it was not rounded away, and is like ``x`` else."""
        margin = self.reach if all(step.name in BLURS for step in self.what.steps) else 0  # the rest may lie at a place
        if margin:
            c, h, w = operator.shape
            operator = self.what.on((c, h + 2 * margin, w + 2 * margin), [0] * len(y))
        return inverse.smoothly(x, y, operator, _rows(x, ROUNDING**2), ROUGHNESS, margin=margin)

    def _level(self, x: Tensor, sigma: float) -> Tensor:
        return x.new_full((len(x),), sigma)

    def _restorer(self, base: Tensor) -> Denoise:
        """The denoiser that works from the degraded picture."""

        def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
            return self.denoise(x, sigma, Cond(image=base))

        return denoise

    def _denoiser(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        """A restorer that undoes noise is a denoiser of any picture: it sees for itself how noisy that is."""
        clamped = x.clamp(-1, 1)  # as files hold it
        return self.denoise(clamped, self._level(x, self.model.sigma_max), Cond(image=clamped))

    def _noise(self, tile: Tile) -> Tensor:
        scaled = Tile(*(v * self.factor for v in tile))
        drawn = [tiles.field(self.seed + i, self.channels, scaled) for i in range(self.n)]
        return torch.stack(drawn).to(self.model.device)

    def _sampled(
        self, denoise: Denoise, start: Tensor, table: samplers.Table, tile: Tile, tick: Callable[[int], Any]
    ) -> Tensor:
        x = start + table.sigmas[0] * self._noise(tile)
        scaled = Tile(*(v * self.factor for v in tile))
        fresh = tiles.Fields([self.seed + i for i in range(self.n)], x, scaled)
        for step in samplers.run(denoise, x, table, paths=fresh):
            x = step.x
            tick(1)
        return x

    def _zero_shot(self, operator: Operator, y: Tensor, base: Tensor, tile: Tile, tick: Callable[[int], Any]) -> Tensor:
        """Any model as the prior, led by the measurement."""
        options: dict[str, Any] = {} if self.posterior in ("diffpir", "tmpd") else {"sigma_data": DATA}
        std = float(operator.std.max()) if operator.std is not None else 0.0
        options["std"] = math.hypot(std, ROUNDING) if operator.linear else None
        if self.model.corruption is None:
            prior, top, start = self.denoise, self.model.sigma_max, torch.zeros_like(base)
        elif (noise := strongest_noise(self.model)) is not None:
            prior, top, start = self._denoiser, noise, base
        else:  # what hides everything leaves the unconditional model
            prior, top, start = self._restorer(torch.zeros_like(base)), START, base
        # fresh noise at each step makes good what the methods' covariance is wrong about (see docs/restore.md)
        table = samplers.table("ddpm", schedules.exponential(self.steps, self.model.sigma_min, top))
        guided = inverse.INVERSE[self.posterior](prior, operator, y, **options)
        return self._sampled(guided, start, table, tile, tick)

    def _cold(self, base: Tensor, tick: Callable[[int], Any]) -> Tensor:
        """Undo a little, see what is left, and go on (Bansal et al. 2022, algorithm 2)."""

        def degrade(x0: Tensor, level: float) -> Tensor:
            operator = weakened(self.what, level).on(x0.shape[1:], [0] * len(x0))
            return operator.lift(operator.mean(x0))

        def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
            return self.denoise(x, self._level(x, self.model.sigma_max), Cond(image=x))

        table = samplers.table("euler", torch.linspace(1, 0, self.steps + 1))
        x = base
        for step in processes.run(denoise, base, table, processes.Cold(degrade)):
            x = step.x
            tick(1)
        return x

    # ---- and how well they agree with the input -------------------------------------------------------------------

    def colorless(self, images: UInt8[Tensor, "n c h w"]) -> bool:
        """Whether colors were asked for and hardly any came."""
        if self.channels != 3 or all(step.name != "gray" for step in self.what.steps):
            return False
        some = images[..., ::4, ::4].float()
        return float((some - some.mean(1, keepdim=True)).square().mean().sqrt()) < 4

    def error(self, images: UInt8[Tensor, "n c h w"], tile: int, overlap: int) -> tuple[float, float] | None:
        """(root mean square, largest) difference between the input and the answers degraded again, of 255."""
        if not self.held or operator_of(self.what, self.channels).std is not None:
            return None
        halo = overlap // 2
        squares, numbers, largest = 0.0, 0, 0.0
        for place in _windows(self.height, self.width, tile, 2 * halo, self.step):
            s = self.factor
            x = images[..., place.top * s : (place.top + place.height) * s, place.left * s :][..., : place.width * s]
            operator = self.operator(place, self.n)
            y = self.measured(place, operator)
            difference = (operator.mean(to_tensor(x).to(y)).clamp(-1, 1) - y) * 127.5
            inner = [slice(0 if a == 0 else halo, None if a + m == whole else -halo or None) for a, m, whole in (
                (place.top, place.height, self.height), (place.left, place.width, self.width))]  # fmt: skip
            difference = difference[..., inner[0], inner[1]]
            squares, numbers = squares + float(difference.square().sum()), numbers + difference.numel()
            largest = max(largest, float(difference.abs().max()))
        return math.sqrt(squares / numbers), largest


def _windows(height: int, width: int, tile: int, overlap: int, step: int) -> Iterator[Tile]:
    for top in tiles.places(height, tile, overlap, step):
        for left in tiles.places(width, tile, overlap, step):
            yield Tile(top, left, min(tile, height - top), min(tile, width - left))


def _rows(x: Tensor, value: float) -> Tensor:
    return x.new_full((len(x), 1, 1, 1), value)


def _affine(
    shape: tuple[int, int, int], gain: Tensor, offset: Tensor, name: str, rows: int, far: Tensor | None
) -> Operator:
    """x * gain + offset, pixel by pixel: what a mark or a hole does to a tile; ``far`` is what lies around the hole."""

    def inverse(y: Tensor) -> Tensor:
        return torch.where(gain.to(y) > 1e-3, y / gain.to(y).clamp(min=1e-3), 0)

    def lift(y: Tensor) -> Tensor:
        if name != "mask":
            return y
        known = (gain[:, :1] > 0).to(y).expand(len(y), -1, -1, -1)
        if far is not None:  # far from all that the tile knows, what the whole picture says
            deep = F.max_pool2d(known, 2 * DEEP + 1, 1, DEEP) == 0
            y, known = torch.where(deep, far.to(y), y), torch.where(deep, 1.0, known)
        return filled(y, known)

    return Operator(
        shape, shape, lambda x: x * gain.to(x) + offset.to(x), inverse=inverse, lift=lift, text=(name,) * rows
    )
