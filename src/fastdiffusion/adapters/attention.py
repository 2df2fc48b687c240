"""The attention layers of diffusers' networks, as ``guidance.attention.control`` sees and changes them.

Every layer ends in ``scaled_dot_product_attention``. While a control is entered, a function mode of this thread hands
each such evaluation to the hooks; forward hooks on the layers tell which one it is. Both go when the control is left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..guidance.attention import EXTERNAL
from ..nets.layers import HOOKS, AttentionCall, softmax_probabilities


def register(net: nn.Module) -> None:
    """Let ``guidance.attention`` find the layers of a network of diffusers."""
    EXTERNAL[net] = DiffusersAttention()


class DiffusersAttention:
    """How the layers of one network are found and watched."""

    def __init__(self) -> None:
        self._local = threading.local()

    def layers(self, net: nn.Module) -> dict[str, nn.Module]:
        """The attention layers by name, such as "mid_block.attentions.0.transformer_blocks.0.attn2"."""
        return {name: module for name, module in net.named_modules() if hasattr(module, "to_q")}

    @contextmanager
    def watch(self, net: nn.Module) -> Iterator[None]:
        """Let this thread's hooks see every layer; nested contexts are one."""
        if getattr(self._local, "entered", False):
            yield
            return
        mode, thread = _Mode(), threading.get_ident()
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


class _Mode(TorchFunctionMode):
    """Hands the attention of the innermost layer to the thread's hooks."""

    def __init__(self) -> None:
        super().__init__()
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
                _, _, cross = self.stack.pop()
                if name in self.unseen and output is not None:
                    x = (args[0] if args else kwargs["hidden_states"])[:, None]
                    why = (
                        f"The attention layer {name} does not use scaled_dot_product_attention, so it cannot be "
                        "controlled. Choose other layers; or load the model anew, without xformers or sliced attention."
                    )
                    call = AttentionCall(module, x, x, x, None, slice(None) if cross else None, hidden=why)
                    for hook in HOOKS.stack:
                        hook(call)

        return enter, leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or not self.stack:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        kwargs |= dict(zip(names, args, strict=False))
        query, key, value, mask = (kwargs.pop(name, None) for name in names[:4])
        name, module, cross = self.stack[-1]
        self.unseen.discard(name)

        def attend(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None = None) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=m, **kwargs)

        def weigh(q: Tensor, k: Tensor, m: Tensor | None = None) -> Tensor:
            factor = kwargs.get("scale")  # softmax_probabilities divides by the root of the width itself
            return softmax_probabilities(q if factor is None else q * (factor * q.shape[-1] ** 0.5), k, m)

        call = AttentionCall(module, query, key, value, mask, slice(None) if cross else None, attend, weigh)
        for hook in HOOKS.stack:
            hook(call)
        return call.output
