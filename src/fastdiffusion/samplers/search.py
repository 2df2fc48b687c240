"""The search for one table: textbook tables, levels, the rows' weights by least squares, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..errors import InputError
from . import registry, solvers
from .ledger import Ledger
from .polish import DEPTH, polish_cost, polished
from .reference import Flow, rms
from .tables import Row, Table

TEXTBOOK = ("dpmpp_2m", "dpmpp_3m", "unipc", "deis", "gam", "lms", "heun", "euler")
SCHEDULES = ("exponential", "karras", "flow", "linear")
STRIDES = (0.4, 0.2, 0.1, 0.05, 0.025)  # of the way to the next level, in log sigma
GAIN = 0.998  # of the error, that a move is worth
RIDGES = (1e-4, 1e-6, 1e-2)  # the first one is searched with

Levels = Sequence[float]


@dataclass(frozen=True)
class Candidate:
    """A table with each held-out noise's squared error."""

    table: Table
    misses: list[float]

    @property
    def error(self) -> float:
        """Root mean square, on the noises held out."""
        return rms(self.misses)

    def clearly_better(self, other: Candidate) -> bool:
        """Whether the squared errors are smaller by more than one standard error of their mean difference.

        Where a few noises that end on the other side of a watershed make all of the error, they decide for nobody.
        """
        gains = [b - a for a, b in zip(self.misses, other.misses, strict=True)]
        if not all(map(math.isfinite, gains)):
            return self.error < other.error
        mean = sum(gains) / len(gains)
        return mean > math.sqrt(sum((gain - mean) ** 2 for gain in gains) / max(len(gains) * (len(gains) - 1), 1))


