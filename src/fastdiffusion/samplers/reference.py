"""Trajectories of a model's own probability flow, finely solved: what a table is fitted to and measured against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..guidance import guidance, start
from ..io.checkpoints import load_tensors, save_tensors
from ..types import Cond, Denoise, Run
from . import registry, tables
from .tables import Table

Tick = Callable[[int], None]  # called with the number of images after each evaluation of the denoiser


def _silent(images: int) -> None:
    pass


@dataclass(frozen=True)
class Flow:
    """Trajectories from several noises.

    Attributes:
        denoise: The model, or the model under guidance.
        cond: Its condition, one row for each noise.
        log_sigmas: The levels of the reference, falling.
        states: At each level.
        estimates: Of the clean data there.
        batch: Images that are evaluated together.
        tick: See ``Tick``.
    """

    denoise: Denoise
    cond: Cond | None
    log_sigmas: Float[Tensor, " m"]
    states: Float[Tensor, "m b *d"]
    estimates: Float[Tensor, "m b *d"]
    batch: int = 64
    tick: Tick = _silent

    @staticmethod
    def solve(
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        cond: Cond | None,
        batch: int = 64,
        tick: Tick = _silent,
        keep: Path | None = None,
    ) -> Flow:
        """Follow the flow from ``x`` with DPM-Solver++(3M), one evaluation at each of ``sigmas``.

        Each batch that is done is written to the folder ``keep``, and read from there where it lies already.
        """
        table = registry.table("dpmpp_3m", sigmas)
        states, estimates = [], []
        for first in range(0, len(x), batch):
            part, rows = x[first : first + batch], list(range(first, min(first + batch, len(x))))
            file = None if keep is None else keep / f"{first:04d}.safetensors"
            if file is not None and file.is_file():
                known = load_tensors(file)[1]
                states.append(known["states"].to(x))
                estimates.append(known["estimates"].to(x))
                tick(len(part) * table.nfe)
                continue
            xs, x0s = [part], []
            for step in tables.run(denoise, part, table, None if cond is None else cond[rows]):
                xs.append(step.x)
                x0s.append(step.x0)
                tick(len(part))
            states.append(torch.stack(xs[:-1]))
            estimates.append(torch.stack(x0s))
            if file is not None:
                save_tensors(file, {"states": states[-1], "estimates": estimates[-1]}, {})
        return Flow(denoise, cond, sigmas[:-1].log(), torch.cat(states, 1), torch.cat(estimates, 1), batch, tick)

    @property
    def start(self) -> Float[Tensor, "b *d"]:
        """The noise."""
        return self.states[0]

    @property
    def end(self) -> Float[Tensor, "b *d"]:
        """The data."""
        return self.estimates[-1]

    def at(self, sigma: float) -> Float[Tensor, "b *d"]:
        """The states at a noise level: a cubic through the two nearest and their slopes dx/dlog sigma = x - D."""
        if sigma == 0:
            return self.end
        u = math.log(sigma)
        j = min(max(int((self.log_sigmas > u).sum()), 1), len(self.log_sigmas) - 1)
        a, b = float(self.log_sigmas[j - 1]), float(self.log_sigmas[j])
        h, t = b - a, (u - a) / (b - a)
        x, y = self.states[j - 1], self.states[j]
        dx, dy = h * (x - self.estimates[j - 1]), h * (y - self.estimates[j])
        return x + t * t * (3 - 2 * t) * (y - x) + t * (1 - t) ** 2 * dx - t * t * (1 - t) * dy

    def estimate(self, sigma: float) -> Float[Tensor, "b *d"]:
        """The estimates on the trajectories at a noise level: the polynomial through the four nearest."""
        u = math.log(sigma)
        j = int((self.log_sigmas > u).sum())
        near = range(max(min(j - 2, len(self.log_sigmas) - 4), 0), min(max(j + 2, 4), len(self.log_sigmas)))
        nodes = [float(self.log_sigmas[k]) for k in near]
        weights = [math.prod((u - other) / (node - other) for other in nodes if other != node) for node in nodes]
        return sum(w * self.estimates[k] for w, k in zip(weights, near, strict=True))  # type: ignore[return-value]

    def cheap(self) -> Flow:
        """The same trajectories with a denoiser that costs nothing: right on them, and beside them as for a Gaussian.

        D(x) = D(on the trajectory) + v / (v + sigma^2) * (x - trajectory), where v is the variance of the data: what
        ranks levels and tables before any of them is measured.
        """
        variance = float(self.end.double().var())

        @lru_cache(maxsize=32)  # a search moves one level at a time
        def known(sigma: float) -> tuple[float, Tensor]:
            kept = variance / (variance + sigma**2)
            return kept, self.estimate(sigma) - kept * self.at(sigma)

        @guidance
        def beside(_: Denoise, *, run: Run) -> Denoise:
            def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
                kept, rest = known(run.sigma)
                return rest + kept * x

            return denoise

        return Flow(beside(self.denoise), None, self.log_sigmas, self.states, self.estimates, len(self.start))

    # ---- measuring --------------------------------------------------------------------------------------------

    def rollout(self, sigmas: Sequence[float]) -> Callable[[int, Tensor], Tensor]:
        """The evaluations of one run with these levels: ``evaluate(i, x)`` is the estimate at the i-th."""
        now = Run(tuple(sigmas), len(sigmas))
        parts = [list(range(len(self.start))[first : first + self.batch])
                 for first in range(0, len(self.start), self.batch)]  # fmt: skip
        started = [start(self.denoise, now) for _ in parts]  # guidance may keep something of each part's own
        conds = [None if self.cond is None else self.cond[rows] for rows in parts]

        def evaluate(i: int, x: Tensor) -> Tensor:
            now.index, now.sigma = i, now.sigmas[i]
            estimates = []
            for denoise, cond, rows in zip(started, conds, parts, strict=True):
                sigma = x.new_full((len(rows),), now.sigma)
                estimates.append(denoise(x[rows[0] : rows[-1] + 1], sigma, cond))
                self.tick(len(rows))
            return torch.cat(estimates)

        return evaluate

    def perform(self, table: Table) -> Tensor:
        """What a table makes of the noises, from whatever level it starts at."""
        evaluate, history = self.rollout([row.sigma for row in table.rows]), []
        factor = table.sigmas[0] / math.exp(float(self.log_sigmas[0]))
        x = self.start if math.isclose(factor, 1, rel_tol=1e-5) else factor * self.start
        for i, row in enumerate(table.rows):
            x0 = evaluate(i, x)
            x = tables.move(row, x, x0, history)
            history = [x0, *history][: table.depth]
        return x

    def misses(self, x: Tensor) -> list[float]:
        """Each result's mean square distance from the flow's; infinite where it blew up."""
        values = (x - self.end).flatten(1).double().square().mean(1).tolist()
        return [value if math.isfinite(value) else math.inf for value in values]

    def error(self, x: Tensor) -> float:
        """Root mean square distance of a table's result from the flow's."""
        return rms(self.misses(x))

    def error_of(self, table: Table) -> float:
        """The error of a table."""
        return self.error(self.perform(table))


def rms(squares: Sequence[float]) -> float:
    """Square root of the mean."""
    return math.sqrt(sum(squares) / len(squares))
