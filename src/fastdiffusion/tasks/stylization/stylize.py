"""Style transfer: one picture's content in another one's colors and textures.

    stylize("photo.jpg", "painting.jpg", strength=0.6).save("out.png")

A style is what remains of a picture's features when their places are forgotten: their Gram matrices (Gatys et al.
2016) and their distribution (Heitz et al. 2021). ``strength`` is a place on the way, in both, from the content's own
style to the other one: at 0 the content itself is the optimum, and the result.

Three ways: optimization of the pixels, for any two pictures; a net that has learned one style (:func:`train_style`), in
one call; and attention to the style picture inside a diffusion model (:func:`shared_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ... import samplers, schedules
from ...errors import InputError
from ...guidance.attention import shared_attention
from ...io import images
from ...io.inputs import LEAST, ImageLike, as_tensor, fit_image, opened, scaled
from ...models import Model
from ...models.registry import loaded
from ...nets import layers
from ...nets.perceptual import Maps
from ...samplers import probability_flow
from ...types import Cond
from .network import Stylizer, _check, _feed_forward, enlarged, load
from .statistics import colors, directions, recolored, statistics

COARSE = 96  # longest side of the coarsest level: there a feature sees two thirds of the picture
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


def pyramid(x: Tensor, size: int) -> list[Tensor]:
    """The picture at most ``size`` on its longest side, and before it its halves down to about ``COARSE``."""
    finest = min(size / max(x.shape[-2:]), 1.0)
    count = max(round(math.log2(finest * max(x.shape[-2:]) / COARSE)), 0) + 1
    factors = [finest / 2**i for i in reversed(range(count))]
    return [x if factor == 1 else scaled(x, factor) for factor in factors]


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
    if not any(isinstance(m, layers.Attention) for net in model.modules.values() for m in net.modules()):
        raise InputError("This model has no attention to share. Leave model out, or take one with attention.")
    sigmas = schedules.exponential(steps, model.sigma_min, model.sigma_max)
    noisy = probability_flow.invert(model.denoise, model.encode(content), sigmas, cond)
    table = samplers.table("dpmpp_2m", sigmas)
    guides = (shared_attention(model.denoise, model.encode(style), share, seed=seed) for share in (strength, 0.0))
    looking, alone = (model.decode(samplers.final(samplers.run(guide, noisy, table, cond))) for guide in guides)
    return (content + (looking - alone)).clamp(-1, 1)
