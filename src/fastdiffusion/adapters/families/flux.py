"""FLUX.1 (dev, schnell) and Chroma: transformers on 2x2 patches of latents, each with its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...models import Size
from ...types import Cond
from ..family import CLIP, T5, Checkpoint, Family


def pack(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
    """2x2 patches as tokens, row by row."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(z: Float[Tensor, "b n d"], h: int, w: int) -> Float[Tensor, "b c h w"]:
    """The inverse of :func:`pack` for latents of ``h`` by ``w``."""
    b, _, d = z.shape
    return z.view(b, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, h, w)


def places(h: int, w: int, like: Tensor) -> Float[Tensor, "n 3"]:
    """Of each token of an image of h by w tokens: (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(like)


class Flux(Family):
    """FLUX.1: the states of T5 and the pooled vector of CLIP; dev takes the guidance scale as an input."""

    name, patch, joint = "flux", 2, "text first"
    network, encoders = "FluxTransformer2DModel", (CLIP, T5)

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint)
        if getattr(self.net.config, "guidance_embeds", False):  # dev; schnell has none
            self.guidance, self.scale = "embedded", 3.5

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        clip, t5 = self.texts
        return Cond(emb=t5(prompts)[0].float(), pooled=clip(prompts).pooler_output.float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.emb is not None
        (h, w), packed = x.shape[-2:], pack(x)
        out = self.net(
            hidden_states=packed,
            encoder_hidden_states=cond.emb,
            timestep=t,
            img_ids=places(h // 2, w // 2, t),
            txt_ids=t.new_zeros(cond.emb.shape[1], 3),
            **self.inputs(packed, cond),
            return_dict=False,
        )[0]
        return unpack(out, h, w)

    def inputs(self, x: Float[Tensor, "b n d"], cond: Cond) -> dict[str, Any]:
        """What else the network takes."""
        return {"pooled_projections": cond.pooled, "guidance": cond.extra.get("guidance")}

    def to_pipeline(self, z: Tensor) -> Tensor:
        return pack(z)

    def from_pipeline(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        return unpack(z, *shape[-2:])

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        if self.guidance == "embedded":
            return {"guidance_scale": scale}
        return {"true_cfg_scale": scale, "negative_prompt": ""}


class Chroma(Flux):
    """FLUX.1's way without CLIP, with classifier-free guidance, and with a mask of tokens.

    Only the first mark of padding counts as a token. The mask is a number that the network adds to its scores, 1 for
    tokens and 0 for padding, so that padding is seen too: 512 rows go in, as they do in diffusers.
    """

    name, scale = "chroma", 5.0
    network, encoders = "ChromaTransformer2DModel", (T5,)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states, (_, real) = self.main(prompts, masked=True)[0], self.main.tokens(prompts)
        return Cond(emb=states.float(), mask=torch.arange(real.shape[1], device=real.device) <= real.sum(1)[:, None])

    def tokens(self, cond: Cond) -> Tensor | None:
        assert cond.emb is not None
        return cond.emb.any(-1)  # not what ``Cond.cat`` added to the shorter texts

    def inputs(self, x: Tensor, cond: Cond) -> dict[str, Any]:
        if cond.mask is None:
            return {}
        return {"attention_mask": torch.cat([cond.mask.to(x), x.new_ones(x.shape[:2])], 1)}

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale}
