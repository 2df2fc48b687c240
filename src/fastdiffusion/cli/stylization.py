"""Commands that give an image another one's style, and that train the net for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..tasks.stylization.options import StylizeOptions, TrainStyleOptions
from .command import command
from .options import unfinished
from .several import each

OUT = Path("out/stylized.png")
Content = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images; folders, patterns, - for stdin.")]
OutImage = Annotated[
    Path, typer.Option("--out", "-o", help="What to write: .png, .webp or .jpg; a folder for several; - for stdout.")
]


@command("stylize", StylizeOptions)
def stylize(
    chosen: StylizeOptions,
    content: Content,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="An image, or what train-style wrote.")],
    out: OutImage = OUT,
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each file.")] = True,
) -> None:
    """Give an image another one's style.

    A photograph in the colors and textures of a painting, from coarse to fine.
    """
    from ..io.inputs import losses
    from ..io.metadata import recipe
    from ..io.outputs import save_image
    from ..tasks.stylization import stylize as stylization

    def one(image: Path, path: Path) -> str:
        made = stylization.stylize(image, style, **vars(chosen))
        written = save_image(made, path, recipe("stylize", vars(chosen), image, style) if metadata else None)
        return "\n".join([f"{written}: {made.width}x{made.height} pixels.", *losses(image)])

    several = len(content) > 1 or content[0].is_dir() or "*" in str(content[0])
    piped = content == [Path("-")] and out == OUT
    each(content, None if piped else Path("out/stylized") if several and out == OUT else out, "stylized", one)


@command("train-style", TrainStyleOptions)
def train_style(
    chosen: TrainStyleOptions,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="The image whose style is learned.")],
    data: Annotated[str, typer.Option(help="Photographs to practice on: a folder, or a data set's name.")],
) -> None:
    """Learn one style, to apply it in one forward pass.

    Then: fastdiffusion stylize IMAGE runs/style/style.safetensors
    """
    from ..tasks.stylization import network

    folder = Path(chosen.folder or "runs/style")
    network.train_style(style, data, **vars(replace(chosen, folder=folder)))
    if not unfinished(folder, chosen.steps):
        print(f"Next: fastdiffusion stylize IMAGE {folder / 'style.safetensors'}")
