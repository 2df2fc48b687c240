"""The options of style transfer, without torch: Python's keywords and the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import choices
from ...errors import InputError, unknown
from ...options import DEVICE, SEED, option
from ...training.options import TrainingOptions, default, usual

LEAST = 16  # pixels of the shorter side
SIZE = 512  # at which a net looks at its style
STRENGTH = "How much of the style: 0 is the image itself, 1 all of it."


@dataclass(frozen=True)
class StylizeOptions:
    """Options of :func:`fastdiffusion.stylize`.

    Attributes:
        strength: 0 returns the content, 1 has all of the style.
        method: "patches" of the style take the places of the content's (strokes and textures), or the pixels are
            optimized until their "features" are the style's (tones; edges stay).
        size: Longest side to work at; of a larger image, the change is enlarged. Memory is that of the images and one
            tile; time grows with the number of pixels.
        steps: At each size; by default 5 rounds of patches, 80 steps of features and a third of them at the finest
            size, 20 of a model.
        keep: What keeps the content. Patches are looked up for a mix of this much of the content and the rest of what
            is made already, from 0 to 1 (by default 0.7); for features it is the weight of the content, where the
            style's is 1 (0.42).
        net: For features: which ones to compare in; by default the bundled ones.
        model: A diffusion model with attention, to do it inside of (:func:`stylize_inside`) at its own size.
        seed: Of the patches that are looked at and their noise, of the directions that features are projected on, or of
            the style image's noise.
        device: Where to compute; by default the best there is, and for a model that is open already, where it is.

    Raises:
        InputError: A number out of range.
    """

    strength: float = option(0.6, STRENGTH)
    method: str = option(
        "patches", "Strokes by patches of the style, or tones by features.", choices=choices.STYLIZATIONS
    )
    size: int = option(768, "Longest side to work at; beyond it the change is enlarged.")
    steps: int | None = option(None, "Steps at each size, or of the model; by default 5 of patches, 80 of features.")
    keep: float | None = option(None, "How much of the content is kept; by default 0.7 for patches, 0.42 for features.")
    net: Any = option(None, "Features to compare in.", python_only=True)
    model: Any = option(None, "A diffusion model to do it inside of, by shared attention.", kind=Path | None)
    seed: int = option(0, SEED)
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.method not in choices.STYLIZATIONS:
            raise unknown("method", self.method, choices.STYLIZATIONS)
        steps, keep = 1 if self.steps is None else self.steps, 0 if self.keep is None else self.keep
        if self.size < LEAST or steps < 1 or not keep >= 0:
            raise InputError(
                f"size must be at least {LEAST}, steps at least 1 and keep at least 0, got {self.size}, {steps} and "
                f"{keep:g}."
            )
        if self.model is not None:
            return
        if self.method == "patches" and keep > 1:
            raise InputError(f"keep must be from 0 to 1 for patches, got {keep:g}. Try 0.7.")
        if self.method == "patches" and self.net is not None:
            raise InputError("net is for features, and patches are compared as pixels: give method='features' too.")


@dataclass(frozen=True)
class TrainStyleOptions(TrainingOptions):
    """Options of :func:`fastdiffusion.train_style`, besides those of :class:`TrainingOptions`.

    Attributes:
        size: Shorter side in pixels at which the style, and the photographs, are looked at: strokes become as large in
            a photograph as they are in a style of this size.
        crop: Side of the squares of them that it practices on.
        keep: Weight of the content's tones, where the critic's is 1.
    """

    steps: int | None = usual(1200)
    size: int = option(SIZE, "Shorter side at which style and photographs are looked at.")
    crop: int = option(96, "Side of the squares to practice on.")
    batch_size: int = default("batch_size", 3)
    keep: float = option(30.0, "Weight of the content's tones; the strokes' is 1.")
    lr: float = default("lr", 1e-3)
    optimizer: str = default("optimizer", "adamw")

    def __post_init__(self) -> None:
        if min(self.size, self.crop) < LEAST or not self.keep >= 0:
            raise InputError(
                f"size and crop must be at least {LEAST} and keep at least 0, got {self.size}, {self.crop} and "
                f"{self.keep:g}."
            )


def check_strength(strength: float) -> None:
    """Raise InputError unless ``strength`` is from 0 to 1."""
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be from 0 to 1, got {strength:g}. Try 0.6.")
