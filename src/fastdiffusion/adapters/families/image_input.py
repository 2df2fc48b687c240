"""Networks that take an image as further channels: InstructPix2Pix changes it, the x4 upscaler enlarges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...guidance import Guided, Scale, guidance, replace_text, scale_at
from ...guidance.core import to_rows
from ...io.guarded import BUDGET
from ...models import Size
from ...noise import Stream, generator
from ...types import Cond, Denoise, Run
from ..family import Checkpoint
from ..levels import TrainedLevels
from ..sources.folders import read_json
from .stable_diffusion import StableDiffusion


class ImageInput(StableDiffusion):
    """A UNet that takes ``cond.extra["image"]`` as channels behind those of x."""

    image = "input"
    known: Mapping[str, Tensor] | None = None  # parts of ``cond.extra``, of one row

    def show(self, image: Float[Tensor, "1 c h w"]) -> None:
        """Take an image in [-1, 1] as the condition of all that follows; on a copy of a model's family."""
        raise NotImplementedError

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        return self._with_image(super().condition(prompts, size))

    def _with_image(self, cond: Cond) -> Cond:
        if self.known is None:
            raise InputError("This model works from an image, and there is none. Give it: image='in.png'.")
        rows = {name: to_rows(value, len(cond)) for name, value in self.known.items()}
        return replace(cond, extra={**cond.extra, **rows})

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        image = cond.extra["image"]
        if image.shape[-2:] != x.shape[-2:]:
            raise InputError(f"The image is for latents of {tuple(image.shape[-2:])}, got {tuple(x.shape[-2:])}.")
        return super().predict(torch.cat([x, image.to(x.dtype)], 1), t, cond)

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        raise InputError("A network that takes an image cannot be compared by doctor yet: its pipeline needs one.")


class InstructPix2Pix(ImageInput):
    """Changes an image as a prompt says (Brooks et al. 2023, arXiv:2211.09800).

    Its condition is the VAE's mode, neither shifted nor scaled; "no image" is zeros.
    """

    name = "instruct-pix2pix"
    image_scale = 1.5

    @property
    def input_channels(self) -> int:
        return 2 * self.autoencoder.latent_channels

    @torch.no_grad()
    def show(self, image: Float[Tensor, "1 c h w"], image_scale: float = 1.5) -> None:
        if not abs(image_scale) <= BUDGET.number:
            raise InputError(f"image_scale must be a finite number, got {image_scale!r}. 1.5 is usual.")
        self.known = {"image": self.autoencoder.denormalize(self.autoencoder.encode(image))}
        self.image_scale = image_scale

    def guide(self, denoise: Denoise, scale: Scale, uncond: Cond | None = None) -> Guided:
        return two_scales(denoise, scale, uncond, self.image_scale)


@guidance
def two_scales(
    denoise: Denoise, scale: Scale, uncond: Cond | None = None, image_scale: float = 1.5, *, run: Run
) -> Denoise:
    """Guidance by a text and by an image (Brooks et al. 2023, arXiv:2211.09800, eq. 3); one evaluation of three rows.

    nothing + image_scale * (image - nothing) + scale * (image and text - image). A scale of 1 is off, for both.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run)
        if now == 1 or cond is None:
            return denoise(x, sigma, cond)
        image = replace_text(cond, uncond, len(x))
        nothing = replace(image, extra={**image.extra, "image": torch.zeros_like(image.extra["image"])})
        rows = (3, *[1] * (x.ndim - 1))
        full, with_image, without = denoise(
            x.repeat(rows), sigma.repeat(3), Cond.cat([cond.map(lambda v: to_rows(v, len(x))), image, nothing])
        ).chunk(3)
        return without + image_scale * (with_image - without) + now * (full - with_image)

    return guided


class Upscaler(ImageInput):
    """Enlarges an image fourfold: the latents are of its size, and it is the condition itself, slightly noisy.

    How noisy is a class of the network (Ho et al. 2022, arXiv:2106.15282, sec. 4.1, "noise conditioning").
    """

    name, scale, enlarges = "stable-diffusion-x4-upscaler", 9.0, 4

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint)
        self.image_levels = TrainedLevels(read_json(checkpoint.path / "low_res_scheduler" / "scheduler_config.json"))

    @property
    def input_channels(self) -> int:
        return self.autoencoder.latent_channels + self.autoencoder.image_channels

    def show(self, image: Float[Tensor, "1 c h w"], noise_level: int = 20, seed: int = 0) -> None:
        limit = int(self.net.config.num_class_embeds or 1000)
        if not (type(noise_level) is int and 0 <= noise_level < limit):
            raise InputError(f"noise_level must be a whole number from 0 to {limit - 1}, got {noise_level!r}. Try 20.")
        sigma = float(self.image_levels.sigma(torch.tensor([float(noise_level)])))
        noisy = (image + sigma * self.noise_of(image, seed)) / (1 + sigma**2) ** 0.5
        self.known = {"image": noisy, "noise_level": torch.tensor([noise_level], device=image.device)}

    def noise_of(self, image: Tensor, seed: int) -> Tensor:
        """The noise that is added to an image."""
        return torch.randn(image.shape, generator=generator(seed, Stream.CONDITION_IMAGE_NOISE)).to(image)

    def inputs(self, cond: Cond) -> dict[str, Any]:
        return {"class_labels": cond.extra["noise_level"]}
