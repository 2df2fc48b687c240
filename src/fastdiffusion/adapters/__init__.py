"""Checkpoints of other model families as a ``Model``: the one room that imports diffusers and transformers.

A family is a small class (``family``): how its prompts are encoded, what "nothing" is, how its network is called.
Everything else - sampling, guidance, the prompt language, fitting - is what this package does anyway, because a model
is a denoiser.
"""

from .engines import with_engine
from .examine import examine
from .exports import export_networks, export_pipeline
from .families import FAMILIES
from .loading import load, located
from .lora import with_loras
from .table_scheduler import TableScheduler

__all__ = [
    "FAMILIES",
    "TableScheduler",
    "examine",
    "export_networks",
    "export_pipeline",
    "load",
    "located",
    "with_engine",
    "with_loras",
]
