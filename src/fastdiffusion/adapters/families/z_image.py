"""Z-Image (base and Turbo)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...models import Size
from ...types import Cond
from ..family import Encoder, Family
from ..texts import Text, chat, no_padding, rows_of


class ZImage(Family):
    """The layer before the last of Qwen3, real tokens alone. Its own scale s, 0 of which is off, is ours less 1."""

    name, patch, masks, time = "z-image", 2, True, "1 - t"
    joint, multiple, refiners = "image first", 32, ("context_refiner",)
    network, pad = "ZImageTransformer2DModel", "longest"
    encoders = (Encoder(("Qwen3ForCausalLM", "Qwen3Model"), ("Qwen2Tokenizer", "Qwen2TokenizerFast"), 512),)
    scale = 6.0

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        template = chat(tokenizer, add_generation_prompt=True, enable_thinking=True)
        return Text(encoder, tokenizer, limit, self.pad, template)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states = self.main(prompts, masked=True, output_hidden_states=True).hidden_states[-2]
        return rows_of(states, self.main.tokens(prompts)[1])

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = self.net(list(x[:, :, None]), t, no_padding(cond), return_dict=False)[0]
        return -torch.stack(list(out))[:, :, 0]

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale - 1}
