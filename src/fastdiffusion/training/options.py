"""The settings that all training runs share. A verb's own options extend them; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from .. import choices
from ..options import DEVICE, FRESH, PRECISION, SEED, Flag, option


@dataclass(frozen=True)
class RunOptions:
    """How any net is trained: what ``trainer.Trainer`` itself is given.

    Attributes:
        folder: Where checkpoints, metrics and results go; the same call goes on there. None keeps all in memory.
        batch_size: Training examples a step, over all processes and microbatches.
        lr: Highest learning rate; None is the optimizer's in ``optimizers.RATES``.
        optimizer: A name in ``optimizers.OPTIMIZERS``; "auto" is muon, where it can be had.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it, else float32.
        track: "tensorboard", "trackio" or "wandb", through Accelerate, beside metrics.jsonl and report.html.
        save_every: Seconds between checkpoints, or more, so that saving takes at most 2 % of the time; 0 is every step.
        verbose: Print what is going on.
        seed: Of everything.
        device: Where to train, "cpu", "cuda" or "mps"; by default the best there is.
    """

    folder: str | Path | None = option(
        None,
        "Folder of the run, by default in runs/; the same one again goes on.",
        "--folder",
        "--out",
        "-o",
        kind=Path,
    )
    batch_size: int = option(64, "Images in each step, over all processes.")
    lr: float | None = option(None, "Highest learning rate; by default the optimizer's.")
    optimizer: str = option(
        "auto", "The optimizer; auto is muon, with --shard adamw.", choices=("auto", *choices.OPTIMIZERS)
    )
    precision: str = option("auto", PRECISION, choices=choices.PRECISIONS)
    track: str | None = option(None, "A tracker, besides report.html.", choices=choices.TRACKERS)
    save_every: float = option(30.0, "Seconds between checkpoints.", python_only=True)
    verbose: bool = option(True, "Print what is going on.", python_only=True)
    seed: int = option(0, SEED)
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)

    def in_runs(self, name: str) -> Self:
        """The same, with a folder for the run: ``runs/name`` where none is given."""
        return self if self.folder is not None else replace(self, folder=Path("runs") / name)


@dataclass(frozen=True)
class Budget:
    """How long a run lasts, all sessions together.

    Attributes:
        minutes: Time of the whole run, all sessions together; it is kept even if the machine becomes slower.
        steps: Steps of the whole run, instead.
        fresh: Forget what the folder holds and start anew.
        procs: Processes on this machine. Of the command line: Python is started by torchrun, or
            ``training.distributed.launch``.
    """

    minutes: float | None = option(
        None, "Minutes to train, of all sessions together; 10 where --steps is left out too."
    )
    steps: int | None = option(None, "Steps to train, instead of minutes.")
    fresh: bool = option(False, FRESH, "--fresh/--resume")
    procs: int = option(1, "Number of processes on this machine.")


def usual(steps: int) -> Any:
    """The option ``steps`` of a verb whose runs take so many where nothing is said."""
    flag = Flag(f"Steps of the whole run, {steps:,} by default; or give minutes.")
    return field(default=None, metadata={"flag": flag, "usual": steps})


@dataclass(frozen=True)
class TrainingOptions(Budget, RunOptions):
    """What every training run can be given. Without ``minutes`` or ``steps`` it takes the steps that are usual."""

    lr: float | None = option(1e-2, "Highest learning rate.")
    optimizer: str = option("muon", "The optimizer.", choices=choices.OPTIMIZERS)
    precision: str = option("float32", PRECISION, choices=choices.PRECISIONS)
    minutes: float | None = option(None, "Minutes to train, of all sessions together, in place of steps.")
    steps: int | None = usual(1000)

    @property
    def usual_steps(self) -> int:
        """How many steps such a run takes where nothing is said."""
        return type(self).__dataclass_fields__["steps"].metadata["usual"]

    def usually(self, steps: int) -> Self:
        """The same, with so many steps where nothing is said."""
        return self if self.minutes is not None or self.steps is not None else replace(self, steps=steps)

    @property
    def usual_examples(self) -> int:
        """How many examples such a run sees where nothing is said."""
        return self.usual_steps * type(self).__dataclass_fields__["batch_size"].default

    @property
    def budget(self) -> dict[str, Any]:
        """What ``Trainer.fit`` is given of them, by name."""
        steps = self.usual_steps if self.steps is None and self.minutes is None else self.steps
        return {"minutes": self.minutes, "steps": steps, "fresh": self.fresh, "procs": self.procs}


@dataclass(frozen=True)
class ImageTrainingOptions(TrainingOptions):
    """Of runs on images, some of which are kept.

    Attributes:
        size: Side of the images in pixels, if the data are named and not given.
        holdout: Part of the images that is never trained on, to measure with.
    """

    size: int | None = option(None, "Side of the images in pixels.")
    holdout: float = option(0.05, "Part of the images that is kept to measure with.")


def default(name: str, value: Any, **shown: Any) -> Any:
    """The shared option ``name`` with another default, and where ``shown`` says so, another help or spelling."""
    known = ImageTrainingOptions.__dataclass_fields__[name].metadata["flag"]
    return field(default=value, metadata={"flag": replace(known, **shown)})
