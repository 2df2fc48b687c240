"""Lumina Image 2.0."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

from torch import Tensor

from ...errors import warn
from ...guidance import Guided, Scale
from ...models import Size
from ...types import Cond, Denoise
from ..family import Family
from ..guidance import norm_rescaled
from ..texts import Text, compact, rows_of
from .sana import GEMMA

SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts."
)


class Lumina2(Family):
    """The layer before the last of Gemma, real tokens alone, of the prompt behind a system prompt.

    A negative prompt, and the empty one that means "nothing", come without it. Guidance keeps the length of each row
    of the conditional velocity.
    """

    name, scale, masks, patch, time = "lumina-2", 4.0, True, 2, "1 - t"
    network, encoders = "Lumina2Transformer2DModel", (GEMMA._replace(limit=256),)

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        tokenizer.padding_side = "right"
        return Text(encoder, tokenizer, limit, "longest", f"{SYSTEM} <Prompt Start> {{}}".format)

    @cached_property
    def negative(self) -> Lumina2:
        other = copy(self)
        other.texts = [Text(self.main.encoder, self.main.tokenizer, self.main.limit, "longest")]
        return other

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states = self.main(prompts, masked=True, output_hidden_states=True).hidden_states[-2]
        return rows_of(states, self.main.tokens(prompts)[1])

    def nothing(self, size: Size) -> Cond:
        return self.negative.condition([""], size)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        cond = compact(cond)  # the network counts tokens from the first on
        assert cond.emb is not None
        emb, most = cond.emb, int(self.net.config.axes_lens[0]) - 1
        mask = emb.new_ones(emb.shape[:2]) if cond.mask is None else cond.mask
        if emb.shape[1] > most:  # a prompt in several pieces
            warn(f"Only the first {most} of {emb.shape[1]} tokens have a place in this network. Shorten the prompt.")
            emb, mask = emb[:, :most], mask[:, :most]
        return -self.net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=emb,
            encoder_attention_mask=mask.long(),
            return_dict=False,
        )[0]

    def schedule(self, steps: int, size: Size | None = None) -> Tensor:
        return self.levels.schedule(steps, self.autoencoder.latent_channels)  # diffusers takes channels for tokens

    def guide(self, denoise: Denoise, scale: Scale, uncond: Cond | None = None) -> Guided:
        return norm_rescaled(denoise, scale, uncond)
