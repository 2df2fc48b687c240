"""The options of ``personalize``, ``finetune`` and ``lora``, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ... import choices
from ...errors import InputError, unknown
from ...options import PRECISION, option
from ...training.options import TrainingOptions, usual

METHODS = choices.PERSONALIZATIONS
SUBJECTS = choices.SUBJECTS


@dataclass(frozen=True)
class AdaptationOptions(TrainingOptions):
    """What ``personalize`` and ``finetune`` share.

    Attributes:
        size: Side of the images in pixels; by default the model's own.
        rank: Of the LoRA.
        alpha: Its strength, counted against the rank; by default the rank.
        targets: The layers that have one: "attention", "linear", "all" (convolutions too), or a regular expression that
            layers' names are searched for; "auto" is all of a model of fastdiffusion, and attention of others.
        dropout: Part of the LoRA's inputs that is left out in training.
        text_encoder: Train the text encoder too.
        gradient_checkpointing: Keep the states between a network's blocks alone, and compute the rest again for the
            gradient: less memory, a third more time. For networks of other programs that offer it.
        holdout: Part of the images that is kept to measure with, at least one.
        floor: Least retention at which a step may be kept, 0 to 1: 1 is the model as it was, near 0 it answers one
            prompt as it did another, and 0 is no floor.
        prompts: A file of prompts, one a line, that the model is not to forget; by default some everyday ones.
        early_stop: End where the held-out loss has not improved for long or the model forgets; the best step is kept
            anyway.
    """

    lr: float | None = option(None, "Highest learning rate; by default the method's.")
    optimizer: str = option("adamw", "The optimizer.", choices=("adamw",), python_only=True)
    precision: str = option("auto", PRECISION, choices=choices.PRECISIONS)
    batch_size: int = option(4, "Images in each step.")
    size: int | None = option(None, "Side of the images in pixels; by default the model's.")
    rank: int = option(8, "Rank of the LoRA.")
    alpha: float | None = option(None, "Strength of the LoRA against its rank; by default the rank.")
    targets: str = option("auto", "Layers with a LoRA: auto, attention, linear, all, or a pattern.")
    dropout: float = option(0.0, "Part of the LoRA's inputs left out in training.")
    text_encoder: bool = option(False, "Train the text encoder too.")
    gradient_checkpointing: bool = option(
        True,
        "Compute states again for the gradient: less memory, a third more time.",
        "--gradient-checkpointing/--no-gradient-checkpointing",
    )
    holdout: float = option(0.2, "Part of the images that is kept to measure with.")
    floor: float = option(0.5, "Least retention of a step that is kept, 0 to 1; 0 is none.")
    prompts: str | Path | None = option(None, "File of prompts that the model is not to forget.", kind=Path | None)
    early_stop: bool = option(True, "End where held-out images say so.", "--early-stop/--no-early-stop")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.batch_size < 1:
            raise InputError(f"rank and batch_size must be at least 1, got {self.rank} and {self.batch_size}.")
        for name in ("dropout", "holdout", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be from 0 to below 1, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class PersonalizeOptions(AdaptationOptions):
    """Options of :func:`fastdiffusion.personalize`, besides those of every training run.

    Attributes:
        token: The new word for what the images show.
        method: "lora" trains the word and a LoRA, "embedding" the word alone (textual inversion), "dreambooth" as lora,
            beside images of the class that keep the class diverse, "full" the whole network so.
        subject: "object", or "style".
        class_name: What it is, in a word that the model has: where the new word starts, and the class of the prior. By
            default the one of some general words that explains the images best. A model of this package that knows one
            image of the class by heart starts from such a word, too.
        vectors: Rows of the new word in each text encoder.
        prior: Images that the model makes once, half of the class and half of everyday prompts, on which it is held to
            answer as it did; by default 32, and none for embedding, which changes no other word, and for a slider.
        masks: A folder with a mask for each image, of the same name: white counts.
        slider: Two prompts, "a red heart|a blue heart", in place of images: the LoRA moves an image of what they share
            (or of ``class_name``) from one to the other, the further the higher its scale; below 0 the other way. More
            pairs after ";".
    """

    token: str = option("<subject>", "The new word for what the images show.")
    method: str = option("lora", "What is trained.", choices=choices.PERSONALIZATIONS)
    subject: str = option("object", "What the images share: an object or a style.", choices=choices.SUBJECTS)
    class_name: str | None = option(None, "What it is, in a word that the model has.")
    vectors: int = option(1, "Rows of the new word in each text encoder.")
    prior: int | None = option(None, "Images of the model's own, half of the class, that hold it.")
    masks: str | Path | None = option(None, "Folder of masks, white where images count.", kind=Path | None)
    slider: str | None = option(
        None, "In place of images: two prompts with | between, and a scale from one to the other."
    )
    steps: int | None = usual(300)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if not self.token.strip():
            raise InputError("The new word is empty. Try --token '<robot>'.")
        if self.subject not in SUBJECTS:
            raise unknown("subject", self.subject, SUBJECTS)
        if not 1 <= self.vectors <= 16:
            raise InputError(f"vectors must be from 1 to 16, got {self.vectors}. Try 2.")
        if self.prior is not None and not 0 <= self.prior <= 1000:
            raise InputError(f"prior must be from 0 to 1000 images, got {self.prior}. Try 32.")


@dataclass(frozen=True)
class FinetuneOptions(AdaptationOptions):
    """Options of :func:`fastdiffusion.finetune`, besides those of every training run.

    Attributes:
        method: "lora", or "full": all weights of the network.
        retain: Prompts whose images, made by the model as it was, are trained on beside: they bound what it forgets.
    """

    method: str = option("lora", "What is trained.", choices=choices.FINETUNINGS)
    retain: int = option(50, "Prompts whose own images are trained on beside, against forgetting.")
    batch_size: int = option(8, "Images in each step.")
    holdout: float = option(0.1, "Part of the images that is kept to measure with.")
    steps: int | None = usual(1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in choices.FINETUNINGS:
            raise unknown("method", self.method, choices.FINETUNINGS)
        if not 0 <= self.retain <= 1000:
            raise InputError(f"retain must be from 0 to 1000 prompts, got {self.retain}. Try 50.")


@dataclass(frozen=True)
class LoraOptions:
    """Options of :func:`fastdiffusion.lora`.

    Attributes:
        rank: Of the result; of "merge" and "convert" by default what they need.
        keys: "diffusers", "kohya" or "comfy".
    """

    rank: int | None = option(None, "Rank of the result.")
    keys: str = option("diffusers", "Whose names its layers have.", choices=choices.LORA_KEYS)

    def __post_init__(self) -> None:
        if self.keys not in choices.LORA_KEYS:
            raise unknown("form of a LoRA's keys", self.keys, choices.LORA_KEYS)
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank must be at least 1, got {self.rank}. Try 4.")
