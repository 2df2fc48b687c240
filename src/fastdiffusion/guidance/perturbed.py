"""Guidance away from what a model makes with part of its attention disturbed: no second model, no empty prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nets.layers import AttentionCall
from ..types import Cond, Denoise, Run
from .attention import Controller, attention_layers, control
from .core import ALWAYS, Guided, Interval, Scale, guidance, scale_at


@dataclass(kw_only=True, eq=False)
class Identity(Controller):
    """Let each pixel attend to itself alone; in joint attention to itself and the text, as the text does to all."""

    kind: Literal["self", "cross"] | None = "self"

    def __call__(self, call: AttentionCall) -> None:
        if call.pixels is None:
            call.output = call.value
            return
        n = call.query.shape[-2]
        places = torch.zeros(n, dtype=torch.bool, device=call.query.device)
        places[call.pixels] = True
        visible = ~(places[:, None] & places) | torch.eye(n, dtype=torch.bool, device=places.device)
        mask = call.mask
        if mask is not None:
            visible = mask & visible if mask.dtype == torch.bool else mask.masked_fill(~visible, float("-inf"))
        call.output = call.attend(call.query, call.key, call.value, visible)


@dataclass(kw_only=True, eq=False)
class Skip(Controller):
    """Leave the layers out: nothing is added to what goes past them."""

    def __call__(self, call: AttentionCall) -> None:
        call.output = call.query.new_zeros(*call.query.shape[:-1], call.value.shape[-1])


def chosen_layers(net: nn.Module, layers: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of attention layers of ``net``: those like a pattern ("mid", "*.13.*"), by default those in its middle.

    That is a U-Net's middle block, and the middle quarter of a transformer's blocks. Raises InputError where none is
    like a pattern.
    """
    names = tuple(attention_layers(net))
    if layers is None:
        if central := tuple(name for name in names if name.startswith("mid")):
            return central
        blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        central = blocks[3 * len(blocks) // 8 : max(5 * len(blocks) // 8, 3 * len(blocks) // 8 + 1)]
        return tuple(name for name in names if name.rpartition(".")[0] in central)
    found: dict[str, None] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        like = [name for name in names if fnmatchcase(name, pattern if "*" in pattern else f"*{pattern}*")]
        if not like:
            few = ", ".join([*names[:3], "..."] if len(names) > 4 else names)
            raise InputError(f"No attention layer of this network is like {pattern!r}. It has {few}.")
        found.update(dict.fromkeys(like))
    return tuple(found)


@guidance
def _away(
    denoise: Denoise,
    net: nn.Module,
    disturbance: Controller,
    scale: Scale,
    interval: Interval,
    plain: Denoise | None,
    *,
    run: Run,
) -> Denoise:
    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now, x0 = scale_at(scale, run, interval), denoise(x, sigma, cond)
        if now == 1:
            return x0
        strong = x0 if plain is None else plain(x, sigma, cond)
        with control(net, disturbance):
            weak = (plain or denoise)(x, sigma, cond)
        return x0 + (now - 1) * (strong - weak)

    return guided


def pag(
    denoise: Denoise,
    net: nn.Module,
    scale: Scale,
    layers: str | Sequence[str] | None = None,
    interval: Interval = ALWAYS,
    plain: Denoise | None = None,
) -> Guided:
    """Perturbed-attention guidance: D + (scale - 1) * (D - D'), where pixels of D' attend to themselves alone.

    Ahn et al. 2024 (arXiv:2403.17377, eq. 13; their s is scale - 1). It needs no condition, and goes around any other
    guidance. 1 is off. It costs one more evaluation of the network for each image, and two where ``plain`` is another
    denoiser than ``denoise``.

    Args:
        denoise: What to guide.
        net: The network of it (``model.modules["net"]``) whose attention is disturbed.
        scale: 1 is off; 2 to 4 is usual.
        layers: Which attention layers; see :func:`chosen_layers`.
        interval: Guide only where low < sigma <= high.
        plain: The denoiser D of the difference, where ``denoise`` has other guidance already; by default that itself.

    Raises:
        InputError: A network without attention, or whose layers cannot be seen; the message names them.
    """
    return _away(denoise, net, Identity(layers=chosen_layers(net, layers)), scale, interval, plain)


def slg(
    denoise: Denoise,
    net: nn.Module,
    scale: Scale,
    layers: str | Sequence[str] | None = None,
    interval: Interval = ALWAYS,
    plain: Denoise | None = None,
) -> Guided:
    """Skip-layer guidance: as :func:`pag`, but D' goes without the attention of some layers.

    As Stable Diffusion 3.5 is guided by its makers, and STG (Hyung et al. 2024, arXiv:2411.18664), which leave out
    whole blocks; here their attention alone.
    """
    return _away(denoise, net, Skip(layers=chosen_layers(net, layers)), scale, interval, plain)
