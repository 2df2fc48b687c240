"""Commands that teach a trained model more: a subject, a style, a domain; and the one that computes with LoRAs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .. import choices
from ..tasks.personalization.options import FinetuneOptions, LoraOptions, PersonalizeOptions
from .command import command, offer
from .options import Device, ModelPath, next_command, offer_models

OUT = Path("lora.safetensors")
Images = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A folder of images, with captions beside them or without.")
]


@command(
    "personalize",
    PersonalizeOptions,
    panel="Train",
    examples=[
        'fastdiffusion personalize emoji photos-of-my-robot/ --token "<robot>"',
        'fastdiffusion personalize sdxl/ photos-of-my-dog/ --token "<dog>" --class-name dog',
        'fastdiffusion personalize sd15/ prints/ --token "<print>" --subject style --method embedding',
    ],
)
def personalize(chosen: PersonalizeOptions, model: ModelPath, data: Images) -> None:
    """Teach a model what 3 to 20 images show, under a new word.

    The same command goes on where the last one stopped. It ends by itself, and keeps the best step.
    """
    from ..tasks.personalization.personalize import personalize as personalizing

    made = personalizing(str(model), data, **vars(chosen))
    print("\n".join([f"{made.file}: step {made.step}.", *made.notes]))
    target = made.file if chosen.method == "full" else model
    lora = None if chosen.method == "full" else made.file
    next_command(f"sample {shlex.quote(str(target))} {shlex.quote(chosen.token)}", lora=lora)


@command(
    "finetune",
    FinetuneOptions,
    panel="Train",
    examples=[
        "fastdiffusion finetune emoji my-emoji/ --retain 50",
        "fastdiffusion finetune sd15/ prints/ --rank 16 --steps 2000",
    ],
)
def finetune(chosen: FinetuneOptions, model: ModelPath, data: Images) -> None:
    """Teach a model a domain, from images with captions.

    It plots and bounds what the model forgets, ends before that is too much, and keeps the best step.
    """
    from ..tasks.personalization.finetune import finetune as finetuning

    made = finetuning(str(model), data, **vars(chosen))
    print("\n".join([f"{made.file}: step {made.step}.", *made.notes]))
    if chosen.method == "full":
        next_command(f"sample {shlex.quote(str(made.file))}")
    else:
        next_command(f"sample {shlex.quote(str(model))}", lora=made.file)


@command(
    "lora",
    LoraOptions,
    panel="Train",
    examples=[
        "fastdiffusion lora merge dog.safetensors print.safetensors:0.7 --model sd15/ -o both.safetensors",
        "fastdiffusion lora extract tuned.safetensors --model emoji --rank 16",
        "fastdiffusion lora convert dog.safetensors --model sd15/ --keys kohya",
    ],
)
def lora(
    chosen: LoraOptions,
    action: Annotated[
        str,
        typer.Argument(
            metavar="ACTION", help="merge, extract, resize or convert.", autocompletion=offer(choices.LORA_ACTIONS)
        ),
    ],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="LoRAs, FILE or FILE:scale.")],
    model: Annotated[
        str, typer.Option(help="The model that they are for: its file or folder.", autocompletion=offer_models)
    ] = "emoji",
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = OUT,
    device: Device = None,
) -> None:
    """Merge, extract, resize and convert LoRAs.

    extract takes a model that was trained from --model, and writes what lies between.
    """
    from ..tasks.personalization.lora import lora as computing

    made = computing(action, files, model, out, device, **vars(chosen))
    print("\n".join([f"{made.path}: {made.layers} layers.", *made.notes]))
