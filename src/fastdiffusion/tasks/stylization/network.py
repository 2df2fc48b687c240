"""A net that has learned one style, for any strength in one evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ...data import Dataset, selection
from ...io import guarded, images
from ...io.inputs import ImageLike, as_tensor, opened, scaled
from ...nets.layers import drawn, records_config
from ...nets.unet import UNet
from ...noise import Stream, generator
from ...options import fill
from ...training.batches import title
from ...training.distributed import place
from ...training.report import TrainingResult
from ...training.task import Part, Task
from ...training.trainer import train
from ..translation.domains import squares
from .options import TrainStyleOptions
from .statistics import Colors, colors, device_for, directions, recolored, statistics

NET = {
    "patch": 2,
    "refine": 16,
    "width": 32,
    "multiples": [1, 2, 2],
    "blocks": [1, 1, 2],
    "attention": [],
    "updown": False,
}


FILE = "style.safetensors"


def enlarged(original: Image.Image, image: Float[Tensor, "3 h w"]) -> Image.Image:
    """The change that ``image`` is to ``original``, enlarged to the original's size; alpha stays what it was."""
    whole = as_tensor(original).to(image.device)
    if image.shape[-2:] != whole.shape[-2:]:
        small = F.interpolate(whole, image.shape[-2:], mode="bicubic", antialias=True).clamp(-1, 1)
        image = (whole + F.interpolate(image[None] - small, whole.shape[-2:], mode="bicubic"))[0]
    made = images.to_pil(image)
    if original.mode in ("LA", "RGBA"):
        made.putalpha(original.getchannel("A"))
    return made


class Stylizer(nn.Module):
    """One style, any strength, in one evaluation (Johnson et al. 2016, arXiv:1603.08155, with strength as an input).

    The colors are moved in closed form and the net adds the rest, ``strength`` times: at 0 nothing happens.

    Args:
        net: Keywords of ``UNet``; none with attention, whose cost would grow with the square of the pixels.
        size: Side of the images that it was trained on.
    """

    config: dict[str, Any]
    mean: Tensor
    covariance: Tensor

    @records_config
    def __init__(self, net: Mapping[str, Any] = NET, size: int = 128):
        super().__init__()
        self.net = UNet(**{**net, "in_channels": 3, "out_channels": 3})
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(3, dtype=torch.float64))

    def forward(self, x: Float[Tensor, "1 3 h w"], strength: float) -> Float[Tensor, "1 3 h w"]:
        """The image in the style."""
        base = recolored(x, Colors(self.mean, self.covariance), strength)
        return base + strength * self.net(base, x.new_full((len(x),), strength - 0.5), None)


def train_style(style: ImageLike, data: Dataset | str, **options: Any) -> TrainingResult[Stylizer]:
    """Learn one style at all strengths, by the losses of :func:`stylize`; the same call again continues a run.

    Args:
        style: An image or its file.
        data: Photographs to practice on: a folder, or what ``data.load`` takes.
        options: The fields of :class:`TrainStyleOptions`.
    """
    chosen = fill(TrainStyleOptions, **options)
    chosen = replace(chosen, device=str(device_for(chosen.device)))
    device, seed, size = place(chosen.device), chosen.seed, chosen.size
    pattern = as_tensor(opened(style, "style"))
    pattern = scaled(pattern, size / min(pattern.shape[-2:]))
    mark = hashlib.sha256(images.to_uint8(pattern).numpy().tobytes()).hexdigest()[:16]
    data = squares(data, size)
    photos = selection.load_images(data, range(len(data)), (size, size))[0]
    made: Stylizer = drawn(lambda: Stylizer(NET, size), seed)
    made.mean, made.covariance = colors(pattern)
    with torch.no_grad():
        along = directions(pattern.to(device), None, seed)
        goal, moved = statistics(pattern.to(device), along), colors(pattern.to(device))

    def draw(step: int) -> tuple[Tensor, Tensor]:
        source = generator(seed, Stream.STYLE_ROWS, step)
        some = torch.randint(len(photos), (chosen.batch_size,), generator=source)
        strengths = torch.stack([torch.rand((), generator=source) for _ in some])
        return images.to_tensor(photos[some]).expand(-1, 3, -1, -1), strengths

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        each = []
        for x, strength in zip(batch[0].split(1), batch[1].tolist(), strict=True):
            with torch.no_grad():
                base = recolored(x, moved, strength)
                target = statistics(x, along).towards(goal, strength)
            now = statistics(made(x, strength), along, None, base)
            each.append(now.distance(target) + chosen.keep * now.away)
        return torch.stack(each)

    def preview() -> tuple[Tensor, int]:
        x = images.to_tensor(photos[:4]).expand(-1, 3, -1, -1).to(device)
        return torch.cat([x, *(torch.cat([made(v, s) for v in x.split(1)]) for s in (0.3, 0.6, 1.0))]), len(x)

    config = {**made.config, "style": mark, "data": data.fingerprint} | {
        name: getattr(chosen, name) for name in ("batch_size", "keep", "lr", "optimizer")
    }
    train(Task(
        {"net": Part(made, loss, chosen.optimizer, chosen.lr)}, draw, config, title(data), chosen.usual_examples,
        "train-style", {"data": data.name},
        preview=preview, write=lambda folder: save(made, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return TrainingResult.of(made.cpu().requires_grad_(False), chosen.folder)


@torch.no_grad()
def feed_forward(original: Image.Image, stylizer: Stylizer, strength: float, size: int) -> Image.Image:
    """An image in the style that a net has learned, at most ``size`` pixels at once; where the net is."""
    x = as_tensor(original).to(stylizer.mean.device)
    x = scaled(x, size / max(x.shape[-2:])) if max(x.shape[-2:]) > size else x
    return enlarged(original, stylizer(x, strength).clamp(-1, 1)[0]) if strength else original


def save(stylizer: Stylizer, path: str | PathLike[str]) -> None:
    """Write one safetensors file, atomically."""
    guarded.save("stylizer", stylizer, Path(path))


def load(path: str | PathLike[str]) -> Stylizer:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(Path(path), {"stylizer": Stylizer}, "train-style")
