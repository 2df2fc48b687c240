"""Finished images made larger by the restorer that ships."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...io.images import to_pil, to_tensor
from ..restoration.restore import restore


def upscaled(images: Float[Tensor, "n c h w"], factor: str, device: torch.device | str) -> Float[Tensor, "n c k*h k*w"]:
    """Images twice or four times ("x2", "x4") as large in each direction, one by one, so that each is as if alone."""
    return torch.stack(
        [to_tensor(restore(to_pil(image), f"upscale {factor}", device=str(device)).images[0]) for image in images]
    )
