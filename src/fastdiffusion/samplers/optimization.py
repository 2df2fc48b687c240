"""Sampling as optimization: the denoiser's direction is a gradient, and an optimizer walks down it.

The distance of x to the data has the gradient x - D(x), so (x - D) / sigma, the estimated noise, is a gradient of unit
size, and a learning rate is the part of the remaining noise that a step removes (Permenter & Yuan 2023,
arXiv:2306.04848). Plain descent is then DDIM on exponential sigmas, exactly; momentum and Adam are something else.

With ``level`` the noise level is estimated rather than planned: blind sampling (Kadkhodaie & Simoncelli 2021,
arXiv:2007.13640). How they compare with a table is measured in ``bench/optimizer_sampling.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers import expand
from ..errors import InputError, unknown
from ..guidance import start
from ..types import Cond, Denoise, Run, Step

Update = Callable[[Tensor], Tensor]  # from a gradient to a direction; keeps what it must


def descent() -> Update:
    """Plain gradient descent."""
    return lambda gradient: gradient


def momentum(beta: float = 0.3) -> Update:
    """An average of the gradients, the newest weighing 1 - beta. A negative ``beta`` extrapolates."""
    average: Tensor | None = None

    def update(gradient: Tensor) -> Tensor:
        nonlocal average
        average = gradient if average is None else torch.lerp(gradient, average, beta)
        return average

    return update


def extrapolation(gamma: float = 2.0) -> Update:
    """gamma * newest + (1 - gamma) * last gradient (Permenter & Yuan 2023, eq. 12); the sampler ``gam`` is the same."""
    last: Tensor | None = None

    def update(gradient: Tensor) -> Tensor:
        nonlocal last
        direction = gradient if last is None else torch.lerp(last, gradient, gamma)
        last = gradient
        return direction

    return update


def adam(beta1: float = 0.3, beta2: float = 0.9, eps: float = 1e-8) -> Update:
    """Adam (Kingma & Ba 2015, algorithm 1): each number's average gradient over its root mean square."""
    first, second, steps = 0.0, 0.0, 0

    def update(gradient: Tensor) -> Tensor:
        nonlocal first, second, steps
        steps += 1
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.square()
        return first / (1 - beta1**steps) / ((second / (1 - beta2**steps)).sqrt() + eps)

    return update


UPDATES: dict[str, Callable[..., Update]] = {f.__name__: f for f in (descent, momentum, extrapolation, adam)}


def optimize(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigma_max: float,
    steps: int = 12,
    update: str = "momentum",
    sigma_min: float = 0.002,
    level: Callable[[Tensor], Tensor] | None = None,
    cond: Cond | None = None,
    **options: Any,
) -> Iterator[Step]:
    """Sample by an optimizer; yields steps like ``samplers.run``, one evaluation each.

    Args:
        denoise: A model, or a model under guidance.
        x: The start, at noise level ``sigma_max``.
        sigma_max: See ``x``.
        steps: Evaluations. Each but the last removes the same part of the noise, so that ``sigma_min`` is left before
            the last, whose result is the estimate itself.
        update: A name in ``UPDATES``; ``options`` are its own.
        sigma_min: See ``steps``.
        level: The noise level of each image of a batch, estimated from x alone: blind sampling. By default as planned.
        cond: Passed on to the denoiser.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise InputError(f"need steps >= 1 and 0 < sigma_min < sigma_max, got {steps}, {sigma_min}, {sigma_max}.")
    if update not in UPDATES:
        raise unknown("update", update, UPDATES)
    keep = (sigma_min / sigma_max) ** (1 / (steps - 1)) if steps > 1 else 0.0
    now = Run(tuple(sigma_max * keep**i for i in range(steps)), steps)
    denoise, direction = start(denoise, now), UPDATES[update](**options)
    for i, planned in enumerate(now.sigmas):
        now.index, now.sigma = i, planned
        sigma = x.new_full((len(x),), planned) if level is None else level(x).to(x)
        x0 = denoise(x, sigma, cond)
        s = expand(sigma, x)
        move = direction((x - x0) / s)
        x = x - (1 - keep) * s * move if i < steps - 1 else x0.clone()
        yield Step(i, steps, planned if level is None else float(sigma.mean()), x0, x)
