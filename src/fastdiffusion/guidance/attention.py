"""Attention control: what the layers of a net attend to, seen and changed while it runs.

    store = Store(kind="cross")
    with control(net, store, Reweight({4: 2.0})):
        model.denoise(x, sigma, cond)
    store.probabilities["mid.0.cross_attention"]  # (b, pixels, tokens)

Inside :func:`control` every attention layer of the net hands its call (``nets.layers.AttentionCall``) to the
controllers, one after the other. What they see belongs to the thread that entered the context: other threads may use
the same net meanwhile, and nothing is changed in the net itself. A controller that only reads changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..denoisers import Denoiser, expand
from ..errors import InputError
from ..nets.layers import HOOKS, Attention, AttentionCall
from ..nets.text import TextConditioned
from ..noise import initial
from ..types import Cond, Denoise, Run
from .core import Interval, guidance


class ExternalAttention(Protocol):
    """The attention layers of a network of another library: where they are, and how their calls reach ``HOOKS``."""

    def layers(self, net: nn.Module) -> dict[str, nn.Module]: ...
    def watch(self, net: nn.Module) -> AbstractContextManager[None]:
        """Hand every call of this thread to ``HOOKS.stack`` until the context is left; nested ones are one."""
        ...


EXTERNAL: WeakKeyDictionary[nn.Module, ExternalAttention] = WeakKeyDictionary()  # filled by the adapters


def attention_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The attention layers of a net by name, such as "encoder.3.attention" and "encoder.3.cross_attention".

    Names are those within the U-Net or transformer, whatever stands around it; its text encoder's layers are left out.
    Raises InputError for a net without attention, or one that is compiled.
    """
    while isinstance(net, Denoiser | TextConditioned):
        net = net.net
    if any(getattr(module, "_compiled_call_impl", None) for module in net.modules()):
        raise InputError("Attention cannot be controlled in a compiled net. Load it anew from its file.")
    if net in EXTERNAL:
        return EXTERNAL[net].layers(net)
    layers = {name: module for name, module in net.named_modules() if isinstance(module, Attention)}
    if not layers:
        raise InputError("This net has no attention layers to control. Take one with attention.")
    return {name.replace("cross_attention.attention", "cross_attention"): layer for name, layer in layers.items()}


@contextmanager
def control(net: nn.Module, *controllers: Controller, run: Run | None = None) -> Iterator[None]:
    """Let controllers see and change every attention layer of ``net``, in this thread, until the context is left.

    Args:
        net: A U-Net or transformer (``model.modules["net"]``), or the ``Denoiser`` around it. Contexts nest: the outer
            one's controllers are first, and contexts of different nets do not meet.
        controllers: Each gets what those before it have left.
        run: The sampling run that it is part of, for controllers with a window.
    """
    hook = _Hook({layer: name for name, layer in attention_layers(net).items()}, controllers, run)
    stack = HOOKS.stack  # this thread's, even if the context is left by another
    stack.append(hook)
    try:
        with EXTERNAL[net].watch(net) if net in EXTERNAL else nullcontext():
            yield
    finally:
        stack.remove(hook)


@dataclass(eq=False)
class _Hook:
    """What the layers of one net hand their calls to."""

    names: Mapping[nn.Module, str]
    controllers: Sequence[Controller]
    run: Run | None

    def __call__(self, call: AttentionCall) -> None:
        if call.module in self.names:
            call.name, call.progress = self.names[call.module], _progress(self.run)
            for controller in self.controllers:
                if controller.sees(call):
                    controller(call)

    def wants(self, layer: nn.Module, kind: str) -> bool:
        """Whether a controller would see a layer's calls of a kind: then a layer that cannot hand them over fails."""
        return layer in self.names and any(
            each.kind in (None, kind) and each.matches(self.names[layer]) for each in self.controllers
        )


def _progress(run: Run | None) -> float | None:
    """The part of the evaluations that is done; None where their number is not known."""
    return run.index / len(run.sigmas) if run is not None and run.sigmas else None


