"""Guidance in words: what ``sample(guide=...)`` and ``--guide`` take.

    cfg scale=3 interval=0.3..5 rescale=0.7
    negative dog scale=2
    cfg scale=2 >> inpaint photo.png mask.png

A guide is a name, its words in order, and options ``key=value``; ``>>`` puts the next one around what stands before it,
and so does a list. Names with spaces are quoted as in a shell. ``GUIDES`` is the whole vocabulary: a name, the function
in ``guidance`` that it stands for, and how each of its words and options is read.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from ... import guidance
from ...errors import InputError, unknown
from ...guidance import Guided, Interval
from ...guidance.features import feature_guidance
from ...io import inputs
from ...models import Model, registry
from ...nets.classifier import Classifier
from ...nets.clip import matches
from ...types import Cond, Denoise
from ..classification import train as classification
from ..text_image import clip as clips

Guide = str | Callable[[Denoise], Denoise]
FUNCTION = "function"  # how a recipe calls a guide that was a Python function


@dataclass
class Setting:
    """What words are read for.

    Attributes:
        model: Whose guidance it is.
        shape: Of what its denoiser works on in this run.
        near: Where a recipe's files are looked for; None if the words are a person's.
        said: The words of one guide as a recipe keeps them.
    """

    model: Model
    shape: tuple[int, int, int]
    near: Path | None = None
    recorded: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.shape[1] * self.model.factor, self.shape[2] * self.model.factor

    def file(self, text: str) -> Path:
        """The file that a word names; in the recipe it stands by name and content."""
        path, self.recorded[-1] = registry.named(text, self.near)
        return path


# ---- how a word is read -------------------------------------------------------------------------------------------


def _number(text: str, at: Setting) -> float:
    value = float(text)
    if value != value:
        raise ValueError
    return value


def _interval(text: str, at: Setting) -> Interval:
    low, dots, high = text.partition("..")
    if not dots:
        raise ValueError
    return (float(low or 0), float(high or "inf"))


def _label(text: str, at: Setting) -> Cond | None:
    return at.model.cond([text])


def _image(text: str, at: Setting) -> Tensor:
    channels = at.model.image_shape[0]
    pixels = inputs.fit_image(at.file(text), (channels, *at.size))
    return at.model.encode(pixels[None].to(at.model.device))


def _mask(text: str, at: Setting) -> Tensor:
    painted = (inputs.fit_image(at.file(text), (1, *at.size))[None] + 1) / 2
    return functional.avg_pool2d(painted, at.model.factor)  # of latents, each covers a square of pixels


def _model(text: str, at: Setting) -> Denoise:
    weak = registry.loaded(at.file(text), str(at.model.device))
    if (weak.shape, weak.classes) != (at.model.shape, at.model.classes):
        raise InputError(f"{text!r} makes other pictures or knows other classes than the model that it should guide.")
    return weak.denoise


def _classifier(text: str, at: Setting) -> Classifier:
    net = classification.load(at.file(text))
    if not isinstance(net, Classifier) or net.config["classes"] != len(at.model.classes):
        raise InputError(f"{text!r} is no classifier of the {len(at.model.classes)} classes of this model.")
    return net.to(at.model.device).requires_grad_(False)


def _text(text: str, at: Setting) -> str:
    return text


def _clip(text: str, at: Setting) -> Callable[..., Guided]:
    """How an encoder of ``train-clip`` guides this model: a noisy one on what the denoiser sees, others on its x0."""
    net, autoencoder = clips.load(at.file(text)).to(at.model.device), at.model.autoencoder
    channels = at.model.shape[0] if net.noisy else at.model.image_shape[0]
    if net.image.config["net"]["in_channels"] != channels:
        raise InputError(f"{text!r} reads other pictures than this model makes. Train one on the same data or latents.")

    def by(denoise: Denoise, prompt: str, scale: float, **options: Any) -> Guided:
        similarity = matches(net, [prompt])
        if net.noisy:
            return guidance.classifier(denoise, similarity, scale, **options)
        decode = (lambda x0: x0) if autoencoder is None else autoencoder.decode
        return guidance.loss_guidance(denoise, lambda x0: -similarity(decode(x0)), scale, **options)  # pyright: ignore[reportCallIssue]

    return by


# ---- the vocabulary -----------------------------------------------------------------------------------------------


def _negative(denoise: Denoise, uncond: Cond | None, scale: float, **options: Any) -> Guided:
    return guidance.cfg(denoise, scale, uncond, **options)


def _by_classifier(denoise: Denoise, net: Classifier, scale: float = 1.0, **options: Any) -> Guided:
    return guidance.classifier(denoise, net.log_prob, scale, **options)


def _by_prompt(denoise: Denoise, by: Callable[..., Guided], prompt: str, scale: float = 1.0, **options: Any) -> Guided:
    return by(denoise, prompt, scale, **options)


Parser = Callable[[str, Setting], Any]


class Entry(NamedTuple):
    """What a guide's name stands for.

    Attributes:
        factory: From a denoiser and the words to a denoiser; its signature says which options may be left out.
        words: What must follow the name, in order.
        options: What may follow as key=value.
        example: How it is used.
    """

    factory: Callable[..., Denoise]
    arguments: dict[str, Parser]
    options: dict[str, Parser]
    example: str


_SCALE: dict[str, Parser] = {"scale": _number, "interval": _interval}
GUIDES: dict[str, Entry] = {
    "cfg": Entry(guidance.cfg, {}, {**_SCALE, "rescale": _number}, "cfg scale=3 interval=0.3..5 rescale=0.7"),
    "apg": Entry(
        guidance.apg, {}, {**_SCALE, **dict.fromkeys(("parallel", "momentum", "norm"), _number)}, "apg scale=5"
    ),
    "negative": Entry(_negative, {"class": _label}, {**_SCALE, "rescale": _number}, "negative dog scale=2"),
    "autoguidance": Entry(guidance.autoguidance, {"model": _model}, _SCALE, "autoguidance weak.safetensors scale=2"),
    "classifier": Entry(_by_classifier, {"file": _classifier}, _SCALE, "classifier classifier.safetensors scale=2"),
    "middle": Entry(feature_guidance, {"file": _classifier}, _SCALE, "middle reader.safetensors scale=2"),
    "clip": Entry(_by_prompt, {"file": _clip, "words": _text}, _SCALE, "clip noisy.safetensors 'a red car' scale=2"),
    "inpaint": Entry(guidance.inpaint, {"picture": _image, "mask": _mask}, {}, "inpaint photo.png mask.png"),
}


def parse_guidance(
    value: Guide | Sequence[Guide] | None, at: Setting
) -> tuple[Callable[[Denoise], Denoise], str | None]:
    """What a guide does to a denoiser, and the words that a recipe keeps of it (None if there are none).

    Raises InputError for words that do not make a guide, DataError and CheckpointError for files that cannot be used.
    """
    specs = [] if value is None else [value] if isinstance(value, str) or callable(value) else list(value)
    steps: list[Callable[[Denoise], Denoise]] = []
    kept: list[str] = []
    for spec in specs:
        if callable(spec):
            steps.append(spec)
            kept.append(FUNCTION)
            continue
        for tokens in _split(spec):
            at.recorded.clear()
            steps.append(_step(tokens, at))
            kept.append(shlex.join(at.recorded))

    def apply(denoise: Denoise) -> Denoise:
        for step in steps:
            denoise = step(denoise)
        return denoise

    return apply, " >> ".join(kept) or None


def names(text: str | None) -> list[str]:
    """The names in what :func:`read` kept."""
    return [tokens[0] for tokens in _split(text)] if text else []


def _split(text: str) -> list[list[str]]:
    """The words between each two ``>>``."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=">")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        specs: list[list[str]] = [[]]
        for token in lexer:
            if token == ">>":
                specs.append([])
            else:
                specs[-1].append(token)
    except ValueError as error:
        raise InputError(f"A guide has a quote without its other half ({error}): {text!r}.") from None
    if not all(specs):
        raise InputError(f"A guide is missing in {text!r}. Example: {GUIDES['cfg'].example}")
    return specs


