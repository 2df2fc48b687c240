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

from .. import guidance
from ..errors import InputError, unknown
from ..guidance import Guided, Interval
from ..models import Model
from ..nets.classifier import Classifier, middle
from ..nets.clip import matches
from ..types import Cond, Denoise
from . import classifiers, files
from . import clip as clips

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
    said: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.shape[1] * self.model.factor, self.shape[2] * self.model.factor

    def file(self, word: str) -> Path:
        """The file that a word names; in the recipe it stands by name and content."""
        path, self.said[-1] = files.named(word, self.near)
        return path


# ---- how a word is read -------------------------------------------------------------------------------------------


def _number(word: str, at: Setting) -> float:
    value = float(word)
    if value != value:
        raise ValueError
    return value


def _interval(word: str, at: Setting) -> Interval:
    low, dots, high = word.partition("..")
    if not dots:
        raise ValueError
    return (float(low or 0), float(high or "inf"))


def _label(word: str, at: Setting) -> Cond | None:
    return at.model.cond([word])


def _picture(word: str, at: Setting) -> Tensor:
    pixels = files.picture(at.file(word), (at.model.picture[0], *at.size))
    return at.model.encode(pixels[None].to(at.model.device))


def _mask(word: str, at: Setting) -> Tensor:
    painted = (files.picture(at.file(word), (1, *at.size))[None] + 1) / 2
    return functional.avg_pool2d(painted, at.model.factor)  # of latents, each covers a square of pixels


def _model(word: str, at: Setting) -> Denoise:
    weak = files.loaded(at.file(word), str(at.model.device))
    if (weak.shape, weak.classes) != (at.model.shape, at.model.classes):
        raise InputError(f"{word!r} makes other pictures or knows other classes than the model that it should guide.")
    return weak.denoise


def _classifier(word: str, at: Setting) -> Classifier:
    net = classifiers.load(at.file(word))
    if not isinstance(net, Classifier) or net.config["classes"] != len(at.model.classes):
        raise InputError(f"{word!r} is no classifier of the {len(at.model.classes)} classes of this model.")
    return net.to(at.model.device).requires_grad_(False)


def _text(word: str, at: Setting) -> str:
    return word


def _clip(word: str, at: Setting) -> Callable[..., Guided]:
    """How an encoder of ``train-clip`` guides this model: a noisy one on what the denoiser sees, others on its x0."""
    net, codec = clips.load(at.file(word)).to(at.model.device), at.model.codec
    channels = at.model.shape[0] if net.noisy else at.model.picture[0]
    if net.image.config["net"]["in_channels"] != channels:
        raise InputError(f"{word!r} reads other pictures than this model makes. Train one on the same data or latents.")

    def by(denoise: Denoise, words: str, scale: float, **options: Any) -> Guided:
        verdict = matches(net, [words])
        if net.noisy:
            return guidance.classifier(denoise, verdict, scale, **options)
        return guidance.steer(denoise, lambda x0: -verdict(x0 if codec is None else codec.decode(x0)), scale, **options)  # pyright: ignore[reportCallIssue]

    return by


# ---- the vocabulary -----------------------------------------------------------------------------------------------


def _negative(denoise: Denoise, uncond: Cond | None, scale: float, **options: Any) -> Guided:
    return guidance.cfg(denoise, scale, uncond, **options)


def _by_classifier(denoise: Denoise, net: Classifier, scale: float = 1.0, **options: Any) -> Guided:
    return guidance.classifier(denoise, net.log_prob, scale, **options)


def _by_words(denoise: Denoise, by: Callable[..., Guided], words: str, scale: float = 1.0, **options: Any) -> Guided:
    return by(denoise, words, scale, **options)


Reader = Callable[[str, Setting], Any]


class Entry(NamedTuple):
    """What a guide's name stands for.

    Attributes:
        factory: From a denoiser and the words to a denoiser; its signature says which options may be left out.
        words: What must follow the name, in order.
        options: What may follow as key=value.
        example: How it is used.
    """

    factory: Callable[..., Denoise]
    words: dict[str, Reader]
    options: dict[str, Reader]
    example: str


