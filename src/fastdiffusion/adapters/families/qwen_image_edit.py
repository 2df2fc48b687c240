"""Qwen-Image-Edit: Qwen-Image that sees a reference image, and whose language model reads the prompt beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ...io.images import to_pil, to_tensor
from ...models import Size
from ...types import Cond
from ..image_encoder import MEAN, STD
from ..texts import Text, rows_of
from .flux import pack, unpack
from .qwen_image import QwenImage
from .referring import Referring

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 64  # tokens of the template before the image and the text
IMAGE = "<|vision_start|>{}<|vision_end|>"
LOOKED_AT = 384 * 384  # pixels of what the language model looks at, from version 2509 on


class QwenImageEdit(Referring, QwenImage):
    """The reference is read twice: as latents after the image's, and by the language model before the prompt."""

    name, introduction = "qwen-image-edit", IMAGE
    encoders = (QwenImage.encoders[0]._replace(limit=1024 + DROPPED),)
    view: Float[Tensor, "n d"] | None = None  # patches of the reference as the language model takes them
    grid = (0, 0)  # of the patches

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        return Text(encoder, tokenizer, limit, self.pad, TEMPLATE.format, DROPPED)

    @torch.no_grad()
    def with_reference(self, image: Float[Tensor, "1 c h w"]) -> Self:
        other, vision = super().with_reference(image), self.main.encoder.config.vision_config
        other.view, other.grid = patches(self.looked_at(to_pil(image[0])), vision)
        count, text = math.prod(other.grid) // vision.spatial_merge_size**2, self.main
        before = self.introduction.format("<|image_pad|>" * count)

        def template(prompt: str) -> str:
            return TEMPLATE.format(before + prompt)

        other.texts = [Text(text.encoder, text.tokenizer, text.limit + count, self.pad, template, DROPPED)]
        return other

    def looked_at(self, image: Image.Image) -> Image.Image:
        """What the language model sees of the reference."""
        return image

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        if self.view is None:
            return rows_of(*self._states(prompts), DROPPED)
        encoder = self.main.encoder
        vision = {
            "pixel_values": self.view.to(encoder.device, encoder.dtype).repeat(len(prompts), 1),
            "image_grid_thw": torch.tensor([[1, *self.grid]] * len(prompts), device=encoder.device),
        }
        return rows_of(*self._states(prompts, **vision), DROPPED)

    def _states(self, prompts: Sequence[str], **vision: Tensor) -> tuple[Tensor, Tensor]:
        states = self.main(prompts, masked=True, output_hidden_states=True, **vision).hidden_states[-1]
        return states, self.main.tokens(prompts)[1]

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.reference is None:
            return super().predict(x, t, cond)
        (h, w), (i, j), packed = x.shape[-2:], self.reference.shape[-2:], pack(x)
        out = self.net(
            hidden_states=self.joined(packed),
            encoder_hidden_states=cond.emb,
            encoder_hidden_states_mask=cond.mask,
            timestep=t,
            img_shapes=[[(1, h // 2, w // 2), (1, i // 2, j // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpack(out[:, : packed.shape[1]], h, w)

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        raise InputError("Qwen-Image-Edit cannot be compared by doctor yet: its pipeline needs an image.")


class QwenImageEditPlus(QwenImageEdit):
    """Versions 2509 and later: the language model looks at a smaller copy, which has a number."""

    name, introduction = "qwen-image-edit-plus", "Picture 1: " + IMAGE

    def looked_at(self, image: Image.Image) -> Image.Image:
        across = math.sqrt(LOOKED_AT * image.width / image.height)
        size = (round(across / 32) * 32, round(across * image.height / image.width / 32) * 32)
        return image.resize(size, Image.Resampling.LANCZOS)


def patches(image: Image.Image, vision: Any) -> tuple[Float[Tensor, "n d"], tuple[int, int]]:
    """An image for Qwen2.5-VL's image encoder, as one moment of a film, and how many patches it has down and across.

    Its sides are rounded to what divides into squares of patches; those of a square come one after the other.
    """
    side, square = vision.patch_size, vision.spatial_merge_size
    down, across = (max(round(n / side / square), 1) for n in (image.height, image.width))
    size = (across * side * square, down * side * square)
    x = (to_tensor(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) + 1) / 2
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    x = ((x - mean) / std).reshape(3, down, square, side, across, square, side).permute(1, 4, 2, 5, 0, 3, 6)
    x = x.unsqueeze(5).expand(*x.shape[:5], vision.temporal_patch_size, side, side)
    return x.reshape(down * across * square**2, -1), (down * square, across * square)
