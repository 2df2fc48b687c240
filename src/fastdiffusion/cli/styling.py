"""Commands that turn a picture into another: style, translation, cold diffusion; and that train the nets for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import LR, DataName, Fresh, Minutes, Seed, Size, app

Content = Annotated[Path, typer.Argument(metavar="PICTURE", help="The picture to change.")]
OutPicture = Annotated[Path, typer.Option("--out", "-o", help="What to write: .png, .webp or .jpg.")]
BatchSize = Annotated[int, typer.Option(help="Pictures per step.")]
Training = Annotated[int, typer.Option(help="Of training.")]
TrainingSeed = Annotated[int, typer.Option(help="Of everything.")]


@app.command()
def stylize(
    content: Content,
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="A picture, or what train-style wrote.")],
    strength: Annotated[float, typer.Option(help="0 is the picture itself, 1 all of the style.")] = 0.6,
    size: Annotated[int, typer.Option(help="Longest side to work at; beyond it the change is enlarged.")] = 768,
    steps: Annotated[int, typer.Option(help="At each size, or of the model.")] = 80,
    keep: Annotated[float, typer.Option(help="What the content counts; the style counts 1.")] = 0.6,
    model: Annotated[Path | None, typer.Option(help="Do it inside this diffusion model, by shared attention.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 0,
    out: OutPicture = Path("out/stylized.png"),
) -> None:
    """Give a picture another one's style.

    A photograph in the colors and textures of a painting, from coarse to fine.
    """
    given = {key: value for key, value in locals().items() if key != "out"}
    from ..images import checked_name, save_png
    from ..tasks import stylization

    checked_name(out)
    made = stylization.stylize(**given)
    save_png(made, out)
    print(f"{out}: {made.width}x{made.height} pixels.")


@app.command("train-style")
def train_style(
    style: Annotated[Path, typer.Argument(metavar="STYLE", help="The picture whose style is learned.")],
    data: Annotated[str, typer.Option(help="Photographs to practice on: a folder, or a data set's name.")],
    steps: Training = 400,
    size: Annotated[int, typer.Option(help="Side of the practice pictures in pixels.")] = 128,
    batch_size: BatchSize = 2,
    keep: Annotated[float, typer.Option(help="What the content counts; the style counts 1.")] = 0.6,
    lr: LR = 2e-3,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/style"
    ),
    seed: TrainingSeed = 0,
    fresh: Fresh = False,
) -> None:
    """Learn one style, to apply it in one call.

    Then: fastdiffusion stylize PICTURE runs/style/style.safetensors
    """
    given = dict(locals())
    from ..tasks import stylization

    stylization.train_style(**given)
    print(f"Next: fastdiffusion stylize PICTURE {folder / 'style.safetensors'}")


@app.command("train-translation")
def train_translation(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Pictures to come from: a folder or a data set.")],
    target: Annotated[
        str | None, typer.Argument(metavar="TO", help="Pictures to go to; without, FROM's edges are the source.")
    ] = None,
    method: Annotated[str, typer.Option(help="regression, gan, diffusion, bridge; unpaired: cyclegan.")] = "gan",
    classes: Annotated[str | None, typer.Option(help="Two classes of FROM as the two piles, e.g. sneaker,bag.")] = None,
    steps: Training = 2000,
    net: Annotated[str, typer.Option(help="A U-Net: unet-tiny, unet-small, unet-base.")] = "unet-small",
    size: Size = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/translation"
    ),
    batch_size: BatchSize = 32,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; by default the method's.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Mirrored pictures are of their kind, too.")] = False,
    holdout: Annotated[float, typer.Option(help="Part that is kept for the preview.")] = 0.05,
    seed: TrainingSeed = 0,
    minutes: Minutes = None,
    fresh: Fresh = False,
) -> None:
    """Learn to turn one kind of picture into another.

    From pairs (files of equal names in two folders, or edges made on the fly), or from two piles (cyclegan).
    """
    given = dict(locals())
    from ..tasks import translation

    translation.train_translation(**given)
    lines = " --lines" if target is None and classes is None else ""
    print(f"Look at {folder / 'preview.png'}. Next: fastdiffusion translate PICTURE {folder}{lines}")


@app.command()
def translate(
    picture: Content,
    net: Annotated[Path, typer.Argument(metavar="NET", help="What train-translation wrote; with --to, a model.")],
    steps: Annotated[int, typer.Option(help="Calls, of a diffusion or a bridge.")] = 20,
    n: Annotated[int, typer.Option("-n", "--n", help="Different answers, of a diffusion or a bridge.")] = 1,
    seed: Seed = 0,
    size: Annotated[int | None, typer.Option(help="Shorter side to work at; by default the trained one.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Take the picture's edges for the source.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Of a cyclegan, the way back.")] = False,
    to: Annotated[str | None, typer.Option(help="Class, or words, that a diffusion model turns it into.")] = None,
    origin: Annotated[str | None, typer.Option(help="Class or words for what is shown: by the flow.")] = None,
    strength: Annotated[float, typer.Option(help="With --to: 0 is the picture, 1 forgets it.")] = 0.9,
    scale: Annotated[float, typer.Option(help="Guidance of the diffusion model.")] = 2.0,
    out: OutPicture = Path("out/translated.png"),
) -> None:
    """Turn a picture into its counterpart.

    Several answers are numbered: out/translated-0.png, ...
    """
    given = {key: value for key, value in locals().items() if key != "out"}
    from ..images import checked_name, save_png
    from ..tasks import translation

    checked_name(out)
    made = translation.translate(**given)
    paths = [out] if len(made) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(made))]
    for path, image in zip(paths, made, strict=True):
        save_png(image, path)
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

    In place of noise: see the preview for what one call and sixteen calls restore.
    """
    given = dict(locals())
    from ..tasks import cold

    cold.train_cold(**given)
    print(f"{folder / 'cold.safetensors'} and preview.png: held-out pictures, degraded, restored in 1 and in 16 calls.")
