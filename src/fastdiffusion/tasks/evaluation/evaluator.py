"""The evaluator: does an image show what its prompt says? For tests and measurements, never optimized against.

    net = evaluator.load()
    retrieval.r_precision(net, images, names)   # R-precision among 100 names, with a 95 % interval

It was trained on all emoji, those included that the bundled generator was not trained on, with another seed, another
architecture and other augmentations than any model that it measures. It is meant for comparing models of such images,
and no measure of quality for others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ... import metrics
from ...data.emoji.holdout import COLORS
from ...errors import counted
from ...io import guarded
from ...io.checkpoints import save_tensors
from ...io.images import to_array, to_pil, to_tensor
from ...nets.evaluator import Evaluator
from ...nets.layers import drawn
from ...noise import generator
from ...options import fill
from ...training.task import Part, Task, Updates
from ...training.trainer import train
from .options import TrainEvaluatorOptions

SHIPPED = "judge.safetensors"


@torch.no_grad()
def best_names(evaluator: Evaluator, images: Tensor, k: int = 1, pool: Sequence[str] | None = None) -> list[list[str]]:
    """The ``k`` names that fit each image best, best first."""
    pool = list(evaluator.names if pool is None else pool)
    best = (metrics.features(evaluator.encode_image, images) @ evaluator.encode_text(pool).T).topk(k).indices
    return [[pool[i] for i in row] for row in best.tolist()]


def background_color(images: Tensor, colors: Mapping[str, tuple[int, int, int]] = COLORS) -> list[str]:
    """The background color of each image (n, 3, h, w): the nearest, in CIELAB, to the median of its rim."""
    x = to_tensor(images) if images.dtype == torch.uint8 else images.clamp(-1, 1)
    rim = max(x.shape[-1] // 24, 1)
    inside = torch.zeros(x.shape[-2:], dtype=torch.bool)
    inside[rim:-rim, rim:-rim] = True
    edge_colors = x[:, :, ~inside].median(2).values
    known = torch.tensor(list(colors.values())) / 127.5 - 1
    nearest = torch.cdist(_lab(edge_colors), _lab(known)).argmin(1)
    return [list(colors)[i] for i in nearest.tolist()]


def _lab(color: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """sRGB in [-1, 1] to CIELAB (D65), where distances are about those that eyes perceive."""
    srgb = (color + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = linear @ to_xyz.T / torch.tensor([0.9505, 1.0, 1.089])
    f = torch.where(t > (6 / 29) ** 3, t ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def fd_evaluator(evaluator: Evaluator, real: Tensor, fake: Tensor) -> float:
    """Frechet distance of two sets of images in the evaluator's features; compare at equal numbers of images only."""
    return metrics.frechet(metrics.features(evaluator, real), metrics.features(evaluator, fake))


# ---- files --------------------------------------------------------------------------------------------------------


