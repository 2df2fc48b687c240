"""Where in an image the words of its prompt are: by attention, and by leaving them out.

    seen = Concepts([[2], [3, 4]])                       # the tokens of each word
    with control(net, seen):
        model.denoise(x, sigma, cond)
    seen.maps(x.shape[2:], (64, 64))                     # (2, 64, 64)

Attention says what each place looks at (DAAM, Tang et al. 2022, arXiv:2210.04885); that is not what it does with it.
Leaving a word out and comparing the estimates of x0 asks the whole network, and needs no layer that tells words apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..nets.layers import AttentionCall
from .attention import Controller

BLOCK = 1 << 24  # probabilities that are held at once: 64 MB


@dataclass(kw_only=True, eq=False)
class Concepts(Controller):
    """How much each place attends to each word: the mean over heads, calls and layers, of the tokens of a word.

    The queries are taken a block at a time, so that the probabilities of 64 x 64 places and more need no memory of
    their own; and they are computed here, so that the layer's own output keeps every bit.

    Attributes:
        tokens: The tokens of each word, as rows of ``Cond.emb``.
        rows: Of the batch, whose mean is taken; of a guided model the conditional rows come first.
    """

    tokens: Sequence[Sequence[int]]
    rows: slice | None = None
    kind: Literal["self", "cross"] | None = "cross"
    layer_maps: dict[str, Float[Tensor, "t n"]] = field(default_factory=dict, init=False)
    _calls: dict[str, int] = field(default_factory=dict, init=False)

    def sees(self, call: AttentionCall) -> bool:
        return call.tokens is not None and super().sees(call)

    @torch.no_grad()
    def __call__(self, call: AttentionCall) -> None:
        rows = self.rows or slice(None)
        query, key = call.query[rows][..., call.pixels or slice(None), :], call.key[rows]
        mask = None if call.mask is None else call.mask[rows if len(call.mask) > 1 else slice(None)]
        columns = range(key.shape[-2])[call.tokens or slice(None)]
        chosen = [[columns[token] for token in tokens if token < len(columns)] for tokens in self.tokens]
        block = max(1, BLOCK // (query.shape[0] * query.shape[1] * key.shape[-2]))
        parts = []
        for first in range(0, query.shape[-2], block):
            some = slice(first, first + block)
            visible = mask
            if mask is not None and mask.shape[-2] > 1:
                visible = mask[..., call.pixels or slice(None), :][..., some, :]
            weights = call.weigh(query[..., some, :], key, visible).float().mean((0, 1))
            parts.append(torch.stack([weights[:, tokens].sum(-1) for tokens in chosen]))
        now, count = torch.cat(parts, 1), self._calls.get(call.name, 0) + 1
        self._calls[call.name] = count
        self.layer_maps[call.name] = torch.lerp(self.layer_maps.get(call.name, now), now, 1 / count)

    def maps(self, grid: Sequence[int], size: tuple[int, int]) -> Float[Tensor, "t h w"]:
        """The mean over the layers, each enlarged to ``size``; ``grid`` is that of the latents.

        Raises:
            InputError: No layer attends to a text.
        """
        if not self.layer_maps:
            raise InputError("No attention layer of this network attends to the words of the prompt.")
        enlarged = [_enlarged(_places(each, grid), size) for each in self.layer_maps.values()]
        return torch.stack(enlarged).mean(0)

    def clear(self) -> None:
        """Forget everything, for the next evaluation."""
        self.layer_maps.clear()
        self._calls.clear()


def _places(flat: Float[Tensor, "t n"], grid: Sequence[int]) -> Float[Tensor, "t h w"]:
    """The places of a layer as a map, in the proportions of the latents; of a film the mean over its frames."""
    *frames, height, width = grid
    n = flat.shape[1] // math.prod(frames)
    side = round(math.sqrt(n * height / width))
    if n % max(side, 1) or math.prod(frames) * n != flat.shape[1]:
        raise InputError(f"A layer attends from {flat.shape[1]} places, which are no map of {tuple(grid)}.")
    return flat.unflatten(1, (-1, side, n // side)).mean(1)


def _enlarged(maps: Float[Tensor, "t h w"], size: tuple[int, int]) -> Float[Tensor, "t p q"]:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def along_edges(
    maps: Float[Tensor, "t h w"], image: Float[Tensor, "c h w"], rounds: int, tolerance: float
) -> Float[Tensor, "t h w"]:
    """Maps spread over an image's areas of one color: heat that hardly crosses an edge (Perona & Malik 1990).

    Args:
        maps: Of the image's size.
        image: In [-1, 1].
        rounds: Steps of the heat; it reaches about the root of as many pixels.
        tolerance: Difference of color, in the image's units, that counts as an edge.
    """

    def open_between(a: Tensor, b: Tensor) -> Tensor:
        return (-(a - b).square().sum(0) / tolerance**2).exp()

    across = open_between(image[..., 1:], image[..., :-1])
    down = open_between(image[..., 1:, :], image[..., :-1, :])
    for _ in range(rounds):
        right, below = across * maps.diff(dim=-1), down * maps.diff(dim=-2)
        flow = F.pad(right, (0, 1)) - F.pad(right, (1, 0)) + F.pad(below, (0, 0, 0, 1)) - F.pad(below, (0, 0, 1, 0))
        maps = maps + 0.24 * flow
    return maps
