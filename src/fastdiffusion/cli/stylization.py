"""Commands that give an image another one's style, and that train the net for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import LR, Fresh, app

Content = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to change.")]
OutImage = Annotated[Path, typer.Option("--out", "-o", help="What to write: .png, .webp or .jpg.")]
BatchSize = Annotated[int, typer.Option(help="Images per step.")]
Training = Annotated[int, typer.Option(help="Of training.")]
TrainingSeed = Annotated[int, typer.Option(help="Of everything.")]


@app.command()
def stylize(
    content: Content,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="An image, or what train-style wrote.")],
    strength: Annotated[float, typer.Option(help="0 is the image itself, 1 all of the style.")] = 0.6,
    size: Annotated[int, typer.Option(help="Longest side to work at; beyond it the change is enlarged.")] = 768,
    steps: Annotated[int, typer.Option(help="At each size, or of the model.")] = 80,
    keep: Annotated[float, typer.Option(help="What the content counts; the style counts 1.")] = 0.6,
    model: Annotated[Path | None, typer.Option(help="Do it inside this diffusion model, by shared attention.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 0,
    out: OutImage = Path("out/stylized.png"),
) -> None:
    """Give an image another one's style.

    A photograph in the colors and textures of a painting, from coarse to fine.
    """
    options = {key: value for key, value in locals().items() if key != "out"}
    from ..io.images import checked_name, save_png
    from ..tasks.stylization import stylize as stylization

    checked_name(out)
    made = stylization.stylize(**options)
    save_png(made, out)
    print(f"{out}: {made.width}x{made.height} pixels.")


@app.command("train-style")
def train_style(
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="The image whose style is learned.")],
    data: Annotated[str, typer.Option(help="Photographs to practice on: a folder, or a data set's name.")],
    steps: Training = 400,
    size: Annotated[int, typer.Option(help="Side of the practice images in pixels.")] = 128,
    batch_size: BatchSize = 2,
    keep: Annotated[float, typer.Option(help="What the content counts; the style counts 1.")] = 0.6,
    lr: LR = 2e-3,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/style"
    ),
    seed: TrainingSeed = 0,
    fresh: Fresh = False,
) -> None:
    """Learn one style, to apply it in one forward pass.

    Then: fastdiffusion stylize IMAGE runs/style/style.safetensors
    """
    options = dict(locals())
    from ..tasks.stylization import network

    network.train_style(**options)
    print(f"Next: fastdiffusion stylize IMAGE {folder / 'style.safetensors'}")
