"""What training a classifier can be given. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ... import choices
from ...options import option
from ...training.options import ImageTrainingOptions, default, usual

if TYPE_CHECKING:
    from ...models import Model


@dataclass(frozen=True)
class TrainNoiseLevelOptions(ImageTrainingOptions):
    """Of ``train_noise_level``; those of every training run as well.

    Attributes:
        net: A U-Net's name in ``nets.PRESETS``, of which half is taken.
    """

    steps: int | None = usual(500)
    net: str = option("unet-tiny", "A U-Net, of which half is taken.", choices=choices.UNETS)
    batch_size: int = default("batch_size", 128)
    lr: float = default("lr", 1e-3)
    optimizer: str = default("optimizer", "adamw")
    holdout: float = default("holdout", 0.0)


@dataclass(frozen=True)
class TrainClassifierOptions(TrainNoiseLevelOptions):
    """Of ``train_classifier``; those of every training run as well.

    Attributes:
        model: Classify the features in the middle of this model's U-Net and train only the head: cheap, often as good,
            and for the guidance ``middle``.
        latents: Read the noisy latents of this model, to guide it: one that has an autoencoder.
        net: "mlp", for latents of one size, or a U-Net's name in ``nets.PRESETS``, of which half is taken. By default
            mlp for latents, else unet-tiny.
        dropout: Against memorizing.
    """

    steps: int | None = usual(1000)
    model: Model | str | Path | None = option(
        None, "Classify the features of this model instead: for feature_guidance.", kind=Path
    )
    latents: Model | str | Path | None = option(
        None, "Read the noisy latents of this model, to guide it.", kind=str | None
    )
    net: str | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "A U-Net, of which half is taken, or mlp, as by default for latents.", choices=choices.CLASSIFIERS
    )
    dropout: float = option(0.1, "Dropout, against memorizing.")
