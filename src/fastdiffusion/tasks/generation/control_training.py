"""A ControlNet trained for a checkpoint, on images and the edges in them: sketches to images.

train_control("sd-small", data.load("emoji-scenes"), folder="runs/sketch", minutes=20)
sample("sd-small", "a red heart", control="runs/sketch/control:edges:photo.png")
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ... import losses, schedules
from ...adapters.conditioners import edge_map, new_control
from ...data import Dataset
from ...errors import InputError
from ...io.images import as_input
from ...models import Model
from ...noise import Stream, generator
from ...training.batches import Batches, title
from ...training.options import TrainingOptions
from ...training.task import Part, Task
from ...training.trainer import train
from ..loading import loaded

LOWEST = 0.3  # noise level, in units of the data's deviation: below it the edges are seen in the image anyway
DROPPED = 0.5  # part of the captions that is left out: what the edges show is then all that there is (sec. 3.4)
MOVED = 0.8  # part of the images that is moved: where all stand in the middle, a caption says what the edges say
SMALLEST = 0.5  # side of an image after a move, as part of what it was


def moved(images: Float[Tensor, "b c h w"], part: float, random: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Images of which ``part`` are scaled down and put at a random place, half of these mirrored.

    Around them is the color of their border, its median.
    """
    chances = torch.rand(len(images), 5, generator=random).tolist()
    return torch.stack([
        _placed(image, *place) if move < part else image for image, (move, *place) in zip(images, chances, strict=True)
    ])  # fmt: skip


def _placed(image: Tensor, mirror: float, shrink: float, across: float, down: float) -> Tensor:
    """One image, moved as four numbers in [0, 1) say."""
    height, width = image.shape[-2:]
    sides = [round(side * (1 - shrink * (1 - SMALLEST))) for side in (height, width)]
    small = functional.interpolate(image[None], sides, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    out = border.median(1).values[:, None, None].expand_as(image).clone()
    top, left = int(down * (height - sides[0] + 1)), int(across * (width - sides[1] + 1))
    out[:, top : top + sides[0], left : left + sides[1]] = small.flip(-1) if mirror < 0.5 else small
    return out


def control_task(model: Model, data: Dataset, options: TrainingOptions, move: float = MOVED) -> Task:
    """A task that trains ``model.modules["control"]`` of ``adapters.conditioners.new_control`` on edges of images.

    Args:
        model: Of ``new_control``.
        data: Images of its size, with captions.
        options: Of the training.
        move: Part of the images that is scaled down, put at a random place, and mirrored or not.
    """
    if not 0 <= move <= 1:
        raise InputError(f"move is a part of the images, from 0 to 1, got {move}. Try {MOVED}.")
    if model.image_shape[-3:] != (wanted := tuple(data.shape)):
        raise InputError(f"This model makes {model.image_shape} images, the data are {wanted}. Load them with size=.")
    seed, n = options.seed, min(options.batch_size, len(data))
    order, conditioner, net = Batches(data, n, seed), model.conditioner, model.modules["control"]
    assert conditioner is not None
    loss = partial(losses.denoising_loss, model.denoise, weight=losses.v)

    def draw(step: int) -> tuple[Any, ...]:
        batch = data.batch(order.order(step), generator(seed, Stream.CAPTION, step))
        even = schedules.stratified(n, generator(seed, Stream.BATCH_SIGMA, step))
        low, high = torch.tensor([LOWEST * model.sigma_data, model.sigma_max]).log()
        noise = torch.randn((n, *model.shape), generator=generator(seed, Stream.BATCH_NOISE, step))
        drop = (torch.rand(n, generator=generator(seed, Stream.COND_DROPOUT, step)) < DROPPED).tolist()
        captions = ["" if gone else text for gone, text in zip(drop, batch.captions, strict=True)]
        images = moved(as_input(batch.images), move, generator(seed, Stream.AUGMENT, step))
        return images, torch.lerp(low, high, even.float()).exp(), noise, captions

    def of_batch(batch: tuple[Tensor, Tensor, Tensor, list[str]]) -> Tensor:
        images, sigma, noise, captions = batch
        cond = conditioner.encode(captions, (images.shape[-2], images.shape[-1]))
        cond = replace(cond, extra={**cond.extra, "control": edge_map(images)})
        return loss(model.encode(images), sigma, noise, cond)

    def write(folder: Path) -> None:
        net.save_pretrained(folder / "control")  # type: ignore[operator]

    for name, module in model.modules.items():
        module.requires_grad_(name == "control")
    return Task(
        {"control": Part(net, of_batch, options.optimizer, options.lr)}, draw,
        {"model": model.id, "data": data.fingerprint, "batch_size": n, "move": move}, title(data),
        modules=list(model.modules.values()), write=write,
    )  # fmt: skip


def train_control(
    model: Model | str | Path, data: Dataset, start: str | Path | None = None, move: float = MOVED, **options: Any
) -> Path:
    """Train a ControlNet for a model of Stable Diffusion on the edges of images; the folder that it is in.

    Args:
        model: A checkpoint of Stable Diffusion 1, 2 or XL, in float32; its own weights stay as they are.
        data: Images of its size, with captions.
        start: The folder of a ControlNet to begin with, such as one for an earlier version of this checkpoint.
        move: Part of the images that is scaled down (to half at least), put at a random place on the color of its
            border, and mirrored or not, so that the edges say what no caption does: where, how large, which way round.
        options: See :class:`TrainingOptions <fastdiffusion.training.options.TrainingOptions>`: folder, minutes, steps,
            lr, batch_size, ... The same call again goes on where the last one stopped.
    """
    chosen = TrainingOptions(**{"optimizer": "muon", "lr": 5e-3, "batch_size": 16, **options})
    if chosen.folder is None:
        raise InputError("A training needs a folder. Example: folder='runs/sketch'.")
    train(control_task(new_control(loaded(model), start), data, chosen, move), chosen)
    return Path(chosen.folder) / "control"
