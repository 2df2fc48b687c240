"""Transparency: restored are the colors alone, as if they reached below it, and it goes with the result."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ...corruptions.marks import filled
from ...io.images import open_image, to_array, to_pil, to_tensor
from .inputs import Source
from .options import JPEG

SEEN = 16  # of 255: opacity from which on a file's 8 bits still hold a color


def parted(source: Source) -> tuple[Source, UInt8[Tensor, "1 h w"] | None]:
    """An image's colors, continued into what is transparent, and its opacity; or the image itself and None.

    Laid on white or black, what is below would be in the edges of the result.
    """
    if not isinstance(source, Image.Image) and Path(source).suffix.lower() in JPEG:  # is not decoded once more
        return source, None
    image = open_image(source)
    if image.mode not in ("LA", "RGBA"):
        return source, None
    pixels = torch.from_numpy(to_array(image))
    colors, opacity = pixels[:-1], pixels[-1:]
    if int(opacity.min()) == 255:
        return source, None
    x, known = to_tensor(colors), (opacity >= min(SEEN, int(opacity.max()))).float()
    mean = (x * known).mean((1, 2), keepdim=True) / known.mean().clamp(min=1e-9)  # where nothing is near
    return to_pil(mean + filled((x - mean)[None], known[None])[0]), opacity


def scaled(opacity: UInt8[Tensor, "1 h w"], height: int, width: int) -> UInt8[Tensor, "1 p q"]:
    """Opacity in the size of a result."""
    if opacity.shape[1:] == (height, width):
        return opacity
    return torch.from_numpy(to_array(to_pil(opacity).resize((width, height), Image.Resampling.LANCZOS)))
