"""What the commands share: the application they register with, and the options that many of them take."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand
from typer.models import CommandInfo

from ..errors import InputError

if TYPE_CHECKING:
    from ..data import Dataset


app = typer.Typer(
    name="fastdiffusion",
    help="Train diffusion models, sample from them, measure what comes out.",
    epilog="Any command with --help lists its options. Errors: --debug shows where they come from.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# The names of 0.1, which go on working for one release without being listed.
OLD_COMMANDS = {
    "again": "reproduce",
    "vary": "variations",
    "remember": "index",
    "teach": "add-language",
    "unmark": "remove-watermark",
    "codec": "evaluate-autoencoder",
    "train-codes": "train-token-prior",
    "sample-codes": "sample-tokens",
    "train-draft": "train-caption-mean",
    "score": "clip-score",
    "samplers": "list-samplers",
}
OLD_FLAGS = {
    "--accumulate": "--grad-accumulation",
    "--back": "--reverse",
    "--begin": "--init-from",
    "--by": "--corruption",
    "--codebook": "--codebook-size",
    "--codec": "--autoencoder",
    "--density": "--sigma-distribution",
    "--ensemble": "--self-ensemble",
    "--further": "--resume-languages",
    "--given": "--inputs",
    "--guide": "--guidance",
    "--label-dropout": "--cond-dropout",
    "--lines": "--from-edges",
    "--memory": "--index",
    "--no-ensemble": "--no-self-ensemble",
    "--origin": "--source-prompt",
    "--text": "--captions",
    "--to": "--prompt",
    "--vary": "--sweep",
    "--way": "--method",
    "--weight": "--loss-weighting",
}


class Command(TyperCommand):
    """A command that also takes the old spellings of its flags, where they are not the names of others."""

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        known = parser._long_opt
        old_flags = {**OLD_FLAGS, **getattr(self.callback, "old_flags", {})}
        known.update({old: known[new] for old, new in old_flags.items() if new in known and old not in known})
        return parser


def register_old_names() -> None:
    """Let every registered command take its old flags, and answer to its old name."""
    for info in app.registered_commands:
        info.cls = Command
    callbacks = {
        info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback
    }
    for old, new in OLD_COMMANDS.items():
        app.registered_commands.append(CommandInfo(old, cls=Command, callback=callbacks[new], hidden=True))


ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or the folder of its training run.")]
DataName = Annotated[str, typer.Argument(metavar="DATA", help="A folder, or digits, fashion-mnist, emoji, hf:NAME.")]
Size = Annotated[int | None, typer.Option(help="Side of the images in pixels.")]
Aspect = Annotated[
    str | None, typer.Option(help="Of a folder's images: bucket keeps shapes, crop cuts squares, pad adds white.")
]


def load_data(
    data: str,
    size: int | None,
    aspect: str | None,
    usual: str = "bucket",
    mode: str | None = None,
    labels: str | None = None,
) -> Dataset:
    """The data of a command; a folder's images in the shapes that are asked for, or ``usual`` there."""
    from .. import data as datasets

    folder = Path(data).is_dir() and data not in datasets.DATASETS
    chosen = {"aspect": aspect or (usual if folder else None), "mode": mode if folder else None, "labels": labels}
    return datasets.load(data, size, **{key: value for key, value in chosen.items() if value is not None})


def unfinished(folder: Path, steps: int) -> bool:
    """Whether a training was stopped before its last step, which is then printed."""
    from ..io.run_folder import Folder

    stopped = not Folder(folder).finished(steps)
    if stopped:
        print("Stopped. The same command resumes it.")
    return stopped


def next_command(command: str, **options: Any) -> None:
    """Print what to type next, with those options that are not None: the next command must load the same images."""
    flags = [
        f" --{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in options.items() if value is not None
    ]
    print(f"Next: fastdiffusion {command}{''.join(flags)}")


def folder(path: Path) -> Path:
    """A folder for results, which need not exist; raises InputError before any work is done."""
    obstacle = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    if obstacle is not None:
        raise InputError(f"--out is a folder, but {str(obstacle)!r} is a file. Try --out out.")
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out cannot be written: {str(place)!r} takes no new files. Choose another place.")
    return path


Out = Annotated[Path, typer.Option("--out", "-o", help="Where the results go.", callback=folder)]
Seed = Annotated[int, typer.Option(help="Of image 0; image i has seed + i.")]
BatchSize = Annotated[int, typer.Option(help="Images at once.")]
LR = Annotated[float, typer.Option(help="Highest learning rate.")]
Optimizer = Annotated[str, typer.Option(help="muon or adamw.")]
Minutes = Annotated[float | None, typer.Option(help="End this session after so long; the same command goes on.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds and start anew.")]
SeedOfAll = Annotated[int, typer.Option("--seed", help="Of everything.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default the best there is.")]
Autoencoder = Annotated[
    Path | None, typer.Option("--autoencoder", "--vae", help="An autoencoder's file: train in its latents.")
]
