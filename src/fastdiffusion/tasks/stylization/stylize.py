"""Style transfer: one image's content in another one's colors, strokes and textures.

    stylize("photo.jpg", "painting.jpg", strength=0.6).save("out.png")

Four ways. Patches of the style image take the places of the content's (``fastdiffusion.patches``): strokes and
textures. Or the pixels are optimized until features without their places are the style's, that is their Gram matrices
(Gatys et al. 2016) and their distribution (Heitz et al. 2021): tones, and edges stay. A net that has learned one style
(:func:`train_style`) takes one evaluation. And attention can look at the style image inside a diffusion model
(:func:`shared_attention`). ``strength`` is a place on the way from the content to the style; at 0 the content returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ... import samplers, schedules
from ...guidance.attention import attention_layers, shared_attention
from ...io import images
from ...io.inputs import ImageLike, as_tensor, fit_image, losses, opened, scaled
from ...io.metadata import recipe
from ...io.results import ImageResult
from ...models import Model
from ...noise import generator
from ...options import fill, refuse
from ...patches import Patches, side_and_stride
from ...progress import Progress
from ...samplers import probability_flow
from ...types import Cond
from ..loading import loaded
from ..restoration.transparency import parted
from .network import Stylizer, enlarged, feed_forward, load
from .options import StylizeOptions, check_strength
from .statistics import colors, device_for, directions, recolored, statistics

COARSE = 96  # longest side of the coarsest level: there a feature sees two thirds of the image
INSIDE = 20  # steps of a model, by default
NOISE = 0.2  # of the first round's look-ups, none of the last one's: plain places take different patches
FADE = 0.7  # of patches' keep at each finer level: there the content's details give way to strokes
RATE, OCTAVES = 0.01, 5  # Adam's: how far a layer of the pyramid moves in a step; how many layers


class StyleStep(NamedTuple):
    """Where a run is: ``done`` of ``of`` steps, and the image so far in [-1, 1], at the size of its level."""

    done: int
    of: int
    image: Float[Tensor, "3 h w"]


def stylize(content: ImageLike, style: ImageLike | Stylizer, **options: Any) -> ImageResult:
    """``content`` in the style of another image.

    Args:
        content: An image of any size, its file, or (c, h, w) in [-1, 1].
        style: Likewise, and the image is made from coarse to fine; or what :func:`train_style` made, or its file, which
            takes one evaluation.
        options: The fields of :class:`StylizeOptions`.

    Raises:
        InputError: A number out of range, or an image of less than 16 pixels a side.
        DataError: A file that is no image.
    """
    chosen = fill(StylizeOptions, **options)
    net = isinstance(style, Stylizer) or _is_net(style)
    if net:
        refuse(chosen, ("method", "steps", "keep", "net", "model", "seed"), "with a net that has learned its style")
    inside, whole = chosen.model is not None, opened(content, "content")
    colors, opacity = (whole, None) if inside or not chosen.strength else parted(whole)
    made = _stylized(opened(colors, "content"), style, chosen, options)
    if opacity is not None:
        made.putalpha(images.to_pil(opacity))
    name = Path(content).stem if isinstance(content, str | PathLike) else "image"
    notes = losses(content, transparency=inside)  # elsewhere it stays
    method = "net" if net else "model" if inside else chosen.method
    kept = recipe("stylize", {**vars(chosen), "method": method}, content, style)
    return ImageResult.of([made], [f"{name}-stylized"], kept, notes=tuple(notes))


def _stylized(
    original: Image.Image, style: ImageLike | Stylizer, chosen: StylizeOptions, options: Mapping[str, Any]
) -> Image.Image:
    image = None
    if _is_net(style):
        style = load(style).to(device_for(chosen.device))
    if isinstance(style, Stylizer):
        style = style if chosen.device is None else style.to(device_for(chosen.device))
        return feed_forward(original, style, chosen.strength, chosen.size)
    if chosen.model is not None:
        ready = loaded(chosen.model, chosen.device)
        x, like = (fit_image(p, ready.image_shape)[None] for p in (original, opened(style, "style")))
        steps = chosen.steps or INSIDE
        return images.to_pil(stylize_inside(ready, x, like, chosen.strength, steps, seed=chosen.seed)[0])
    for step in (bar := Progress(stylize_steps(original, style, **options), "stylizing")):
        bar.total, image = step.of, step.image
    assert image is not None
    return enlarged(original, image) if chosen.strength else original


def _is_net(style: object) -> TypeGuard[str | PathLike[str]]:
    """Whether it names a file of :func:`train_style`."""
    return isinstance(style, str | PathLike) and str(style).endswith(".safetensors")


def stylize_steps(content: ImageLike, style: ImageLike, **options: Any) -> Iterator[StyleStep]:
    """The same on pixels, step by step for a live preview; to stop is to stop iterating."""
    chosen = fill(StylizeOptions, **options)
    strength, net = chosen.strength, chosen.net
    own = next(net.parameters(), None) if isinstance(net, nn.Module) and chosen.device is None else None
    device = device_for(chosen.device) if own is None else own.device
    levels = pyramid(as_tensor(opened(content, "content")).to(device), chosen.size)
    pattern = as_tensor(opened(style, "style")).to(device)
    method = METHODS[chosen.method]
    steps, keep = chosen.steps or method.steps, method.keep if chosen.keep is None else chosen.keep
    plan = [steps] * (len(levels) - 1) + [max(steps // (method.finest if len(levels) > 1 else 1), 1)]
    change, done = torch.zeros_like(levels[0]), 0
    for level, (at, budget) in enumerate(zip(levels, plan, strict=True)):
        like = scaled(pattern, (at[0, 0].numel() / pattern[0, 0].numel()) ** 0.5)
        at = recolored(at, colors(like), strength)
        start = at + F.interpolate(change, at.shape[-2:], mode="bicubic")
        for x in method.made(start, at, like, budget, keep, level, chosen) if strength else [at] * budget:
            change, done = x - at, done + 1
            yield StyleStep(done, sum(plan), x[0].clamp(-1, 1))


@torch.no_grad()
def _replaced(
    x: Tensor, content: Tensor, style: Tensor, steps: int, keep: float, level: int, chosen: StylizeOptions
) -> Iterator[Float[Tensor, "1 3 h w"]]:
    """Patches of the style in the places of the content's, at one level."""
    keep *= FADE**level
    side, stride = side_and_stride(content, style)
    known = Patches(style, side, chosen.seed)
    for i in range(steps):
        noise = torch.randn(x.shape, generator=generator(chosen.seed, level, i)).to(x)
        looked = torch.lerp(x, content, keep) + NOISE * (1 - i / (steps - 1) if steps > 1 else 0) * noise
        moved = known.replaced(looked, stride, i % stride)
        x = torch.lerp(content, moved, chosen.strength)
        yield x


