"""Networks ``net(x, c_noise, cond) -> F``, by name: a closed table, so that a model file can never name code.

>>> net = build({**presets.PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1, "classes": 10})
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from . import presets
from .autoencoders import FSQ, KL, VQ, Gumbel
from .dit import DiT
from .text import CaptionMean, TextConditioned, TextEncoder
from .unet import UNet
from .vq_prior import MaskedTokens

NETS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "dit": DiT,
    "text": TextEncoder,
    "draft": CaptionMean,
    "kl": KL,
    "vq": VQ,
    "fsq": FSQ,
    "gumbel": Gumbel,
    "masked": MaskedTokens,
}

# Far above any use, far below what would exhaust memory or time while a hostile configuration is being built.
LIMITS = {
    "patch": 64,
    "depth": 256,
    "blocks": 32,
    "multiples": 64,
    "attention": 16,
    "dropout": 1.0,
    "blur": 8.0,
    "known": 2**17,
}
LIMIT = 2**14


def _check(net: str, key: str, value: Any, default: Any) -> None:
    """InputError unless ``value`` is of ``default``'s kind and in range (0, "off", only where it is the default)."""
    many = isinstance(default, tuple)
    kind = int if many else type(default)
    low, high = (1 if kind is int and default and not many else 0), LIMITS.get(key, LIMIT)

    def fits(v: Any) -> bool:  # NaN fits nothing; True is no number
        return (type(v) is kind or (kind is float and type(v) is int)) and low <= v <= high

    if not (isinstance(value, list | tuple) and len(value) <= 16 and all(map(fits, value)) if many else fits(value)):
        what = {bool: "true or false", int: f"a whole number from {low} to {high}"}.get(kind, f"from 0 to {high}")
        raise InputError(f"{net}'s {key} must be {'a list, each ' * many}{what}, got {value!r}. Try {default!r}.")


