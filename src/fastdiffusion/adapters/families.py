"""The families, by the class of the pipeline that a checkpoint's ``model_index.json`` names."""

from .family import Family
from .flux import Flux
from .stable_diffusion import StableDiffusion, StableDiffusionXl
from .stable_diffusion_3 import StableDiffusion3

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXl,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}
