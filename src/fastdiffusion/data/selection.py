"""Choosing images of a data set for a measurement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from ..io.images import to_tensor, to_uint8
from ..noise import generator
from . import Dataset


def load_images(
    data: Dataset, indices: Sequence[int], size: tuple[int, int] | None = None
) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The images at ``indices``, in that order and of one size (by default the data's), and their labels."""
    c, *nominal = data.shape
    h, w = size or nominal
    images, labels = torch.empty(len(indices), c, h, w, dtype=torch.uint8), torch.full((len(indices),), -1)
    place = {index: i for i, index in enumerate(indices)}
    for group in data.groups:
        wanted = [index for index in group if index in place]
        for first in range(0, len(wanted), 256):
            part = wanted[first : first + 256]
            batch, rows = data.batch(part), [place[index] for index in part]
            images[rows] = to_uint8(_resized(_cropped(to_tensor(batch.images), h, w), h, w))
            labels[rows] = batch.labels
    return images, labels


def choose(data: Dataset, n: int, seed: int = 0) -> list[int]:
    """``n`` different indices, drawn from ``seed``; a larger n begins with the smaller's."""
    return torch.randperm(len(data), generator=generator(seed))[:n].tolist()


def _cropped(images: Tensor, h: int, w: int) -> Tensor:
    """The middle of images from an aspect bucket, in the shape h:w; squeezed, they would be of another kind."""
    height, width = images.shape[-2:]
    tall, wide = min(height, round(width * h / w)), min(width, round(height * w / h))
    top, left = (height - tall) // 2, (width - wide) // 2
    return images[..., top : top + tall, left : left + wide]


def _resized(images: Tensor, h: int, w: int) -> Tensor:
    if images.shape[-2:] == (h, w):
        return images
    return functional.interpolate(images, (h, w), mode="bilinear", antialias=True)
