"""A net that has learned one style, for any strength in one evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ...data import Dataset, selection
from ...errors import InputError
from ...io import guarded, images, inputs
from ...io.inputs import ImageLike, as_tensor, opened, scaled
from ...nets.layers import drawn, records_config
from ...nets.unet import UNet
from ...noise import generator
from ...training.trainer import Part, train
from ..translation.domains import squares
from .statistics import Colors, colors, directions, recolored, statistics

NET = {
    "patch": 2,
    "refine": 16,
    "width": 32,
    "multiples": [1, 2, 2],
    "blocks": [1, 1, 2],
    "attention": [],
    "updown": False,
}


ROWS, PREVIEW = 80, 100  # what a generator is for; steps between previews


def _check(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be from 0 to 1, got {strength:g}. Try 0.6.")


def enlarged(original: Image.Image, image: Float[Tensor, "3 h w"]) -> Image.Image:
    """The change that ``image`` is to ``original``, enlarged to the original's size; alpha stays what it was."""
    whole = as_tensor(original)
    if image.shape[-2:] != whole.shape[-2:]:
        small = F.interpolate(whole, image.shape[-2:], mode="bicubic", antialias=True).clamp(-1, 1)
        image = (whole + F.interpolate(image[None] - small, whole.shape[-2:], mode="bicubic"))[0]
    made = images.to_pil(image)
    if original.mode in ("LA", "RGBA"):
        made.putalpha(original.getchannel("A"))
    return made


class Stylizer(nn.Module):
    """One style, any strength, in one call (Johnson et al. 2016, arXiv:1603.08155, with the strength as an input).

    The colors are moved in closed form and the net adds the rest, ``strength`` times: at 0 nothing happens.

    Args:
        net: Keywords of ``UNet``; none with attention, whose cost would grow with the square of the pixels.
        size: Side of the pictures that it learned on.
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
        """The picture in the style."""
        base = recolored(x, Colors(self.mean, self.covariance), strength)
        return base + strength * self.net(base, x.new_full((len(x),), strength - 0.5), None)


def train_style(
    style: ImageLike,
    data: Dataset | str,
    steps: int = 400,
    size: int = 128,
    batch_size: int = 2,
    keep: float = 0.6,
    lr: float = 2e-3,
    folder: str | Path | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> Stylizer:
    """Learn one style at all strengths, by the losses of :func:`stylize`; again, to go on.

    Args:
        style: A picture or its file.
        data: Photographs to practice on: a folder, or what ``data.load`` takes.
        steps: Of training.
        size: Side of the practice pictures in pixels, and the shorter side at which the style is looked at.
        batch_size: Pictures a step.
        keep: What the content counts against the style.
        lr: Highest learning rate.
        folder: Where checkpoints and previews go; the same call goes on from there.
        seed: Of everything.
        fresh: Forget what the folder holds.
    """
    pattern = as_tensor(opened(style, "style"))
    pattern = scaled(pattern, size / min(pattern.shape[-2:]))
    data = squares(data, size)
    photos = selection.load_images(data, range(len(data)), (size, size))[0]
    made: Stylizer = drawn(lambda: Stylizer(NET, size), seed)
    made.mean, made.covariance = colors(pattern)
    with torch.no_grad():
        along = directions(pattern, None, seed)
        goal = statistics(pattern, along)

    def loss(step: int) -> Tensor:
        draw = generator(seed, ROWS, step)
        total = torch.zeros(())
        for row in torch.randint(len(photos), (batch_size,), generator=draw).tolist():
            x, strength = (
                images.to_tensor(photos[row : row + 1]).expand(-1, 3, -1, -1),
                float(torch.rand((), generator=draw)),
            )
            with torch.no_grad():
                base = recolored(x, colors(pattern), strength)
                target = statistics(x, along).towards(goal, strength)
            now = statistics(made(x, strength), along, None, base)
            total = total + (now.distance(target) + keep * now.away) / batch_size
        return total

    mark = hashlib.sha256(images.to_uint8(pattern).numpy().tobytes()).hexdigest()[:16]
    config = {**made.config, "style": mark, "data": data.fingerprint, "batch_size": batch_size, "keep": keep, "lr": lr}
    run = train({"net": Part(made, loss, lr=lr)}, steps, config, folder, seed, fresh=fresh, precision="float32")
    for done in run:
        if folder is not None and (done.step % PREVIEW == 0 or done.step == steps):
            with torch.no_grad():
                x = images.to_tensor(photos[:4]).expand(-1, 3, -1, -1)
                rows = [x, *(torch.cat([made(v, s) for v in x.split(1)]) for s in (0.3, 0.6, 1.0))]
                inputs.sheet(torch.cat(rows), Path(folder) / "preview.png", len(x))
    made.eval().requires_grad_(False)
    if folder is not None:
        save(made, Path(folder) / "style.safetensors")
    return made


@torch.no_grad()
def _feed_forward(original: Image.Image, stylizer: Stylizer, strength: float, size: int) -> Image.Image:
    _check(strength)
    x = as_tensor(original)
    x = scaled(x, size / max(x.shape[-2:])) if max(x.shape[-2:]) > size else x
    return enlarged(original, stylizer(x, strength).clamp(-1, 1)[0]) if strength else original


def save(stylizer: Stylizer, path: str | PathLike[str]) -> None:
    """Write one safetensors file, atomically."""
    guarded.save("stylizer", stylizer, Path(path))


def load(path: str | PathLike[str]) -> Stylizer:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(Path(path), {"stylizer": Stylizer}, "train-style")
