"""What a callback is."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from .budget import TrainStep

if TYPE_CHECKING:
    from .learner import Learner


class Callback:
    """Does nothing. Subclasses override what they need. Called in all processes; only ``learner.main`` writes."""

    def start(self, learner: Learner) -> None:
        """Before the first step is shown; the run is loaded."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """After each step."""

    def end(self, learner: Learner) -> None:
        """After the last step, or the one at which the run was told to stop (``learner.stopped``)."""


def report(learner: Learner, text: str) -> None:
    """Tell the person, once, unless the run is to be silent."""
    if learner.verbose and learner.main:
        print(text, file=sys.stderr, flush=True)


def is_due(step: TrainStep, batch_size: int, evaluations: int, share: float = 0.02) -> bool:
    """Whether something that costs ``evaluations`` forward passes of one image is due: at most about 20 times a run.

    A picture trained costs about three forward passes, so a ``share`` of the time is 3 * batch_size * share a step.
    """
    every = max(math.ceil((step.of or 0) / 20), math.ceil(evaluations / (3 * share * batch_size)))
    return step.step % every == 0 or step.step == step.of
