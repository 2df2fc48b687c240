"""LoRA: small changes of a network's weights, read from files, trained, written, and computed with."""

from .layers import Lora
from .reading import fetched, split_scale, with_loras

__all__ = ["Lora", "fetched", "split_scale", "with_loras"]
