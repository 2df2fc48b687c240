"""Where a run is and how long it lasts: in steps, or in minutes that become steps by measuring the speed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import InputError

MEASURE = 3.0  # seconds of training after which the speed is believed


class TrainStep(NamedTuple):
    """What a training step shows.

    Attributes:
        step: Steps done, this one included.
        of: Steps of the whole run; None until the speed is known (a budget in minutes).
        loss: Mean over the batch of all processes.
        norm: Length of the gradient before clipping.
        lr: Learning rate of this step.
        images_per_second: Over the last steps.
        seconds: Training time so far, of all sessions.
        eta: Seconds left.
        bad: Names of the images of a batch that was skipped, because its loss or gradient was not a number.
    """

    step: int
    of: int | None
    loss: float
    norm: float
    lr: float
    images_per_second: float
    seconds: float
    eta: float
    bad: tuple[str, ...] = ()


def check(steps: int | None, minutes: float | None) -> None:
    """Refuse a budget that is none; raises InputError."""
    amount = minutes if steps is None else steps
    if (steps is None) == (minutes is None) or amount is None or not 0 < amount < math.inf:
        raise InputError(f"Give either steps or minutes, above 0; got steps={steps}, minutes={minutes}.")


@dataclass
class State:
    """Where a run is, and what it decided by measuring: what a checkpoint holds besides tensors and configuration.

    Attributes:
        step: Steps done.
        seconds: Training time so far, of all sessions.
        start: Step at which the present budget began: 0, unless a finished run was given more.
        start_seconds: The same in time.
        budget: Seconds of the budget; None when it is given in steps.
        total: Last step; with a budget in time an estimate until the decay begins.
        decay_from: Step at which the learning rate begins to fall; None until known.
        precision: "float32" or "bfloat16".
        bad: Skipped batches in a row.
        length: Of the average of the weights that is the model; None until chosen.
        validation: The last validation loss; None until measured.
    """

    step: int = 0
    seconds: float = 0.0
    start: int = 0
    start_seconds: float = 0.0
    budget: float | None = None
    total: int | None = None
    decay_from: int | None = None
    precision: str | None = "float32"
    bad: int = 0
    length: float | None = None
    validation: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.decay_from is not None and self.total is not None and self.step >= self.total

    def plan(self, steps: int | None, minutes: float | None, decay: float) -> None:
        """Take on a budget. The same one goes on; a larger one for a finished run begins a new rise and decay.

        Args:
            steps: Last step of the whole run.
            minutes: Training time of the whole run, instead.
            decay: Last part of the run in which the learning rate falls.
        """
        check(steps, minutes)
        budget = None if minutes is None else 60 * minutes
        if self.finished:
            if (steps or 0) <= self.step and (budget or 0) <= (self.budget or self.seconds):
                return
            self.start, self.start_seconds = self.step, self.seconds
        elif self.total is not None and budget == self.budget and steps in (None, self.total):
            return
        self.budget, self.total, self.decay_from = budget, None, None
        if steps is not None:
            self.total = max(steps, self.step)
            self.decay_from = self.start + round((1 - decay) * (self.total - self.start))

    def settle(self, pace: float, decay: float) -> bool:
        """Turn a budget in time into steps; True when that has just become final.

        After a few seconds there is an estimate. The number is fixed at the moment when the decay must begin, by the
        speed until then, or by the present one, ``pace`` steps per second, if that is lower. On a steady machine the
        same number given as ``steps`` makes the same run; nothing before that moment depends on it.
        """
        if self.budget is None or self.decay_from is not None:
            return False
        done, spent, allowed = (
            self.step - self.start,
            self.seconds - self.start_seconds,
            self.budget - self.start_seconds,
        )
        if self.total is None and spent >= min(MEASURE, allowed / 10):
            self.total = self.step + max(round((self.budget - self.seconds) * pace), 0)
        if spent < (1 - decay) * allowed:
            return False
        self.total = self.step + round(max(self.budget - self.seconds, 0) * min(pace, done / spent))
        self.decay_from = self.step
        return True

    def left(self, pace: float) -> float:
        """Seconds to the end."""
        if self.total is None or (self.budget is not None and self.decay_from is None):
            return max((self.budget or 0) - self.seconds, 0.0)
        return (self.total - self.step) / pace
