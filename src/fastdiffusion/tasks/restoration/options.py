"""The options of restoring images, without torch: Python's keywords and the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import choices
from ...options import DEVICE, option
from ...training.options import ImageTrainingOptions, default, usual

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")  # files that say themselves what they are, and have no transparency
MODEL = "The model that restores; by default the bundled restorer."


@dataclass(frozen=True)
class RestoreOptions:
    """Options of :func:`fastdiffusion.restore`.

    Attributes:
        model: A restorer, or any generative model of pixels as the prior: a :class:`Model`, its file or its run's
            folder.
        n: Number of results. One is the mean of all that are possible, but for holes that patches fill; several differ,
            and show what is not known.
        method: "supervised", "zero-shot", "cold", "patches", or "auto": supervised if the model was trained for the
            corruption. "patches" fills holes with patches of the image itself; where no model is named, auto takes it
            for a hole of more than 16 pixels across, unless a mean or a sample is asked for.
        answer: "mean" (one evaluation), "sample", or "auto": the mean for one result and samples for several.
        steps: Denoiser evaluations of a sample.
        seed: Of result 0; result i has seed + i.
        posterior: Of zero-shot, a name in ``guidance.posterior.INVERSE``.
        hints: An image (or its file) of the result's size, transparent except where it gives a color; for colorizing.
        palette: Colors to keep to, "#a03020,#203040"; for colorizing.
        self_ensemble: Average over the eight rotations and mirror images of each tile: 8 times slower, more accurate.
        refine: Correct the blur that was named where another one fits the image, by a pixel or some degrees; a note
            says so. Otherwise it is taken as exact.
        tile: Side of the tiles that are restored one at a time, in pixels of the input, at least 64. It bounds the
            memory; wide blurs take larger ones.
        overlap: Pixels that neighboring tiles share, at least.
        engine: "openvino" computes the model on a CPU, faster, and nearly the same (docs/checkpoints.md).
        precision: In what it does: "float32", "bf16" or "int8"; torch has float32 here.
        device: Where to compute. Results come back on the CPU.
    """

    model: Any = option(None, MODEL, kind=Path | None)
    n: int = option(1, "Number of results; several show what is not known.", "-n", "--n")
    method: str = option("auto", "How to restore; auto follows the model.", choices=choices.RESTORATIONS)
    answer: str = option(
        "auto", "What to return: mean, sample, or auto: the mean for one result.", choices=choices.ANSWERS
    )
    steps: int = option(12, "Denoiser evaluations of each sample.")
    seed: int = option(0, "Seed of result 0; result i has seed + i.")
    posterior: str = option("ddnm", "Method of zero-shot restoration.", choices=choices.POSTERIORS)
    hints: Any = option(None, "Image of the same size, transparent but for colors to keep.", kind=Path | None)
    palette: str | None = option(None, "Colors to keep to, e.g. #a03020,#203040.")
    self_ensemble: bool = option(
        False,
        "Take the mean over rotations and mirror images: 8 times slower, better.",
        "--self-ensemble/--no-self-ensemble",
    )
    refine: bool = option(True, "Correct a blur that is slightly off.", "--refine/--no-refine")
    tile: int = option(256, "Side of the tiles that are restored one at a time, for memory only.")
    overlap: int = option(64, "Pixels that neighboring tiles share.")
    engine: str = option("torch", "What computes on a CPU: torch or openvino.", choices=choices.ENGINES)
    precision: str | None = option(None, "In what OpenVINO computes: float32, bf16, int8.")
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)


@dataclass(frozen=True)
class RemoveWatermarkOptions:
    """Options of :func:`fastdiffusion.remove_watermark`.

    Attributes:
        model: The restorer that inpaints where the watermark is opaque.
        device: Where it computes.
    """

    model: Any = option(None, MODEL + " It inpaints where the watermark is opaque.", kind=Path | None)
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)


@dataclass(frozen=True)
class TrainColdOptions(ImageTrainingOptions):
    """Options of :func:`fastdiffusion.train_cold`, besides those of :class:`ImageTrainingOptions`.

    Attributes:
        process: A name in ``processes.PROCESSES``, or a corruption at its full strength: "blur 4", "pixelate 8, gray".
        net: A U-Net's name in ``nets.PRESETS``.
    """

    process: str = option("blur 4", "A process, or a corruption such as 'pixelate 8'.", choices=choices.PROCESSES)
    net: str = option("unet-tiny", "The network, a U-Net.", choices=choices.UNETS)
    steps: int | None = usual(1500)
    lr: float = default("lr", 2e-3)
    optimizer: str = default("optimizer", "adamw")
