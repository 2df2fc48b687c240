"""A compact U-Net with the switches of ADM (Dhariwal & Nichol 2021) and a patchified stem."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..options import option
from ..types import Cond
from .layers import Attention, Down, Embed, Stem, Tail, as_json, conv, modulate, norm, to_image, tokens, zero


class CrossAttention(nn.Module):
    """Attention from the pixels to the tokens of ``Cond.emb``."""

    def __init__(self, dim: int, head: int, context: int):
        super().__init__()
        self.norm, self.attention = norm(dim), Attention(dim, head, context)

    def forward(self, x: Tensor, cond: Cond | None) -> Tensor:
        if cond is None or cond.emb is None:
            return x
        return x + to_image(self.attention(tokens(self.norm(x)), cond.emb, cond.mask), x.shape[-2:])


class Resize(nn.Module):
    """Half or twice the size and one convolution: cheaper than a residual block that resizes."""

    def __init__(self, n: int, resize: str, blur: float = 0.0, learn_blur: bool = False):
        super().__init__()
        self.resize, self.conv = resize, conv(n, n)
        self.down = Down(blur, learn_blur) if resize == "down" else None

    def forward(self, x: Tensor, emb: Tensor, cond: Cond | None = None, size: Sequence[int] | None = None) -> Tensor:
        return self.conv(self.down(x) if self.down is not None else F.interpolate(x, size))


class Block(nn.Module):
    """Two convolutions conditioned on the noise level, beside the identity; then attention, if ``attention`` says so.

    Args:
        n_in, n_out: Channels.
        emb: Length of the embedding.
        resize: "down" halves and "up" doubles the size between the convolutions (ADM's up/down residual blocks).
        attention: Whether self-attention follows, and cross-attention if there is a ``context``.
        scale_shift: The second norm is scaled and shifted by the embedding (adaptive group norm); otherwise the
            embedding is added before it.
        rescale: Sums of two paths are divided by sqrt(2): the variance does not grow with depth (Song et al. 2021).
        dropout, head, context, linear, blur, learn_blur, local: As in ``UNetOptions``.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        emb: int,
        *,
        resize: str | None = None,
        attention: bool = False,
        scale_shift: bool = True,
        rescale: bool = True,
        dropout: float = 0.0,
        head: int = 64,
        context: int = 0,
        linear: bool = False,
        blur: float = 0.0,
        learn_blur: bool = False,
        local: bool = False,
    ):
        super().__init__()
        self.resize, self.scale_shift, self.dropout = resize, scale_shift, dropout
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.down = Down(blur, learn_blur) if resize == "down" else None
        self.norm1, self.conv1 = norm(n_in, local), conv(n_in, n_out)
        self.adapt = nn.Linear(emb, 2 * n_out if scale_shift else n_out)
        self.norm2, self.conv2 = norm(n_out, local), zero(conv(n_out, n_out))
        self.skip = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.attention = Attention(n_out, head, linear=linear) if attention else None
        self.norm3 = norm(n_out) if attention else nn.Identity()
        self.cross_attention = CrossAttention(n_out, head, context) if attention and context else None

    def forward(self, x: Tensor, emb: Tensor, cond: Cond | None = None, size: Sequence[int] | None = None) -> Tensor:
        """``size`` is the height and width to go "up" to (twice the input's, or one less)."""
        h = F.silu(self.norm1(x))
        if self.down is not None:
            x, h = self.down(x), self.down(h)
        elif self.resize == "up":
            x, h = F.interpolate(x, size), F.interpolate(h, size)
        h, modulation = self.conv1(h), self.adapt(emb)
        h = modulate(self.norm2(h), modulation) if self.scale_shift else self.norm2(h + modulation[:, :, None, None])
        h = self.conv2(F.dropout(F.silu(h), self.dropout, self.training))
        x = (self.skip(x) + h) * self.gain
        if self.attention is not None:
            x = (x + to_image(self.attention(tokens(self.norm3(x))), x.shape[-2:])) * self.gain
        return x if self.cross_attention is None else self.cross_attention(x, cond)