@guidance
def attention_control(denoise: Denoise, net: nn.Module, *controllers: Controller, run: Run) -> Denoise:
    """:func:`control` of ``net`` during each evaluation of ``denoise``."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        with control(net, *controllers, run=run):
            return denoise(x, sigma, cond)

    return guided


# ---- controllers ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Controller:
    """What is done with the calls of some attention layers; a subclass says what, in ``__call__``.

    Attributes:
        layers: Patterns of layer names, such as "decoder.*"; one of them must match.
        kind: "self" or "cross"; by default both. Joint attention of text and image is both.
        pixels: Least and most queries of a layer, which are the pixels of its map: 1024 where it is 32 x 32.
        window: Part of the run, from start (included) to end (excluded), each from 0 to 1.
    """

    layers: str | Sequence[str] = "*"
    kind: Literal["self", "cross"] | None = None
    pixels: tuple[float, float] = (0, inf)
    window: Interval = (0.0, 1.0)

    def sees(self, call: AttentionCall) -> bool:
        """Whether a call is one of those. Raises InputError for a window outside a run."""
        if call.pixels is None and self.kind not in (None, "self" if call.tokens is None else "cross"):
            return False
        if not self.pixels[0] <= len(range(call.query.shape[-2])[call.pixels or slice(None)]) <= self.pixels[1]:
            return False
        if not self.matches(call.name):
            return False
        if tuple(self.window) == (0.0, 1.0):
            return True
        if call.progress is None:
            raise InputError(
                f"A window of {self.window} needs to know where the run is. Pass run=, and take a sampler that is not "
                "adaptive."
            )
        return self.window[0] <= call.progress < self.window[1]

    def matches(self, name: str) -> bool:
        """Whether a layer of that name is one of ``layers``."""
        return any(fnmatchcase(name, each) for each in ([self.layers] if isinstance(self.layers, str) else self.layers))

    def block(self, call: AttentionCall) -> tuple[slice, slice]:
        """The queries and keys that it is about: in joint attention the image's, and by ``kind`` text, image or all."""
        if call.pixels is None:
            return slice(None), slice(None)
        return call.pixels, {"self": call.pixels, "cross": call.tokens}.get(self.kind or "") or slice(None)

    def __call__(self, call: AttentionCall) -> None:
        """See and change one call."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Store(Controller):
    """Keep the probabilities of each layer, averaged over heads and over calls: memory does not grow with the steps.

    Attributes:
        pixels: By default, layers of at most 32 x 32 pixels.
        rows: Rows of the batch to keep; by default all. Of a guided model the conditional rows come first.
        differentiable: Keep the graph, for a loss of the probabilities.
        probabilities: By layer: (rows, pixels, pixels) of self-attention, (rows, pixels, tokens) of cross-attention;
            of joint attention the former if ``kind`` is "self".
    """

    pixels: tuple[float, float] = (0, 32 * 32)
    rows: slice | None = None
    differentiable: bool = False
    probabilities: dict[str, Float[Tensor, "b n m"]] = field(default_factory=dict, init=False)
    _calls: dict[str, int] = field(default_factory=dict, init=False)

    def __call__(self, call: AttentionCall) -> None:
        now = call.probabilities if self.differentiable else call.probabilities.detach()
        columns = call.pixels if self.kind == "self" else call.tokens
        now = now[self.rows or slice(None)].mean(1)[..., call.pixels or slice(None), columns or slice(None)]
        count = self._calls[call.name] = self._calls.get(call.name, 0) + 1
        before = self.probabilities.get(call.name, now)
        if before.shape != now.shape:
            raise InputError(
                f"{call.name} attended in shape {tuple(before.shape)} and now {tuple(now.shape)}, which have no mean. "
                "Choose rows that every call has, or another Store for each run."
            )
        self.probabilities[call.name] = torch.lerp(before, now, 1 / count)

    def clear(self) -> None:
        """Forget everything, for the next run."""
        self.probabilities.clear()
        self._calls.clear()


@dataclass(kw_only=True, eq=False)
class Replace(Controller):
    """Let rows of the batch attend as another row does (prompt-to-prompt, Hertz et al. 2022, arXiv:2208.01626).

    Attributes:
        source: The row whose probabilities are taken.
        target: The row or rows that get them.
        columns: In cross-attention, for each token of the target the token of the source that it takes the column of,
            or -1 to keep its own (sec. 3, "adding a new phrase"); by default the tokens correspond one to one.
    """

    source: int = 0
    target: int | Sequence[int] = 1
    columns: Sequence[int] | None = None

    def __call__(self, call: AttentionCall) -> None:
        rows = [self.target] if isinstance(self.target, int) else list(self.target)
        _check_rows(call, self.source, *rows)
        old = call.probabilities
        taken = old[self.source].expand(len(rows), -1, -1, -1)
        if call.tokens is not None and self.columns is not None:
            start, count = call.tokens.start or 0, taken[..., call.tokens].shape[-1]
            if len(self.columns) > count or max(self.columns, default=-1) >= count:
                raise InputError(f"columns must be at most {count} tokens below {count}, got {list(self.columns)}.")
            places = torch.tensor([*self.columns, *[-1] * (count - len(self.columns))], device=old.device)
            column = torch.arange(taken.shape[-1], device=old.device)
            column[call.tokens] = torch.where(places < 0, column[call.tokens], places + start)
            own = torch.zeros_like(column, dtype=torch.bool)
            own[call.tokens] = places < 0
            taken = torch.where(own, old[rows], taken[..., column])
        if call.pixels is not None:  # the rest of joint attention stays
            chosen = torch.zeros(old.shape[-2:], dtype=torch.bool, device=old.device)
            chosen[self.block(call)] = True
            taken = torch.where(chosen, taken, old[rows])
        call.probabilities = old.index_copy(0, torch.tensor(rows, device=old.device) % len(old), taken)


@dataclass(eq=False)
class Reweight(Controller):
    """Multiply the probabilities of chosen tokens (Hertz et al. 2022, sec. 3, "attention re-weighting").

    All weights 1 change nothing but the order of computation; negative ones push what a token says away.

    Attributes:
        weights: Factors by the token's place in the prompt.
        rows: Rows of the batch that are changed; by default all.
        normalize: Whether what is attended to keeps its sum of magnitudes, 1; by default it is not scaled back.
    """

    weights: Mapping[int, float]
    rows: Sequence[int] | None = None
    normalize: bool = False

    def sees(self, call: AttentionCall) -> bool:
        return call.tokens is not None and super().sees(call)

    def __call__(self, call: AttentionCall) -> None:
        probabilities = call.probabilities
        _check_rows(call, *(self.rows or ()))
        columns = range(probabilities.shape[-1])[call.tokens or slice(None)]
        queries = 1 if call.pixels is None else probabilities.shape[-2]
        factors = probabilities.new_ones(len(probabilities), 1, queries, probabilities.shape[-1])
        for token, weight in self.weights.items():
            if not -len(columns) <= token < len(columns):
                raise InputError(f"There is no token {token} to reweight: the prompt has {len(columns)}.")
            rows = slice(None) if self.rows is None else list(self.rows)
            factors[rows, :, call.pixels or slice(None), columns[token]] = weight
        edited = probabilities * factors
        if self.normalize:
            edited = edited / edited.abs().sum(-1, keepdim=True).clamp(min=1e-8)
        call.probabilities = edited


@dataclass(eq=False)
class Share(Controller):
    """Let the first half of a batch look at the second: queries from the one, keys and values from the other.

    Hertz et al. 2024, "StyleAligned" (arXiv:2312.02133, sec. 4): the queries first get the mean and deviation of the
    other's, so that they find its keys. Where a batch stacks several conditions, each ``2 * n`` rows are such halves.

    Attributes:
        n: Rows of a half.
        strength: 0 is off, 1 attends to the other half alone.
    """

    n: int
    strength: float = 1.0
    kind: Literal["self", "cross"] | None = field(default="self", kw_only=True)

    def __call__(self, call: AttentionCall) -> None:
        if len(call.query) % (2 * self.n):
            raise InputError(f"A batch of {len(call.query)} rows does not divide into two halves of {self.n}.")
        (queries, style), (own, other) = _halves(call.query, self.n), _halves(call.output, self.n)
        image = (..., call.pixels or slice(None), slice(None))
        (mean, std), (style_mean, style_std) = (
            (t[image].mean(-2, keepdim=True), t[image].std(-2, keepdim=True)) for t in (queries, style)
        )
        queries = _at(call.pixels, (queries - mean) / (std + 1e-6) * style_std + style_mean, queries)
        keys, values = (
            _at(call.pixels, theirs, mine) for mine, theirs in (_halves(call.key, self.n), _halves(call.value, self.n))
        )
        mask = call.mask
        if mask is not None and len(mask) > 1:
            mask = _halves(mask, self.n)[1 if call.pixels is None else 0]
        shared = torch.lerp(own, call.attend(queries, keys, values, mask), self.strength)
        halves = [t.unflatten(0, (-1, self.n)) for t in (shared, other)]
        call.output = torch.stack(halves, 1).flatten(0, 2)


def _halves(t: Tensor, n: int) -> tuple[Tensor, Tensor]:
    first, second = t.unflatten(0, (-1, 2, n)).unbind(1)
    return first.flatten(0, 1), second.flatten(0, 1)


def _at(pixels: slice | None, new: Tensor, old: Tensor) -> Tensor:
    """``new`` at the places of the image, and ``old`` at those of the text, which joint attention has too."""
    if pixels is None:
        return new
    mixed = old.clone()
    mixed[..., pixels, :] = new[..., pixels, :]
    return mixed


def _check_rows(call: AttentionCall, *rows: int) -> None:
    n = len(call.query)
    if not all(-n <= row < n for row in rows):
        raise InputError(f"Rows {sorted(rows)} of the attention are asked for, and the batch has {n}.")


@guidance
def shared_attention(
    denoise: Denoise,
    net: nn.Module,
    style: Float[Tensor, "1 c h w"],
    strength: float = 1.0,
    style_cond: Cond | None = None,
    seed: int = 0,
) -> Denoise:
    """Let every self-attention of a model look at a style image, denoised along with x at the same noise level.

    See :class:`Share`. Attention to a prompt is left alone.

    Args:
        denoise: A denoiser of ``net``, guided or not.
        net: The network whose layers look.
        style: In [-1, 1] (or latents).
        strength: 0 is off, 1 looks at the style alone.
        style_cond: The condition of the style image, one row; by default none.
        seed: Of the style image's noise.
    """
    noise = initial([seed], style.shape[1:]).to(style)

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        if strength == 0:
            return denoise(x, sigma, cond)
        n = len(x)
        other = (style + expand(sigma[:1], style) * noise).expand(n, -1, -1, -1)
        both = None if cond is None else Cond.cat([cond, cond.null() if style_cond is None else style_cond[[0] * n]])
        with control(net, Share(n, strength)):
            return denoise(torch.cat([x, other]), torch.cat([sigma, sigma]), both)[:n]

    return guided
