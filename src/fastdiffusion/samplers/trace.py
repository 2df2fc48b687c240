"""From a paper's formula to a table: the method is run once on symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..schedules import check_sigmas
from .tables import Row, Table

Symbol = tuple[str, int]  # ("x", k): the state at evaluation k; ("D", k): its estimate; ("n", k): the k-th noise


class Linear:
    """A sum of symbols with numbers before them: what a sampler's state is, when it is run on symbols."""

    def __init__(self, terms: dict[Symbol, float]):
        self.terms = terms

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms.get(key, 0.0) + value
        return Linear({key: value for key, value in terms.items() if value})

    def __mul__(self, factor: float) -> Linear:
        return Linear({key: factor * value for key, value in self.terms.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __truediv__(self, factor: float) -> Linear:
        return self * (1 / factor)


def trace(
    formula: Callable[..., Any],
    sigmas: Tensor | Sequence[float],
    name: str = "custom",
    rising: bool = False,
    inverse: bool = False,
    **options: Any,
) -> Table:
    """Run a method (``solvers``) on symbols and read off its table.

    Between two evaluations the state is linear in the last state, the estimates so far and fresh noise; the numbers
    before the symbols are the row. Where sigmas rise (allowed by ``rising``), noise is added and the method starts
    afresh. ``inverse`` walks the other way without noise, from the lowest sigma above 0 up to the first.

    Raises InputError where a method is not of that form, or a perfect model would not get its x0 back.
    """
    levels = check_sigmas(sigmas, rising).tolist()
    levels = levels[-2::-1] if inverse else levels
    symbols = _Symbols()
    x = Linear({("x", -1): 1.0})
    segment = 0
    for i in range(1, len(levels) + 1):
        if i == len(levels) or (levels[i] > levels[i - 1] and not inverse):
            x = formula(symbols.D, symbols.noise, x, levels[segment:i], **options)
            segment = i
            if i < len(levels):
                x = x + math.sqrt(levels[i] ** 2 - levels[i - 1] ** 2) * symbols.noise(levels[i - 1], levels[i])
    return Table(name, tuple(levels), symbols.rows(x, name), {"options": options} if options else {})


class _Symbols:
    """Notes what a method asks for, and what it makes of it."""

    def __init__(self) -> None:
        self.evaluations: list[float] = []  # sigma of each
        self.states: list[Linear] = []  # that each evaluation got, in terms of the state that the one before got
        self.drawn: list[tuple[int, float, float]] = []  # the evaluation that each noise follows, and its two levels

    def D(self, x: Linear, sigma: float) -> Linear:
        k = len(self.evaluations)
        self.evaluations.append(sigma)
        self.states.append(Linear(x.terms))
        x.terms = {("x", k): 1.0}  # from here on the state is a symbol of its own, so that terms never pile up
        return Linear({("D", k): 1.0})

    def noise(self, sigma: float, to: float) -> Linear:
        self.drawn.append((len(self.evaluations) - 1, sigma, to))
        return Linear({("n", len(self.drawn) - 1): 1.0})

    def rows(self, x: Linear, name: str) -> tuple[Row, ...]:
        """The table's rows, ``x`` being the last state."""
        rows: list[Row] = []
        moves: list[tuple[float, Linear]] = []  # the state at evaluation k + 1 = ratio * the state at k + rest
        for k, after in enumerate([*self.states[1:], x]):
            terms = dict(after.terms)
            for j in range(k):  # a method may still hold an earlier state: the move after it, backwards, replaces it
                if held := terms.pop(("x", j), 0.0):
                    ratio, rest = moves[j]
                    terms = (Linear(terms) + held / ratio * (Linear({("x", j + 1): 1.0}) - rest)).terms
            ratio = terms.pop(("x", k), 0.0)
            ratio = ratio if abs(ratio) > 1e-13 else 0.0
            moves.append((ratio, Linear(dict(terms))))
            newest = terms.pop(("D", k), 0.0)
            weights = [terms.pop(("D", j), 0.0) for j in range(k - 1, -1, -1)]
            while weights and abs(weights[-1]) < 1e-13:
                weights.pop()
            parts = {self.drawn[i]: b for (_, i), b in terms.items() if abs(b) > 1e-13}
            if abs(ratio + newest + sum(weights) - 1) > 1e-8 or any(i != k for i, _, _ in parts):
                raise InputError(
                    f"Sampler {name!r} is not a table: a perfect model would not get its x0 back at evaluation {k}."
                )
            noise = tuple((b, s, t) for (_, s, t), b in parts.items())
            rows.append(Row(self.evaluations[k], ratio, tuple(weights), noise))
        return tuple(rows)
