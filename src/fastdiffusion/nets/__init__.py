"""Networks ``net(x, c_noise, cond) -> F``, by name: a closed table, so that a model file can never name code.

    >>> net = build({**PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1, "classes": 10})
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..errors import InputError, unknown
from .dit import DiT
from .unet import UNet

NETS: dict[str, type[nn.Module]] = {"unet": UNet, "dit": DiT}

PRESETS: dict[str, dict[str, Any]] = {
    "unet-tiny": {"name": "unet", "width": 32, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 32},
    "unet-small": {
        "name": "unet", "patch": 2, "refine": 16, "width": 64, "multiples": [1, 2, 3], "blocks": [1, 1, 1],
        "attention": [1, 2],
    },
    "unet-base": {
        "name": "unet", "patch": 2, "refine": 24, "width": 96, "multiples": [1, 2, 3], "blocks": [2, 2, 2],
        "attention": [1, 2],
    },
    "dit-tiny": {"name": "dit", "patch": 2, "refine": 8, "width": 96, "depth": 4, "head": 32},
    "dit-small": {"name": "dit", "patch": 4, "refine": 16, "width": 192, "depth": 6},
    "dit-base": {"name": "dit", "patch": 4, "refine": 24, "width": 384, "depth": 10, "long_skips": True},
}  # fmt: skip


def build(spec: dict[str, Any]) -> nn.Module:
    """The network that ``spec`` describes: its ``name`` in NETS, and keywords. Raises InputError for what is unknown."""
    keywords = {k: v for k, v in spec.items() if k != "name"}
    name = spec.get("name")
    if name not in NETS:
        raise unknown("net", name, NETS)
    known = inspect.signature(NETS[name]).parameters
    for key in keywords:
        if key not in known:
            raise unknown(f"{name} option", key, known)
    return NETS[name](**keywords)
