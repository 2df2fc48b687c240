"""What happened to a picture, from the words for it, and which way it can be undone with a model."""

from __future__ import annotations

import math
import os
import re

from ...corruptions import CORRUPTIONS, Chain, Corruption, OneOf, Operator, Step, covers, parse
from ...errors import InputError
from ...io.images import jpeg_tables
from ...models import Model
from ...samplers.processes import graded, weaker

METHODS = ("auto", "supervised", "zero-shot", "cold")
UNDOES = {  # the verbs of restoration and what they undo
    "upscale": "downscale",
    "colorize": "gray",
    "dejpeg": "jpeg",
    "dewatermark": "mask",
    "deblur": "blur",
    "denoise": "noise",
    "inpaint": "mask",
}
PLACED = ("mask", "scratches", "watermark", "logo")  # corruptions that lie at a place of the picture
SIDE = 64  # of a picture that stands for any, after all that makes it smaller
HIDDEN = parse("mask 1")  # nothing is left of the picture


def undoing(corruption: str | Corruption) -> Corruption:
    """What happened, from what happened or from what to do about it ("upscale x2")."""
    if isinstance(corruption, Corruption):
        return corruption
    commands = "|".join(UNDOES)
    text = re.sub(rf"(^|[,|(])(\s*)({commands})\s+(?=({'|'.join(CORRUPTIONS)})\b)", r"\1\2", corruption)
    return parse(re.sub(rf"(^|[,|(])(\s*)({commands})\b", lambda m: m[1] + m[2] + UNDOES[m[3]], text))


def as_written(what: Corruption, path: str | os.PathLike[str]) -> Corruption:
    """A JPEG file says itself how it was rounded: where its quality was left open, the file's own steps are taken."""
    last = what.steps[-1] if what.steps else None
    if not isinstance(what, Step | Chain) or last is None or last.name != "jpeg" or last.fixed:
        return what
    tables = jpeg_tables(path)
    if tables is None:
        return what
    return Chain((*what.steps[:-1], Step("jpeg", (tables[0], "420" if tables[1] else "444"))))


def choose_method(method: str, what: Corruption, model: Model, named: object, posterior: str) -> str:
    """The way to go: supervised where the model learned this, else zero-shot where it can be a prior.

    Args:
        method: What was asked for, one of ``METHODS``.
        what: What happened.
        model: What is to undo it.
        named: None if the model is the package's own.
        posterior: Of zero-shot; "dps" needs no projection.

    Raises InputError if there is no way, and says what would help.
    """
    if any(step.name == "mask" and not step.fixed for step in what.steps):
        raise InputError("Where is the hole? Give a picture of the same size, white there: --by 'inpaint hole.png'.")
    name = "The restorer of this package" if named is None else "This model"
    learned = None if model.corruption in (None, "pairs") else parse(model.corruption)
    trained = model.corruption == "pairs" or (learned is not None and covers(learned, what))
    known = what.known and (operator_of(what, model.shape[0]).projects or posterior == "dps")
    prior = learned is None or covers(learned, HIDDEN) or strongest_noise(model) is not None
    if method == "supervised" and learned is None and not trained:
        raise InputError(f"{name} was not trained to restore. Use way='zero-shot' (--way zero-shot).")
    required = method in ("supervised", "cold") or (method == "auto" and named is not None and learned is not None)
    if required and not trained:
        offer = " Use way='zero-shot' (--way zero-shot), where it serves as the prior." if known and prior else ""
        raise InputError(
            f"{name} undoes {_mixture(model.corruption)!r}, not {str(what)!r}.{offer} Or train one: "
            f'fastdiffusion train photos/ --restore "{what}".'
        )
    if method == "zero-shot" or (method == "auto" and not trained):
        if not known:
            unsaid = [step.name for step in what.steps if not step.fixed and CORRUPTIONS[step.name].parameters]
            hint = f"Say all of {unsaid[0]}: {', '.join(CORRUPTIONS[unsaid[0]].parameters)}. Else " if unsaid else ""
            raise InputError(
                f"{hint}{str(what)!r} can only be undone by a model that was trained for it, since not all is said or "
                f'it has no inverse. Train one: fastdiffusion train photos/ --restore "{what}".'
            )
        if not prior:
            raise InputError(f"{name} knows pictures only together with a degraded one: it is no prior. Name another.")
        return "zero-shot"
    return "supervised" if method == "auto" else method


def _mixture(corruption: str | None) -> str:
    """A mixture, each part said once."""
    return " | ".join(dict.fromkeys((corruption or "nothing").split(" | ")))


def operator_of(what: Corruption, channels: int) -> Operator:
    """What happens to one picture, with masks of a size of their own left out."""
    steps = [step for step in what.steps if step.name not in PLACED]
    side = SIDE * math.prod(map(shrinking, steps))
    return Chain(tuple(steps)).on((channels, side, side), [0])


def strongest_noise(model: Model) -> float | None:
    """The largest standard deviation of noise that a restorer undoes by itself: from there on it can be a prior."""
    learned = parse(model.corruption) if model.corruption not in (None, "pairs") else Chain(())
    corruptions = learned.parts if isinstance(learned, OneOf) else (learned,)
    ranges = [one.values[0] for one in corruptions if isinstance(one, Step) and one.name == "noise" and one.values]
    return max((float(r[1]) for r in ranges if isinstance(r, tuple) and r[1] >= 0.5), default=None)


def weakened(what: Corruption, level: float) -> Corruption:
    """The same corruption at a part of its strength; InputError where there is no such way (no numbers, or factors)."""
    for step in what.steps:
        if not graded(step) or not any(isinstance(value, float) for value in step.values):
            raise InputError(f"{step.name} cannot be undone a little at a time: it has no strength. Use another way.")
    return weaker(what, level)


def shrinking(step: Step) -> int:
    """By how much a step makes the sides smaller."""
    return int(step.values[0] if step.values else 2) if step.name == "downscale" else 1
