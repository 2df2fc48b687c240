"""The few types that all packages share: a denoiser, its condition, a step of sampling.

A *denoiser* is any callable ``denoise(x, sigma, cond=None) -> x0`` where ``x = x0 + sigma * noise``: ``x`` has shape
``(b, *d)``, ``sigma`` shape ``(b,)`` in data units, and the result is the expected clean data, of ``x``'s shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class Cond:
    """What a denoiser is conditioned on besides the noisy sample. Every part has one row per sample; None is "nothing".

    Attributes:
        label: Class indices; -1 means "no class" (the unconditional case of classifier-free guidance).
        tokens: A caption's token numbers, 0 where there is none; a net with a text encoder turns them into ``emb``.
        emb: Token states of a text (or image) encoder.
        mask: True where a row of ``emb`` is a real token. It belongs to ``emb``: neither is replaced without the other.
        pooled: One vector per sample.
        augment: How a training image was augmented (EDM, Karras et al. 2022, app. F.2); zeros mean "not at all".
        image: An image to condition on (a degraded input, a low resolution), stacked to ``x`` as channels.
        estimate: The previous step's x0 (self-conditioning, Chen et al. 2022, arXiv:2208.04202).
        extra: What only some model families know, by name: size ids, embedded guidance, a second pooled vector.
    """

    label: Int[Tensor, " b"] | None = None
    tokens: Int[Tensor, "b n"] | None = None
    emb: Float[Tensor, "b n d"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    augment: Float[Tensor, "b a"] | None = None
    image: Float[Tensor, "b c h w"] | None = None
    estimate: Float[Tensor, "b *d"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.emb is not None and self.mask is not None and self.mask.shape != self.emb.shape[:2]:
            raise InputError(
                f"A mask of shape {tuple(self.mask.shape)} is not that of an emb of shape {tuple(self.emb.shape)}. "
                "Replace both at once: cond.with_text(other)."
            )

    def parts(self) -> dict[str, Tensor]:
        """All tensors by name; those in ``extra`` as ``extra.NAME``."""
        own = {name: v for name, v in vars(self).items() if name != "extra" and v is not None}
        return own | {f"extra.{name}": v for name, v in self.extra.items()}

    @staticmethod
    def of(parts: Mapping[str, Tensor]) -> Cond:
        """The condition with these :meth:`parts`."""
        own: dict[str, Any] = {name: v for name, v in parts.items() if not name.startswith("extra.")}
        return Cond(**own, extra={k[6:]: v for k, v in parts.items() if k.startswith("extra.")})

    def __len__(self) -> int:
        """The number of rows; 0 where nothing is specified."""
        return len(next(iter(self.parts().values()), ()))

    def __bool__(self) -> bool:
        return True  # a condition without rows is still one

    def map(self, f: Callable[[Tensor], Tensor]) -> Cond:
        """``f`` of every tensor."""
        return Cond.of({name: f(value) for name, value in self.parts().items()})

    def to(self, device: torch.device | str) -> Cond:
        """The same on another device."""
        return self.map(lambda v: v.to(device))

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Cond:
        """The chosen rows (a slice, indices or a mask)."""
        return self.map(lambda v: v[rows])

    def expand(self, rows: int) -> Cond:
        """A condition of one row for ``rows`` samples."""
        return self.map(lambda v: v.expand(rows, *v.shape[1:]))

    def drop(self, which: Bool[Tensor, " b"]) -> Cond:
        """Without label and text in the rows where ``which`` is True (Ho & Salimans 2022, algorithm 1)."""
        label = None if self.label is None else torch.where(which, -1, self.label)
        tokens = None if self.tokens is None else self.tokens * ~which[:, None]
        mask = self.mask
        if self.emb is not None:
            mask = self._mask() & ~which[:, None]
        pooled = None if self.pooled is None else self.pooled * ~which[:, None]
        return replace(self, label=label, tokens=tokens, mask=mask, pooled=pooled)

    def null(self) -> Cond:
        """The unconditional counterpart: no label and no text in any row; all else kept.

        This is what nets of this package were trained with. What a model's own "nothing" is, ``Model.null`` says: for
        some families it is the embedding of an empty prompt.
        """
        some = next((v for v in (self.label, self.tokens, self.emb, self.pooled) if v is not None), None)
        return self if some is None else self.drop(torch.ones(len(some), dtype=torch.bool, device=some.device))

    def with_text(self, other: Cond) -> Cond:
        """What ``other`` specifies in place of the same here; text as a whole, so never one's ``emb`` with a mask."""
        mine, new = self.parts(), other.parts()
        if _TEXT & new.keys():
            mine = {name: v for name, v in mine.items() if name not in _TEXT}
        return Cond.of(mine | new)

    def _mask(self) -> Tensor:
        assert self.emb is not None
        everything = torch.ones(self.emb.shape[:2], dtype=torch.bool, device=self.emb.device)
        return everything if self.mask is None else self.mask

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Stack several along the batch; shorter texts are padded, and their mask says where.

        Raises InputError unless all have the same parts (a missing mask aside).
        """
        if len({c.emb.shape[1] for c in conds if c.emb is not None}) > 1 or len({c.mask is None for c in conds}) > 1:
            conds = [c if c.emb is None else replace(c, mask=c._mask()) for c in conds]
        rows = [c.parts() for c in conds]
        if any(row.keys() != rows[0].keys() for row in rows):
            names = " and ".join(sorted({", ".join(row) or "nothing" for row in rows}))
            raise InputError(f"Conditions of different parts cannot be stacked: {names}. Give each the same.")
        for name in _TEXT & rows[0].keys():
            longest = max(row[name].shape[1] for row in rows)
            for row in rows:
                more = row[name].new_zeros(len(row[name]), longest - row[name].shape[1], *row[name].shape[2:])
                row[name] = torch.cat([row[name], more], 1) if more.numel() else row[name]
        return Cond.of({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


_TEXT = {"tokens", "emb", "mask"}  # parts of one text, of its length


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
