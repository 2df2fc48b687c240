"""Finished images made larger by the restorer that ships."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...io.images import to_pil
from ..restoration.restore import restore


def upscaled(
    images: Float[Tensor, "n c h w"], factor: str, device: torch.device | str
) -> Float[Tensor, "n c large_h large_w"]:
    """Images twice or four times ("x2", "x4") as large in each direction, one by one, so that each is as if alone.

    Raises InputError for others than gray and color ones.
    """
    if images.shape[1] not in (1, 3):
        raise InputError(f"Images of {images.shape[1]} channels cannot be upscaled. Leave upscale out.")
    large = torch.cat([restore(to_pil(image), f"upscale {factor}", device=str(device)).images for image in images])
    return large if large.shape[1] == images.shape[1] else large.mean(1, keepdim=True)
