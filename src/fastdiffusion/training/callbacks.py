"""What happens beside a training loop: small parts, called in order after every step.

None of them changes the training. Those that compute (validation, previews) come so seldom that they take at most about
2 % of it each, decided by counting and not by the clock, so that a run that was killed and went on does the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..io.checkpoints import load_tensors, save_tensors
from ..models import FILE, Model, save
from . import report as reports
from .batches import Batches
from .budget import TrainStep
from .distributed import whole

if TYPE_CHECKING:
    from .learner import Learner
from .callback import Callback, is_due, report
from .console import Console
from .previews import PREVIEWS, STEPS, Preview

HELD_OUT = 256  # pictures of the validation loss, at most
VALUES = 2**25  # and numbers in them


def defaults(learner: Learner) -> list[Callback]:
    """The usual callbacks in their order: measure, record, save, show."""
    jobs: list[Callback] = [Validation(), Metrics()]
    jobs += [Tracker()] if learner.track else []
    jobs += [Checkpoint(), Preview(), Results()] if learner.run is not None else []
    return [*jobs, Console()] if learner.verbose and learner.main else jobs


class Validation(Callback):
    """The loss of the averaged model on held-out pictures, with noise and noise levels that never change."""

    def start(self, learner: Learner) -> None:
        """Draw the pictures and their noise: the beginning of a stream that never goes on."""
        n = min(64, learner.batch_size, len(learner.held_out))
        stream = Batches(
            learner.held_out, n, -1, learner.sigma_distribution, learner.levels, learner.unit,
            self_condition=learner.self_condition, tokens=learner.batches.tokens,
            corruption=learner.batches.corruption,
        ) if n else None  # fmt: skip
        limit = max(VALUES // (n * math.prod(learner.train.shape)), 1) if n else 0  # all stay in memory
        count = min(stream.per_epoch, HELD_OUT // n, limit) if stream else 0
        self.batches = [stream.draw(i).split(1, learner.device)[0] for i in range(count)] if stream else []
        self.evaluations = count * n
        past = learner.run.metrics() if learner.run is not None else []  # of a run that goes on
        losses = [m["validation_loss"] for m in past if "validation_loss" in m and m["step"] < learner.state.step]
        self.best = min(losses, default=math.inf)

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Measure, seldom, and mark the best so far for the next checkpoint."""
        learner.validation = None
        if self.batches and is_due(step, learner.batch_size, self.evaluations):
            learner.validation = learner.state.validation = learner.validate(self.batches)
            learner.best = learner.validation <= self.best
            self.best = min(learner.validation, self.best)

    def end(self, learner: Learner) -> None:
        """Choose the length of the average by the same pictures."""
        if self.batches and not learner.stopped:
            losses = {length: learner.validate(self.batches, length) for length in map(float, learner.ema)}
            learner.state.length = min(losses, key=lambda length: losses[length])
            learner.state.validation = losses[learner.state.length]


class Metrics(Callback):
    """metrics.jsonl: one line for the steps since the last, at 10, 20, ... 1000, 1100, ... 10000, 11000, ..."""

    def start(self, learner: Learner) -> None:
        """Begin a mean."""
        self.losses: list[float] = []

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Add to the mean; write it when its turn has come, or when something else is worth a line."""
        record: dict[str, Any] = {"step": step.step}
        if step.bad:
            record["skipped"] = list(step.bad)
        else:
            self.losses.append(step.loss)
        if learner.validation is not None:
            record["validation_loss"] = round(learner.validation, 6)
        due = step.step % 10 ** max(1, int(math.log10(step.step)) - 1) == 0
        if self.losses and (due or step.step == step.of):
            record |= {
                "loss": round(sum(self.losses) / len(self.losses), 6), "norm": round(step.norm, 5), "lr": step.lr,
                "images_per_second": round(step.images_per_second, 1), "seconds": round(step.seconds, 2),
            }  # fmt: skip
            self.losses = []
        learner.record = record if len(record) > 1 else None
        if learner.record and learner.run is not None and learner.main:
            learner.run.append(learner.record)


class Tracker(Callback):
    """The same lines for TensorBoard, trackio or Weights & Biases, through Accelerate."""

    def start(self, learner: Learner) -> None:
        """Open the tracker."""
        settings = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in learner.config.items()}
        learner.accelerator.init_trackers("fastdiffusion", settings)

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Pass the line on."""
        if learner.record:
            numbers = {k: v for k, v in learner.record.items() if isinstance(v, (int, float)) and k != "step"}
            learner.accelerator.log(numbers, step=step.step)

    def end(self, learner: Learner) -> None:
        """Close it."""
        learner.accelerator.end_training()


class Checkpoint(Callback):
    """A checkpoint whenever the learner says that one is due, and at the end."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Save, if due, and the best so far at once."""
        if learner.save_due or learner.best:
            learner.save()

    def end(self, learner: Learner) -> None:
        """Save before anything else that could fail."""
        learner.save()


class Snapshots(Callback):
    """ema/<step>.safetensors, so that any length can be chosen afterwards with ``ema.posthoc``. Not a default: large.

    Args:
        every: Steps between two.
    """

    def __init__(self, every: int):
        self.every = every

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Store the averages as they are."""
        if learner.run is None or (step.step % self.every and step.step != step.of):
            return
        state = {name: whole(t) for name, t in learner.average.state_dict().items()}
        if learner.main:
            save_tensors(learner.run.path / "ema" / f"{step.step:07d}.safetensors", state, learner.info)


def complete(folder: Path, step: int) -> bool:
    """Whether a run's folder holds the results of its last step: the model, and the report, which comes last."""
    try:
        config, _ = load_tensors(folder / FILE)
    except CheckpointError:
        return False
    return config.get("info", {}).get("steps") == step and (folder / reports.FILE).is_file()


class Results(Callback):
    """model.safetensors as it stands, seldom and whenever the run ends; report.html beside it when it is done."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Write the model so far, so that one can sample from a run that goes on. A full disk is not worth a run."""
        if step.step != step.of and is_due(step, learner.batch_size, PREVIEWS * STEPS):
            try:
                self.write(learner)
            except CheckpointError as error:
                report(learner, f"\nNo model at step {step.step:,}: {error}")

    def end(self, learner: Learner) -> None:
        """Write both; a run that was told to stop has a checkpoint by now, and no time for a report."""
        model = self.write(learner)
        if learner.main and learner.run is not None and not learner.stopped:
            reports.write(learner.run, learner.config, model)

    def write(self, learner: Learner) -> Model:
        """The averaged model, into the run's folder."""
        model = learner.model
        if learner.main and learner.run is not None:
            save(model, learner.run.path / FILE)
        return model
