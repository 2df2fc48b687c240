"""Learning the score, grad log p(x; sigma), from data alone: denoising and sliced score matching.

Both losses have the true score of the noisy data as their minimum; neither needs it. Denoising score matching
(Vincent 2011) regresses on the noise that was added, and is the loss that all diffusion models train with
(``losses.denoising_loss`` with the weight "noise" is the same numbers). Sliced score matching needs no noise to be
known, only data and a derivative of the score along random directions: it also works at sigma = 0.

Both are weighted by the level's variance, so that every level counts alike (Song & Ermon 2019, sec. 4.2), and give
one number per point. ``score(x, sigma) -> (b, *d)``; from a denoiser, ``denoisers.score_of`` makes one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .denoisers import expand

Score = Callable[[Tensor, Tensor], Tensor]


def denoising(
    score: Score, x0: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], noise: Float[Tensor, "b *d"]
) -> Float[Tensor, " b"]:
    """Denoising score matching: sigma^2 |score(x0 + sigma noise) + noise / sigma|^2 / 2 (Song & Ermon 2019, eq. 5)."""
    s = expand(sigma, x0)
    return (s * score(x0 + s * noise, sigma) + noise).square().flatten(1).sum(1) / 2


def sliced(
    score: Score, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], direction: Float[Tensor, "b *d"]
) -> Float[Tensor, " b"]:
    """Sliced score matching: sigma^2 (v' (grad score) v + |score|^2 / 2) (Song et al. 2019, arXiv:1905.07088, eq. 8).

    Args:
        score: With a computed graph: what is trained.
        x: Noisy data at level ``sigma``; or the data itself, with sigma only a weight.
        sigma: Level and weight.
        direction: v, of unit covariance: normal, or signs (Rademacher), which vary least.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, sigma)
        (slope,) = torch.autograd.grad((s * direction).sum(), x, create_graph=True)
    per_point = (slope * direction + s.square() / 2).flatten(1).sum(1)
    return sigma.square() * per_point


def relative_error(score: Score, truth: Score, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"]) -> float:
    """RMS of the difference over RMS of the truth, over all points: 0 is exact, 1 is as bad as no score at all."""
    true = truth(x, sigma)
    return float((score(x, sigma) - true).norm() / true.norm())
