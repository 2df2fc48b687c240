"""A diffusion transformer (Peebles & Xie 2023) for any size, with U-ViT's long skips (Bao et al. 2023) as a switch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Cond
from .layers import Attention, Embed, Stem, Tail, records_config, to_image, tokens, zero


def positions(size: tuple[int, int], dim: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Sines and cosines of row and column (Vaswani et al. 2017, in two dimensions): ``dim`` numbers for each pixel.

    Coordinates count from the middle, so that a larger or odd image extends a smaller one on all sides.
    """
    decades = torch.linspace(0, -2, dim // 4, dtype=torch.float64)  # as logspace, which cannot be exported
    frequencies = (10.0**decades).float().to(device)
    angles = [(torch.arange(n, device=device) - (n - 1) / 2)[:, None] * frequencies for n in size]
    rows, columns = (torch.cat([a.sin(), a.cos()], 1) for a in angles)
    h, w = size
    both = torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], -1).flatten(0, 1)
    return F.pad(both, (0, dim - both.shape[-1]))


class Block(nn.Module):
    """Attention and MLP, scaled, shifted and gated by the embedding; the identity at first ("adaLN-zero")."""

    def __init__(self, dim: int, emb: int, head: int, context: int, linear: bool, dropout: float, long_skip: bool):
        super().__init__()
        self.dropout = dropout
        self.merge = nn.Linear(2 * dim, dim) if long_skip else None
        self.adapt = zero(nn.Linear(emb, 6 * dim))
        self.attention = Attention(dim, head, linear=linear, start_at_zero=False)
        self.cross_norm = nn.LayerNorm(dim) if context else nn.Identity()
        self.cross_attention = Attention(dim, head, context) if context else None
        self.mlp_in, self.mlp_out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], emb: Tensor, cond: Cond | None, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], -1))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adapt(emb)[:, None].chunk(6, -1)
        h = torch.addcmul(shift1, F.layer_norm(x, x.shape[-1:]), 1 + scale1)
        x = torch.addcmul(x, gate1, self.attention(h))
        if self.cross_attention is not None and cond is not None and cond.emb is not None:
            x = x + self.cross_attention(self.cross_norm(x), cond.emb, cond.mask)
        h = torch.addcmul(shift2, F.layer_norm(x, x.shape[-1:]), 1 + scale2)
        h = F.dropout(F.gelu(self.mlp_in(h), approximate="tanh"), self.dropout, self.training)
        return torch.addcmul(x, gate2, self.mlp_out(h))


class DiT(nn.Module):
    """A transformer over patches, for any channels and any height and width from 4 pixels up.

    Args:
        in_channels, out_channels, classes, augment, context, pooled, dropout: As in ``UNetOptions``.
        patch, refine, head, linear: As in ``UNetOptions``.
        width: Channels of a token.
        depth: Number of blocks.
        long_skips: Join block i to block depth - 1 - i (U-ViT).
    """

    config: dict[str, Any]

    @records_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        classes: int = 0,
        augment: int = 0,
        context: int = 0,
        pooled: int = 0,
        dropout: float = 0.0,
        patch: int = 2,
        refine: int = 0,
        width: int = 192,
        depth: int = 6,
        head: int = 64,
        linear: bool = False,
        long_skips: bool = False,
    ):
        super().__init__()
        self.embed = Embed(width, classes, augment, pooled)
        self.stem = Stem(in_channels, width, patch)
        self.blocks = nn.ModuleList(
            Block(width, width, head, context, linear, dropout, long_skips and i >= (depth + 1) // 2)
            for i in range(depth)
        )
        self.tail = Tail(width, out_channels, patch, refine, in_channels, width)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b o h w"]:
        """The network's answer; ``c_noise`` is ln(sigma) / 4 or flow's time. Unused parts of ``cond`` are ignored."""
        emb = self.embed(c_noise, cond)
        h = self.stem(x)
        size, h = (h.shape[-2], h.shape[-1]), tokens(h)
        h = h + positions(size, h.shape[-1], h.device).to(h.dtype)
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            h = block(h, emb, cond, skips.pop() if block.merge is not None else None)
            if i < len(self.blocks) // 2:
                skips.append(h)
        return self.tail(to_image(h, size), x, emb)
