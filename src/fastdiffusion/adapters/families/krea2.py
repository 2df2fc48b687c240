"""Krea 2 (base and distilled)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models import Size
from ...types import Cond
from ..autoencoders import ChannelVae
from ..family import Checkpoint, Encoder, Family
from ..levels import FlowLevels
from ..texts import Text, rows_of
from .flux import pack, places, unpack
from .qwen_image import DROPPED, TEMPLATE


class Krea2(Family):
    """Twelve hidden layers of Qwen3-VL for each token. Its own scale s, 0 of which is off, is ours less 1."""

    name, vae, patch, masks, joint = "krea2", ChannelVae, 2, True, "text first"
    network, refiners = "Krea2Transformer2DModel", ("text_fusion",)
    encoders = (Encoder("Qwen3VLModel", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), 512 + DROPPED),)
    pad = "longest"
    scale = 5.5

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint)
        self.layers = checkpoint.settings.get("text_encoder_select_layers") or range(2, 36, 3)
        if checkpoint.settings.get("is_distilled"):
            self.scale = 1.0

    def noise_levels(self, scheduler: Mapping[str, Any]) -> FlowLevels:
        if self.checkpoint.settings.get("is_distilled"):
            return FlowLevels(scheduler, mu=lambda tokens, steps: 1.15)
        return FlowLevels({"max_image_seq_len": 6400, **scheduler})

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        return Text(encoder, tokenizer, limit, self.pad, TEMPLATE.format, DROPPED)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states = self.main(prompts, masked=True, output_hidden_states=True).hidden_states
        return rows_of(torch.cat([states[i] for i in self.layers], -1), self.main.tokens(prompts)[1], DROPPED)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.emb is not None
        h, w = x.shape[-2:]
        out = self.net(
            hidden_states=pack(x),
            encoder_hidden_states=cond.emb.unflatten(-1, (len(self.layers), -1)),
            timestep=t,
            position_ids=torch.cat([t.new_zeros(cond.emb.shape[1], 3), places(h // 2, w // 2, t)]),
            encoder_attention_mask=cond.mask,
            return_dict=False,
        )[0]
        return unpack(out, h, w)

    def to_pipeline(self, z: Tensor) -> Tensor:
        return pack(z)

    def from_pipeline(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        return unpack(z, *shape[-2:])

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale - 1}
