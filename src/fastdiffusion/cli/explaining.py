"""The command that says which words made which pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..tasks.attribution.options import ExplainOptions
from .command import command
from .options import Metadata, offer_models

OUT = Path("out/explain")


@command(
    "explain",
    ExplainOptions,
    panel="Edit",
    examples=[
        "fastdiffusion explain out/3-a-red-heart.png",
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
    out: Annotated[Path, typer.Option("--out", "-o", help="A page to write, NAME.html; or a folder.")] = OUT,
    metadata: Metadata = True,
) -> None:
    """Say which words made which pixels, and write a page to look at."""
    from ..tasks.attribution.explain import explain as explaining

    made = explaining(what, model, **vars(chosen))
    page, *_ = made.save(out, metadata)
    print("\n".join([str(made), *made.notes, f"{page}: open it in a browser."]))