@dataclass
class Search:
    """The search for a table of ``steps``: see :func:`~fastdiffusion.samplers.fitting.fit_tables`.

    Attributes:
        training: Trajectories to fit to.
        held_out: Trajectories to choose with.
        ledger: What it may spend, and what it has measured.
        steps: Of the table.
        sigma_min: Lowest noise level of the reference.
        schedule: The levels that the model comes with.
    """

    training: Flow
    held_out: Flow
    ledger: Ledger
    steps: int
    sigma_min: float
    schedule: Callable[[int], Tensor] | None = None
    cheap: Flow = field(init=False)
    fits: Fits = field(init=False)

    def __post_init__(self) -> None:
        self.cheap, self.fits = self.training.cheap(), Fits(self.training, self.ledger)

    @property
    def sigma_max(self) -> float:
        """Where the flow begins."""
        return self.training.log_sigmas[0].exp().item()

    # ---- what is kept -----------------------------------------------------------------------------------------

    def best_table(self, polish: bool) -> Table:
        """The fitted table, or the best textbook one unless the fit is clearly better on the noises held out."""
        spent, share = self.ledger.spent, self.ledger.limit - self.ledger.spent
        textbook = self.best_textbook(spent + 0.3 * share)
        if self.steps == 1:
            return self._kept(textbook, textbook)
        turning = 4 * polish_cost(self.steps, self.training, self.held_out) < 0.5 * share  # is worth the half of it
        levels = self.search_levels(self._families(textbook), spent + (0.5 if polish and turning else 0.9) * share)
        candidates = []
        for ridge in RIDGES:
            fit = self.steps * len(self.training.start) if ridge != RIDGES[0] else 0
            if candidates and not self.ledger.affords(fit + self._cost(self.held_out)):
                break
            candidates.append(self._candidate(self.fits.table(levels, ridge)))
        best = min(candidates, key=lambda c: c.error)
        if polish:
            turned = (Candidate(*each) for each in polished(best.table, self.training, self.held_out, self.ledger))
            best = min([best, *turned], key=lambda c: c.error)
        return self._kept(best if best.clearly_better(textbook) else textbook, textbook)

    def best_levels(self, sampler: str) -> Table:
        """A textbook sampler's table with the levels that suit the model best; InputError for a stochastic one."""
        if registry.about(sampler).stochastic:
            raise InputError(
                f"Sampler {sampler!r} draws noise, so its error means nothing. Fit the levels of dpmpp_2m."
            )
        share = self.ledger.limit - self.ledger.spent
        textbook = self.best_textbook(self.ledger.spent + 0.3 * share, (sampler,))

        def error(levels: Levels) -> float:
            return self._error(registry.table(sampler, list(levels)), self.training)

        families = sorted([list(textbook.table.sigmas), *self._karras()],
                          key=lambda levels: self.cheap.error_of(registry.table(sampler, levels)))  # fmt: skip
        guess = _search(
            families[0], self.sigma_min, lambda levels: self.cheap.error_of(registry.table(sampler, list(levels)))
        )
        reserve = self._cost(self.held_out)
        first = min([guess, *families[:1]], key=error)
        cost = self._cost(self.training)
        levels = _search(first, self.sigma_min, error, lambda _: self.ledger.affords(cost + reserve))
        best = self._candidate(registry.table(sampler, levels))
        return self._kept(best if best.clearly_better(textbook) else textbook, textbook)

    def _kept(self, chosen: Candidate, textbook: Candidate) -> Table:
        info = {
            "fitted": chosen is not textbook,
            "error": chosen.error,
            "textbook": textbook.table.info["textbook"],
            "textbook_error": textbook.error,
        }
        return replace(chosen.table, info={**chosen.table.info, **info})

    def best_textbook(self, until: float, samplers: Sequence[str] = TEXTBOOK) -> Candidate:
        """The textbook table with the least error on the noises held out.

        The model's own default comes first, then those that promise most on ``cheap``, until so much is spent.
        """
        tables = []
        for name in samplers:
            per_step = 1 if len(samplers) == 1 else solvers.METHODS[name].nfe  # one sampler: steps are intervals
            n = (self.steps + per_step - 1) // per_step
            if n * per_step - (per_step - 1) != self.steps:
                continue
            for schedule in SCHEDULES:
                for low in (self.sigma_min, min(10 * self.sigma_min, self.sigma_max / 10)):
                    sigmas = schedules.schedule(schedule, n, sigma_min=low, sigma_max=self.sigma_max)
                    tables.append(_described(registry.table(name, sigmas), f"{name}, {schedule}, sigma_min {low:g}"))
        tables.sort(key=self.cheap.error_of)
        if self.schedule is not None:
            name = samplers[0]
            tables.insert(0, _described(registry.table(name, self.schedule(self.steps)), f"{name}, the model's own"))
        best = self._candidate(tables[0])
        for table in tables[1:]:
            if self.ledger.spent + table.nfe * len(self.held_out.start) > until:
                break
            best = min(best, self._candidate(table), key=lambda c: c.error)
        return best

    # ---- levels -----------------------------------------------------------------------------------------------

    def search_levels(self, families: list[list[float]], until: float) -> list[float]:
        """The levels with which :meth:`fit_rows` does best: first guessed on ``cheap``, then moved one at a time."""
        reserve = self._cost(self.held_out)

        def affords(levels: Levels) -> bool:
            cost = self.fits.price(levels)
            return self.ledger.affords(cost + reserve) and self.ledger.spent + cost <= until

        guess = _search(families[0], self.sigma_min, lambda levels: fit_rows(self.cheap, levels)[1])
        starts = [(self.fits.error(guess), guess)]
        starts += [(self.fits.error(levels), levels) for levels in families[:2] if affords(levels)]
        return _search(min(starts)[1], self.sigma_min, self.fits.error, affords)

    def _families(self, textbook: Candidate) -> list[list[float]]:
        """Karras et al.'s levels, of several rho and ends, and the best textbook's: best on ``cheap`` first."""
        families = self._karras()
        if textbook.table.nfe == len(textbook.table.sigmas) - 1:
            families.append(list(textbook.table.sigmas))
        return sorted(families, key=lambda levels: fit_rows(self.cheap, levels)[1])

    def _karras(self) -> list[list[float]]:
        lows = (low for low in (1, 4, 16, 48, 150) if low == 1 or low * self.sigma_min < self.sigma_max / 10)
        rhos = (7.0, 1e3, 4.0)  # 1e3 is as good as exponential
        return [schedules.karras(self.steps, low * self.sigma_min, self.sigma_max, rho).tolist()
                for low in lows for rho in rhos]  # fmt: skip

    # ---- what is measured -------------------------------------------------------------------------------------

    def _cost(self, flow: Flow) -> int:
        return self.steps * len(flow.start)

    def _candidate(self, table: Table) -> Candidate:
        flow = self.held_out
        return Candidate(
            table, self.ledger.measure(lambda: (flow.misses(flow.perform(table)), table.nfe * len(flow.start)))
        )

    def _error(self, table: Table, flow: Flow) -> float:
        return self.ledger.measure(lambda: (flow.error_of(table), table.nfe * len(flow.start)))


