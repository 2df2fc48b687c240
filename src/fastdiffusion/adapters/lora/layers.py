"""LoRA layers beside the layers of any network, of this package or another: what is trained.

A layer's output becomes ``W x + scale * alpha / rank * up(down(x))`` (Hu et al. 2021, arXiv:2106.09685, sec. 4.1).
It is added by a hook, so that the network keeps its classes, names and weights, and is itself again once
the hooks are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ...noise import Stream, generator

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
# What is trained by default: attention and its projections, as diffusers, kohya and this package call them.
ATTENTION = (
    r"\.(to_q|to_k|to_v|to_out(\.0)?|to_qkv|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)$"
    r"|attention\.(query|key_value|out)$|(self_attn|attn)\.([qkvo]|out)_proj$"
)
TARGETS = {
    "attention": ATTENTION,
    "linear": r"linear",  # by kind: see ``chosen``
    "all": r"",
}


class LowRank(nn.Module):
    """``up(down(x))``, which is 0 until it has learned something.

    Args:
        layer: A linear layer, or a convolution without groups: ``down`` has its kernel, ``up`` is 1 x 1.
        rank: Width between the two.
        alpha: The result counts ``alpha / rank``.
        dropout: Part of the inputs that is left out in training.
        draw: Chance of the first weights.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, dropout: float, draw: torch.Generator):
        super().__init__()
        weight: Any = layer.weight
        ones = [1] * (weight.ndim - 2)
        rank = min(rank, len(weight), weight[0].numel())
        down = torch.randn(rank, *weight.shape[1:], generator=draw) / weight[0].numel() ** 0.5
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, *ones, device=weight.device))
        self.alpha, self.dropout, self.scale = float(alpha), dropout, 1.0
        kinds = [kind for kind in CONVOLUTIONS if isinstance(layer, kind)]
        self.kernel = CONVOLUTIONS[kinds[0]] if kinds else None
        names = ("stride", "padding", "dilation")
        self.options = {name: getattr(layer, name) for name in names} if kinds else {}

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the layer's output."""
        # In the precision of the network: its input is kept for the gradient once, and not again in another one. Of
        # float16 gradients would vanish.
        x = F.dropout(x.float() if x.dtype == torch.float16 else x, self.dropout, self.training)
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        factor = self.scale * self.alpha / len(down)
        if self.kernel is None:
            return factor * F.linear(F.linear(x, down), up)
        return factor * self.kernel(self.kernel(x, down, **self.options), up)


class Lora(nn.Module):
    """LoRA layers beside some layers of a model's networks, attached until :meth:`detach`.

    Args:
        modules: The networks by name, as in ``Model.modules``.
        targets: "attention", "linear" (all linear layers), "all" (convolutions too), or a regular expression that the
            names of layers are searched for.
        rank: Of each; in small layers it is at most their width.
        alpha: By default the rank.
        dropout: See :class:`LowRank`.
        seed: Of the first weights.
        left_out: What the names of layers begin with that have none, such as "text_encoder.".

    Raises:
        InputError: No layer has such a name.

    Attributes:
        layers: The added layers by the name of a network and of a layer in it.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        targets: str = "attention",
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        left_out: Sequence[str] = (),
    ):
        super().__init__()
        if rank < 1:
            raise InputError(f"rank must be at least 1, got {rank}. Try 8.")
        found = [(part, name, layer) for part, net in modules.items() for name, layer in chosen(net, targets)]
        found = [one for one in found if not one[1].startswith(tuple(left_out))]
        if not found:
            known = ", ".join(TARGETS)
            raise InputError(f"No layer matches targets={targets!r}. Try {known}, or a part of a layer's name.")
        self.layers: dict[tuple[str, str], LowRank] = {}
        self.scale, self._handles = 1.0, list[Any]()
        for i, (part, name, layer) in enumerate(found):
            draw = generator(seed, Stream.WEIGHTS, i)
            added = LowRank(layer, rank, rank if alpha is None else alpha, dropout, draw)
            self.add_module(f"{part}/{name}".replace(".", "/"), added)
            self.layers[part, name] = added
            self._handles.append(layer.register_forward_hook(self._hook(added)))

    def _hook(self, added: LowRank) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if self.scale == 0:  # to the bit
                return output
            return output + (self.scale * added(inputs[0])).to(output.dtype)

        return hook

    @contextmanager
    def off(self) -> Iterator[None]:
        """The networks as they were."""
        scale, self.scale = self.scale, 0.0
        try:
            yield
        finally:
            self.scale = scale

    def detach(self) -> None:
        """Leave the networks as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def matrices(self) -> dict[tuple[str, str], tuple[Tensor, Tensor, float]]:
        """(down, up, alpha) of each layer, by the names of a network and of a layer in it."""
        return {
            key: (added.down.detach().cpu(), added.up.detach().cpu(), added.alpha) for key, added in self.layers.items()
        }


def chosen(net: nn.Module, targets: str) -> list[tuple[str, nn.Module]]:
    """The layers of a network that LoRA is added to, by name; convolutions in groups have none."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)
    layers = [
        (name, layer)
        for name, layer in net.named_modules()
        if isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1
    ]
    if targets == "linear":
        return [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]
    try:
        pattern = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise InputError(f"targets={targets!r} is no regular expression ({error}). Try attention.") from None
    return [(name, layer) for name, layer in layers if pattern.search(f".{name}")]


def trainable(modules: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    """The parameters that ask for gradients."""
    return (p for module in modules for p in module.parameters() if p.requires_grad)
