"""Where a run is and how long it lasts: a budget in steps or in minutes, and how much of it is used up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

from ..errors import InputError


class TrainStep(NamedTuple):
    """What a training step shows.

    Attributes:
        step: Steps done, this one included.
        of: Steps of the whole run; with a budget in minutes an estimate.
        progress: Part of the budget that is used up, 0 to 1; 1 at the last step.
        loss: Of the first part, the mean over the batch of all processes.
        losses: Of every part by its name; several are trained in turns.
        norm: Length of the gradient before clipping, of the first part.
        lr: Learning rate of this step, of the first part.
        images_per_second: Over the last steps.
        seconds: Training time so far, of all sessions.
        eta: Seconds left.
        bad: Names of the images of a batch that was skipped, because its loss or gradient was not a number.
        validation: The loss on held-out data, at the few steps where it is measured.
    """

    step: int
    of: int
    progress: float
    loss: float
    losses: Mapping[str, float]
    norm: float
    lr: float
    images_per_second: float
    seconds: float
    eta: float
    bad: tuple[str, ...] = ()
    validation: float | None = None

    @property
    def last(self) -> bool:
        """Whether the budget is used up."""
        return self.progress >= 1


def check(steps: int | None, minutes: float | None) -> None:
    """Refuse a budget that is none; raises InputError."""
    amount = minutes if steps is None else steps
    if (steps is None) == (minutes is None) or amount is None or not 0 < amount < math.inf:
        raise InputError(f"Give either steps or minutes, above 0; got steps={steps}, minutes={minutes}.")


@dataclass
class State:
    """Where a run is: what a checkpoint holds besides tensors and settings.

    Everything that the next step depends on follows from this, the weights and the settings. With a budget in steps
    nothing here but ``seconds`` knows a clock; with one in minutes ``progress`` does, and nothing else.

    Attributes:
        step: Steps done.
        seconds: Training time so far, of all sessions.
        start: Step at which the present budget began: 0, unless a finished run was given more.
        start_seconds: The same in time.
        budget: Seconds of the budget; None when it is given in steps.
        total: Steps of the budget; None when it is given in time.
        progress: Part of the budget that is used up; it never falls.
        reserve: Seconds of a budget in time that are kept for what follows the last step.
        precision: "float32" or "bfloat16".
        bad: Skipped batches in a row.
        looked: Progress when the run was last validated and shown, and the step.
        validations: The validation losses so far: (step, loss).
        length: Of the average of the weights that is the model; None until chosen.
        validation: The last validation loss; None until measured.
        ended: Why the run ended before its budget was used up; "" if it did not.
    """

    step: int = 0
    seconds: float = 0.0
    start: int = 0
    start_seconds: float = 0.0
    budget: float | None = None
    total: int | None = None
    progress: float = 0.0
    reserve: float = 0.0
    precision: str | None = "float32"
    bad: int = 0
    looked: tuple[float, int] = (0.0, 0)
    validations: list[tuple[int, float]] = field(default_factory=list)
    length: float | None = None
    validation: float | None = None
    ended: str = ""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """The state in a checkpoint, also of version 0.1, which knew no progress."""
        known = {f.name: stored[f.name] for f in fields(cls) if f.name in stored}
        state = cls(**{**known, "looked": tuple(known.get("looked", (0.0, 0)))})
        if "progress" not in stored and (state.budget or state.total):
            ended = stored["decay_from"] is not None and state.step >= stored["total"]
            state.total = None if state.budget else state.total
            state.progress = 1.0 if ended else state._used()
        return state

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.progress >= 1

    def plan(self, steps: int | None, minutes: float | None) -> None:
        """Take on a budget. The same one goes on; a larger one for a finished run begins a new rise and decay.

        Args:
            steps: Last step of the whole run.
            minutes: Training time of the whole run, instead.
        """
        check(steps, minutes)
        budget = None if minutes is None else 60 * minutes
        if (budget, steps) == (self.budget, self.total):
            return
        if self.finished:
            if (steps or 0) <= self.step and (budget or 0) <= (self.budget or self.seconds):
                return
            self.start, self.start_seconds, self.looked = self.step, self.seconds, (0.0, self.step)
            self.ended = ""
        self.budget, self.total = budget, steps
        self.progress = self._used()

    def _used(self) -> float:
        """Part of the budget that is used up."""
        if self.budget is not None:
            allowed = self.budget - self.start_seconds
            reserve = min(self.reserve, 0.2 * allowed)
            return min((self.seconds - self.start_seconds) / max(allowed - reserve, 1e-9), 1.0)
        assert self.total is not None
        return min((self.step - self.start) / max(self.total - self.start, 1), 1.0) if self.total > self.step else 1.0

    def advance(self, seconds: float, pace: float, reserve: float = 0.0) -> None:
        """One step is done, ``seconds`` after the run began; a budget in time ends where half a step would not fit.

        ``reserve`` are the seconds of it that the results will take.
        """
        self.step, self.seconds, self.reserve = self.step + 1, seconds, reserve
        used = self._used()
        self.progress = max(self.progress, used)
        if self.budget is not None and (1 - used) * (self.budget - self.start_seconds) < 0.5 / pace:
            self.progress = 1.0

    def rate(self, warmup: int, decay: float) -> float:
        """Factor of the learning rate at this step: up in ``warmup`` steps, level, then straight to 0.

        It rises in at most a tenth of the budget and falls over its last part, ``decay``: where the run is in its
        budget decides, so that a machine that becomes slower ends in time and at a rate of 0 all the same. Nothing
        before the decay depends on where it will end (Hägele et al. 2024, arXiv:2405.18392).
        """
        done = self.step - self.start + 1
        share = self.progress if self.total is None else done / max(self.total - self.start, 1)
        rise = max(done / max(warmup, 1), 10 * share)
        return min(rise, 1.0) * min((1 - self.progress) / decay if decay else 1.0, 1.0)

    def left(self, pace: float) -> float:
        """Seconds to the end."""
        if self.total is not None:
            return max(self.total - self.step, 0) / pace
        return 0.0 if self.finished else max((self.budget or 0) - self.seconds, 0.0)

    def of_steps(self, pace: float) -> int:
        """Steps of the whole run, by the present speed where the budget is in time."""
        return self.total if self.total is not None else self.step + round(self.left(pace) * pace)

    def look(self, every: int) -> bool:
        """Whether it is time to validate and to show: at the end, and at most 20 times, ``every`` steps apart."""
        progress, step = self.looked
        due = self.step - step >= every and int(20 * self.progress) > int(20 * progress)
        if due or self.finished:
            self.looked = (self.progress, self.step)
        return due or self.finished
