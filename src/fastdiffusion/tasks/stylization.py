"""Style transfer: one picture's content in another one's colors and textures.

    stylize("photo.jpg", "painting.jpg", strength=0.6).save("out.png")

A style is what remains of a picture's features when their places are forgotten: their Gram matrices (Gatys et al.
2016) and their distribution (Heitz et al. 2021). ``strength`` is a place on the way, in both, from the content's own
style to the other one: at 0 the content itself is the optimum, and the result.

Three ways: optimization of the pixels, for any two pictures; a net that has learned one style (:func:`train_style`), in
one call; and attention to the style picture inside a diffusion model (:func:`shared_attention`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from .. import images, metrics, samplers, schedules
from ..data import Dataset
from ..denoisers import expand
from ..errors import InputError
from ..guidance import guidance
from ..models import Model
from ..nets import layers
from ..nets.perceptual import Maps
from ..nets.unet import UNet
from ..noise import generator, initial
from ..types import Cond, Denoise
from . import parts
from .files import fit_image, loaded
from .loop import Part, train
from .parts import LEAST, ImageLike, as_tensor, opened, scaled
from .piles import squares
from .styles import Colors, colors, directions, recolored, statistics
from .translation import invert

COARSE = 96  # longest side of the coarsest level: there a feature sees two thirds of the picture
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
RATE, OCTAVES = 0.01, 5  # Adam's: how far a layer of the pyramid moves in a step; how many layers


class StyleStep(NamedTuple):
    """Where a run is: ``done`` of ``of`` steps, and the picture so far in [-1, 1], at the size of its level."""

    done: int
    of: int
    image: Float[Tensor, "3 h w"]


def stylize(
    content: ImageLike,
    style: ImageLike | Stylizer,
    strength: float = 0.6,
    size: int = 768,
    steps: int = 80,
    keep: float = 0.6,
    net: Maps | None = None,
    model: Model | str | Path | None = None,
    seed: int = 0,
) -> Image.Image:
    """``content`` in the style of another picture.

    Args:
        content: A picture of any size, its file, or (c, h, w) in [-1, 1].
        style: Likewise, and pixels are optimized from coarse to fine; or what :func:`train_style` made, or its file,
            which takes one call.
        strength: 0 returns the content, 1 has all of the style.
        size: Longest side at which pixels are optimized; of a larger picture, the change is enlarged. Memory is that
            of the pictures and one tile; time grows with the number of pixels.
        steps: At each level; a third of them at the finest.
        keep: What the content counts, where the style counts 1.
        net: Features to compare in; by default the bundled ones.
        model: A diffusion model with attention, to do it inside of (:func:`stylize_inside`) at its own size.
        seed: Of the directions that features are looked along, or of the style picture's noise.

    Raises:
        InputError: A strength out of range, or a picture of less than 16 pixels a side.
        DataError: A file that is no picture.
    """
    original, image = opened(content, "content"), None
    if isinstance(style, str | PathLike) and str(style).endswith(".safetensors"):
        style = load(style)
    if isinstance(style, Stylizer):
        return _feed_forward(original, style, strength, size)
    if model is not None:
        ready = loaded(model)
        shape = ready.image_shape
        x, like = (fit_image(p, shape)[None] for p in (original, opened(style, "style")))
        return images.to_pil(stylize_inside(ready, x, like, strength, steps, seed=seed)[0])
    run = stylize_steps(original, style, strength, size, steps, keep, net, seed)
    for step in (bar := tqdm(run, "stylizing", disable=None, leave=False)):
        bar.total, image = step.of, step.image
    assert image is not None
    return enlarged(original, image) if strength else original


def stylize_steps(
    content: ImageLike,
    style: ImageLike,
    strength: float = 0.6,
    size: int = 768,
    steps: int = 80,
    keep: float = 0.6,
    net: Maps | None = None,
    seed: int = 0,
) -> Iterator[StyleStep]:
    """The same, step by step for a live preview; to stop is to stop iterating."""
    _check(strength)
    if size < LEAST or steps < 1 or not keep >= 0:
        raise InputError(
            f"size must be at least {LEAST}, steps at least 1 and keep at least 0, got {size}, {steps} and {keep:g}."
        )
    levels = pyramid(as_tensor(opened(content, "content")), size)
    pattern = as_tensor(opened(style, "style"))
    plan = [steps] * (len(levels) - 1) + [steps if len(levels) == 1 else max(steps // 3, 1)]
    change, done = torch.zeros_like(levels[0]), 0
    for at, budget in zip(levels, plan, strict=True):
        like = scaled(pattern, (at[0, 0].numel() / pattern[0, 0].numel()) ** 0.5)
        at = recolored(at, colors(like), strength)
        start = at + F.interpolate(change, at.shape[-2:], mode="bicubic")
        for x in _optimized(start, at, like, strength, budget, keep, net, seed) if strength else [at] * budget:
            change, done = x - at, done + 1
            yield StyleStep(done, sum(plan), x[0])


def _optimized(
    x: Tensor, content: Tensor, style: Tensor, strength: float, steps: int, keep: float, net: Maps | None, seed: int
) -> Iterator[Tensor]:
    """Adam on the pixels of one level."""
    with torch.no_grad():
        along = directions(content, net, seed)
        goal = statistics(content, along, net).towards(statistics(style, along, net), strength)
    # Not single pixels are moved but a pyramid of patches: smooth changes come first, and noise hardly at all.
    sizes = [[math.ceil(n / 2**i) for n in x.shape[-2:]] for i in range(OCTAVES)]
    layers = [torch.zeros(1, 3, *size, device=x.device, requires_grad=True) for size in sizes]
    optimizer = torch.optim.Adam(layers, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps) ** 0.5
        optimizer.zero_grad()
        with torch.enable_grad():
            change = layers[-1]
            for layer in reversed(layers[:-1]):
                change = layer + F.interpolate(change, layer.shape[-2:], mode="bilinear")
            moved = (x + change).clamp(-1, 1)
            now = statistics(moved, along, net, content)
            (now.distance(goal) + keep * now.away).backward()
        optimizer.step()
        yield moved.detach()


def _check(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be from 0 to 1, got {strength:g}. Try 0.6.")


def pyramid(x: Tensor, size: int) -> list[Tensor]:
    """The picture at most ``size`` on its longest side, and before it its halves down to about ``COARSE``."""
    finest = min(size / max(x.shape[-2:]), 1.0)
    count = max(round(math.log2(finest * max(x.shape[-2:]) / COARSE)), 0) + 1
    factors = [finest / 2**i for i in reversed(range(count))]
    return [x if factor == 1 else scaled(x, factor) for factor in factors]


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


# ---- a net that has learned one style ------------------------------------------------------------------------------


class Stylizer(nn.Module):
    """One style, any strength, in one call (Johnson et al. 2016, arXiv:1603.08155, with the strength as an input).

    The colors are moved in closed form and the net adds the rest, ``strength`` times: at 0 nothing happens.

    Args:
        net: Keywords of ``UNet``; none with attention, whose cost would grow with the square of the pixels.
        size: Side of the pictures that it learned on.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, net: Mapping[str, Any] = NET, size: int = 128):
        super().__init__()
        self.config = {"net": dict(net), "size": size}
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
    photos = metrics.load_images(data, range(len(data)), (size, size))[0]
    made: Stylizer = parts.drawn(lambda: Stylizer(NET, size), seed)
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
                parts.sheet(torch.cat(rows), Path(folder) / "preview.png", len(x))
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
    parts.save("stylizer", stylizer, Path(path))


