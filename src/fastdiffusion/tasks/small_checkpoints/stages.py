"""The stages in which a small checkpoint is trained, as tasks of the one trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Dataset
from ...io.images import as_input
from ...noise import Stream, generator
from ...training.batches import Batches, title
from ...training.options import RunOptions
from ...training.task import Part, Task, Updates

STAGES, DENOISER = "stages", "denoiser"  # the folder of the stages' own checkpoints and reports, and the last of them
EMA = 0.1  # relative length of the averages of the weights
NOISE = 0.03  # on latents while their decoder learns, as a part of their standard deviation
ALIKE = 8  # batches of captions that are sorted by length, and one taken: else half of all tokens were padding
HELD_OUT = 4  # batches of the validation loss


def autoencoder_task(
    net: nn.Module, data: Dataset, latents: Dataset | None, options: RunOptions, about: dict[str, Any]
) -> Task:
    """An autoencoder with ``encode`` and ``decode`` learns images, and where ``latents`` are given, to make these.

    Without them its own are kept near unit variance.
    """
    n, seed = min(options.batch_size, len(data)), options.seed
    order, scale = Batches(data, n, seed), 1.0 if latents is None else deviation(latents)[1]

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = order.order(step)
        images = as_input(data.batch(rows).images)
        wanted = torch.zeros(len(rows), 0) if latents is None else latents.batch(rows).images
        return images, wanted, torch.randn((len(rows), *shape), generator=generator(seed, Stream.POSTERIOR_NOISE, step))

    with torch.no_grad():
        encoder: Any = net
        shape = encoder.encode(as_input(data.batch([0]).images)).shape[1:]

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, wanted, noise = batch
        z = encoder.encode(images)
        if latents is None:
            made, own = encoder.decode(z + NOISE * noise), (z.square().mean((1, 2, 3)) - 1).square() * 0.1
        else:
            made, own = encoder.decode(wanted + NOISE * scale * noise), ((z - wanted) / scale).square().mean((1, 2, 3))
        error = made - images
        return own + 4 * error.square().mean((1, 2, 3)) + 0.5 * error.abs().mean((1, 2, 3))

    return Task(
        {"autoencoder": Part(net, loss, options.optimizer, options.lr)}, draw,
        {**about, "stage": "autoencoder", "data": data.fingerprint, "batch_size": n}, title(data),
        updates=Updates(net, (EMA,)),
    )  # fmt: skip


def caption_task(
    text_encoder: nn.Module,
    tokenizer: Any,
    head: nn.Module,
    latents: Dataset,
    options: RunOptions,
    about: dict[str, Any],
) -> Task:
    """A text encoder and a head learn the mean of the standardized latents of each caption."""
    mean, scale = deviation(latents)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, target = batch
        made = head(text_encoder(tokens).last_hidden_state)
        return F.mse_loss(made, (target - mean) / scale, reduction="none").mean((1, 2, 3))

    def stream(seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        def draw(step: int) -> tuple[Tensor, Tensor]:
            order, n = generator(seed, Stream.CAPTION_MEAN_ROWS, step), options.batch_size
            some = torch.randint(len(latents), (ALIKE * n,), generator=order).tolist()
            captions = latents.annotations(some, generator(seed, Stream.CAPTION_MEAN_CAPTION, step)).captions
            lengths = [len(row) for row in tokenizer(list(captions))["input_ids"]]
            start = n * int(torch.randint(ALIKE, (1,), generator=order))
            chosen = sorted(range(len(some)), key=lengths.__getitem__)[start : start + n]
            texts = [captions[i] for i in chosen]
            found = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            return found["input_ids"], latents.batch([some[i] for i in chosen]).images

        return draw

    both = nn.ModuleDict({"text_encoder": text_encoder, "head": head})
    return Task(
        {"captions": Part(both, loss, options.optimizer, options.lr)}, stream(options.seed),
        {**about, "stage": type(head).__name__, "data": latents.fingerprint, "batch_size": options.batch_size},
        title(latents), held_out=[stream(-1 - i)(0) for i in range(HELD_OUT)],
    )  # fmt: skip


def deviation(latents: Dataset, most: int = 4096) -> tuple[float, float]:
    """Mean and standard deviation of latents, over at most so many images."""
    rows = range(0, len(latents), max(len(latents) // most, 1))
    values = latents.batch(list(rows)).images
    return float(values.mean()), float(values.std())
