"""Train what reads noisy images: a classifier to guide by, and a predictor of the noise level. Pixels or latents.

    classifier = train_classifier("digits", steps=1000, folder="runs/classifier").model
    guided = guidance.classifier(model.denoise, classifier.log_prob, scale=2)

As in training a model, all that is random is a function of seed and step, so a run that was cut is resumed from its
folder's last checkpoint as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ... import data as datasets
from ...data import Dataset
from ...data.latents import Latents
from ...denoisers import Denoiser, expand
from ...errors import DataError, InputError, counted, warn
from ...io import guarded
from ...models import Model, native_denoiser
from ...nets import layers, presets
from ...nets.classifier import Classifier, LatentClassifier, NoiseLevel
from ...options import fill
from ...training.batches import Batches, TrainingBatch, title
from ...training.report import TrainingResult
from ...training.task import Part, Task, Updates, rows
from ...training.trainer import train
from ..loading import loaded
from .options import TrainClassifierOptions, TrainNoiseLevelOptions

FILE = "classifier.safetensors"
KINDS: dict[str, type[nn.Module]] = {
    "classifier": Classifier,
    "latent_classifier": LatentClassifier,
    "noise_level": NoiseLevel,
}
LEVELS = {"sigma_min": 0.02, "sigma_max": 80.0}  # noise too weak to see teaches nothing, and guides by sigma^2
LATENT_LEVELS = {"sigma_min": 0.1, "sigma_max": 100.0}  # between 1 and 30 classes of latents part
AnyClassifier = Classifier | LatentClassifier
Net = TypeVar("Net", Classifier, LatentClassifier, NoiseLevel)


def train_classifier(data: Dataset | str, **options: Any) -> TrainingResult[AnyClassifier]:
    """A classifier of noisy images at all noise levels (Dhariwal & Nichol 2021, app. H), for classifier guidance.

    Args:
        data: Labelled images, or latents in floating point; or what ``data.load`` takes.
        options: See :class:`TrainClassifierOptions`.

    Raises:
        DataError: Data without labels.
        CheckpointError: The folder holds another run.
    """
    chosen = fill(TrainClassifierOptions, **options)
    data = _labelled(datasets.load(data, chosen.size))
    levels = LEVELS
    if chosen.latents is not None:
        data, levels = of_latents(data, chosen)
    made = layers.drawn(_new(data, chosen), chosen.seed, 1)

    def loss(e: TrainingBatch) -> Tensor:
        assert e.cond is not None and e.cond.label is not None
        logits = made(e.x0 + expand(e.sigma, e.x0) * e.noise, e.sigma)
        return nn.functional.cross_entropy(logits, e.cond.label, ignore_index=-1)

    return TrainingResult.of(_trained(made, data, loss, chosen, levels), chosen.folder)


def _labelled(data: Dataset) -> Dataset:
    """The images that have a label: of the others nothing is learned."""
    labels = data.annotations(range(len(data))).labels.tolist() if data.classes else []
    rows = [i for i, label in enumerate(labels) if label >= 0]
    if not rows:
        raise DataError(f"{data.name} has no labels to learn. Sort the images into one folder per class.")
    if len(rows) == len(data):
        return data
    warn(f"Left out: {counted(len(data) - len(rows), 'image')} of {len(data):,}, without a label.")
    return datasets.Subset(data, rows)


def _new(data: Dataset, chosen: TrainClassifierOptions) -> Callable[[], AnyClassifier]:
    """What builds the classifier that ``chosen`` asks for."""
    if not 0 <= chosen.dropout < 1:
        raise InputError(f"dropout must be at least 0 and below 1, got {chosen.dropout}. Try 0.1.")
    classes, names = len(data.classes), list(data.classes) if chosen.latents is not None else ()
    if chosen.model is not None:
        return partial(Classifier.from_denoiser, _denoiser(chosen.model), classes)
    sigma_data = _sigma_data(data.split(chosen.holdout, chosen.seed)[0])
    net = chosen.net or ("unet-tiny" if chosen.latents is None else "mlp")
    if net == "mlp":
        return partial(
            LatentClassifier, list(data.shape), classes, sigma_data, dropout=chosen.dropout, names=list(data.classes)
        )
    return partial(Classifier, _keywords(net, data, chosen.dropout), classes, sigma_data, names=names)


def of_latents(data: Dataset, chosen: TrainClassifierOptions) -> tuple[Dataset, dict[str, float]]:
    """The data as a model denoises them, and its noise levels; raises InputError for a model of pixels."""
    if chosen.model is not None:
        raise InputError("model and latents are two ways: features of a U-Net, or a network of its own. Take one.")
    assert chosen.latents is not None
    of = loaded(chosen.latents)
    if of.autoencoder is None or len(of.shape) != 3:
        raise InputError("This model works on images and has no latents. Leave latents out.")
    levels = {
        "sigma_min": max(of.sigma_min, LATENT_LEVELS["sigma_min"]),
        "sigma_max": min(of.sigma_max, LATENT_LEVELS["sigma_max"]),
    }
    own = isinstance(of.autoencoder, nn.Module)
    return Latents(data, of.autoencoder, None if own else of.id, of.device), levels


def train_noise_level(data: Dataset | str, **options: Any) -> NoiseLevel:
    """A predictor of the noise level, for blind sampling; options as in :class:`TrainNoiseLevelOptions`."""
    chosen = fill(TrainNoiseLevelOptions, **options)
    data = datasets.load(data, chosen.size)
    made = layers.drawn(lambda: NoiseLevel(_keywords(chosen.net, data, 0.0)), chosen.seed, 1)

    def loss(e: TrainingBatch) -> Tensor:
        error = made(e.x0 + expand(e.sigma, e.x0) * e.noise).log() - e.sigma.log()
        return nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)

    return _trained(made, data, loss, chosen)


def _denoiser(model: Model | str | Path) -> Denoiser:
    """The net whose features are classified."""
    return native_denoiser(loaded(model), "A classifier on features")


@torch.no_grad()
def accuracy(
    net: AnyClassifier, data: Dataset, sigmas: Sequence[float] = (0.1, 0.5, 1.0, 2.0, 5.0), n: int = 500, seed: int = 0
) -> dict[float, float]:
    """Part of ``n`` images with a label that are classified correctly, at each noise level."""
    e = _examples(net, _labelled(data), n, seed)
    assert e.cond is not None and e.cond.label is not None
    right = {}
    for sigma in sigmas:
        answer = net(e.x0 + sigma * e.noise, e.sigma.new_full((len(e.x0),), sigma)).argmax(1)
        right[sigma] = float((answer == e.cond.label).float().mean())
    return right


@torch.no_grad()
def level_error(
    net: NoiseLevel, data: Dataset, sigmas: Sequence[float] = (0.02, 0.1, 0.5, 2.0, 10.0), n: int = 500, seed: int = 0
) -> dict[float, float]:
    """Root-mean-square relative error of the predicted noise level on ``n`` images, at each level."""
    e = _examples(net, data, n, seed)
    return {s: float((net(e.x0 + s * e.noise) / s - 1).square().mean().sqrt()) for s in sigmas}


def _examples(net: nn.Module, data: Dataset, n: int, seed: int) -> TrainingBatch:
    """``n`` images with their noise, where the net is."""
    device = next(net.parameters()).device
    return rows(Batches(data, min(n, len(data)), seed).draw(0), slice(None), device)


def save(net: AnyClassifier | NoiseLevel, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    guarded.save(next(name for name, known in KINDS.items() if type(net) is known), net, path)


def load(path: str | Path) -> AnyClassifier | NoiseLevel:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(path, KINDS, "train-classifier").requires_grad_(True)


# ---- training -----------------------------------------------------------------------------------------------------


def _keywords(net: str, data: Dataset, dropout: float) -> dict[str, Any]:
    return presets.unet(net) | {"in_channels": data.shape[0], "dropout": dropout}


def _sigma_data(data: Dataset) -> float:
    """Standard deviation of images in [-1, 1], or of latents as they are."""
    some = data.batch(data.groups[0][:512]).images
    return round(float(some.std()) if some.is_floating_point() else datasets.measure_sigma_data(data), 4)


def _trained(
    made: Net,
    data: Dataset,
    loss: Callable[[TrainingBatch], Tensor],
    chosen: TrainNoiseLevelOptions,
    levels: dict[str, float] = LEVELS,
) -> Net:
    """Train what asks for gradients, at ``levels``, evenly in log sigma; returns ``made`` in eval mode, on the CPU."""
    learned, held = data.split(chosen.holdout, chosen.seed)
    batches = Batches(learned, min(chosen.batch_size, len(learned)), chosen.seed, "uniform", levels)
    others = Batches(held, min(chosen.batch_size, len(held)), -1, "uniform", levels) if len(held) else None
    train(Task(
        {"net": Part(made, loss, chosen.optimizer, chosen.lr, weight_decay=0.01)}, batches.draw,
        {**made.config, "data": learned.fingerprint, "lr": chosen.lr}, title(learned), chosen.usual_examples,
        "" if isinstance(made, NoiseLevel) else "train-classifier", {"data": data.name},
        held_out=[others.draw(0)] if others else (), updates=Updates(decay=1.0),
        write=lambda folder: save(made, folder / FILE),
        file=FILE,
    ), chosen)  # fmt: skip
    return made.cpu()
