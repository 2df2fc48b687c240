"""Commands between pictures and words: train the encoders, score a picture, search a folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    LR,
    Aspect,
    DataName,
    Fresh,
    Minutes,
    Optimizer,
    SeedOfAll,
    Size,
    app,
    next_command,
    pictures,
    unfinished,
)

ClipPath = Annotated[
    Path | None, typer.Option("--model", "-m", help="A file or folder of train-clip; by default the emoji's encoder.")
]


@app.command("train-clip")
def train_clip(
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 2000,
    net: Annotated[str, typer.Option(help="Size of the image encoder: tiny, small, base.")] = "small",
    loss: Annotated[str, typer.Option(help="infonce or cloob.")] = "infonce",
    size: Size = None,
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "--out", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/clip"
    ),
    batch_size: Annotated[int, typer.Option(help="Pairs a step, each told from all others.")] = 256,
    lr: LR = 1e-2,
    optimizer: Optimizer = "muon",
    vocabulary: Annotated[int, typer.Option(help="Most tokens learned from the captions.")] = 4096,
    holdout: Annotated[float, typer.Option(help="Part of the pictures kept for the recall.")] = 0.05,
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train encoders of pictures and captions.

    For score and search, on your own captioned folder. The same command goes on where it stopped.
    """
    given: dict[str, Any] = {k: value for k, value in locals().items() if k not in ("size", "aspect")}
    from ..checkpoints import Folder
    from ..tasks import clip

    given["data"] = pictures(data, size, aspect, "pad")  # as score and search see them
    clip.train_clip(**given)
    if unfinished(folder, steps):
        return
    last = next((line for line in reversed(Folder(folder).metrics()) if "recall" in line), None)
    if last is not None:
        interval = f"[{last['low']:.1%}, {last['high']:.1%}]"
        print(f"Held-out pairs: the right caption among {last['among']} in {last['recall']:.1%} {interval} of "
              f"{last['of']}; chance is {1 / last['among']:.1%}.")  # fmt: skip
    next_command(f"search {shlex.quote(data)} 'some words'", model=folder)


@app.command("train-draft")
def train_draft(
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 3000,
    net: Annotated[str, typer.Option(help="Of the denoiser that follows: see 'train'.")] = "unet-latent",
    codec: Annotated[Path | None, typer.Option(help="An autoencoder's file: draft its latents.")] = None,
    size: Size = None,
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "--out", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/draft"
    ),
    begin: Annotated[Path | None, typer.Option(help="A model with a draft to go on from.")] = None,
    side: Annotated[int, typer.Option(help="Of the draft, in pixels or latents.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Captions a step.")] = 256,
    lr: LR = 1e-2,
    holdout: Annotated[float, typer.Option(help="Part of the pictures kept for 'train': the same as there.")] = 0.05,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto: the faster one, measured.")] = "auto",
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Learn what words alone say of a picture, before the denoiser.

    Minutes of this save hours of 'train --text'. The same command goes on where it stopped.
    """
    given: dict[str, Any] = {k: value for k, value in locals().items() if k not in ("size", "aspect")}
    from ..tasks import drafts

    given["data"] = pictures(data, size, aspect, "crop")
    drafts.train_draft(**given)
    if unfinished(folder, steps):
        return
    shared = {"size": size, "aspect": aspect or ("crop" if codec is None and Path(data).is_dir() else None)}
    shared |= {"codec": codec, "holdout": None if holdout == 0.05 else holdout, "seed": seed or None}
    next_command(f"train {shlex.quote(data)} --text", **shared, begin=folder / drafts.FILE)


@app.command()
def score(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A file.")],
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="One text or several, each in quotes.")],
    model: ClipPath = None,
) -> None:
    """Say how well words fit a picture.

    Best first: the cosine, and what part of the captions that the encoder knows fits worse.
    """
    from ..tasks import clip

    for found in sorted(clip.score(picture, words, model), key=lambda scored: -scored.similarity):
        print(f"{found.similarity:6.3f}  better than {found.better_than:6.1%}  {found.words}")


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, in any depth.")],
    words: Annotated[str, typer.Argument(metavar="WORDS", help="What to look for, in quotes.")],
    n: Annotated[int, typer.Option("-n", "--n", help="How many to name.")] = 16,
    model: ClipPath = None,
) -> None:
    """Find pictures of a folder by words, best first."""
    from ..tasks import clip

    for found in clip.search(folder, words, n, model):
        print(f"{found.similarity:6.3f}  {folder / found.path}")
