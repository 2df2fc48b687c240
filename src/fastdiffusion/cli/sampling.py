"""Commands that make images, measure them, and share the model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import unknown
from .options import (
    BatchSize,
    Classes,
    DataName,
    Device,
    Guidance,
    ModelPath,
    Out,
    OwnScale,
    Sampler,
    Scale,
    Schedule,
    Seed,
    Size,
    StartImage,
    Steps,
    Strength,
    app,
    next_command,
)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="A model file, its run's folder, or: emoji.")],
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help='What to draw: "a red heart".')] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="How many images.")] = 16,
    classes: Classes = None,
    steps: Steps = 12,
    seed: Seed = 0,
    scale: OwnScale = None,
    negative_prompt: Annotated[
        str, typer.Option("--negative", "--negative-prompt", help="A prompt to guide away from.")
    ] = "",
    guidance: Guidance = None,
    image: StartImage = None,
    strength: Strength = 0.5,
    sampler: Sampler = None,
    schedule: Schedule = None,
    variation_seed: Annotated[int, typer.Option(help="Move the noise towards this seed's.")] = 0,
    variation_strength: Annotated[float, typer.Option(help="How far, 0 to 1.")] = 0.0,
    size: Size = None,
    batch_size: BatchSize = 16,
    out: Out = Path("out"),
    format: Annotated[str, typer.Option(help="png or webp; both keep every pixel.")] = "png",
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each image.")] = True,
    sidecar: Annotated[bool, typer.Option("--sidecar", help="Also write it beside each image, as JSON.")] = False,
    device: Device = None,
) -> None:
    """Make images that carry their recipe.

    One file each, and a sheet. A prompt alone is drawn by the model that ships: fastdiffusion sample "a red heart".
    """
    options = {key: value for key, value in locals().items() if key not in ("out", "format", "metadata", "sidecar")}
    from ..models import registry
    from ..tasks.generation import sample as generation_sample
    from ..tasks.generation import samples

    if format not in samples.FORMATS:
        raise unknown("format", format, samples.FORMATS)
    if prompt is None and not registry.names_a_model(model):
        options |= {"model": "emoji", "prompt": model}

    made = generation_sample.sample(**options)
    paths = made.save(out, metadata=metadata, format=format, sidecar=sidecar)
    sheet = made.save_grid(out / f"grid.{format}", metadata=metadata, labels=True)
    print(f"{len(paths)} images in {out}, from {paths[0].name} on, and {sheet.name}.")
    if metadata or sidecar:
        next_command(f"reproduce {shlex.quote(str(paths[0]))}")


@app.command()
def reproduce(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="It carries its recipe, or has it beside it.")],
    model: Annotated[Path | None, typer.Option(help="The model; by default looked for beside the image.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default NAME-reproduced beside it.")] = None,
) -> None:
    """Reproduce an image from its recipe.

    On the same machine it has the same bytes; a message tells if not.
    """
    from ..io.images import checked_name
    from ..tasks.generation import recipe

    copy = checked_name(out or image.with_name(f"{image.stem}-reproduced{image.suffix}"))
    before = image.read_bytes() if image.is_file() else b""  # it may be written over
    recipe.reproduce_file(image, copy, model)
    if copy.suffix.lower() != image.suffix.lower():
        print(f"{copy}: the same image in another format.")
        return
    same = copy.read_bytes() == before
    note = "the same bytes" if same else "not the same bytes: another machine, or another version of torch"
    print(f"{copy}: {note}.")


@app.command()
def evaluate(
    model: ModelPath,
    data: DataName,
    n: Annotated[int, typer.Option("-n", "--n", help="Images on each side.")] = 1000,
    steps: Steps = 12,
    seed: Seed = 0,
    scale: Scale = 1.0,
    guidance: Guidance = None,
    sampler: Sampler = None,
    schedule: Schedule = None,
    batch_size: BatchSize = 64,
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 100,
    note: Annotated[bool, typer.Option(help="Write the numbers into the model's file, for its card.")] = True,
    out: Out = Path("out/evaluation"),
    device: Device = None,
) -> None:
    """Measure a model against its data.

    Distances, precision and recall, coverage, and whether it copies. The first time, a classifier is trained on the
    data to measure with.
    """
    options = {key: value for key, value in locals().items() if key != "out"}
    from ..tasks.evaluation import evaluate as evaluation

    report = evaluation.evaluate(**options)
    report.save(out)
    print(f"{report}\nIn {out}: report.json, samples.png, and neighbors.png, the samples nearest to a real image.")


@app.command()
def study(
    model: ModelPath,
    sweep: Annotated[list[str], typer.Option(help="A parameter and its values, e.g. scale=1,3,7; may be repeated.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Images in each cell.")] = 4,
    steps: Steps = 12,
    seed: Seed = 0,
    scale: OwnScale = None,
    classes: Classes = None,
    guidance: Guidance = None,
    image: StartImage = None,
    strength: Strength = 0.5,
    out: Out = Path("out/study"),
) -> None:
    """Sample every combination of some parameters.

    Writes all images, a labelled sheet, and which parameter explains how much of the differences. A cell equals the run
    of fastdiffusion sample with its settings.
    """
    fixed = {key: value for key, value in locals().items() if key not in ("model", "sweep", "n", "out")}
    from ..tasks.evaluation import study as studies

    names = {studies.knob(text)[0] for text in sweep}
    done = studies.study(model, sweep, n, **{key: value for key, value in fixed.items() if key not in names})
    done.save(out)
    for name, part in done.explained().items():
        print(f"{name:14} explains {part:5.1%} of the differences")
    print(f"{out / 'study.png'}: {len(done.cells)} cells of {n} images.")


@app.command()
def export(
    model: ModelPath,
    folder: Annotated[Path, typer.Option("--folder", "--out", "-o", help="Where it goes.")] = Path("out/export"),
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the model, e.g. apache-2.0.")] = None,
    data_license: Annotated[str | None, typer.Option(help="Of the images it was trained on.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Samples in the preview.")] = 32,
    steps: Steps = 12,
    scale: OwnScale = None,
    prompt: Annotated[str | None, typer.Option(help="What the preview shows, for a text-to-image model.")] = None,
    seed: Seed = 0,
) -> None:
    """Write a folder to share: model, card, preview.

    The card says what the run measured. The folder can be pushed to a model hub as it is.
    """
    options = dict(locals())
    from ..tasks.export import export as write

    print(f"{write(**options)}: model.safetensors, README.md, config.json, preview.png.")
