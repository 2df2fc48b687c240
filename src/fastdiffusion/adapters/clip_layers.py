"""Clip skip: from which layer of CLIP the states of a prompt are taken, counted from the last one, which is 1.

So AUTOMATIC1111 and ComfyUI count. The ``clip_skip`` of diffusers counts on from the layer that a family takes anyway:
its 1 is 2 for Stable Diffusion 1, and 3 for Stable Diffusion XL.
"""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .family import Family

CUT = (1024, 23)  # width and layers of OpenCLIP's ViT-H/14 in files of Stable Diffusion 2, which lack the last of 24


def check(family: type[Family], path: object) -> None:
    """Raise InputError for a family that takes no states of a layer of CLIP."""
    if not family.clip_layer:
        raise InputError(
            f"--clip-skip is for models that take the states of a layer of CLIP, such as Stable Diffusion 1, 2, XL and "
            f"3, and {path} is a {family.name}. Leave it out."
        )


def choose(family: Family, layer: int) -> bool:
    """Let ``family`` take the states of a layer, and say whether that is not the one it takes anyway.

    Raises InputError for a layer that its text encoders, or the shallowest of several, have not.
    """
    configs = [text.encoder.config for text in family.texts if text.encoder.config.model_type == "clip_text_model"]
    lacking = max(_lacking(config) for config in configs)
    usual, most = family.clip_layer + lacking, lacking + min(config.num_hidden_layers for config in configs)
    if not lacking < layer <= most:
        raise InputError(
            f"--clip-skip counts the layers of CLIP from the last: in {family.checkpoint.path.name} from {lacking + 1} "
            f"to {most}, and {usual} is the usual one. Got {layer}."
        )
    family.clip_skip = layer - usual
    return layer != usual


def _lacking(config: Any) -> int:
    """How many layers at the end of an encoder its file was written without."""
    return int((config.hidden_size, config.num_hidden_layers) == CUT)
