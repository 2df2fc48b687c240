"""Guidance: a function from denoiser to denoiser. Wrappers nest freely, because none of them knows the sampler.

    guided = inpaint(cfg(model.denoise, scale=3), image, mask)

A guidance is written as a factory that returns the guided denoiser. The sampling loop calls the factory anew at the
start of each run (:func:`start`), so what it keeps between evaluations (momentum, the previous estimate) lives in the
factory's own variables: nothing survives a run, and two runs in two threads cannot disturb each other. A factory that
depends on where the run is takes ``run`` as a keyword:

    @guidance
    def late(denoise, scale, *, run: Run):
        return lambda x, sigma, cond=None: denoise(x, sigma, cond) * (scale if 2 * run.index > len(run.sigmas) else 1)

All of it rests on one identity. With Tweedie's formula D(x, sigma) = x + sigma^2 * grad log p(x; sigma), a condition y
adds its own gradient (Bayes):

    D(x, sigma | y) = D(x, sigma) + sigma^2 * grad_x log p(y | x; sigma)

A guidance is a way to get the last term: from a classifier, from a loss on x0, from the difference of two denoisers.
Every ``scale`` is a number or a function of sigma. Where guidance mixes two estimates 1 is off; where it adds a
gradient 0 is off; off costs nothing and changes no bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from ..errors import InputError
from ..types import Cond, Denoise, Run

Scale = float | Callable[[float], float]
Interval = tuple[float, float]
ALWAYS: Interval = (0.0, float("inf"))
Other = TypeVar("Other")


class Startable:
    """A denoiser that depends on where its run is: :func:`start` exchanges it for the one of a run."""

    def start(self, run: Run) -> Denoise:
        """The denoiser of one run."""
        raise NotImplementedError


@dataclass(frozen=True)
class Guided(Startable):
    """A denoiser under guidance, not yet started. Called directly, it is a run of one evaluation."""

    factory: Callable[..., Denoise]
    takes_run: bool
    denoise: Denoise
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def start(self, run: Run) -> Denoise:
        """A fresh guided denoiser for one run; all guidance inside it is started with the same ``run``."""
        args = [start(value, run) for value in (self.denoise, *self.args)]
        kwargs = {name: start(value, run) for name, value in self.kwargs.items()}
        return self.factory(*args, **kwargs, run=run) if self.takes_run else self.factory(*args, **kwargs)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        level = float(sigma[0])
        return self.start(Run((level,), 1, 0, level))(x, sigma, cond)


def start(denoise: Any, run: Run) -> Any:
    """A denoiser ready for one run: guidance is built anew, a plain denoiser (or anything else) is itself.

    Whoever starts a denoiser sets ``run.index`` and ``run.sigma`` before each evaluation.
    """
    return denoise.start(run) if isinstance(denoise, Startable) else denoise


def guidance(factory: Callable[..., Denoise]) -> Callable[..., Guided]:
    """Make ``factory(denoise, ...) -> denoiser`` a guidance, started anew for each run.

    A factory with a parameter ``run`` is given the :class:`~fastdiffusion.types.Run` as a keyword.
    """
    takes_run = "run" in inspect.signature(factory).parameters

    @wraps(factory)
    def wrap(denoise: Denoise, *args: Any, **kwargs: Any) -> Guided:
        return Guided(factory, takes_run, denoise, args, kwargs)

    return wrap


def scale_at(scale: Scale, run: Run, interval: Interval = ALWAYS, off: float = 1.0) -> float:
    """The scale at the present evaluation: ``off`` unless low < sigma <= high."""
    if not interval[0] < run.sigma <= interval[1]:
        return off
    return scale(run.sigma) if callable(scale) else scale


def to_rows(value: Any, rows: int) -> Any:
    """A tensor (or each tensor of a mapping) with ``rows`` rows.

    One row serves all; one row per image also serves a batch that stacks several conditions of the same images, and
    the other way round: guidance outside may stack them at one evaluation and not at the next.
    """
    if isinstance(value, Mapping):
        return {name: to_rows(each, rows) for name, each in value.items()}
    if value is None or len(value) == rows:
        return value
    if len(value) == 1:
        return value.expand(rows, *value.shape[1:])
    if rows % len(value) and len(value) % rows:
        raise InputError(f"{len(value)} rows were given for a batch of {rows}. Give one, or one per image.")
    return value[:rows] if rows < len(value) else value.repeat(rows // len(value), *[1] * (value.ndim - 1))


def rows_like(value: Tensor, like: Tensor) -> Tensor:
    """``value`` broadcast to ``like``, on its device."""
    return (to_rows(value, len(like)) if value.ndim == like.ndim else value).to(like).expand_as(like)
