"""Any model as a task: its own modules, trained by its own loss, whoever built them.

train(model_task(model, data, options), options)      # options: TrainingOptions(steps=1000, folder="runs/one")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from .options import TrainingOptions
from .task import Part, Task, Updates

DROPPED = 0.1  # part of the captions that is left out, for guidance


def model_task(
    model: Model,
    data: Dataset,
    options: TrainingOptions,
    trained: Sequence[str] = ("net",),
    write: Callable[[Path], None] | None = None,
    encode: Callable[[Tensor], Tensor] | None = None,
    loss: Callable[..., Tensor] | None = None,
    sigmas: Callable[[Tensor], Tensor] | None = None,
    ema: Sequence[float] = (),
    updates: Updates | None = None,
) -> Task:
    """A task that trains a model's modules in place by ``model.loss``; without one, by the error of the noise.

    Images are encoded and captions are read as they come, by the model's own autoencoder and conditioner.

    Args:
        model: Of this package or of another family.
        data: Images of the model's size, with captions where it takes prompts, with its classes where it has some.
        options: Of the run.
        trained: Names in ``model.modules``; all others are left as they are.
        write: Writes the result into the run's folder; without it the checkpoints alone are kept.
    """
    for name in trained:
        if name not in model.modules:
            raise unknown("module of this model", name, model.modules)
    if encode is None and model.image_shape[-3:] != (wanted := tuple(data.shape)):
        raise InputError(
            f"This model makes {model.image_shape} images, the data are {wanted}. Load the data with size=."
        )
    seed, n = options.seed, min(options.batch_size, len(data))
    order = Batches(data, n, seed)
    loss = loss or model.loss or partial(losses.denoising_loss, model.denoise, weight=losses.noise)

    def draw(step: int) -> tuple[Any, ...]:
        batch = data.batch(order.order(step), generator(seed, Stream.CAPTION, step))
        even = schedules.stratified(n, generator(seed, Stream.BATCH_SIGMA, step))
        sigma = sigmas(even) if sigmas is not None else schedules.lognormal(even) * 2 * model.sigma_data
        sigma = sigma.clamp(model.sigma_min, model.sigma_max)
        noise = torch.randn((n, *model.shape), generator=generator(seed, Stream.BATCH_NOISE, step))
        dropped = (torch.rand(n, generator=generator(seed, Stream.COND_DROPOUT, step)) < DROPPED).tolist()
        captions = ["" if drop else text for drop, text in zip(dropped, batch.captions, strict=True)]
        labels = [-1 if drop else int(label) for drop, label in zip(dropped, batch.labels, strict=True)]
        return as_input(batch.images) if encode is None else batch.images, sigma, noise, captions, labels

    reads = any(name.startswith("text_encoder") for name in trained)

    def of_batch(batch: tuple[Tensor, Tensor, Tensor, list[str], list[int]]) -> Tensor:
        images, sigma, noise, captions, labels = batch
        cond = model.cond(labels) if model.classes else None
        if model.conditioner is not None:
            size = model.image_shape[-2:]
            cond = model.conditioner.condition(captions, size) if reads else model.conditioner.encode(captions, size)
        return loss((encode or model.encode)(images), sigma, noise, cond)

    for name, module in model.modules.items():
        module.requires_grad_(name in trained)
    module = nn.ModuleDict({name: model.modules[name] for name in trained})
    part = Part(module, of_batch, options.optimizer, options.lr)
    return Task(
        {"model": part}, draw, {"model": model.id, "trained": list(trained), "data": data.fingerprint, "batch_size": n},
        title(data), modules=list(model.modules.values()), write=write,
        updates=updates or Updates(module if ema else None, ema),
    )  # fmt: skip
