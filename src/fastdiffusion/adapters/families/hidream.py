"""HiDream-I1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models import Size
from ...types import Cond
from ..attention import Layout
from ..family import CLIP_WITH_PROJECTION, T5, Encoder, Family
from ..texts import Text

LONG_CLIP = CLIP_WITH_PROJECTION._replace(limit=128)
LLAMA = Encoder(
    "LlamaForCausalLM", ("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast", "LlamaTokenizer"), 128
)


class HiDream(Family):
    """The pooled vectors of two CLIP encoders, the states of T5, and those of every layer of Llama.

    The latter are ``extra["llama"]``, (b, layers, tokens, width); the prompt language weighs T5's.
    """

    name, scale, patch, time, spacing = "hidream", 5.0, 2, "1000 t", "trained"
    network = "HiDreamImageTransformer2DModel"
    encoders = (LONG_CLIP, LONG_CLIP, T5._replace(limit=128), LLAMA)

    def layout(self, x: Tensor, cond: Cond) -> Layout | None:
        """The image, padded unless it is square; T5's tokens; Llama's of its last and the present layer."""
        if cond.emb is None:
            return None
        height, width = (side // self.patch for side in x.shape[-2:])
        start, tokens = height * width if height == width else self.net.max_seq, cond.emb.shape[1]
        total = start + tokens + 2 * cond.extra["llama"].shape[2]
        return Layout(slice(start, start + tokens), slice(0, height * width), total)

    def schedule(self, steps: int, size: Size | None = None) -> Tensor:
        return self.levels.schedule(steps, self.net.max_seq)  # of the largest image, whatever the size

    @property
    def main(self) -> Text:
        return self.texts[2]

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        one, two, t5, llama = self.texts
        pooled = torch.cat([clip(prompts).text_embeds for clip in (one, two)], -1)
        states = llama(prompts, masked=True, output_hidden_states=True).hidden_states[1:]
        emb = t5(prompts, masked=True)[0]
        return Cond(emb=emb.float(), pooled=pooled.float(), extra={"llama": torch.stack(states, 1).float()})

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return -self.net(
            hidden_states=x,
            timesteps=t,
            encoder_hidden_states_t5=cond.emb,
            encoder_hidden_states_llama3=cond.extra["llama"].to(x).transpose(0, 1),
            pooled_embeds=cond.pooled,
            return_dict=False,
        )[0]
