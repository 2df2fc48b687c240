"""Models that are larger than the memory: one network at a time on the device, the VAE in tiles, fewer digits.

None of it is on unless asked for. ``choose`` takes as little of it as fits into a given memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import InputError

HALF = torch.bfloat16
TILE = 512  # pixels per side that a tiled VAE works on at once
# Bytes that are held at once for each pixel of an image. Of a VAE of the usual widths in float32 measured, by
# bench/loading.py; of a network counted, of SDXL's layers for two rows in half precision.
_DECODING, _DENOISING = 4 * 1060, 600


class Offload:
    """Keeps a model's networks in the machine's memory, and the one that computes on the device.

    A run has three phases: it encodes its texts, denoises, and decodes. So each network moves about once.

    Attributes:
        device: Where it computes; inputs are moved there too.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device):
        self.device = device
        self._current: nn.Module | None = None
        for module in modules.values():
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
        autoencoder: Any = modules["autoencoder"]
        for name in ("encode", "decode"):  # which do not go through ``forward``
            setattr(autoencoder, name, self._entered(autoencoder, getattr(autoencoder, name)))

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self._current is not module:
            if self._current is not None:
                self._current.to("cpu")
            self._current = module.to(self.device)
        return tree_map(lambda v: v.to(self.device) if isinstance(v, Tensor) else v, (args, kwargs))

    def _entered(self, module: nn.Module, method: Any) -> Any:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self._enter(module, args, kwargs)
            return method(*args, **kwargs)

        return call


def tile(autoencoder: Any) -> None:
    """Let a VAE work on tiles of an image, joined by blending: less memory, and slightly other pixels."""
    if not hasattr(autoencoder, "enable_tiling"):
        raise InputError(f"A {type(autoencoder).__name__} has no tiles. Leave --vae-tiling out.")
    autoencoder.enable_tiling()
    if (own := getattr(autoencoder, "tile_sample_min_size", 0)) > TILE:  # of SDXL it is 1024: no image has two
        autoencoder.tile_sample_min_size = TILE
        autoencoder.tile_latent_min_size = autoencoder.tile_latent_min_size * TILE // own


# ---- settings for a given memory -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Settings, and what a run of one image takes with them, in bytes."""

    offload: bool
    half: bool
    tiling: bool
    bytes: float


def choose(
    limit: float, numbers: Mapping[str, tuple[int, torch.dtype]], pixels: int, gpu: bool, half: bool
) -> tuple[Choice, str]:
    """The settings that fit, as few as possible, and a sentence about them.

    Offloading comes first, for it changes no pixel; then fewer digits, then tiles.

    Args:
        limit: Bytes.
        numbers: How many each network has ("vae" is one of them), and in what type.
        pixels: Of an image.
        gpu: Whether there is another memory to keep networks in.
        half: Whether their precision may be chosen.

    Raises:
        InputError: Nothing fits.
    """
    choices = [
        Choice(offload, fewer, tiling, _estimate(numbers, pixels, offload, fewer, tiling))
        for tiling, fewer, offload in product((False, True), (False, True)[: 1 + half], (False, True)[: 1 + gpu])
    ]
    fitting = next((choice for choice in choices if choice.bytes <= limit), None)
    if fitting is None:
        least = min(choice.bytes for choice in choices)
        raise InputError(
            f"This model takes about {gigabytes(least)} even with all settings that save memory, --mem allows "
            f"{gigabytes(limit)}. Close other programs and give more, or take a smaller model."
        )
    names = ("offload", fitting.offload), ("precision bf16", fitting.half), ("vae-tiling", fitting.tiling)
    chosen = " and ".join(f"--{name}" for name, on in names if on) or "no other setting"
    return fitting, (
        f"--mem chose {chosen}: an image of {pixels / 1e6:.2g} megapixels takes about {gigabytes(fitting.bytes)}."
    )


def _estimate(
    numbers: Mapping[str, tuple[int, torch.dtype]], pixels: int, offload: bool, half: bool, tiling: bool
) -> float:
    """Weights, and what the network holds while it denoises an image, or the VAE while it decodes it."""
    weights = {
        name: n * (HALF if half and dtype == torch.float32 and name != "vae" else dtype).itemsize
        for name, (n, dtype) in numbers.items()
    }
    denoising, decoding = _DENOISING * pixels, _DECODING * (min(pixels, TILE**2) if tiling else pixels)
    if offload:
        return max(max(weights.values()) + denoising, weights["vae"] + decoding)
    return sum(weights.values()) + max(denoising, decoding)


def gigabytes(n: float) -> str:
    """In words: "6.5 GB"."""
    return f"{n / 1e9:.1f} GB"
