"""Networks that were trained to inpaint: of the image they see what is kept, and the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ...guidance.core import to_rows
from ...types import Cond
from ..family import Family
from .stable_diffusion import StableDiffusion, StableDiffusionXl


class Inpainting(StableDiffusion):
    """A UNet of 2 d + 1 channels: x, the mask (1 is drawn), and the latents of the image with gray where it is drawn.

    Mask and latents are ``cond.extra["inpaint"]``; without them everything is drawn.
    """

    plain: ClassVar[type[StableDiffusion]] = StableDiffusion

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[Family]:
        return cls.plain if config.get("in_channels", 4) == 4 else cls  # a plain one inpaints by its pipeline alone

    @property
    def input_channels(self) -> int:
        return 2 * self.autoencoder.latent_channels + 1

    @torch.no_grad()
    def inpainting(
        self, image: Float[Tensor, "1 c h w"], mask: Float[Tensor, "1 1 h w"]
    ) -> Mapping[str, Float[Tensor, "1 e i j"]]:
        """What the network takes of an image in [-1, 1] and its mask: a part of ``cond.extra``."""
        mask = (mask >= 0.5).to(image)
        latents = self.autoencoder.encode(image * (1 - mask))
        return {"inpaint": torch.cat([functional.interpolate(mask, latents.shape[-2:]), latents], 1)}

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().predict(torch.cat([x, cond.extra["inpaint"].to(x.dtype)], 1), t, cond)

    def _complete(self, x: Tensor, cond: Cond | None) -> Cond:
        cond = super()._complete(x, cond)
        if "inpaint" in cond.extra:
            return cond
        blank = x.new_zeros(1, self.autoencoder.image_channels, *self._pixels(x.shape))
        known = to_rows(self.inpainting(blank, 1 + blank[:, :1]), len(x))
        return replace(cond, extra={**cond.extra, **known})

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        raise InputError("A network that was trained to inpaint cannot be compared yet: its pipeline draws at random.")


class StableDiffusionInpaint(Inpainting):
    """Of Stable Diffusion 1 and 2."""

    name = "stable-diffusion-inpaint"


class StableDiffusionXlInpaint(Inpainting, StableDiffusionXl):
    """Of Stable Diffusion XL."""

    name, plain = "stable-diffusion-xl-inpaint", StableDiffusionXl
