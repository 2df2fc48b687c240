"""Commands between images and text: train the encoders, score an image, search a folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..tasks.text_image.options import TrainCaptionMeanOptions, TrainClipOptions
from .command import command
from .options import Aspect, DataName, Device, next_command

ClipPath = Annotated[
    Path | None, typer.Option("--model", "-m", help="What train-clip wrote; by default the bundled encoder, of emoji.")
]


@command(
    "train-clip",
    TrainClipOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-clip photos/ --size 64 --steps 2000",
        "fastdiffusion train-clip photos/ --net tiny --minutes 10 --folder runs/clip",
    ],
)
def train_clip(chosen: TrainClipOptions, data: DataName, aspect: Aspect = None) -> None:
    """Train encoders of images and captions, to score and search.

    On a folder of yours with captions. The same command goes on where it stopped.
    """
    from ..data import load_folder
    from ..io.run_folder import Folder
    from ..tasks.text_image import clip

    chosen = chosen.in_runs("clip")
    folder = Path(str(chosen.folder))
    clip.train_clip(load_folder(data, chosen.size, aspect, "pad"), **vars(chosen))  # as clip-score and search load them
    last = next((line for line in reversed(Folder(folder).metrics()) if "recall" in line), None)
    if last is not None:
        interval = f"[{last['low']:.1%}, {last['high']:.1%}]"
        print(f"Held-out pairs: the right caption among {last['among']} in {last['recall']:.1%} {interval} of "
              f"{last['of']}; chance is {1 / last['among']:.1%}.")  # fmt: skip
    next_command(f"search {shlex.quote(data)} 'a red car'", model=folder)


@command(
    "train-caption-mean",
    TrainCaptionMeanOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-caption-mean photos/ --size 64",
        "fastdiffusion train-caption-mean photos/ --vae runs/autoencoder/codec.safetensors --steps 3000",
    ],
)
def train_caption_mean(chosen: TrainCaptionMeanOptions, data: DataName, aspect: Aspect = None) -> None:
    """Learn the mean image of each caption, before training on captions.

    E[x0 given caption]: minutes of this save hours of 'train --captions'. The same command goes on where it stopped.
    """
    from ..data import load_folder
    from ..tasks.text_image import caption_mean

    chosen = chosen.in_runs("caption-mean")
    folder, size, autoencoder = Path(str(chosen.folder)), chosen.size, chosen.autoencoder
    caption_mean.train_caption_mean(load_folder(data, size, aspect, "crop"), **vars(chosen))
    shared = {"size": size, "aspect": aspect or ("crop" if autoencoder is None and Path(data).is_dir() else None)}
    holdout = None if chosen.holdout == TrainCaptionMeanOptions.holdout else chosen.holdout
    shared |= {"autoencoder": autoencoder, "holdout": holdout, "seed": chosen.seed or None}
    next_command(f"train {shlex.quote(data)} --captions", **shared, init_from=folder / caption_mean.FILE)


@command(
    "clip-score",
    panel="Measure",
    examples=[
        'fastdiffusion clip-score out/0000-a-red-heart.png "a red heart" "a blue heart"',
        'fastdiffusion clip-score photo.png "a cat" --model runs/clip --json',
    ],
    answers=True,
    document=True,
)
def clip_score(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One text or several, each in quotes.")],
    model: ClipPath = None,
    device: Device = None,
) -> object:
    """Measure how well texts fit an image.

    Best first: the cosine, and what part of the captions that the encoder knows fits worse. The bundled encoder knows
    emoji only.
    """
    from ..tasks.text_image import scoring

    scores = sorted(scoring.clip_score(image, prompt, model, device), key=lambda score: -score.similarity)
    for score in scores:
        print(f"{score.similarity:6.3f}  better than {score.better_than:6.1%}  {score.prompt}")
    _what_it_knows(model)
    return [score._asdict() for score in scores]


@command(
    "search",
    panel="Measure",
    examples=[
        'fastdiffusion search out/ "a red heart" -n 4',
        'fastdiffusion search photos/ "a red car" --model runs/clip',
    ],
    answers=True,
)
def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images, at any depth.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to look for, in quotes.")],
    n: Annotated[int, typer.Option("-n", "--n", help="How many images to name.")] = 16,
    model: ClipPath = None,
    device: Device = None,
) -> None:
    """Find the images of a folder that fit a text best.

    The bundled encoder knows emoji only: on photographs its answers are experimental, and it says so.
    """
    from ..tasks.text_image import scoring

    for match in scoring.search(folder, prompt, n, model, device):
        print(f"{match.similarity:6.3f}  {folder / match.path}")
    _what_it_knows(model)


def _what_it_knows(model: Path | None) -> None:
    """Said every time: a photograph cannot be told from an emoji for sure, and the numbers look alike."""
    if model is None:
        print("The encoder in this package knows emoji only; for other images, --model (train-clip).", file=sys.stderr)
