"""Commands that undo what happened to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import Device, app


@app.command()
def restore(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A photograph of any size.")],
    corruption: Annotated[
        str,
        typer.Option(help='What happened, e.g. "gray, blur 1.5, jpeg 30"; or what to do, e.g. "upscale x2".'),
    ],
    model: Annotated[Path | None, typer.Option(help="By default the small restorer of this package.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="How many answers; several show what is not known.")] = 1,
    method: Annotated[str, typer.Option(help="supervised, zero-shot, cold, or auto.")] = "auto",
    answer: Annotated[str, typer.Option(help="mean, sample, or auto: the mean if there is one.")] = "auto",
    steps: Annotated[int, typer.Option(help="Denoiser evaluations of a sample.")] = 12,
    seed: Annotated[int, typer.Option(help="Of answer 0; answer i has seed + i.")] = 0,
    posterior: Annotated[str, typer.Option(help="Of zero-shot: ddnm, diffpir, pigdm, dps, tmpd.")] = "ddnm",
    hints: Annotated[Path | None, typer.Option(help="Colors on a transparent image of the same size.")] = None,
    palette: Annotated[str | None, typer.Option(help="Colors to keep to, e.g. #a03020,#203040.")] = None,
    self_ensemble: Annotated[
        bool, typer.Option(help="Mean over rotations and mirror images (x8): 8 times slower, better.")
    ] = False,
    tile: Annotated[int, typer.Option(help="Side of the tiles it is worked in: for memory only.")] = 256,
    overlap: Annotated[int, typer.Option(help="How much they share.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default NAME-restored.png beside it.")] = None,
    compare: Annotated[bool, typer.Option(help="Write before, after and difference as well.")] = False,
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each PNG.")] = True,
    device: Device = None,
) -> None:
    """Undo what happened to an image.

    Any mixture of downscale, jpeg, blur, motion, defocus, noise, gray, mask, watermark, ... As commands: upscale x2,
    colorize, dejpeg, deblur, denoise, inpaint MASK, dewatermark MASK. Ranges and what is left open are estimated.
    """
    options = {key: value for key, value in locals().items() if key not in ("out", "compare", "metadata")}
    from ..guidance.posterior import INVERSE
    from ..tasks.restoration import restore as restoration
    from ..tasks.restoration import result

    if method in INVERSE:
        raise InputError(
            f"--method says how to restore; {method} is a posterior of zero-shot. Use --posterior {method}."
        )
    path = out or image.with_name(f"{image.stem}-restored.png")
    result.checked_out(path)
    done = restoration.restore(**options)
    written = done.save(path, compare=compare, metadata=metadata)
    print(f"{done}\n{', '.join(map(str, written))}")


@app.command("remove-watermark")
def remove_watermark(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Three or more with the same watermark.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")] = Path("out/clean"),
    model: Annotated[Path | None, typer.Option(help="By default the small restorer of this package.")] = None,
    device: Device = None,
) -> None:
    """Estimate the watermark that several images share, and remove it.

    Writes the images, and mark.png: the watermark. Pixels without it stay as they are.
    """
    options = {key: value for key, value in locals().items() if key != "out"}
    from ..tasks.restoration import watermarks

    for path in watermarks.written([image.stem for image in images], out):
        if any(path.exists() and image.exists() and path.samefile(image) for image in images):
            raise InputError(f"{path} is one of the originals, which the result would replace. Try --out out/clean.")
    done = watermarks.remove_watermark(**options)
    for path in done.save(out):
        print(path)
    print(done)
