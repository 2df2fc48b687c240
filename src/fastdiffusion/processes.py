"""Other ways from data to noise than adding it: blur and noise together, or any degradation at all.

A process knows how to degrade clean data to a level, and how to step from one level to another given an estimate of
the clean data. Sampling is the table loop once more: the row's mix of estimates is handed to the process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from . import noise
from .errors import InputError
from .guidance import start
from .samplers import Table
from .types import Cond, Denoise, Step


class Process(Protocol):
    """A way from data (level 0) to nothing (the highest level).

    ``degrade`` gives x at a level; ``step`` moves x from level s down to t, given an estimate of the clean data. Of the
    noise, ``eta`` = 0 keeps what is in x, ``eta`` = 1 renews as much as the posterior q(x_t | x_s, x0) says.
    """

    def degrade(self, x0: Float[Tensor, "b *d"], level: float, noise: Float[Tensor, "b *d"]) -> Tensor: ...

    def step(
        self, x: Tensor, x0: Tensor, s: float, t: float, fresh: Tensor | None = None, eta: float = 0.0
    ) -> Tensor: ...


@dataclass(frozen=True)
class BlurNoise:
    """Blur and noise together (Hoogeboom & Salimans 2023, arXiv:2209.05557; Rissanen et al. 2023, arXiv:2206.13397).

    In the DCT basis a Gaussian blur only scales: x_k = d_k x0_k + std * n_k. So each frequency is a plain diffusion
    with its own sigma_k = std / d_k, which the denoiser's level stands for.

    Attributes:
        width: Standard deviation of the blur in pixels, of the level; 0 is plain noise.
        std: Standard deviation of the noise, of the level; a small constant is inverse heat dissipation.
    """

    width: Callable[[float], float]
    std: Callable[[float], float] = float

    def transfer(self, level: float, like: Float[Tensor, "*b h w"]) -> Float[Tensor, "h w"]:
        """d_k: what the blur leaves of each frequency."""
        h, w = (torch.arange(n, dtype=like.dtype, device=like.device) * math.pi / n for n in like.shape[-2:])
        frequency = h[:, None].square() + w.square()
        return (-frequency * self.width(level) ** 2 / 2).exp().clamp(min=1e-6)

    def degrade(
        self, x0: Float[Tensor, "b c h w"], level: float, noise: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Blurred ``x0`` with ``noise`` on it."""
        return _blur(x0, self.transfer(level, x0)) + self.std(level) * noise

    def step(
        self,
        x: Float[Tensor, "b c h w"],
        x0: Float[Tensor, "b c h w"],
        s: float,
        t: float,
        fresh: Float[Tensor, "b c h w"] | None = None,
        eta: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """Re-degrade ``x0`` to level t with the noise that x has at level s, frequency by frequency."""
        before, after, spectrum = self.transfer(s, x), self.transfer(t, x), noise.dct2(x0)
        residue = (noise.dct2(x) - before * spectrum) / self.std(s)  # the unit noise in x
        share = torch.zeros_like(after)  # of the noise at t that is fresh
        if eta > 0 and fresh is not None:
            ratio = (self.std(t) / after) / (self.std(s) / before)  # sigma_k at t over sigma_k at s
            share = (eta * (1 - ratio.square()).clamp(min=0).sqrt()).clamp(max=1)
            residue = (1 - share.square()).sqrt() * residue + share * noise.dct2(fresh)
        return noise.idct2(after * spectrum + self.std(t) * residue)


@dataclass(frozen=True)
class Cold:
    """Any degradation without noise: x at a level is ``degradation(x0, level)`` (Bansal et al. 2022, arXiv:2208.09392).

    ``degradation`` must be deterministic, and give ``x0`` itself at level 0.
    """

    degradation: Callable[[Tensor, float], Tensor]

    def degrade(self, x0: Float[Tensor, "b *d"], level: float, noise: Tensor | None = None) -> Float[Tensor, "b *d"]:
        """The degraded data; no noise is used."""
        return self.degradation(x0, level)

    def step(
        self, x: Float[Tensor, "b *d"], x0: Float[Tensor, "b *d"], s: float, t: float, fresh=None, eta: float = 0.0
    ) -> Float[Tensor, "b *d"]:
        """x - D(x0, s) + D(x0, t): errors of the estimate cancel to first order (algorithm 2)."""
        if eta > 0:
            raise InputError(f"A cold process has no noise to renew, got eta={eta:g}. Use eta=0.")
        return x - self.degradation(x0, s) + self.degradation(x0, t)


def run(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    table: Table,
    process: Process,
    cond: Cond | None = None,
    eta: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Perform a deterministic table along a process; the mix of estimates is the table's, the move the process's.

    Args:
        denoise: ``denoise(x, level, cond) -> x0``.
        x: The start, at level ``table.sigmas[0]``.
        table: One call a level, without noise of its own.
        process: How to move.
        cond: Passed on to the denoiser.
        eta: How much noise to renew at each step (see :class:`Process`); needs ``seeds``.
        seeds: One per image.
    """
    levels = [row.sigma for row in table.rows]
    if table.stochastic or levels != list(table.sigmas[:-1]):
        raise InputError(
            f"Sampler {table.name!r} cannot follow a process: it must call once a level and draw no noise. "
            "Use euler, dpmpp_2m or unipc, and eta= for fresh noise."
        )
    if eta > 0 and (seeds is None or len(seeds) != len(x)):
        raise InputError(f"eta={eta:g} draws noise and needs one seed per image. Pass seeds=range({len(x)}).")
    denoise = start(denoise)
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    for i, (row, (s, t)) in enumerate(zip(table.rows, pairwise(table.sigmas), strict=True)):
        x0 = estimate = denoise(x, x.new_full((len(x),), s), cond)
        for w, older in zip(row.weights, history, strict=False):
            estimate = estimate + w / (1 - row.ratio) * (older - x0)
        fresh = None
        if eta > 0 and t > 0:
            draws = [torch.randn(x.shape[1:], generator=noise.generator(seed, 6, i)) for seed in seeds or ()]
            fresh = torch.stack(draws).to(x)
        x = process.step(x, estimate, s, t, fresh, eta if fresh is not None else 0.0)
        history.appendleft(x0)
        yield Step(i, table.calls, s, x0, x)


def _blur(x: Tensor, transfer: Tensor) -> Tensor:
    return noise.idct2(noise.dct2(x) * transfer)
