"""FLUX.1 Kontext: FLUX.1 that sees a reference image, as more tokens of the same attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...types import Cond
from .flux import Flux, pack, places, unpack
from .referring import Referring


class FluxKontext(Referring, Flux):
    """FLUX.1's way; the reference's tokens have the same places as the image's, with 1 for their first coordinate."""

    name = "flux-kontext"

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.reference is None:
            return super().predict(x, t, cond)
        assert cond.emb is not None
        (h, w), (i, j), packed = x.shape[-2:], self.reference.shape[-2:], pack(x)
        beside = places(i // 2, j // 2, t)
        beside[:, 0] = 1
        out = self.net(
            hidden_states=self.joined(packed),
            encoder_hidden_states=cond.emb,
            timestep=t,
            img_ids=torch.cat([places(h // 2, w // 2, t), beside]),
            txt_ids=t.new_zeros(cond.emb.shape[1], 3),
            **self.inputs(packed, cond),
            return_dict=False,
        )[0]
        return unpack(out[:, : packed.shape[1]], h, w)

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        raise InputError("FLUX.1 Kontext cannot be compared by doctor yet: its pipeline chooses sizes of its own.")
