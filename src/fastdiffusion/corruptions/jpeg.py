"""JPEG as a differentiable function: the same tables, transforms and rounding as libjpeg, without the file."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..noise import dct_matrix
from .core import Draw, Number, Operator, Shape, Text, corruption
from .pixels import rounded

# ITU-T T.81, tables K.1 and K.2, row by row
_LUMA = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = [17, 18, 24, 47, 18, 21, 26, 66, 24, 26, 56, 99, 47, 66, 99, 99]
HALVED = {"420": (2, 2), "422": (1, 2), "440": (2, 1)}  # how many pixels, down and across, share a color
_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_RGB = torch.linalg.inv(_YCC)


def tables(quality: Float[Tensor, " b"]) -> Float[Tensor, "b 2 8 8"]:
    """Quantization steps for luminance and colour at libjpeg's quality 1 to 100."""
    luma = quality.new_tensor([float(n) for n in _LUMA.split()]).reshape(8, 8)
    chroma = quality.new_full((8, 8), 99.0)
    chroma[:4, :4] = quality.new_tensor(_CHROMA).reshape(4, 4)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)[:, None, None, None]
    return ((torch.stack([luma, chroma]) * scale + 50) / 100).floor().clamp(1, 255)


@corruption(
    quality=Number(10, 90, least=1, most=100, whole=True, none=100, file=True),
    colors=Text(("420", "444", "422", "440", "rgb", "rgb420", "rgb422"), alike=True),
)
def jpeg(draw: Draw, shape: Shape, quality: Tensor | str, colors: str) -> Operator:
    """JPEG at libjpeg's quality 1 to 100; colours at half the resolution ("420", as most programs do) or full ("444").

    "422" halves it across only, "440" down only (a "422" that was turned); "rgb" rounds red, green and blue themselves,
    as a file in CMYK does, "rgb420" with green and blue halved. In Python the steps themselves, (2, 8, 8), may stand
    for a quality. The gradient passes the rounding unchanged.
    """
    if isinstance(quality, str):
        raise InputError(f"jpeg's quality must be a number, got {quality!r}. Example: 10..90.")
    steps = quality.expand(len(draw), 2, 8, 8) if quality.ndim == 3 else tables(quality)
    return operator(shape, steps, colors)


def operator(shape: Shape, steps: Float[Tensor, "b 2 8 8"], colors: str) -> Operator:
    """JPEG with given quantization steps, e.g. those that a file was written with."""
    if shape[0] not in (1, 3):
        raise InputError(f"jpeg takes images of 1 or 3 channels, got {shape[0]}.")

    def mean(x: Tensor) -> Tensor:
        planes = [plane_of(rounded(c / q) * q, plane.shape) for plane, c, q in _coefficients(x, steps.to(x), colors)]
        return _joined(planes, x.shape, colors)

    def nearest(x: Tensor, y: Tensor) -> Tensor:
        """Every coefficient moved into the cell that the file's rounding leaves open.

        Where colors were cut off at black or white, the file's own coefficients are unknown: these stay free.
        """
        moves = []
        for plane, c, _, center, known, q in cells(x, y, steps, colors):
            inside = torch.minimum(torch.maximum(c, center - 0.49 * q), center + 0.49 * q)
            moves.append(plane_of(torch.where(known, inside - c, 0), plane.shape))
        return x + joined_colors(moves, x.shape, colors) / 127.5

    return Operator(shape, shape, mean, linear=False, nearest=nearest)


def cells(x: Tensor, y: Tensor, steps: Tensor, colors: str) -> Iterator[tuple[Tensor, ...]]:
    """Each plane, its coefficients in ``x`` and ``y``, the file's own, whether these are known, and their steps.

    They are not where colors were cut off at black or white; pixels that were rounded tell them to about 1.
    """
    pairs = zip(_coefficients(x, steps.to(x), colors), _coefficients(y, steps.to(y), colors), strict=True)
    for (plane, c, q), (_, d, _) in pairs:
        center = (d / q).round() * q
        yield plane, c, d, center, (d - center).abs() < (0.25 * q).clamp(min=1), q


def _coefficients(x: Tensor, steps: Tensor, colors: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each plane (centred at 0, in units of 1/255), its 8x8 cosine coefficients and their steps."""
    values = (x + 1) * 127.5
    if x.shape[1] == 1:
        planes = [values - 128]
    else:
        values = values - 128
        if not colors.startswith("rgb"):
            values = torch.einsum("oc,bchw->bohw", _YCC.to(x), values)
        planes = [values[:, :1], values[:, 1:]]
        if (by := HALVED.get(colors[-3:])) is not None:
            planes[1] = F.avg_pool2d(_pad(planes[1], 2), by)
    d = dct_matrix(8, x.dtype).to(x.device)
    out = []
    for i, plane in enumerate(planes):
        out.append(
            (plane, _cosines(_pad(plane, 8), d), steps[:, 0 if colors.startswith("rgb") else i, None, None, None])
        )
    return out


def _cosines(plane: Float[Tensor, "b c h w"], d: Float[Tensor, "8 8"]) -> Float[Tensor, "b c H W 8 8"]:
    """The coefficients of each 8x8 cell, down and across, by two large products, which are faster than many small."""
    b, c, h, w = plane.shape
    across = (plane.reshape(-1, 8) @ d.T).view(b, c, h // 8, 8, w // 8, 8)
    both = across.permute(0, 1, 2, 4, 5, 3).reshape(-1, 8) @ d.T  # b c H W across down
    return both.view(b, c, h // 8, w // 8, 8, 8).transpose(-1, -2)


def plane_of(coefficients: Tensor, shape: torch.Size) -> Tensor:
    """A plane from its coefficients."""
    d = dct_matrix(8, coefficients.dtype).to(coefficients.device)
    cells = d.T @ coefficients @ d
    return cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., : shape[2], : shape[3]]


def _joined(planes: list[Tensor], shape: torch.Size, colors: str) -> Tensor:
    """Planes to an image in [-1, 1], cut off as a file cuts it off."""
    return ((joined_colors(planes, shape, colors) + 128) / 127.5 - 1).clamp(-1, 1)


def joined_colors(planes: list[Tensor], shape: torch.Size, colors: str) -> Tensor:
    """Planes to colors around 0; halved ones are interpolated as libjpeg does it (weights 3/4 and 1/4)."""
    if len(planes) == 1:
        return planes[0]
    luma, chroma = planes
    if chroma.shape != (shape[0], 2, *shape[2:]):
        size = [n * by for n, by in zip(chroma.shape[2:], HALVED[colors[-3:]], strict=True)]
        chroma = F.interpolate(chroma, size, mode="bilinear")[..., : shape[2], : shape[3]]
    values = torch.cat([luma, chroma], 1)
    return values if colors.startswith("rgb") else torch.einsum("oc,bchw->bohw", _RGB.to(values), values)


def _pad(x: Tensor, multiple: int) -> Tensor:
    h, w = x.shape[2:]
    return F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate") if h % multiple or w % multiple else x
