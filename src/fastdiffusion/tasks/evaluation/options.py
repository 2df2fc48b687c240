"""The options of measuring a model, without torch: Python's keywords and the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InputError
from ...options import option
from ...training.options import TrainingOptions, default, usual
from ..generation.options import RunOptions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class EvaluateOptions(RunOptions):
    """Options of :func:`fastdiffusion.evaluate`, besides those of :class:`RunOptions`.

    Attributes:
        n: Images on each side; at most half of the data, so that there is a floor.
        seed: Of sampling; also draws the real images.
        features: A net from images in [-1, 1] to features; by default a classifier that is trained on the data the
            first time (2 minutes for Fashion-MNIST on 2 cores) and kept in the cache.
        rounds: Of the bootstrap.
        note: Also write the numbers into the model's file, for its card; its images stay the same.
    """

    n: int = option(1000, "Number of images on each side.", "-n", "--n")
    scale: float | None = option(1.0, "Strength of the guidance; 1 is off.", "--scale", "--guidance-scale")
    batch_size: int = option(64, "Images computed at once, for speed and memory only.")
    features: nn.Module | None = option(None, "What to measure in.", python_only=True)
    rounds: int = option(100, "Rounds of the bootstrap, for the intervals.")
    note: bool = option(False, "Also write the numbers into the model's file, for its card.", "--note/--no-note")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, got {self.rounds}. Try 100.")


@dataclass(frozen=True)
class TrainFeatureNetOptions(TrainingOptions):
    """Of ``train_feature_net``: those of every training run."""

    batch_size: int = default("batch_size", 128)
    lr: float | None = default("lr", 3e-3)
    optimizer: str = default("optimizer", "adamw")


@dataclass(frozen=True)
class TrainEvaluatorOptions(TrainingOptions):
    """Of ``evaluator.train``: those of every training run."""

    steps: int | None = usual(2000)
    batch_size: int = default("batch_size", 128)
    lr: float | None = default("lr", 3e-3)
    optimizer: str = default("optimizer", "adamw")
