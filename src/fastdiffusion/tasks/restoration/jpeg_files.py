"""What a JPEG file says of itself, and an estimate of what it shows, taken as far as it tells more than the file."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...corruptions import Chain, Corruption, Step
from ...corruptions.jpeg import cells, joined_colors, operator, plane_of, tables
from ...io.images import jpeg_tables
from .colorization import is_gray, luminance

# (mean step of luminance, worth): libjpeg's quality 93, 90, 80, 30 and 10. By bench/restoration_floor.py, so that no
# tuned photograph loses, nor film grain: above 90 rounding is finer than what a restorer knows.
WORTH = ((8, 0.0), (12, 0.15), (24, 0.8), (96, 0.8), (288, 1.0))
REACH, FLAT = 3, 20 / 127.5**2  # of the filter that leads colors along brightness: pixels, and variance that is flat


class Written(NamedTuple):
    """What happened, with what the file itself says of it.

    Attributes:
        corruption: With the file's own quantization steps, where its quality was left open.
        orientation: EXIF's, 1 to 8, by which its blocks are turned.
        trust: How far to change the pixels, where the steps are known and not how colors are kept.
    """

    corruption: Corruption
    orientation: int = 1
    trust: float = 1.0


class Rounded(NamedTuple):
    """What JPEG took from the coefficients of the blocks of brightness, by frequency.

    Attributes:
        variance: Of what was rounded away, for pixels in [-1, 1].
        kept: The part of them that was not rounded to nothing.
    """

    variance: Float[Tensor, "8 8"]
    kept: Float[Tensor, "8 8"]


def as_written(corruption: Corruption, path: str | os.PathLike[str]) -> Written:
    """What happened to an image, by its description and its file."""
    last = corruption.steps[-1] if corruption.steps else None
    if not isinstance(corruption, Step | Chain) or last is None or last.name != "jpeg" or last.fixed:
        return Written(corruption)
    found = jpeg_tables(path)
    if found is None:
        return Written(corruption)
    steps, colors, orientation = found
    if colors is None or (orientation != 1 and len(corruption.steps) > 1):  # what else happened lies upright
        return Written(corruption, trust=worth(steps))
    return Written(Chain((*corruption.steps[:-1], Step("jpeg", (steps, colors)))), orientation)


def file_step(path: str | os.PathLike[str]) -> Step | None:
    """JPEG with a file's own quantization steps, turned as the image is shown; None where it is no JPEG."""
    found = jpeg_tables(path)
    if found is None:
        return None
    steps, colors, orientation = found
    if orientation >= 5:  # on its side: across is down
        steps, colors = steps.transpose(-1, -2), {"422": "440", "440": "422"}.get(colors or "", colors)
    return Step("jpeg", (steps, colors or "444"))


def left_over(y: Float[Tensor, "1 c h w"], tail: Corruption) -> float:
    """Standard deviation of what is wrong with an image after the noise and the rounding of ``tail`` were taken away.

    Of noise a restorer leaves about a third. Of JPEG's rounding, what the blocks' own coefficients tell: see
    :func:`trusted`.
    """
    noise = [float(step.values[0]) for step in tail.steps if step.name == "noise" and _fixed(step)]
    rounded = rounded_away(y, tail)
    return math.sqrt(
        sum((value / 3) ** 2 for value in noise) + (0.0 if rounded is None else float(rounded.variance.mean()))
    )


def rounded_away(y: Float[Tensor, "1 c h w"], tail: Corruption) -> Rounded | None:
    """What JPEG took from the blocks of brightness; None where there was no JPEG."""
    found = None
    for step in tail.steps:
        if step.name == "jpeg" and step.values and not isinstance(step.values[0], tuple):
            value = step.values[0]
            steps = value if isinstance(value, Tensor) else tables(torch.tensor([float(value)]))[0]
            light = y if y.shape[1] == 1 else luminance(y)
            ((_, _, _, center, _, q),) = cells(light, light, steps[None], "444")
            variance = _variance(center, q).mean((0, 1, 2, 3)) / 127.5**2
            kept = (center != 0).float().mean((0, 1, 2, 3))
            if found is not None:
                variance, kept = found.variance + variance, found.kept.minimum(kept)
            found = Rounded(variance, kept)
    return found


def _fixed(step: Step) -> bool:
    return bool(step.values) and isinstance(step.values[0], float | int)


