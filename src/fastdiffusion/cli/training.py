"""Commands that train a model or a sampler, and the one that looks at the data before."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import choices
from ..errors import InputError
from ..training.config import Budget, TrainingConfig
from .command import command, keep_config, offer
from .options import Aspect, DataName, Device, ModelPath, Size, next_command

if TYPE_CHECKING:
    from ..models import Model
    from ..samplers import Table


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
    procs: Annotated[int, typer.Option(min=1, help="Number of processes on this machine.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", hidden=True, help="The old spelling of --device cpu.")] = False,
) -> None:
    """Train a model on images, or go on with it.

    The same command continues where the last one stopped, bit for bit.
    """
    from ..training.distributed import launch, rank_and_world

    if procs > 1 and rank_and_world()[1] == 1:
        raise typer.Exit(launch(procs, ["-m", "fastdiffusion", *sys.argv[1:]]))
    from ..tasks import training

    device = "cpu" if cpu else config.device
    options = {**vars(config), **vars(budget), "device": device}
    done = training.train(data, size=size, aspect=aspect, labels=labels, inputs=inputs, **options)
    if rank_and_world()[0]:
        return
    keep_config(done.path / "run.toml")
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
    panel="Train",
    examples=[
        "fastdiffusion fit runs/digits --steps 5,8,12",
        'fastdiffusion fit sd15/ --steps 6 --prompt "a cat" --prompt "a street at night"',
    ],
)
def fit(
    model: ModelPath,
    steps: Annotated[str, typer.Option(help="Evaluations to fit for: one number, or several with commas.")] = "5,8,12",
    seconds: Annotated[float, typer.Option(help="Time for each number of evaluations, roughly, in seconds.")] = 60.0,
    polish: Annotated[bool, typer.Option(help="Spend the time left on optimizing all numbers together.")] = True,
    noises: Annotated[int, typer.Option(help="Number of noises to fit to.")] = 64,
    scale: Annotated[
        float | None, typer.Option("--scale", "--guidance-scale", help="Guidance to fit for; 1 is off.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that a text-to-image model will be asked for; repeat it, the more the better."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noises.")] = 0,
    device: Device = None,
) -> None:
    """Fit a faster sampler to a model, into its file.

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
        scale = ready.scale if folder.is_folder(model) else 1.0
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

    if folder.is_folder(path):
        folder.write_table(path, model, steps, scale, (model.image_shape[-2], model.image_shape[-1]), fitted)
        return model
    model = model.with_table(steps, fitted)
    tables = {"tables": notes(model)["tables"]}
    annotate(path / FILE if path.is_dir() else path, lambda config: {**config, **tables})
    return model
