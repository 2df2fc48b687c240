"""Commands that train a model or a sampler, teach a trained one more, and look at the data before."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .. import choices
from ..tasks.fitting import FitOptions
from ..tasks.personalization.options import FinetuneOptions, LoraOptions, PersonalizeOptions
from ..training.config import TrainingConfig
from ..training.options import Budget
from .command import command, offer
from .options import Aspect, DataName, Device, ModelPath, Size, folder, next_command, offer_models


@command(
    "train",
    TrainingConfig,
    Budget,
    panel="Train",
    examples=[
        "fastdiffusion train photos/ --size 64 --minutes 60",
        "fastdiffusion train digits --net unet-tiny --minutes 1",
        "fastdiffusion train photos/ --captions --vae runs/autoencoder/codec.safetensors --net unet-latent",
    ],
)
def train(
    config: TrainingConfig,
    budget: Budget,
    data: DataName,
    size: Size = None,
    aspect: Aspect = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes of a folder's images: auto, folders, table or none.", autocompletion=offer(choices.LABELS)
        ),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Folder of inputs, with the names of their answers in DATA: learn pairs.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", hidden=True, help="The old spelling of --device cpu.")] = False,
) -> None:
    """Train a model on images, or go on with it.

    The same command continues where the last one stopped, bit for bit.
    """
    from ..tasks import training

    device = "cpu" if cpu else config.device
    options = {**vars(config), **vars(budget), "device": device}
    done = training.train(data, size=size, aspect=aspect, labels=labels, inputs=inputs, **options)
    if config.restore is not None or inputs is not None:
        next_command("restore photo.jpg", corruption=config.restore or "pairs", model=done.path)
    else:
        next_command(f"sample {shlex.quote(str(done.path))} -n 16", out="out")


@command(
    "scan",
    panel="Measure",
    examples=["fastdiffusion scan photos/", "fastdiffusion scan photos/ --size 128 --json"],
    answers=True,
    document=True,
)
def scan(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")],
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    aspect: Annotated[
        str,
        typer.Option(
            help="Shapes: bucket keeps them, crop cuts squares, pad adds white.", autocompletion=offer(choices.ASPECTS)
        ),
    ] = "bucket",
    mode: Annotated[
        str, typer.Option(help="Channels: auto, L, RGB or RGBA.", autocompletion=offer(choices.CHANNELS))
    ] = "auto",
    labels: Annotated[
        str, typer.Option(help="Classes: auto, folders, table or none.", autocompletion=offer(choices.LABELS))
    ] = "auto",
) -> object:
    """Look at a folder of images before training on it.

    Sizes, classes, captions, copies, and what cannot be read and why.
    """
    from ..data.folders import scan as scan_folder

    found = scan_folder(path, size, aspect=aspect, mode=mode, labels=labels)
    print(found)
    return found.to_dict()


@command(
    "fit",
    FitOptions,
    panel="Train",
    examples=[
        "fastdiffusion fit runs/photos --steps 5,8,12 --reference photos/",
        "fastdiffusion fit sd15/ --steps 6,8 --prompts prompts.txt --scale 5",
        "fastdiffusion fit sd15/ --steps 10 --prompts prompts.txt --levels dpmpp_2m",
    ],
    document=True,
)
def fit(
    chosen: FitOptions,
    model: ModelPath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables and lists of sigmas, besides.")
    ] = None,
) -> object:
    """Fit samplers to a model: the same images in fewer steps.

    It says first what it costs, and goes on where it was if it is interrupted and repeated. Afterwards --steps 8 takes
    the table that was fitted for 8, at this scale and size. A checkpoint of another family gets its tables beside it.
    --reference FOLDER keeps, of fitted and textbook tables, the one whose images are nearest to the folder's.
    --levels dpmpp_2m prints lists of sigmas for other programs instead.
    """
    from ..tasks.fitting import prepare

    ready = prepare(model, **vars(chosen))
    place = None if out is None else folder(out)
    print(ready.cost(), flush=True)
    result = ready.run()
    print("\n".join(result.notes))
    if chosen.levels is not None:
        print(result.listed(), end="")
    if result.path is not None:
        print(f"Written to {result.path}.")
    if place is not None:
        print(*result.save(place), sep="\n")
    return {str(steps): dict(table.info, sigmas=result.sigmas(steps)) for steps, table in result.tables.items()}


# ---- a trained model, taught more ---------------------------------------------------------------------------------

OUT = Path("lora.safetensors")
SomeImages = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="A folder of images, with captions beside them or without.")
]


@command(
    "personalize",
    PersonalizeOptions,
    panel="Train",
    examples=[
        'fastdiffusion personalize emoji photos-of-my-robot/ --token "<robot>"',
        'fastdiffusion personalize sdxl/ photos-of-my-dog/ --token "<dog>" --class-name dog',
        'fastdiffusion personalize emoji --slider "a red heart|a blue heart"',
    ],
)
def personalize(chosen: PersonalizeOptions, model: ModelPath, data: SomeImages = None) -> None:
    """Teach a model what 3 to 20 images show, under a new word.

    The same command goes on where the last one stopped. It ends by itself, and keeps the best step. --slider takes no
    images: it learns a scale between two prompts.
    """
    from ..tasks.personalization.personalize import personalize as personalizing

    made = personalizing(str(model), data, **vars(chosen))
    print("\n".join([f"{made.file}: step {made.step}.", *made.notes]))
    target = made.file if chosen.method == "full" else model
    lora = None if chosen.method == "full" else made.file
    prompt = made.token or (chosen.slider or "").partition("|")[2].partition(";")[0]
    next_command(f"sample {shlex.quote(str(target))} {shlex.quote(prompt)}", lora=lora)


@command(
    "finetune",
    FinetuneOptions,
    panel="Train",
    examples=[
        "fastdiffusion finetune emoji my-emoji/ --retain 50",
        "fastdiffusion finetune sd15/ prints/ --rank 16 --steps 2000",
    ],
)
def finetune(
    chosen: FinetuneOptions,
    model: ModelPath,
    data: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images, each with a caption beside it.")],
) -> None:
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
            metavar="ACTION",
            help="What to do: merge, extract, resize or convert.",
            autocompletion=offer(choices.LORA_ACTIONS),
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
