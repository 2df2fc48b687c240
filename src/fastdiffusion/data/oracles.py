"""Data sets whose perfect denoiser is known: to check samplers, guidance, likelihoods and learned scores against.

Each oracle is a denoiser ``D(x, sigma, cond) -> E[x0 | x]`` with the exact density and samples of the noisy data beside
it. A :class:`Gaussian` also knows its probability flow in closed form. All compute in the type of ``x``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoisers import expand
from ..types import Cond


@dataclass(frozen=True)
class Gaussian:
    """Normal data with a full covariance, given by its eigenvectors (columns) and standard deviations along them."""

    mean: Float[Tensor, " n"]
    axes: Float[Tensor, "n n"]
    stds: Float[Tensor, " n"]

    def _scale(self, x: Tensor, factors: Tensor) -> Tensor:
        """Scale x - mean along each axis."""
        mean, axes = self.mean.to(x), self.axes.to(x)
        return mean + ((x - mean) @ axes * factors) @ axes.T

    def __call__(self, x: Float[Tensor, "b *m n"], sigma: Float[Tensor, " b"], cond: Cond | None = None) -> Tensor:
        """mean + C (C + sigma^2)^-1 (x - mean)."""
        variance = self.stds.to(x).square()
        return self._scale(x, variance / (variance + expand(sigma, x).square()))

    def flow(self, x: Float[Tensor, "b *m n"], sigma: float, to: float) -> Float[Tensor, "b *m n"]:
        """Where the probability flow takes x from noise level ``sigma`` to ``to``: each axis keeps its quantile."""
        variance = self.stds.to(x).square()
        return self._scale(x, ((variance + to * to) / (variance + sigma * sigma)).sqrt())

    def log_prob(self, x: Float[Tensor, "b *m n"], sigma: float = 0.0) -> Float[Tensor, "b *m"]:
        """Log density of the noisy data."""
        variance = self.stds.to(x).square() + sigma * sigma
        z = (x - self.mean.to(x)) @ self.axes.to(x)
        return -(z.square() / variance + (2 * math.pi * variance).log()).sum(-1) / 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Clean data."""
        z = torch.randn((n, len(self.mean)), generator=generator, dtype=self.mean.dtype)
        return self.mean + (z * self.stds) @ self.axes.T


@dataclass(frozen=True)
class Mixture:
    """Round normal blobs: ``means`` of any shape, one ``stds`` each, ``weights`` that sum to 1.

    With ``labels`` (the class of each blob) it is class-conditional: ``cond.label`` chooses the blobs, -1 takes all.
    """

    means: Float[Tensor, "k *d"]
    stds: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]
    labels: Int[Tensor, " k"] | None = None

    def _log_terms(self, x: Tensor, sigma: Tensor, cond: Cond | None) -> Float[Tensor, "b k"]:
        """Log of weight times density of each blob at x, the class's blobs only."""
        flat, means = x.flatten(1), self.means.to(x).flatten(1)
        variance = self.stds.to(x).square() + sigma[:, None].square()
        distance = torch.cdist(flat, means, compute_mode="donot_use_mm_for_euclid_dist").square()
        weights = self.weights.to(x).expand(len(x), -1)
        if self.labels is not None and cond is not None and cond.label is not None:
            label = cond.label[:, None]
            weights = weights * ((label == self.labels.to(label.device)) | (label < 0))
            weights = weights / weights.sum(1, keepdim=True)
        return weights.log() - distance / variance / 2 - flat.shape[1] / 2 * (2 * math.pi * variance).log()

    def posterior(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b k"]:
        """Which blob the noisy ``x`` came from."""
        return self._log_terms(x, sigma, cond).softmax(1)

    def __call__(self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None) -> Tensor:
        """The mean of each blob's own estimate under :meth:`posterior`."""
        r = self.posterior(x, sigma, cond)
        keep = self.stds.to(x).square() / (self.stds.to(x).square() + sigma[:, None].square())
        pulled = (r * (1 - keep)) @ self.means.to(x).flatten(1)
        return pulled.reshape(x.shape) + expand((r * keep).sum(1), x) * x

    def log_prob(
        self, x: Float[Tensor, "b *d"], sigma: float | Tensor = 0.0, cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """Log density of the noisy data."""
        return self._log_terms(
            x, torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)), cond
        ).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n *d"]:
        """Clean data."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn((n, *self.means.shape[1:]), generator=generator, dtype=self.means.dtype)
        return self.means[which] + expand(self.stds[which], z) * z


def blobs(n: int = 8, dim: int = 2, radius: float = 1.0, std: float = 0.1, seed: int = 0) -> Mixture:
    """``n`` blobs of equal weight, with a class each: on a circle in two dimensions, else at random on a sphere."""
    if dim == 2:
        angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        means = torch.stack([angle.cos(), angle.sin()], 1)
    else:
        means = torch.randn((n, dim), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        means = means / means.norm(dim=1, keepdim=True)
    one = torch.ones(n, dtype=torch.float64)
    return Mixture(radius * means, std * one, one / n, torch.arange(n))


def dataset(items: Float[Tensor, "k *d"], smooth: float = 0.0, labels: Int[Tensor, " k"] | None = None) -> Mixture:
    """The ideal denoiser of a data set: a softmax over its items, blurred (Karras et al. 2022, app. B.3)."""
    one = torch.ones(len(items), dtype=items.dtype)
    return Mixture(items, smooth * one, one / len(items), labels)
