"""A sampler fitted to a model: the table that follows this model's own flow most closely in so many evaluations.

A table's free numbers are the noise levels of its evaluations and the weights of the older estimates (``samplers``).
A fine solve of the probability flow from a few dozen noises shows where each row should lead; given the levels, a row's
weights are then a small least-squares problem, solved row by row as the table rolls out. The levels are searched along
families of schedules, then one by one; ``polish`` at last turns all numbers together, and with them how much noise each
row keeps (Levenberg-Marquardt on the error of the result). All of it takes forward passes only, so it works for any
denoiser, guided or not.

What is kept is chosen on noises that were not fitted to, and the best textbook table is kept where nothing beats it.

References: BNS (Shaul et al. 2024, arXiv:2403.01329), LD3 (Tong et al. 2024, arXiv:2405.15506), S4S (Frankel et al.
2025, arXiv:2502.17423), GITS (Chen et al. 2024, arXiv:2405.11326) fit some of these numbers by other means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .. import noise, schedules
from ..errors import InputError
from ..guidance import Guided, cfg, start
from ..types import Cond, Denoise, Run
from . import registry, solvers, tables
from .tables import Row, Table, move

DEPTH = 6  # older estimates that a fitted row may use
NUDGE = 1e-3  # of a number, to see what it does
NUMBERS = 300_000  # of all trajectories' states together: more gains nothing and costs memory


@runtime_checkable
class Fittable(Protocol):
    """What is read from a ``Model``."""

    @property
    def denoise(self) -> Denoise: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    def null(self, n: int = 1) -> Cond | None: ...


@dataclass(frozen=True)
class Flow:
    """Trajectories of a model's own probability flow, finely solved: what a table is measured against."""

    denoise: Denoise
    cond: Cond | None
    log_sigmas: Float[Tensor, " m"]  # falling
    states: Float[Tensor, "m b *d"]
    estimates: Float[Tensor, "m b *d"]

    @staticmethod
    def solve(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond | None) -> Flow:
        """Follow the flow from ``x`` with DPM-Solver++(3M), one evaluation at each of ``sigmas``."""
        steps = list(tables.run(denoise, x, registry.table("dpmpp_3m", sigmas), cond))
        states = torch.stack([x, *(step.x for step in steps[:-1])])
        return Flow(denoise, cond, sigmas[:-1].log(), states, torch.stack([step.x0 for step in steps]))

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

    def error(self, x: Tensor) -> float:
        """Root mean square distance of a table's result from the flow's; infinite if it blew up."""
        value = float((x - self.end).double().square().mean().sqrt())
        return value if math.isfinite(value) else math.inf

    def error_of(self, table: Table) -> float:
        """The error of a table."""
        return self.error(tables.final(tables.run(self.denoise, self.start, table, self.cond)))