@dataclass(frozen=True)
class UNetOptions:
    """How a :class:`UNet` is built; every field says what it is for."""

    in_channels: int = option(3, "Channels of the noisy input (with whatever is stacked to it).")
    out_channels: int = option(3, "Channels of the output.")
    classes: int = option(0, "Number of classes; 0 = none.")
    augment: int = option(0, "Length of ``Cond.augment``; 0 = none.")
    context: int = option(0, "Width of ``Cond.emb``, for cross-attention; 0 = none.")
    pooled: int = option(0, "Length of ``Cond.pooled``; 0 = none.")
    dropout: float = option(0.0, "Probability, inside the residual blocks.")
    patch: int = option(1, "Pixels per side that the stem folds into one: 2 makes all else about four times as fast.")
    refine: int = option(0, "Channels of the last two convolutions at full resolution, against patch seams; 0 = none.")
    width: int = option(64, "Channels of the first level.")
    multiples: Sequence[int] = option((1, 2, 2), "Channels of each level over ``width``; each level halves the size.")
    blocks: Sequence[int] = option((1, 1, 1), "Residual blocks of each encoder level (in the decoder: one more).")
    attention: Sequence[int] = option((1, 2), "Levels that have attention, counted from 0.")
    head: int = option(64, "Channels per attention head.")
    linear: bool = option(False, "Attention linear in the number of pixels.")
    scale_shift: bool = option(True, "ADM's adaptive group norm; otherwise the embedding is added.")
    rescale: bool = option(True, "Sums of two paths are divided by sqrt(2).")
    updown: bool = option(True, "ADM's residual blocks that resize; otherwise one convolution does.")
    skips: bool = option(True, "The decoder gets the encoder's features; without, the net is a plain autoencoder.")
    blur: float = option(0.0, "Standard deviation of the blur before downsampling in pixels; 0 = the mean of 2x2.")
    learn_blur: bool = option(False, "Whether that standard deviation is learned.")
    # As suits restorers (Lim et al. 2017, sec. 3.1). Without attention, an output pixel then depends on its
    # neighbourhood alone, and the tiles of a large image agree with the whole.
    local: bool = option(False, "No normalization.")


class UNet(nn.Module):
    """A U-Net for any channels and any height and width from 4 pixels up.

    Args:
        options: The fields of :class:`UNetOptions`, as keywords.
    """

    __signature__ = inspect.signature(UNetOptions)  # for help(), and for nets.build, which checks keywords by it

    def __init__(self, **options: Any):
        super().__init__()
        o = UNetOptions(**options)
        self.config = as_json(vars(o))
        if len(o.blocks) != len(o.multiples) or min(o.multiples, default=0) < 1:
            raise InputError(f"blocks and multiples need one number per level, got {o.blocks} and {o.multiples}.")
        emb, last = 4 * o.width, len(o.multiples) - 1
        switches: dict[str, Any] = {name: getattr(o, name) for name in ("scale_shift", "rescale", "dropout", "local")}
        attends = {"attention": True, "head": o.head, "context": o.context, "linear": o.linear}

        def block(n_in: int, level: int) -> Block:
            extra = attends if level in o.attention else {}
            return Block(n_in, o.width * o.multiples[level], emb, **switches, **extra)

        def resize(n: int, direction: str, **blurs: Any) -> nn.Module:
            return (
                Block(n, n, emb, resize=direction, **switches, **blurs) if o.updown else Resize(n, direction, **blurs)
            )

        self.skips = o.skips
        self.embed = Embed(emb, o.classes, o.augment, o.pooled)
        self.stem = Stem(o.in_channels, o.width, o.patch)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        n, skip_widths = o.width, [o.width]
        for level, multiple in enumerate(o.multiples):
            if level:
                self.encoder.append(resize(n, "down", blur=o.blur, learn_blur=o.learn_blur))
                skip_widths.append(n)
            for _ in range(o.blocks[level]):
                self.encoder.append(block(n, level))
                skip_widths.append(n := o.width * multiple)
        mid = Block(n, n, emb, **switches, **(attends if o.attention else {}))
        self.mid = nn.ModuleList([mid, Block(n, n, emb, **switches)])
        for level in range(last, -1, -1):
            if level < last:
                self.decoder.append(resize(n, "up"))
            for _ in range(o.blocks[level] + 1):
                self.decoder.append(block(n + skip_widths.pop() * o.skips, level))
                n = o.width * o.multiples[level]
        self.tail = Tail(n, o.out_channels, o.patch, o.refine, o.in_channels, emb, o.local)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b o h w"]:
        """The network's answer; ``c_noise`` is ln(sigma) / 4 or flow's time. Unused parts of ``cond`` are ignored."""
        h, skips, emb = self.encode(x, c_noise, cond)
        return self.decode(h, skips, emb, x, cond)

    def encode(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> tuple[Float[Tensor, "b m hm wm"], list[Tensor], Float[Tensor, "b e"]]:
        """The way down: the middle's features, what the way up will see of the way down, and the embedding."""
        emb = self.embed(c_noise, cond)
        skips = [h := self.stem(x)]
        for block in self.encoder:
            skips.append(h := block(h, emb, cond))
        for block in self.mid:
            h = block(h, emb, cond)
        return h, skips, emb

    def decode(
        self,
        h: Float[Tensor, "b m hm wm"],
        skips: list[Tensor],
        emb: Float[Tensor, "b e"],
        x: Float[Tensor, "b c h w"],
        cond: Cond | None = None,
    ) -> Float[Tensor, "b o h w"]:
        """The way up from what :meth:`encode` returned for ``x``; ``skips`` is used up, which saves its memory."""
        for block in self.decoder:
            if block.resize == "up":
                h = block(h, emb, cond, skips[-1].shape[-2:])
            else:
                skip = skips.pop()
                h = block(torch.cat([h, skip], 1) if self.skips else h, emb, cond)
        return self.tail(h, x, emb)
