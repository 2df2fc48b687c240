"""What a callback is, and what it may look at."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from ..io.run_folder import Folder
from ..models import Model
from .batches import Batches, Objective, TrainingBatch
from .budget import State, TrainStep
from .config import TrainingConfig
from .ema import Ema
from .setup import Setup


class TrainingView(Protocol):
    """A training run as a callback sees it. To look at, but for the four methods, which ask the run for something.

    Attributes:
        config: Its settings.
        setup: What it trains on and starts from.
        batches: The stream of its batches.
        objective: The net in training, with its loss.
        average: The averages of its weights.
        device: Where it trains.
        run: Its folder, if it has one.
        state: Where it is: steps done, time, ...
        first_step: Steps done when this session began.
        rank: Number of this process, of ``world``.
        main: Whether this process is the one that writes.
        save_due: Whether a checkpoint is due after this step.
        stopped: The signal that asked for an end, or 0.
        identity: The settings that are stored with it.
        info: What its model's file says of it.
        model: The averaged model as it stands, a copy of its own.
        accelerator: Accelerate's, which knows trackers; None in one process without a tracker.
    """

    @property
    def config(self) -> TrainingConfig: ...
    @property
    def setup(self) -> Setup: ...
    @property
    def batches(self) -> Batches: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def average(self) -> Ema: ...
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
    def save_due(self) -> bool: ...
    @property
    def stopped(self) -> int: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def info(self) -> Mapping[str, Any]: ...
    @property
    def model(self) -> Model: ...
    @property
    def accelerator(self) -> Any: ...

    def validate(self, microbatches: Sequence[TrainingBatch], length: float | None = None) -> float:
        """Mean loss of the averaged model on these examples."""
        ...

    def record_validation(self, loss: float, length: float | None = None) -> None:
        """Keep a validation loss with the run; with ``length``, the average of that length is the model."""
        ...

    def save(self, best: bool = False) -> None:
        """Write a checkpoint, if the run has a folder."""
        ...

    def stop(self, number: int = ...) -> None:
        """End after this step, as the signal of that number would."""
        ...


class Callback:
    """Does nothing. Subclasses override what they need. Called in all processes; only ``training.main`` writes."""

    def start(self, training: TrainingView) -> None:
        """Before the first step is shown; the run is loaded."""

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """After each step."""

    def end(self, training: TrainingView) -> None:
        """After the last step, or the one at which the run was stopped (``training.stopped``)."""


def report(training: TrainingView, text: str) -> None:
    """Print one message for the person, once, unless the run is to be silent."""
    if training.config.verbose and training.main:
        print(text, file=sys.stderr, flush=True)


def is_due(step: TrainStep, batch_size: int, evaluations: int, share: float = 0.02) -> bool:
    """Whether something that costs ``evaluations`` forward passes of one image is due: at most about 20 times a run.

    To train on an image costs about three forward passes, so a ``share`` of the time is 3 * batch_size * share a step.
    """
    every = max(math.ceil((step.of or 0) / 20), math.ceil(evaluations / (3 * share * batch_size)))
    return step.step % every == 0 or step.step == step.of
