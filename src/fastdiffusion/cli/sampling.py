"""Commands that make images, measure them, and share the model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import choices
from ..errors import InputError, counted, unknown
from ..tasks.evaluation.options import EvaluateOptions
from ..tasks.generation.options import ExportOptions, SampleOptions, StudyOptions
from .command import command, offer
from .options import DataName, Device, Metadata, ModelPath, Out, folder, next_command, offer_models

if TYPE_CHECKING:
    from ..tasks.generation.samples import SampleStep


OTHERS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl")  # ends of images that are not written


def _file_or_folder(path: Path) -> Path:
    """A place for results; raises InputError before any work is done."""
    if path == Path("-"):
        raise InputError("Images are written to files and not to stdout. Try --out heart.png.")
    if not path.suffix or path.is_dir():  # the default, too: the shell's completion comes here
        return folder(path)
    from ..io.images import ENDS

    if path.suffix.lower() in OTHERS:
        raise InputError(f"Images are written as .png, .webp or .jpg, not {path.suffix!r}. Try --out {path.stem}.png.")
    if path.suffix.lower() in ENDS:
        folder(path.parent)
        return path
    return folder(path)


FileOrFolder = Annotated[
    Path,
    typer.Option("--out", "-o", help="Folder for the results; or a file, for one image.", callback=_file_or_folder),
]


@command(
    "sample",
    SampleOptions,
    panel="Create",
    examples=[
        'fastdiffusion sample "a red heart" -n 4 --seed 7',
        "fastdiffusion sample runs/digits -n 16 --classes 3,7 --scale 2",
        'fastdiffusion sample emoji "a blue heart" --image photo.png --mask hole.png --film steps.gif',
    ],
)
def sample(
    chosen: SampleOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The model: its file, the folder of its run, or emoji, which ships and may be left out.",
            autocompletion=offer_models,
        ),
    ] = None,
    out: FileOrFolder = Path("out"),
    format: Annotated[
        str,
        typer.Option(help="Of the files: png or webp; both keep every pixel.", autocompletion=offer(choices.FORMATS)),
    ] = "png",
    metadata: Metadata = True,
    sidecar: Annotated[bool, typer.Option("--sidecar", help="Also write it beside each image, as JSON.")] = False,
    film: Annotated[
        Path | None, typer.Option(help="Write a film of how they emerge: steps.gif, .webp or .png.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print what each step costs.")] = False,
    checker: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="A Python function: which images to withhold.")
    ] = None,
) -> None:
    """Make images from a prompt, of classes, or from an image.

    One file each, with its recipe inside, and a sheet of all. A prompt alone is drawn by the model that ships.
    """
    from tqdm import tqdm

    from ..models.folder import is_other
    from ..models.registry import names_a_model
    from ..tasks.generation import sample as generation
    from ..tasks.generation.film import Film, checked_film
    from ..tasks.generation.samples import FORMATS, is_file

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if film is not None:
        checked_film(film)
    if film is not None and checker is not None:
        raise InputError("A film shows images before the checker has seen them. Leave --film or --checker out.")
    if not (model or chosen.prompt or chosen.regions):
        raise InputError('Say what to draw, or with which model: fastdiffusion sample "a red heart".')
    model = model or "emoji"
    if chosen.prompt is not None and " " in model and not names_a_model(model):
        raise InputError(f"No model {model!r}. Of several prompts, write each in a line of one text.")
    frames = Film()

    def watch(step: SampleStep) -> None:
        if film is not None:
            frames.add(step)
        if verbose and step.of:
            cost = f"{step.evaluations:g} evaluations for each image, {step.seconds:.2f} s"
            tqdm.write(f"step {step.done} of {step.of}: sigma {step.sigma:.4g}, {cost}", file=sys.stderr)

    try:
        made, paths = generation.sample_to(
            out, model, metadata=metadata, format=format, sidecar=sidecar, watch=watch, checker=checker, **vars(chosen)
        )
    except KeyboardInterrupt:
        print(f"Stopped. What is finished is in {out}; the same command makes the rest.", file=sys.stderr)
        raise
    if (made.recipe["table"] or {"info": {}})["info"].get("fitted") and is_other(model):
        print(f"With the table that was fitted for {counted(chosen.steps, 'step')} at this scale and size.")
    if len(made) == sum(made.withheld):
        print(f"{counted(len(made), 'image')} withheld by the checker: nothing was written.", file=sys.stderr)
        raise typer.Exit(1)
    if is_file(out):
        print(f"{paths[0]}.")
    else:
        sheet = made.save_grid(out / f"grid.{format}", metadata=metadata, labels=True)
        print(f"{counted(len(paths), 'image')} in {out}, from {paths[0].name} on, and {sheet.name}.")
    if film is not None:
        print(f"{frames.save(film)}: how they emerged.")
    if any(made.withheld):
        print(f"{sum(made.withheld)} of {counted(len(made), 'image')} withheld by the checker.", file=sys.stderr)
        raise typer.Exit(1)
    if metadata or sidecar:
        next_command(f"reproduce {shlex.quote(str(paths[0]))}")


@command(
    "reproduce",
    panel="Create",
    examples=[
        "fastdiffusion reproduce out/0000-a-red-heart.png",
        "fastdiffusion reproduce out/0000-3.png --model runs/digits --out again.png",
    ],
)
def reproduce(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="An image that carries its recipe, or has it beside it.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="The model; by default it is looked for beside the image.", autocompletion=offer_models),
    ] = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new file; by default NAME-reproduced beside the image.")
    ] = None,
) -> None:
    """Make an image again from the recipe inside it.

    On the same machine it has the same bytes; a message says if not.
    """
    from ..io.images import checked_name
    from ..tasks.generation import recipe

    copy = checked_name(out or image.with_name(f"{image.stem}-reproduced{image.suffix}"))
    before = image.read_bytes() if image.is_file() else b""  # it may be written over
    recipe.reproduce_file(image, copy, model, device)
    if copy.suffix.lower() != image.suffix.lower():
        print(f"{copy}: the same image in another format.")
        return
    same = copy.read_bytes() == before
    note = "the same bytes" if same else "not the same bytes: another machine, or another version of torch"
    print(f"{copy}: {note}.")


@command(
    "evaluate",
    EvaluateOptions,
    panel="Measure",
    examples=[
        "fastdiffusion evaluate runs/digits digits -n 500 --scale 2",
        "fastdiffusion evaluate runs/photos photos/ --json",
    ],
    document=True,
)
def evaluate(chosen: EvaluateOptions, model: ModelPath, data: DataName, out: Out = Path("out/evaluation")) -> object:
    """Measure how good a model's images are, against its data.

    Distances, precision and recall, coverage, and whether it copies. The first time, a classifier is trained on the
    data to measure with.
    """
    from ..tasks.evaluation.evaluate import evaluate as measure

    report = measure(model, data, **vars(chosen))
    place = report.save(out)
    print(f"{report}\nIn {place}: report.json, samples.png, and neighbors.png, the samples nearest to a real image.")
    return report.to_dict()


@command(
    "study",
    StudyOptions,
    panel="Measure",
    examples=[
        "fastdiffusion study runs/digits --sweep scale=1,2,4 --sweep steps=5,12",
        'fastdiffusion study emoji "a red heart" --sweep sampler=euler,dpmpp_2m -n 2 --json',
    ],
    document=True,
)
def study(
    chosen: StudyOptions,
    model: ModelPath,
    sweep: Annotated[list[str], typer.Option(help="An option and its values, e.g. scale=1,3,7; may be repeated.")],
    out: Out = Path("out/study"),
) -> object:
    """Sample every combination of some options, and see which matters.

    Writes all images, a labelled sheet, and which option explains how much of the differences. A cell equals the run
    of fastdiffusion sample with its settings.
    """
    from ..tasks.evaluation.study import study as sweep_over

    done = sweep_over(model, sweep, **vars(chosen))
    place = done.save(out)
    summary = done.to_dict()
    for name, part in (summary["explained"] or {}).items():
        print(f"{name:14} explains {part:5.1%} of the differences")
    print(f"{place / 'study.png'}: {counted(len(done.cells), 'cell')} of {counted(chosen.n, 'image')}.")
    return summary


@command(
    "export",
    ExportOptions,
    panel="Train",
    examples=[
        "fastdiffusion export runs/photos --out shared --license apache-2.0",
        "fastdiffusion export runs/digits --name Digits -n 16",
        "fastdiffusion export runs/digits --format onnx --out digits-onnx",
    ],
)
def export(
    chosen: ExportOptions,
    model: ModelPath,
    folder: Annotated[Path, typer.Option("--folder", "--out", "-o", help="Folder to write.")] = Path("out/export"),
) -> None:
    """Write a folder to share: the model, its card and a preview.

    The card says what the run measured. The folder can be pushed to a model hub as it is. With --format, it holds the
    networks for another program, compared with torch.
    """
    from ..tasks.export import export as write

    made = write(model, folder, **vars(chosen))
    if chosen.format == "fastdiffusion":
        print(f"{made}: model.safetensors, README.md, config.json, preview.png.")
    else:
        print(f"{made}: {', '.join(sorted(path.name for path in made.iterdir()))}.")
