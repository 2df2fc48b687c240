"""What lies over an image: holes, scratches, lettering and logos."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..io.images import lettering, open_image, to_tensor
from ..io.inputs import open_mask
from .core import Draw, Number, Operator, Shape, Text, corruption
from .pixels import rows


@corruption(chance=True, part=Number(0.05, 0.4, most=1, none=0, file=True))
def mask(draw: Draw, shape: Shape, part: Tensor | str) -> Operator:
    """Holes (grey): a ``part`` of the image in blots of random shape, or what is white in a file of its size."""
    if isinstance(part, Tensor) and part.ndim == 1:
        hole = blots(draw, shape, part)
    else:
        hole = load_mask(part, shape).expand(len(draw), -1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return x * (1 - hole.to(x))

    return Operator(shape, shape, mean, inverse=mean, lift=lambda y: filled(y, 1 - hole.to(y)))


def filled(x: Float[Tensor, "b c h w"], known: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
    """Holes filled smoothly from around, coarse to fine (pull-push, Gortler et al. 1996); grey if all is a hole."""
    if bool((known > 0).all()) or min(x.shape[2:]) < 2:
        return x * known
    weight = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    coarse = F.avg_pool2d(x * known, 2, ceil_mode=True, count_include_pad=False) / weight.clamp(min=1e-6)
    coarse = filled(coarse, (weight > 0).to(x))
    smooth = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, x, smooth)


def load_mask(file: str | Tensor, shape: Shape) -> Float[Tensor, "1 1 h w"]:
    """A mask of 0 and 1, see ``open_mask``; raises InputError where its size is another."""
    h, w = shape[1:]
    values = open_mask(file, (h, w)) if isinstance(file, str) else file
    values = values.reshape(1, 1, *values.shape[-2:]).float()
    if values.shape[2:] != (h, w):
        raise InputError(f"The mask has {values.shape[3]}x{values.shape[2]} pixels and the image {w}x{h}. Resize it.")
    return (values > 0.5).float()


def blots(draw: Draw, shape: Shape, part: Float[Tensor, " b"]) -> Float[Tensor, "b 1 h w"]:
    """Where a smooth random field is highest, so that exactly ``part`` is covered."""
    h, w = shape[1:]
    coarse = draw.normal(1, max(h // 12, 2), max(w // 12, 2))
    field = F.interpolate(coarse, (h, w), mode="bicubic").flatten(1)
    order = field.argsort(1, descending=True).argsort(1)
    return (order < (part * h * w).round()[:, None]).float().reshape(-1, 1, h, w)


@corruption(chance=True, count=Number(3, 20, most=500, whole=True, none=0), width=Number(1, 2.5, least=0.5, most=50))
def scratches(draw: Draw, shape: Shape, count: Tensor, width: Tensor) -> Operator:
    """Straight white scratches through the image; ``width`` in pixels."""
    h, w = shape[1:]
    most = max(int(count.max()), 1)
    x, y, angle = (torch.stack([draw.uniform(0, top) for _ in range(most)], 1) for top in (w, h, torch.pi))
    down, across = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    line = torch.zeros(len(draw), h, w)
    for i in range(most):
        a, b, t = (v[:, i, None, None] for v in (x, y, angle))
        distance = ((across - a) * t.sin() - (down - b) * t.cos()).abs()
        shown = (width[:, None, None] / 2 + 0.5 - distance).clamp(0, 1) * (i < count)[:, None, None]
        line = torch.maximum(line, shown)
    return overlay(shape, line[:, None], torch.ones(1, 1, 1, 1))


@corruption(
    text=Text((), "SAMPLE"), opacity=Number(0.3, 0.8, most=1, none=0), size=Number(0.3, 0.9, least=0.05, most=1),
    across=Number(0, 1, most=1), down=Number(0, 1, most=1),
)  # fmt: skip
def watermark(
    draw: Draw, shape: Shape, text: str, opacity: Tensor, size: Tensor, across: Tensor, down: Tensor
) -> Operator:
    """White lettering; ``size``: its part of the width, ``across`` and ``down``: where it stands, 0.5 is the middle."""
    alpha = torch.zeros(len(draw), 1, *shape[1:])
    for i in range(len(draw)):
        letters = lettering(text, max(round(shape[2] * float(size[i])), 8))[None, None]
        shrink = min(1.0, shape[1] / letters.shape[2])
        if shrink < 1:
            letters = F.interpolate(letters, scale_factor=shrink, mode="area")
        h, w = letters.shape[2:]
        top, left = round((shape[1] - h) * float(down[i])), round((shape[2] - w) * float(across[i]))
        alpha[i, :, top : top + h, left : left + w] = letters[0]
    return overlay(shape, alpha * rows(opacity, alpha), torch.ones(1, 1, 1, 1))


@corruption(file=Number(0, 0, file=True), opacity=Number(0.3, 0.8, most=1, none=0))
def logo(draw: Draw, shape: Shape, file: str | Tensor, opacity: Tensor) -> Operator:
    """An image laid over (its transparency kept), fitted into the middle half of the width and height."""
    if not isinstance(file, str):
        raise InputError("logo needs an image's file, e.g. logo mark.png.")
    source = to_tensor(open_image(file, "logo").convert("RGBA"))[None]
    scale = min(shape[1] / 2 / source.shape[2], shape[2] / 2 / source.shape[3])
    size = [max(1, round(n * scale)) for n in source.shape[2:]]
    source = F.interpolate(source, size, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = ((n - m) // 2 for n, m in zip(shape[1:], size, strict=True))
    place = (left, shape[2] - left - size[1], top, shape[1] - top - size[0])
    alpha, color = F.pad((source[:, 3:] + 1) / 2, place), F.pad(source[:, :3], place)
    if shape[0] == 1:
        color = color.mean(1, keepdim=True)
    return overlay(shape, alpha * rows(opacity, alpha), color)


def overlay(shape: Shape, alpha: Float[Tensor, "b 1 h w"], color: Float[Tensor, "#b #c #h #w"]) -> Operator:
    """``color`` laid over with opacity ``alpha``: undone exactly wherever that is below 0.99."""
    transparency = 1 - alpha

    def inverse(y: Tensor) -> Tensor:
        return torch.where(transparency.to(y) > 1e-3, y / transparency.to(y).clamp(min=1e-3), 0)

    return Operator(shape, shape, lambda x: x * transparency.to(x) + (alpha * color).to(x), inverse=inverse)
