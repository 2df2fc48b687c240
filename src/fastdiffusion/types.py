"""The few types that every room shares: what a denoiser is, what it is told, what a sampling step shows.

A *denoiser* is any callable ``denoise(x, sigma, cond=None) -> x0`` where ``x = x0 + sigma * noise``: ``x`` has shape
``(b, *d)``, ``sigma`` shape ``(b,)`` in data units, and the result is the expected clean data, of ``x``'s shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """What a denoiser is told besides the noisy image. Every field has one row per image; None means "not told".

    Attributes:
        label: Class indices; -1 means "no class" (the unconditional case of classifier-free guidance).
        tokens: A caption's token numbers, 0 where there is none; a net with a text encoder turns them into ``emb``.
        emb: Token states of a text (or image) encoder, with ``mask`` True where a token is real.
        mask: See ``emb``.
        pooled: One vector per image.
        augment: How a training picture was augmented (EDM, Karras et al. 2022, app. F.2); zeros mean "not at all".
        image: A picture to condition on (a degraded input, a low resolution), stacked to ``x`` as channels.
        estimate: The previous step's x0 (self-conditioning, Chen et al. 2022, arXiv:2208.04202).
    """

    label: Int[Tensor, " b"] | None = None
    tokens: Int[Tensor, "b n"] | None = None
    emb: Float[Tensor, "b n d"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    augment: Float[Tensor, "b a"] | None = None
    image: Float[Tensor, "b c h w"] | None = None
    estimate: Float[Tensor, "b *d"] | None = None

    def _map(self, f) -> Cond:
        present = {f_.name: getattr(self, f_.name) for f_ in fields(self)}
        return replace(self, **{name: f(value) for name, value in present.items() if value is not None})

    def to(self, device: torch.device | str) -> Cond:
        """The same on another device."""
        return self._map(lambda v: v.to(device))

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Cond:
        """The chosen rows (a slice, indices or a mask)."""
        return self._map(lambda v: v[rows])

    def drop(self, which: Bool[Tensor, " b"]) -> Cond:
        """Forget label and words in the rows where ``which`` is True (Ho & Salimans 2022, algorithm 1)."""
        label = None if self.label is None else torch.where(which, -1, self.label)
        tokens = None if self.tokens is None else self.tokens * ~which[:, None]
        mask = None if self.mask is None else self.mask & ~which[:, None]
        pooled = None if self.pooled is None else self.pooled * ~which[:, None]
        return replace(self, label=label, tokens=tokens, mask=mask, pooled=pooled)

    def null(self) -> Cond:
        """The unconditional counterpart: no label and no words in any row; all else kept."""
        some = next((v for v in (self.label, self.tokens, self.mask, self.pooled) if v is not None), None)
        return self if some is None else self.drop(torch.ones(len(some), dtype=torch.bool, device=some.device))

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Stack several along the batch; all must have the same fields."""
        names = [f.name for f in fields(Cond) if getattr(conds[0], f.name) is not None]
        return Cond(**{name: torch.cat([getattr(c, name) for c in conds]) for name in names})


class Denoise(Protocol):
    """The one interface between models, guidance and samplers."""

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]: ...


class Step(NamedTuple):
    """What a sampler shows after each denoiser call.

    Attributes:
        index: 0 for the first call; ``of`` is how many there will be.
        of: Number of calls of the whole run.
        sigma: Noise level that the denoiser was called at.
        x0: The denoiser's estimate of the clean data (the live preview).
        x: The new state; the last step's is the result.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index, which nobody calls here)
    of: int
    sigma: float
    x0: Tensor
    x: Tensor


@dataclass
class Run:
    """Where a sampling run is. The loop sets ``index`` and ``sigma`` before each evaluation of the denoiser.

    Plain numbers: what depends on them (``guidance.start``) never waits for a device.

    Attributes:
        sigmas: Noise level of each evaluation, in order; empty where an adaptive solver chooses them on the way.
        steps: Intervals of the table; 0 where an adaptive solver chooses.
        index: Of the present evaluation, from 0.
        sigma: Its noise level, exactly the table's number.
    """

    sigmas: tuple[float, ...]
    steps: int
    index: int = 0
    sigma: float = math.nan
