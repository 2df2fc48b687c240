"""What the commands share: arguments and options that many of them take, and what they print."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import choices
from ..errors import InputError
from .command import offer


def offer_models(incomplete: str) -> list[str]:
    """Completion of a model: one that ships, or a run in runs/. Where nothing fits, the shell offers files."""
    runs = sorted(str(path.parent) for path in Path("runs").glob("*/model.safetensors"))
    return [name for name in (*choices.MODELS, *runs) if name.startswith(incomplete)]


ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="The model: its file, or the folder of its training run.", autocompletion=offer_models
    ),
]
DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder of images, or a data set: digits, fashion-mnist, emoji, emoji-scenes, emoji-multilingual, "
        "hf:OWNER/NAME.",
        autocompletion=offer(choices.DATASETS),
    ),
]
Size = Annotated[int | None, typer.Option(help="Side of the images in pixels.")]
Aspect = Annotated[
    str | None,
    typer.Option(
        help="Shapes of a folder's images: bucket keeps them, crop cuts squares, pad adds white.",
        autocompletion=offer(choices.ASPECTS),
    ),
]


def next_command(command: str, **options: Any) -> None:
    """Print what to type next, with those options that are not None: the next command must load the same images."""
    flags = [
        f" --{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in options.items() if value is not None
    ]
    print(f"Next: {program_name()} {command}{''.join(flags)}")


def program_name() -> str:
    """What to type for this program: its name, or where it lies, as in .venv/bin, if a shell would not find it."""
    started = Path(sys.argv[0])
    return (
        str(started) if started.name == "fastdiffusion" and shutil.which("fastdiffusion") is None else "fastdiffusion"
    )


def folder(path: Path) -> Path:
    """A folder for results, which need not exist; raises InputError before any work is done."""
    obstacle = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    if obstacle is not None:
        raise InputError(f"--out is a folder, but {str(obstacle)!r} is a file. Try --out out.")
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out cannot be written: {str(place)!r} takes no new files. Choose another place.")
    return path


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", callback=folder)]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to compute: cpu, cuda, mps; by default the best there is.", autocompletion=offer(choices.DEVICES)
    ),
]
Metadata = Annotated[bool, typer.Option(help="Keep the recipe in each file.")]
