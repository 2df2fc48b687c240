"""Solvers of the probability flow that choose their own steps, to a tolerance.

In u = log sigma the flow is dx/du = x - D(x, exp(u)): smooth, and free of the stiffness at sigma = 0. Both solvers are
generators of steps like ``samplers.run``; the number of evaluations is not known beforehand, so ``Step.of`` is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..guidance import start
from ..types import Cond, Denoise, Run, Step

# Dormand & Prince 1980: nodes, stages, and the weights of order 5 and of the difference to order 4.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def rk45(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigma: float,
    to: float,
    cond: Cond | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
) -> Iterator[Step]:
    """Dormand and Prince's pair of orders 5 and 4, from ``sigma`` to ``to``, up or down; six evaluations a step.

    Every accepted step is shown; the last one's ``x`` is at ``to``. The error of a step is measured per number against
    ``atol + rtol * max(|x|, sigma)``, the worst image counts.
    """
    _check(sigma, to)
    now = Run((), 0, -1)
    denoise = start(denoise, now)

    def slope(x: Tensor, u: float) -> tuple[Tensor, Tensor]:
        now.index, now.sigma = now.index + 1, math.exp(u)
        x0 = denoise(x, x.new_full((len(x),), now.sigma), cond)
        return x - x0, x0

    u, end = math.log(sigma), math.log(to)
    h = math.copysign(min(0.5, abs(end - u)), end - u)
    first, x0 = slope(x, u)
    while u != end:
        slopes, ahead, newest = [first], x, x0
        for c, row in zip(_C[1:], _A[1:], strict=True):
            ahead = _mix(x, h, row, slopes)
            k, newest = slope(ahead, u + c * h)
            slopes.append(k)
        error = _mix(torch.zeros_like(x), h, _E, slopes)
        ratio = _ratio(error, x, ahead, math.exp(max(u, u + h)), rtol, atol)
        if ratio <= 1:
            u = end if abs(end - u - h) < 1e-12 else u + h
            x, x0, first = ahead, newest, slopes[-1]  # first same as last
            yield Step(now.index, 0, math.exp(u), x0, x)
        h = _next(h, ratio, 5, end - u)


def dpm_23(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigma: float,
    to: float,
    cond: Cond | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
) -> Iterator[Step]:
    """DPM-Solver-23 with error control (Lu et al. 2022a, arXiv:2206.00927, app. C): three evaluations a step; down.

    Written for the data form, whose exact part makes the steps at high sigma long.
    """
    _check(sigma, to)
    if to > sigma:
        raise InputError(f"dpm_23 goes from a high sigma to a low one, got {sigma:g} to {to:g}. Use rk45 to go up.")
    now = Run((), 0, -1)
    denoise = start(denoise, now)

    def estimate(x: Tensor, lam: float) -> Tensor:
        now.index, now.sigma = now.index + 1, math.exp(-lam)
        return denoise(x, x.new_full((len(x),), now.sigma), cond)

    lam, end = -math.log(sigma), -math.log(to)
    h = min(0.2, end - lam)
    x0 = estimate(x, lam)
    while lam != end:
        # The estimate as a polynomial in lambda: through 0, 1/3 for order 2, and 0, 2/3 for order 3 (eq. 4.1 and 4.2).
        third = estimate(torch.lerp(x0, x, math.exp(-h / 3)), lam + h / 3)
        slope = 3 * (third - x0)
        midpoint = torch.lerp(x0, x, math.exp(-2 * h / 3)) + _ramp(2 * h / 3) * (2 / 3) * slope
        slope_3 = 1.5 * (estimate(midpoint, lam + 2 * h / 3) - x0)
        plain = torch.lerp(x0, x, math.exp(-h))
        low, high = plain + _ramp(h) * slope, plain + _ramp(h) * slope_3
        ratio = _ratio(high - low, x, high, math.exp(-lam), rtol, atol)
        if ratio <= 1:
            lam = end if abs(end - lam - h) < 1e-12 else lam + h
            x = high
            x0 = estimate(x, lam)
            yield Step(now.index, 0, math.exp(-lam), x0, x)
        h = _next(h, ratio, 3, end - lam)


def _mix(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h * the weighted sum of slopes."""
    for w, k in zip(weights, slopes, strict=True):
        x = x.add(k, alpha=h * w)
    return x


def _ramp(h: float) -> float:
    """Integral over (0, h) of exp(u - h) u / h: what a slope of 1 over the step adds."""
    return 1 + math.expm1(-h) / h


def _ratio(error: Tensor, x: Tensor, new: Tensor, sigma: float, rtol: float, atol: float) -> float:
    """The worst image's error in units of what is allowed."""
    allowed = atol + rtol * torch.maximum(x.abs(), new.abs()).clamp(min=sigma)
    return float((error / allowed).flatten(1).square().mean(1).sqrt().max())


def _next(h: float, ratio: float, order: int, left: float) -> float:
    """The next step's length: the longest that should pass, but not past the end."""
    if not math.isfinite(ratio):
        if abs(h) < 1e-9:
            raise InputError("The denoiser's estimates are not finite. Look at its input, and at the model.")
        return h / 4
    h *= min(max(0.9 * max(ratio, 1e-9) ** (-1 / order), 0.2), 5.0)
    return math.copysign(min(abs(h), abs(left)), h)


def _check(sigma: float, to: float) -> None:
    if not (0 < sigma < math.inf and 0 < to < math.inf):
        raise InputError(f"Adaptive solvers go between sigmas above 0, got {sigma:g} and {to:g}. Try 80 and 0.002.")
    if sigma == to:
        raise InputError(f"There is no way from sigma {sigma:g} to itself. Give two levels, e.g. 80 and 0.002.")
