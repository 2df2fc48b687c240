"""Learning the score, grad log p(x; sigma), from data alone: denoising and sliced score matching.

Both losses have the true score of the noisy data as their minimum; neither ever sees it. Denoising score matching
(Vincent 2011) regresses on the noise that was added, and is the loss that all diffusion models train with
(``losses.denoising_loss`` with the weight "noise" is the same numbers). Sliced score matching needs no noise to be
known, only data and a derivative of the score along random directions: it also works at sigma = 0.

Both are weighted by the level's variance, so that every level counts alike (Song & Ermon 2019, sec. 4.2), and give
one number per point. ``score(x, sigma) -> (b, *d)``; from a denoiser, ``denoisers.score_of`` makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .denoisers import expand
from .types import Cond

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


class PointNet(nn.Module):
    """A small network for points (b, dim): a residual MLP told the noise level. ``Denoiser(PointNet(2))`` trains.

    Args:
        dim: Numbers per point.
        width: Hidden units.
        depth: Hidden layers.
    """

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3):
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "width": width, "depth": depth}
        self.first = nn.Linear(dim + 4, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "b d"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b d"]:
        """The network's answer; smooth activations, because sliced score matching differentiates twice."""
        t = c_noise[:, None]
        h = nn.functional.silu(self.first(torch.cat([x, t, (2 * t).sin(), (2 * t).cos(), (4 * t).sin()], 1)))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)
