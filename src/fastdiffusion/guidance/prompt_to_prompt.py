"""Prompt-to-prompt: the image of one prompt under another, in the layout of the first (Hertz et al. 2022, 2208.01626).

Both are drawn in one batch, the source in row 0 and the target in row 1, from the same noise. Where a layer asks "which
token is at this place?", the target gets the source's answer, in the first part of the run:

    columns = align(tokens_of_source, tokens_of_target)
    denoise = attention_control(cfg(model.denoise, 3), net, *controllers(columns))
    denoise = local_blend(denoise, net, tokens=([2], [2]))       # only where these tokens are
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..types import Cond, Denoise, Run
from .attention import Controller, Replace, Reweight, Store, control
from .core import Interval, guidance

THRESHOLD = 0.3  # a token is where its map is above this part of its greatest value (the paper's own)


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


@guidance
def local_blend(
    denoise: Denoise,
    net: nn.Module,
    tokens: tuple[Sequence[int], Sequence[int]],
    threshold: float = THRESHOLD,
    *,
    run: Run,
) -> Denoise:
    """Keep the source in row 0 wherever the tokens are not (Hertz et al. 2022, sec. 3, "local editing").

    The estimate of row 1 is replaced by that of row 0 where neither the source's tokens nor the target's are looked at,
    on the mean of all maps so far. Since the last step of a table returns the estimate, results are then equal there.

    Args:
        denoise: A denoiser of source and target, in this order, guided or not.
        net: Its network.
        tokens: Their places in the source's prompt, and in the target's.
        threshold: Where a map counts, as a part of its greatest value.
    """
    store = Store(kind="cross", rows=slice(0, 2))

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        with control(net, store, run=run):
            source, target = denoise(x, sigma, cond)
        maps = [token_map(store, row, places, x.shape[-2:]) for row, places in enumerate(tokens) if places]
        mask = torch.stack(maps).amax(0) > threshold
        return torch.stack([source, torch.where(mask, target, source)])

    return guided


def token_map(store: Store, row: int, tokens: Sequence[int], size: Sequence[int]) -> Float[Tensor, "h w"]:
    """How much the places of an image attend to some tokens, from 0 to 1: the mean over layers, at ``size``.

    Raises InputError where no layer attends to tokens.
    """
    height, width = size
    maps = []
    for probabilities in store.probabilities.values():
        at = probabilities[row][:, list(tokens)].sum(1)
        ratio = (len(at) * height / width) ** 0.5
        grid = at.reshape(1, 1, round(ratio), -1).float()
        maps.append(F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0, 0])
    if not maps:
        raise InputError("No layer of this net attends to the prompt in a way that can be seen. Leave --only out.")
    mean = torch.stack([m / m.max().clamp(min=1e-12) for m in maps]).mean(0)
    smooth = F.max_pool2d(mean[None, None], 3, 1, 1)[0, 0] if min(size) > 4 else mean
    return smooth / smooth.max().clamp(min=1e-12)
