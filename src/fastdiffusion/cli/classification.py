"""The command that trains a classifier to guide by."""

from __future__ import annotations

from pathlib import Path

from ..tasks.classification.options import TrainClassifierOptions
from .command import command
from .options import DataName


@command(
    "train-classifier",
    TrainClassifierOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-classifier digits --steps 1000",
        "fastdiffusion train-classifier photos/ --size 64 --model runs/photos",
        "fastdiffusion train-classifier drawings/ --size 64 --latents emoji",
    ],
)
def train_classifier(chosen: TrainClassifierOptions, data: DataName) -> None:
    """Train a classifier of noisy images, to guide by.

    Then: fastdiffusion sample MODEL --guidance "classifier FILE scale=2"; of a model's features: feature_guidance. A
    model without classes takes label=NAME as well.
    """
    from .. import data as datasets
    from ..tasks.classification import train

    chosen, images = chosen.in_runs("classifier"), datasets.load(data, chosen.size)
    made = train.train_classifier(images, **vars(chosen)).model
    images = images if chosen.latents is None else train.of_latents(images, chosen)[0]
    file = Path(str(chosen.folder)) / train.FILE
    kept = images.split(chosen.holdout, chosen.seed)[1] if chosen.holdout else images
    for sigma, right in train.accuracy(made, kept).items():
        print(f"sigma {sigma:5.2f}: {right:.1%} of {'held-out' if chosen.holdout else 'training'} images correct")
    print(f"{file} is there.")
