"""Where to compute."""

from __future__ import annotations

import torch

from .errors import InputError


def best_device() -> str:
    """Where to compute if nobody says."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: str | None) -> torch.device:
    """The device of that name, by default the best; InputError if it is not there."""
    try:
        return torch.empty(0, device=name or best_device()).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"No device {name!r} here ({str(error).splitlines()[0][:100]}). Try device='cpu'.") from None
