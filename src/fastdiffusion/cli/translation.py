"""Commands that turn one kind of image into another, and that train the net for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..tasks.translation.options import TrainTranslationOptions, TranslateOptions
from .command import command
from .options import Metadata


@command(
    "train-translation",
    TrainTranslationOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-translation drawings/ photos/ --size 64",
        "fastdiffusion train-translation fashion-mnist --classes sneaker,bag --method cyclegan",
    ],
)
def train_translation(
    chosen: TrainTranslationOptions,
    source: Annotated[str, typer.Argument(metavar="FROM", help="The source images: a folder or a data set.")],
    target: Annotated[
        str | None, typer.Argument(metavar="TO", help="The target images; without, FROM's edges are the source.")
    ] = None,
) -> None:
    """Learn to turn one kind of image into another.

    From pairs (files of equal names in two folders, or edges made on the fly), or from two domains (cyclegan).
    """
    from ..tasks.translation import paired

    folder = Path(chosen.folder or "runs/translation")
    paired.train_translation(source, target, **vars(replace(chosen, folder=folder)))
    edges = " --from-edges" if target is None and chosen.classes is None else ""
    print(f"Look at {folder / 'previews'}. Next: fastdiffusion translate IMAGE {folder}{edges}")


@command(
    "translate",
    TranslateOptions,
    panel="Edit",
    examples=[
        "fastdiffusion translate drawing.png runs/translation",
        'fastdiffusion translate shoe.png runs/fashion --prompt "ankle boot" --source-prompt sneaker',
    ],
)
def translate(
    chosen: TranslateOptions,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to change.")],
    net: Annotated[Path, typer.Argument(metavar="NET", help="What train-translation wrote; with --prompt, a model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .png, .webp or .jpg.")] = Path(
        "out/translated.png"
    ),
    metadata: Metadata = True,
) -> None:
    """Turn an image into another kind or class.

    Several results are numbered: out/translated-0.png, ...
    """
    from ..io.images import checked_name
    from ..tasks.translation import paired

    checked_name(out)
    made = paired.translate(image, net, **vars(chosen))
    paths, (height, width) = made.save(out, metadata), made.images.shape[2:]
    print("\n".join([f"{', '.join(map(str, paths))}: {width}x{height} pixels.", *made.notes]))
