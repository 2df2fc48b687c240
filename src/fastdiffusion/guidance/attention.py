"""Attention control: what the layers of a net attend to, changed while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers import expand
from ..nets import layers
from ..noise import initial
from ..types import Cond, Denoise
from .core import guidance


@guidance
def shared_attention(
    denoise: Denoise, style: Float[Tensor, "1 c h w"], strength: float = 1.0, shown: Cond | None = None, seed: int = 0
) -> Denoise:
    """Let every self-attention of a model look at another picture: queries from x, keys and values from ``style``.

    The style picture is denoised along with x, at the same noise level (Hertz et al. 2024, "StyleAligned",
    arXiv:2312.02133, sec. 4: queries are first given the style's mean and deviation, so that they find its keys).
    Attention to words is left alone.

    Args:
        denoise: A model whose attention goes through ``nets.layers.attend``.
        style: In [-1, 1].
        strength: 0 is off, 1 looks at the style alone.
        shown: What the style picture shows, one row.
        seed: Of the style picture's noise.
    """
    fresh = initial([seed], style.shape[1:]).to(style)

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        if strength == 0:
            return denoise(x, sigma, cond)
        n = len(x)
        other = (style + expand(sigma[:1], style) * fresh).expand(n, -1, -1, -1)
        both = None if cond is None else Cond.cat([cond, cond.null() if shown is None else shown[[0] * n]])
        with _sharing(n, strength):
            return denoise(torch.cat([x, other]), torch.cat([sigma, sigma]), both)[:n]

    return guided


@contextmanager
def _sharing(n: int, strength: float) -> Iterator[None]:
    """The first n rows of every self-attention look at the last n as well."""
    plain = layers.attend

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = plain(q, k, v, mask)
        if mask is not None or len(q) != 2 * n or q.shape[-2] != k.shape[-2]:
            return out
        queries, there = q[:n], q[n:]
        queries = (queries - queries.mean(-2, keepdim=True)) / (queries.std(-2, keepdim=True) + 1e-6)
        queries = queries * there.std(-2, keepdim=True) + there.mean(-2, keepdim=True)
        return torch.cat([torch.lerp(out[:n], plain(queries, k[n:], v[n:], None), strength), out[n:]])

    layers.attend = attend
    try:
        yield
    finally:
        layers.attend = plain
