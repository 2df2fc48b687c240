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

from ..types import Cond, Denoise, Run
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
    windows: Mapping[int, Interval] | None = None,
    normalize: bool = False,
) -> list[Controller]:
    """What makes row 1 of a batch attend as row 0 does.

    Args:
        columns: Of :func:`align`.
        cross: Part of the run in which tokens get the places of the source's: later, they find places of their own.
        self_attention: The same of places among each other: it holds the shape.
        weights: Factors by the target's tokens (sec. 3, "attention re-weighting").
        windows: In place of ``cross``, for some of the target's tokens.
        normalize: See :class:`~fastdiffusion.guidance.attention.Reweight`.
    """
    of_token = [(windows or {}).get(i, cross) for i in range(len(columns))]
    made: list[Controller] = []
    for window in sorted(set(of_token)):
        taken = [column if window == own else -1 for column, own in zip(columns, of_token, strict=True)]
        if window[0] < window[1]:
            made.append(Replace(columns=taken, kind="cross", window=window))
    if self_attention[0] < self_attention[1]:
        made.append(Replace(kind="self", window=self_attention, pixels=(0, 32 * 32)))
    return [*made, Reweight(weights, rows=[1], normalize=normalize)] if weights else made


@guidance
def beside(
    denoise: Denoise,
    known: Sequence[Tensor] | None = None,
    mask: Tensor | None = None,
    look: bool = True,
    *,
    run: Run,
) -> Denoise:
    """Source and target, rows 0 and 1, led side by side.

    The sampler is linear in x and the estimate, and both rows have the same noise: where the target takes the source's
    estimate at every step it is the source, exactly.

    Args:
        denoise: Of both rows.
        known: For each evaluation of the run the source's estimate, by which it goes where it is to go (Ju et al. 2023,
            "direct inversion", arXiv:2310.01506); by default the denoiser's.
        mask: Where the target has its own estimate; elsewhere it takes the source's (sec. 4, "local editing"; Couairon
            et al. 2022). Broadcasts to a row; None is everywhere.
        look: Whether the target's attention looks at the source. If not, and it is known, only the target is evaluated.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        if known is not None and not look:
            source, target = known[run.index], denoise(x[1:], sigma[1:], None if cond is None else cond[1:])
        else:
            source, target = denoise(x, sigma, cond).split(1)
            source = source if known is None else known[run.index]
        return torch.cat([source, target if mask is None else torch.lerp(source, target, mask.to(x))])

    return guided
