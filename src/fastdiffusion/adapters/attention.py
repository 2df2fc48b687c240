"""The attention layers of diffusers' networks, as ``guidance.attention.control`` sees and changes them.

Every layer ends in ``scaled_dot_product_attention``. While a control is entered, a function mode of this thread hands
each such evaluation to the hooks; forward hooks on the layers tell which one it is. Both go when the control is left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..guidance.attention import EXTERNAL
from ..nets.layers import HOOKS, AttentionCall, softmax_probabilities


class Layout(NamedTuple):
    """Where text and image are among all the tokens of joint attention.

    ``order`` is for networks whose rows have them elsewhere, by the lengths of their texts: the place in the row of
    each token of this layout.
    """

    tokens: slice
    pixels: slice
    total: int
    order: Int[Tensor, "b n"] | None = None

    @classmethod
    def of(cls, tokens: int, pixels: int, text_first: bool, multiple: int = 1) -> Layout:
        """The layout of one after the other, each padded to a multiple."""
        text, image = (n + -n % multiple for n in (tokens, pixels))
        first, second = (0, text) if text_first else (image, 0)
        return cls(slice(first, first + tokens), slice(second, second + pixels), text + image)


class DiffusersAttention:
    """How the layers of one network are found and watched, but those whose names have one of ``without`` in them."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        self._local, self.without = threading.local(), without

    def __deepcopy__(self, memo: Any) -> DiffusersAttention:
        return DiffusersAttention(self.without)  # a copied network has watchers of its own

    @property
    def layout(self) -> Layout | None:
        """Of this thread's present evaluation; None where text and image do not attend jointly."""
        return getattr(self._local, "layout", None)

    @layout.setter
    def layout(self, layout: Layout | None) -> None:
        self._local.layout = layout

    def layers(self, net: nn.Module) -> dict[str, nn.Module]:
        """The attention layers by name, such as "mid_block.attentions.0.transformer_blocks.0.attn2"."""
        return {
            name: module
            for name, module in net.named_modules()
            if hasattr(module, "processor")
            and ("Attention" in type(module).__name__ or "Attn" in type(module).__name__)
            and not any(part in name for part in self.without)
        }

    @contextmanager
    def watch(self, net: nn.Module) -> Iterator[None]:
        """Let this thread's hooks see every layer; nested contexts are one."""
        if getattr(self._local, "entered", False):
            yield
            return
        mode, thread = _Mode(self), threading.get_ident()
        handles = []
        for name, module in self.layers(net).items():
            enter, leave = mode.hooks(name, thread)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        self._local.entered = True
        try:
            with mode:
                yield
        finally:
            self._local.entered = False
            for handle in handles:
                handle.remove()


def register(net: nn.Module, without: tuple[str, ...] = ()) -> DiffusersAttention:
    """Let ``guidance.attention`` find the layers of a network of diffusers: one for each network, whoever uses it."""
    known = EXTERNAL.setdefault(net, DiffusersAttention(without))
    assert isinstance(known, DiffusersAttention)
    return known


class _Mode(TorchFunctionMode):
    """Hands the attention of the innermost layer to the thread's hooks."""

    def __init__(self, net: DiffusersAttention) -> None:
        super().__init__()
        self.net = net
        self.stack: list[tuple[str, nn.Module, bool]] = []  # layers that run, and whether they attend to a text
        self.unseen: set[str] = set()

    def hooks(self, name: str, thread: int) -> tuple[Any, Any]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if threading.get_ident() == thread:
                context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
                self.stack.append((name, module, context is not None))
                self.unseen.add(name)

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if threading.get_ident() == thread and self.stack:
                kind = "cross" if self.stack.pop()[2] else "self"
                if (
                    name in self.unseen
                    and output is not None
                    and any(_wants(hook, module, kind) for hook in HOOKS.stack)
                ):
                    raise InputError(
                        f"The attention layer {name} does not use scaled_dot_product_attention ({_way(module)}), so it "
                        "cannot be controlled. Name other layers, load the model without xformers, flex or slicing, or "
                        'leave it out: edit(..., window="cross=0..0.8, self=0..0").'
                    )

        return enter, leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or not self.stack or self.stack[-1][0] not in self.unseen:
            return func(*args, **kwargs)  # a layer's second evaluation is an IP-Adapter's, of an image
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        kwargs |= dict(zip(names, args, strict=False))
        query, key, value, mask = (kwargs.pop(name, None) for name in names[:4])
        name, module, cross = self.stack[-1]
        self.unseen.discard(name)
        if kwargs.pop("enable_gqa", False):  # several heads share keys and values
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))

        layout, tokens, pixels = self.net.layout, slice(None) if cross else None, None
        joint = layout is not None and query.shape[-2] == key.shape[-2] == layout.total
        order = layout.order if layout is not None and joint else None

        def attend(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None = None) -> Tensor:
            if order is None or len(q) != len(order):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=m, **kwargs)
            inverse = order.argsort(1)
            q, k, v = (_arranged(t, inverse, 2) for t in (q, k, v))  # so that nothing is rounded differently
            m = None if m is None else _arranged(m if m.ndim == 4 else m.expand(1, 1, *m.shape), inverse, 3)
            return _arranged(F.scaled_dot_product_attention(q, k, v, attn_mask=m, **kwargs), order, 2)

        def weigh(q: Tensor, k: Tensor, m: Tensor | None = None) -> Tensor:
            factor = kwargs.get("scale")  # softmax_probabilities divides by the root of the width itself
            return softmax_probabilities(q if factor is None else q * (factor * q.shape[-1] ** 0.5), k, m)

        if layout is not None:
            tokens, pixels = (layout.tokens, layout.pixels) if joint else (None, None)
        if order is not None:
            query, key, value = (_arranged(t, order, 2) for t in (query, key, value))
            mask = None if mask is None else _arranged(mask, order, 3)
        call = AttentionCall(module, query, key, value, mask, tokens, attend, weigh, pixels=pixels)
        for hook in HOOKS.stack:
            hook(call)
        return call.output if order is None else _arranged(call.output, order.argsort(1), 2)


def _arranged(t: Tensor, order: Tensor, dim: int) -> Tensor:
    """A tensor whose tokens, on axis ``dim``, are in another order in each row."""
    index = order.reshape(len(order), *[1] * (dim - 1), -1, *[1] * (t.ndim - dim - 1))
    t = t.expand(len(order), *t.shape[1:])
    return t.gather(dim, index.expand(*t.shape[:dim], -1, *t.shape[dim + 1 :]))


def _wants(hook: Any, module: nn.Module, kind: str) -> bool:
    return getattr(hook, "wants", lambda *_: True)(module, kind)


def _way(module: nn.Module) -> str:
    return type(getattr(module, "processor", module)).__name__
