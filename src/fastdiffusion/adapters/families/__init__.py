"""The families, by the class of the pipeline that a checkpoint's ``model_index.json`` names."""

import re

from ..family import Family
from .flux import Chroma, Flux
from .flux2 import Flux2, Klein
from .hidream import HiDream
from .image_input import InstructPix2Pix, Upscaler
from .image_prompted import ImageVariation, StableUnClip
from .inpainting import StableDiffusionInpaint, StableDiffusionXlInpaint
from .kontext import FluxKontext
from .krea2 import Krea2
from .lumina2 import Lumina2
from .pixart import PixArtSigma
from .qwen_image import QwenImage
from .qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from .sana import Sana
from .stable_diffusion import StableDiffusion, StableDiffusionXl
from .stable_diffusion_3 import StableDiffusion3
from .wan import Wan
from .z_image import ZImage

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXl,
    "StableDiffusionInpaintPipeline": StableDiffusionInpaint,
    "StableDiffusionXLInpaintPipeline": StableDiffusionXlInpaint,
    "StableDiffusionInstructPix2PixPipeline": InstructPix2Pix,
    "StableDiffusionUpscalePipeline": Upscaler,
    "StableDiffusionImageVariationPipeline": ImageVariation,
    "StableUnCLIPImg2ImgPipeline": StableUnClip,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "FluxKontextPipeline": FluxKontext,
    "ChromaPipeline": Chroma,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Klein,
    "QwenImagePipeline": QwenImage,
    "QwenImageEditPipeline": QwenImageEdit,
    "QwenImageEditPlusPipeline": QwenImageEditPlus,
    "ZImagePipeline": ZImage,
    "Krea2Pipeline": Krea2,
    "PixArtSigmaPipeline": PixArtSigma,
    "SanaPipeline": Sana,
    "Lumina2Pipeline": Lumina2,
    "HiDreamImagePipeline": HiDream,
    "WanPipeline": Wan,
}

# What diffusers puts into the name of a pipeline that does something else with the same networks; a control network
# beside them has no part in the family.
VARIANT = re.compile(r"(\w+?)(?:ControlNet|Union|PAG|SAG|Panorama|Adapter|Img2Img|(Inpaint(?:ing)?))+Pipeline")


def family_of(pipeline: str) -> type[Family] | None:
    """The family of a class of pipeline, also of one that uses a family's networks for another task."""
    match = VARIANT.fullmatch(pipeline)
    if match is None or f"{match[1]}Pipeline" not in FAMILIES:
        return FAMILIES.get(pipeline)
    plain = FAMILIES[f"{match[1]}Pipeline"]
    return FAMILIES.get(f"{match[1]}InpaintPipeline", plain) if match[2] else plain
