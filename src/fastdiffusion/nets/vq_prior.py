"""A prior over the tokens of a codebook: the hidden ones, given the visible ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .layers import records_config
from .text import Layer


class MaskedTokens(nn.Module):
    """A transformer over a grid of tokens of which some are hidden (MaskGIT, Chang et al. 2022, arXiv:2202.04200).

    Args:
        codebook: Number of tokens; this number itself stands for "hidden".
        size: Rows and columns of the grid.
        width: Channels of a place.
        depth: Number of layers.
        head: Channels of an attention head.
    """

    config: dict[str, Any]

    @records_config
    def __init__(
        self, codebook: int = 1024, size: Sequence[int] = (16, 16), width: int = 128, depth: int = 4, head: int = 32
    ):
        super().__init__()
        self.hidden, self.size = codebook, tuple(size)
        self.embed = nn.Embedding(codebook + 1, width)
        self.place = nn.Parameter(torch.randn(math.prod(size), width) / 8)
        self.layers = nn.ModuleList(Layer(width, head) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, codebook)
        nn.init.normal_(self.embed.weight, std=1 / 8)

    def forward(self, tokens: Int64[Tensor, "b H W"]) -> Float[Tensor, "b k H W"]:
        """Logits of the token at each place."""
        x = self.embed(tokens.flatten(1)) + self.place
        every = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            x = layer(x, every)
        return self.out(self.norm(x)).transpose(1, 2).unflatten(2, self.size)
