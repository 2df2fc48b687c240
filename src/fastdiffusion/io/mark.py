"""An invisible mark in an image's pixels, which says that a program made it, and how it is found again.

Spread spectrum (Cox et al. 1997, "Secure spread spectrum watermarking for multimedia", eq. 1 and 3) with knowledge of
the image (Miller et al. 2004, "Applying informed coding and embedding"): a pattern of +1 and -1 that follows from a key
stands in the signs of the image's cosine transform, in a band of middle frequencies. A coefficient whose sign is right
stays; one that is nearly so is moved a little; one that is far from it is left alone. How much is moved is found by
trying: until the mark is still there after a JPEG of quality 75 and after two thirds of the size.

The transform is of the whole image, by index and not by pixel, so that scaling moves nothing. Bands are an octave
apart, and an image has the highest that it has pixels for: many coefficients, of which each is changed little.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..noise import dct_matrix, generator
from .images import flatten, to_array, to_pil, to_tensor

KEY = "fastdiffusion"  # known to everybody: whoever reads this can find the mark, and remove it
LOW, HIGH = 7.0, 36.0  # radius of the first band, in half waves over the image; its pixels are at least twice as many
SMALLEST = 32  # pixels a side that have room for it
OCTAVES = 4  # bands that are looked for: images of 64, 128, 256, 512 and more pixels
FOUND = 5.0  # standard deviations of an image without the mark: at most 4 octaves times 3e-7
WANTED = 6.5  # of an image as it is embedded, after each of the trials
STRENGTHS = [0.4 * 1.15**i for i in range(34)]  # that are tried, in the units of ``_coefficients``
MARGIN = 0.5  # of a strength: where the coefficients come to lie that are nearer than the strength to their sign
QUANTILE = 0.15  # of a band: the size from which on a coefficient counts by its sign alone
LARGEST = 1024  # pixels a side that are looked at; above, an image is made smaller first


def octave(height: int, width: int) -> int:
    """The band of an image of this size."""
    return max(0, min(OCTAVES - 1, int(math.log2(max(min(height, width), 64) / 64))))


def mark(images: Float[Tensor, "n c h w"], key: str = KEY) -> Float[Tensor, "n c h w"]:
    """Images in [-1, 1] with the mark in them; at multiples of 1/255, as a file keeps them.

    Alpha stays. Every pixel may change, by at most a few of 255 (docs/provenance.md has what was measured). An image
    with a side below 32 pixels has no room for it, and stays as it is.
    """
    return torch.stack([_marked(image, key) for image in images])


def found(image: Image.Image | Tensor, key: str = KEY) -> float:
    """How far an image stands out as marked, in standard deviations of images that are not; see :data:`FOUND`."""
    levels = _luminance(image)
    return max(_statistic(levels, band, key) for band in range(octave(*levels.shape) + 2) if band < OCTAVES)


def is_marked(image: Image.Image | Tensor, key: str = KEY) -> bool:
    """Whether an image has the mark."""
    return found(image, key) >= FOUND


# ---- the pattern ------------------------------------------------------------------------------------------------


@cache
def _pattern(band: int, key: str) -> tuple[Float[Tensor, "r r"], Float[Tensor, "r r"]]:
    """+1 and -1 at each coefficient of a band, and 1 where it is one of the band."""
    side = int(HIGH * 2**band) + 1
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    signs = 2.0 * torch.randint(0, 2, (side, side), generator=generator(seed, band)) - 1
    at = torch.arange(side, dtype=torch.float32)
    radius = (at[:, None].square() + at.square()).sqrt()
    inside = (radius >= LOW * 2**band) & (radius <= HIGH * 2**band)
    return signs, inside.float()


@cache
def _basis(side: int, rows: int) -> Float[Tensor, "r s"]:
    """The first cosines over a side of so many pixels; zeros where it has none that fast."""
    basis = dct_matrix(side)[:rows]
    return torch.cat([basis, basis.new_zeros(max(rows - side, 0), side)])


def _coefficients(levels: Float[Tensor, "h w"], band: int) -> Float[Tensor, "r r"]:
    """The transform at the indices of a band, in units of 1/255 that do not depend on the image's size."""
    height, width = levels.shape
    rows = int(HIGH * 2**band) + 1
    return _basis(height, rows) @ levels @ _basis(width, rows).T * (64 * 2**band / math.sqrt(height * width))


def _limit(c: Float[Tensor, "r r"], inside: Float[Tensor, "r r"]) -> Tensor:
    """What a coefficient can count for at most: nearly its sign alone, so that no edge outvotes the rest."""
    return torch.quantile(c[inside > 0].abs(), QUANTILE).clamp(min=0.25)


def _statistic(levels: Float[Tensor, "h w"], band: int, key: str) -> float:
    """Correlation of the pattern with the limited coefficients, over its standard deviation for random signs."""
    signs, inside = _pattern(band, key)
    if min(levels.shape) < HIGH * 2**band:
        return 0.0
    c = _coefficients(levels, band)
    limited = (c / _limit(c, inside)).clamp(-1, 1) * inside
    return float((signs * limited).sum() / limited.square().sum().sqrt().clamp(min=1e-6))


def _luminance(image: Image.Image | Tensor) -> Float[Tensor, "h w"]:
    """Brightness from 0 to 255, on white, of at most LARGEST pixels a side."""
    shown = flatten(to_pil(image)).convert("L")
    if max(shown.size) > LARGEST:
        shown.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(shown, dtype=np.float32))


# ---- embedding --------------------------------------------------------------------------------------------------


def _marked(image: Float[Tensor, "c h w"], key: str) -> Float[Tensor, "c h w"]:
    height, width = image.shape[-2:]
    if min(height, width) < SMALLEST or len(image) > 4:
        return image
    pixels = torch.from_numpy(to_array(to_pil(image))).float()
    colors = pixels[:-1] if len(pixels) in (2, 4) else pixels
    band = octave(height, width)
    signs, inside = _pattern(band, key)
    levels = torch.from_numpy(np.array(flatten(to_pil(image)).convert("L"), dtype=np.float32))
    c = _coefficients(levels, band)
    rows = c.shape[0]
    down, across, unit = _basis(height, rows).T, _basis(width, rows), math.sqrt(height * width) / (64 * 2**band)
    marked = pixels.to(torch.uint8)
    for strength in STRENGTHS:
        aligned = signs * c
        moved = torch.where(aligned > -strength, (MARGIN * strength - aligned).clamp(min=0), 0) * signs * inside
        change = down @ moved @ across * unit
        marked = torch.cat([colors + change, pixels[len(colors) :]]).round().clamp(0, 255).to(torch.uint8)
        if all(found(each, key) >= WANTED for each in _trials(to_pil(marked))):
            break
    return to_tensor(marked)


def _trials(image: Image.Image) -> Iterator[Image.Image]:
    """What the mark must outlast: a JPEG of quality 75, and two thirds of the size.

    Where there are pixels enough that nobody will see it: quality 60, and four fifths of the size in quality 75, too.
    """
    flat, large = flatten(image), octave(image.height, image.width) > 0
    yield _jpeg(flat, 60 if large else 75)
    yield flat.resize((flat.width * 2 // 3, flat.height * 2 // 3), Image.Resampling.BICUBIC)
    if large:
        yield _jpeg(flat.resize((flat.width * 4 // 5, flat.height * 4 // 5), Image.Resampling.BICUBIC), 75)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def psnr(before: UInt8[Tensor, "*d"], after: UInt8[Tensor, "*d"]) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = (before.float() - after.float()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-9)))
