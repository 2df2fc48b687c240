"""A net that has learned one style's strokes and textures, for any strength in one evaluation."""

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

from ...data import DATASETS, Dataset
from ...io import guarded, images
from ...io.inputs import ImageLike, as_tensor, opened, scaled
from ...nets.adversarial import LOSSES, PatchDiscriminator, r1
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
from .statistics import Colors, colors, device_for, recolored

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
NOISE = 0.1  # of the net's input
GAMMA = 2.0  # of R1: with less the critic runs away, and its net answers with grain (at 0.5)
TONES = 8  # times smaller: where the content is kept


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

    The colors are moved in closed form and the net adds the rest, ``strength`` times: at 0 nothing happens. What is
    trained now is a :class:`StrokeStylizer`.

    Args:
        net: Keywords of ``UNet``; none with attention, whose cost would grow with the square of the pixels.
        size: Shorter side at which the style was looked at.
    """

    kind = "stylizer"  # of the file
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


class StrokeStylizer(Stylizer):
    """The same for strokes and textures, which have one strength: others are a part of the straight way to it.

    Where nothing in the image says where strokes go, noise does, the same in each call.
    """

    kind = "strokes"

    def forward(self, x: Float[Tensor, "1 3 h w"], strength: float) -> Float[Tensor, "1 3 h w"]:
        """The image in the style, or a part of the way to it."""
        base = recolored(x, Colors(self.mean, self.covariance), 1.0)
        return torch.lerp(x, self.styled(base, torch.randn(x.shape, generator=generator(0)).to(x)), strength)

    def styled(self, base: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Images in the style's colors, with its strokes."""
        return base + self.net(base + NOISE * noise, base.new_zeros(len(base)), None)


def train_style(style: ImageLike, data: Dataset | str, **options: Any) -> TrainingResult[StrokeStylizer]:
    """Learn one style; the same call again continues a run.

    A critic looks at squares of the style and of what the net makes, and learns to distinguish them by strokes and
    textures, 68 pixels at a time (Li & Wand 2016, "Precomputed Real-Time Texture Synthesis with Markovian Generative
    Adversarial Networks", arXiv:1604.04382); the tones of the content are kept.

    Args:
        style: An image or its file.
        data: Photographs to practice on: a folder, or what ``data.load`` takes.
        options: The fields of :class:`TrainStyleOptions`.
    """
    chosen = fill(TrainStyleOptions, **options)
    chosen = replace(chosen, device=str(device_for(chosen.device)))
    device, seed = place(chosen.device), chosen.seed
    pattern = as_tensor(opened(style, "style"))
    pattern = scaled(pattern, chosen.size / min(pattern.shape[-2:]))
    mark = hashlib.sha256(images.to_uint8(pattern).numpy().tobytes()).hexdigest()[:16]
    data = squares(data, None if isinstance(data, str) and data in DATASETS else chosen.size)  # these have their own
    side = min(chosen.crop, *data.shape[1:], *pattern.shape[-2:])
    made: StrokeStylizer = drawn(lambda: StrokeStylizer(NET, chosen.size), seed)
    made.mean, made.covariance = moved = colors(pattern)
    critic = drawn(lambda: PatchDiscriminator(3, width=32, depth=3), seed + 1)
    game, shown = LOSSES["logistic"], dict[int, Tensor]()

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
        source = generator(seed, Stream.STYLE_ROWS, step)
        rows = torch.randint(len(data), (chosen.batch_size,), generator=source).tolist()
        photos = images.to_tensor(data.batch(rows).images).expand(-1, 3, -1, -1)
        base = torch.cat([_cut(recolored(x, moved, 1.0), side, source) for x in photos.split(1)])
        real = torch.cat([_cut(pattern, side, source) for _ in rows])
        return base, real, torch.randn(base.shape, generator=source)

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        base, _, noise = batch
        fake = made.styled(base, noise)
        shown[0] = fake.detach()
        return game.generator(critic(fake)) + chosen.keep * (_tones(fake) - _tones(base)).square().mean()

    def critic_loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return game.discriminator(critic(batch[1]), critic(shown[0])) + GAMMA * r1(critic, batch[1])

    def preview() -> tuple[Tensor, int]:
        x = images.to_tensor(data.batch(range(min(4, len(data)))).images).expand(-1, 3, -1, -1).to(device)
        return torch.cat([x, *(torch.cat([made(v, s) for v in x.split(1)]) for s in (0.5, 1.0))]), len(x)

    optimizer = _without_momentum if chosen.optimizer == "adamw" else chosen.optimizer
    config = {**made.config, "style": mark, "data": data.fingerprint} | {
        name: getattr(chosen, name) for name in ("batch_size", "crop", "keep", "lr", "optimizer")
    }
    train(Task(
        {
            "net": Part(made, loss, optimizer, chosen.lr),
            "critic": Part(critic, critic_loss, optimizer, chosen.lr),
        },
        draw, config, title(data), chosen.usual_examples, "train-style", {"data": data.name},
        preview=preview, write=lambda folder: save(made, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return TrainingResult.of(made.cpu().requires_grad_(False), chosen.folder)


def _without_momentum(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """In a game, yesterday's direction leads astray (Karras et al. 2018, arXiv:1710.10196, app. A.1)."""
    return [torch.optim.AdamW(module.parameters(), lr, betas=(0.0, 0.99), weight_decay=0.0)]


def _cut(x: Float[Tensor, "1 3 h w"], side: int, source: torch.Generator) -> Float[Tensor, "1 3 s s"]:
    """A square of an image, anywhere."""
    top, left = (int(torch.randint(n - side + 1, (), generator=source)) for n in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def _tones(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
    """Without strokes: at an eighth of the size."""
    return F.interpolate(x, [max(n // TONES, 1) for n in x.shape[-2:]], mode="bicubic", antialias=True)


@torch.no_grad()
def feed_forward(original: Image.Image, stylizer: Stylizer, strength: float, size: int) -> Image.Image:
    """An image in the style that a net has learned, at most ``size`` pixels at once; where the net is."""
    x = as_tensor(original).to(stylizer.mean.device)
    x = scaled(x, size / max(x.shape[-2:])) if max(x.shape[-2:]) > size else x
    return enlarged(original, stylizer(x, strength).clamp(-1, 1)[0]) if strength else original


def save(stylizer: Stylizer, path: str | PathLike[str]) -> None:
    """Write one safetensors file, atomically."""
    guarded.save(stylizer.kind, stylizer, Path(path))


def load(path: str | PathLike[str]) -> Stylizer:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(Path(path), {net.kind: net for net in (Stylizer, StrokeStylizer)}, "train-style")
