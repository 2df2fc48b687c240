"""What a fit may spend, and how: a function of stated numbers, never of a clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError, counted

LEAST = 4  # noises to fit to, and as many to choose with
ENOUGH = 8  # noises that are worth more than a finer reference
NUMBERS = 300_000  # of all trajectories' states together: more gains nothing and costs memory
REFERENCES = ((100, 6), (60, 5), (40, 4), (30, 3))  # its evaluations: a number, and at least so many a step


@dataclass(frozen=True)
class Plan:
    """How the evaluations of a fit are spent.

    Attributes:
        steps: Of the tables.
        evaluations: In all, at most: of one image each. Under guidance an evaluation is a guided one.
        reference: Of the fine solve, for each noise.
        noises: To fit to.
        held_out: Further noises, to choose with.
        polish: Whether the last decimals are searched.
    """

    steps: tuple[int, ...]
    evaluations: int
    reference: int
    noises: int
    held_out: int
    polish: bool

    @property
    def each(self) -> int:
        """Evaluations for each table, after the reference that they share."""
        return (self.evaluations - self.reference * (self.noises + self.held_out)) // len(self.steps)

    def __str__(self) -> str:
        solve = self.reference * (self.noises + self.held_out)
        return (
            f"At most {self.evaluations:,} evaluations: {self.reference} for the reference of each of {self.noises} "
            f"noises to fit to and {self.held_out} to choose with ({solve:,}), then {self.each:,} for each of "
            f"{counted(len(self.steps), 'table')}"
        )


def default_evaluations(parameters: int, shape: Sequence[int]) -> int:
    """What a model deserves that has so many parameters and makes samples of this shape, if nothing is said.

    The fit of a small model is cheap, so it gets up to 100,000 evaluations; of a large one 1,500 do. In between it is
    the number that takes as much arithmetic as 20,000 evaluations of a network of 10 million parameters on 256 latents.
    """
    arithmetic = max(parameters, 1) * math.prod(shape[1:])
    return int(min(max(2e4 * 1e7 * 256 / arithmetic, 1_500), 100_000))


def plan(
    steps: Sequence[int],
    evaluations: int,
    shape: Sequence[int],
    noises: int = 64,
    polish: bool = True,
) -> Plan:
    """The plan for tables of ``steps``, that spends at most ``evaluations``.

    Two fifths go into the reference, which all tables share: as fine as leaves eight noises, and then as many noises as
    there may be.

    Raises InputError if nothing can be fitted with so few.
    """
    if not steps or min(steps) < 1 or max(steps) > 1000:
        raise InputError(f"steps must be at least 1 and at most 1000, got {list(steps)}. Try steps=8.")
    if noises < 1:
        raise InputError(f"noises must be at least 1, got {noises}. Try 64.")
    most = min(noises, max(NUMBERS // math.prod(shape), ENOUGH))
    counts, least = tuple(dict.fromkeys(steps)), min(LEAST, noises)
    references = [max(fixed, a_step * max(counts)) for fixed, a_step in REFERENCES]
    affordable = {reference: min(int(0.4 * evaluations / (1.5 * reference)), most) for reference in references}
    fine = (reference for reference, n in affordable.items() if n >= min(ENOUGH, most))
    reference = next(fine, references[-1])
    n = max(affordable[reference], least)
    planned = Plan(counts, evaluations, reference, n, max(n // 2, LEAST), polish)
    needed = (planned.noises * 2 + planned.held_out * 4) * max(counts)
    if planned.each < needed:
        enough = reference * (planned.noises + planned.held_out) + needed * len(counts)
        raise InputError(
            f"{counted(evaluations, 'evaluation')} are too few to fit {counted(len(counts), 'table')} of up to "
            f"{counted(max(counts), 'step')}. Try at least {enough:,}."
        )
    return planned
