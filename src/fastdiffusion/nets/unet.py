"""A compact U-Net with the switches of ADM (Dhariwal & Nichol 2021) and a patchified stem."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Cond
from .layers import Attention, Down, Embed, Stem, Tail, conv, modulate, norm, picture, tokens, zero


class ResBlock(nn.Module):
    """Two convolutions told the noise level, on a path beside the identity; optionally half or twice the size between.

    ``resize`` is "down", "up" or None (ADM's up/down residual blocks). ``scale_shift`` scales and shifts after the
    second norm (adaptive group norm), otherwise the embedding is added before it. ``rescale`` divides the sum of the two
    paths by sqrt(2), so that variances do not grow with depth (Song et al. 2021).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        emb: int,
        resize: str | None = None,
        scale_shift: bool = True,
        rescale: bool = True,
        dropout: float = 0.0,
        blur: float = 0.0,
        learn_blur: bool = False,
    ):
        super().__init__()
        self.resize, self.scale_shift, self.dropout = resize, scale_shift, dropout
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.down = Down(blur, learn_blur) if resize == "down" else None
        self.norm1, self.conv1 = norm(n_in), conv(n_in, n_out)
        self.adapt = nn.Linear(emb, 2 * n_out if scale_shift else n_out)
        self.norm2, self.conv2 = norm(n_out), zero(conv(n_out, n_out))
        self.skip = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """``size`` is the height and width to go "up" to (twice the input's, or one less)."""
        h = F.silu(self.norm1(x))
        if self.down is not None:
            x, h = self.down(x), self.down(h)
        elif self.resize == "up":
            x, h = F.interpolate(x, size), F.interpolate(h, size)
        h, told = self.conv1(h), self.adapt(emb)
        h = modulate(self.norm2(h), told) if self.scale_shift else self.norm2(h + told[:, :, None, None])
        h = self.conv2(F.dropout(F.silu(h), self.dropout, self.training))
        return (self.skip(x) + h) * self.gain


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, then attention to the words if the net has a context."""

    def __init__(self, dim: int, head: int, context: int, linear: bool, rescale: bool):
        super().__init__()
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.norm, self.self_attention = norm(dim), Attention(dim, head, linear=linear)
        self.cross_norm = norm(dim) if context else None
        self.cross_attention = Attention(dim, head, context) if context else None

    def forward(self, x: Tensor, cond: Cond | None) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        x = (x + picture(self.self_attention(tokens(self.norm(x))), size)) * self.gain
        if self.cross_attention is not None and cond is not None and cond.emb is not None:
            words = self.cross_attention(tokens(self.cross_norm(x)), cond.emb, cond.mask)
            x = x + picture(words, size)
        return x


class UNet(nn.Module):
    """A U-Net for any channels and any height and width from 4 pixels up.

    Args:
        in_channels: Channels of the noisy input (with whatever is stacked to it).
        out_channels: Channels of the answer.
        classes: Number of classes; 0 = none.
        augment: Length of ``Cond.augment``; 0 = none.
        context: Width of ``Cond.emb``, for cross-attention; 0 = none.
        dropout: Probability, inside the residual blocks.
        patch: Pixels per side that the stem folds into one: 2 makes all else about four times as fast.
        refine: Channels of the two last convolutions at full resolution, against patch seams; 0 = none.
        width: Channels of the first level.
        multiples: Channels of each level in units of ``width``; each level has half the size of the one before.
        blocks: Residual blocks of each level on the way down (on the way up: one more).
        attention: Levels that have attention, counted from 0.
        head: Channels per attention head.
        linear: Attention linear in the number of pixels.
        scale_shift: ADM's adaptive group norm; otherwise the embedding is added.
        rescale: Sums of two paths are divided by sqrt(2).
        blur: Standard deviation of the blur before downsampling in pixels; 0 = the mean of 2x2.
        learn_blur: Whether that standard deviation is learned.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        classes: int = 0,
        augment: int = 0,
        context: int = 0,
        dropout: float = 0.0,
        patch: int = 1,
        refine: int = 0,
        width: int = 64,
        multiples: Sequence[int] = (1, 2, 2),
        blocks: Sequence[int] = (1, 1, 1),
        attention: Sequence[int] = (1, 2),
        head: int = 64,
        linear: bool = False,
        scale_shift: bool = True,
        rescale: bool = True,
        blur: float = 0.0,
        learn_blur: bool = False,
    ):
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        emb = 4 * width
        switches = {"scale_shift": scale_shift, "rescale": rescale, "dropout": dropout}

        def attend(level: int) -> nn.Module | None:
            return AttentionBlock(width * multiples[level], head, context, linear, rescale) if level in attention else None

        self.embed = Embed(emb, classes, augment)
        self.stem = Stem(in_channels, width, patch)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        n, skips = width, [width]
        for level, multiple in enumerate(multiples):
            if level:
                down = ResBlock(n, n, emb, "down", **switches, blur=blur, learn_blur=learn_blur)
                self.encoder.append(nn.ModuleList([down, None]))
                skips.append(n)
            for _ in range(blocks[level]):
                self.encoder.append(nn.ModuleList([ResBlock(n, width * multiple, emb, **switches), attend(level)]))
                skips.append(n := width * multiple)
        last = len(multiples) - 1
        self.middle = nn.ModuleList(
            [ResBlock(n, n, emb, **switches), attend(last), ResBlock(n, n, emb, **switches)]
        )
        for level in reversed(range(len(multiples))):
            if level < last:
                self.decoder.append(nn.ModuleList([ResBlock(n, n, emb, "up", **switches), None]))
            for _ in range(blocks[level] + 1):
                block = ResBlock(n + skips.pop(), width * multiples[level], emb, **switches)
                self.decoder.append(nn.ModuleList([block, attend(level)]))
                n = width * multiples[level]
        self.tail = Tail(n, out_channels, patch, refine, in_channels, emb)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b o h w"]:
        """The network's answer; ``c_noise`` is ln(sigma) / 4 or flow's time. Unused parts of ``cond`` are ignored."""
        emb = self.embed(c_noise, cond)
        h = self.stem(x)
        skips = [h]
        for block, attention in self.encoder:
            h = block(h, emb)
            h = attention(h, cond) if attention is not None else h
            skips.append(h)
        first, attention, second = self.middle
        h = first(h, emb)
        h = second(attention(h, cond) if attention is not None else h, emb)
        for block, attention in self.decoder:
            if block.resize == "up":
                h = block(h, emb, skips[-1].shape[-2:])
            else:
                h = block(torch.cat([h, skips.pop()], 1), emb)
            h = attention(h, cond) if attention is not None else h
        return self.tail(h, x, emb)
