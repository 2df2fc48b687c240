"""Commands that turn an image into another: style, translation, cold diffusion; and that train the nets for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..tasks.stylization.options import StylizeOptions, TrainStyleOptions
from .command import command
from .options import LR, DataName, Fresh, Minutes, Seed, Size, app, unfinished

Content = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to change.")]
OutImage = Annotated[Path, typer.Option("--out", "-o", help="What to write: .png, .webp or .jpg.")]
BatchSize = Annotated[int, typer.Option(help="Images per step.")]
Training = Annotated[int, typer.Option(help="Of training.")]
TrainingSeed = Annotated[int, typer.Option(help="Of everything.")]


@command("stylize", StylizeOptions)
def stylize(
    chosen: StylizeOptions,
    content: Content,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="An image, or what train-style wrote.")],
    out: OutImage = Path("out/stylized.png"),
) -> None:
    """Give an image another one's style.

    A photograph in the colors and textures of a painting, from coarse to fine.
    """
    from ..io.images import checked_name, save_png
    from ..tasks.stylization import stylize as stylization

    checked_name(out)
    made = stylization.stylize(content, style, **vars(chosen))
    save_png(made, out)
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


@app.command("train-translation")
def train_translation(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The source images: a folder or a data set.")],
    target: Annotated[
        str | None, typer.Argument(metavar="TO", help="The target images; without, FROM's edges are the source.")
    ] = None,
    method: Annotated[str, typer.Option(help="regression, gan, diffusion, bridge; unpaired: cyclegan.")] = "gan",
    classes: Annotated[
        str | None, typer.Option(help="Two classes of FROM as the two domains, e.g. sneaker,bag.")
    ] = None,
    steps: Training = 2000,
    net: Annotated[str, typer.Option(help="A U-Net: unet-tiny, unet-small, unet-base.")] = "unet-small",
    size: Size = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/translation"
    ),
    batch_size: BatchSize = 32,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; by default the method's.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Mirrored images are of their kind, too.")] = False,
    holdout: Annotated[float, typer.Option(help="Part that is kept for the preview.")] = 0.05,
    seed: TrainingSeed = 0,
    minutes: Minutes = None,
    fresh: Fresh = False,
) -> None:
    """Learn to turn one kind of image into another.

    From pairs (files of equal names in two folders, or edges made on the fly), or from two domains (cyclegan).
    """
    options = dict(locals())
    from ..tasks.translation import paired

    paired.train_translation(**options)
    edges = " --from-edges" if target is None and classes is None else ""
    print(f"Look at {folder / 'preview.png'}. Next: fastdiffusion translate IMAGE {folder}{edges}")


@app.command()
def translate(
    image: Content,
    net: Annotated[Path, typer.Argument(metavar="NET", help="What train-translation wrote; with --prompt, a model.")],
    steps: Annotated[int, typer.Option(help="Evaluations, of a diffusion or a bridge.")] = 20,
    n: Annotated[int, typer.Option("-n", "--n", help="Different answers, of a diffusion or a bridge.")] = 1,
    seed: Seed = 0,
    size: Annotated[int | None, typer.Option(help="Shorter side to work at; by default the trained one.")] = None,
    from_edges: Annotated[bool, typer.Option("--from-edges", help="Take the image's edges for the source.")] = False,
    reverse: Annotated[bool, typer.Option("--reverse", help="Of a cyclegan, from target to source.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Class or prompt that a diffusion model turns it into.")] = None,
    source_prompt: Annotated[str | None, typer.Option(help="Class or prompt for what is shown: by the flow.")] = None,
    strength: Annotated[float, typer.Option(help="With --prompt: 0 is the image, 1 forgets it.")] = 0.9,
    scale: Annotated[float, typer.Option(help="Guidance of the diffusion model.")] = 2.0,
    out: OutImage = Path("out/translated.png"),
) -> None:
    """Turn an image into its counterpart.

    Several answers are numbered: out/translated-0.png, ...
    """
    options = {key: value for key, value in locals().items() if key != "out"}
    from ..io.images import checked_name, save_png
    from ..tasks.translation import paired

    checked_name(out)
    made = paired.translate(**options)
    paths = [out] if len(made) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(made))]
    for path, translated in zip(paths, made, strict=True):
        save_png(translated, path)
    print(f"{', '.join(map(str, paths))}: {made[0].width}x{made[0].height} pixels.")


@app.command("train-cold")
def train_cold(
    data: DataName,
    process: Annotated[str, typer.Option(help="blur_noise, heat, soft, gaussian, or a corruption: 'pixelate 8'.")] = (
        "blur 4"
    ),
    steps: Training = 1500,
    net: Annotated[str, typer.Option(help="A U-Net: unet-tiny, unet-small, unet-base.")] = "unet-tiny",
    size: Size = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path("runs/cold"),
    batch_size: BatchSize = 64,
    lr: LR = 2e-3,
    holdout: Annotated[float, typer.Option(help="Part that is kept for the preview.")] = 0.05,
    seed: TrainingSeed = 0,
    fresh: Fresh = False,
) -> None:
    """Train a diffusion along blur or any corruption.

    In place of noise: see the preview for what one evaluation and sixteen evaluations restore.
    """
    options = dict(locals())
    from ..tasks.restoration import cold_diffusion

    cold_diffusion.train_cold(**options)
    print(
        f"{folder / 'cold.safetensors'} and preview.png: held-out images, degraded, restored in 1 and 16 evaluations."
    )