def save(evaluator: Evaluator, path: str | Path) -> None:
    """Write one safetensors file in half precision, atomically."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in evaluator.state_dict().items()}
    save_tensors(path, tensors, {"kind": "judge", **evaluator.config})


def load(path: str | Path | None = None) -> Evaluator:
    """The shipped evaluator of emoji, or a file of :func:`save`, frozen; raises CheckpointError for any other."""
    place = Path(str(files("fastdiffusion") / "weights" / SHIPPED)) if path is None else path
    return guarded.load(place, {"judge": Evaluator}, "scripts/train-judge").float()


# ---- training ----------------------------------------------------------------------------------------------------


def train_evaluator(
    images: Tensor, names: Sequence[Sequence[str]], keys: Sequence[str] | None = None, **options: Any
) -> Evaluator:
    """Train an evaluator: at each step, which of *all* names is each image's (InfoNCE with every name in the sum)?

    Args:
        images: uint8, (n, 3 or 4, 64, 64); a fourth channel is alpha, and backgrounds then vary.
        names: All names of each image.
        keys: Images of equal keys (skin tones of one glyph) share one glyph's part of the steps.
        options: See :class:`TrainEvaluatorOptions`.
    """
    chosen = fill(TrainEvaluatorOptions, **options)
    named, seed = [(i, name) for i, own in enumerate(names) for name in own], chosen.seed
    owner = torch.tensor([i for i, _ in named])
    evaluator: Evaluator = drawn(lambda: Evaluator([own[0] for own in names]), seed, 1)
    evaluator.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    rows, starts = evaluator.rows([name for _, name in named])
    glyphs: dict[str, list[int]] = {}
    for i, key in enumerate(keys or map(str, range(len(images)))):
        glyphs.setdefault(key, []).append(i)
    share = torch.zeros(len(images))
    for members in glyphs.values():
        share[members] = len(members) ** -0.5  # between one share per glyph and one per image

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
        source, few = generator(seed, 2, step), len(images) < 4 * chosen.batch_size
        some = torch.multinomial(share, chosen.batch_size, replacement=few, generator=source)
        x, own = distort(images[some], source), owner[None, :] == some[:, None]
        target = torch.multinomial(own.float(), 1, generator=source)  # an image with two names: one, and not the other
        return x, own.scatter(1, target, False), target[:, 0]

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, others, target = batch
        everything = evaluator.encode_rows(rows.to(x.device), starts.to(x.device))
        logits = evaluator.log_scale.exp().clamp(max=60) * evaluator.encode_image(x) @ everything.T
        return F.cross_entropy(logits.masked_fill(others, -math.inf), target, reduction="none")

    part = Part(evaluator, loss, _decaying_matrices, chosen.lr)
    config = {"names": len(named), "images": len(images), "batch_size": chosen.batch_size, "lr": chosen.lr}
    what = counted(len(images), "image")
    train(Task({"evaluator": part}, draw, config, what, chosen.usual_examples, updates=Updates(decay=0.9)), chosen)
    evaluator.cpu().requires_grad_(False)
    some = images[torch.randperm(len(images), generator=generator(seed, 3))[:1000]]
    evaluator.unit.copy_(metrics.features(evaluator, on_background(some)).var(0).mean().sqrt())
    return evaluator


def _decaying_matrices(module: nn.Module, lr: float) -> list[Any]:
    """AdamW that decays matrices and kernels, and no bias, norm or temperature."""
    matrices, rest = ([p for p in module.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    return [torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr)]


def on_background(images: Tensor, colors: Tensor | None = None) -> Float[Tensor, "b 3 h w"]:
    """uint8 images, with or without alpha, in [-1, 1] on flat ``colors`` (b, 3); white by default."""
    x = to_tensor(images)
    if x.shape[1] == 3:
        return x
    alpha = (x[:, 3:] + 1) / 2
    background = torch.ones(len(x), 3) if colors is None else colors
    return x[:, :3] * alpha + background[:, :, None, None] * (1 - alpha)


def distort(images: Tensor, draw: torch.Generator, strength: float = 1.0) -> Float[Tensor, "b 3 h w"]:
    """The same things drawn otherwise: what an image means stays, nearly every pixel changes.

    Background, shift, size, slight turn, wobbling outlines, colors, blur, noise, JPEG. Never mirrored: arrows, clocks
    and flags would mean something else. ``strength`` 0.3 is what the evaluator's ceiling is measured at.
    """
    n, s = len(images), strength

    def uniform(*size: int) -> Tensor:
        return 2 * torch.rand(size, generator=draw) - 1

    white = torch.rand(n, 1, generator=draw) < 0.5
    x = on_background(images, torch.where(white, 1.0, uniform(n, 3)))
    # Where an output pixel comes from: turn, size and shift, and a smooth field of displacements.
    angle, size = 0.2 * s * uniform(n), 1.2 ** (s * uniform(n))
    rotation = torch.stack([angle.cos() * size, -angle.sin() * size, angle.sin() * size, angle.cos() * size], 1)
    theta = torch.cat([rotation.view(n, 2, 2), 0.12 * s * uniform(n, 2, 1)], 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    wobble = 0.04 * s * torch.randn(n, 2, 5, 5, generator=draw) * torch.rand(n, 1, 1, 1, generator=draw)
    grid = grid + F.interpolate(wobble, x.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    # Colors: a random matrix near 1 turns and fades them, then contrast and brightness.
    colors = torch.eye(3) + 0.08 * s * torch.randn(n, 3, 3, generator=draw)
    x = torch.einsum("bij,bjhw->bihw", colors * 1.25 ** (s * uniform(n, 1, 1)), x)
    x = x + 0.12 * s * uniform(n, 3, 1, 1) + 0.12 * s * uniform(n, 1, 1, 1)
    # Blur, in half of the images; noise in the half of all.
    width = 1.6 * s * torch.rand(n, generator=draw) * (torch.rand(n, generator=draw) < 0.5)
    x = _blurred(x, width)
    level = 0.2 * s * torch.rand(n, 1, 1, 1, generator=draw) * (torch.rand(n, 1, 1, 1, generator=draw) < 0.5)
    x = (x + level * torch.randn(x.shape, generator=draw)).clamp(-1, 1)
    quality = torch.randint(25, 90, (n,), generator=draw).tolist()
    for i in (torch.rand(n, generator=draw) < 0.15 * min(s, 1)).nonzero().flatten().tolist():
        x[i] = _jpeg(x[i], quality[i])
    return x


def _blurred(x: Tensor, width: Float[Tensor, " b"]) -> Tensor:
    """A Gaussian of each image's own standard deviation, in pixels."""
    n, c, h, w = x.shape
    at = torch.arange(-4, 5.0)
    taps = (-at.square() / (2 * width.clamp(min=0.05).square()[:, None])).softmax(1).repeat_interleave(c, 0)
    flat = F.pad(x, (4, 4, 4, 4), mode="replicate").reshape(1, n * c, h + 8, w + 8)
    flat = F.conv2d(flat, taps[:, None, :, None], groups=n * c)
    return F.conv2d(flat, taps[:, None, None, :], groups=n * c).reshape(n, c, h, w)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=quality)
    return to_tensor(to_array(Image.open(buffer).convert("RGB")))
