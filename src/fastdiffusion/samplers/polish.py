"""The last decimals of a fitted table: all its numbers turned together (Levenberg-Marquardt)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .ledger import Ledger
from .reference import Flow, rms
from .tables import Row, Table, move

DEPTH = 6  # older estimates that a fitted row may use
NUDGE = 1e-3  # of a number, to see what it does
FAILURES = 8  # dampings without a gain until the end
Evaluations = list[tuple[Tensor, Tensor]]  # (x, x0) of every evaluation


class _Numbers:
    """A table as a list of numbers: log levels, weights, and the logarithm of what each row keeps beside its ratio."""

    def __init__(self, table: Table):
        self.table, self.levels = table, len(table.rows) - 1
        weights = [(i, w) for i, row in enumerate(table.rows) for w in row.weights]
        self.start = [math.log(s) for s in table.sigmas[1:-1]] + [w for _, w in weights] + [0.0] * self.levels
        # The first row that a number changes: a level changes the move towards it, the others change their own row.
        self.first = [*range(self.levels), *(i for i, _ in weights), *range(self.levels)]

    def table_of(self, numbers: Sequence[float]) -> Table:
        table, levels = self.table, self.levels
        sigmas = [table.sigmas[0], *map(math.exp, numbers[:levels]), 0.0]
        rest, more = iter(numbers[levels:]), [*map(math.exp, numbers[len(numbers) - levels :]), 1.0]
        rows = [
            Row(s, more[i] * t / s, tuple(next(rest) for _ in table.rows[i].weights))
            for i, (s, t) in enumerate(pairwise(sigmas))
        ]
        return Table(table.name, tuple(sigmas), tuple(rows))

    def falling(self, numbers: Sequence[float]) -> bool:
        return all(a > b for a, b in pairwise([math.log(self.table.sigmas[0]), *numbers[: self.levels]]))


def polish_cost(steps: int, training: Flow, held_out: Flow) -> int:
    """Evaluations that one step of :func:`polished` takes at most."""
    levels = sum(steps - 1 - row for row in range(steps - 1))
    weights = sum((steps - 1 - row) * min(row, DEPTH) for row in range(steps))
    return len(training.start) * (2 * levels + weights + (1 + FAILURES) * steps) + len(held_out.start) * steps


def polished(table: Table, training: Flow, held_out: Flow, ledger: Ledger) -> Iterator[tuple[Table, list[float]]]:
    """Tables that are better and better on ``training``, each with its squared errors on the noises held out.

    Besides levels and weights it turns how much noise a row keeps, so an evaluation may be at a level a little beside
    what is in x. The Jacobian is taken by differences, each a run from the row that changes on. Ends when the noises
    that are held out gain no more, or when the ledger does not afford another step.
    """
    numbers = _Numbers(table)
    free, damping, failures, best = numbers.start, 1e-2, 0, math.inf
    each = polish_cost(len(table.rows), training, held_out)
    while failures < FAILURES and ledger.affords(each):
        step = ledger.measure(lambda free=free, d=damping, f=failures: _step(numbers, training, free, d, f))
        if step is None:
            return
        free, damping, failures = step["free"], step["damping"], step["failures"]
        better = numbers.table_of(free)
        misses = ledger.measure(
            lambda t=better: (held_out.misses(held_out.perform(t)), len(t.rows) * len(held_out.start))
        )
        failures = 0 if step["gained"] and rms(misses) < best else failures + 2
        best = min(best, rms(misses))
        yield better, misses


def _step(
    numbers: _Numbers, training: Flow, free: list[float], damping: float, failures: int
) -> tuple[dict[str, Any] | None, int]:
    """One step, or None where no damping gains; and its cost in evaluations."""
    cost = 0

    def perform(table: Table, evaluations: Evaluations) -> tuple[Tensor, Evaluations]:
        """The result, and every evaluation, of which the first ones may be known."""
        nonlocal cost
        evaluations, x = list(evaluations), training.start
        evaluate = training.rollout([row.sigma for row in table.rows])
        for i in range(max(len(evaluations) - 1, 0), len(table.rows)):
            if i == len(evaluations):
                evaluations.append((x, evaluate(i, x)))
                cost += len(x)
            x, x0 = evaluations[i]
            x = move(table.rows[i], x, x0, [older for _, older in evaluations[i - 1 :: -1]] if i else [])
        return x, evaluations

    x, evaluations = perform(numbers.table_of(free), [])
    error = training.error(x)
    miss = (x - training.end).flatten().double()
    columns = []
    for k, row in enumerate(numbers.first):
        nudged = numbers.table_of([*free[:k], free[k] + NUDGE, *free[k + 1 :]])
        columns.append((perform(nudged, evaluations[: row + 1])[0] - x).flatten().double() / NUDGE)
    jacobian = torch.stack(columns)
    gram, slope = jacobian @ jacobian.T, jacobian @ miss
    scale = torch.diag(gram.diagonal() + 1e-9 * gram.diagonal().max() + 1e-12)
    here = torch.tensor(free, dtype=gram.dtype, device=gram.device)
    while failures < FAILURES:
        turned = (here - torch.linalg.solve(gram + damping * scale, slope)).tolist()
        if numbers.falling(turned):
            reached = training.error(perform(numbers.table_of(turned), [])[0])
            if reached < error:
                gained = reached < 0.995 * error
                return {"free": turned, "damping": damping / 4, "failures": failures, "gained": gained}, cost
        damping, failures = damping * 4, failures + 1
    return None, cost
