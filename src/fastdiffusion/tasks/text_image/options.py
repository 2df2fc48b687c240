"""What the verbs between text and images can be given. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import choices
from ...options import option
from ...training.options import ImageTrainingOptions, TrainingOptions, default, usual

if TYPE_CHECKING:
    from torch import nn

AUTO = ("auto", *choices.OPTIMIZERS)


@dataclass(frozen=True)
class TrainClipOptions(ImageTrainingOptions):
    """Of ``train_clip``; those of every training run as well. Muon needs a quarter of AdamW's steps here.

    Attributes:
        net: Size of the image encoder, a name in ``clip.SIZES``.
        loss: "infonce", or "cloob" (InfoLOOB with Hopfield retrieval).
        vocabulary: Most tokens of the tokenizer that is trained on the captions.
        holdout: Part of the images that is not trained on, for the R-precision in metrics.jsonl.
    """

    steps: int | None = usual(2000)
    net: str = option("small", "Size of the image encoder.", choices=choices.CLIP_SIZES)
    loss: str = option("infonce", "The contrastive loss: infonce (CLIP) or cloob.", choices=choices.CLIP_LOSSES)
    batch_size: int = default("batch_size", 256, help="Pairs in each step, each contrasted with all others.")
    vocabulary: int = option(4096, "Most tokens learned from the captions.")


@dataclass(frozen=True)
class TrainNoisyOptions(TrainingOptions):
    """Of ``train_noisy``: those of every training run."""

    batch_size: int = default("batch_size", 256)
    lr: float = default("lr", 5e-3)


@dataclass(frozen=True)
class TrainPriorOptions(TrainingOptions):
    """Of ``train_prior``; those of every training run as well.

    Attributes:
        draws: Captions that are drawn and embedded for each image.
        blur: Noise on the captions' vectors, against trusting those of the training set too much.
        dropout: Part of the examples without their caption's vector, for guidance.
    """

    steps: int | None = usual(3000)
    batch_size: int = default("batch_size", 256, help="Vectors in each step.")
    lr: float = default("lr", 5e-3)
    draws: int = option(4, "Captions of each image that are drawn and embedded.")
    blur: float = option(0.05, "Noise on the captions' vectors.")
    dropout: float = option(0.1, "Part trained without a caption, for guidance.")


@dataclass(frozen=True)
class TrainCaptionMeanOptions(ImageTrainingOptions):
    """Of ``train_caption_mean``; those of every training run as well.

    Attributes:
        net: Of the denoiser that follows, as ``Learner`` takes it.
        autoencoder: An autoencoder, or the file of one: learn the mean of its latents.
        init_from: The file of a model with a caption mean to go on from.
        side: Of the mean, in pixels or latents; larger images are shrunk to it.
        optimizer: "auto" is the one that ``Learner`` takes.
        holdout: Part of the data that the denoiser keeps for validation: give the same there.
    """

    steps: int | None = usual(3000)
    net: str | dict[str, Any] = option(
        "unet-latent", "The network of the denoiser that follows.", kind=str, choices=choices.NETS
    )
    autoencoder: str | Path | nn.Module | None = option(
        None, "File of an autoencoder: train in its latents.", "--autoencoder", "--vae", kind=Path
    )
    init_from: str | Path | None = option(None, "File of a model with a caption mean to go on from.", kind=Path)
    side: int = option(16, "Side of the mean, in pixels or latents.")
    batch_size: int = default("batch_size", 256, help="Captions in each step.")
    optimizer: str = default(
        "optimizer", "auto", help="The optimizer; auto is the one that 'train' takes.", choices=AUTO
    )
    precision: str = default("precision", "auto")
    holdout: float = default("holdout", 0.05, help="Part of the images that is kept for 'train': give the same there.")


@dataclass(frozen=True)
class AddLanguageOptions(TrainingOptions):
    """Of ``add_language``; those of every training run as well.

    Attributes:
        vocabulary: Most tokens of the new tokenizer, which is trained on all texts.
        depth: Layers of the new text encoder.
        keep: Part of each batch that is known texts, which stand for themselves: a text may mix both languages.
        optimizer: "auto" is the one that ``Learner`` takes.
        resume_languages: Go on with the second encoder that the model has, its tokenizer and depth; what the pairs no
            longer say fades.
        lora: Of the model: LoRAs, and languages that it has, each "FILE" or "FILE:scale".
    """

    steps: int | None = usual(3000)
    folder: str | Path | None = default(
        "folder",
        None,
        help="Folder of the run, by default in runs/; the same one again goes on.",
        names=("--folder",),
        hidden=(),
    )
    vocabulary: int = option(8192, "Most tokens of the new tokenizer.")
    depth: int = option(3, "Layers of the new text encoder.")
    keep: float = option(0.2, "Part of each batch that is known texts, so that languages can mix.")
    batch_size: int = default("batch_size", 128, help="Texts in each step.")
    optimizer: str = default(
        "optimizer", "auto", help="The optimizer; auto is the one that 'train' takes.", choices=AUTO
    )
    precision: str = default("precision", "auto")
    resume_languages: bool = option(False, "Go on with the languages that the model has; name their pairs too.")
    lora: str | Sequence[str] = option(
        (),
        "A LoRA of the model, or a language that it has, FILE or FILE:scale; may be repeated.",
        kind=list[str] | None,
    )
