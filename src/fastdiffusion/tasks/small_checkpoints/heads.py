"""From the states of a caption's tokens to the mean latents of its images: what text encoders learn from at first.

Both are thrown away afterwards, or were parts of the denoiser all along.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchHead(nn.Module):
    """E[latents | caption], patch by patch: one learned query for each asks the caption's tokens, and two MLPs follow.

    Args:
        width: Of a token's state.
        channels: Of the latents.
        side: Of the latents, a multiple of ``grid``.
        grid: Patches per side.
        hidden: Width of the MLPs.
    """

    def __init__(self, width: int, channels: int, side: int, grid: int = 4, hidden: int = 1024):
        super().__init__()
        patch = side // grid
        self.queries = nn.Parameter(torch.randn(grid * grid, width))
        self.attention = nn.MultiheadAttention(width, 6, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.out = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, channels * patch * patch)
        )
        self.grid, self.patch = grid, patch

    def forward(self, states: Float[Tensor, "b n w"]) -> Float[Tensor, "b c s s"]:
        """The mean latents."""
        x = self.queries.expand(len(states), -1, -1)
        x = x + self.attention(x, states, states, need_weights=False)[0]
        x = self.out(x + self.mlp(self.norm(x)))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)), self.patch)


class LevelsHead(nn.Module):
    """E[latents | caption] by a UNet's own blocks: from the middle up to its last level but one.

    Where much noise is, that is what a UNet has to say. Constants stand in for its way down, and its top level, which
    takes a third of the time and knows little of texts, is left out.

    Args:
        unet: A UNet2DConditionModel of three levels of one layer, whose blocks are trained in place.
    """

    def __init__(self, unet: Any):
        super().__init__()
        first, second, third = unet.config.block_out_channels
        side = unet.config.sample_size // 4
        self.mid, self.up = unet.mid_block, nn.ModuleList(unet.up_blocks[:2])
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        shapes = [(third, side), (second, side), (third, side), (first, 2 * side), (second, 2 * side)]
        self.constants = nn.ParameterList(nn.Parameter(torch.randn(1, c, s, s)) for c, s in shapes)
        self.out = nn.Sequential(
            nn.GroupNorm(8, second), nn.SiLU(), nn.Conv2d(second, unet.config.out_channels, 3, padding=1)
        )

    def forward(self, states: Float[Tensor, "b n w"]) -> Float[Tensor, "b c s s"]:
        """The mean latents."""
        emb = self.time_embedding(self.time_proj(states.new_full((len(states),), 950.0)))  # nearly pure noise
        x, *skips = (constant.expand(len(states), -1, -1, -1) for constant in self.constants)
        x = self.mid(x, emb, encoder_hidden_states=states)
        for block, pair in zip(self.up, (skips[:2], skips[2:]), strict=True):
            x = block(hidden_states=x, temb=emb, res_hidden_states_tuple=tuple(pair), encoder_hidden_states=states)
        return self.out(x)
