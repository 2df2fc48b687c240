"""Whether a model that learned to undo one corruption may be asked to undo another."""

from __future__ import annotations

from typing import Any

from .core import CORRUPTIONS, Chain, Corruption, Number, OneOf, Step


def covers(learned: Corruption, asked: Corruption) -> bool:
    """Whether all that ``asked`` may do can also happen under ``learned``: the same steps, with values in its ranges.

    A step that was learned from "nothing" on ("blur 0..3") may be missing.
    """
    if isinstance(asked, OneOf):
        return all(covers(learned, part) for part in asked.parts)
    if isinstance(learned, OneOf):
        return any(covers(part, asked) for part in learned.parts)
    mine, others = (list(c.parts) if isinstance(c, Chain) else [c] for c in (learned, asked))
    return _matches(mine, others)


def _matches(learned: list[Corruption], asked: list[Corruption]) -> bool:
    if not learned:
        return not asked
    if asked and _within(learned[0], asked[0]) and _matches(learned[1:], asked[1:]):
        return True
    return _idle(learned[0]) and _matches(learned[1:], asked)


def _within(learned: Corruption, asked: Corruption) -> bool:
    if not isinstance(learned, Step) or not isinstance(asked, Step):
        return covers(learned, asked) if isinstance(learned, OneOf) or isinstance(asked, OneOf) else False
    if learned.name != asked.name:
        return False
    pairs = zip(CORRUPTIONS[learned.name].parameters.values(), _values(learned), _values(asked), strict=True)
    return all(_inside(parameter, mine, other) for parameter, mine, other in pairs)


def _inside(parameter: Any, mine: Any, other: Any) -> bool:
    if not isinstance(parameter, Number):
        return mine == other or parameter.alike or not parameter.known  # any text is as good as another
    if isinstance(mine, tuple) and isinstance(other, tuple):
        return mine[0] <= other[0] and other[1] <= mine[1]
    return not isinstance(other, tuple)  # a file: its hole is among all holes, its steps among all qualities


def _values(step: Step) -> list[Any]:
    """All values, numbers as ranges."""
    parameters = list(CORRUPTIONS[step.name].parameters.values())
    padded = (*step.values, *[None] * (len(parameters) - len(step.values)))
    out: list[Any] = []
    for parameter, value in zip(parameters, padded, strict=True):
        if isinstance(parameter, Number):
            value = (parameter.low, parameter.high) if value is None else value
            out.append((value, value) if isinstance(value, float | int) else value)
        else:
            out.append((parameter.known[0] if parameter.known else parameter.default) if value is None else value)
    return out


def _idle(learned: Corruption) -> bool:
    """Whether it may do nothing."""
    if not isinstance(learned, Step):
        return isinstance(learned, OneOf) and any(map(_idle, learned.parts))
    for parameter, value in zip(CORRUPTIONS[learned.name].parameters.values(), _values(learned), strict=True):
        if isinstance(parameter, Number) and parameter.none is not None and isinstance(value, tuple):
            return value[0] <= parameter.none <= value[1]
    return False
