"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...models import Size
from ...types import Cond
from ..family import CLIP_WITH_PROJECTION, T5, Family
from ..texts import Spans


T5_LIMIT = 256


class Repeated(TorchFunctionMode):
    """The last key of every attention stands for several like it: its logit rises by the logarithm of their number."""

    def __init__(self, number: int):
        super().__init__()
        self.bias = math.log(number)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            query, key = args[0], args[1]
            mask = query.new_zeros(1, 1, query.shape[-2], key.shape[-2])
            mask[..., -1] = self.bias
            return func(*args, **{**kwargs, "attn_mask": mask})
        return func(*args, **kwargs)


class StableDiffusion3(Family):
    """Rectified flow by a transformer that takes the rows of two CLIP encoders side by side, then those of T5.

    A text too long for CLIP's 77 tokens is still read whole by T5.
    """

    name, scale, patch, joint = "stable-diffusion-3", 7.0, 2, "image first"
    network = "SD3Transformer2DModel"
    encoders = (CLIP_WITH_PROJECTION, CLIP_WITH_PROJECTION, T5._replace(limit=T5_LIMIT))
    optional = ("text_encoder_3", "tokenizer_3")
    time, spacing = "1000 t", "trained"

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        outputs = [clip(prompts, output_hidden_states=True) for clip in self.texts[:2]]
        pair = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        width = self.net.config.joint_attention_dim
        if self.without_t5:
            states = pair.new_zeros(len(pair), T5_LIMIT, width)
        else:
            states = self.texts[2](prompts)[0]
        emb = torch.cat([functional.pad(pair, (0, width - pair.shape[-1])).to(states), states], 1)
        return Cond(emb=emb.float(), pooled=torch.cat([output.text_embeds for output in outputs], -1).float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        emb, alike = cond.emb, 0
        assert emb is not None
        if self.without_t5:
            zero = (emb == 0).all(-1).all(0)
            alike = int(zero.sum())
            if alike > 1:
                emb = torch.cat([emb[:, ~zero], emb.new_zeros(len(emb), 1, emb.shape[-1])], 1)
        with Repeated(alike) if alike > 1 else nullcontext():
            return self.net(x, emb, cond.pooled, t, return_dict=False)[0]

    @property
    def without_t5(self) -> bool:
        """Whether the checkpoint lacks T5: then its rows are zeros, as in diffusers' pipeline."""
        return len(self.texts) < 3

    def token_spans(self, text: str) -> Spans:
        limit = self.texts[0].limit
        clip = self.texts[0].spans(text)[:limit]
        return [*clip, *[(0, 0)] * (limit - len(clip)), *self.main.spans(text)]
