"""Commands that undo what happened to an image, and that train the cold diffusion which does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .. import choices
from ..errors import InputError
from ..tasks.restoration.options import RemoveWatermarkOptions, RestoreOptions, TrainColdOptions
from .command import command, offer, say_experimental
from .options import DataName, Metadata
from .several import STREAM, each

FEW = 8  # images, below which a watermark is found in part


@command(
    "restore",
    RestoreOptions,
    panel="Restore",
    examples=[
        "fastdiffusion restore photo.jpg --corruption dejpeg --compare",
        'fastdiffusion restore photo.jpg --corruption "upscale x2" --out large.png',
        'fastdiffusion restore photos/ --corruption "deblur motion 9 30" --out clean/',
    ],
)
def restore(
    chosen: RestoreOptions,
    image: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images of any size; folders; patterns; - for stdin.")
    ],
    corruption: Annotated[
        str | None,
        typer.Option(
            help='What happened, e.g. "gray, blur 1.5, jpeg 30"; or what to do, e.g. "upscale x2".',
            autocompletion=offer((*choices.UNDOES, *choices.CORRUPTIONS)),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File, folder, or - for stdout; by default NAME-restored.png beside the image."
        ),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Write before, after and difference as well.")] = False,
    metadata: Metadata = True,
) -> None:
    """Undo blur, noise, JPEG, missing parts or low resolution.

    Any mixture of downscale, jpeg, blur, motion, defocus, noise, gray, mask, watermark, ... As commands: upscale x2,
    colorize, dejpeg, deblur, denoise, inpaint MASK, dewatermark MASK. Ranges and what is left open are estimated.

    Experimental: colorize. The bundled restorer finds few colors of photographs.
    """
    from ..guidance.posterior import INVERSE
    from ..tasks.restoration import restore as restoration

    if chosen.method in INVERSE:
        raise InputError(
            f"--method says how to restore; {chosen.method} is a posterior of zero-shot. "
            f"Use --posterior {chosen.method}."
        )

    if compare and (out == STREAM or (out is None and STREAM in image)):
        raise InputError("--compare writes files of its own, and - writes the result alone. Give --out a name.")

    def one(source: Path, path: Path) -> str:
        what = corruption or ("jpeg" if source.suffix.lower() in (".jpg", ".jpeg", ".jpe") else None)
        if what is None:
            raise InputError("Say what happened to it, e.g. --corruption 'upscale x2' or 'blur 1.5, noise 0.05'.")
        done = restoration.restore(source, what, **vars(chosen))
        return f"{done}\n{', '.join(map(str, done.save(path, compare=compare, metadata=metadata)))}"

    each(image, out, "restored", one)


@command(
    "remove-watermark",
    RemoveWatermarkOptions,
    panel="Restore",
    examples=[
        "fastdiffusion remove-watermark a.jpg b.jpg c.jpg d.jpg",
        "fastdiffusion remove-watermark marked/*.png --out clean",
    ],
)
def remove_watermark(
    chosen: RemoveWatermarkOptions,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Three images or more with the same watermark; eight are good."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out/clean"),
    metadata: Metadata = True,
) -> None:
    """Find the watermark that images share, and remove it.

    Writes the images, and mark.png: the watermark. Pixels without it stay as they are. Where it did not succeed it says
    so, and exits with 1.

    Experimental: fewer than eight images, where letters of the watermark stay.
    """
    from ..io.metadata import recipe
    from ..tasks.restoration import watermarks

    for path in watermarks.written([image.stem for image in images], out):
        if any(path.exists() and image.exists() and path.samefile(image) for image in images):
            raise InputError(f"{path} is one of the originals, which the result would replace. Try --out out/clean.")
    if len(images) < FEW:
        say_experimental(f"from {len(images)} images letters of a watermark stay. Eight or more are good.")
    done = watermarks.remove_watermark(images, **vars(chosen))
    for path in done.save(out, recipe("remove-watermark", vars(chosen), *images) if metadata else None):
        print(path)
    print(done)
    if not done.succeeded:
        raise typer.Exit(1)


@command(
    "train-cold",
    TrainColdOptions,
    panel="Train",
    examples=[
        'fastdiffusion train-cold digits --process "blur 2"',
        'fastdiffusion train-cold photos/ --size 64 --process "pixelate 8" --minutes 30',
    ],
)
def train_cold(chosen: TrainColdOptions, data: DataName) -> None:
    """Train a diffusion of blur, or of any corruption.

    Cold diffusion, without noise: see the preview for what one evaluation and sixteen evaluations restore.
    """
    from ..tasks.restoration import cold_diffusion

    folder = Path(chosen.folder or "runs/cold")
    cold_diffusion.train_cold(data, **vars(replace(chosen, folder=folder)))
    print(f"{folder / 'cold.safetensors'} and previews/: held-out images, degraded, restored in 1 and 16 evaluations.")