def fit_sampler(
    model: Fittable | Denoise,
    steps: int,
    shape: Sequence[int] | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    cond: Cond | None = None,
    noises: int = 64,
    seconds: float = 60.0,
    polish: bool = True,
    scale: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Table:
    """The best table of ``steps`` evaluations for this model, by the RMS distance from its own probability flow.

    Args:
        model: A ``Model``, or any denoiser (then ``shape``, ``sigma_max`` and ``sigma_min`` are needed).
        steps: Function evaluations of the table.
        shape: Shape of one sample.
        sigma_max: Noise level to start at.
        sigma_min: Lowest noise level of the reference.
        cond: The denoiser's condition; its rows are used in turn.
        noises: How many noises to fit to; half as many more choose between candidates. Slow or large models get fewer.
        seconds: Time to spend, roughly. A slow model is searched less; a fast one is done earlier.
        polish: Spend the second half of the time on turning all numbers together.
        scale: Guidance scale to fit for (needs ``cond``).
        seed: Of the noises.
        device: Of the noises and the linear algebra; by default where the model is.

    Returns:
        A table whose ``info`` holds ``error`` and ``textbook_error``, both on noises that were not fitted to, and what
        it was fitted for.
    """
    began = time.monotonic()
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}. Try steps=8.")
    denoise: Denoise = model if not isinstance(model, Fittable) else model.denoise
    if isinstance(model, Fittable):
        shape, sigma_max, sigma_min = shape or model.shape, sigma_max or model.sigma_max, sigma_min or model.sigma_min
    if shape is None or sigma_max is None or sigma_min is None:
        raise InputError("A bare denoiser needs shape, sigma_max and sigma_min, e.g. shape=(3, 64, 64), 80, 0.002.")
    device = _device_of(model, cond) if device is None else torch.device(device)
    cond = None if cond is None else cond.to(device)
    if scale != 1:  # a model says itself what it was trained to take for "no condition"
        denoise = cfg(denoise, scale, model.null() if isinstance(model, Fittable) else None)

    def draw(first: int, n: int) -> tuple[Tensor, Cond | None]:
        x = sigma_max * noise.initial(range(seed + first, seed + first + n), shape).to(device)
        return x, None if cond is None else cond[[(first + i) % len(cond) for i in range(n)]]

    with torch.no_grad():
        levels = schedules.exponential(max(100, 6 * steps), sigma_min, sigma_max)
        most = max(int(min(noises, NUMBERS / math.prod(shape))), 8)
        training, validation = reference(denoise, draw, levels, most, 0.3 * seconds)
        textbook = best_textbook(validation, steps, sigma_min, sigma_max, began + 0.5 * seconds)
        candidates = [textbook]
        if steps > 1:
            sigmas = best_family(training, steps, sigma_min, began + 0.4 * seconds)
            sigmas = search_levels(training, sigmas, began + (0.4 if polish else 0.9) * seconds)
            candidates += [fit_rows(training, sigmas, ridge)[0] for ridge in (1e-6, 1e-4, 1e-2)]
            if polish:
                chosen = min(candidates[1:], key=validation.error_of)
                candidates += polished(chosen, training, validation, began + seconds)
        best = min(candidates, key=validation.error_of)
        info = {
            "fitted": best is not textbook,
            "error": validation.error_of(best),
            "textbook": textbook.info["textbook"],
            "textbook_error": validation.error_of(textbook),
            "shape": list(shape),
            "sigma_min": sigma_min,
            "scale": scale,
            "noises": len(training.start),
            "seconds": round(time.monotonic() - began, 1),
        }
    return replace(best, info={**best.info, **info})


def _device_of(model: Any, cond: Cond | None) -> torch.device:
    """Where a model computes: its own ``device``, or its parameters', or the condition's."""
    while isinstance(model, Guided):
        model = model.denoise
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    known = (v for v in vars(cond or Cond()).values() if isinstance(v, Tensor))
    return getattr(model, "device", None) or next((v.device for v in (*parameters, *known)), torch.device("cpu"))


def _like(tensor: Tensor, numbers: Sequence[float]) -> Tensor:
    """Numbers where a tensor is, and of its type."""
    return torch.tensor(numbers, dtype=tensor.dtype, device=tensor.device)


