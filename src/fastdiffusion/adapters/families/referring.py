"""Families whose networks take a reference image, as more tokens of the attention that the image is in."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...types import Cond
from ..attention import Layout
from ..family import Family
from .flux import pack


class Referring(Family):
    """The reference's tokens come after the image's. Without one it draws as the family does that it is made of."""

    reference: Float[Tensor, "1 d i j"] | None = None  # its latents, on a copy of a model's family

    @torch.no_grad()
    def with_reference(self, image: Float[Tensor, "1 c h w"]) -> Self:
        """A copy that is given an image in [-1, 1], of any size that divides by 16."""
        other = copy.copy(self)
        other.__dict__.pop("negative", None)  # which reads negative prompts without the image
        other.reference = self.autoencoder.encode(image)
        return other

    def layout(self, x: Tensor, cond: Cond) -> Layout | None:
        layout = super().layout(x, cond)
        if layout is None or self.reference is None:
            return layout
        return layout._replace(total=layout.total + math.prod(self.reference.shape[-2:]) // self.patch**2)

    def joined(self, packed: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """The image's tokens, and the reference's after them."""
        assert self.reference is not None
        return torch.cat([packed, pack(self.reference.to(packed)).expand(len(packed), -1, -1)], 1)
