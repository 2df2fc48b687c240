"""Other ways from data to noise than adding it: blur and noise together, a bridge, or any degradation at all.

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

from .. import noise
from ..corruptions import CORRUPTIONS, Corruption, Number, OneOf, parse
from ..corruptions import Step as Damage
from ..corruptions.core import sequence
from ..errors import InputError
from ..guidance import start
from ..types import Cond, Denoise, Run, Step
from .tables import Table


class Process(Protocol):
    """A way from data (level 0) to nothing (the highest level).

    ``degrade`` gives x at a level; ``step`` moves x from level s down to t, given an estimate of the clean data. Of the
    noise, ``eta`` = 0 keeps what is in x, ``eta`` = 1 renews as much as the posterior q(x_t | x_s, x0) does.
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


@dataclass(frozen=True)
class Bridge:
    """From data (level 0) to other images (level 1) instead of to noise: a Brownian bridge between the two.

    x_t = (1 - t) x0 + t end + std sqrt(t (1 - t)) n (Li et al. 2023, BBDM, arXiv:2205.07680, eq. 4; I2SB, Liu et al.
    2023, arXiv:2302.05872, eq. 11, with even time). It starts at ``end`` itself; ``eta`` = 1 is its posterior.

    Attributes:
        end: The images that it comes from, one per row.
        std: Twice the standard deviation of the noise in the middle.
    """

    end: Float[Tensor, "b *d"]
    std: float = 1.0

    def degrade(
        self, x0: Float[Tensor, "b *d"], level: float | Tensor, noise: Float[Tensor, "b *d"]
    ) -> Float[Tensor, "b *d"]:
        """A place on the way; ``level`` may differ from row to row."""
        return torch.lerp(x0, self.end, level) + self.std * (level * (1 - level)) ** 0.5 * noise

    def step(
        self, x: Float[Tensor, "b *d"], x0: Float[Tensor, "b *d"], s: float, t: float, fresh=None, eta: float = 0.0
    ) -> Float[Tensor, "b *d"]:
        """To level t with the noise that x has at level s, as far as it has any, and ``fresh`` noise for the rest."""
        if fresh is None:
            fresh, eta = torch.zeros_like(x), 0.0
        place, spread = torch.lerp(x0, self.end, t), self.std * math.sqrt(t * (1 - t))
        if s >= 1:  # the end itself has no noise to keep
            return place + spread * fresh
        residue = (x - torch.lerp(x0, self.end, s)) / (self.std * math.sqrt(s * (1 - s)) or math.inf)
        renewed = eta * math.sqrt(max(1 - t * (1 - s) / (s * (1 - t)), 0.0))
        return place + spread * (math.sqrt(1 - renewed**2) * residue + renewed * fresh)


# ---- by name: levels run from 0, the data, to 1 --------------------------------------------------------------------


def gaussian(side: int) -> BlurNoise:
    """Noise alone, up to a standard deviation of 10: the plain diffusion, to compare with."""
    return BlurNoise(width=lambda t: 0.0, std=lambda t: 10 * t**3)


def blur_noise(side: int) -> BlurNoise:
    """Blurring diffusion (Hoogeboom & Salimans 2023, arXiv:2209.05557, app. A): details go first."""
    return BlurNoise(width=lambda t: side / 4 * math.sin(math.pi / 2 * t) ** 2, std=lambda t: 10 * t**3)


def heat(side: int) -> BlurNoise:
    """Inverse heat dissipation (Rissanen et al. 2023, arXiv:2206.13397): blur, and a little noise to choose with."""
    return BlurNoise(width=lambda t: side / 2 * t**2, std=lambda t: 0.02 if t > 0 else 0.0)


def soft(side: int) -> BlurNoise:
    """Soft diffusion (Daras et al. 2022, arXiv:2209.05442): blur with a moderate noise, which never hides all."""
    return BlurNoise(width=lambda t: side / 4 * t**2, std=lambda t: t**2)


PROCESSES: dict[str, Callable[[int], BlurNoise]] = {f.__name__: f for f in (gaussian, blur_noise, heat, soft)}


