"""What happened to an image, from its description or from the task, and by which method a model can undo it."""

from __future__ import annotations

import math
import re

from ...corruptions import CORRUPTIONS, Chain, Corruption, OneOf, Operator, Step, covers, parse
from ...errors import InputError, unknown
from ...guidance.posterior import INVERSE
from ...models import Model
from ...options import changed, refuse
from ...samplers.processes import graded, weaker
from .options import RestoreOptions

METHODS = ("auto", "supervised", "zero-shot", "cold", "patches")
OF_A_MODEL = ("model", "posterior", "steps", "hints", "palette", "self_ensemble", "engine", "precision")  # options
ANSWERS = ("auto", "mean", "sample")
UNDOES = {  # the tasks of restoration and the corruptions that they undo
    "upscale": "downscale",
    "colorize": "gray",
    "dejpeg": "jpeg",
    "dewatermark": "mask",
    "deblur": "blur",
    "denoise": "noise",
    "inpaint": "mask",
}
BLURS = ("blur", "motion", "defocus", "kernel")
PLACED = ("mask", "scratches", "watermark", "logo")  # corruptions that lie at a place of the image
LARGEST = 16  # factor that images are made smaller by
SIDE = 64  # of an image that stands for any, after all that makes it smaller
MEANT = {  # what people call a restoration that has another name here
    "sharpen": "deblur blind", "unblur": "deblur blind", "focus": "deblur blind", "unsharp": "deblur blind",
    "enlarge": "upscale x2", "enhance": "upscale x2", "upsample": "upscale x2", "superres": "upscale x2",
    "clean": "denoise 0.1", "degrain": "denoise 0.1", "grain": "noise 0.05", "fill": "inpaint MASK",
    "erase": "inpaint MASK",
}  # fmt: skip
QUOTED = r"'[^']*'|\"[^\"]*\""  # texts, whose commas and parentheses mean nothing
HIDDEN = parse("mask 1")  # nothing is left of the image


def check(options: RestoreOptions) -> None:
    """Raises InputError for a name that does not exist or a number out of its range."""
    for kind, name, known in (
        ("method", options.method, METHODS), ("answer", options.answer, ANSWERS),
        ("posterior", options.posterior, INVERSE),
    ):  # fmt: skip
        if name not in known:
            raise unknown(kind, name, known)
    for key, least in (("n", 1), ("steps", 1), ("tile", 64), ("overlap", 0)):
        value = getattr(options, key)
        if type(value) is not int or value < least:
            raise InputError(f"{key} must be a whole number of at least {least}, got {value!r}.")


def takes_mean(options: RestoreOptions) -> bool:
    """Whether the result is the mean of all possible ones, and not a sample."""
    return options.answer == "mean" or (options.answer == "auto" and options.n == 1)


def check_answer(options: RestoreOptions, method: str, corruption: Corruption, model: Model) -> None:
    """Raises InputError where the method does not give as many results, or no mean."""
    if method == "patches" and options.answer == "mean":
        raise InputError("Patches give no mean of what may be there: leave answer out, or the method.")
    if options.n > 1 and (takes_mean(options) or method == "cold"):
        one = "mean" if takes_mean(options) else "cold method"
        raise InputError(f"The {one} is one answer, {options.n} were asked for. Leave n at 1.")
    blurred = any(step.name in BLURS for step in corruption.steps)
    if options.answer == "mean" and method == "zero-shot" and not blurred and not gives_mean(corruption, model):
        raise InputError("Zero-shot answers are samples: leave answer out, or take a model that was trained for it.")


def left_to_patches(options: RestoreOptions) -> bool:
    """Whether nothing was asked for that is about a model, so that patches may fill a hole."""
    return (options.method, options.answer) == ("auto", "auto") and not changed(options, OF_A_MODEL)


