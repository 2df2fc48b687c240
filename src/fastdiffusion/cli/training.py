"""Commands that train a model or a sampler, and the one that looks at the data before."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..training.config import Budget, TrainingConfig
from .command import command
from .options import Aspect, DataName, Device, ModelPath, Size, app, load_data, next_command

if TYPE_CHECKING:
    from ..models import Model
    from ..samplers import Table


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


@app.command()
def fit(
    model: ModelPath,
    steps: Annotated[
        str, typer.Option(help="For how many evaluations: one number, or several with commas.")
    ] = "5,8,12",
    seconds: Annotated[float, typer.Option(help="Time for each, roughly.")] = 60.0,
    polish: Annotated[bool, typer.Option(help="Spend the time left on optimizing all numbers together.")] = True,
    noises: Annotated[int, typer.Option(help="How many noises to fit to.")] = 64,
    scale: Annotated[float | None, typer.Option(help="Guidance scale to fit for; 1 is off. See below.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a text-to-image model will be asked for; repeat it, the more the better."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noises.")] = 0,
    device: Device = None,
) -> None:
    """Fit samplers to a model, into its file.

    The same images in fewer evaluations. Afterwards --steps 8 takes the table that was fitted for 8. For a folder in
    diffusers' layout the tables are written beside it, hold for one --scale and size, and the scale is by default the
    model's own; for other models it is 1.
    """
    try:
        counts = [int(count) for count in steps.split(",")]
    except ValueError:
        raise InputError(f"steps are whole numbers with commas, got {steps!r}. Example: --steps 5,8,12") from None
    if noises < 1:
        raise InputError(f"noises must be at least 1, got {noises}. Try 64.")
    if not model.exists():
        raise InputError(f"There is no file {str(model)!r} to fit samplers into. Give the path of your model.")
    from ..models import folder
    from ..samplers.fitting import fit_sampler
    from ..tasks.loading import loaded

    ready = loaded(model, device)
    if scale is None:
        scale = ready.scale if folder.is_other(model) else 1.0
    cond = ready.cond(range(len(ready.classes))) if ready.classes else None
    if ready.conditioner is not None and prompt:
        cond = ready.encode_prompt(prompt)
    elif prompt or (ready.conditioner is not None and scale != 1):
        raise InputError(
            "--prompt is for text-to-image models, whose --scale needs some: add --prompt 'a cat' and others."
        )
    for count in counts:
        table = fit_sampler(
            ready, count, cond=cond, noises=noises, seconds=seconds, polish=polish, scale=scale, seed=seed
        )
        ready = _keep_table(model, ready, count, scale, table)
        error, textbook = table.info["error"], table.info["textbook_error"]
        print(f"{count} evaluations: error {error:.4f}, the best textbook table has {textbook:.4f}", flush=True)


def _keep_table(path: Path, model: Model, steps: int, scale: float, fitted: Table) -> Model:
    """Write a fitted table into the model's file or beside its folder, each as it comes; returns the model with it."""
    from ..io.checkpoints import annotate
    from ..models import folder
    from ..models.serialization import FILE, notes

    if folder.is_other(path):
        folder.write_table(path, model, steps, scale, (model.image_shape[-2], model.image_shape[-1]), fitted)
        return model
    model = model.with_table(steps, fitted)
    tables = {"tables": notes(model)["tables"]}
    annotate(path / FILE if path.is_dir() else path, lambda config: {**config, **tables})
    return model
