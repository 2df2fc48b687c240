"""Samplers as their papers write them, in terms of D (the denoiser), x (the state) and the falling sigmas.

Every method takes ``(D, noise, x, sigmas, **options)`` and returns the state at ``sigmas[-1]``, which is usually 0.
``D(x, sigma)`` is an evaluation, ``noise(s, t)`` a fresh unit normal that belongs to the move from s to t. Nothing here
knows tensors: ``samplers.trace`` runs a method once on symbols, and the numbers that come out are its table.

With x = x0 + sigma * noise the probability flow is dx/dsigma = (x - D) / sigma (Karras et al. 2022, eq. 1), and two
changes of variable make the exact integrators below:

    noise form   eps = (x - D)/sigma:     x_t = x_s + integral of eps d(sigma)                     (LMS, DEIS)
    data form    lambda = -log sigma:     x_t = t/s x_s + t * integral of exp(lambda) D d(lambda)  (DPM-Solver++, UniPC)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from ..errors import unknown
from ..schedules import time_linear

X = Any  # a state or an estimate: anything that can be added and scaled
Call = Callable[[X, float], X]
Draw = Callable[[float, float], X]
Past = list[tuple[float, X]]  # (sigma, value), the most recent first


# ---- the pieces ---------------------------------------------------------------------------------------------------


def step(x: X, x0: X, s: float, t: float) -> X:
    """Re-degrade the estimate to level t with the noise that x has at level s (DDIM, Song et al. 2021a, eq. 12)."""
    return x0 + (t / s) * (x - x0)


def ancestral_split(s: float, t: float, eta: float = 1.0) -> tuple[float, float]:
    """(down, up): step deterministically to ``down``, then add ``up`` of noise; down^2 + up^2 = t^2.

    eta = 1 is DDPM's posterior variance, t^2 (s^2 - t^2) / s^2 (Ho et al. 2020, eq. 7); eta = 0 is deterministic.
    """
    up = min(t, eta * t * math.sqrt(s * s - t * t) / s) if eta else 0.0
    return math.sqrt(t * t - up * up), up


@lru_cache
def _gauss(n: int = 32) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss-Legendre quadrature on (-1, 1) (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k * k - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return values.tolist(), (2 * vectors[0] ** 2).tolist()


def lagrange_integrals(
    nodes: Sequence[float], a: float, b: float, kernel: Callable[[float], float], basis: Callable[[float], float]
) -> list[float]:
    """Integrals over u in (a, b) of kernel(u) times each Lagrange polynomial on ``nodes``, taken at basis(u)."""
    points = [((a + b) / 2 + (b - a) / 2 * v, w * (b - a) / 2) for v, w in zip(*_gauss(), strict=True)]
    at = [(basis(u), w * kernel(u)) for u, w in points]
    return [
        sum(w * math.prod((v - other) / (node - other) for other in nodes if other != node) for v, w in at)
        for node in nodes
    ]


def exponential_adams(x: X, past: Past, s: float, t: float, eta: float = 0.0) -> X:
    """x at t, integrating exactly the polynomial in lambda through the ``past`` estimates (Lu et al. 2022b, eq. 9).

    With ``eta`` the mean of the diffusion SDE instead, whose noise forgets (1 + eta) times as fast.
    """
    if t == 0:
        return past[0][1]
    a, b, rate = -math.log(s), -math.log(t), 1 + eta
    weights = lagrange_integrals(
        [-math.log(sigma) for sigma, _ in past], a, b, lambda u: rate * math.exp(rate * (u - b)), lambda u: u
    )
    return (t / s) ** rate * x + _sum(weights, past)


def adams(x: X, past: Past, s: float, t: float, basis: Callable[[float], float]) -> X:
    """x at t, integrating exactly the polynomial in basis(sigma) through the ``past`` noises eps."""
    weights = lagrange_integrals([basis(sigma) for sigma, _ in past], s, t, lambda u: 1.0, basis)
    return x + _sum(weights, past)


def _sum(weights: list[float], past: Past) -> X:
    total = weights[0] * past[0][1]
    for w, (_, value) in zip(weights[1:], past[1:], strict=True):
        total = total + w * value
    return total


def _sde_noise(s: float, t: float, eta: float) -> float:
    """How much noise the diffusion SDE adds from s to t (Lu et al. 2022b, eq. 18 with eta)."""
    return t * math.sqrt(-math.expm1(2 * eta * math.log(t / s))) if t > 0 and eta > 0 else 0.0


# ---- deterministic ------------------------------------------------------------------------------------------------


def euler(D: Call, noise: Draw, x: X, sigmas: list[float]) -> X:
    """Euler on the probability flow, which is DDIM with eta = 0 (Karras et al. 2022; Song et al. 2021a)."""
    for s, t in pairwise(sigmas):
        x = step(x, D(x, s), s, t)
    return x


def heun(
    D: Call,
    noise: Draw,
    x: X,
    sigmas: list[float],
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> X:
    """Heun's method (Karras et al. 2022, algorithms 1 and 2): two evaluations a step, one for the last.

    ``churn`` (S_churn) adds fresh noise before each step but the first, where x is nothing but noise already.
    """
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1) if len(sigmas) > 1 else 0.0
    for i, (s, t) in enumerate(pairwise(sigmas)):
        if gamma > 0 and i > 0 and churn_min <= s <= churn_max:
            hat = s * (1 + gamma)
            x = x + churn_noise * math.sqrt(hat * hat - s * s) * noise(s, hat)
            s = hat
        d = (x - D(x, s)) / s
        ahead = x + (t - s) * d
        if t > 0:
            d = (d + (ahead - D(ahead, t)) / t) / 2
        x = x + (t - s) * d
    return x


def gam(D: Call, noise: Draw, x: X, sigmas: list[float], gam: float = 2.0) -> X:
    """Two-step extrapolation with a fixed ratio: gam * eps - (gam - 1) * older eps (Permenter & Yuan 2024, alg. 2)."""
    older = None
    for s, t in pairwise(sigmas):
        eps = (x - D(x, s)) / s
        x = x + (t - s) * (eps if older is None else gam * eps + (1 - gam) * older)
        older = eps
    return x


def lms(D: Call, noise: Draw, x: X, sigmas: list[float], order: int = 4) -> X:
    """Linear multistep (Adams-Bashforth in sigma; k-diffusion's LMS, DEIS's rhoAB): one evaluation a step."""
    past: Past = []
    for s, t in pairwise(sigmas):
        past = [(s, (x - D(x, s)) / s), *past][:order]
        x = adams(x, past, s, t, lambda u: u)
    return x


DEIS_BASES: dict[str, Callable[[float], float]] = {"t": time_linear, "rho": lambda u: u, "log": math.log}


def deis(D: Call, noise: Draw, x: X, sigmas: list[float], order: int = 3, basis: str = "t") -> X:
    """DEIS (Zhang & Chen 2023, arXiv:2204.13902, eq. 15): the noise as a polynomial, integrated exactly.

    ``order`` counts past noises, as diffusers does: tAB0 is order 1. ``basis`` is what the polynomial is in: "t" the
    time of the linear-beta process (tAB), "rho" sigma (rhoAB), "log" its logarithm (diffusers).
    """
    if basis not in DEIS_BASES:
        raise unknown("basis of deis", basis, DEIS_BASES)
    past: Past = []
    for s, t in pairwise(sigmas):
        past = [(s, (x - D(x, s)) / s), *past][:order]
        x = adams(x, past if t > 0 else past[:1], s, t, DEIS_BASES[basis])
    return x


def dpmpp_2m(D: Call, noise: Draw, x: X, sigmas: list[float]) -> X:
    """DPM-Solver++(2M) (Lu et al. 2022b, arXiv:2211.01095, algorithm 2): an extrapolated estimate a step."""
    return dpmpp_2m_sde(D, noise, x, sigmas, eta=0.0)


def dpmpp_3m(D: Call, noise: Draw, x: X, sigmas: list[float]) -> X:
    """DPM-Solver++(3M): exact integration of the quadratic through the last three estimates, one evaluation a step.

    The usual code (k-diffusion, diffusers) halves the second difference by mistake and so falls back to order 2.
    """
    return dpmpp_3m_sde(D, noise, x, sigmas, eta=0.0)


def dpmpp_2s(D: Call, noise: Draw, x: X, sigmas: list[float]) -> X:
    """DPM-Solver++(2S) with r = 1/2 (Lu et al. 2022b, algorithm 1): two evaluations a step, one for the last."""
    return dpmpp_2s_ancestral(D, noise, x, sigmas, eta=0.0)


def dpm_2(D: Call, noise: Draw, x: X, sigmas: list[float]) -> X:
    """The midpoint rule with its middle at the mean of log sigma (k-diffusion's DPM-2): two evaluations a step.

    Close to DPM-Solver-2 (Lu et al. 2022a, arXiv:2206.00927, algorithm 1), and exact where the noise is constant.
    """
    for s, t in pairwise(sigmas):
        eps = (x - D(x, s)) / s
        if t > 0:
            midpoint = math.sqrt(s * t)
            halfway = x + (midpoint - s) * eps
            eps = (halfway - D(halfway, midpoint)) / midpoint
        x = x + (t - s) * eps
    return x


def unipc(D: Call, noise: Draw, x: X, sigmas: list[float], order: int = 3, variant: str = "bh2") -> X:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8): each evaluation also corrects the last step.

    The system of eq. 5 has the exact integral of the interpolating polynomial as its solution, so the choice of B(h),
    ``variant`` "bh1" or "bh2", is left only where the paper fixes the last coefficient to 1/2.
    """
    if variant not in ("bh1", "bh2"):
        raise unknown("variant of unipc", variant, ("bh1", "bh2"))

    def half(x: X, newest: X, difference: X, s: float, t: float) -> X:
        amount = math.log(s / t) if variant == "bh1" else 1 - t / s
        return step(x, newest, s, t) + amount / 2 * difference

    def predict(x: X, past: Past, s: float, t: float) -> X:
        if t == 0 or len(past) != 2:
            return exponential_adams(x, past, s, t)
        (_, newest), (before, older) = past
        return half(x, newest, math.log(s / t) / math.log(before / s) * (newest - older), s, t)

    def correct(x: X, past: Past, s: float, t: float) -> X:
        if len(past) != 2:
            return exponential_adams(x, past, s, t)
        return half(x, past[1][1], past[0][1] - past[1][1], s, t)

    steps = len(sigmas) - 1
    past: Past = [(sigmas[0], D(x, sigmas[0]))] if steps else []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        p = min(order, len(past), steps - i)
        ahead = predict(x, past[:p], s, t)
        if i == steps - 1:
            return ahead
        known, past = past[:p], [(t, D(ahead, t)), *past][: order + 1]
        x = ahead + (correct(x, past[: p + 1], s, t) - predict(x, known, s, t))
    return x


def consistency(D: Call, noise: Draw, x: X, sigmas: list[float]) -> X:
    """Jump to the estimate and add all noise anew (multistep consistency sampling, Song et al. 2023, algorithm 1)."""
    for s, t in pairwise(sigmas):
        x = D(x, s)
        if t > 0:
            x = x + t * noise(s, t)
    return x


# ---- stochastic ---------------------------------------------------------------------------------------------------


def ddim(D: Call, noise: Draw, x: X, sigmas: list[float], eta: float = 0.0) -> X:
    """DDIM with fresh noise, eta = 0 deterministic to eta = 1 ancestral (Song et al. 2021a, eq. 12 and 16)."""
    for s, t in pairwise(sigmas):
        down, up = ancestral_split(s, t, eta)
        x = step(x, D(x, s), s, down)
        if up > 0:
            x = x + up * noise(s, t)
    return x


def euler_ancestral(D: Call, noise: Draw, x: X, sigmas: list[float], eta: float = 1.0) -> X:
    """Ancestral sampling in sigma: ``ddim`` with eta = 1 (Ho et al. 2020, algorithm 2)."""
    return ddim(D, noise, x, sigmas, eta)


def ddpm(D: Call, noise: Draw, x: X, sigmas: list[float], variance: str = "small") -> X:
    """DDPM (Ho et al. 2020, eq. 6 and 7), with the posterior's variance ("small") or beta's ("large")."""
    if variance not in ("small", "large"):
        raise unknown("variance of ddpm", variance, ("small", "large"))
    for s, t in pairwise(sigmas):
        x = step(x, D(x, s), s, t * t / s)
        if t > 0:
            beta = (s * s - t * t) * (t * t / (s * s) if variance == "small" else (1 + t * t) / (1 + s * s))
            x = x + math.sqrt(beta) * noise(s, t)
    return x


def dpmpp_2s_ancestral(D: Call, noise: Draw, x: X, sigmas: list[float], eta: float = 1.0) -> X:
    """DPM-Solver++(2S) down to the ancestral level, then fresh noise (k-diffusion): two evaluations a step."""
    for s, t in pairwise(sigmas):
        down, up = ancestral_split(s, t, eta)
        estimate = D(x, s)
        if down > 0:
            midpoint = math.sqrt(s * down)
            estimate = D(step(x, estimate, s, midpoint), midpoint)
        x = step(x, estimate, s, down)
        if up > 0:
            x = x + up * noise(s, t)
    return x


def dpmpp_2m_sde(D: Call, noise: Draw, x: X, sigmas: list[float], eta: float = 1.0) -> X:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, eq. 19): ``dpmpp_2m`` on the diffusion SDE; eta = 0 is the flow."""
    older, h_older = None, 0.0
    for s, t in pairwise(sigmas):
        newest = estimate = D(x, s)
        h = math.log(s / t) if t > 0 else math.inf
        if older is not None and t > 0:
            estimate = newest + h / (2 * h_older) * (newest - older)
        x = estimate + math.exp(-(1 + eta) * h) * (x - estimate)
        if up := _sde_noise(s, t, eta):
            x = x + up * noise(s, t)
        older, h_older = newest, h
    return x


def dpmpp_3m_sde(D: Call, noise: Draw, x: X, sigmas: list[float], eta: float = 1.0) -> X:
    """``dpmpp_3m`` on the diffusion SDE (k-diffusion, with the quadratic integrated exactly); eta = 0 is the flow."""
    past: Past = []
    for s, t in pairwise(sigmas):
        past = [(s, D(x, s)), *past][:3]
        x = exponential_adams(x, past, s, t, eta)
        if up := _sde_noise(s, t, eta):
            x = x + up * noise(s, t)
    return x


# ---- the registry -------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """A method and what a person choosing it wants to know.

    Attributes:
        formula: The function.
        order: Its error falls as (1/steps)^order, measured in the tests (for an SDE, of the flow at eta = 0).
        nfe: Function evaluations of the denoiser a step.
        stochastic: Whether it draws noise by default.
        use: When to use it.
    """

    formula: Callable[..., X]
    order: int
    nfe: int
    stochastic: bool
    use: str


METHODS: dict[str, Method] = {
    "euler": Method(euler, 1, 1, False, "the plainest; exact inversion back and forth; many steps"),
    "ddim": Method(ddim, 1, 1, False, "like euler; eta adds fresh noise"),
    "heun": Method(heun, 2, 2, False, "40 evaluations and more; churn for EDM's stochastic sampling"),
    "gam": Method(gam, 1, 1, False, "5 to 10 evaluations on simple data"),
    "lms": Method(lms, 4, 1, False, "40 evaluations and more, when the flow must be followed closely"),
    "deis": Method(deis, 3, 1, False, "5 to 12 evaluations"),
    "dpmpp_2m": Method(dpmpp_2m, 2, 1, False, "the default: images in 5 to 30 evaluations; robust under guidance"),
    "dpmpp_3m": Method(dpmpp_3m, 3, 1, False, "8 to 50 evaluations with exponential sigmas on smooth problems"),
    "dpmpp_2s": Method(dpmpp_2s, 2, 2, False, "strong guidance, where multistep methods overshoot"),
    "dpm_2": Method(dpm_2, 2, 2, False, "a flow with sharp bends, at 50 evaluations and more"),
    "unipc": Method(unipc, 3, 1, False, "5 to 12 evaluations with exponential sigmas"),
    "consistency": Method(consistency, 0, 1, True, "1 to 4 evaluations of a consistency model"),
    "euler_ancestral": Method(euler_ancestral, 1, 1, True, "varied images, 30 evaluations and more"),
    "ddpm": Method(ddpm, 1, 1, True, "the original; 100 evaluations and more"),
    "dpmpp_2s_ancestral": Method(dpmpp_2s_ancestral, 2, 2, True, "varied images under strong guidance"),
    "dpmpp_2m_sde": Method(dpmpp_2m_sde, 2, 1, True, "stochastic, 20 evaluations and more: forgives a model's errors"),
    "dpmpp_3m_sde": Method(dpmpp_3m_sde, 3, 1, True, "stochastic, 30 evaluations and more"),
}
