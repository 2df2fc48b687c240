"""Where to compute, and in which precision to train."""

from __future__ import annotations

import torch

from .errors import InputError, unknown

PRECISIONS = ("auto", "float32", "bfloat16")


def best_device() -> str:
    """Where to compute if nobody says."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: str | None) -> torch.device:
    """The device of that name, by default the best; InputError if it is not there."""
    try:
        device = torch.empty(0, device=name or best_device()).device
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        return device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"No device {name!r} here ({str(error).splitlines()[0][:100]}). Try device='cpu'.") from None


def check_precision(precision: str) -> None:
    """Raise InputError for a name that is none of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)


def choose_precision(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16"; "auto" is bfloat16 on a GPU that computes in it, and float32 everywhere else."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def autocast(precision: str | None, device: torch.device) -> torch.autocast:
    """The context in which a loss is computed in ``precision``; weights and gradients stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
