"""Commands that undo what happened to an image, and that train the cold diffusion which does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..tasks.restoration.options import RemoveWatermarkOptions, RestoreOptions, TrainColdOptions
from .command import command
from .options import DataName
from .several import each


@command("restore", RestoreOptions)
def restore(
    chosen: RestoreOptions,
    image: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Photographs of any size; folders, patterns, - for stdin.")
    ],
    corruption: Annotated[
        str | None,
        typer.Option(
            help='What happened, e.g. "gray, blur 1.5, jpeg 30"; or what to do, e.g. "upscale x2". A JPEG file '
            "says itself that it is one."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File, folder, or - for stdout; by default NAME-restored.png."),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Write before, after and difference as well.")] = False,
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each file.")] = True,
) -> None:
    """Undo what happened to an image.

    Any mixture of downscale, jpeg, blur, motion, defocus, noise, gray, mask, watermark, ... As commands: upscale x2,
    colorize, dejpeg, deblur, denoise, inpaint MASK, dewatermark MASK. Ranges and what is left open are estimated.
    """
    from ..guidance.posterior import INVERSE
    from ..tasks.restoration import restore as restoration

    if chosen.method in INVERSE:
        raise InputError(
            f"--method says how to restore; {chosen.method} is a posterior of zero-shot. "
            f"Use --posterior {chosen.method}."
        )

    def one(source: Path, path: Path) -> str:
        what = corruption or ("jpeg" if source.suffix.lower() in (".jpg", ".jpeg", ".jpe") else None)
        if what is None:
            raise InputError("Say what happened to it, e.g. --corruption 'upscale x2' or 'blur 1.5, noise 0.05'.")
        done = restoration.restore(source, what, **vars(chosen))
        return f"{done}\n{', '.join(map(str, done.save(path, compare=compare, metadata=metadata)))}"

    each(image, out, "restored", one)


@command("remove-watermark", RemoveWatermarkOptions)
def remove_watermark(
    chosen: RemoveWatermarkOptions,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Three or more with the same watermark.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")] = Path("out/clean"),
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each file.")] = True,
) -> None:
    """Find the watermark that images share, and remove it.

    Writes the images, and mark.png: the watermark. Pixels without it stay as they are. Three images are too few mostly,
    eight are good; what did not succeed is said, and exits with 1.
    """
    from ..io.metadata import recipe
    from ..tasks.restoration import watermarks

    for path in watermarks.written([image.stem for image in images], out):
        if any(path.exists() and image.exists() and path.samefile(image) for image in images):
            raise InputError(f"{path} is one of the originals, which the result would replace. Try --out out/clean.")
    done = watermarks.remove_watermark(images, **vars(chosen))
    for path in done.save(out, recipe("remove-watermark", vars(chosen), *images) if metadata else None):
        print(path)
    print(done)
    if not done.succeeded:
        raise typer.Exit(1)


@command("train-cold", TrainColdOptions)
def train_cold(chosen: TrainColdOptions, data: DataName) -> None:
    """Train a diffusion along blur or any corruption.

    In place of noise: see the preview for what one evaluation and sixteen evaluations restore.
    """
    from ..tasks.restoration import cold_diffusion

    folder = Path(chosen.folder or "runs/cold")
    cold_diffusion.train_cold(data, **vars(replace(chosen, folder=folder)))
    print(
        f"{folder / 'cold.safetensors'} and preview.png: held-out images, degraded, restored in 1 and 16 evaluations."
    )
