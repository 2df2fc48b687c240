"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...models import Size
from ...types import Cond
from ..family import CLIP_WITH_PROJECTION, T5, Family
from ..texts import Spans


class StableDiffusion3(Family):
    """Rectified flow by a transformer that takes the rows of two CLIP encoders side by side, then those of T5.

    A text too long for CLIP's 77 tokens is still read whole by T5.
    """

    name, scale, patch, joint = "stable-diffusion-3", 7.0, 2, "image first"
    network = "SD3Transformer2DModel"
    encoders = (CLIP_WITH_PROJECTION, CLIP_WITH_PROJECTION, T5._replace(limit=256))
    time, spacing = "1000 t", "trained"

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        *clips, t5 = self.texts
        outputs = [clip(prompts, output_hidden_states=True) for clip in clips]
        pair = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        states = t5(prompts)[0]
        emb = torch.cat([functional.pad(pair, (0, states.shape[-1] - pair.shape[-1])).to(states), states], 1)
        return Cond(emb=emb.float(), pooled=torch.cat([output.text_embeds for output in outputs], -1).float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x, cond.emb, cond.pooled, t, return_dict=False)[0]

    def token_spans(self, text: str) -> Spans:
        limit = self.texts[0].limit
        clip = self.texts[0].spans(text)[:limit]
        return [*clip, *[(0, 0)] * (limit - len(clip)), *self.main.spans(text)]
