"""What is to be restored: an image, and what happened to it, as it is named, as its file and its spectrum tell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...corruptions import Chain, Corruption, OneOf, Step
from ...corruptions.core import show
from ...errors import InputError
from ...io.images import flatten, open_image, to_array, to_pil, to_tensor, turned
from ...models import Model
from .jpeg_files import as_written, file_step, left_over, rounded_away
from .method import BLURS, deconvolves, gives_mean, learned, parse_task, takes_mean
from .options import RestoreOptions

SMALLEST = 8  # pixels
LAST = ("noise", "jpeg")  # what may have happened after all else, and is undone first
Source = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class Inputs:
    """An image in L or RGB, and what happened to it.

    Attributes:
        image: Its pixels, as they lie in the file.
        what: What is left to be undone.
        named: The same as it was named, before the image was asked.
        label: All that is undone, as text.
        orientation: EXIF's, by which the image and the result are turned to be seen.
        trust: How far to change a file whose way of keeping colors is unknown.
        rounding: Standard deviation of what is wrong with its pixels besides.
        last: What came after all else and was undone already; nothing if that is left too.
        degraded: The image before that.
        likely: Where the image does not tell which of several blurs happened, how probable each is.
        kernel: The blur kernel that was looked for.
        notes: What a person should know.
    """

    image: Image.Image
    what: Corruption
    named: Corruption
    label: str
    orientation: int = 1
    trust: float = 1.0
    rounding: float = 0.0
    last: Corruption = field(default_factory=lambda: Chain(()))
    degraded: Image.Image | None = None
    likely: Mapping[Step, float] = field(default_factory=dict)
    kernel: Tensor | None = None
    notes: tuple[str, ...] = ()


def opened(
    image: Source,
    corruption: str | Corruption,
    model: Model,
    options: RestoreOptions,
    undo: Callable[[Source, Corruption], Image.Image],
) -> Inputs:
    """See :class:`Inputs`.

    Args:
        image: A file or a PIL image of any size.
        corruption: As for ``restore``.
        model: What is to undo it.
        options: As the caller gave them.
        undo: Restores an image from noise and JPEG's rounding that came after all else.
    """
    blind, what, notes = _asked(corruption)
    label = corruption if isinstance(corruption, str) and blind else str(what) or "pairs"
    path, source = None if isinstance(image, Image.Image) else image, _open(image)
    count = _last(what, blind, model, options)
    own = file_step(path) if path is not None and _blurs_alone(what, blind) else None
    if count == 0 and own is None:
        written, orientation, trust = as_written(what, path) if path is not None else (what, 1, 1.0)
        if orientation != 1:  # as it lies in the file, where its blocks are
            source = to_pil(turned(torch.from_numpy(to_array(source)), {6: 8, 8: 6}.get(orientation, orientation)))
        found = Inputs(source, written, what, label, orientation, trust)
    else:
        tail = Chain(what.steps[len(what.steps) - count :]) if own is None else Chain((Step("jpeg"),))
        head = Chain(what.steps[: len(what.steps) - count])
        degraded, source = source, _without(image, tail, model, undo)
        last = tail if own is None else Chain((own,))
        rounding = left_over(to_tensor(source)[None], last)
        found = Inputs(source, head, head, label, rounding=rounding, last=last, degraded=degraded)
    if not blind and not options.refine:
        return replace(found, notes=notes)
    return _seen(replace(found, notes=notes), blind, takes_mean(options))


def _asked(corruption: str | Corruption) -> tuple[bool, Corruption, tuple[str, ...]]:
    """Whether a kernel is to be looked for, what else happened, and how numbers were read."""
    if corruption == "pairs":
        return False, Chain(()), ()
    blind = re.match(r"\s*(deblur\s+)?blind\s*(,|$)", corruption) if isinstance(corruption, str) else None
    if isinstance(corruption, str) and blind:
        corruption = corruption[blind.end() :]
    named = parse_task(corruption) if corruption else Chain(())
    what = _of_255(named)
    notes = [
        f"{step} is read as {show(step.values[0])} of 255: {new}, where black to white is 2."
        for step, new in zip(named.steps, what.steps, strict=True)
        if step is not new
    ]
    return blind is not None, what, tuple(notes)


def _of_255(what: Corruption) -> Corruption:
    """The same with noise that is as strong as only numbers of 255 are in the library's own numbers."""
    if isinstance(what, Chain | OneOf):
        return type(what)(tuple(map(_of_255, what.parts)))
    value = what.values[0] if isinstance(what, Step) and what.name == "noise" and what.values else 0.0
    ends = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(end, float) for end in ends) or max(ends) <= 2:
        return what
    less = tuple(round(end * 2 / 255, 4) for end in ends)
    return Step("noise", (less if isinstance(value, tuple) else less[0],))


