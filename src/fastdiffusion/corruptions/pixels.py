"""Corruptions of single pixels and of the pixel grid: noise, colour, contrast, resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .core import Draw, Number, Operator, Shape, Text, _same, corruption

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as JPEG and Pillow's "L" have them


def rows(values: Float[Tensor, " b"], like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """One number per image, to multiply images with."""
    return values.to(like)[:, None, None, None]


@corruption(std=Number(0.02, 0.3, most=100, none=0))
def noise(draw: Draw, shape: Shape, std: Tensor) -> Operator:
    """Gaussian noise of standard deviation ``std``, where black to white is 2."""
    return Operator(shape, shape, _same, std=std, noise=rows(std, std) * draw.normal(*shape), inverse=_same)


@corruption(amount=Number(0.05, 0.95, most=0.99, none=0))
def mix(draw: Draw, shape: Shape, amount: Tensor) -> Operator:
    """(1 - amount) of the image and amount of unit noise: the forward step of the smallest diffusion there is."""
    keep = 1 - amount
    return Operator(
        shape, shape, lambda x: rows(keep, x) * x, std=amount, noise=rows(amount, amount) * draw.normal(*shape),
        inverse=lambda y: y / rows(keep, y),
    )  # fmt: skip


@corruption()
def gray(draw: Draw, shape: Shape) -> Operator:
    """Luminance alone, one channel."""
    if shape[0] not in (1, 3):
        raise InputError(f"gray takes images of 3 channels, got {shape[0]}.")
    weights = torch.tensor(LUMA if shape[0] == 3 else (1.0,))
    return Operator(
        shape,
        (1, *shape[1:]),
        lambda x: torch.einsum("c,bchw->bhw", weights.to(x), x)[:, None],
        inverse=lambda y: y * (weights / weights.square().sum()).to(y)[None, :, None, None],
        lift=lambda y: y.expand(-1, shape[0], -1, -1),
    )


@corruption(amount=Number(0.2, 0.8, most=0.99, none=0))
def fade(draw: Draw, shape: Shape, amount: Tensor) -> Operator:
    """Contrast lost to a light grey: an old print."""
    keep = 1 - amount
    return Operator(
        shape, shape, lambda x: rows(keep, x) * x + 0.4 * rows(amount, x), inverse=lambda y: y / rows(keep, y)
    )


@corruption(levels=Number(3, 12, least=2, most=256, whole=True, none=256))
def posterize(draw: Draw, shape: Shape, levels: Tensor) -> Operator:
    """Few levels of brightness per channel; the gradient passes as if nothing had been rounded."""

    def mean(x: Tensor) -> Tensor:
        n = rows(levels, x) - 1
        return rounded((x + 1) / 2 * n) / n * 2 - 1

    def nearest(x: Tensor, y: Tensor) -> Tensor:
        half = 1 / (rows(levels, x) - 1)  # of a cell's width; less what a file's own rounding moves it by
        half, center = half - (half / 2).clamp(max=1 / 255), mean(y)
        return torch.minimum(torch.maximum(x, center - half), center + half)

    return Operator(shape, shape, mean, linear=False, nearest=nearest)


def rounded(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity (straight-through, Bengio et al. 2013)."""
    return x + (x.detach().round() - x.detach())


@corruption(factor=Number(2, 2, least=1, most=16, whole=True, single=True, none=1), how=Text(("bicubic", "area")))
def downscale(draw: Draw, shape: Shape, factor: int, how: str) -> Operator:
    """A factor-th of the width and height: "bicubic" as image editors do it, or "area", the mean of each square."""
    c, h, w = shape
    if h % factor or w % factor:
        raise InputError(
            f"{w}x{h} pixels do not divide by {factor}. Crop the image to {w - w % factor}x{h - h % factor}."
        )
    small, large = (h // factor, w // factor), (h, w)

    def mean(x: Tensor) -> Tensor:
        if how == "area" or factor == 1:
            return F.avg_pool2d(x, factor)
        return F.interpolate(x, small, mode="bicubic", antialias=True)

    def inverse(y: Tensor) -> Tensor:
        return F.interpolate(y, scale_factor=factor)

    def lift(y: Tensor) -> Tensor:
        return enlarge(y, large)

    return Operator(shape, (c, *small), mean, inverse=inverse if how == "area" or factor == 1 else None, lift=lift)


def enlarge(y: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """Bicubic enlargement."""
    return F.interpolate(y, size, mode="bicubic", align_corners=False)


@corruption(block=Number(2, 12, least=1, most=256, whole=True, none=1))
def pixelate(draw: Draw, shape: Shape, block: Tensor) -> Operator:
    """Squares of ``block`` pixels, each its own mean."""
    sides = [int(n) for n in block.tolist()]

    def mean(x: Tensor) -> Tensor:
        return torch.cat([_squares(one[None], n) for one, n in zip(x, sides, strict=True)])

    return Operator(shape, shape, mean, inverse=mean)  # an orthogonal projection is its own pseudo-inverse


def _squares(x: Tensor, n: int) -> Tensor:
    means = F.avg_pool2d(x, n, ceil_mode=True, count_include_pad=False)
    return means.repeat_interleave(n, 2).repeat_interleave(n, 3)[..., : x.shape[2], : x.shape[3]]
