"""The parts of a model as protocols: whatever has these methods can be one, from this package or another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..types import Cond, Denoise

Size = tuple[int, int]  # height and width of an image in pixels
Schedule = Callable[[int, Size | None], Tensor]  # (steps, size or None for the model's own) to the steps + 1 sigmas


@runtime_checkable
class Autoencoder(Protocol):
    """Between images and latents.

    Attributes:
        factor: Pixels per side of one latent.
        image_channels: Of an image.
        latent_channels: Of its latents.

    One of films has a ``temporal_factor`` too: 1 + n * temporal_factor frames are 1 + n of latents.
    """

    @property
    def factor(self) -> int: ...
    @property
    def image_channels(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...

    def encode(self, x: Float[Tensor, "b *c"], /) -> Float[Tensor, "b *d"]:
        """The latents, of about unit variance, of images in [-1, 1]."""
        ...

    def decode(self, z: Float[Tensor, "b *d"], /) -> Float[Tensor, "b *c"]:
        """The images of latents."""
        ...


@runtime_checkable
class Conditioner(Protocol):
    """From prompts to conditions.

    Attributes:
        max_tokens: Most tokens that one text may have, marks of start and end included; None: any number.
    """

    @property
    def max_tokens(self) -> int | None: ...

    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """One row for each prompt. ``size`` is that of the images, for families that are conditioned on it."""
        ...

    def null(self, n: int, size: Size | None = None) -> Cond:
        """``n`` rows of what this model was trained to take for "no prompt"."""
        ...

    def token_spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Which characters of the text each row of ``emb`` covers; empty for marks of start and end."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """The words of a prompt that the training captions did not have, as far as that is known."""
        ...


__all__ = ["Autoencoder", "Conditioner", "Denoise", "Schedule", "Size"]
