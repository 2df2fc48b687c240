"""Guidance: a function from denoiser to denoiser. Wrappers nest freely, because none of them knows the sampler.

A guidance is written as a factory that returns the guided denoiser. What it remembers between calls (momentum, the
previous estimate) lives in the factory's own variables, and the sampling loop calls the factory anew at the start of
each run (:func:`start`): nothing survives a run, and two interleaved runs cannot disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .types import Cond, Denoise


@dataclass(frozen=True)
class Guided:
    """A denoiser under guidance, not yet started. Called directly, it is a run of one call."""

    factory: Callable[..., Denoise]
    denoise: Denoise
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def start(self) -> Denoise:
        """A fresh guided denoiser for one run, everything inside it started too."""
        return self.factory(start(self.denoise), *self.args, **self.kwargs)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return self.start()(x, sigma, cond)


def start(denoise: Denoise) -> Denoise:
    """A denoiser ready for one run: guidance is built anew, a plain denoiser is itself."""
    return denoise.start() if isinstance(denoise, Guided) else denoise


def guidance(factory: Callable[..., Denoise]) -> Callable[..., Guided]:
    """Make ``factory(denoise, ...) -> denoiser`` a guidance: started anew for each run."""

    @wraps(factory)
    def wrap(denoise: Denoise, *args: Any, **kwargs: Any) -> Guided:
        return Guided(factory, denoise, args, kwargs)

    return wrap


@guidance
def self_conditioned(denoise: Denoise) -> Denoise:
    """Feed each estimate back into the next call (Chen et al. 2022, arXiv:2208.04202, algorithm 2)."""
    estimate: Tensor | None = None

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        nonlocal estimate
        given = estimate if estimate is not None else torch.zeros_like(x)
        estimate = denoise(x, sigma, replace(cond or Cond(), estimate=given))
        return estimate

    return guided


@guidance
def cfg(
    denoise: Denoise, scale: float, uncond: Cond | None = None, interval: tuple[float, float] = (0.0, float("inf"))
) -> Denoise:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    Args:
        denoise: A model trained with dropped conditions.
        scale: 1 is off and costs one call; 0 is unconditional.
        uncond: What stands for "nothing" (a negative prompt); by default the condition with label and words dropped.
        interval: Guide only where low < sigma <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        low, high = interval
        if scale == 1 or cond is None or not low < float(sigma[0]) <= high:
            return denoise(x, sigma, cond)
        both = Cond.cat([cond, uncond if uncond is not None else cond.null()])
        with_cond, without = denoise(x.repeat(2, *[1] * (x.ndim - 1)), sigma.repeat(2), both).chunk(2)
        return torch.lerp(without, with_cond, scale)

    return guided
