"""Data consistency: a result held to the input, to the colors that were asked for, and to what a file can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...corruptions import Corruption, Operator
from ...guidance import posterior
from .colorization import in_gamut
from .measurement import ROUNDING, Measurement
from .method import BLURS

ROUGHNESS = 0.04  # how far off the second differences of a model's answer are expected to be, where it was blurred

PLAIN = (12, 16, 20, 24)  # pixels to all sides that are one color: whole blocks of JPEG lie among them


def with_plain_places(x: Tensor, y: Tensor, corruption: Corruption) -> Tensor:
    """An estimate that keeps what is one color in the input as far as a restorer looks: there is nothing to undo.

    Blurs, noise and JPEG leave such places as they were, and a network's white is 253 of 255. The change is gradual,
    or its border would show. What fills pixels in (pixelation, holes) makes places that only look plain.
    """
    kept = bool(corruption.steps) and all(step.name in (*BLURS, "noise", "jpeg") for step in corruption.steps)
    if x.shape != y.shape or not kept:
        return x
    plain = torch.stack([(_spread(y, reach) == 0).to(x) for reach in PLAIN]).mean(0)
    return x.lerp(y, plain)


def _spread(y: Tensor, reach: int) -> Tensor:
    """The difference of the largest and the smallest value around each pixel, in the channel where it is largest."""
    top, bottom = y, -y
    for side in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        padding = (side[0] // 2, side[1] // 2)
        top, bottom = (F.max_pool2d(z, side, 1, padding) for z in (top, bottom))
    return (top + bottom).amax(1, keepdim=True)


def hold(x: Tensor, y: Tensor, operator: Operator, measurement: Measurement) -> Tensor:
    """The image near ``x`` that the operator turns into ``y``, in [-1, 1]; ``x`` where that is not known exactly."""
    if not measurement.exact or not operator.projects or is_noisy(operator):
        return x.clamp(-1, 1)
    if loses_frequencies(operator, measurement):
        return deblurred(x, y, operator, measurement).clamp(-1, 1)
    gray = [step.name for step in measurement.corruption.steps] == ["gray"] and measurement.channels == 3
    for _ in range(1 if gray else 20):  # by turns what agrees with the input, and what a file can hold
        x = posterior.nearby(x.clamp(-1, 1), y, operator, _per_row(x, 1.0), _per_row(x, ROUNDING**2))
        if float((x.abs() - 1).max()) < 0.5 / 255:
            break
    return in_gamut(x, y) if gray else x.clamp(-1, 1)


def is_noisy(operator: Operator) -> bool:
    """Whether the operator adds noise of its own."""
    return operator.std is not None and bool((operator.std > 0).any())


def loses_frequencies(operator: Operator, measurement: Measurement) -> bool:
    """Whether some frequencies are nearly lost, which rounding then drowns, and no other noise is."""
    return operator.linear and not is_noisy(operator) and bool(measurement.names(*BLURS))


def deblurred(x: Tensor, y: Tensor, operator: Operator, measurement: Measurement) -> Tensor:
    """The image that agrees with a blurred input, as far as it was not rounded away, and otherwise is like ``x``."""
    only_blurred = len(measurement.names(*BLURS)) == len(measurement.corruption.steps)
    margin = 2 * measurement.reach if only_blurred else 0  # the rest may lie at a place
    if margin:
        c, h, w = operator.shape
        operator = measurement.corruption.on((c, h + 2 * margin, w + 2 * margin), [0] * len(y))
    return posterior.smoothly(x, y, operator, _per_row(x, measurement.rounding**2), ROUGHNESS, margin=margin)


def _per_row(x: Tensor, value: float) -> Tensor:
    return x.new_full((len(x), 1, 1, 1), value)
