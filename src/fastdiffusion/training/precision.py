"""In which precision a net is trained."""

from __future__ import annotations

import torch

from ..errors import unknown

PRECISIONS = ("auto", "float32", "bfloat16")


def check(precision: str) -> None:
    """Raise InputError for a name that is none of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)


def choose(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16"; "auto" is bfloat16 on a GPU that computes in it, and float32 everywhere else."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def autocast(precision: str | None, device: torch.device) -> torch.autocast:
    """The context in which a loss is computed in ``precision``; weights and gradients stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
