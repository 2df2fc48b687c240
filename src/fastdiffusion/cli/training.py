"""Commands that train: a model, a sampler; and the look at the data before."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import (
    Aspect,
    Autoencoder,
    DataName,
    Device,
    Fresh,
    ModelPath,
    Scale,
    SeedOfAll,
    Size,
    app,
    load_data,
    next_command,
)


@app.command()
def train(
    data: DataName,
    net: Annotated[
        str | None,
        typer.Option(
            help="unet-tiny, unet-small (the usual), unet-base, unet-latent, dit-tiny, dit-small, dit-base, restorer."
        ),
    ] = None,
    size: Size = None,
    aspect: Aspect = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time to train, of all sessions together; 10 by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, instead of minutes.")] = None,
    fresh: Fresh = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", "--out", "-o", help="Where the run lives; by default runs/NAME.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all processes.")] = 64,
    grad_accumulation: Annotated[
        int, typer.Option(help="Microbatches that a batch is computed in, to save memory.")
    ] = 1,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; by default the optimizer's.")] = None,
    optimizer: Annotated[str, typer.Option(help="muon, adamw, schedule_free, or auto.")] = "auto",
    augment: Annotated[str, typer.Option(help="Names with commas, e.g. mirror,crop; see: about.")] = "",
    augment_p: Annotated[float, typer.Option(help="Probability of each.")] = 0.12,
    dropout: Annotated[float, typer.Option(help="Of the net.")] = 0.0,
    cond_dropout: Annotated[float, typer.Option(help="Part trained without a condition, for guidance.")] = 0.1,
    parameterization: Annotated[str, typer.Option(help="edm, v, noise, score, x0, flow.")] = "edm",
    sigma_distribution: Annotated[
        str, typer.Option(help="Noise levels to train at: lognormal, uniform, ...")
    ] = "lognormal",
    loss_weighting: Annotated[str, typer.Option(help="Of the loss: edm, min_snr, p2, ...")] = "edm",
    captions: Annotated[bool, typer.Option("--captions", help="Condition on captions: a text-to-image model.")] = False,
    autoencoder: Autoencoder = None,
    restore: Annotated[
        str | None, typer.Option(help='Learn to undo this, e.g. "blur 0.5..3, jpeg 10..60", from DATA\'s photographs.')
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Inputs of the same names as DATA's answers: learn pairs.")
    ] = None,
    init_from: Annotated[Path | None, typer.Option(help="The file of a trained model to go on from.")] = None,
    self_condition: Annotated[bool, typer.Option(help="Also condition the net on its own estimate.")] = False,
    holdout: Annotated[float, typer.Option(help="Part of the data kept for the validation loss.")] = 0.05,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: measured.")] = "auto",
    procs: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    shard: Annotated[bool, typer.Option(help="Divide the weights among the processes.")] = False,
    track: Annotated[str | None, typer.Option(help="tensorboard, trackio or wandb, besides report.html.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train a model on images; run it again to go on.

    The same command goes on where the last one stopped, bit for bit.
    """
    arguments = dict(locals())
    if procs > 1:
        from ..training.distributed import launch, rank_and_world

        if rank_and_world()[1] == 1:
            raise typer.Exit(launch(procs, ["-m", "fastdiffusion", *sys.argv[1:]]))
    from .. import data as datasets
    from ..io.images import safe_name
    from ..training.distributed import rank_and_world
    from ..training.learner import Learner

    crops = inputs is None and restore is not None and Path(data).is_dir()
    if aspect is not None and (crops or inputs is not None):
        raise InputError("--aspect does nothing here: pairs and images to restore are cut. Leave it out.")
    if init_from is not None and net is not None:
        raise InputError("A model that goes on keeps its net. Leave out --net or --init-from.")
    if inputs is not None:
        images: datasets.Dataset = datasets.Pairs(inputs, data, 64 if size is None else size)
    elif crops:
        images = datasets.Crops(data, 64 if size is None else size)
    else:
        images = load_data(data, size, aspect, "bucket" if autoencoder is None else "crop")
    first = rank_and_world()[0] == 0
    if images.report is not None and first:
        print(images.report, file=sys.stderr)
    budget = {key: arguments.pop(key) for key in ("minutes", "steps", "fresh")}
    other = ("data", "size", "aspect", "procs", "folder", "inputs")
    keywords = {key: value for key, value in arguments.items() if key not in other}
    restores = restore is not None or inputs is not None
    # a restorer never has the whole image, at which the usual net looks
    keywords["net"] = net or ("restorer" if restores else "unet-small")
    keywords["augment"] = tuple(name.strip() for name in augment.split(",") if name.strip())
    folder = folder or Path("runs") / safe_name(images.name)
    Learner(images, folder=folder, **keywords).fit(**budget)
    if first and restores:
        next_command("restore photo.jpg", corruption=restore or "pairs", model=folder)
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
    scale: Scale = 1.0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a text-to-image model will be asked for; repeat it, the more the better."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noises.")] = 0,
    device: Device = None,
) -> None:
    """Fit samplers to a model, into its file.

    The same images in fewer evaluations. Afterwards --steps 8 takes the table that was fitted for 8.
    """
    try:
        counts = [int(count) for count in steps.split(",")]
    except ValueError:
        raise InputError(f"steps are whole numbers with commas, got {steps!r}. Example: --steps 5,8,12") from None
    if noises < 1:
        raise InputError(f"noises must be at least 1, got {noises}. Try 64.")
    if not model.exists():
        raise InputError(f"There is no file {str(model)!r} to fit samplers into. Give the path of your model.")
    from ..io.checkpoints import annotate
    from ..models import FILE
    from ..samplers.fitting import fit_sampler
    from ..tasks.generation.sample import loaded

    ready = loaded(model, device)
    cond = ready.cond(range(len(ready.classes))) if ready.classes else None
    if ready.text_encoder is not None and prompt:
        cond = ready.encode_prompt(prompt)
    elif prompt or (ready.text_encoder is not None and scale != 1):
        raise InputError(
            "--prompt is for text-to-image models, whose --scale needs some: add --prompt 'a cat' and others."
        )
    for count in counts:
        table = fit_sampler(
            ready, count, cond=cond, noises=noises, seconds=seconds, polish=polish, scale=scale, seed=seed
        )
        ready = ready.with_table(count, table)
        error, textbook = table.info["error"], table.info["textbook_error"]
        print(f"{count} evaluations: error {error:.4f}, the best textbook table has {textbook:.4f}", flush=True)
        tables = {"tables": ready.spec()["tables"]}  # each as it comes: Ctrl-C keeps what is done
        annotate(model / FILE if model.is_dir() else model, lambda config, tables=tables: {**config, **tables})
