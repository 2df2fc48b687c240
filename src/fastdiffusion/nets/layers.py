"""The parts that the networks are made of.

Images travel in channels-last memory, so that an image ``(b, c, h, w)`` and its tokens ``(b, h * w, c)`` are two
views of the same numbers. No layer fixes a size: what must be even is padded by its own edge and cut back.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from ..noise import generator
from ..types import Cond

Module = TypeVar("Module", bound=nn.Module)
Init = TypeVar("Init", bound=Callable[..., None])


def as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments as JSON keywords: tuples are lists there."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}


def records_config(init: Init) -> Init:
    """Let a constructor keep its arguments in ``self.config``, as the JSON keywords that build the same net again."""
    signature = inspect.signature(init)

    @wraps(init)
    def recording(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        self.config = as_json(dict(arguments))  # type: ignore[assignment]
        init(self, *args, **kwargs)

    return cast("Init", recording)


def zero(module: Module) -> Module:
    """The module with its parameters set to 0: a branch that adds nothing until it has learned something."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class Scale(nn.Module):
    """A factor and an offset for each channel, in place of a normalization."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.addcmul(self.bias, x, self.weight)


def norm(channels: int, local: bool = False) -> nn.GroupNorm | Scale:
    """Group norm (Wu & He 2018) of at most 32 groups, each of at least 4 channels where that divides.

    Its statistics are the whole image's; a ``local`` net does without.
    """
    if local:
        return Scale(channels)
    groups = max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 4), default=1)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv(n_in: int, n_out: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)


def tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """An image as tokens, row by row (a view, when channels-last)."""
    return x.flatten(2).transpose(1, 2)


def to_image(x: Float[Tensor, "b n c"], size: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """Tokens as an image (a channels-last view)."""
    return x.transpose(1, 2).unflatten(2, size)


def pad_to(x: Float[Tensor, "b c h w"], multiple: int) -> Float[Tensor, "b c H W"]:
    """Repeat the last row and column until height and width divide by ``multiple``."""
    h, w = x.shape[-2:]
    return F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate") if h % multiple or w % multiple else x


# ---- conditioning ---------------------------------------------------------------------------------------------


def fourier(c_noise: Float[Tensor, " b"], features: int, low: float = 0.125, high: float = 8.0) -> Tensor:
    """Sines and cosines of ``c_noise`` at ``features / 2`` frequencies, ``low`` to ``high`` cycles per unit.

    c_noise is ln(sigma) / 4 (about -1.6 to 1.1) or flow's t in (0, 1). The slowest wave is monotone over either range,
    the fastest tells noise levels apart that differ by a few percent.
    """
    exact = torch.float32 if c_noise.device.type == "mps" else torch.float64  # which has no float64
    octaves = torch.linspace(math.log2(low), math.log2(high), features // 2, dtype=exact, device=c_noise.device)
    frequencies = (2.0**octaves).float()  # as logspace, which cannot be exported
    angles = 2 * math.pi * c_noise[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class Embed(nn.Module):
    """Noise level, class, augmentation and a pooled condition in one vector of length ``dim``.

    Label -1 ("no class") and a pooled vector of zeros (no caption) add nothing.
    """

    def __init__(self, dim: int, classes: int, augment: int, pooled: int = 0, features: int = 64):
        super().__init__()
        self.features = features
        self.noise = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes, dim) if classes else None
        self.augment = nn.Linear(augment, dim, bias=False) if augment else None
        self.pooled = nn.Linear(pooled, dim, bias=False) if pooled else None

    def forward(self, c_noise: Float[Tensor, " b"], cond: Cond | None) -> Float[Tensor, "b d"]:
        emb = self.noise(fourier(c_noise, self.features))
        if self.label is not None and cond is not None and cond.label is not None:
            emb = emb + self.label(cond.label.clamp(min=0)) * (cond.label >= 0)[:, None]
        if self.augment is not None and cond is not None and cond.augment is not None:
            emb = emb + self.augment(cond.augment)
        if self.pooled is not None and cond is not None and cond.pooled is not None:
            emb = emb + self.pooled(cond.pooled)
        return F.silu(emb)


def modulate(x: Float[Tensor, "b c h w"], scale_shift: Float[Tensor, "b c2"]) -> Float[Tensor, "b c h w"]:
    """x * (1 + scale) + shift per image and channel, in one pass (Dhariwal & Nichol 2021, eq. 3)."""
    scale, shift = scale_shift[:, :, None, None].chunk(2, 1)
    return torch.addcmul(shift, x, 1 + scale)


# ---- changing the resolution ----------------------------------------------------------------------------------


class Down(nn.Module):
    """Halve height and width (rounded up): the mean of 2x2, or blur-pool (Zhang 2019) if ``blur`` is above 0.

    Blur-pool weighs 4x4 pixels by a Gaussian of standard deviation ``blur`` pixels (1 is close to the binomial
    1-3-3-1), centred between pixels, so that nothing shifts. ``learn`` makes the standard deviation a parameter.
    """

    def __init__(self, blur: float = 0.0, learn: bool = False):
        super().__init__()
        self.blur = blur
        self.log_sigma = nn.Parameter(torch.tensor(math.log(blur))) if learn and blur > 0 else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        x = pad_to(x, 2)
        if not self.blur:
            return F.avg_pool2d(x, 2)
        sigma = x.new_tensor(self.blur) if self.log_sigma is None else self.log_sigma.exp()
        taps = F.softmax(-x.new_tensor([1.5, 0.5, 0.5, 1.5]).square() / (2 * sigma.square()), 0)
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, groups=x.shape[1])


def icnr_(weight: Float[Tensor, "o i k l"], factor: int) -> Tensor:
    """Give the factor**2 subpixels of each output channel the same random filter (Aitken et al. 2017, "ICNR").

    A PixelShuffle then starts as nearest-neighbour upsampling instead of as a checkerboard.
    """
    with torch.no_grad():
        first = torch.empty_like(weight[:: factor**2])
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))
        return weight.copy_(first.repeat_interleave(factor**2, 0))


class Shuffle(nn.Module):
    """Upsample by a 3x3 convolution to factor**2 subpixels (PixelShuffle, Shi et al. 2016), without checkerboard."""

    def __init__(self, n_in: int, n_out: int, factor: int):
        super().__init__()
        self.factor = factor
        self.conv = conv(n_in, n_out * factor**2)
        icnr_(self.conv.weight, factor)
        nn.init.zeros_(self.conv.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o H W"]:
        # pixel_shuffle answers in the plain memory format; the convolutions after it want channels-last again
        return F.pixel_shuffle(self.conv(x), self.factor).contiguous(memory_format=torch.channels_last)


# ---- from pixels to features and back -------------------------------------------------------------------------


class Stem(nn.Module):
    """Pixels to features: patch x patch pixels become one, seen with their neighbours (3x3 patches: no seams)."""

    def __init__(self, n_in: int, n_out: int, patch: int):
        super().__init__()
        self.patch = patch
        self.conv = conv(n_in * patch**2, n_out)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o H W"]:
        x = F.pixel_unshuffle(pad_to(x, self.patch), self.patch) if self.patch > 1 else x
        return self.conv(x.contiguous(memory_format=torch.channels_last))


class Tail(nn.Module):
    """Features to pixels, 0 at first.

    With patches and ``refine`` channels, the features are shuffled to full resolution, joined by the input itself and
    passed through two 3x3 convolutions there: they cross the borders between patches, which otherwise show as seams.
    """

    def __init__(self, n_in: int, n_out: int, patch: int, refine: int, image: int, emb: int, local: bool = False):
        super().__init__()
        self.norm = norm(n_in, local)
        if patch > 1 and refine:
            self.up = Shuffle(n_in, refine, patch)
            self.mix = conv(refine + image, refine)
            self.adapt = nn.Linear(emb, 2 * refine)
            self.out = zero(conv(refine, n_out))
        else:
            self.up = zero(Shuffle(n_in, n_out, patch))
        self.refine = patch > 1 and refine > 0

    def forward(self, h: Tensor, x: Float[Tensor, "b c h w"], emb: Tensor) -> Float[Tensor, "b o h w"]:
        h = self.up(F.silu(self.norm(h)))[..., : x.shape[-2], : x.shape[-1]]
        if not self.refine:
            return h
        h = self.mix(torch.cat([h, x], 1))
        return self.out(F.silu(modulate(h, self.adapt(emb))))


# ---- attention ------------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over (b, heads, n, d)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_linear(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention linear in the number of tokens (Shen et al. 2021, eq. 6): softmax(q) (softmax(k)' v)."""
    if mask is not None:
        k = k.masked_fill(~mask.transpose(-1, -2), float("-inf"))
    return q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)