def parse_task(corruption: str | Corruption) -> Corruption:
    """What happened, from its description ("downscale 2") or from the task that undoes it ("upscale x2")."""
    if isinstance(corruption, Corruption):
        return corruption
    commands, quoted = "|".join(UNDOES), re.findall(QUOTED, corruption)
    text = re.sub(QUOTED, "''", corruption)
    text = re.sub(r"\b(upscale|downscale)(\s+)(\d+)x(?=\s*(?:[,|)]|$))", r"\1\2\3", text)  # "upscale 2x"
    # "deblur motion 9 30" is "motion 9 30", and "inpaint mask.png" names a file
    text = re.sub(rf"(^|[,|(])(\s*)({commands})\s+(?=({'|'.join(CORRUPTIONS)})(?:[\s,|)]|$))", r"\1\2", text)
    for name in re.findall(r"(?:^|[,|(])\s*([^\W\d][\w-]*)", text):
        if name in MEANT:
            raise InputError(f"No corruption or restoration named {name!r}. Did you mean {MEANT[name]!r}?")
        if name not in CORRUPTIONS and name not in UNDOES:
            raise unknown("corruption or restoration", name, [*CORRUPTIONS, *UNDOES])
    text = re.sub(rf"(^|[,|(])(\s*)({commands})\b", lambda m: m[1] + m[2] + UNDOES[m[3]], text)
    return parse("".join(map("".join, zip(text.split("''"), [*quoted, ""], strict=True))))


def choose_method(options: RestoreOptions, corruption: Corruption, model: Model, named: object) -> str:
    """Supervised where the model was trained for the corruption, else zero-shot where it can be a prior.

    Known blurs alone are undone zero-shot, by deconvolution, where the model can take away what then rings: a model
    that was trained on blurs undoes them without knowing which, and comes less near (docs/restore.md). Few levels are
    dithered and denoised.

    Args:
        options: As the caller gave them; the posterior "dps" needs no projection.
        corruption: What happened.
        model: What is to undo it.
        named: None if the model is the package's own.

    Raises InputError if there is no method, and says what would help.
    """
    method, posterior = options.method, options.posterior
    if any(step.name == "mask" and not step.fixed for step in corruption.steps):
        raise InputError(
            "Where is the hole? Give an image of the same size, white there: --corruption 'inpaint hole.png'."
        )
    if method == "patches":
        if [step.name for step in corruption.steps] != ["mask"]:
            raise InputError("method='patches' fills holes, and nothing else: --corruption 'inpaint hole.png'.")
        refuse(options, OF_A_MODEL, "where patches of the image fill the hole")
        return method
    name = "The restorer of this package" if named is None else "This model"
    learned = None if model.corruption in (None, "pairs") else parse(model.corruption)
    trained = model.corruption == "pairs" or (learned is not None and covers(learned, corruption))
    known = corruption.known and (operator_of(corruption, model.shape[0]).projects or posterior == "dps")
    prior = learned is None or covers(learned, HIDDEN) or strongest_noise(model) is not None
    if method == "supervised" and learned is None and not trained:
        raise InputError(f"{name} was not trained to restore. Use method='zero-shot' (--method zero-shot).")
    required = method in ("supervised", "cold") or (method == "auto" and named is not None and learned is not None)
    if required and not trained:
        offer = " Use method='zero-shot' (--method zero-shot), where it is the prior." if known and prior else ""
        raise InputError(
            f"{name} undoes {_mixture(model.corruption)!r}, not {str(corruption)!r}.{offer} Or train one: "
            f'fastdiffusion train photos/ --restore "{corruption}".'
        )
    if method == "zero-shot" or (method == "auto" and not trained):
        if not known:
            raise InputError(_unknown(corruption))
        if not prior:
            raise InputError(f"{name} knows images only together with a degraded one: it is no prior. Name another.")
        return "zero-shot"
    if method == "auto":
        better = deconvolves(corruption, model, options) or (takes_mean(options) and dithers(corruption, model))
        return "zero-shot" if better else "supervised"
    return method


def learned(model: Model, what: Corruption) -> bool:
    """Whether a model was trained to undo this."""
    return model.corruption not in (None, "pairs") and covers(parse(model.corruption), what)