_SCALE: dict[str, Reader] = {"scale": _number, "interval": _interval}
GUIDES: dict[str, Entry] = {
    "cfg": Entry(guidance.cfg, {}, {**_SCALE, "rescale": _number}, "cfg scale=3 interval=0.3..5 rescale=0.7"),
    "apg": Entry(
        guidance.apg, {}, {**_SCALE, **dict.fromkeys(("parallel", "momentum", "norm"), _number)}, "apg scale=5"
    ),
    "negative": Entry(_negative, {"class": _label}, {**_SCALE, "rescale": _number}, "negative dog scale=2"),
    "autoguidance": Entry(guidance.autoguidance, {"model": _model}, _SCALE, "autoguidance weak.safetensors scale=2"),
    "classifier": Entry(_by_classifier, {"file": _classifier}, _SCALE, "classifier classifier.safetensors scale=2"),
    "middle": Entry(middle, {"file": _classifier}, _SCALE, "middle reader.safetensors scale=2"),
    "clip": Entry(_by_words, {"file": _clip, "words": _text}, _SCALE, "clip noisy.safetensors 'a red car' scale=2"),
    "inpaint": Entry(guidance.inpaint, {"picture": _picture, "mask": _mask}, {}, "inpaint photo.png mask.png"),
}


def read(guide: Guide | Sequence[Guide] | None, at: Setting) -> tuple[Callable[[Denoise], Denoise], str | None]:
    """What a guide does to a denoiser, and the words that a recipe keeps of it (None if there are none).

    Raises InputError for words that do not make a guide, DataError and CheckpointError for files that cannot be used.
    """
    given = [] if guide is None else [guide] if isinstance(guide, str) or callable(guide) else list(guide)
    steps: list[Callable[[Denoise], Denoise]] = []
    kept: list[str] = []
    for part in given:
        if callable(part):
            steps.append(part)
            kept.append(FUNCTION)
            continue
        for words in _split(part):
            at.said.clear()
            steps.append(_step(words, at))
            kept.append(shlex.join(at.said))

    def apply(denoise: Denoise) -> Denoise:
        for step in steps:
            denoise = step(denoise)
        return denoise

    return apply, " >> ".join(kept) or None


def names(guide: str | None) -> list[str]:
    """The names in what :func:`read` kept."""
    return [words[0] for words in _split(guide)] if guide else []


def _split(text: str) -> list[list[str]]:
    """The words between each two ``>>``."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=">")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        parts: list[list[str]] = [[]]
        for word in lexer:
            if word == ">>":
                parts.append([])
            else:
                parts[-1].append(word)
    except ValueError as error:
        raise InputError(f"A guide has a quote without its other half ({error}): {text!r}.") from None
    if not all(parts):
        raise InputError(f"A guide is missing in {text!r}. Example: {GUIDES['cfg'].example}")
    return parts


def _step(words: list[str], at: Setting) -> Callable[[Denoise], Denoise]:
    """One guide of its words."""
    name, *rest = words
    if name == FUNCTION:
        raise InputError("This was guided by a Python function, which no recipe can hold. Give it as guide= again.")
    if name not in GUIDES:
        raise unknown("guide", name, GUIDES)
    entry = GUIDES[name]
    needed = list(entry.words)
    at.said.append(name)
    given: list[Any] = []
    options: dict[str, Any] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if len(given) < len(needed):
            key, reader, value = needed[len(given)], entry.words[needed[len(given)]], word
            given.append(_value(name, key, reader, value, at))
        elif equals and key in entry.options:
            if key in options:
                raise InputError(f"{key} of {name} is said twice. Example: {entry.example}")
            options[key] = _value(name, key, entry.options[key], value, at, f"{key}=")
        elif equals or entry.options:
            raise unknown(f"option of {name}", key, entry.options)
        else:
            raise InputError(f"{name} takes no {word!r}. Example: {entry.example}")
    if len(given) < len(needed):
        raise InputError(f"{name} needs its {' and '.join(needed)}. Example: {entry.example}")
    parameters = inspect.signature(entry.factory).parameters
    if "scale" in entry.options and "scale" not in options and parameters["scale"].default is inspect.Parameter.empty:
        raise InputError(f"{name} needs its scale. Example: {entry.example}")
    return lambda denoise: entry.factory(denoise, *given, **options)


def _value(name: str, key: str, reader: Reader, word: str, at: Setting, before: str = "") -> Any:
    """What a word means; ``before`` stands before it in the text."""
    at.said.append(word)
    try:
        value = reader(word, at)
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{key} of {name} cannot be {word!r}. Example: {GUIDES[name].example}") from None
    at.said[-1] = before + at.said[-1]
    return value