def process(text: str, side: int) -> Process:
    """A named process for images of ``side`` pixels, or the cold one of a corruption ("blur 4", "pixelate 8, gray").

    Raises InputError for what is neither.
    """
    if text in PROCESSES:
        return PROCESSES[text](side)
    damage = parse(text)
    if isinstance(damage, OneOf):
        raise InputError(f"A cold process is one corruption, got the choice {text!r}. Say one.")
    for step in damage.steps:
        if any(getattr(p, "single", False) for p in CORRUPTIONS[step.name].parameters.values()):
            raise InputError(f"{step.name} goes in whole factors, and cannot be undone a little at a time.")
        if step.name in ("noise", "mix"):
            raise InputError(f"A cold process has no noise, got {text!r}. Take 'gaussian' for noise alone.")
        if graded(step) and not (step.values and isinstance(step.values[0], float)):
            raise InputError(f"A cold process needs a strength, got {str(step)!r}. Example: 'blur 4'.")

    def degradation(x0: Tensor, level: float) -> Tensor:
        if level <= 0:
            return x0
        operator = weaker(damage, level).on(x0.shape[1:], [0] * len(x0))
        whole = operator.lift(operator.forward(x0))
        # what has no strength, such as gray, is mixed in
        return whole if all(map(graded, damage.steps)) else torch.lerp(x0, whole, level)

    return Cold(degradation)


def graded(step: Damage) -> bool:
    """Whether it has a strength that can be turned down to nothing, other than in whole factors."""
    parameters = CORRUPTIONS[step.name].parameters.values()
    return any(isinstance(p, Number) and p.none is not None and not p.single for p in parameters)


def weaker(damage: Corruption, level: float) -> Corruption:
    """The same corruption at a part of its strength: at 0 it does nothing, at 1 all of its own strength."""
    return sequence([Damage(step.name, tuple(_weaker(step, level))) for step in damage.steps])


def _weaker(step: Damage, level: float) -> Iterator[object]:
    for specified, parameter in zip(step.values, CORRUPTIONS[step.name].parameters.values(), strict=False):
        if not isinstance(parameter, Number) or parameter.none is None or not isinstance(specified, float):
            yield specified
        else:
            value = parameter.none + level * (specified - parameter.none)
            yield round(value) if parameter.whole else value


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
        table: One evaluation a level, without noise of its own.
        process: How to move.
        cond: Passed on to the denoiser.
        eta: How much noise to renew at each step (see :class:`Process`); needs ``seeds``.
        seeds: One per image.
    """
    levels = tuple(row.sigma for row in table.rows)
    if table.stochastic or levels != table.sigmas[:-1]:
        raise InputError(
            f"Sampler {table.name!r} cannot follow a process: it must evaluate once a level and draw no noise. "
            "Use euler, dpmpp_2m or unipc, and eta= for fresh noise."
        )
    if eta > 0 and (seeds is None or len(seeds) != len(x)):
        raise InputError(f"eta={eta:g} draws noise and needs one seed per image. Pass seeds=range({len(x)}).")
    now = Run(levels, len(levels))
    denoise = start(denoise, now)
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    for i, (row, (s, t)) in enumerate(zip(table.rows, pairwise(table.sigmas), strict=True)):
        now.index, now.sigma = i, s
        x0 = estimate = denoise(x, x.new_full((len(x),), s), cond)
        for w, older in zip(row.weights, history, strict=False):
            estimate = estimate + w / (1 - row.ratio) * (older - x0)
        fresh = None
        if eta > 0 and t > 0:
            draws = [
                torch.randn(x.shape[1:], generator=noise.generator(seed, noise.Stream.PROCESS_NOISE, i))
                for seed in seeds or ()
            ]
            fresh = torch.stack(draws).to(x)
        x = process.step(x, estimate, s, t, fresh, eta if fresh is not None else 0.0)
        history.appendleft(x0)
        yield Step(i, table.nfe, s, x0, x)


def _blur(x: Tensor, transfer: Tensor) -> Tensor:
    return noise.idct2(noise.dct2(x) * transfer)
