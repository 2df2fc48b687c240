"""Statistics of image gradients: sharpness without a network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .distances import ROWS, Features, frechet

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # of a difference between neighboring pixels, in the range [-1, 1]


def gradient_statistics(images: Float[Tensor, "n c h w"]) -> dict[str, Features]:
    """Four families of numbers per image, in [-1, 1] pixel units, that content leaves nearly alone.

    - ``seams``: gradient strength by position modulo 2, 4 and 8, over its mean: nets that work in patches leave a comb;
    - ``edges``: the share of neighboring pixels that differ by more than each of ``THRESHOLDS``: blur, ringing;
    - ``texture``: the same of second differences: grain, speckle, stair-steps;
    - ``coherence``: how far gradients within 3, 5 and 9 pixels agree in direction (the structure tensor's anisotropy,
      weighted by energy): broken and frayed edges disagree.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 4:
        raise InputError(f"gradients need images of at least 4x4 pixels, got shape {tuple(images.shape)}.")
    chunks = [_gradient_statistics(part) for part in images.float().split(ROWS)]
    return {name: torch.cat([p[name] for p in chunks]) for name in chunks[0]}


def _gradient_statistics(x: Tensor) -> dict[str, Tensor]:
    both = (x, x.transpose(-1, -2))  # so that one formula, along the last axis, does columns and rows
    slopes = [v.diff(dim=-1).abs() for v in both]
    bends = [v.diff(n=2, dim=-1).abs() for v in both]
    seams = []
    for slope in slopes:
        profile = slope.mean((1, 2)) + 1e-3  # by position; the 1e-3 keeps blank images finite
        profile = profile / profile.mean(1, keepdim=True)
        for period in (2, 4, 8):
            if profile.shape[1] > period:
                # a phase averages 1/period of the positions: 8 / period gives every period the same variance
                seams += [profile[:, phase::period].mean(1) * (8 / period) for phase in range(period)]
    # The structure tensor, from differences over 2x2 pixels so that both directions sit at the same place.
    dx = (x.diff(dim=-1)[:, :, 1:] + x.diff(dim=-1)[:, :, :-1]) / 2
    dy = (x.diff(dim=-2)[..., 1:] + x.diff(dim=-2)[..., :-1]) / 2
    tensor = torch.stack([dx * dx, dy * dy, dx * dy], 1).sum(2)
    coherence = []
    for window in (3, 5, 9):
        if window <= min(tensor.shape[-2:]):
            xx, yy, xy = functional.avg_pool2d(tensor, window, stride=1).unbind(1)
            anisotropy = ((xx - yy).square() + 4 * xy.square()).sqrt()
            coherence.append((anisotropy.sum((1, 2)) + 1e-6) / ((xx + yy).sum((1, 2)) + 1e-6))
    if not coherence:  # a 2x2 tensor of a tiny image: one window over all of it
        xx, yy, xy = tensor.mean((2, 3)).unbind(1)
        coherence.append((((xx - yy).square() + 4 * xy.square()).sqrt() + 1e-6) / (xx + yy + 1e-6))
    return {
        "seams": torch.stack(seams, 1),
        "edges": torch.stack([(s > t).float().mean((1, 2, 3)) for s in slopes for t in THRESHOLDS], 1),
        "texture": torch.stack([(b > t).float().mean((1, 2, 3)) for b in bends for t in THRESHOLDS], 1),
        "coherence": torch.stack(coherence, 1),
    }


def gradient_distance(real: dict[str, Features], fake: dict[str, Features]) -> dict[str, float]:
    """Frechet distance in each family of :func:`gradient_statistics`, and their mean as ``all``.

    The unit is the variance among the real images: 1 means that the sets are as far apart as single images are.
    """
    result = {}
    for name, values in real.items():
        unit = values.double().var(0).sum().sqrt().clamp(min=1e-6)
        result[name] = frechet(values / unit, fake[name] / unit)
    return {"all": sum(result.values()) / len(result), **result}
