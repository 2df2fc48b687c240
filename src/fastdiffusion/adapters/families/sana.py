"""SANA: latents of 32 pixels, linear self-attention, and a language model with an instruction to enhance the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from inspect import signature
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...models import Size
from ...types import Cond
from ..autoencoders import Vae
from ..family import Encoder, Family
from ..texts import Text, rows_of
from .pixart import lowered

GEMMA = Encoder("Gemma2Model", ("GemmaTokenizer", "GemmaTokenizerFast"), 300)


class DcAutoencoder(Vae):
    """A deep compression autoencoder: latents are no distribution, and only scaled."""

    network = "AutoencoderDC"

    def __init__(self, net: Any):
        self.net, self.factor = net, 2 ** (len(net.config.encoder_block_out_channels) - 1)
        self.image_channels, self.latent_channels = int(net.config.in_channels), int(net.config.latent_channels)

    def encode(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d *t"]:
        return self.normalize(self.net.encode(x.to(self.net.dtype)).latent.to(x.dtype))


class Sana(Family):
    """The states of Gemma: its first token, the last of an instruction, and the prompt's.

    A negative prompt, and the empty one that means "nothing", come without the instruction.
    """

    name, scale, masks, vae = "sana", 4.5, True, DcAutoencoder
    network, encoders, side = "SanaTransformer2DModel", (GEMMA,), 32
    time = "1000 t"

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

        tokenizer.padding_side = "right"
        default = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        instruction = "\n".join(default)
        dropped = len(tokenizer.encode(instruction)) - 2
        return Text(
            encoder, tokenizer, dropped + limit, "longest", lambda text: instruction + lowered(text), drop=dropped
        )

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states, (_, real) = self.main(prompts, masked=True)[0], self.main.tokens(prompts)
        kept = [0, *range(self.main.drop + 1, states.shape[1])]
        return rows_of(states[:, kept], real[:, kept])

    @cached_property
    def negative(self) -> Sana:
        other = copy(self)
        other.texts = [Text(self.main.encoder, self.main.tokenizer, GEMMA.limit, "longest", lowered)]
        return other

    def nothing(self, size: Size) -> Cond:
        return self.negative.condition([""], size)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(
            x,
            encoder_hidden_states=cond.emb,
            encoder_attention_mask=None if cond.mask is None else cond.mask.to(x),
            timestep=t * self.net.config.timestep_scale,
            return_dict=False,
        )[0]

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale, "use_resolution_binning": False}
