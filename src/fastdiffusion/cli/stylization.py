"""Commands that give an image another one's style, or another layout, and that train the net for a style."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..tasks.rearrangement.options import RearrangeOptions
from ..tasks.stylization.options import StylizeOptions, TrainStyleOptions
from .command import command
from .options import Metadata
from .several import each

OUT = Path("out/stylized.png")
Content = Annotated[
    list[Path], typer.Argument(metavar="IMAGE...", help="The images to change; folders; patterns; - for stdin.")
]
OutImage = Annotated[
    Path, typer.Option("--out", "-o", help="File to write, .png, .webp or .jpg; a folder for several; - for stdout.")
]


OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write into; for one image also a file.")]


@command(
    "stylize",
    StylizeOptions,
    panel="Edit",
    examples=[
        "fastdiffusion stylize photo.jpg painting.jpg --strength 0.6",
        "fastdiffusion stylize photos/ runs/style/style.safetensors --out styled/",
    ],
)
def stylize(
    chosen: StylizeOptions,
    content: Content,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="An image, or what train-style wrote.")],
    out: OutImage = OUT,
    metadata: Metadata = True,
) -> None:
    """Give an image the style of another one.

    The colors, strokes and textures of a painting, by its own patches, from coarse to fine.
    """
    from ..tasks.stylization import stylize as stylization

    def one(image: Path, path: Path) -> str:
        made = stylization.stylize(image, style, **vars(chosen))
        (written,), (height, width) = made.save(path, metadata), made.images.shape[2:]
        return "\n".join([f"{written}: {width}x{height} pixels.", *made.notes])

    several = len(content) > 1 or content[0].is_dir() or "*" in str(content[0])
    piped = content == [Path("-")] and out == OUT
    each(content, None if piped else Path("out/stylized") if several and out == OUT else out, "stylized", one)


@command(
    "rearrange",
    RearrangeOptions,
    panel="Edit",
    examples=[
        "fastdiffusion rearrange photo.jpg -n 4",
        "fastdiffusion rearrange photo.jpg --size 1600x600 -n 1",
    ],
)
def rearrange(
    chosen: RearrangeOptions,
    image: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images whose patches are laid out, each its own; folders; patterns."),
    ],
    out: OutFolder = Path("out/rearranged"),
    metadata: Metadata = True,
) -> None:
    """Make other images of an image's own patches.

    Another layout of a landscape, a texture or many things of a kind, or the same in another shape. Nothing is trained.
    """
    from ..tasks.rearrangement import rearrange as rearrangement

    def one(source: Path, path: Path) -> str:
        report = []
        for i in range(chosen.n):  # each is written as soon as it is made
            made = rearrangement.rearrange(source, **{**vars(chosen), "n": 1, "seed": chosen.seed + i})
            to = path if chosen.n == 1 else path.with_stem(f"{path.stem}-{chosen.seed + i}")
            (written,), (height, width) = made.save(to, metadata), made.images.shape[2:]
            report += [f"{written}: {width}x{height} pixels.", *(made.notes if i == 0 else ())]
        return "\n".join(report)

    if chosen.n > 1 and Path("-") in (*image, out):
        raise InputError("To stdout goes one image. Give -n 1.")
    each(image, out, "rearranged", one)


@command(
    "train-style",
    TrainStyleOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-style painting.jpg --data photos/",
        "fastdiffusion train-style painting.jpg --data fashion-mnist --steps 400",
    ],
)
def train_style(
    chosen: TrainStyleOptions,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="The image whose style is learned.")],
    data: Annotated[str, typer.Option(help="Photographs to practice on: a folder, or a data set's name.")],
) -> None:
    """Learn one style, to apply it at once.

    In one evaluation of a net. Then: fastdiffusion stylize IMAGE runs/style/style.safetensors
    """
    from ..tasks.stylization import network

    folder = Path(chosen.folder or "runs/style")
    network.train_style(style, data, **vars(replace(chosen, folder=folder)))
    print(f"Next: fastdiffusion stylize IMAGE {folder / 'style.safetensors'}")
