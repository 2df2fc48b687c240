"""Guidance in words: what ``sample(guidance=...)`` and ``--guidance`` take.

    cfg scale=3 interval=0.3..5 rescale=0.7
    negative dog scale=2
    cfg scale=2 >> inpaint photo.png mask.png
    cfg:3

A guidance is a name, its arguments in order, and options ``key=value`` (``:3`` after the name is its scale); ``>>``
puts the next one around what stands before it, and so does a list. Names with spaces are quoted as in a shell. The
names are those of ``fastdiffusion.guidance.GUIDANCE`` that have an example; here is how each kind of argument is read.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...errors import InputError, unknown
from ...guidance import Interval, classifier, inpaint
from ...guidance.registry import ALIASES, GUIDANCE, Kind
from ...io.guarded import BUDGET
from ...io.images import open_image
from ...models import Model, Size, registry
from ...nets.classifier import Classifier, LatentClassifier
from ...nets.clip import Clip
from ...types import Cond, Denoise
from .. import loading
from ..classification import train as classification
from ..text_image import clip as clips
from .canvas import Canvas, canvas
from .conditioning import step_of

Guide = str | Callable[[Denoise], Denoise]
FUNCTION = "function"  # how a recipe calls guidance that was a Python function
WRITTEN = {name: entry for name, entry in GUIDANCE.items() if entry.example}


@dataclass
class Setting:
    """What the words are read for.

    Attributes:
        model: The model to guide.
        shape: Of what its denoiser works on in this run.
        near: Where a recipe's files are looked for; None if the words were typed by a person.
        recorded: The words of one guidance as a recipe keeps them.
        classes: Of the last classifier.
        image: The last image, as its file has it.
        kept: Each image that is inpainted: where its mask is 0, results hold its pixels.
        size: Height and width of results; None is as the shape says.
    """

    model: Model
    shape: tuple[int, ...]
    near: Path | None = None
    recorded: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    image: Image.Image | None = None
    kept: list[Canvas] = field(default_factory=list)
    size: Size | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the results."""
        return self.model.image_shape[0], *(self.size or (side * self.model.factor for side in self.shape[-2:]))

    def canvas(self, mask: Path | None = None) -> Canvas:
        """The last image, and a mask of it, at the size of the run."""
        assert self.image is not None
        return canvas(self.image, self.image_shape, mask, step=step_of(self.model))

    def file(self, text: str) -> Path:
        """The file that a word names; in the recipe it stands by name and content."""
        path, self.recorded[-1] = registry.named(text, self.near)
        return path


# ---- how each kind of argument is read ------------------------------------------------------------------------------


def _number(text: str, at: Setting) -> float:
    value = float(text)
    if value != value:
        raise ValueError
    return value


def _count(text: str, at: Setting) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _interval(text: str, at: Setting) -> Interval:
    start, dots, end = text.partition("..")
    low, high = float(start or 0), float(end or "inf")
    if not dots or not low < high:  # no noise level lies in it, and the guidance would do nothing
        raise ValueError
    return low, high


def _label(text: str, at: Setting) -> Cond | None:
    if not at.model.classes and at.model.conditioner is not None:
        raise InputError(
            f"negative takes a class, and this model has prompts. Try negative_prompt (--negative {text})."
        )
    return at.model.cond([text])


def _image(text: str, at: Setting) -> Tensor:
    at.image = open_image(at.file(text))
    return at.model.encode(at.canvas().image[None].to(at.model.device))


def _mask(text: str, at: Setting) -> Tensor:
    at.kept.append(at.canvas(at.file(text)))
    return at.kept[-1].latent_mask(at.model.factor)


def _model(text: str, at: Setting) -> Denoise:
    weak = loading.loaded(at.file(text), str(at.model.device))
    if (weak.shape, weak.classes) != (at.model.shape, at.model.classes):
        raise InputError(f"{text!r} makes other images or has other classes than the model that it should guide.")
    return weak.denoise


def _classifier(text: str, at: Setting) -> Classifier | LatentClassifier:
    net = classification.load(at.file(text))
    own = len(at.model.classes)
    if not isinstance(net, (Classifier, LatentClassifier)) or (own and net.config["classes"] != own):
        raise InputError(f"{text!r} is no classifier of the {own} classes of this model.")
    if not net.takes(at.shape):
        raise InputError(
            f"{text!r} reads other images than this model denoises. Train one: train-classifier DATA --latents MODEL."
        )
    at.classes = tuple(net.config.get("names", ())) or tuple(map(str, range(net.config["classes"])))
    return net.to(at.model.device).requires_grad_(False)


