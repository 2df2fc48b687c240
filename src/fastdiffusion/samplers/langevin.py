"""Langevin dynamics and the score SDEs: sampling as Song & Ermon and Song et al. first wrote it, on sigma.

Langevin dynamics at one noise level walks along the score with fresh noise until it forgets where it began:

    dx = score(x, sigma) dt + sqrt(2) dw,     score = (D(x, sigma) - x) / sigma^2

With D held for a time ``delta * sigma^2 / 2`` this is an Ornstein-Uhlenbeck process, whose exact solution keeps the
noise level, where the papers' Euler step inflates it by delta^2 / 4:

    x' = D + exp(-delta/2) (x - D) + sigma sqrt(1 - exp(-delta)) n

That is linear in x, D and noise: so Langevin sampling is a table too, and the methods below are written for
``samplers.trace`` like those of ``solvers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, unknown
from .solvers import Call, Draw, Method, X, ancestral_split, step


def langevin(x: X, x0: X, sigma: float, delta: float, noise: Draw) -> X:
    """One move of Langevin dynamics at level ``sigma`` (the formula above); ``delta`` = infinity re-draws the noise."""
    keep = math.exp(-delta / 2)
    return x0 + keep * (x - x0) + sigma * math.sqrt(1 - keep * keep) * noise(sigma, sigma)


def annealed_langevin(D: Call, noise: Draw, x: X, sigmas: list[float], each: int = 5, delta: float = 0.3) -> X:
    """Annealed Langevin dynamics of NCSN (Song & Ermon 2019, arXiv:1907.05600, algorithm 1), denoised at the end.

    At every level ``each`` moves of ``delta``, in units of the level's variance (the paper's alpha_i = delta *
    sigma_i^2). What noise the level before left over must die out here, so levels want to be close and ``each *
    delta`` about 1; ``predictor_corrector`` removes it by a predictor instead.
    """
    if each < 1 or not delta > 0:
        raise InputError(f"annealed Langevin needs each >= 1 and delta > 0, got {each} and {delta}. Try 5 and 0.3.")
    for sigma in sigmas[:-1]:
        for _ in range(each):
            x = langevin(x, D(x, sigma), sigma, delta, noise)
    return D(x, sigmas[-2])  # Jolicoeur-Martineau et al. 2021, sec. 3.1: the last noise is not part of the data


def reverse_diffusion(x: X, x0: X, s: float, t: float, noise: Draw) -> X:
    """Euler-Maruyama on the reverse SDE (Song et al. 2021b, eq. 46): all of the level's fall comes back as noise."""
    return step(x, x0, s, t * t / s) + (math.sqrt(s * s - t * t) * noise(s, t) if t > 0 else 0.0 * x0)


def ancestral(x: X, x0: X, s: float, t: float, noise: Draw) -> X:
    """The posterior's mean and variance (Song et al. 2021b, app. F; Ho et al. 2020, eq. 7)."""
    down, up = ancestral_split(s, t)
    return step(x, x0, s, down) + (up * noise(s, t) if up > 0 else 0.0 * x0)


def flow(x: X, x0: X, s: float, t: float, noise: Draw) -> X:
    """Euler on the probability flow (Song et al. 2021b, eq. 13): no noise."""
    return step(x, x0, s, t)


PREDICTORS: dict[str, Callable[..., X]] = {f.__name__: f for f in (reverse_diffusion, ancestral, flow)}


def predictor_corrector(
    D: Call,
    noise: Draw,
    x: X,
    sigmas: list[float],
    predictor: str = "ancestral",
    snr: float = 0.16,
    corrections: int = 1,
) -> X:
    """Predictor-corrector sampling (Song et al. 2021b, arXiv:2011.13456, algorithms 1 to 5), in sigma.

    A step down by the predictor, then ``corrections`` Langevin moves at the level reached. The default predictor is
    the one that arrives exactly there; the paper's ``reverse_diffusion`` leaves too much noise where steps are long,
    which its corrector has to mend. The papers' step size 2 (snr |z| / |score|)^2 is 2 (snr sigma)^2 in expectation,
    which is what is used: so image i depends on its own seed alone. ``corrections=0`` is the predictor by itself.
    """
    if predictor not in PREDICTORS:
        raise unknown("predictor", predictor, PREDICTORS)
    for s, t in pairwise(sigmas):
        x = PREDICTORS[predictor](x, D(x, s), s, t, noise)
        for _ in range(corrections if t > 0 else 0):
            x = langevin(x, D(x, t), t, 4 * snr * snr, noise)
    return x


METHODS: dict[str, Method] = {
    "predictor_corrector": Method(predictor_corrector, 1, 2, True, "a poor model, 100 evaluations and more"),
}


# ---- the SDEs -----------------------------------------------------------------------------------------------------


class Sde(NamedTuple):
    """dx = f(t) x dt + g(t) dw for t from 0 to 1, by its marginals x_t = scale(t) * (x0 + sigma(t) * noise).

    In x / scale every such SDE is the same process, dx = sqrt(d sigma^2/dt) dw, walked by another clock (Karras et
    al. 2022, app. B): so one sampler in sigma serves all, and an SDE only proposes where to step (:func:`levels`).
    """

    scale: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]


def _beta(t: Tensor, low: float = 0.1, high: float = 20.0) -> Tensor:
    """The integral of beta from 0 to t."""
    return low * t + (high - low) * t * t / 2


SDES: dict[str, Sde] = {
    "ve": Sde(torch.ones_like, lambda t: 0.01 * (5000**t)),  # variance exploding, sigma 0.01 to 50 (eq. 30)
    "vp": Sde(lambda t: (-_beta(t) / 2).exp(), lambda t: _beta(t).expm1().sqrt()),  # variance preserving (eq. 32)
    "sub_vp": Sde(lambda t: (-_beta(t) / 2).exp(), lambda t: 2 * (_beta(t) / 2).sinh()),  # variance below it (eq. 34)
}


def sde(name: str) -> Sde:
    """The named SDE of Song et al. 2021b; raises InputError for an unknown name."""
    if name not in SDES:
        raise unknown("SDE", name, SDES)
    return SDES[name]


def coefficients(name: str, t: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(f, g^2) of the named SDE at ``t``: f = d log scale / dt and g^2 = scale^2 d sigma^2 / dt."""
    process = sde(name)
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        scale = process.scale(t)
        # 0 * t: variance exploding has a scale that does not depend on t
        (f,) = torch.autograd.grad((scale.log() + 0 * t).sum(), t)
        (growth,) = torch.autograd.grad(process.sigma(t).square().sum(), t)
    return f, scale.detach().square() * growth


def levels(name: str, n: int, end: float = 1e-3) -> Float[Tensor, " n"]:
    """The sigmas of n even steps in the SDE's time from 1 to ``end``, and 0: what the paper's samplers step along."""
    if n < 1:
        raise InputError(f"steps must be at least 1, got {n}. Try steps=100.")
    t = torch.linspace(1, end, n, dtype=torch.float64)
    return torch.cat([sde(name).sigma(t), t.new_zeros(1)])
