"""Networks that were trained to take an image beside the noise: to change it (InstructPix2Pix), or to enlarge it."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...models import Model
from .common import changed, copied_family, family_of, of_image


def with_image(model: Model, image: Float[Tensor, "1 c h w"], **settings: Any) -> Model:
    """A new model that works from an image.

    Args:
        model: Of StableDiffusionInstructPix2PixPipeline or StableDiffusionUpscalePipeline.
        image: In [-1, 1]: to be changed, and of the run's size; or to be enlarged, of a quarter of that.
        settings: ``image_scale`` of the former, by default 1.5 (Brooks et al. 2023, arXiv:2211.09800, eq. 3);
            ``noise_level`` and ``seed`` of the latter: how noisy the image is taken to be, 0 to 999, by default 20.

    Raises:
        InputError: A model that takes none, or a setting that it does not have.
    """
    family = family_of(model, "An image as an input")
    if family.image != "input":
        raise InputError(f"{family.name} takes no image as an input. Start from it: image=, strength=.")
    other: Any = copied_family(family)
    other.show(image.to(model.device), **settings)
    return changed(model, other, {}, [of_image(image), *sorted(settings.items())])
