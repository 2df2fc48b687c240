"""Guidance: a function from denoiser to denoiser. Wrappers nest freely, because none of them knows the sampler.

    guided = inpaint(cfg(model.denoise, scale=3), picture, mask)

A guidance is written as a factory that returns the guided denoiser. What it remembers between calls (momentum, the
previous estimate) lives in the factory's own variables, and the sampling loop calls the factory anew at the start of
each run (:func:`start`): nothing survives a run, and two interleaved runs cannot disturb each other.

All of it rests on one identity. With Tweedie's formula D(x, sigma) = x + sigma^2 * grad log p(x; sigma), more
knowledge y adds its own gradient (Bayes):

    D(x, sigma | y) = D(x, sigma) + sigma^2 * grad_x log p(y | x; sigma)

A guidance is a way to get the last term: from a classifier, from a loss on x0, from the difference of two denoisers.
Every ``scale`` is a number or a function of sigma. Where guidance mixes two estimates 1 is off; where it adds a
gradient 0 is off; off costs nothing and changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..types import Cond, Denoise

Scale = float | Callable[[float], float]
Interval = tuple[float, float]
ALWAYS: Interval = (0.0, float("inf"))
Other = TypeVar("Other")
SLACK = 1 + 1e-6  # a level that is meant may arrive rounded up to float32


@dataclass(frozen=True)
class Guided:
    """A denoiser under guidance, not yet started. Called directly, it is a run of one call."""

    factory: Callable[..., Denoise]
    denoise: Denoise
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def start(self) -> Denoise:
        """A fresh guided denoiser for one run, everything inside it started too."""
        kwargs = {name: start(value) for name, value in self.kwargs.items()}
        return self.factory(start(self.denoise), *map(start, self.args), **kwargs)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return self.start()(x, sigma, cond)


def start(denoise: Any) -> Any:
    """A denoiser ready for one run: guidance is built anew, a plain denoiser (or anything else) is itself."""
    return denoise.start() if isinstance(denoise, Guided) else denoise


def guidance(factory: Callable[..., Denoise]) -> Callable[..., Guided]:
    """Make ``factory(denoise, ...) -> denoiser`` a guidance: started anew for each run."""

    @wraps(factory)
    def wrap(denoise: Denoise, *args: Any, **kwargs: Any) -> Guided:
        return Guided(factory, denoise, args, kwargs)

    return wrap


def scale_at(scale: Scale, sigma: Tensor, interval: Interval = ALWAYS, off: float = 1.0) -> float:
    """The scale at this noise level: ``off`` unless low < sigma <= high."""
    level = float(sigma[0])
    if not interval[0] * SLACK < level <= interval[1] * SLACK:
        return off
    return scale(level) if callable(scale) else scale


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """``value`` broadcast to ``like``; one row serves all, and b rows serve a batch of several conditions per image.

    A guidance outside may stack conditions in one call and not in the next; the images are then the same, cycled.
    """
    if value.ndim == like.ndim:
        if len(like) % len(value) and len(value) % len(like):
            raise InputError(f"{len(value)} images were given for a batch of {len(like)}. Give one, or one per image.")
        value = value[torch.arange(len(like), device=value.device) % len(value)]
    return value.to(like).expand_as(like)
