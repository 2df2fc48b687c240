"""Batches of pairs of texts: a new one, and a known one that means the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...data.emoji.translations import Pair
from ...nets.text import TextEncoder
from .options import AddLanguageOptions

Texts = Callable[[torch.Generator], tuple[list[str], list[str]]]


def batches(pairs: Sequence[Pair], new: TextEncoder, chosen: AddLanguageOptions) -> Texts:
    """Draws a batch of about equal lengths: new texts, and the known ones that mean the same."""
    kept, n = round(chosen.keep * chosen.batch_size), chosen.batch_size
    alike = of_one_length(pairs, [len(new.tokens([pair.text])[0]) for pair in pairs])
    shares = torch.tensor([weights[-1] for _, weights in alike])

    def texts(g: torch.Generator) -> tuple[list[str], list[str]]:
        some, often = alike[int(torch.multinomial(shares, 1, generator=g))]
        places = torch.searchsorted(often, often[-1] * torch.rand(n, generator=g, dtype=torch.float64))
        picked = [some[min(i, len(some) - 1)] for i in places.tolist()]
        return [pair.known if i < kept else pair.text for i, pair in enumerate(picked)], [p.known for p in picked]

    return texts


def of_one_length(pairs: Sequence[Pair], lengths: Sequence[int], groups: int = 8) -> list[tuple[list[Pair], Tensor]]:
    """The pairs in ``groups`` of about equal length, with their summed weights: batches of one have little padding."""
    order = sorted(range(len(pairs)), key=lambda i: lengths[i])
    size = -(-len(pairs) // groups)
    some = [[pairs[i] for i in order[first : first + size]] for first in range(0, len(pairs), size)]
    return [(group, torch.tensor([pair.weight for pair in group], dtype=torch.float64).cumsum(0)) for group in some]
