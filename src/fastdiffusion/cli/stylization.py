"""Commands that give an image another one's style, and that train the net for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..tasks.stylization.options import StylizeOptions, TrainStyleOptions
from .command import command
from .options import unfinished

Content = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to change.")]
OutImage = Annotated[Path, typer.Option("--out", "-o", help="What to write: .png, .webp or .jpg.")]


@command("stylize", StylizeOptions)
def stylize(
    chosen: StylizeOptions,
    content: Content,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="An image, or what train-style wrote.")],
    out: OutImage = Path("out/stylized.png"),
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each file.")] = True,
) -> None:
    """Give an image another one's style.

    A photograph in the colors and textures of a painting, from coarse to fine.
    """
    from ..io.images import checked_name, save_png
    from ..io.metadata import recipe
    from ..tasks.stylization import stylize as stylization

    checked_name(out)
    made = stylization.stylize(content, style, **vars(chosen))
    save_png(made, out, recipe("stylize", vars(chosen), content, style) if metadata else None)
    print(f"{out}: {made.width}x{made.height} pixels.")


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