def _last(what: Corruption, blind: bool, model: Model, options: RestoreOptions) -> int:
    """How many steps at the end are undone on their own, because the model does not undo all together."""
    steps = what.steps
    if not isinstance(what, Chain) or options.method not in ("auto", "zero-shot"):
        return 0
    count = 0
    while count < len(steps) and steps[-1 - count].name in LAST:
        count += 1
    if blind:
        return count
    head, tail = Chain(steps[: len(steps) - count]), Chain(steps[len(steps) - count :])
    apart = deconvolves(head, model, options) or has_answers(head, tail, model, options)
    return 0 if count == len(steps) or (learned(model, what) and not apart) else count


def has_answers(head: Chain, tail: Chain, model: Model, options: RestoreOptions) -> bool:
    """Whether an image that was blurred or made smaller, and then noisy or rounded, has several answers: one from
    undoing the last first, besides that from undoing all together. Where a blur is undone by its own kernel, that is
    better than all else."""
    if deconvolves(head, model, options):
        return False
    if options.method != "auto" or not takes_mean(options) or not (head.steps and tail.steps):
        return False
    alike = all(step.name in (*BLURS, "downscale") for step in head.steps)
    undoes = learned(model, head) or gives_mean(head, model)
    return alike and head.known and tail.known and undoes and learned(model, tail)


def _blurs_alone(what: Corruption, blind: bool) -> bool:
    """Whether nothing but blurs is said to have happened; a JPEG file then tells what came after."""
    names = [step.name for step in what.steps]
    return what.known and all(name in BLURS for name in names) and (bool(names) or blind)


def _without(image: Source, tail: Chain, model: Model, undo: Callable[[Source, Corruption], Image.Image]) -> Any:
    """The image with the end of what happened undone, as far as the model can: in one go, or the last first."""
    for part in [tail] if learned(model, tail) else reversed(tail.parts):
        if learned(model, part):
            image = undo(image, part)
    return _open(image)


def _seen(found: Inputs, blind: bool, mean: bool) -> Inputs:
    """With the blur that fits the image itself, and what was changed; whether one mean is the result, or samples."""
    from .blind_deblurring import estimate_kernel, plausible

    if blind:
        kernel = estimate_kernel(to_tensor(found.image)[None])
        what = Chain((Step("kernel", (kernel,)), *found.what.steps))
        return replace(found, what=what, named=what, kernel=kernel)
    if len(found.what.steps) != 1 or not found.what.known or found.what.steps[0].name not in BLURS:
        return found
    (named,) = found.what.steps
    degraded = to_tensor(found.degraded or found.image)[None]  # a restorer's estimate has no spectrum to speak of
    likely = plausible(named, degraded, rounded_away(degraded, found.last))
    step = max(likely, key=lambda step: likely[step])
    rest = {step: share for step, share in likely.items() if step != named}
    if not rest:
        return found
    ((other, share),) = rest.items()
    note = f"The image fits {other}, not {named}, and was restored from that."
    if len(likely) > 1:
        mean_of = f"this is the mean of both answers, {share:.0%} of the first."
        one_of = f"each result is of one of them, of the first with a probability of {share:.0%}."
        note = f"The image fits {other} as well as {named}: {mean_of if mean else one_of}"
    note += f" If {named} is exact, add --no-refine."
    return replace(found, what=step, notes=(*found.notes, note), likely=likely if len(likely) > 1 else {})


def _open(image: Source) -> Image.Image:
    """An image in L or RGB."""
    flat = flatten(open_image(image))
    if min(flat.size) < SMALLEST:
        raise InputError(
            f"An image of {flat.width}x{flat.height} pixels is too small to restore: give one of at least "
            f"{SMALLEST}x{SMALLEST}."
        )
    return flat if flat.mode in ("L", "RGB") else flat.convert("RGB")
