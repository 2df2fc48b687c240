"""LoRA: small changes of a network's weights, read from files, trained, written, and computed with."""

from .layers import Lora
from .reading import split_scale, with_loras

__all__ = ["Lora", "split_scale", "with_loras"]
