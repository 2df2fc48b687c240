"""What a callback is, and what it may look at."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ..io.run_folder import Folder
from .budget import State, TrainStep
from .ema import Ema
from .options import RunOptions
from .task import Task


class TrainingView(Protocol):
    """A training run as a callback sees it: to look at, and to be asked for an early end.

    Attributes:
        task: What is trained.
        options: How.
        average: The averages of the weights, if there are any.
        device: Where it trains.
        run: Its folder, if it has one.
        state: Where it is: steps done, time, ...
        first_step: Steps done when this session began.
        rank: Number of this process, of ``world``.
        main: Whether this process is the one that writes.
        stopped: The signal that asked for an end, or 0.
        identity: The settings that are stored with it.
        info: What its report says of it.
    """

    @property
    def task(self) -> Task: ...
    @property
    def options(self) -> RunOptions: ...
    @property
    def average(self) -> Ema | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def run(self) -> Folder | None: ...
    @property
    def state(self) -> State: ...
    @property
    def first_step(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def main(self) -> bool: ...
    @property
    def stopped(self) -> int: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def info(self) -> Mapping[str, Any]: ...

    def stop(self, number: int = ...) -> None:
        """End after this step, as the signal of that number would."""
        ...

    def end(self, reason: str) -> None:
        """End after this step as if the budget were used up, and say why."""
        ...


class Callback:
    """Does nothing. Subclasses override what they need. Called in all processes; only ``training.main`` writes.

    A callback sees what happens and changes nothing of it; the one thing that it may ask for is an end
    (``training.stop()``, ``training.end(reason)``).
    """

    def start(self, training: TrainingView) -> None:
        """Before the first step is shown; the run is loaded."""

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """After each step."""

    def end(self, training: TrainingView) -> None:
        """After the last step, or the one at which the run was stopped (``training.stopped``); all is written."""


def report(training: TrainingView, text: str) -> None:
    """Print one message for the person, once, unless the run is to be silent."""
    if training.options.verbose and training.main:
        print(text, file=sys.stderr, flush=True)
