"""What records a run while it goes, and changes nothing of it: metrics.jsonl, trackers, stored averages."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..io.checkpoints import save_tensors
from .budget import TrainStep
from .callback import Callback, TrainingView, report
from .console import Console
from .distributed import whole


def defaults(training: TrainingView) -> list[Callback]:
    """The usual callbacks in their order: record, show."""
    metrics = Metrics()
    jobs: list[Callback] = [metrics, Tracker(metrics)] if training.options.track else [metrics]
    jobs.append(Pace())
    return [*jobs, Console()] if training.options.verbose and training.main else jobs


class Metrics(Callback):
    """metrics.jsonl: one line for the steps since the last, at 10, 20, ... 1000, 1100, ... 10000, 11000, ...

    Attributes:
        record: This step's line, if it has one.
    """

    record: dict[str, Any] | None = None

    def start(self, training: TrainingView) -> None:
        """Begin the means."""
        self.losses: dict[str, list[float]] = {}

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Add to the means; write them when their turn has come, or when something else is worth a line."""
        record: dict[str, Any] = {"step": step.step}
        if step.bad:
            record["skipped"] = list(step.bad)
        else:
            for i, (name, loss) in enumerate(step.losses.items()):
                self.losses.setdefault(name if i else "loss", []).append(loss)
        if step.validation is not None:
            record["validation_loss"] = round(step.validation, 6)
        due = step.step % 10 ** max(1, int(math.log10(step.step)) - 1) == 0
        if self.losses and (due or step.last):
            record |= {name: round(sum(losses) / len(losses), 6) for name, losses in self.losses.items()}
            record |= {"norm": round(step.norm, 5)} if math.isfinite(step.norm) else {}  # NaN is no JSON
            record |= {
                "lr": step.lr, "images_per_second": round(step.images_per_second, 1), "seconds": round(step.seconds, 2),
            }  # fmt: skip
            self.losses = {}
        self.record = record if len(record) > 1 else None
        if self.record and training.run is not None and training.main:
            training.run.append(self.record)


class Tracker(Callback):
    """The same lines for TensorBoard, trackio or Weights & Biases, through Accelerate."""

    def __init__(self, metrics: Metrics):
        self.metrics = metrics

    def start(self, training: TrainingView) -> None:
        """Open the tracker."""
        from accelerate import Accelerator

        options, plain = training.options, (int, float, str, bool)
        self.accelerator = Accelerator(
            cpu=training.device.type == "cpu", log_with=options.track, project_dir=options.folder
        )
        settings = {k: v if isinstance(v, plain) else str(v) for k, v in training.identity.items()}
        self.accelerator.init_trackers("fastdiffusion", settings)

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Pass the line on."""
        if record := self.metrics.record:
            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
            self.accelerator.log(numbers, step=step.step)

    def end(self, training: TrainingView) -> None:
        """Close it."""
        self.accelerator.end_training()


class Pace(Callback):
    """Says when steps suddenly take three times as long as they did: another program, a full memory, a hot machine.

    Args:
        clock: Seconds that have passed, of any start.
    """

    USUAL, LATELY, TIMES = 50, 5, 3.0  # steps that say what is usual; steps in a row that must differ; by how much

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.last, self.slow = clock, math.nan, False
        self.durations: deque[float] = deque(maxlen=self.USUAL)
        self.lately: deque[float] = deque(maxlen=self.LATELY)

    def start(self, training: TrainingView) -> None:
        """Begin to measure."""
        self.last = self.clock()

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Compare the last steps with those before them."""
        now = self.clock()
        duration, self.last = now - self.last, now
        if len(self.lately) == self.LATELY and not self.slow:
            self.durations.append(self.lately[0])
        self.lately.append(duration)
        if len(self.durations) < self.LATELY:
            return
        usual = sorted(self.durations)[len(self.durations) // 2]
        if not self.slow and min(self.lately) > self.TIMES * usual:
            self.slow = True
            report(
                training,
                f"\nSteps take {min(self.lately) / usual:.1f} times as long as before ({usual:.2f} s) since step "
                f"{step.step - self.LATELY + 1:,}. Does another program use this machine, or is its memory full?",
            )
        elif self.slow and max(self.lately) < 1.5 * usual:
            self.slow = False
            report(training, f"\nSteps are as fast as before again, since step {step.step - self.LATELY + 1:,}.")


class Snapshots(Callback):
    """ema/<step>.safetensors, so that any length can be chosen afterwards with ``ema.posthoc``. Not a default: large.

    Args:
        every: Steps between two.
    """

    def __init__(self, every: int):
        self.every = every

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Store the averages as they are."""
        if training.run is None or training.average is None or (step.step % self.every and not step.last):
            return
        state = {name: whole(t) for name, t in training.average.state_dict().items()}
        if training.main:
            save_tensors(training.run.path / "ema" / f"{step.step:07d}.safetensors", state, dict(training.info))
