"""Commands between images and text: train the encoders, score an image, search a folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    LR,
    Aspect,
    Autoencoder,
    DataName,
    Fresh,
    Minutes,
    Optimizer,
    SeedOfAll,
    Size,
    app,
    load_data,
    next_command,
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
    batch_size: Annotated[int, typer.Option(help="Pairs a step, each contrasted with all others.")] = 256,
    lr: LR = 1e-2,
    optimizer: Optimizer = "muon",
    vocabulary: Annotated[int, typer.Option(help="Most tokens learned from the captions.")] = 4096,
    holdout: Annotated[float, typer.Option(help="Part of the images kept for the recall.")] = 0.05,
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train encoders of images and captions.

    For clip-score and search, on your own captioned folder. The same command goes on where it stopped.
    """
    options: dict[str, Any] = {k: value for k, value in locals().items() if k not in ("size", "aspect")}
    from ..io.run_folder import Folder
    from ..tasks.text_image import clip

    options["data"] = load_data(data, size, aspect, "pad")  # as clip-score and search load them
    clip.train_clip(**options)
    if unfinished(folder, steps):
        return
    last = next((line for line in reversed(Folder(folder).metrics()) if "recall" in line), None)
    if last is not None:
        interval = f"[{last['low']:.1%}, {last['high']:.1%}]"
        print(f"Held-out pairs: the right caption among {last['among']} in {last['recall']:.1%} {interval} of "
              f"{last['of']}; chance is {1 / last['among']:.1%}.")  # fmt: skip
    next_command(f"search {shlex.quote(data)} 'a red car'", model=folder)


@app.command("train-caption-mean")
def train_caption_mean(
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 3000,
    net: Annotated[str, typer.Option(help="Of the denoiser that follows: see 'train'.")] = "unet-latent",
    autoencoder: Autoencoder = None,
    size: Size = None,
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "--out", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/caption-mean"
    ),
    init_from: Annotated[Path | None, typer.Option(help="A model with a caption mean to go on from.")] = None,
    side: Annotated[int, typer.Option(help="Of the mean, in pixels or latents.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Captions a step.")] = 256,
    lr: LR = 1e-2,
    holdout: Annotated[float, typer.Option(help="Part of the images kept for 'train': the same as there.")] = 0.05,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto: the faster one, measured.")] = "auto",
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Learn the mean image of each caption, E[x0 given caption], before the denoiser.

    Minutes of this save hours of 'train --captions'. The same command goes on where it stopped.
    """
    options: dict[str, Any] = {k: value for k, value in locals().items() if k not in ("size", "aspect")}
    from ..tasks.text_image import caption_mean

    options["data"] = load_data(data, size, aspect, "crop")
    caption_mean.train_caption_mean(**options)
    if unfinished(folder, steps):
        return
    shared = {"size": size, "aspect": aspect or ("crop" if autoencoder is None and Path(data).is_dir() else None)}
    shared |= {"autoencoder": autoencoder, "holdout": None if holdout == 0.05 else holdout, "seed": seed or None}
    next_command(f"train {shlex.quote(data)} --captions", **shared, init_from=folder / caption_mean.FILE)


@app.command("clip-score")
def clip_score(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A file.")],
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One text or several, each in quotes.")],
    model: ClipPath = None,
) -> None:
    """Measure how well texts fit an image.

    Best first: the cosine, and what part of the captions that the encoder knows fits worse.
    """
    from ..tasks.text_image import scoring

    for score in sorted(scoring.clip_score(image, prompt, model), key=lambda score: -score.similarity):
        print(f"{score.similarity:6.3f}  better than {score.better_than:6.1%}  {score.prompt}")


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images, in any depth.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to look for, in quotes.")],
    n: Annotated[int, typer.Option("-n", "--n", help="How many to name.")] = 16,
    model: ClipPath = None,
) -> None:
    """Find images of a folder by text, best first."""
    from ..tasks.text_image import scoring

    for match in scoring.search(folder, prompt, n, model):
        print(f"{match.similarity:6.3f}  {folder / match.path}")
