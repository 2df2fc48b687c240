"""Train what reads noisy pictures: a classifier to guide by, and a judge of the noise level. Pixels or latents.

    judge = train_classifier("digits", steps=1000, folder="runs/classifier")
    guided = guidance.classifier(model.denoise, judge.log_prob, scale=2)

As in training a model, all that is random is a function of seed and step, so a run that was cut goes on from its
folder's last checkpoint as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import data as datasets
from ..data import Dataset
from ..denoisers import expand
from ..errors import DataError, unknown
from ..io import guarded
from ..models import Model, native_denoiser
from ..models.registry import loaded
from ..nets import presets
from ..nets.classifier import Classifier, NoiseLevel
from ..noise import generator
from ..training.batches import Batches, TrainingBatch
from ..training.trainer import Part, train

KINDS: dict[str, type[nn.Module]] = {"classifier": Classifier, "noise_level": NoiseLevel}
LEVELS = {"sigma_min": 0.02, "sigma_max": 80.0}  # noise too weak to see teaches nothing, and guides by sigma^2
Net = TypeVar("Net", Classifier, NoiseLevel)


def train_classifier(
    data: Dataset | str,
    steps: int = 1000,
    model: Model | str | Path | None = None,
    net: str = "unet-tiny",
    folder: str | Path | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    dropout: float = 0.1,
    seed: int = 0,
) -> Classifier:
    """A classifier of noisy pictures at all noise levels (Dhariwal & Nichol 2021, app. H), for classifier guidance.

    Args:
        data: Labelled pictures, or latents in floating point; or what ``data.load`` takes.
        steps: Of training.
        model: Read the middle of this model's U-Net and train only the head: cheap, often as good, and for the guide
            ``middle``.
        net: Otherwise, a U-Net's name in ``nets.PRESETS``, of which half is taken.
        folder: Where checkpoints go; the same call goes on from there.
        batch_size: Pictures a step.
        lr: Highest learning rate; it falls to 0.
        dropout: Against memorizing.
        seed: Of everything.

    Raises:
        DataError: Data without labels.
        CheckpointError: The folder holds another run.
    """
    data = datasets.load(data) if isinstance(data, str) else data
    if not data.classes:
        raise DataError(f"{data.name} has no labels to learn. Sort the pictures into one folder per class.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, 1).initial_seed() % 2**63)
        if model is not None:
            made = Classifier.from_denoiser(
                native_denoiser(loaded(model), "A classifier on features"), len(data.classes)
            )
        else:
            made = Classifier(_keywords(net, data, dropout), len(data.classes), _sigma_data(data))

    def loss(e: TrainingBatch) -> Tensor:
        assert e.cond is not None and e.cond.label is not None
        logits = made(e.x0 + expand(e.sigma, e.x0) * e.noise, e.sigma)
        return nn.functional.cross_entropy(logits, e.cond.label, ignore_index=-1)

    return _trained(made, data, loss, steps, batch_size, lr, folder, seed)


def train_noise_level(
    data: Dataset | str,
    steps: int = 500,
    net: str = "unet-tiny",
    folder: str | Path | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
) -> NoiseLevel:
    """A predictor of the noise level, for blind sampling; arguments as in :func:`train_classifier`."""
    data = datasets.load(data) if isinstance(data, str) else data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, 1).initial_seed() % 2**63)
        made = NoiseLevel(_keywords(net, data, 0.0))

    def loss(e: TrainingBatch) -> Tensor:
        error = made(e.x0 + expand(e.sigma, e.x0) * e.noise).log() - e.sigma.log()
        return nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)

    return _trained(made, data, loss, steps, batch_size, lr, folder, seed)


@torch.no_grad()
def accuracy(
    net: Classifier, data: Dataset, sigmas: Sequence[float] = (0.1, 0.5, 1.0, 2.0, 5.0), n: int = 500, seed: int = 0
) -> dict[float, float]:
    """Part of ``n`` pictures whose class is told rightly, at each noise level."""
    e = Batches(data, min(n, len(data)), seed).draw(0)
    assert e.cond is not None and e.cond.label is not None
    right = {}
    for sigma in sigmas:
        answer = net(e.x0 + sigma * e.noise, torch.full((len(e.x0),), sigma)).argmax(1)
        right[sigma] = float((answer == e.cond.label).float().mean())
    return right


@torch.no_grad()
def level_error(
    net: NoiseLevel, data: Dataset, sigmas: Sequence[float] = (0.02, 0.1, 0.5, 2.0, 10.0), n: int = 500, seed: int = 0
) -> dict[float, float]:
    """Root-mean-square relative error of the predicted noise level on ``n`` pictures, at each level."""
    e = Batches(data, min(n, len(data)), seed).draw(0)
    return {s: float((net(e.x0 + s * e.noise) / s - 1).square().mean().sqrt()) for s in sigmas}


def save(net: Classifier | NoiseLevel, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    guarded.save(next(name for name, known in KINDS.items() if type(net) is known), net, path)


def load(path: str | Path) -> Classifier | NoiseLevel:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(path, KINDS, "train-classifier").requires_grad_(True)


# ---- the loop -----------------------------------------------------------------------------------------------------


def _keywords(net: str, data: Dataset, dropout: float) -> dict[str, Any]:
    preset = presets.PRESETS.get(net, {})
    if preset.get("name") != "unet":
        raise unknown("U-Net", net, [name for name, spec in presets.PRESETS.items() if spec["name"] == "unet"])
    channels = data.shape[0]
    return {k: v for k, v in preset.items() if k != "name"} | {"in_channels": channels, "dropout": dropout}


def _sigma_data(data: Dataset) -> float:
    """Standard deviation of pictures in [-1, 1], or of latents as they are."""
    some = data.batch(data.groups[0][:512]).images
    return round(float(some.std()) if some.is_floating_point() else datasets.measure_sigma_data(data), 4)


def _trained(
    made: Net,
    data: Dataset,
    loss: Callable[[TrainingBatch], Tensor],
    steps: int,
    batch_size: int,
    lr: float,
    folder: str | Path | None,
    seed: int,
) -> Net:
    """Train what asks for gradients, at ``LEVELS``, evenly in log sigma; returns ``made`` in eval mode."""
    examples = Batches(data, min(batch_size, len(data)), seed, "uniform", LEVELS)
    part = Part(made, lambda step: loss(examples.draw(step)), lr=lr, weight_decay=0.01)
    config = {**made.config, "data": data.fingerprint, "lr": lr}
    for _ in train({"net": part}, steps, config, folder, seed, decay=1.0, precision="float32"):
        pass
    return made
