"""A small perceptron for points, for the examples of score matching."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Cond
from .layers import records_config


class PointNet(nn.Module):
    """A small network for points (b, dim): a residual MLP conditioned on the noise level.

    ``Denoiser(PointNet(2))`` trains.

    Args:
        dim: Numbers per point.
        width: Hidden units.
        depth: Hidden layers.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3):
        super().__init__()
        self.first = nn.Linear(dim + 4, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "b d"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b d"]:
        """The network's answer; smooth activations, because sliced score matching differentiates twice."""
        t = c_noise[:, None]
        h = nn.functional.silu(self.first(torch.cat([x, t, (2 * t).sin(), (2 * t).cos(), (4 * t).sin()], 1)))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)
