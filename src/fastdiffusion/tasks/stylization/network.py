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
from ...io import guarded, images, inputs
from ...io.inputs import ImageLike, as_tensor, opened, scaled
from ...nets.layers import drawn, records_config
from ...nets.unet import UNet
from ...noise import Stream, generator
from ...options import fill
from ...training.trainer import Part, train
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


PREVIEW = 100  # steps between previews


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


def train_style(style: ImageLike, data: Dataset | str, **options: Any) -> Stylizer:
    """Learn one style at all strengths, by the losses of :func:`stylize`; the same call again continues a run.

    Args:
        style: An image or its file.
        data: Photographs to practice on: a folder, or what ``data.load`` takes.
        options: The fields of :class:`TrainStyleOptions`.
    """
    chosen = fill(TrainStyleOptions, **options)
    device, seed, size = device_for(chosen.device), chosen.seed, chosen.size
    pattern = as_tensor(opened(style, "style"))
    pattern = scaled(pattern, size / min(pattern.shape[-2:]))
    mark = hashlib.sha256(images.to_uint8(pattern).numpy().tobytes()).hexdigest()[:16]
    data = squares(data, size)
    photos = selection.load_images(data, range(len(data)), (size, size))[0]
    made: Stylizer = drawn(lambda: Stylizer(NET, size), seed)
    made.mean, made.covariance = colors(pattern)
    made, pattern = made.to(device), pattern.to(device)
    with torch.no_grad():
        along = directions(pattern, None, seed)
        goal = statistics(pattern, along)

    def photo(rows: slice) -> Tensor:
        return images.to_tensor(photos[rows]).expand(-1, 3, -1, -1).to(device)

    def loss(step: int) -> Tensor:
        draw = generator(seed, Stream.STYLE_ROWS, step)
        total = torch.zeros((), device=device)
        for row in torch.randint(len(photos), (chosen.batch_size,), generator=draw).tolist():
            x, strength = photo(slice(row, row + 1)), float(torch.rand((), generator=draw))
            with torch.no_grad():
                base = recolored(x, colors(pattern), strength)
                target = statistics(x, along).towards(goal, strength)
            now = statistics(made(x, strength), along, None, base)
            total = total + (now.distance(target) + chosen.keep * now.away) / chosen.batch_size
        return total

    config = {**made.config, "style": mark, "data": data.fingerprint} | {
        name: getattr(chosen, name) for name in ("batch_size", "keep", "lr")
    }
    if chosen.optimizer != "adamw":  # the only one that there was: runs of then can be continued
        config["optimizer"] = chosen.optimizer
    for done in train({"net": Part(made, loss, chosen.optimizer, chosen.lr)}, config=config, **chosen.run()):
        if chosen.folder is not None and (done.step % PREVIEW == 0 or done.step == chosen.steps):
            with torch.no_grad():
                x = photo(slice(0, 4))
                rows = [x, *(torch.cat([made(v, s) for v in x.split(1)]) for s in (0.3, 0.6, 1.0))]
                inputs.sheet(torch.cat(rows).cpu(), Path(chosen.folder) / "preview.png", len(x))
    made.cpu().eval().requires_grad_(False)
    if chosen.folder is not None:
        save(made, Path(chosen.folder) / "style.safetensors")
    return made


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
