"""Qwen-Image: 2x2 patches of latents, and the states of a language model that was asked to describe an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...guidance import Guided, Scale
from ...models import Size
from ...types import Cond, Denoise
from ..autoencoders import ChannelVae
from ..family import Encoder, Family
from ..guidance import norm_rescaled
from ..texts import Text, rows_of
from .flux import pack, unpack

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
DROPPED = 34  # tokens of the template before the text


class QwenImage(Family):
    """Classifier-free guidance keeps the length of the conditional velocity, token by token; "nothing" is " "."""

    name, vae, patch, masks, joint = "qwen-image", ChannelVae, 2, True, "text first"
    network, pad = "QwenImageTransformer2DModel", "longest"
    encoders = (
        Encoder("Qwen2_5_VLForConditionalGeneration", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), 1024 + DROPPED),
    )
    scale = 4.0

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        return Text(encoder, tokenizer, limit, self.pad, TEMPLATE.format, DROPPED)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states = self.main(prompts, masked=True, output_hidden_states=True).hidden_states[-1]
        return rows_of(states, self.main.tokens(prompts)[1], DROPPED)

    def nothing(self, size: Size) -> Cond:
        return self.condition([" "], size)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        h, w = x.shape[-2:]
        out = self.net(
            hidden_states=pack(x),
            encoder_hidden_states=cond.emb,
            encoder_hidden_states_mask=cond.mask,
            timestep=t,
            img_shapes=[[(1, h // 2, w // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpack(out, h, w)

    def guide(self, denoise: Denoise, scale: Scale, uncond: Cond | None = None) -> Guided:
        return norm_rescaled(denoise, scale, uncond, self.to_pipeline, self.from_pipeline)

    def to_pipeline(self, z: Tensor) -> Tensor:
        return pack(z)

    def from_pipeline(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        return unpack(z, *shape[-2:])

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        return {"true_cfg_scale": scale, "negative_prompt": " "}
