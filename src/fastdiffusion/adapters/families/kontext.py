"""FLUX.1 Kontext: FLUX.1 that sees a reference image, as more tokens of the same attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...types import Cond
from ..attention import Layout
from .flux import Flux, pack, places, unpack


class FluxKontext(Flux):
    """FLUX.1's way; the reference's latents are ``cond.extra["reference"]``. Without them it draws as FLUX.1 does.

    The reference's tokens come after the image's, at the same places, with 1 for their first coordinate.
    """

    name = "flux-kontext"

    @torch.no_grad()
    def reference(self, image: Float[Tensor, "1 c h w"]) -> Mapping[str, Float[Tensor, "1 d i j"]]:
        """What the network takes of an image in [-1, 1], of any size that divides by 16: a part of ``cond.extra``."""
        return {"reference": self.autoencoder.encode(image)}

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if (reference := cond.extra.get("reference")) is None:
            return super().predict(x, t, cond)
        assert cond.emb is not None
        (h, w), packed, other = x.shape[-2:], pack(x), pack(reference.to(x))
        beside = places(reference.shape[-2] // 2, reference.shape[-1] // 2, t)
        beside[:, 0] = 1
        out = self.net(
            hidden_states=torch.cat([packed, other], 1),
            encoder_hidden_states=cond.emb,
            timestep=t,
            img_ids=torch.cat([places(h // 2, w // 2, t), beside]),
            txt_ids=t.new_zeros(cond.emb.shape[1], 3),
            **self.inputs(packed, cond),
            return_dict=False,
        )[0]
        return unpack(out[:, : packed.shape[1]], h, w)

    def layout(self, x: Tensor, cond: Cond) -> Layout | None:
        layout, reference = super().layout(x, cond), cond.extra.get("reference")
        if layout is None or reference is None:
            return layout
        return layout._replace(total=layout.total + math.prod(reference.shape[-2:]) // self.patch**2)

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        raise InputError("FLUX.1 Kontext cannot be compared by doctor yet: its pipeline chooses sizes of its own.")
