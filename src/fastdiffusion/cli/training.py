"""Commands that train a model or a sampler, and the one that looks at the data before."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..tasks.fitting import FitOptions
from ..training.config import Budget, TrainingConfig
from .command import command
from .options import Aspect, DataName, ModelPath, Size, app, folder, load_data, next_command

@command("train", TrainingConfig, Budget)
def train(
    config: TrainingConfig,
    budget: Budget,
    data: DataName,
    size: Size = None,
    aspect: Aspect = None,
    labels: Annotated[str | None, typer.Option(help="Of a folder's images: auto, folders, table or none.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Inputs of the same names as DATA's answers: learn pairs.")
    ] = None,
    procs: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", hidden=True, help="The old spelling of --device cpu.")] = False,
) -> None:
    """Train a model on images; run it again to continue.

    The same command continues where the last one stopped, bit for bit.
    """
    from ..training.distributed import launch, rank_and_world

    if procs > 1 and rank_and_world()[1] == 1:
        raise typer.Exit(launch(procs, ["-m", "fastdiffusion", *sys.argv[1:]]))
    from .. import data as datasets
    from ..io.images import safe_name
    from ..training.console import say
    from ..training.learner import Learner

    crops = inputs is None and config.restore is not None and Path(data).is_dir()
    if aspect is not None and (crops or inputs is not None):
        raise InputError("--aspect does nothing here: pairs and images to restore are cropped. Leave it out.")
    if labels is not None and (crops or inputs is not None):
        raise InputError("--labels does nothing here: pairs and images to restore have no classes. Leave it out.")
    if config.init_from is not None and config.net is not None:
        raise InputError("A model that is trained further keeps its net. Leave out --net or --init-from.")
    if inputs is not None:
        images: datasets.Dataset = datasets.Pairs(inputs, data, 64 if size is None else size)
    elif crops:
        images = datasets.Crops(data, 64 if size is None else size)
    else:
        images = load_data(data, size, aspect, "bucket" if config.autoencoder is None else "crop", labels=labels)
    first = rank_and_world()[0] == 0
    if images.report is not None and first:
        say(f"{images.report}\nThe model and its report will name the data {images.name!r}, after the folder.")
    folder = config.folder or Path("runs") / safe_name(images.name)
    config = replace(config, folder=folder, device="cpu" if cpu else config.device)
    Learner(images, **vars(config)).fit(**vars(budget))
    if first and (config.restore is not None or inputs is not None):
        next_command("restore photo.jpg", corruption=config.restore or "pairs", model=folder)
    elif first:
        next_command(f"sample {shlex.quote(str(folder))} -n 16", out="out")


@app.command()
def scan(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")],
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    aspect: Annotated[str, typer.Option(help="bucket keeps shapes, crop cuts squares, pad adds white.")] = "bucket",
    mode: Annotated[str, typer.Option(help="auto, L, RGB or RGBA.")] = "auto",
    labels: Annotated[str, typer.Option(help="auto, folders, table or none.")] = "auto",
) -> None:
    """Look at a folder before training.

    Sizes, classes, captions, copies, and what cannot be read and why.
    """
    from ..data.folders import scan as scan_folder

    print(scan_folder(path, size, aspect=aspect, mode=mode, labels=labels))


@command("fit", FitOptions)
def fit(
    chosen: FitOptions,
    model: ModelPath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the tables and lists of sigmas here.", callback=lambda out: out and folder(out))
    ] = None,
) -> None:
    """Fit samplers to a model, into its file: the same images in fewer steps.

    It says first what it costs, and goes on where it was if it is interrupted and repeated. Afterwards --steps 8 takes
    the table that was fitted for 8, at this scale and size. A checkpoint of another family gets its tables beside it.
    --levels dpmpp_2m prints lists of sigmas for other programs instead.
    """
    from ..tasks.fitting import prepare

    ready = prepare(model, **vars(chosen))
    print(ready.cost(), flush=True)
    result = ready.run()
    print("\n".join(result.notes))
    if chosen.levels is not None:
        print(result.listed(), end="")
    if result.path is not None:
        print(f"Written to {result.path}.")
    if out is not None:
        for path in result.save(out):
            print(path)
