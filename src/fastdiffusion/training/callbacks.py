"""What happens beside a training loop: small parts, called in order after every step.

None of them changes the training. Those that compute (validation, previews) run so rarely that each takes at most about
2 % of the time, decided by counting and not by the clock, so that a run that was killed and resumed does the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..io.checkpoints import load_tensors, save_tensors
from ..models import FILE, Model, save
from . import report as reports
from .batches import Batches
from .budget import TrainStep
from .callback import Callback, TrainingView, is_due, report
from .console import Console
from .distributed import whole
from .previews import PREVIEWS, STEPS, Preview

HELD_OUT = 256  # images of the validation loss, at most
VALUES = 2**25  # and numbers in them


def defaults(training: TrainingView) -> list[Callback]:
    """The usual callbacks in their order: measure, record, save, show."""
    validation = Validation()
    metrics = Metrics(validation)
    jobs: list[Callback] = [validation, metrics]
    jobs += [Tracker(metrics)] if training.config.track else []
    jobs += [Checkpoint(validation), Preview(), Results()] if training.run is not None else []
    return [*jobs, Console()] if training.config.verbose and training.main else jobs


class Validation(Callback):
    """The loss of the averaged model on held-out images, with noise and noise levels that never change.

    Attributes:
        loss: Of this step; None if it was not measured.
        improved: Whether it is the best so far.
    """

    def start(self, training: TrainingView) -> None:
        """Draw the images and their noise: the first batches of a stream that is never continued."""
        config, setup = training.config, training.setup
        n = min(64, config.batch_size, len(setup.held_out))
        stream = Batches(
            setup.held_out, n, -1, config.sigma_distribution, setup.levels, setup.unit,
            self_condition=config.self_condition, tokens=training.batches.tokens, corruption=setup.corruption,
        ) if n else None  # fmt: skip
        limit = max(VALUES // (n * math.prod(setup.train.shape)), 1) if n else 0  # all stay in memory
        count = min(stream.per_epoch, HELD_OUT // n, limit) if stream else 0
        self.batches = [stream.draw(i).split(1, training.device)[0] for i in range(count)] if stream else []
        self.evaluations = count * n
        past = training.run.metrics() if training.run is not None else []  # of a run that is resumed
        losses = [m["validation_loss"] for m in past if "validation_loss" in m and m["step"] < training.state.step]
        self.best = min(losses, default=math.inf)
        self.loss: float | None = None
        self.improved = False

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Measure, rarely."""
        self.loss, self.improved = None, False
        if self.batches and is_due(step, training.config.batch_size, self.evaluations):
            self.loss = training.validate(self.batches)
            training.record_validation(self.loss)
            self.improved = self.loss <= self.best
            self.best = min(self.loss, self.best)

    def end(self, training: TrainingView) -> None:
        """Choose the length of the average by the same images."""
        if self.batches and not training.stopped:
            lengths = map(float, training.config.ema)
            losses = {length: training.validate(self.batches, length) for length in lengths}
            best = min(losses, key=lambda length: losses[length])
            training.record_validation(losses[best], best)


class Metrics(Callback):
    """metrics.jsonl: one line for the steps since the last, at 10, 20, ... 1000, 1100, ... 10000, 11000, ...

    Attributes:
        record: This step's line, if it has one.
    """

    def __init__(self, validation: Validation):
        self.validation = validation
        self.record: dict[str, Any] | None = None

    def start(self, training: TrainingView) -> None:
        """Begin a mean."""
        self.losses: list[float] = []

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Add to the mean; write it when its turn has come, or when something else is worth a line."""
        record: dict[str, Any] = {"step": step.step}
        if step.bad:
            record["skipped"] = list(step.bad)
        else:
            self.losses.append(step.loss)
        if self.validation.loss is not None:
            record["validation_loss"] = round(self.validation.loss, 6)
        due = step.step % 10 ** max(1, int(math.log10(step.step)) - 1) == 0
        if self.losses and (due or step.step == step.of):
            record |= {
                "loss": round(sum(self.losses) / len(self.losses), 6), "norm": round(step.norm, 5), "lr": step.lr,
                "images_per_second": round(step.images_per_second, 1), "seconds": round(step.seconds, 2),
            }  # fmt: skip
            self.losses = []
        self.record = record if len(record) > 1 else None
        if self.record and training.run is not None and training.main:
            training.run.append(self.record)


class Tracker(Callback):
    """The same lines for TensorBoard, trackio or Weights & Biases, through Accelerate."""

    def __init__(self, metrics: Metrics):
        self.metrics = metrics

    def start(self, training: TrainingView) -> None:
        """Open the tracker."""
        plain = (int, float, str, bool)
        settings = {k: v if isinstance(v, plain) else str(v) for k, v in training.identity.items()}
        training.accelerator.init_trackers("fastdiffusion", settings)

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Pass the line on."""
        if record := self.metrics.record:
            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
            training.accelerator.log(numbers, step=step.step)

    def end(self, training: TrainingView) -> None:
        """Close it."""
        training.accelerator.end_training()


class Checkpoint(Callback):
    """A checkpoint whenever the run says that one is due, and at the end."""

    def __init__(self, validation: Validation):
        self.validation = validation

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Save, if due, and the best so far at once."""
        if training.save_due or self.validation.improved:
            training.save(self.validation.improved)

    def end(self, training: TrainingView) -> None:
        """Save before anything else that could fail."""
        training.save()


class Snapshots(Callback):
    """ema/<step>.safetensors, so that any length can be chosen afterwards with ``ema.posthoc``. Not a default: large.

    Args:
        every: Steps between two.
    """

    def __init__(self, every: int):
        self.every = every

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Store the averages as they are."""
        if training.run is None or (step.step % self.every and step.step != step.of):
            return
        state = {name: whole(t) for name, t in training.average.state_dict().items()}
        if training.main:
            save_tensors(training.run.path / "ema" / f"{step.step:07d}.safetensors", state, training.info)


def complete(folder: Path, step: int) -> bool:
    """Whether a run's folder holds the results of its last step: the model, and the report, which comes last."""
    try:
        config, _ = load_tensors(folder / FILE)
    except CheckpointError:
        return False
    return config.get("info", {}).get("steps") == step and (folder / reports.FILE).is_file()


class Results(Callback):
    """model.safetensors as it stands, rarely and whenever the run ends; report.html beside it when it is done."""

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Write the model so far, so that one can sample from a run in progress. A full disk does not end the run."""
        if step.step != step.of and is_due(step, training.config.batch_size, PREVIEWS * STEPS):
            try:
                self.write(training)
            except CheckpointError as error:
                report(training, f"\nNo model at step {step.step:,}: {error}")

    def end(self, training: TrainingView) -> None:
        """Write both; a run that was stopped has a checkpoint by now, and no time for a report."""
        model = self.write(training)
        if training.main and training.run is not None and not training.stopped:
            reports.write(training.run, training.identity, model)

    def write(self, training: TrainingView) -> Model:
        """The averaged model, into the run's folder."""
        model = training.model
        if training.main and training.run is not None:
            save(model, training.run.path / FILE)
        return model
