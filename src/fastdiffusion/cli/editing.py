"""The commands that edit an image by its words, and say which words made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..tasks.attribution.options import ExplainOptions
from ..tasks.editing.options import EditOptions
from .command import command
from .options import Metadata, offer_models

OUT = Path("out/edited.png")


@command(
    "edit",
    EditOptions,
    panel="Edit",
    examples=[
        'fastdiffusion edit "a blue heart" --source "a red heart" --seed 3',
        'fastdiffusion edit heart.png "a blue heart" --source "a red heart"',
        'fastdiffusion edit photo.png "a dog" --source "a cat" --mask mask.png --model sd15/',
    ],
)
def edit(
    chosen: EditOptions,
    what: Annotated[
        list[str], typer.Argument(metavar="[IMAGE] TARGET", help="The image, if there is one, and what it is to show.")
    ],
    model: Annotated[
        str, typer.Option(help="A text-to-image model: its file or folder.", autocompletion=offer_models)
    ] = "emoji",
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .png, .webp or .jpg; or a folder.")] = OUT,
    compare: Annotated[bool, typer.Option("--compare", help="Also write source, result and difference.")] = False,
    metadata: Metadata = True,
) -> None:
    """Change what an image shows, by words.

    What the two prompts share, and what is outside of a mask, is kept.
    """
    from ..io.images import checked_name
    from ..tasks.editing import edit as editing

    if len(what) > 2:
        raise InputError(
            f'Give an image and a target, not {len(what)} words. Put the target in quotes: "a blue heart".'
        )
    if len(what) == 1 and Path(what[0]).is_file():
        raise InputError(f'Say what {what[0]} is to show: fastdiffusion edit {what[0]} "a blue heart".')
    if out.suffix and not out.is_dir():
        checked_name(out)  # before the work, which may take minutes
    image = what[0] if len(what) == 2 else None
    made = editing.edit(image, what[-1], model, **vars(chosen))
    paths = made.save(out, metadata, compare)
    print("\n".join([f"{', '.join(map(str, paths))}: {what[-1]}.", *made.notes]))


PAGE = Path("out/explain")


@command(
    "explain",
    ExplainOptions,
    panel="Edit",
    examples=[
        "fastdiffusion explain out/0003-a-red-heart.png",
        'fastdiffusion explain "a red heart on blue" --seed 3',
        'fastdiffusion explain "a cat with a hat" --model sd15/ --box 20,0,90,60 --out hat.html',
    ],
)
def explain(
    chosen: ExplainOptions,
    what: Annotated[
        str, typer.Argument(metavar="IMAGE|PROMPT", help="An image that carries its recipe, or a prompt to draw.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A text-to-image model; by default the recipe's, else emoji.", autocompletion=offer_models),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A page to write, NAME.html; or a folder.")] = PAGE,
    metadata: Metadata = True,
) -> None:
    """Say which words made which pixels, and write a page to look at."""
    from ..tasks.attribution.explain import explain as explaining
    from ..tasks.attribution.result import page_of

    page_of(out)  # before the work, which may take minutes
    made = explaining(what, model, **vars(chosen))
    page, *_ = made.save(out, metadata)
    print("\n".join([str(made), *made.notes, f"{page}: open it in a browser."]))
