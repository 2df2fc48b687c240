"""A learning rate, measured: raised until the loss grows (Smith 2017, arXiv:1506.01186)."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

from ..errors import InputError
from .learner import Learner


class Range(NamedTuple):
    """The result of the range test: ``lr`` is the suggestion, ``rates`` and ``losses`` are the curve."""

    lr: float
    rates: list[float]
    losses: list[float]


def find_lr(learner: Learner, low: float = 1e-5, high: float = 0.3, n: int = 80) -> Range:
    """Learning-rate range test (Smith 2017, arXiv:1506.01186): raise the rate each step until the loss runs away.

    The suggestion is a third of the rate with the lowest smoothed loss. The learner is left as it was.
    """
    if n < 2 or not 0 < low < high:
        raise InputError(f"n must be at least 2 and 0 < low < high, got {n}, {low:g} and {high:g}. Leave them out.")
    before = copy.deepcopy(learner.pack())
    rates, losses, smooth = [], [], []
    try:
        for i in range(n):
            rates.append(low * (high / low) ** (i / (n - 1)))
            factor = rates[-1] / learner.rates["model"]
            losses.append(learner.update(learner.draw(learner.state.step), factor)[0]["model"])
            learner.state.step += 1
            if not math.isfinite(losses[-1]):
                break
            smooth.append(losses[-1] if i == 0 else 0.8 * smooth[-1] + 0.2 * losses[-1])
            if smooth[-1] > 2 * min(smooth):
                break
    finally:
        learner.unpack(*before)
    if not smooth:
        raise InputError("The loss was not a number at the first step. Look at the data: fastdiffusion scan.")
    return Range(rates[smooth.index(min(smooth))] / 3, rates, losses)
