"""What guidance.py and optimizer_sampling.py look at: a small model, its data, and a judge that never guided it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from fastdiffusion import metrics
from fastdiffusion.data import Dataset, load
from fastdiffusion.models import Model, save
from fastdiffusion.models import load as load_model
from fastdiffusion.training.learner import Learner


class Subject(NamedTuple):
    model: Model
    data: Dataset
    train: Dataset  # what the model has seen
    held_out: Dataset
    classifier: metrics.Classifier


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that both share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", type=Path, help="a model's file; made if it is not there")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training it")
    parser.add_argument("-n", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    return parser


@torch.enable_grad()
def subject(args: argparse.Namespace, seed: int = 0) -> Subject:
    """Load or train what the flags ask for; the judge's seed is its own."""
    data = load(args.data)
    train, held_out = data.split(0.2)
    path = args.model or args.out / f"{args.data}-model-{seed}.safetensors"
    if args.model is None or not path.exists():
        save(Learner(train, net="unet-tiny", seed=seed, verbose=False).fit(minutes=args.minutes).model, path)
    model = load_model(path)
    model.eval().modules["net"].requires_grad_(False)
    return Subject(model, data, train, held_out, metrics.train_classifier(data, seed=77))
