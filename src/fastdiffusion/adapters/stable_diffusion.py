"""Stable Diffusion 1 and 2 (noise or v, also with zero-terminal SNR), and Stable Diffusion XL.

The network takes ``x / sqrt(1 + sigma^2)``, the (fractional) time of sigma, and the states of 77 tokens of a CLIP text
encoder, padding included; a text in several pieces has a multiple of that. "Nothing" is the embedding of "" (for SDXL
usually zeros).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import prompts as language
from ..denoisers import expand, scaling
from ..guidance.core import to_rows
from ..models import Size, folder
from ..types import Cond
from .levels import TrainedLevels


class Vae:
    """A variational autoencoder: latents are the mode of the posterior, shifted and scaled for the network."""

    def __init__(self, net: Any):
        self.net = net
        self.factor = 2 ** (len(net.config.block_out_channels) - 1)
        self.image_channels, self.latent_channels = int(net.config.in_channels), int(net.config.latent_channels)
        self.scaling, self.shift = float(net.config.scaling_factor), float(net.config.shift_factor or 0.0)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The latents of images in [-1, 1]."""
        mode = self.net.encode(x.to(self.net.dtype)).latent_dist.mode().to(x.dtype)
        return (mode - self.shift) * self.scaling

    def decode(self, z: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        """The images, in about [-1, 1], of latents."""
        return self.net.decode((z / self.scaling + self.shift).to(self.net.dtype)).sample.to(z.dtype)


class ClipConditioner:
    """Prompts by one CLIP text encoder: the states of its last layer, 77 for each text."""

    encoders = ("text_encoder",)

    def __init__(self, modules: Mapping[str, nn.Module], tokenizers: Sequence[Any], size: Size, index: Mapping):
        self.modules: list[Any] = [modules[name] for name in self.encoders]
        self.tokenizers, self.size, self.index = list(tokenizers), size, index

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text, its marks of start and end included; ``prompts.compile`` cuts longer texts."""
        return min(int(module.config.max_position_embeddings) for module in self.modules)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """The states of every token, padding included; a text that is too long loses its end, with a warning."""
        (ids,) = self._ids(prompts)
        return Cond(emb=self.modules[0](ids)[0].float())

    def null(self, n: int, size: Size | None = None) -> Cond:
        """The embedding of "", ``n`` times."""
        return self.encode([""], size).expand(n)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Which characters of the raw text each token covers; empty for the marks of start and end."""
        return [
            (a, b) for a, b in self.tokenizers[0](text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        ]

    def unknown_words(self, text: str) -> list[str]:
        """The words that the tokenizer cannot write; byte pairs write any."""
        tokenizer = self.tokenizers[0]
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
        return language.unknown_words(
            text, lambda piece: not unknown & set(tokenizer(piece, add_special_tokens=False)["input_ids"])
        )

    def _ids(self, prompts: Sequence[str]) -> list[Tensor]:
        """The token numbers for each encoder, padded as its tokenizer does."""
        for text in prompts:
            if (length := len(self.token_spans(text))) > self.max_tokens:
                warnings.warn(
                    f"Only the first {self.max_tokens} of {length} tokens of {text[:40]!r} are encoded. "
                    "sample(prompt=...) encodes a long prompt in pieces.",
                    stacklevel=3,
                )
        options: Any = {"padding": "max_length", "max_length": self.max_tokens, "truncation": True}
        return [
            tokenizer(list(prompts), return_tensors="pt", **options)["input_ids"].to(module.device)
            for tokenizer, module in zip(self.tokenizers, self.modules, strict=True)
        ]


class XlConditioner(ClipConditioner):
    """Prompts by two CLIP text encoders: the last states but one of both side by side, and the second's pooled vector.

    The network is also conditioned on sizes: ``extra["time_ids"]`` is the original height and width, the crop's top
    and left, and the target height and width (Podell et al. 2023, arXiv:2307.01952, sec. 2.2).
    """

    encoders = ("text_encoder", "text_encoder_2")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """States, pooled vector and size ids for images of ``size`` (by default the model's own)."""
        outputs = [
            module(ids, output_hidden_states=True) for module, ids in zip(self.modules, self._ids(prompts), strict=True)
        ]
        emb = torch.cat([output.hidden_states[-2] for output in outputs], -1).float()
        height, width = size or self.size
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=emb.device)
        return Cond(emb=emb, pooled=outputs[1].text_embeds.float(), extra={"time_ids": ids.expand(len(emb), -1)})

    def null(self, n: int, size: Size | None = None) -> Cond:
        """Zeros, if the checkpoint says ``force_zeros_for_empty_prompt``; else the embedding of ""."""
        cond = super().null(n, size)
        if not self.index.get("force_zeros_for_empty_prompt", True) or cond.emb is None or cond.pooled is None:
            return cond
        return replace(cond, emb=torch.zeros_like(cond.emb), pooled=torch.zeros_like(cond.pooled))


class StableDiffusion:
    """The denoiser: a UNet of diffusers, called with scaled x and the time of sigma.

    The network keeps its own precision; x, sigma and the result are of the caller's.
    """

    name, scale = "stable-diffusion", 7.5
    pipeline = "StableDiffusionPipeline"
    conditioner_class = ClipConditioner

    def __init__(self, net: Any, levels: TrainedLevels, conditioner: ClipConditioner, factor: int, path: Path):
        self.net, self.levels, self.conditioner, self.factor, self.path = net, levels, conditioner, factor, path

    @cached_property
    def id(self) -> str:
        """sha256 of the folder's files."""
        return folder.digest(self.path)

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b c h w"]:
        c = scaling(self.levels.prediction, expand(sigma, x), 1.0)
        cond, dtype = self._complete(x, cond), self.net.dtype
        out = self.net(
            (c.c_in * x).to(dtype),
            self.levels.t(sigma),
            encoder_hidden_states=cond.emb.to(x.device, dtype),  # pyright: ignore[reportOptionalMemberAccess]
            encoder_attention_mask=cond.mask,
            **self.inputs(cond, dtype),
            return_dict=False,
        )[0]
        return c.c_skip * x + c.c_out * out.to(x.dtype)

    def inputs(self, cond: Cond, dtype: torch.dtype) -> dict[str, Any]:
        """What else the network takes."""
        return {}

    def _complete(self, x: Tensor, cond: Cond | None) -> Cond:
        """The condition with one row per image, and the model's own "nothing" in rows without any text."""
        rows, size = len(x), (x.shape[-2] * self.factor, x.shape[-1] * self.factor)
        if cond is None or cond.emb is None:
            return self.conditioner.null(rows, size).to(x.device)
        cond = cond.map(lambda v: to_rows(v, rows))
        if cond.mask is None or bool(cond.mask.all()):
            return replace(cond, mask=None)
        empty = ~cond.mask.any(1)
        if bool(empty.any()):  # ``Cond.null`` hides all tokens
            null = self.conditioner.null(rows, size).to(x.device)
            assert null.emb is not None and cond.emb is not None and cond.mask is not None
            more = cond.emb.shape[1] - null.emb.shape[1]
            filled = nn.functional.pad(null.emb, (0, 0, 0, more)).to(cond.emb)
            emb = torch.where(empty[:, None, None], filled, cond.emb)
            tokens = torch.arange(emb.shape[1], device=x.device) < null.emb.shape[1]
            mask = torch.where(empty[:, None], tokens, cond.mask)
            pooled = cond.pooled
            if pooled is not None and null.pooled is not None:
                pooled = torch.where(empty[:, None], null.pooled.to(pooled), pooled)
            cond = replace(cond, emb=emb, mask=mask, pooled=pooled)
        return cond


class StableDiffusionXl(StableDiffusion):
    """The same, conditioned on a pooled text vector and size ids too."""

    name, scale = "stable-diffusion-xl", 5.0
    pipeline = "StableDiffusionXLPipeline"
    conditioner_class = XlConditioner

    def inputs(self, cond: Cond, dtype: torch.dtype) -> dict[str, Any]:
        assert cond.pooled is not None
        return {"added_cond_kwargs": {"text_embeds": cond.pooled.to(dtype), "time_ids": cond.extra["time_ids"]}}
