"""Images as tasks take and give them: files, PIL images and tensors, brought to a model's size and channels."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError
from .atomic import write_bytes
from .images import flatten, grid, is_deep, open_image, to_array, to_pil, to_tensor
from .images import opened as opened_header

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def fit_image(source: str | Path | Image.Image, shape: tuple[int, ...]) -> Tensor:
    """An image as (c, h, w) in [-1, 1], of the model's channels and size: scaled to cover it, and cropped."""
    channels, height, width = shape
    whole = open_image(source)
    if channels not in _MODES:
        raise InputError(f"An image cannot be given to a model of {channels} channels.")
    whole = (whole if channels in (2, 4) else flatten(whole)).convert(_MODES[channels])
    if whole.size != (width, height):
        whole = ImageOps.fit(whole, (width, height), Image.Resampling.LANCZOS)
    return to_tensor(whole)


def fit_mask(mask: Float[Tensor, "1 h w"], size: tuple[int, int]) -> Float[Tensor, "1 p q"]:
    """A mask scaled and cropped to (height, width) as :func:`fit_image` scales and crops its image."""
    if mask.shape[1:] == size:
        return mask
    whole = ImageOps.fit(to_pil(2 * mask - 1), (size[1], size[0]), Image.Resampling.BILINEAR)
    return (to_tensor(whole) + 1) / 2


SPECK = 12.5 / 255  # how far black and white of a mask may be off


def open_mask(source: str | Path | Image.Image, size: tuple[int, int] | None = None) -> Float[Tensor, "1 h w"]:
    """Where an image is to be changed: 1 there, 0 where it is kept, between at soft edges.

    White is 1 and black is 0; with transparency, what is opaque is 1, whatever its color. Of two values, as of a
    segmentation's labels 0 and 1, the higher is 1. What is nearly black or white counts as that: the noise that JPEG
    and canvases of browsers leave would change what is to be kept.

    Args:
        source: The mask, or its file.
        size: (height, width) of the image that it belongs to.

    Raises:
        InputError: Another size, or nothing is marked.
    """
    image, name = open_image(source, "mask"), "" if isinstance(source, Image.Image) else f" {Path(source).name!r}"
    if size is not None and image.size != size[::-1]:
        width, height = image.size
        raise InputError(
            f"The mask has {width}x{height} pixels and the image {size[1]}x{size[0]}. "
            f"Resize{name or ' it'} together with it."
        )
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    through = alpha is not None and cast(tuple[int, int], alpha.getextrema())[0] < 255
    gray = alpha if alpha is not None and through else flatten(image).convert("L")
    mask = (to_tensor(gray) + 1) / 2
    values = mask.unique()
    if len(values) == 2 and float(values[0]) == 0:
        mask = mask / values[1]
    mask = torch.where(mask < SPECK, 0.0, torch.where(mask > 1 - SPECK, 1.0, mask))
    if float(mask.max()) <= 0.5:
        raise InputError(
            f"The mask{name} marks nothing. Paint white on black what is to change, or any color on transparency."
        )
    return mask


OPAQUE = "The image's transparency was laid on white: the result has none."
DEEP = "The image has 16 bits a channel, of which the result keeps 8."
FIRST = "The file has {} frames, of which the first is used."
MULTI_FRAME = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")  # not MPO: a photograph with the camera's previews of it


def losses(source: ImageLike, transparency: bool = True) -> list[str]:
    """What a result of one frame in 8 bits, and without transparency, lacks of an image: a sentence for each."""
    if isinstance(source, Tensor):
        return []
    image = open_image(source) if transparency else None
    clear = image is not None and image.mode in ("LA", "RGBA") and int(to_array(image)[-1].min()) < 255
    if isinstance(source, Image.Image):
        deep, frames = is_deep(source), 1  # whoever gives an image has chosen its frame
    else:
        with opened_header(source) as header:
            deep, frames = is_deep(header), getattr(header, "n_frames", 1) if header.format in MULTI_FRAME else 1
    return [FIRST.format(frames)] * (frames > 1) + [OPAQUE] * clear + [DEEP] * deep


ImageLike = str | PathLike[str] | Image.Image | Tensor
LEAST = 16  # pixels of the shorter side


def sheet(images: Float[Tensor, "n c h w"], path: str | Path, columns: int) -> None:
    """A grid of images as a PNG, enlarged where they are small."""
    buffer = io.BytesIO()
    grid(images.clamp(-1, 1), columns, max(1, 96 // max(images.shape[-2:]))).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


# ---- images in and out --------------------------------------------------------------------------------------------


def opened(image: ImageLike, role: str, least: int = LEAST) -> Image.Image:
    """A file, tensor or PIL image as L, LA, RGB or RGBA, of ``least`` pixels a side; errors name its ``role``."""
    result = open_image(to_pil(image) if isinstance(image, Tensor) else image, role)
    if min(result.size) < least:
        raise InputError(f"The {role} is {result.width}x{result.height} pixels; at least {least}x{least} are needed.")
    return result


def as_tensor(image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    """In color, on white, in [-1, 1]."""
    return to_tensor(flatten(image).convert("RGB"))[None]


def scaled(x: Tensor, factor: float, least: int = LEAST) -> Tensor:
    """Resized by a factor, to at least so many pixels a side."""
    h, w = (max(round(n * factor), least) for n in x.shape[-2:])
    return F.interpolate(x, (h, w), mode="bicubic", antialias=True).clamp(-1, 1)
