"""How one tile is restored: by a trained restorer, by any model as the prior, or a little at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ... import guidance, samplers, schedules
from ...corruptions import Operator, enlarge
from ...guidance.posterior import INVERSE
from ...models import Model
from ...samplers import processes
from ...types import Cond, Denoise
from . import tiles
from .consistency import deblurred, loses_frequencies
from .measurement import ROUNDING, Measurement
from .method import factors, gives_mean, strongest_noise, takes_mean, weakened
from .options import RestoreOptions
from .tiles import Tile

DATA = 0.5  # standard deviation of photographs
DITHERS = 4  # noises that a rounding is hidden in
START = 5.0  # noise level at which a sample begins around a degraded image: far above any damage


class Solver:
    """The estimates of a tile's clean pixels, before they are held to the input.

    Args:
        measurement: What is known.
        model: Restorer or prior.
        method: "supervised", "zero-shot" or "cold".
        options: How many, which kind, from which seeds.
        tick: Called with the number of evaluations that were done.
    """

    def __init__(
        self, measurement: Measurement, model: Model, method: str, options: RestoreOptions, tick: Callable[[int], Any]
    ):
        self.measurement, self.model, self.method, self.options, self.tick = measurement, model, method, options, tick
        self.denoise: Denoise = guidance.self_ensemble(model.denoise) if options.self_ensemble else model.denoise
        self.noise_limit = strongest_noise(model)
        self.mean = takes_mean(options)
        self.in_few_calls = gives_mean(measurement.corruption, model)
        self.factors = factors(model)

    def __call__(self, tile: Tile, operator: Operator, y: Float[Tensor, "n k p q"]) -> Float[Tensor, "n c h w"]:
        """The estimates for one tile, one per row of ``y``."""
        base = operator.lift(y)
        if self.method == "none":
            return base
        if self.method == "cold":
            return self._cold(base)
        if self.method == "zero-shot":
            x = self._zero_shot_mean(tile, operator, y, base) if self.mean and self.noise_limit is not None else None
            return x if x is not None else self._zero_shot(tile, operator, y, base)
        if self.mean:
            return self._once(self._restorer(base), base)
        table = samplers.table("dpmpp_2m", schedules.exponential(self.options.steps, sigma_max=START))
        return self._sampled(self._restorer(base), base, table, tile)

    def _restorer(self, base: Tensor) -> Denoise:
        """The denoiser that works from the degraded image."""

        def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
            return self.denoise(x, sigma, Cond(image=base))

        return denoise

    def _own_denoiser(self, x: Tensor, sigma: Tensor | None = None, cond: Cond | None = None) -> Tensor:
        """A restorer that undoes noise is a denoiser of any image: it estimates by itself how noisy that is."""
        clamped = x.clamp(-1, 1)  # as files hold it
        return self.denoise(clamped, self._highest(x), Cond(image=clamped))

    def _highest(self, x: Tensor) -> Float[Tensor, " n"]:
        return x.new_full((len(x),), self.model.sigma_max)

    def _once(self, denoise: Denoise, base: Tensor) -> Tensor:
        """The mean of all possible results: at the highest level nothing but ``base`` is known."""
        x = denoise(base, self._highest(base), None)
        self.tick(1)
        return x

    def _zero_shot_mean(self, tile: Tile, operator: Operator, y: Tensor, base: Tensor) -> Tensor | None:
        """The mean of all results in a few calls, where a restorer can give it; None elsewhere."""
        what, (h, w) = self.measurement.corruption, base.shape[-2:]
        if loses_frequencies(operator, self.measurement):
            x = self._own_denoiser(deblurred(base, y, operator, self.measurement))  # what rings is taken away
        elif not self.in_few_calls:
            return None
        elif what.steps[0].name == "posterize":
            x = self._dithered(tile, y, width=2 / (float(what.steps[0].values[0]) - 1))
        else:
            n = int(what.steps[0].values[0])
            small = y if what.steps[0].name == "downscale" else y[..., ::n, ::n]  # a pixelated image is a small one
            x = self._enlarged(small, (n * small.shape[-2], n * small.shape[-1]))[..., :h, :w]
        self.tick(self.options.steps)
        return x

    def _dithered(self, tile: Tile, y: Tensor, width: float) -> Tensor:
        """What was rounded to steps of a ``width``, less the rounding, which noise on top makes look like noise.

        Without it flat areas between steps look as if nothing were wrong. Half the rounding's own standard deviation
        is enough, and takes the least texture away.
        """
        noise = [tiles.field(seed, y.shape[1], tile) for seed in range(DITHERS)]
        return torch.stack([self._own_denoiser(y + width / math.sqrt(48) * one.to(y)) for one in noise]).mean(0)

    def _enlarged(self, small: Tensor, size: tuple[int, int]) -> Tensor:
        """A smaller image at another size: enlarged by the factors that the model learned until it is large enough."""
        x = small
        while x.shape[-1] < size[1] or x.shape[-2] < size[0]:
            lacking = max(size[0] / x.shape[-2], size[1] / x.shape[-1])
            factor = next((n for n in self.factors if n >= lacking), self.factors[-1])
            base = enlarge(x, (factor * x.shape[-2], factor * x.shape[-1]))
            x = self._restorer(base)(base, self._highest(base), None).clamp(-1, 1)
        return F.interpolate(x, size, mode="bicubic", antialias=True)

    def _sampled(self, denoise: Denoise, start: Tensor, table: samplers.Table, tile: Tile) -> Tensor:
        """Samples from ``start`` with noise on it, keyed by the place so that overlapping tiles agree."""
        scaled, seeds = self.measurement.enlarged(tile), range(self.options.seed, self.options.seed + self.options.n)
        noise = torch.stack([tiles.field(seed, start.shape[1], scaled) for seed in seeds])
        x = start + table.sigmas[0] * noise.to(start)
        for step in samplers.run(denoise, x, table, paths=tiles.Fields(seeds, x, scaled)):
            x = step.x
            self.tick(1)
        return x

    def _zero_shot(self, tile: Tile, operator: Operator, y: Tensor, base: Tensor) -> Tensor:
        """Any model as the prior, led by the measurement."""
        keywords: dict[str, Any] = {} if self.options.posterior in ("diffpir", "tmpd") else {"sigma_data": DATA}
        std = float(operator.std.max()) if operator.std is not None else 0.0
        keywords["std"] = math.hypot(std, ROUNDING) if operator.linear else None
        if self.model.corruption is None:
            prior, top, start = self.denoise, self.model.sigma_max, torch.zeros_like(base)
        elif self.noise_limit is not None:
            prior, top, start = self._own_denoiser, self.noise_limit, base
        else:  # what hides everything leaves the unconditional model
            prior, top, start = self._restorer(torch.zeros_like(base)), START, base
        # fresh noise at each step corrects what the methods' covariance gets wrong (see docs/restore.md)
        table = samplers.table("ddpm", schedules.exponential(self.options.steps, self.model.sigma_min, top))
        guided = INVERSE[self.options.posterior](prior, operator, y, **keywords)
        return self._sampled(guided, start, table, tile)

    def _cold(self, base: Tensor) -> Tensor:
        """Undo a little, see what is left, and go on (Bansal et al. 2022, algorithm 2)."""

        def degrade(x0: Tensor, level: float) -> Tensor:
            operator = weakened(self.measurement.corruption, level).on(x0.shape[1:], [0] * len(x0))
            return operator.lift(operator.mean(x0))

        def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
            return self.denoise(x, self._highest(x), Cond(image=x))

        table = samplers.table("euler", torch.linspace(1, 0, self.options.steps + 1))
        x = base
        for step in processes.run(denoise, base, table, processes.Cold(degrade)):
            x = step.x
            self.tick(1)
        return x