def _optimized(
    x: Tensor, content: Tensor, style: Tensor, steps: int, keep: float, _: int, chosen: StylizeOptions
) -> Iterator[Float[Tensor, "1 3 h w"]]:
    """Adam on the pixels of one level, towards the style's features."""
    net = chosen.net
    with torch.no_grad():
        along = directions(content, net, chosen.seed)
        goal = statistics(content, along, net).towards(statistics(style, along, net), chosen.strength)
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


class Method(NamedTuple):
    """How one level is made of a start, and by default in how many steps, keeping how much of the content."""

    made: Callable[[Tensor, Tensor, Tensor, int, float, int, StylizeOptions], Iterator[Float[Tensor, "1 3 h w"]]]
    steps: int
    keep: float
    finest: int  # what the steps are divided by at the finest level, where features have little left to do


METHODS = {"patches": Method(_replaced, 5, 0.7, 1), "features": Method(_optimized, 80, 0.42, 3)}


def pyramid(x: Tensor, size: int) -> list[Tensor]:
    """The image at most ``size`` on its longest side, and before it its halves down to about ``COARSE``."""
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
    """Content inverted by a model's probability flow, and sampled again with attention to the style.

    See :func:`shared_attention`. Both are images in [-1, 1]; a model of latents encodes them. What is added to the
    content is the difference that this attention makes, so that at ``strength`` 0 it comes back exactly, whatever
    inversion and autoencoder lost.
    """
    check_strength(strength)
    net = model.modules.get("net", nn.Identity())
    attention_layers(net)  # InputError without any, before all the work
    start, device = content.device, model.device
    content, style = content.to(device), style.to(device)
    sigmas = schedules.exponential(steps, model.sigma_min, model.sigma_max)
    noisy = probability_flow.invert(model.denoise, model.encode(content), sigmas, cond)
    table = samplers.table("dpmpp_2m", sigmas)
    guides = (shared_attention(model.denoise, net, model.encode(style), share, seed=seed) for share in (strength, 0.0))
    shared, alone = (model.decode(samplers.final(samplers.run(guide, noisy, table, cond))) for guide in guides)
    return (content + (shared - alone)).clamp(-1, 1).to(start)
