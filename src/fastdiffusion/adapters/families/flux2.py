"""FLUX.2 (dev) and FLUX.2 klein: latents whose patches the autoencoder stacks itself, and texts by a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models import Size
from ...types import Cond
from ..autoencoders import PatchVae
from ..family import Checkpoint, Encoder, Family
from ..levels import FlowLevels
from ..texts import Text, chat


def empirical_mu(tokens: int, steps: int) -> float:
    """The shift of FLUX.2's schedule: linear in tokens at 10 and at 200 steps, and linear in steps between them."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return few + (many - few) * (steps - 10) / 190


class Flux2(Family):
    """FLUX.2: three hidden layers of Mistral side by side, 512 tokens with the padding; the scale is an input."""

    name, vae, side, joint = "flux2", PatchVae, 64, "text first"
    network = "Flux2Transformer2DModel"
    encoders = (
        Encoder(
            "Mistral3ForConditionalGeneration",
            ("AutoTokenizer", "PixtralProcessor", "AutoProcessor", "PreTrainedTokenizerFast", "TokenizersBackend"),
            512,
        ),
    )
    guidance, scale = "embedded", 4.0

    def noise_levels(self, scheduler: Mapping[str, Any]) -> FlowLevels:
        return FlowLevels(scheduler, mu=empirical_mu)

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

        template = chat(tokenizer, SYSTEM_MESSAGE, add_generation_prompt=False)
        return Text(encoder, tokenizer, limit, template=template, marks=False)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        layers = self.main(prompts, masked=True, output_hidden_states=True, use_cache=False).hidden_states
        quarter = (len(layers) - 1) // 4
        return Cond(emb=torch.cat([layers[i * quarter] for i in (1, 2, 3)], -1).float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.emb is not None
        h, w = x.shape[-2:]
        zero, rows, columns, tokens = (torch.arange(n, device=x.device) for n in (1, h, w, cond.emb.shape[1]))
        out = self.net(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=cond.emb,
            timestep=t,
            guidance=cond.extra.get("guidance"),
            img_ids=torch.cartesian_prod(zero, rows, columns, zero),
            txt_ids=torch.cartesian_prod(zero, zero, zero, tokens),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).unflatten(2, (h, w))

    def from_pipeline(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        return z.transpose(1, 2).unflatten(2, tuple(shape[-2:]))

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        quarter = self.main.encoder.config.get_text_config().num_hidden_layers // 4
        return {"guidance_scale": scale, "text_encoder_out_layers": tuple(i * quarter for i in (1, 2, 3))}


class Klein(Flux2):
    """FLUX.2 klein: layers of Qwen3 instead, and classifier-free guidance unless it was distilled."""

    name, guidance = "flux2-klein", "cfg"
    encoders = (Encoder("Qwen3ForCausalLM", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), 512),)

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint)
        if checkpoint.settings.get("is_distilled"):
            self.scale = 1.0

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        return Text(
            encoder, tokenizer, limit, template=chat(tokenizer, add_generation_prompt=True, enable_thinking=False)
        )

    def from_pipeline(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        return self.autoencoder.normalize(z) if z.ndim == 4 else super().from_pipeline(z, shape)  # its pipeline unpacks