def gives_mean(corruption: Corruption, model: Model) -> bool:
    """Whether a restorer that undoes noise gives the mean of what it was not trained for, in a few calls.

    Of few levels, and of an image made smaller or pixelated, where it learned some factor.
    """
    if dithers(corruption, model):
        return True
    if len(corruption.steps) != 1 or not corruption.steps[0].fixed or learned(model, corruption):
        return False
    smaller = corruption.steps[0].name in ("downscale", "pixelate") and bool(factors(model))
    return strongest_noise(model) is not None and smaller


def dithers(corruption: Corruption, model: Model) -> bool:
    """Whether few levels are all that happened, and the model undoes noise.

    A little noise on top makes the rounding one, which comes nearer than what a model learned of few levels: on
    photographs by 0.7 dB at 3 levels and 0.1 at 12 (docs/lab-notes.md).
    """
    posterized = len(corruption.steps) == 1 and corruption.steps[0].name == "posterize" and corruption.steps[0].fixed
    return posterized and strongest_noise(model) is not None


def factors(model: Model) -> list[int]:
    """By what a model learned to enlarge images, rising."""
    return [n for n in range(2, LARGEST + 1) if learned(model, Step("downscale", (n,)))]


def deconvolves(corruption: Corruption, model: Model, options: RestoreOptions) -> bool:
    """Whether a mean is wanted, by whichever method, nothing happened but blurs that are known, and the model can take
    away what rings after a deconvolution."""
    if options.method != "auto" or not takes_mean(options):
        return False
    blurred = bool(corruption.steps) and all(step.name in BLURS for step in corruption.steps)
    return blurred and corruption.known and strongest_noise(model) is not None


def _unknown(corruption: Corruption) -> str:
    """What to add, or to train, where a corruption is not known well enough to be led by it."""
    train = f'Or train a model for it: fastdiffusion train photos/ --restore "{corruption}".'
    for step in corruption.steps:
        if CORRUPTIONS[step.name].chance and not step.fixed:
            return (
                f"Where the {step.name} lie is not known. Mark them white in a black image of the same size: "
                f"--corruption 'inpaint hole.png'. {train}"
            )
        if step.open:
            takes = " ".join(CORRUPTIONS[step.name].parameters).upper()
            return f"Say what is missing of {step.name}: {', '.join(step.open)} ('{step.name} {takes}'). {train}"
    return f"{str(corruption)!r} has no inverse. {train}"


def _mixture(corruption: str | None) -> str:
    """A mixture, each part once."""
    return " | ".join(dict.fromkeys((corruption or "nothing").split(" | ")))


def operator_of(corruption: Corruption, channels: int) -> Operator:
    """What happens to one image, with masks of a size of their own left out."""
    steps = [step for step in corruption.steps if step.name not in PLACED]
    side = SIDE * math.prod(map(shrinking, steps))
    return Chain(tuple(steps)).on((channels, side, side), [0])


def strongest_noise(model: Model) -> float | None:
    """The largest standard deviation of noise that a restorer undoes by itself: from there on it can be a prior."""
    learned = parse(model.corruption) if model.corruption not in (None, "pairs") else Chain(())
    corruptions = learned.parts if isinstance(learned, OneOf) else (learned,)
    ranges = [one.values[0] for one in corruptions if isinstance(one, Step) and one.name == "noise" and one.values]
    return max((float(r[1]) for r in ranges if isinstance(r, tuple) and r[1] >= 0.5), default=None)


def weakened(corruption: Corruption, level: float) -> Corruption:
    """The same corruption at a fraction of its strength; InputError where it has none (no numbers, or factors)."""
    for step in corruption.steps:
        if not graded(step) or not any(isinstance(value, float) for value in step.values):
            raise InputError(
                f"{step.name} cannot be undone a little at a time: it has no strength. Use another method."
            )
    return weaker(corruption, level)


def shrinking(step: Step) -> int:
    """By how much a step makes the sides smaller."""
    return int(step.values[0] if step.values else 2) if step.name == "downscale" else 1