def specification(net: str | Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`build` takes, of a preset's name with changes, as in "unet-small blur=learned multiples=1,2,3".

    An empty list is ``none``; ``blur=learned`` is short for ``blur=1 learn_blur=true``. A specification is returned as
    it is.

    Raises InputError for a preset or keyword that does not exist, and for a value of the wrong kind or out of range.
    """
    if not isinstance(net, str):
        return dict(net)
    name, *changes = net.split() or [""]
    if name not in presets.PRESETS:
        raise unknown("net", name, presets.PRESETS)
    spec = {**presets.PRESETS[name]}
    known = inspect.signature(NETS[spec["name"]]).parameters
    for change in changes:
        key, sign, text = change.partition("=")
        if key not in known:
            raise unknown(f"{spec['name']} option", key, known)
        if not sign:
            raise InputError(f"{key} lacks a value. Example: --net {name + ' blur=learned'!r}.")
        if (key, text) == ("blur", "learned"):
            spec |= {"blur": 1.0, "learn_blur": True}
            continue
        spec[key] = _value(text, known[key].default)
        _check(spec["name"], key, spec[key], known[key].default)
    return spec


def _value(text: str, default: Any) -> Any:
    """A keyword's value from its text; the text itself where it is of another kind, for the message."""
    try:
        if isinstance(default, tuple):
            return [] if text in ("", "none") else [int(part) for part in text.split(",")]
        if isinstance(default, bool):
            return {"true": True, "false": False}.get(text.lower(), text)
        return type(default)(text)
    except (TypeError, ValueError):
        return text


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The network that ``spec`` describes: its ``name`` in NETS, and keywords (all plain JSON).

    With "words", keywords of ``TextEncoder``, it takes captions (``Cond.tokens``) and has a text encoder; "foreign" has
    those of the student encoder. With "draft", keywords of ``CaptionMean``, its last input channels are that mean.
    Under ``with torch.device("meta")`` it costs no memory: so a stored configuration is compared with its tensors.

    Raises:
        InputError: An unknown name or keyword, a value of the wrong kind or out of range, or that fits no other.
    """
    name = spec.get("name")
    if not isinstance(name, str) or name not in NETS:
        raise unknown("net", name, NETS)
    options = {k: v for k, v in spec.items() if k not in ("name", "words", "foreign", "draft")}
    if (text_spec := spec.get("words")) is not None:
        encoder = build({**{k: v for k, v in text_spec.items() if k != "added"}, "name": "text"})
        assert isinstance(encoder, TextEncoder)
        _add_tokens(encoder, text_spec.get("added", {}))
        if (student_spec := spec.get("foreign")) is not None:
            encoder.student_encoder = cast(
                "TextEncoder", build({**student_spec, "name": "text", "width": encoder.width})
            )
        width = {"context": encoder.width, "pooled": encoder.width}
        caption_mean = None
        if (drawn := spec.get("draft")) is not None:
            caption_mean = build({**drawn, "name": "draft", "width": encoder.width})
            assert isinstance(caption_mean, CaptionMean)
        return TextConditioned(build({**options, "name": name, **width}), encoder, caption_mean)
    known = inspect.signature(NETS[name]).parameters
    for key, value in options.items():
        if key not in known:
            raise unknown(f"{name} option", key, known)
        _check(name, key, value, known[key].default)
    return NETS[name](**options)


def _add_tokens(encoder: TextEncoder, added: Any) -> None:
    """Give an encoder room for the tokens that a configuration names, each with its number of rows."""
    fits = isinstance(added, Mapping) and len(added) <= 256
    if not fits or not all(isinstance(n, int) and 0 < n <= 64 and 0 < len(name) <= 64 for name, n in added.items()):
        raise InputError(f"text's added must say how many rows each token has, got {str(added)[:40]}.")
    if added:
        encoder.add_tokens({name: torch.zeros(n, encoder.width) for name, n in added.items()})


def is_listed(net: nn.Module) -> bool:
    """Whether a network, or the one within a text-conditioned one, is of a kind in NETS."""
    return type(net.net if isinstance(net, TextConditioned) else net) in NETS.values()


def describe(net: nn.Module) -> dict[str, Any]:
    """The inverse of :func:`build`: a network's name in NETS and its keywords; of another, the name of its class."""
    if isinstance(net, TextConditioned):
        return {**describe(net.net), **net.config}
    for name, kind in NETS.items():
        if type(net) is kind:
            return {"name": name, **cast("dict[str, Any]", net.config)}
    return {"name": type(net).__name__}


class Matched(NamedTuple):
    """What :func:`adopt` did, as names: ``taken`` over, of another ``shape``, ``left`` as they were, and ``unused``."""

    taken: list[str]
    shape: list[str]
    left: list[str]
    unused: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} of {len(self.taken) + len(self.shape) + len(self.left)} tensors taken over"]
        for names, what in ((self.shape, "of another shape"), (self.left, "not in the file"), (self.unused, "unused")):
            if names:
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
        return "; ".join(parts)


def adopt(net: nn.Module, tensors: Mapping[str, Tensor], part: str = "") -> Matched:
    """Start ``net`` from a trained one: copy every tensor whose name and shape agree, in place, and say what happened.

    Args:
        net: The network to start.
        tensors: Another network's state dict.
        part: Only names that begin so, e.g. "encoder." for a U-Net's way down (fastai's DynamicUnet idea).

    Raises:
        InputError: Nothing fits.
    """
    own = {k: v for k, v in net.state_dict().items() if k.startswith(part)}
    taken = [k for k, v in own.items() if k in tensors and tensors[k].shape == v.shape]
    shape = [k for k, v in own.items() if k in tensors and tensors[k].shape != v.shape]
    matched = Matched(taken, shape, [k for k in own if k not in tensors], [k for k in tensors if k not in taken])
    if not taken:
        raise InputError(f"No tensor of the checkpoint fits {part or 'the net'}: {matched}. Use the same net or size.")
    with torch.no_grad():
        for key in taken:
            own[key].copy_(tensors[key])
    return matched
