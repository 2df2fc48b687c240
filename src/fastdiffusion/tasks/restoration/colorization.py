"""Colors that were asked for: hints at some pixels, a palette for all; and luminance kept to the last bit."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...corruptions.pixels import LUMA
from ...errors import InputError
from ...io.images import to_array, to_tensor
from .tiles import Tile

MOST_HINTS = 256  # places that hints are gathered into


def luminance(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Of colors in [-1, 1], as ``corruptions.gray`` has it."""
    return torch.einsum("c,nchw->nhw", torch.tensor(LUMA).to(x), x)[:, None]


def is_gray(x: Float[Tensor, "n c h w"], within: float = 0.5 / 255) -> bool:
    """Whether images have one channel, or three that differ by less than ``within`` everywhere."""
    return x.shape[1] == 1 or float((x.amax(1) - x.amin(1)).max()) < within


def in_gamut(x: Float[Tensor, "n 3 h w"], gray: Float[Tensor, "m 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The colors of ``x`` at exactly the luminance of ``gray``, as saturated as a file can hold."""
    color = x - luminance(x)
    limit = torch.where(color > 0, (1 - gray) / color.clamp(min=1e-6), (-1 - gray) / color.clamp(max=-1e-6))
    return gray + color * limit.amin(1, keepdim=True).clamp(0, 1)


class Hints:
    """Colors that some pixels shall have, and that spread to pixels of like brightness near them.

    Every hint pulls with a Gaussian of distance and of luminance (a bilateral kernel regression, in one pass what Levin
    et al. 2004 solve for), and at its own pixels it is obeyed.

    Args:
        image: Transparent except where it gives a color.
        size: (height, width) of the image to color.
        reach: How far a hint is felt, as a part of the longer side.
        like: Difference in luminance at which it is felt no more.
    """

    def __init__(self, image: Image.Image, size: tuple[int, int], reach: float = 0.15, like: float = 0.25):
        if (image.height, image.width) != tuple(size):
            raise InputError(
                f"The hints have {image.width}x{image.height} pixels and the image {size[1]}x{size[0]}. "
                "Draw them on a transparent layer over the image."
            )
        if image.mode != "RGBA":
            raise InputError("hints need a transparent background (RGBA): else every pixel would be one.")
        pixels = torch.from_numpy(to_array(image))
        self.hinted = pixels[3:] > 127
        if not bool(self.hinted.any()):
            raise InputError("The hints are transparent everywhere. Draw some color.")
        self.colors = to_tensor(pixels[:3])
        self.reach, self.like = reach * max(size), like
        where = self.hinted[0].nonzero()
        self.where = where[torch.linspace(0, len(where) - 1, min(len(where), MOST_HINTS)).long()]
        self.targets = self.colors[:, self.where[:, 0], self.where[:, 1]]  # (3, k)

    def pull(self, x: Float[Tensor, "n 3 h w"], tile: Tile) -> Float[Tensor, "n 3 h w"]:
        """A tile with its colors pulled to the hints."""
        light = luminance(x)
        targets = self.targets.to(x)
        color = targets - torch.einsum("c,ck->k", torch.tensor(LUMA).to(x), targets)
        down = torch.arange(tile.height, device=x.device)[:, None] + tile.top
        across = torch.arange(tile.width, device=x.device)[None, :] + tile.left
        total, mixed = torch.full_like(light, 0.02), 0.02 * (x - light)
        for k, (i, j) in enumerate(self.where.tolist()):
            distance = ((down - i).square() + (across - j).square()) / self.reach**2
            like = (light - self._light(k)) / self.like
            weight = torch.exp(-distance / 2 - like.square() / 2)
            total, mixed = total + weight, mixed + weight * color[:, k, None, None]
        out = light + mixed / total
        window = (slice(None), slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width))
        hinted, colors = self.hinted[window].to(x.device), self.colors[window].to(x)[None]
        return torch.where(hinted, light + colors - luminance(colors), out)

    def _light(self, k: int) -> float:
        return float(self.targets[:, k] @ torch.tensor(LUMA))


class Palette:
    """Colors to keep to: each pixel takes the hues of the nearest ones.

    Args:
        text: "#a03020,#203040", hexadecimal colors with commas.
        width: How sharply it decides, in units of [-1, 1].
    """

    def __init__(self, text: str, width: float = 0.15):
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names or not all(re.fullmatch(r"#[0-9a-fA-F]{6}", name) for name in names):
            raise InputError(f"A palette is hexadecimal colors with commas, got {text!r}. Example: #a03020,#203040.")
        rows = [[int(name[i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5)] for name in names]
        colors = torch.tensor(rows)[:, :, None, None]
        self.light = luminance(colors)
        self.color, self.width = (colors - self.light)[:, :, 0, 0], width

    def pull(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Every pixel between the palette's colors, nearer to those that it was near to, its luminance kept."""
        light = luminance(x)
        own, hues = x - light, self.color.to(x)
        far = torch.stack([(own - c[None, :, None, None]).square().sum(1) for c in hues], 1)
        far = far + 0.25 * torch.cat([(light - v).square() for v in self.light.flatten().tolist()], 1)
        return light + torch.einsum("nkhw,kc->nchw", (-far / (2 * self.width**2)).softmax(1), hues)