def load(path: str | PathLike[str]) -> Stylizer:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return parts.load(Path(path), {"stylizer": Stylizer}, "train-style")


# ---- inside a diffusion model ---------------------------------------------------------------------------------------


@guidance
def shared_attention(
    denoise: Denoise, style: Float[Tensor, "1 c h w"], strength: float = 1.0, shown: Cond | None = None, seed: int = 0
) -> Denoise:
    """Let every self-attention of a model look at another picture: queries from x, keys and values from ``style``.

    The style picture is denoised along with x, at the same noise level (Hertz et al. 2024, "StyleAligned",
    arXiv:2312.02133, sec. 4: queries are first given the style's mean and deviation, so that they find its keys).
    Attention to words is left alone.

    Args:
        denoise: A model whose attention goes through ``nets.layers.attend``.
        style: In [-1, 1].
        strength: 0 is off, 1 looks at the style alone.
        shown: What the style picture shows, one row.
        seed: Of the style picture's noise.
    """
    fresh = initial([seed], style.shape[1:]).to(style)

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        if strength == 0:
            return denoise(x, sigma, cond)
        n = len(x)
        other = (style + expand(sigma[:1], style) * fresh).expand(n, -1, -1, -1)
        both = None if cond is None else Cond.cat([cond, cond.null() if shown is None else shown[[0] * n]])
        with _sharing(n, strength):
            return denoise(torch.cat([x, other]), torch.cat([sigma, sigma]), both)[:n]

    return guided


@torch.no_grad()
def stylize_inside(
    model: Model,
    content: Float[Tensor, "b c h w"],
    style: Float[Tensor, "1 c h w"],
    strength: float = 0.6,
    steps: int = 20,
    cond: Cond | None = None,
    seed: int = 0,
) -> Float[Tensor, "b c h w"]:
    """Content walked up a model's probability flow, and down again looking at the style (:func:`shared_attention`).

    Both are pictures in [-1, 1]; a model of latents encodes them. What is added to the content is the difference that
    looking makes, so that at ``strength`` 0 it comes back exactly, whatever inversion and codec lost.
    """
    _check(strength)
    if not any(isinstance(module, layers.Attention) for module in model.denoiser.modules()):
        raise InputError("This model has no attention to share. Leave model out, or take one with attention.")
    sigmas = schedules.exponential(steps, model.sigma_min, model.sigma_max)
    noisy, table = invert(model.denoise, model.encode(content), sigmas, cond), samplers.table("dpmpp_2m", sigmas)
    guides = (shared_attention(model.denoise, model.encode(style), share, seed=seed) for share in (strength, 0.0))
    looking, alone = (model.decode(samplers.final(samplers.run(guide, noisy, table, cond))) for guide in guides)
    return (content + (looking - alone)).clamp(-1, 1)


@contextmanager
def _sharing(n: int, strength: float) -> Iterator[None]:
    """The first n rows of every self-attention look at the last n as well."""
    plain = layers.attend

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = plain(q, k, v, mask)
        if mask is not None or len(q) != 2 * n or q.shape[-2] != k.shape[-2]:
            return out
        queries, there = q[:n], q[n:]
        queries = (queries - queries.mean(-2, keepdim=True)) / (queries.std(-2, keepdim=True) + 1e-6)
        queries = queries * there.std(-2, keepdim=True) + there.mean(-2, keepdim=True)
        return torch.cat([torch.lerp(out[:n], plain(queries, k[n:], v[n:], None), strength), out[n:]])

    layers.attend = attend
    try:
        yield
    finally:
        layers.attend = plain
