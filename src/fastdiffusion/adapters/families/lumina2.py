"""Lumina Image 2.0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import warn
from ...guidance import Guided, Scale
from ...models import Size
from ...types import Cond, Denoise
from ..attention import Layout
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

    name, scale, patch, time, joint = "lumina-2", 4.0, 2, "1 - t", "text first"
    masks, refiners = True, ("context_refiner",)
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
        emb, mask = self._kept(cond)
        return -self.net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=emb,
            encoder_attention_mask=mask.long(),
            return_dict=False,
        )[0]

    def _kept(self, cond: Cond) -> tuple[Tensor, Tensor]:
        """Token states and their mask, without padding before the ends, and no more than have a place."""
        cond, most = compact(cond), int(self.net.config.axes_lens[0]) - 1
        assert cond.emb is not None
        mask = torch.ones_like(cond.emb[..., 0], dtype=torch.bool) if cond.mask is None else cond.mask
        if mask.shape[1] > most:  # a prompt in several pieces
            warn(f"Only the first {most} of {mask.shape[1]} tokens have a place in this network. Shorten the prompt.")
        return cond.emb[:, :most], mask[:, :most]

    def layout(self, x: Tensor, cond: Cond) -> Layout | None:
        """Text first; where a text is shorter than the batch's longest, its padding stands behind the image."""
        if cond.emb is None:
            return None
        mask, pixels = self._kept(cond)[1], math.prod(x.shape[2:]) // self.patch**2
        layout = Layout.of(mask.shape[1], pixels, text_first=True)
        own, place = mask.sum(1, keepdim=True), torch.arange(layout.total, device=mask.device)[None]
        text = torch.where(place < own, place, place + pixels)  # of the first mask.shape[1] places
        order = torch.where(place < mask.shape[1], text, place - mask.shape[1] + own)
        return layout._replace(order=order)

    def schedule(self, steps: int, size: Size | None = None) -> Tensor:
        return self.levels.schedule(steps, self.autoencoder.latent_channels)  # diffusers takes channels for tokens

    def guide(self, denoise: Denoise, scale: Scale, uncond: Cond | None = None) -> Guided:
        return norm_rescaled(denoise, scale, uncond)
