"""The mean image of each caption, learned before the denoiser: its text encoder and E[x0 given caption], by regression.

    model = train_caption_mean("photos/", autoencoder="codec.safetensors", folder="runs/caption-mean").model
    Learner("photos/", init_from="runs/caption-mean/draft.safetensors", captions=True).fit(minutes=60)

A step here costs a hundredth of a denoiser's, and all of it goes where captions decide (see docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import data as datasets
from ...data import Dataset
from ...errors import InputError
from ...io.images import as_input
from ...models import Model, save
from ...nets import TextConditioned, specification
from ...nets.text import CaptionMean, TextEncoder
from ...noise import Stream, generator
from ...options import fill
from ...training.batches import title
from ...training.learner import Learner
from ...training.report import TrainingResult
from ...training.task import Part, Task
from ...training.trainer import train
from .options import TrainCaptionMeanOptions

FILE = "draft.safetensors"


def train_caption_mean(data: Dataset | str, **options: Any) -> TrainingResult[Model]:
    """A model whose text encoder and caption mean have learned E[x0 given caption], its denoiser still to be trained.

    Args:
        data: Captioned images of one size, or what ``data.load`` takes.
        options: See :class:`TrainCaptionMeanOptions`.

    Raises:
        InputError: A model to start from that has no caption mean.
        DataError: No captions.
    """
    chosen = fill(TrainCaptionMeanOptions, **options)
    learner = _learner(data, chosen)
    text_encoder, caption_mean = _parts(learner, chosen)
    both = nn.ModuleDict({"text_encoder": text_encoder, "caption_mean": caption_mean})
    config = {
        "data": learner.setup.train.fingerprint, "words": text_encoder.config, "draft": caption_mean.config,
        "batch_size": chosen.batch_size, "lr": chosen.lr,
        "begin": None if learner.setup.base is None else learner.setup.base.id[:16],
    }  # fmt: skip
    held, seed = learner.setup.held_out, chosen.seed

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        """Squared distance of the mean from images of each caption, in units of the data's standard deviation."""
        tokens, target = batch
        mean = caption_mean(text_encoder(tokens)[2])
        return (mean - F.adaptive_avg_pool2d(target, mean.shape[2:])).square().mean()

    def stream(data: Dataset, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        def draw(step: int) -> tuple[Tensor, Tensor]:
            order = generator(seed, Stream.CAPTION_MEAN_ROWS, step)
            some = torch.randint(len(data), (chosen.batch_size,), generator=order).tolist()
            batch = data.batch(some, generator(seed, Stream.CAPTION_MEAN_CAPTION, step))
            return text_encoder.tokens(batch.captions), as_input(batch.images) / learner.setup.sigma_data

        return draw

    train(Task(
        {"caption_mean": Part(both, loss, learner.config.optimizer, chosen.lr)}, stream(learner.setup.train, seed),
        config, title(learner.setup.train), chosen.usual_examples, "train-caption-mean",
        {"data": learner.setup.train.name}, held_out=[stream(held, -1)(0)] if len(held) else (),
        write=lambda folder: save(learner.averaged(None), folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return TrainingResult.of(learner.averaged(None).to("cpu"), chosen.folder)


def _learner(data: Dataset | str, chosen: TrainCaptionMeanOptions) -> Learner:
    """The run that is to follow: it knows the data, their scale and the net."""
    spec = {**specification(chosen.net), "draft": {"side": chosen.side}}
    return Learner(
        datasets.load(data, chosen.size), net=spec, captions=True, autoencoder=chosen.autoencoder,
        init_from=chosen.init_from, holdout=chosen.holdout, seed=chosen.seed, optimizer=chosen.optimizer,
        device=chosen.device, verbose=False,
    )  # fmt: skip


def _parts(learner: Learner, chosen: TrainCaptionMeanOptions) -> tuple[TextEncoder, CaptionMean]:
    """What is trained here of the learner's net."""
    net = learner.objective.denoiser.net
    if not isinstance(net, TextConditioned) or net.caption_mean is None:
        raise InputError(f"{Path(chosen.init_from or '').name} has no caption mean to go on from. Leave init_from out.")
    if len(learner.setup.train.groups) != 1:
        raise InputError("A caption mean needs images of one size. Load the folder with aspect='crop'.")
    return net.text_encoder, net.caption_mean
