"""The probability flow as an exact map between data and noise: likelihoods, inversion, interpolation.

The flow moves densities as well as points: along it d(log p)/d(log sigma) = -(dim - tr dD/dx), so the likelihood of an
image is that of its noise plus an integral (Song et al. 2021b, arXiv:2011.13456, sec. 4.3 and app. D.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .. import noise as noises
from ..errors import InputError, unknown
from ..guidance import guidance
from ..types import Cond, Denoise
from . import solvers
from .adaptive import rk45
from .tables import final, run
from .trace import trace


def invert(
    denoise: Denoise,
    x0: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, " levels"] | Sequence[float],
    cond: Cond | None = None,
    sampler: str = "dpmpp_2m",
) -> Float[Tensor, "b *d"]:
    """The state at ``sigmas[0]`` that the flow takes to ``x0``; divided by sigmas[0] it is the image's noise.

    The sampler's own formula is followed upwards (:func:`~fastdiffusion.samplers.trace`), one table like any other: the
    same ``sigmas`` and sampler then lead back to ``x0``, up to the error of the method. ``adaptive.rk45`` goes there to
    a tolerance instead.

    Args:
        denoise: A model, or a model under guidance.
        x0: Clean data, taken as the state at the lowest sigma above 0.
        sigmas: As for sampling: falling, the last one 0.
        cond: Passed on to the denoiser.
        sampler: The name of a deterministic method.

    Raises:
        InputError: Fewer than two sigmas above 0, or a sampler that draws noise.
    """
    if sampler not in solvers.METHODS or solvers.METHODS[sampler].stochastic:
        raise unknown("deterministic sampler", sampler, [n for n, m in solvers.METHODS.items() if not m.stochastic])
    if len(sigmas) < 3:
        raise InputError(f"An inversion needs at least 2 steps, got {len(sigmas) - 1}. Try steps=20.")
    return final(run(denoise, x0, trace(solvers.METHODS[sampler].formula, sigmas, sampler, inverse=True), cond))


def interpolate(
    denoise: Denoise,
    a: Float[Tensor, "1 *d"],
    b: Float[Tensor, "1 *d"],
    sigmas: Float[Tensor, " levels"] | Sequence[float],
    n: int = 8,
    cond: Cond | None = None,
    sampler: str = "dpmpp_2m",
) -> Float[Tensor, "n *d"]:
    """n images from ``a`` to ``b`` along the flow: both are inverted, and their noises turned into each other.

    ``sigmas``, ``cond`` (one row) and ``sampler`` as for :func:`invert`.
    """
    both = None if cond is None else cond[[0, 0]]
    ends = invert(denoise, torch.cat([a, b]), sigmas, both, sampler)
    path = torch.cat([noises.slerp(ends[:1], ends[1:], i / max(n - 1, 1)) for i in range(n)])
    table = trace(solvers.METHODS[sampler].formula, sigmas, sampler)
    return final(run(denoise, path, table, None if cond is None else cond[[0] * n]))


def log_likelihood(
    denoise: Denoise,
    x0: Float[Tensor, "b *d"],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    cond: Cond | None = None,
    trace: Literal["hutchinson", "exact"] = "hutchinson",
    seeds: Sequence[int] = (0,),
    tolerance: float = 1e-4,
) -> Float[Tensor, " b"]:
    """Log density of ``x0`` (nats) under the model, at the noise level ``sigma_min``.

    Args:
        denoise: A model; it is differentiated once an evaluation.
        x0: The data.
        sigma_min: Where the flow starts; there is no density at 0 if the data fill no volume.
        sigma_max: Where the density is taken to be normal with standard deviation sigma_max.
        cond: Passed on to the denoiser.
        trace: "exact" takes one backward pass per number of x0; "hutchinson" one per seed, and is unbiased.
        seeds: Of the random signs that probe the trace.
        tolerance: Of the flow's solution.
    """
    if trace not in ("hutchinson", "exact"):
        raise unknown("trace", trace, ("hutchinson", "exact"))
    dim = x0[0].numel()
    if trace == "exact":
        probes = torch.eye(dim, dtype=x0.dtype, device=x0.device).reshape(dim, 1, *x0.shape[1:]).expand(-1, *x0.shape)
    else:
        signs = [
            [
                torch.randn(x0.shape[1:], generator=noises.generator(s, noises.Stream.LIKELIHOOD_PROBE, i))
                for i in range(len(x0))
            ]
            for s in seeds
        ]
        probes = torch.stack([torch.stack(row).sign() for row in signs]).to(x0)
    augmented = _with_trace(denoise, probes, 1.0 if trace == "exact" else 1 / len(seeds))
    state = torch.cat([x0.flatten(1), x0.new_zeros(len(x0), 1)], 1)
    state = final(rk45(augmented, state, sigma_min, sigma_max, cond, tolerance, tolerance))
    noise, volume = state[:, :-1] / sigma_max, dim * state[:, -1]
    prior = -(noise.square().sum(1) + dim * math.log(2 * math.pi * sigma_max**2)) / 2
    return prior + volume


@guidance
def _with_trace(denoise: Denoise, probes: Float[Tensor, "k b *d"], share: float) -> Denoise:
    """D and its trace side by side, so that the solver integrates both: the last number's slope is x - D of it.

    The trace is ``share`` times the sum over all probes v of v' (dD/dx) v.
    """
    dim = probes[0, 0].numel()

    def augmented(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        with torch.enable_grad():
            image = x[:, :-1].reshape(probes[0].shape).detach().requires_grad_()
            estimate = denoise(image, sigma, cond)
            total = x.new_zeros(len(x))
            for i, probe in enumerate(probes):
                (product,) = torch.autograd.grad(estimate, image, probe, retain_graph=i + 1 < len(probes))
                total = total + share * (product * probe).flatten(1).sum(1)
        growth = (dim - total) / dim  # of log volume per log sigma and number, kept near 1 for the solver's tolerance
        return torch.cat([estimate.detach().flatten(1), (x[:, -1] - growth)[:, None]], 1)

    return augmented


def bits_per_dim(
    denoise: Denoise, images: Float[Tensor, "b *d"], seed: int = 0, levels: int = 256, **options: object
) -> Float[Tensor, " b"]:
    """Bits per number of 8-bit ``images`` in [-1, 1], uniformly dequantized (Theis et al. 2016); lower is better.

    ``options`` are those of :func:`log_likelihood`.
    """
    width = 2 / (levels - 1)
    blur = torch.stack(
        [
            torch.rand(images.shape[1:], generator=noises.generator(seed, noises.Stream.DEQUANTIZATION, i)) - 0.5
            for i in range(len(images))
        ]
    )
    nats = log_likelihood(denoise, images + width * blur.to(images), **options)  # type: ignore[arg-type]
    return -(nats / images[0].numel() + math.log(width)) / math.log(2)
