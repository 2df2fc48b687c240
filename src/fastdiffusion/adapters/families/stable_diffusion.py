"""Stable Diffusion 1 and 2 (noise or v, also with zero-terminal SNR), and Stable Diffusion XL.

The network takes ``x / sqrt(1 + sigma^2)``, the (fractional) time of sigma, and the states of 77 tokens of a CLIP text
encoder, padding included; a text in several pieces has a multiple of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import CheckpointError, InputError
from ...models import Size
from ...types import Cond
from ..family import CLIP, CLIP_WITH_PROJECTION, Checkpoint, Family
from ..levels import TrainedLevels
from ..texts import Text


class StableDiffusion(Family):
    """A UNet that takes the states of the last layer of CLIP. "Nothing" is the embedding of ""."""

    name, scale, masks, side, clip_layer = "stable-diffusion", 7.5, True, 64, 1
    network, encoders = "UNet2DConditionModel", (CLIP,)

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint)
        if checkpoint.scheduler.get("_class_name") == "LCMScheduler":  # a latent consistency model
            self.sampler = "consistency"
        if getattr(self.net.config, "time_cond_proj_dim", None) is not None:  # one that takes the guidance scale
            self.sampler, self.guidance, self.scale = "consistency", "embedded", 8.5

    def noise_levels(self, scheduler: Mapping[str, Any]) -> TrainedLevels:
        return TrainedLevels(scheduler)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        return Cond(emb=self.main.normed_states(prompts, self.clip_skip).float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        inputs = {"encoder_hidden_states": cond.emb, "encoder_attention_mask": cond.mask, **self.inputs(cond)}
        if self.guidance == "embedded":
            inputs["timestep_cond"] = self.guidance_embedding(cond.extra["guidance"])
        latents = x[:, : self.autoencoder.latent_channels]
        for control in self.controls:
            inputs = control.inputs(self, inputs, latents, t, cond, self._pixels(x.shape))
        return self.net(x, t, **inputs, return_dict=False)[0]

    def guidance_embedding(self, scale: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Sines and cosines of 1000 (scale - 1) (Luo et al. 2023, arXiv:2310.04378, sec. 4.2)."""
        half = self.net.config.time_cond_proj_dim // 2
        frequencies = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, device=scale.device))
        angles = 1000 * (scale[:, None] - 1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1).to(self.net.dtype)

    def inputs(self, cond: Cond) -> dict[str, Any]:
        """What else the network takes."""
        return {}

    @property
    def main(self) -> Text:
        return self.texts[0]

    @property
    def input_channels(self) -> int:
        """Of what the network is given."""
        return self.autoencoder.latent_channels

    def check(self) -> None:
        path, config = self.checkpoint.path, self.net.config
        if config.in_channels != self.input_channels:
            raise InputError(
                f"The unet of {path} takes {config.in_channels} channels, and {self.input_channels} go with its class "
                "in model_index.json. Networks of text and image, and those that inpaint, are supported."
            )
        width, takes = sum(int(text.encoder.config.hidden_size) for text in self.texts), config.cross_attention_dim
        each = takes if isinstance(takes, list | tuple) else [takes] * len(config.down_block_types)  # by level
        used = [*(w for w, kind in zip(each, config.down_block_types, strict=True) if "CrossAttn" in kind), each[-1]]
        if len(set(used)) > 1:
            raise InputError(
                f"The unet of {path} takes texts of other widths at other levels, {', '.join(map(str, each))}, and a "
                "text encoder makes one. Networks of one width are supported."
            )
        if used[0] != width:
            raise CheckpointError(
                f"The unet of {path} takes texts of width {used[0]}, and its text encoders make "
                f"{width}: they belong to different models. Download the whole folder of one."
            )


class StableDiffusionXl(StableDiffusion):
    """The last states but one of two CLIP text encoders side by side, the second's pooled vector, and sizes.

    ``extra["time_ids"]`` is the original height and width, the crop's top and left, and the target height and width
    (Podell et al. 2023, arXiv:2307.01952, sec. 2.2). "Nothing" is zeros, if ``force_zeros_for_empty_prompt``.
    """

    name, scale, clip_layer = "stable-diffusion-xl", 5.0, 2
    encoders = (CLIP, CLIP_WITH_PROJECTION)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        outputs = [text(prompts, output_hidden_states=True) for text in self.texts]
        emb = torch.cat([output.hidden_states[-self.clip_layer - self.clip_skip] for output in outputs], -1).float()
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=emb.device)
        return Cond(emb=emb, pooled=outputs[1].text_embeds.float(), extra={"time_ids": ids.expand(len(emb), -1)})

    def nothing(self, size: Size) -> Cond:
        cond = self.condition([""], size)
        if not self.checkpoint.settings.get("force_zeros_for_empty_prompt", True):
            return cond
        assert cond.emb is not None and cond.pooled is not None
        return replace(cond, emb=torch.zeros_like(cond.emb), pooled=torch.zeros_like(cond.pooled))

    def inputs(self, cond: Cond) -> dict[str, Any]:
        return {"added_cond_kwargs": {"text_embeds": cond.pooled, "time_ids": cond.extra["time_ids"]}}
