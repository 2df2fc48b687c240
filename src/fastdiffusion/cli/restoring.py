"""Commands that undo what happened to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import Device, app


@app.command()
def restore(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A photograph of any size.")],
    by: Annotated[
        str,
        typer.Option(help='What happened, e.g. "gray, blur 1.5, jpeg 30"; or what to do, e.g. "upscale x2".'),
    ],
    model: Annotated[Path | None, typer.Option(help="By default the small restorer of this package.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="How many answers; several show what is not known.")] = 1,
    way: Annotated[str, typer.Option(help="supervised, zero-shot, cold, or auto.")] = "auto",
    answer: Annotated[str, typer.Option(help="mean, sample, or auto: the mean if there is one.")] = "auto",
    steps: Annotated[int, typer.Option(help="Denoiser calls of a sample.")] = 12,
    seed: Annotated[int, typer.Option(help="Of answer 0; answer i has seed + i.")] = 0,
    method: Annotated[str, typer.Option(help="Of zero-shot: ddnm, diffpir, pigdm, dps, tmpd.")] = "ddnm",
    hints: Annotated[Path | None, typer.Option(help="Colors on a transparent picture of the same size.")] = None,
    palette: Annotated[str | None, typer.Option(help="Colors to keep to, e.g. #a03020,#203040.")] = None,
    ensemble: Annotated[bool, typer.Option(help="Mean over turns and mirror images: 8 times slower, better.")] = False,
    tile: Annotated[int, typer.Option(help="Side of the pieces it is worked in: for memory only.")] = 256,
    overlap: Annotated[int, typer.Option(help="How much they share.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default NAME-restored.png beside it.")] = None,
    compare: Annotated[bool, typer.Option(help="Write before, after and difference as well.")] = False,
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each PNG.")] = True,
    device: Device = None,
) -> None:
    """Undo what happened to a picture.

    Any mixture of downscale, jpeg, blur, motion, defocus, noise, gray, mask, watermark, ... With the verbs upscale x2,
    colorize, dejpeg, deblur, denoise, inpaint MASK, dewatermark MASK. Ranges and what is not said is found out blindly.
    """
    given = {key: value for key, value in locals().items() if key not in ("out", "compare", "metadata")}
    from ..tasks import restoration, restored

    path = out or picture.with_name(f"{picture.stem}-restored.png")
    restored.checked_out(path)
    done = restoration.restore(**given)
    written = done.save(path, compare=compare, metadata=metadata)
    print(f"{done}\n{', '.join(map(str, written))}")


@app.command()
def unmark(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURES", help="Three or more with the same mark.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")] = Path("out/unmarked"),
    model: Annotated[Path | None, typer.Option(help="By default the small restorer of this package.")] = None,
    device: Device = None,
) -> None:
    """Find the mark that several pictures share, and remove it.

    Writes the pictures, and mark.png: what was found. Pixels without a mark stay as they are.
    """
    given = {key: value for key, value in locals().items() if key != "out"}
    from ..tasks import watermarks

    for path in watermarks.written([picture.stem for picture in pictures], out):
        if any(path.exists() and picture.exists() and path.samefile(picture) for picture in pictures):
            raise InputError(f"{path} is one of the originals, which the result would replace. Try --out out/unmarked.")
    done = watermarks.unmark(**given)
    for path in done.save(out):
        print(path)
    print(done)