def softmax_probabilities(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Float[Tensor, "b heads n m"]:
    """The matrix that :func:`attend` multiplies the values by, in float32 or better; its rows sum to 1."""
    q, k = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def linear_probabilities(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Float[Tensor, "b heads n m"]:
    """The matrix that :func:`attend_linear` multiplies the values by without ever building it."""
    if mask is not None:
        k = k.masked_fill(~mask.transpose(-1, -2), float("-inf"))
    return q.softmax(-1) @ k.softmax(-2).transpose(-1, -2)


@dataclass(eq=False)
class AttentionCall:
    """One evaluation of one attention layer: what a controller (``guidance.attention``) sees, and may change.

    Attributes:
        module: The layer itself.
        query, key, value: (b, heads, n or m, d).
        mask: True (or 0, if added) where a key is visible; broadcasts to (b, heads, n, m).
        tokens: The keys that are the prompt's tokens, in cross-attention; None in self-attention.
        pixels: In joint attention, where text and image attend to both, the places of the image; else None.
        attend: From query, key, value and mask to the output: the layer's own way to compute it.
        weigh: From query, key and mask to the probabilities that ``attend`` uses.
        name: The layer's name in its net, such as "encoder.3.cross_attention"; filled in by the hook.
        progress: Where the run is, from 0 to below 1; None outside a run. Filled in by the hook.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    tokens: slice | None = None
    attend: Callable[..., Tensor] = attend
    weigh: Callable[..., Tensor] = softmax_probabilities
    name: str = ""
    progress: float | None = None
    pixels: slice | None = None
    _probabilities: Tensor | None = field(default=None, init=False)
    _output: Tensor | None = field(default=None, init=False)

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.query.shape[1]

    @property
    def probabilities(self) -> Float[Tensor, "b heads n m"]:
        """What each query attends to. Reading them changes nothing; setting them decides the output."""
        if self._probabilities is None:
            self._probabilities = self.weigh(self.query, self.key, self.mask)
        return self._probabilities

    @probabilities.setter
    def probabilities(self, edited: Float[Tensor, "b heads n m"]) -> None:
        self._probabilities, self._output = edited, edited.to(self.value) @ self.value

    @property
    def output(self) -> Float[Tensor, "b heads n d"]:
        """What the layer returns, before its output projection."""
        if self._output is None:
            self._output = self.attend(self.query, self.key, self.value, self.mask)
        return self._output

    @output.setter
    def output(self, edited: Float[Tensor, "b heads n d"]) -> None:
        self._output = edited


class _Hooks(threading.local):
    """Who looks into the attention layers of this thread's forward passes, outermost first."""

    def __init__(self) -> None:
        self.stack: list[Callable[[AttentionCall], None]] = []


HOOKS = _Hooks()


class Attention(nn.Module):
    """Multi-head attention among tokens, or from tokens to a context of width ``context`` if that is above 0.

    A context gets one more key and value, all zeros and always visible, so a row whose mask hides every token adds
    exactly 0 (and never NaN): it equals a call without a context. Each call can be seen and changed by the hooks of
    ``guidance.attention``.
    """

    def __init__(self, dim: int, head: int = 64, context: int = 0, linear: bool = False, start_at_zero: bool = True):
        super().__init__()
        self.heads = max(dim // head, 1)
        if dim % self.heads:
            raise InputError(f"{dim} channels do not divide into {self.heads} heads. Try head={dim}.")
        self.linear = linear
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(context or dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        if start_at_zero:
            zero(self.out)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m e"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        q, k, v = self.query(x), *self.key_value(x if context is None else context).chunk(2, -1)
        if context is not None:
            k, v = (F.pad(t, (0, 0, 1, 0)) for t in (k, v))
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        mask = None if mask is None else mask[:, None, None, :]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        kernel = attend_linear if self.linear else attend
        if HOOKS.stack:
            weigh = linear_probabilities if self.linear else softmax_probabilities
            call = AttentionCall(self, q, k, v, mask, None if context is None else slice(1, None), kernel, weigh)
            for hook in HOOKS.stack:
                hook(call)
            y = call.output
        else:
            y = kernel(q, k, v, mask)
        return self.out(y.transpose(1, 2).flatten(2))


def drawn(make: Callable[[], nn.Module], seed: int, *keys: int) -> Any:
    """What ``make`` builds, its first weights from ``seed`` (and ``keys``) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, *keys).initial_seed() % 2**63)
        return make()