def likely(x: Tensor, y: Tensor, corruption: Corruption, trust: float = 1.0) -> Tensor:
    """A mean estimate, mixed with a JPEG file's own pixels where these are likely to be nearer the truth."""
    step = corruption.steps[-1] if len(corruption.steps) == 1 else None
    if step is None or step.name != "jpeg" or x.shape != y.shape:
        return x
    if not step.fixed:
        return torch.lerp(y, x, trust)
    quality, colors = (*step.values, "420")[:2]
    steps = (quality if isinstance(quality, Tensor) else tables(y.new_tensor([float(quality)]))[0]).to(y)
    if y.shape[1] == 3 and is_gray(y, within=3 / 255):  # gray stays gray
        return trusted(luminance(x), luminance(y), steps, "444").expand(-1, 3, -1, -1)
    if y.shape[1] == 3:
        x = torch.lerp(x, colors_along(x, y, steps, str(colors)), 0.5)
    return trusted(x, y, steps, str(colors))


def colors_along(x: Tensor, y: Tensor, steps: Float[Tensor, "2 8 8"], colors: str) -> Tensor:
    """The estimate ``x`` with the colors of the file ``y``, which change where brightness does and not at blocks.

    Color differences are taken for a linear function of the estimate's brightness around each pixel (the guided filter,
    He et al. 2010), by turns with what the file leaves open.
    """
    made, inside = operator((3, x.shape[2], x.shape[3]), steps.expand(len(x), 2, 8, 8), colors), y
    light = luminance(x)
    for _ in range(2):
        inside = made.project(light + _guided(light, inside - luminance(inside)), y)
    return inside


def _guided(guide: Float[Tensor, "b 1 h w"], values: Float[Tensor, "b c h w"]) -> Tensor:
    mean_guide, mean = _box(guide), _box(values)
    slope = (_box(guide * values) - mean_guide * mean) / (_box(guide.square()) - mean_guide.square() + FLAT)
    return _box(slope) * guide + _box(mean - slope * mean_guide)


def _box(x: Tensor) -> Tensor:
    """The mean over 2 REACH + 1 pixels along both axes; sums of shifted images take a quarter of a pooling's time."""
    side, x = 2 * REACH + 1, F.pad(x, (REACH,) * 4, mode="replicate")
    for axis in (2, 3):
        length = x.shape[axis] - 2 * REACH
        x = sum((x.narrow(axis, i, length) for i in range(1, side)), start=x.narrow(axis, 0, length))
    return x / side**2


def trusted(x: Tensor, y: Tensor, steps: Float[Tensor, "2 8 8"], colors: str) -> Tensor:
    """The estimate ``x`` of what a file ``y`` shows, as far as it tells more than the file.

    The error of a rounded coefficient has a known variance. An estimate that differs by more, in the mean over the
    blocks, has itself an error of the rest: the best mixture leaves that part of the difference out (Wiener), frequency
    by frequency. What a restorer takes for noise, fine texture above all, so stays as it is.
    """
    moves = []
    for plane, c, d, center, known, q in cells(x, y, steps.expand(len(x), 2, 8, 8), colors):
        base = torch.where(known, center, d)
        difference = c - base
        power = difference.square().mean((2, 3), keepdim=True)
        share = (_variance(center, q) / power.clamp(min=1e-6)).clamp(max=1).square()  # squared: rather too little
        move = difference * share
        move = torch.where(known, torch.minimum(torch.maximum(move, -0.49 * q), 0.49 * q), move)
        moves.append(plane_of(base + move - c, plane.shape))
    return torch.lerp(y, x + joined_colors(moves, x.shape, colors) / 127.5, worth(steps))


def _variance(center: Tensor, q: Tensor) -> Tensor:
    """Of what rounding took from the coefficients of each frequency, whose rounded values are ``center``.

    q^2 / 12, or that of a Laplacian inside the cell around 0, whose width the share of coefficients outside it tells.
    """
    outside = ((center != 0).sum((2, 3), keepdim=True) + 0.5) / (center.shape[2] * center.shape[3] + 1)
    u = -outside.log()
    inside = (2 / u.square() - (1 + 2 / u) * outside / (1 - outside)) * q.square() / 4
    return outside * q.square() / 12 + (1 - outside) * inside.clamp(min=0).minimum(q.square() / 12)


def worth(steps: Float[Tensor, "2 8 8"]) -> float:
    """How far a file is changed towards an estimate, 0 to 1, by its mean step of luminance: see ``WORTH``."""
    step = float(steps[0].mean())
    for (low, less), (high, more) in pairwise(WORTH):
        if step < high:
            return less + (more - less) * max(step - low, 0) / (high - low)
    return WORTH[-1][1]
