"""An image encoder of CLIP, and embeddings of several images as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..io.images import flatten, to_tensor
from ..noise import slerp

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
LONGEST = 16  # times its shorter side is what is looked at of an image


class ImageEncoder:
    """A CLIP image encoder with its preprocessing.

    Args:
        net: A ``CLIPVisionModelWithProjection``.
        config: Of its preprocessing (``preprocessor_config.json``); what it does not say is CLIP's.
    """

    def __init__(self, net: Any, config: Mapping[str, Any] | None = None):
        config = config or {}
        self.net, self.side = net, int(net.config.image_size)
        self.mean, self.std = config.get("image_mean", MEAN), config.get("image_std", STD)

    def pixels(self, image: Image.Image) -> Float[Tensor, "1 3 h w"]:
        """Scaled so that its shorter side fits, its middle cut out, and normalised."""
        whole, short = flatten(image).convert("RGB"), min(image.size)
        spare = [max(n - LONGEST * short, 0) // 2 for n in whole.size]  # of a line of pixels the middle is enlarged
        whole = whole.crop((spare[0], spare[1], whole.width - spare[0], whole.height - spare[1]))
        width, height = (self.side * n // short for n in whole.size)
        whole = whole.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        x = (to_tensor(whole.crop((left, top, left + self.side, top + self.side))) + 1) / 2
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return ((x - mean) / std)[None]

    @torch.no_grad()
    def pooled(self, image: Image.Image) -> Float[Tensor, "1 d"]:
        """The embedding of an image."""
        return self.net(self._cast(self.pixels(image))).image_embeds.float()

    @torch.no_grad()
    def tokens(self, image: Image.Image | None) -> Float[Tensor, "1 n d"]:
        """The states of its patches in the last layer but one; None is what stands for no image."""
        x = torch.zeros(1, 3, self.side, self.side) if image is None else self.pixels(image)
        return self.net(self._cast(x), output_hidden_states=True).hidden_states[-2].float()

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.net.device, self.net.dtype)


def mix(embeddings: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Several embeddings as one: a weighted mean; of single vectors the way between them on the sphere.

    Of two vectors that is their spherical interpolation (Shoemake 1985; of embeddings, Ramesh et al. 2022,
    arXiv:2204.06125, sec. 3.2). Weights are at least 0, and count by their share.
    """
    if not all(0 <= w < float("inf") for w in weights) or not sum(weights) > 0:
        raise InputError(f"Weights of images must be at least 0, and one above it, got {', '.join(map(str, weights))}.")
    mixed, total = embeddings[0], weights[0]
    for one, weight in zip(embeddings[1:], weights[1:], strict=True):
        total += weight
        mixed = _between(mixed, one, weight / total if total else 0.0)
    return mixed


def _between(a: Tensor, b: Tensor, part: float) -> Tensor:
    if part in (0, 1):
        return b if part else a
    return slerp(a, b, part) if a.ndim == 2 else torch.lerp(a, b, part)


def no_text(text: str) -> None:
    """Raise InputError for a prompt where an image stands for it."""
    if text.strip():
        raise InputError(
            f"This model takes an image in place of a prompt, and got {text[:40]!r}. Leave the prompt out."
        )
