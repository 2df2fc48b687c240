"""What a network of this package brings to a model: its modules, its conditioner, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses, nets, prompts
from ..denoisers import Denoiser
from ..errors import InputError, counted
from ..guidance import self_conditioned
from ..guidance.core import Guided
from ..nets.text import normalized, traced
from ..prompts import reading
from ..types import Cond, Denoise
from .protocols import Size


def own_denoiser(denoise: Denoise) -> Denoiser | None:
    """The ``Denoiser`` behind a model's ``denoise``; None if that is another callable."""
    inner = denoise.denoise if isinstance(denoise, Guided) and not (denoise.args or denoise.kwargs) else denoise
    return inner if isinstance(inner, Denoiser) else None


def parts(denoiser: Denoiser, autoencoder: Any, conditioner: Any) -> dict[str, Any]:
    """The fields of a model that follow from its ``Denoiser``; another conditioner than its own is kept."""
    net = denoiser.net
    result: dict[str, Any] = {
        "denoise": self_conditioned(denoiser) if denoiser.self_condition else denoiser,
        "sigma_data": denoiser.sigma_data,
        "modules": {"net": net} | ({"autoencoder": autoencoder} if isinstance(autoencoder, nn.Module) else {}),
    }
    if conditioner is None or isinstance(conditioner, TextConditioner):
        result["conditioner"] = TextConditioner(net) if isinstance(net, nets.TextConditioned) else None
    return result


def loss(denoiser: Denoiser) -> Callable[..., Tensor]:
    """The denoising loss with EDM's weight, which is 1 at every noise level at the start of training."""
    return partial(losses.denoising_loss, denoiser, weight=partial(losses.edm, sigma_data=denoiser.sigma_data))


def check(denoiser: Denoiser, shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """InputError unless the net was built for this shape and these classes."""
    config = getattr(denoiser.net, "config", {})
    if "out_channels" in config and len(shape) != 3:
        raise InputError(f"shape must be (channels, height, width), got {shape}. Example: (3, 64, 64).")
    made = (config.get("out_channels", shape[0]), config.get("classes", len(classes)))
    if made != (shape[0], len(classes)):
        wanted = f"{counted(shape[0], 'channel')} and {counted(len(classes), 'class')}"
        raise InputError(
            f"The net was built for {counted(made[0], 'channel')} and {counted(made[1], 'class')}, "
            f"the model has {wanted}."
        )


class TextConditioner:
    """Prompts by the text encoder that was trained with a net."""

    def __init__(self, net: nets.TextConditioned):
        self.net = net

    @property
    def max_tokens(self) -> int:
        """Most tokens of a caption."""
        return self.net.text_encoder.length

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """Token states, mask and pooled vector of each prompt as it is read (:meth:`reading`); "" is "nothing"."""
        return self.condition(prompts, size)

    def condition(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """The same, with gradients of the text encoder."""
        tokens = self.net.text_encoder.tokens([self.reading(text).text for text in prompts])
        return self.net.encode_prompt(Cond(tokens=tokens.to(next(self.net.parameters()).device)))

    def null(self, n: int, size: Size | None = None) -> Cond:
        """Rows without a token: what captions that were left out in training were."""
        return self.encode([""] * n)

    def reading(self, text: str) -> reading.Reading:
        """The text in words that the encoder knows, and notes on what was changed."""
        encoder = self.net.text_encoder
        if not encoder.config["known"] or not text.strip():
            return reading.Reading(text, tuple((i, i + 1) for i in range(len(text))))
        student = encoder.student_encoder
        added = self._added_words
        if added:
            return self._with_added(text, added)
        return reading.interpret(text, encoder.lists, None if student is None else student.lists, self._draws_emoji)

    @property
    def _added_words(self) -> dict[str, str]:
        """Added tokens, with their signs, that are no names which texts are read for anyway."""
        signs = self.net.text_encoder.signs
        names = reading.known_names().names if signs and self._draws_emoji else {}
        return {name: sign for name, sign in signs.items() if reading.key(name) not in names}

    def _with_added(self, text: str, added: dict[str, str]) -> reading.Reading:
        """A text with added tokens, which stay what they are; the words around them are read as ever."""
        encoder = self.net.text_encoder
        student = None if encoder.student_encoder is None else encoder.student_encoder.lists
        spelled, starts = traced(text, added, tolerant=True)
        inner = reading.interpret(spelled, encoder.lists, student, self._draws_emoji)
        origins = tuple((starts[a][0], starts[b - 1][1]) if a < b else (0, 0) for a, b in inner.origins)
        return inner._replace(origins=origins)

    @cached_property
    def _draws_emoji(self) -> bool:
        """Whether the training captions named emoji: only then the table of their names is of use."""
        names = list(reading.known_names().names.values())
        return sum(map(self.net.text_encoder.lists, names)) > 0.9 * len(names)

    def token_spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Which characters of the text each token covers."""
        interpreted = self.reading(text)
        spans = prompts.aligned(self.net.text_encoder.spans, normalized)(interpreted.text)
        return [(interpreted.origins[a][0], interpreted.origins[b - 1][1]) if a < b else (a, b) for a, b in spans]

    def notes(self, text: str) -> tuple[str, ...]:
        """What the person should know about how a text is read: a sentence each."""
        return self.reading(text).notes

    def unknown_words(self, text: str) -> list[str]:
        """The words of a prompt that no caption of the training data had."""
        if self.net.text_encoder.config["known"]:
            return list(self.reading(text).unknown)
        return prompts.unknown_words(text, self.net.text_encoder.encoder_of(text).knows)
