"""Prompt-to-prompt: the image of one prompt under another, in the layout of the first (Hertz et al. 2022, 2208.01626).

Both are drawn in one batch, the source in row 0 and the target in row 1, from the same noise. Where a layer asks "which
token is at this place?", the target gets the source's answer, in the first part of the run:

    columns = align(tokens_of_source, tokens_of_target)
    denoise = attention_control(cfg(model.denoise, 3), net, *controllers(columns))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from ..types import Cond, Denoise
from .attention import Controller, Replace, Reweight
from .core import Interval, guidance


def align(source: Sequence[str], target: Sequence[str]) -> list[int]:
    """For each token of ``target`` the token of ``source`` that stands in its place, or -1 where it is new.

    Tokens that both have correspond (sec. 3, "adding a new phrase"); what was exchanged corresponds from start to end,
    also where the numbers differ ("word swap": a token of one that became two is the place of both).
    """
    a, b = ([token.casefold() for token in tokens] for tokens in (source, target))
    columns = [-1] * len(b)
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind in ("equal", "replace"):
            for n in range(m - k):
                columns[k + n] = i + n * (j - i) // (m - k)
    return columns


def controllers(
    columns: Sequence[int],
    cross: Interval = (0.0, 0.8),
    self_attention: Interval = (0.0, 0.4),
    weights: Mapping[int, float] | None = None,
) -> list[Controller]:
    """What makes row 1 of a batch attend as row 0 does.

    Args:
        columns: Of :func:`align`.
        cross: Part of the run in which tokens get the places of the source's: later, they find places of their own.
        self_attention: The same of places among each other: it holds the shape.
        weights: Factors by the target's tokens (sec. 3, "attention re-weighting").
    """
    made: list[Controller] = [
        Replace(columns=columns, kind="cross", window=cross),
        Replace(kind="self", window=self_attention, pixels=(0, 32 * 32)),
    ]
    return [*made, Reweight(weights, rows=[1])] if weights else made


@guidance
def pair(source: Denoise, target: Denoise) -> Denoise:
    """Row 0 by one denoiser and row 1 by another, such as a model without guidance and one with it.

    The target is evaluated on both rows, so that its attention finds the source's beside it.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.cat([source(x[:1], sigma[:1], None if cond is None else cond[:1]), target(x, sigma, cond)[1:]])

    return guided
