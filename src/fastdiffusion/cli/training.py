"""Commands that train a model or a sampler, and the one that looks at the data before."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .. import choices
from ..tasks.fitting import FitOptions
from ..training.config import TrainingConfig
from ..training.options import Budget
from .command import command, offer
from .options import Aspect, DataName, ModelPath, Size, folder, next_command


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
        "fastdiffusion fit runs/digits --steps 5,8,12",
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