def _step(tokens: list[str], at: Setting) -> Callable[[Denoise], Denoise]:
    """One guide of its words."""
    name, *rest = tokens
    if name == FUNCTION:
        raise InputError("This was guided by a Python function, which no recipe can hold. Give it as guide= again.")
    if name not in GUIDES:
        raise unknown("guide", name, GUIDES)
    entry = GUIDES[name]
    needed = list(entry.arguments)
    at.recorded.append(name)
    arguments: list[Any] = []
    options: dict[str, Any] = {}
    for token in rest:
        key, equals, value = token.partition("=")
        if len(arguments) < len(needed):
            key, parse, value = needed[len(arguments)], entry.arguments[needed[len(arguments)]], token
            arguments.append(_value(name, key, parse, value, at))
        elif equals and key in entry.options:
            if key in options:
                raise InputError(f"{key} of {name} is said twice. Example: {entry.example}")
            options[key] = _value(name, key, entry.options[key], value, at, f"{key}=")
        elif equals or entry.options:
            raise unknown(f"option of {name}", key, entry.options)
        else:
            raise InputError(f"{name} takes no {token!r}. Example: {entry.example}")
    if len(arguments) < len(needed):
        raise InputError(f"{name} needs its {' and '.join(needed)}. Example: {entry.example}")
    parameters = inspect.signature(entry.factory).parameters
    if "scale" in entry.options and "scale" not in options and parameters["scale"].default is inspect.Parameter.empty:
        raise InputError(f"{name} needs its scale. Example: {entry.example}")
    return lambda denoise: entry.factory(denoise, *arguments, **options)


def _value(name: str, key: str, parse: Parser, text: str, at: Setting, before: str = "") -> Any:
    """What a word means; ``before`` stands before it in the text."""
    at.recorded.append(text)
    try:
        value = parse(text, at)
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{key} of {name} cannot be {text!r}. Example: {GUIDES[name].example}") from None
    at.recorded[-1] = before + at.recorded[-1]
    return value
