"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...models import Size
from ...types import Cond
from ..family import CLIP_WITH_PROJECTION, T5, Family
from ..texts import Spans

LIMIT = 256  # tokens of T5


class StableDiffusion3(Family):
    """Rectified flow by a transformer that takes the rows of two CLIP encoders side by side, then those of T5.

    A text too long for CLIP's 77 tokens is still read whole by T5. A checkpoint may lack T5, whose rows are then zeros,
    as in diffusers' pipeline.
    """

    name, scale, patch, joint, clip_layer = "stable-diffusion-3", 7.0, 2, "image first", 2
    network = "SD3Transformer2DModel"
    encoders = (CLIP_WITH_PROJECTION, CLIP_WITH_PROJECTION, T5._replace(limit=LIMIT))
    optional = ("text_encoder_3", "tokenizer_3")
    time, spacing = "1000 t", "trained"

    @property
    def without_t5(self) -> bool:
        """Whether the checkpoint lacks T5."""
        return len(self.texts) < 3

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        outputs = [clip(prompts, output_hidden_states=True) for clip in self.texts[:2]]
        pair, width = (
            torch.cat([output.hidden_states[-self.clip_layer - self.clip_skip] for output in outputs], -1),
            self.net.config.joint_attention_dim,
        )
        states = pair.new_zeros(len(pair), LIMIT, width) if self.without_t5 else self.texts[2](prompts)[0]
        emb = torch.cat([functional.pad(pair, (0, width - pair.shape[-1])).to(states), states], 1)
        return Cond(emb=emb.float(), pooled=torch.cat([output.text_embeds for output in outputs], -1).float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.emb is not None
        if not (self.without_t5 and self.net.training):
            return self.net(x, cond.emb, cond.pooled, t, return_dict=False)[0]
        zero = (cond.emb == 0).all(-1).all(0)  # three quarters of all tokens, and of the time of a small network
        emb = torch.cat([cond.emb[:, ~zero], cond.emb[:, zero][:, :1]], 1)
        with _LastKeyCounts(int(zero.sum()), emb.shape[1] + x.shape[-2] * x.shape[-1] // self.patch**2):
            return self.net(x, emb, cond.pooled, t, return_dict=False)[0]

    def own_spans(self, text: str) -> Spans:
        limit = self.texts[0].limit
        clip = self.texts[0].spans(text)[:limit]
        clip = [*clip, *[(0, 0)] * (limit - len(clip))]
        return [*clip, *[(0, 0)] * LIMIT] if self.without_t5 else [*clip, *self.main.spans(text)]


class _LastKeyCounts(TorchFunctionMode):
    """Within it the last one of ``keys`` keys counts as ``number`` that are like it.

    Rows of zeros at places without a position stay alike through all layers, so one stands for all of them: the logits
    of its key rise by log(number). Attention of other numbers of keys is among the image's tokens alone.
    """

    def __init__(self, number: int, keys: int):
        super().__init__()
        self.bias, self.keys = math.log(number), keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention and args[1].shape[-2] == self.keys:
            options["attn_mask"] = bias = args[1].new_zeros(1, 1, 1, self.keys)
            bias[..., -1] = self.bias
        return func(*args, **options)
