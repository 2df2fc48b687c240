"""Nets by name: the sizes on offer."""

from __future__ import annotations

from typing import Any

from ..errors import unknown
from . import presets

# One dial. In the comments: parameters, and millions of multiply-adds of a forward pass at 1x32x32 (tiny: 1x8x8).
PRESETS: dict[str, dict[str, Any]] = {
    # 0.8 M, 19: small images, pixel by pixel
    "unet-tiny": {"name": "unet", "width": 32, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 32},
    # 2.0 M, 86: about 32x32. After 100 CPU s of Fashion-MNIST its validation loss was 0.338; at width 48, 0.381
    "unet-small": {
        "name": "unet", "patch": 2, "refine": 16, "width": 32, "multiples": [1, 2, 3], "blocks": [1, 1, 1],
        "attention": [1, 2], "updown": False,
    },
    # 15.8 M, 337: about 64x64
    "unet-base": {
        "name": "unet", "patch": 2, "refine": 16, "width": 64, "multiples": [1, 2, 3, 4], "blocks": [1, 1, 1, 1],
        "attention": [2, 3], "updown": False,
    },
    # 4.6 M, 118 at 4x16x16: latents of 64x64 images
    "unet-latent": {
        "name": "unet", "width": 48, "multiples": [1, 2, 3], "blocks": [1, 1, 1], "attention": [1, 2], "updown": False,
        "head": 48,
    },
    # 0.8 M, 197: restores tiles of any size, because its output at a pixel depends on the pixels around it alone
    "restorer": {
        "name": "unet", "patch": 2, "refine": 16, "width": 32, "multiples": [2], "blocks": [2], "attention": [],
        "updown": False, "local": True, "rescale": False,
    },
    # 0.7 M, 8
    "dit-tiny": {"name": "dit", "patch": 2, "refine": 8, "width": 96, "depth": 4, "head": 32},
    # 2.1 M, 99: 64 tokens
    "dit-small": {"name": "dit", "patch": 4, "refine": 16, "width": 128, "depth": 6},
    # 10.2 M, 449
    "dit-base": {"name": "dit", "patch": 4, "refine": 16, "width": 256, "depth": 8},
}  # fmt: skip


def unet(name: str) -> dict[str, Any]:
    """The keywords of a U-Net in ``nets.PRESETS``, which still lack channels; InputError for another name."""
    preset = presets.PRESETS.get(name, {})
    if preset.get("name") != "unet":
        raise unknown("U-Net", name, [known for known, spec in presets.PRESETS.items() if spec["name"] == "unet"])
    return {key: value for key, value in preset.items() if key != "name"}