class Fits:
    """Tables fitted row by row, each measured once; the evaluations that one shares with the best so far are known.

    Args:
        flow: Trajectories to fit to.
        ledger: Where the measurements are kept.
    """

    def __init__(self, flow: Flow, ledger: Ledger):
        self.flow, self.ledger = flow, ledger
        self.known: dict[tuple[tuple[float, ...], float], dict[str, Any]] = {}
        self.best: tuple[float, ...] = ()
        self.least = math.inf
        self.estimates: dict[
            tuple[float, ...], list[Tensor]
        ] = {}  # of the best; empty where it was measured before a break

    def error(self, levels: Levels, ridge: float = RIDGES[0]) -> float:
        """The error of the table with these levels on the noises to fit to."""
        key = (tuple(levels), ridge)
        if key not in self.known:
            made: list[Tensor] = []
            self.known[key] = self.ledger.measure(lambda: self._measured(levels, ridge, made))
            if ridge == RIDGES[0] and self.known[key]["error"] < self.least:
                self.best, self.least = key[0], self.known[key]["error"]
                self.estimates = {self.best: made}
        return self.known[key]["error"]

    def table(self, levels: Levels, ridge: float = RIDGES[0]) -> Table:
        """That table."""
        self.error(levels, ridge)
        weights = self.known[tuple(levels), ridge]["weights"]
        rows = [Row(s, t / s, tuple(row)) for (s, t), row in zip(pairwise(levels), weights, strict=True)]
        return Table("fitted", tuple(levels), tuple(rows))

    def price(self, levels: Levels, ridge: float = RIDGES[0]) -> int:
        """Evaluations of a fit with these levels."""
        return (len(levels) - 1 - self._common(levels, ridge)) * len(self.flow.start)

    def _common(self, levels: Levels, ridge: float) -> int:
        """How many of the first evaluations are those of the best."""
        if ridge != RIDGES[0]:
            return 0
        pairs = zip(self.best[:-1], levels, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.best[:-1]))

    def _measured(self, levels: Levels, ridge: float, made: list[Tensor]) -> tuple[dict[str, Any], int]:
        cost, known = self.price(levels, ridge), self.estimates.get(self.best, [])[: self._common(levels, ridge)]
        rows, x, estimates = _rolled(self.flow, levels, ridge, known)
        made += estimates
        return {"error": self.flow.error(x), "weights": [row.weights for row in rows]}, cost


def fit_rows(flow: Flow, sigmas: Levels, ridge: float = RIDGES[0]) -> tuple[Table, float]:
    """The table with these levels whose every row leads nearest to the flow, from where its rows led; and its error.

    Ridge regression of the older estimates' weights towards those of ``dpmpp_3m``; the row's ratio is given by the
    levels, and a row sums to 1 by its form, so that a perfect model still gets its x0 back.
    """
    rows, x, _ = _rolled(flow, sigmas, ridge, [])
    return Table("fitted", tuple(sigmas), tuple(rows)), flow.error(x)


def _rolled(
    flow: Flow, sigmas: Levels, ridge: float, known: Sequence[Tensor]
) -> tuple[list[Row], Tensor, list[Tensor]]:
    """The rows of :func:`fit_rows`, where they lead, and all estimates, the first of which may be ``known``."""
    x, evaluate = flow.start, flow.rollout(sigmas[:-1])
    estimates: list[Tensor] = []
    rows: list[Row] = []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x0 = known[i] if i < len(known) else evaluate(i, x)
        ratio, history = t / s, estimates[: -DEPTH - 1 : -1]
        x = torch.lerp(x0, x, ratio) if t > 0 else x0
        weights: tuple[float, ...] = ()
        if history:
            older = torch.stack([estimate - x0 for estimate in history]).flatten(1).double()
            prior = torch.tensor(textbook_weights(sigmas[: i + 1], t, len(history))).to(older)
            gram = older @ older.T
            gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
            missing = (flow.at(t) - x).flatten().double() - prior @ older
            fitted = prior + torch.linalg.solve(gram, older @ missing)
            x = x + (fitted @ older).to(x).reshape(x.shape)
            weights = tuple(fitted.tolist())
        rows.append(Row(s, ratio, weights))
        estimates.append(x0)
    return rows, x, estimates


def textbook_weights(past: Levels, t: float, count: int) -> list[float]:
    """The weights of the ``count`` older estimates in ``dpmpp_3m``'s row from past[-1] to t."""
    nodes = [-math.log(s) for s in reversed(past[-3:])]
    if t == 0:
        return [0.0] * count
    a, b = nodes[0], -math.log(t)
    weights = solvers.lagrange_integrals(nodes, a, b, lambda u: math.exp(u - b), lambda u: u)[1:]
    return [*weights, *[0.0] * count][:count]


def _search(
    levels: list[float],
    lowest: float,
    error: Callable[[Levels], float],
    affords: Callable[[Levels], bool] = lambda _: True,
) -> list[float]:
    """Move one level at a time, never below ``lowest``, as long as it gains, in ever smaller strides."""
    best, least = levels, error(levels)
    for stride in STRIDES:
        improved = True
        while improved:
            improved = False
            for i in range(1, len(best) - 1):
                for direction in (1, -1):
                    other = best[i + direction] or best[i] * (best[i] / best[i - 1])  # beyond the last level lies 0
                    moved = [*best[:i], best[i] * (other / best[i]) ** stride, *best[i + 1 :]]
                    if moved[i] < lowest:
                        continue
                    if not affords(moved):
                        return best
                    if (reached := error(moved)) < GAIN * least:
                        best, least, improved = moved, reached, True
                        break
    return best


def _described(table: Table, textbook: str) -> Table:
    return replace(table, info={**table.info, "textbook": textbook})
