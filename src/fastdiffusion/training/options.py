"""The settings that all training runs share. A verb's own options extend them; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .. import choices
from ..options import DEVICE, FRESH, PRECISION, SEED, option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingOptions:
    """What every training run can be given.

    Attributes:
        steps: Of the whole run; the same call goes on where it stopped.
        folder: Where checkpoints, metrics and the finished file go; None keeps all in memory.
        batch_size: Training examples a step.
        lr: Highest learning rate.
        optimizer: A name in ``optimizers.OPTIMIZERS``.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it, else float32.
        minutes: End this session after so long; the same call goes on.
        fresh: Forget what the folder holds.
        seed: Of everything.
        device: Where to train, "cpu", "cuda" or "mps"; by default the best there is. The result is on the CPU.
    """

    steps: int = option(1000, "Steps of the whole training.")
    folder: str | Path | None = option(
        None,
        "Folder of the run, by default in runs/; the same one again goes on.",
        "--folder",
        "-o",
        hidden=["--out"],
        kind=Path,
    )
    batch_size: int = option(64, "Images in each step.")
    lr: float = option(1e-2, "Highest learning rate.")
    optimizer: str = option("muon", "The optimizer.", choices=choices.OPTIMIZERS)
    precision: str = option("float32", PRECISION, choices=choices.PRECISIONS)
    minutes: float | None = option(None, "End this session after so many minutes; the same command goes on.")
    fresh: bool = option(False, FRESH, "--fresh/--resume")
    seed: int = option(0, SEED)
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)

    @property
    def place(self) -> torch.device:
        """Where to train."""
        from ..device import device_of

        return device_of(self.device)

    def in_runs(self, name: str) -> Self:
        """The same, with a folder for the run: ``runs/name`` where none is given."""
        return self if self.folder is not None else replace(self, folder=Path("runs") / name)

    def run(self) -> dict[str, Any]:
        """What ``trainer.train`` is given of them, by name."""
        names = ("steps", "folder", "seed", "minutes", "fresh", "precision")
        return {name: getattr(self, name) for name in names}


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
