"""Stable Diffusion from an image's embedding: image variations, and Stable unCLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import CheckpointError, InputError
from ...models import Size
from ...noise import Stream, generator
from ...types import Cond
from ..family import Checkpoint, Family
from ..image_encoder import ImageEncoder, no_text
from ..levels import TrainedLevels
from ..sources.folders import read_json
from ..texts import Spans
from .stable_diffusion import StableDiffusion

ENCODER = {"image_encoder": ("CLIPVisionModelWithProjection",)}


class ImagePrompted(StableDiffusion):
    """A UNet that is conditioned on an embedding of CLIP's image encoder; none is zeros."""

    image = "prompt"
    embedding: Float[Tensor, "1 d"] | None = None  # what is drawn, set on a copy of a model's family
    noise_level = 0

    def __init__(self, checkpoint: Checkpoint):
        place = checkpoint.path / "feature_extractor" / "preprocessor_config.json"
        config = read_json(place) if place.is_file() else None
        self.image_encoder = ImageEncoder(checkpoint.modules["image_encoder"], config)
        super().__init__(checkpoint)

    @classmethod
    def parts(cls) -> dict[str, tuple[str, ...]]:
        return {**super().parts(), **ENCODER}

    @property
    def width(self) -> int:
        """Of an embedding."""
        return int(self.image_encoder.net.config.projection_dim)

    def shown_embedding(self) -> Float[Tensor, "1 d"]:
        """What is drawn; raises InputError where there is none."""
        if self.embedding is None:
            raise InputError("This model draws what an image shows, and there is none. Give it: image_prompt='in.png'.")
        return self.embedding

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        raise InputError("A model that draws from an image cannot be compared by doctor yet: its pipeline needs one.")


class ImageVariation(ImagePrompted):
    """The embedding stands for the text, as one token; there are no prompts."""

    name, encoders, clip_layer = "stable-diffusion-image-variation", (), 0

    @property
    def max_tokens(self) -> int:
        return 1

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        for text in prompts:
            no_text(text)
        return Cond(emb=self.shown_embedding()[:, None].expand(len(prompts), -1, -1))

    def nothing(self, size: Size) -> Cond:
        return Cond(emb=torch.zeros(1, 1, self.width, device=self.net.device))

    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        return self._with_controls(self.condition(prompts, size or self._pixels(self.shape)), self.shown)

    @property
    def negative(self) -> Family:  # type: ignore[override]
        return self

    def token_spans(self, text: str) -> Spans:
        return [(0, 0)]

    measure = token_spans

    def unknown_words(self, text: str) -> list[str]:
        return []

    def check(self) -> None:
        _check_width(self, self.net.config.cross_attention_dim, self.width)


class StableUnClip(ImagePrompted):
    """The embedding, made noisy, and how noisy it is are a class of the network beside the text.

    Ramesh et al. 2022, arXiv:2204.06125. Both are ``cond.extra["embedding"]``.
    """

    name, scale, side = "stable-unclip", 10.0, 96

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint)
        self.image_levels = TrainedLevels(
            read_json(checkpoint.path / "image_noising_scheduler" / "scheduler_config.json")
        )

    @classmethod
    def parts(cls) -> dict[str, tuple[str, ...]]:
        return {**super().parts(), "image_normalizer": ("StableUnCLIPImageNormalizer",)}

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        cond = super().condition(prompts, size)
        return Cond(emb=cond.emb, extra={"embedding": self._noisy(self.shown_embedding()).expand(len(prompts), -1)})

    def nothing(self, size: Size) -> Cond:
        cond = super().condition([""], size)
        return Cond(emb=cond.emb, extra={"embedding": torch.zeros(1, 2 * self.width, device=self.net.device)})

    def _noisy(self, embedding: Float[Tensor, "1 d"]) -> Float[Tensor, "1 e"]:
        """The embedding at its noise level, in the units of its training images, and that level as sines."""
        normal = self.checkpoint.modules["image_normalizer"]
        mean, std = normal.mean.float(), normal.std.float()
        sigma = float(self.image_levels.sigma(torch.tensor([float(self.noise_level)])))
        noisy = ((embedding - mean) / std + sigma * self.noise_of().to(embedding)) / math.sqrt(
            1 + sigma**2
        ) * std + mean
        half = self.width // 2
        angles = self.noise_level * torch.exp(-math.log(10000) / half * torch.arange(half, device=noisy.device))
        return torch.cat([noisy, angles.cos()[None], angles.sin()[None]], 1)

    def noise_of(self) -> Float[Tensor, "1 d"]:
        """The noise that is added to an embedding."""
        return torch.randn(1, self.width, generator=generator(0, Stream.CONDITION_IMAGE_NOISE))

    def inputs(self, cond: Cond) -> dict[str, Any]:
        return {"class_labels": cond.extra["embedding"].to(self.net.dtype)}

    def check(self) -> None:
        super().check()
        _check_width(self, self.net.config.projection_class_embeddings_input_dim, 2 * self.width)


def _check_width(family: ImagePrompted, takes: Any, makes: int) -> None:
    if takes != makes:
        raise CheckpointError(
            f"The unet of {family.checkpoint.path} takes embeddings of width {takes}, and its image encoder makes "
            f"{makes}: they belong to different models. Download the whole folder of one."
        )
