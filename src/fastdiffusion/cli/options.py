"""What the commands share: the application they register with, and the options that many of them take."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from ..data import Dataset

app = typer.Typer(
    name="fastdiffusion",
    help="Train diffusion models, sample from them, measure what comes out.",
    epilog="Any command with --help tells its options. Errors: --debug shows where they come from.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or the folder of its training run.")]
DataName = Annotated[str, typer.Argument(metavar="DATA", help="A folder, or digits, fashion-mnist, emoji, hf:NAME.")]
Size = Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")]


Aspect = Annotated[
    str | None, typer.Option(help="Of a folder's pictures: bucket keeps shapes, crop cuts squares, pad adds white.")
]


def pictures(
    data: str, size: int | None, aspect: str | None, usual: str = "bucket", mode: str | None = None
) -> Dataset:
    """The data of a command; a folder's pictures in the shapes that are asked for, or ``usual`` there."""
    from .. import data as datasets

    folder = Path(data).is_dir() and data not in datasets.DATASETS
    chosen = {"aspect": aspect or (usual if folder else None), "mode": mode if folder else None}
    return datasets.load(data, size, **{key: value for key, value in chosen.items() if value is not None})


def unfinished(folder: Path, steps: int) -> bool:
    """Whether a training was stopped before its last step, which is then said."""
    from ..checkpoints import Folder

    stopped = not Folder(folder).finished(steps)
    if stopped:
        print("Stopped. The same command goes on from here.")
    return stopped


def next_command(command: str, **options: Any) -> None:
    """Print what to type next, with those options that were given: the next command must see the same pictures."""
    given = [f" --{key} {shlex.quote(str(value))}" for key, value in options.items() if value is not None]
    print(f"Next: fastdiffusion {command}{''.join(given)}")


def folder(path: Path) -> Path:
    """A folder for results, which need not exist; raises InputError before any work is done."""
    in_the_way = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    if in_the_way is not None:
        raise InputError(f"--out is a folder, but {str(in_the_way)!r} is a file. Try --out out.")
    return path


Out = Annotated[Path, typer.Option("--out", "-o", help="Where the results go.", callback=folder)]
Steps = Annotated[int, typer.Option(help="Denoiser calls per picture.")]
Seed = Annotated[int, typer.Option(help="Of picture 0; picture i has seed + i.")]
Classes = Annotated[str | None, typer.Option(help="Names or indices, e.g. 3,7; all in turn by default.")]
Scale = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is off.")]
OwnScale = Annotated[float | None, typer.Option(help="Guidance; 1 is off. By default the model's own.")]
Sampler = Annotated[str | None, typer.Option(help="See: fastdiffusion samplers. By default the model's own.")]
Schedule = Annotated[str | None, typer.Option(help="Of the noise levels: exponential, karras, ...")]
BatchSize = Annotated[int, typer.Option(help="Pictures at once.")]
LR = Annotated[float, typer.Option(help="Highest learning rate.")]
Optimizer = Annotated[str, typer.Option(help="muon or adamw.")]
Minutes = Annotated[float | None, typer.Option(help="End this session after so long; the same command goes on.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds and start anew.")]
SeedOfAll = Annotated[int, typer.Option("--seed", help="Of everything.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default the best there is.")]
Guide = Annotated[
    list[str] | None,
    typer.Option(help='Guidance in words, e.g. "cfg scale=3" or "inpaint photo.png mask.png"; repeated, they nest.'),
]
Picture = Annotated[Path | None, typer.Option("--image", help="A picture to start from.")]
Strength = Annotated[float, typer.Option(help="How far to go from --image: 0 keeps it, 1 forgets it.")]