def reference(
    denoise: Denoise, draw: Callable[[int, int], tuple[Tensor, Cond | None]], sigmas: Tensor, most: int, seconds: float
) -> tuple[Flow, Flow]:
    """Fine trajectories to fit to, and half as many to choose with: at most ``most``, fewer if the model is slow.

    ``draw(first, n)`` gives n starts at ``sigmas[0]``, and their conditions.
    """
    high, each = sigmas[0].item(), math.inf
    probe, cond = draw(0, min(most, 16))
    for _ in range(3):  # the first evaluation may have to warm up
        clock = time.monotonic()
        x0 = start(denoise, Run((high,), 1, 0, high))(probe, probe.new_full((len(probe),), high), cond)
        float(x0.sum())  # a GPU is waited for
        each = min(each, (time.monotonic() - clock) / len(probe))
    n = max(min(most, int(seconds / (1.5 * len(sigmas) * each))), 8)
    (x, x_cond), (y, y_cond) = draw(0, n), draw(n, n // 2)
    return Flow.solve(denoise, x, sigmas, x_cond), Flow.solve(denoise, y, sigmas, y_cond)


def best_textbook(flow: Flow, steps: int, sigma_min: float, sigma_max: float, until: float) -> Table:
    """The textbook table of ``steps`` evaluations that is nearest to the flow; ``until`` stops the search."""
    best, best_error = None, math.inf
    for schedule in ("exponential", "karras", "flow", "linear"):
        for name in ("dpmpp_3m", "unipc", "deis", "dpmpp_2m", "gam", "lms", "heun", "euler"):
            per_step = solvers.METHODS[name].nfe
            n = (steps + per_step - 1) // per_step
            if n * per_step - (per_step - 1) != steps:
                continue
            for low in (sigma_min, min(10 * sigma_min, sigma_max / 10)):
                sigmas = schedules.schedule(schedule, n, sigma_min=low, sigma_max=sigma_max)
                table = registry.table(name, sigmas)
                error = flow.error_of(table)
                if best is None or error < best_error:
                    description = f"{name}, {schedule}, sigma_min {low:g}"
                    best, best_error = replace(table, info={**table.info, "textbook": description}), error
                if time.monotonic() > until:
                    return best
    assert best is not None, "euler takes any number of steps"
    return best


def fit_rows(flow: Flow, sigmas: Sequence[float], ridge: float = 1e-4) -> tuple[Table, float]:
    """The table with these levels whose every row leads nearest to the flow, from where its rows led; and its error.

    Ridge regression of the older estimates' weights towards those of ``dpmpp_3m``; the row's ratio is given by the
    levels, and a row sums to 1 by its form, so that a perfect model still gets its x0 back.
    """
    now, x = Run(tuple(sigmas[:-1]), len(sigmas) - 1), flow.start
    denoise = start(flow.denoise, now)
    history: list[Tensor] = []
    rows: list[Row] = []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        now.index, now.sigma = i, s
        x0 = denoise(x, x.new_full((len(x),), s), flow.cond)
        ratio = t / s
        x = torch.lerp(x0, x, ratio) if t > 0 else x0
        weights: tuple[float, ...] = ()
        if history:
            known = torch.stack([older - x0 for older in history]).flatten(1).double()
            prior = _like(known, textbook_weights(sigmas[: len(rows) + 1], t, len(history)))
            gram = known @ known.T
            gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
            missing = (flow.at(t) - x).flatten().double() - prior @ known
            fitted = prior + torch.linalg.solve(gram, known @ missing)
            x = x + (fitted @ known).to(x).reshape(x.shape)
            weights = tuple(fitted.tolist())
        rows.append(Row(s, ratio, weights))
        history = [x0, *history][:DEPTH]
    return Table("fitted", tuple(sigmas), tuple(rows)), flow.error(x)


def textbook_weights(past: Sequence[float], t: float, count: int) -> list[float]:
    """The weights of the ``count`` older estimates in ``dpmpp_3m``'s row from past[-1] to t."""
    nodes = [-math.log(s) for s in reversed(past[-3:])]
    if t == 0:
        return [0.0] * count
    a, b = nodes[0], -math.log(t)
    weights = solvers.lagrange_integrals(nodes, a, b, lambda u: math.exp(u - b), lambda u: u)[1:]
    return [*weights, *[0.0] * count][:count]


def best_family(flow: Flow, steps: int, sigma_min: float, until: float) -> list[float]:
    """The Karras schedule, of several rho and lowest levels, with which :func:`fit_rows` does best."""
    sigma_max = flow.log_sigmas[0].exp().item()
    best, best_error = [], math.inf
    for low in (16, 4, 48, 1):
        for rho in (7.0, 1e3, 4.0):  # 1e3 is as good as exponential
            sigmas = schedules.karras(steps, min(low * sigma_min, sigma_max / 10), sigma_max, rho).tolist()
            if (error := fit_rows(flow, sigmas)[1]) < best_error or not best:
                best, best_error = sigmas, error
            if time.monotonic() > until:
                return best
    return best


def search_levels(flow: Flow, sigmas: list[float], until: float) -> list[float]:
    """Move one level at a time, as long as :func:`fit_rows` gains by it, in ever smaller strides."""
    best, best_error = sigmas, fit_rows(flow, sigmas)[1]
    stride = 0.4  # of the way to the next level, in log sigma
    while stride > 0.02:
        improved = False
        for i in range(1, len(sigmas) - 1):
            for direction in (1, -1):
                if time.monotonic() > until:
                    return best
                other = best[i + direction] or best[i] * (best[i] / best[i - 1])  # beyond the last level lies 0
                moved = [*best[:i], best[i] * (other / best[i]) ** stride, *best[i + 1 :]]
                if (error := fit_rows(flow, moved)[1]) < best_error:
                    best, best_error, improved = moved, error, True
                    break
        if not improved:
            stride /= 2
    return best


def polished(table: Table, training: Flow, validation: Flow, until: float) -> Iterator[Table]:
    """Turn all numbers together: Levenberg-Marquardt on the result's distance from the flow's.

    Besides levels and weights that is how much noise a row keeps, so an evaluation may be at a level a little beside
    what is in x. The Jacobian is taken by differences, each a run from the row that changes on. Yields every table
    that is better on ``training``; ends when ``validation`` stops to gain, or ``until``.
    """
    levels = len(table.rows) - 1
    places = [i for i, row in enumerate(table.rows) for _ in row.weights]
    free = [math.log(s) for s in table.sigmas[1:-1]] + [w for row in table.rows for w in row.weights] + [0.0] * levels
    # The first row that a number changes: a level changes the move towards it, the others change their own row.
    first = [*range(levels), *places, *range(levels)]

    def build(numbers: list[float]) -> Table:
        sigmas = [table.sigmas[0], *map(math.exp, numbers[:levels]), 0.0]
        rest, more = iter(numbers[levels:]), [*map(math.exp, numbers[len(numbers) - levels :]), 1.0]
        rows = [
            Row(s, more[i] * t / s, tuple(next(rest) for _ in table.rows[i].weights))
            for i, (s, t) in enumerate(pairwise(sigmas))
        ]
        return Table(table.name, tuple(sigmas), tuple(rows))

    def perform(
        table: Table, evaluations: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The result, and (x, x0) of every evaluation, of which the first ones may be known."""
        evaluations, x = list(evaluations), training.start
        now = Run(tuple(row.sigma for row in table.rows), len(table.rows))
        denoise = start(training.denoise, now)
        for i in range(max(len(evaluations) - 1, 0), len(table.rows)):
            if i == len(evaluations):
                now.index, now.sigma = i, now.sigmas[i]
                evaluations.append((x, denoise(x, x.new_full((len(x),), now.sigma), training.cond)))
            x, x0 = evaluations[i]
            x = move(table.rows[i], x, x0, [older for _, older in evaluations[i - 1 :: -1]] if i else [])
        return x, evaluations

    x, evaluations = perform(table, [])
    error, best, damping, failures = training.error(x), validation.error_of(table), 1e-2, 0
    while failures < 8 and time.monotonic() < until:
        miss = (x - training.end).flatten().double()
        columns = []
        for k, row in enumerate(first):
            nudged = perform(build([*free[:k], free[k] + NUDGE, *free[k + 1 :]]), evaluations[: row + 1])[0]
            columns.append((nudged - x).flatten().double() / NUDGE)
            if time.monotonic() > until:
                return
        jacobian = torch.stack(columns)
        gram, slope = jacobian @ jacobian.T, jacobian @ miss
        scale = torch.diag(gram.diagonal() + 1e-9 * gram.diagonal().max() + 1e-12)
        while failures < 8:
            turned = (_like(gram, free) - torch.linalg.solve(gram + damping * scale, slope)).tolist()
            falling = all(a > b for a, b in pairwise([math.log(table.sigmas[0]), *turned[:levels]]))
            if falling and (trial := perform(build(turned), []))[0] is not None and training.error(trial[0]) < error:
                (x, evaluations), free, damping = trial, turned, damping / 4
                break
            damping, failures = damping * 4, failures + 1
        else:
            return
        gained = training.error(x) < 0.995 * error
        error, validation_error = training.error(x), validation.error_of(build(free))
        failures = 0 if gained and validation_error < best else failures + 2
        best = min(best, validation_error)
        yield build(free)
