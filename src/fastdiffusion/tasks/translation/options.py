"""The options of translating images, without torch: Python's keywords and the command line's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ... import choices
from ...options import DEVICE, option
from ...training.options import ImageTrainingOptions, default, usual


@dataclass(frozen=True)
class TrainTranslationOptions(ImageTrainingOptions):
    """Options of :func:`fastdiffusion.train_translation`, besides those of :class:`ImageTrainingOptions`.

    Attributes:
        method: "regression" (the mean), "gan" (pix2pix), "diffusion" and "bridge" (several results) learn from pairs;
            "cyclegan" learns from two unpaired domains.
        classes: Two classes of the source as the domains, "sneaker,bag".
        net: A U-Net's name in ``nets.PRESETS``.
        lr: Highest learning rate; by default the optimizer's, and half of it for gan and cyclegan.
        optimizer: A name in ``optimizers.OPTIMIZERS``, or "auto": Muon, and AdamW where torch does not have it.
        mirror: Whether mirrored images belong to their domain, too.
    """

    method: str = option("gan", "How to learn it; from unpaired images: cyclegan.", choices=choices.TRANSLATIONS)
    classes: str | Sequence[str] | None = option(
        None, "Two classes of FROM as the two domains, e.g. sneaker,bag.", kind=str | None
    )
    net: str = option("unet-small", "The network, a U-Net.", choices=choices.UNETS)
    steps: int | None = usual(2000)
    batch_size: int = default("batch_size", 32)
    lr: float = default("lr", None, help="Highest learning rate; by default the method's.", kind=float | None)
    optimizer: str = default(
        "optimizer",
        "auto",
        help="The optimizer; auto is muon where torch has it.",
        choices=("auto", *choices.OPTIMIZERS),
    )
    mirror: bool = option(False, "Take mirror images into the domains, too.")


@dataclass(frozen=True)
class TranslateOptions:
    """Options of :func:`fastdiffusion.translate`.

    Attributes:
        steps: Evaluations of the network, where the method takes several.
        n: Number of results; only a diffusion or a bridge has more than one.
        seed: Of result 0; result i has seed + i.
        size: Shorter side to work at, in pixels; by default what was trained. The result has this size.
        from_edges: Take the image's edges as the source, where the net was trained so.
        reverse: Of a net that learned both directions, from target to source.
        prompt: Class or prompt of a diffusion model to turn the image into, by :func:`sdedit` at the model's own size.
        source_prompt: Class or prompt for what the image shows; with it, by :func:`ddib`.
        strength: With ``prompt``, where the model starts, as everywhere (``schedules.strength_sigma``): 0 returns the
            image, 1 starts from noise (``sdedit``) or from all of the inverted noise (``ddib``).
        scale: Classifier-free guidance of the diffusion model.
        device: Where to compute.
    """

    steps: int = option(20, "Evaluations of a diffusion or a bridge.")
    n: int = option(1, "Number of results, of a diffusion or a bridge.", "-n", "--n")
    seed: int = option(0, "Seed of result 0; result i has seed + i.")
    size: int | None = option(None, "Shorter side to work at; by default the trained one.")
    from_edges: bool = option(False, "Take the image's edges as the source.")
    reverse: bool = option(False, "Go from target to source, with a cyclegan.")
    prompt: str | None = option(None, "Class or prompt to turn it into, with a diffusion model.")
    source_prompt: str | None = option(None, "Class or prompt of what it shows: then by its inverted noise.")
    strength: float = option(0.86, "How far to go with --prompt: 0 keeps the image, 1 starts from noise.")
    scale: float = option(2.0, "Strength of the diffusion model's guidance.", "--scale", "--guidance-scale")
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)