def _class(text: str, at: Setting) -> int:
    if text not in at.classes:
        raise unknown("class of this classifier", text, at.classes)
    return at.classes.index(text)


def _clip(text: str, at: Setting) -> Clip:
    net = clips.load(at.file(text)).to(at.model.device)
    channels = at.model.shape[0] if net.noisy else at.model.image_shape[0]
    if net.image.config["net"]["in_channels"] != channels:
        raise InputError(f"{text!r} reads other images than this model makes. Train one on the same data or latents.")
    return net


Parser = Callable[[str, Setting], Any]
PARSERS: dict[Kind, Parser] = {
    "number": _number,
    "count": _count,
    "interval": _interval,
    "label": _label,
    "image": _image,
    "mask": _mask,
    "model": _model,
    "classifier": _classifier,
    "class": _class,
    "clip": _clip,
    "text": lambda text, at: text,
}


# ---- sentences ----------------------------------------------------------------------------------------------------


def parse_guidance(
    value: Guide | Sequence[Guide] | None, at: Setting
) -> tuple[Callable[[Denoise], Denoise], str | None]:
    """What guidance does to a denoiser, and the words that a recipe keeps of it (None if there are none).

    Raises InputError for words that are no guidance, DataError and CheckpointError for files that cannot be used.
    """
    specs = [] if value is None else [value] if isinstance(value, str) or callable(value) else list(value)
    texts = [spec for spec in specs if isinstance(spec, str)]
    BUDGET.check(characters=sum(map(len, texts)), guidance=len(specs) + sum(text.count(">>") for text in texts))
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
    """The names in what :func:`parse_guidance` kept."""
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
        raise InputError(f"This guidance has a quote without its other half ({error}): {text!r}.") from None
    if not all(specs):
        raise InputError(f"A guidance is missing in {text!r}. Example: {WRITTEN['cfg'].example}")
    return specs


def _step(tokens: list[str], at: Setting) -> Callable[[Denoise], Denoise]:
    """One guidance from its words."""
    (name, colon, number), rest = tokens[0].partition(":"), tokens[1:]
    if colon:
        rest = [*rest, f"scale={number}"]
    if name == FUNCTION:
        raise InputError("This was guided by a Python function, which no recipe can hold. Pass it as guidance= again.")
    if ALIASES.get(name, name) not in WRITTEN:
        raise unknown("guidance", name, WRITTEN)
    entry = WRITTEN[ALIASES.get(name, name)]
    at.recorded.append(name)
    values: dict[str, Any] = {}
    for (key, kind), token in zip(entry.arguments.items(), rest, strict=False):
        values[key] = _value(name, kind, kind, token, at)
    if len(rest) < len(entry.arguments):
        raise InputError(f"{name} needs its {' and '.join(entry.arguments.values())}. Example: {entry.example}")
    for token in rest[len(entry.arguments) :]:
        key, equals, value = token.partition("=")
        if not equals and not entry.options:
            raise InputError(f"{name} takes no {token!r}. Example: {entry.example}")
        if not equals or key not in entry.options:
            raise unknown(f"option of {name}", key, entry.options)
        if key in values:
            raise InputError(f"{key} of {name} is given twice. Example: {entry.example}")
        values[key] = _value(name, key, entry.options[key], value, at, f"{key}=")
    parameters = inspect.signature(entry.factory).parameters
    if "scale" in entry.options and "scale" not in values and parameters["scale"].default is inspect.Parameter.empty:
        raise InputError(f"{name} needs its scale. Example: {entry.example}")
    if entry.factory is classifier and not at.model.classes and "label" not in values:
        raise InputError(
            f"This model has no classes. Say which one: label={at.classes[0]!r}. Known: {_few(at.classes)}."
        )
    if "decode" in parameters and at.model.autoencoder is not None:
        values["decode"] = at.model.autoencoder.decode
    if "sigma_data" in parameters:
        values["sigma_data"] = at.model.sigma_data
    if entry.factory is inpaint and hasattr(at.model.denoise, "inpainting"):  # ``Plan`` gives it what is kept
        return lambda denoise: denoise
    return lambda denoise: entry.factory(denoise, **values)


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], "..."] if len(names) > 6 else names)


def _value(name: str, key: str, kind: Kind, text: str, at: Setting, before: str = "") -> Any:
    """What a word means; ``before`` stands before it in the text."""
    at.recorded.append(text)
    try:
        value = PARSERS[kind](text, at)
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"{key} of {name} cannot be {text!r}. Example: {WRITTEN[ALIASES.get(name, name)].example}"
        ) from None
    at.recorded[-1] = before + at.recorded[-1]
    return value
