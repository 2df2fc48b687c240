"""Any model as a task: its own modules, trained by its own loss, whoever built them.

train(model_task(model, data, options), options)      # options: TrainingOptions(steps=1000, folder="runs/one")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses, schedules
from ..data import Dataset
from ..errors import InputError, unknown
from ..io.images import as_input
from ..models import Model
from ..noise import Stream, generator
from .batches import Batches, title
from .options import RunOptions
from .task import Part, Task, Updates
from .trainer import Trainer

DROPPED = 0.1  # part of the captions that is left out, for guidance


@dataclass(frozen=True)
class Denoising:
    """How a model is trained to denoise, where that differs from what is usual.

    Attributes:
        sigmas: From numbers that are uniform in (0, 1) to noise levels; by default lognormal around the data's scale.
        loss: As a ``Model``'s; by default the model's own, else the error of the noise.
        encode: What makes latents of the data's numbers; by default the data are images, for the model's autoencoder.
        ema: Relative lengths of averages of the weights; the result is the last one.
        decay: Last part of the run in which the learning rate falls to 0.
    """

    sigmas: Callable[[Tensor], Tensor] | None = None
    loss: Callable[..., Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    ema: Sequence[float] = ()
    decay: float = 0.5


def model_task(
    model: Model,
    data: Dataset,
    options: RunOptions,
    trained: Sequence[str] = ("net",),
    write: Callable[[Path], Mapping[str, Any] | None] | None = None,
    denoising: Denoising | None = None,
) -> Task:
    """A task that trains a model's modules in place by ``model.loss``; without one, by the error of the noise.

    Images are encoded and captions are read as they come, by the model's own autoencoder and conditioner.

    Args:
        model: Of this package or of another family.
        data: Images of the model's size, with captions where it takes prompts, with its classes where it has some.
        options: Of the run.
        trained: Names in ``model.modules``; all others are left as they are. Text encoders are trained through the
            ``condition`` of the model's conditioner.
        write: Writes the result into the run's folder; without it the checkpoints alone are kept.
        denoising: What differs from the usual.
    """
    chosen = denoising or Denoising()
    for name in trained:
        if name not in model.modules:
            raise unknown("module of this model", name, model.modules)
    if chosen.encode is None and model.image_shape[-3:] != (wanted := tuple(data.shape)):
        raise InputError(
            f"This model makes {model.image_shape} images, the data are {wanted}. Load the data with size=."
        )
    seed, n, size = options.seed, min(options.batch_size, len(data)), model.image_shape[-2:]
    order = Batches(data, n, seed)
    loss = chosen.loss or model.loss or partial(losses.denoising_loss, model.denoise, weight=losses.noise)

    def draw(step: int) -> tuple[Any, ...]:
        batch = data.batch(order.order(step), generator(seed, Stream.CAPTION, step))
        even = schedules.stratified(n, generator(seed, Stream.BATCH_SIGMA, step))
        sigma = schedules.lognormal(even) * 2 * model.sigma_data if chosen.sigmas is None else chosen.sigmas(even)
        noise = torch.randn((n, *model.shape), generator=generator(seed, Stream.BATCH_NOISE, step))
        dropped = (torch.rand(n, generator=generator(seed, Stream.COND_DROPOUT, step)) < DROPPED).tolist()
        captions = ["" if drop else text for drop, text in zip(dropped, batch.captions, strict=True)]
        labels = [-1 if drop else int(label) for drop, label in zip(dropped, batch.labels, strict=True)]
        return as_input(batch.images), sigma.clamp(model.sigma_min, model.sigma_max), noise, captions, labels

    conditioner: Any = model.conditioner
    learns = any(name.startswith("text_encoder") for name in trained)
    encode: Any = conditioner and (conditioner.condition if learns else conditioner.encode)  # the former has gradients

    def of_batch(batch: tuple[Tensor, Tensor, Tensor, list[str], list[int]]) -> Tensor:
        images, sigma, noise, captions, labels = batch
        cond = model.cond(labels) if model.classes else None
        cond = cond if encode is None else encode(captions, size)
        return loss((chosen.encode or model.encode)(images), sigma, noise, cond)

    for name, module in model.modules.items():
        module.requires_grad_(name in trained)
    learned = nn.ModuleDict({name: model.modules[name] for name in trained})
    identity = {"model": model.id, "trained": list(trained), "data": data.fingerprint, "batch_size": n}
    return Task(
        {"model": Part(learned, of_batch, options.optimizer, options.lr)}, draw, identity, title(data),
        modules=list(model.modules.values()), write=write,
        updates=Updates(learned if chosen.ema else None, chosen.ema, decay=chosen.decay),
    )  # fmt: skip


def averaging(task: Task, options: RunOptions) -> Trainer:
    """A run of a task whose ``write`` sees the averaged weights in the place of the last ones."""
    length, write = task.updates.ema[-1], task.write

    def write_averaged(folder: Path) -> Mapping[str, Any] | None:
        assert trainer.average is not None
        with trainer.average.applied(length):
            return None if write is None else write(folder)

    trainer = Trainer(replace(task, write=write_averaged), options)
    return trainer


def settle(trainer: Trainer) -> None:
    """Let the averaged weights be the module's own, after a run of :func:`averaging`."""
    average = trainer.average
    assert average is not None
    with torch.no_grad():
        for name, weight in average.weights(float(trainer.task.updates.ema[-1])).items():
            average.params[name].copy_(weight)
