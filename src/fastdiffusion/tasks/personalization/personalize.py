"""``personalize``: a new word for what some images show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...adapters import tokens
from ...data import Dataset
from ...data.dataset import digest
from ...errors import InputError, warn
from ...io.images import safe_name
from ...models import Model
from ...models.native import own_denoiser
from ...options import fill
from ...training import report as reports
from ...training.trainer import check
from ..loading import loaded
from . import slider as sliders
from .adapting import ADAPTED, Adaptation, adapt, opened_base
from .course import Course, kept_step, notes_of, run
from .images import Examples, opened, templates_of
from .objective import Objective, conditions, refuse_distilled
from .options import PersonalizeOptions
from .result import PersonalizationResult
from .retention import Retention, compared_prompts, own_images, prompts_of
from .watching import images_retained

GENERAL = (
    "object", "thing", "person", "face", "animal", "dog", "cat", "bird", "plant", "flower", "food", "building", "car",
    "toy", "doll", "logo", "symbol", "sign", "ball", "star", "heart", "button", "flag", "square", "circle", "cloth",
    "robot", "bag", "hat", "cup",
)  # fmt: skip
STYLE_WORDS = ("style", "drawing", "painting", "art", "picture", "pattern", "symbol")
PRIOR = 32  # images of the model's own, which hold it
BY_HEART = 2.0  # times the loss of another word: such a class names an image that the model knows by heart
WATCHED = 8  # prompts whose answers are measured


def personalize(
    model: Model | str | Path, data: Dataset | str | Path | None = None, **options: Any
) -> PersonalizationResult:
    """Teach a model what some images show, under a new word; the same call goes on where the last one stopped.

    Args:
        model: A text-to-image model, of this package or of another family.
        data: 3 to 20 images, with captions beside them or without; or a data set. None for a slider.
        options: See :class:`PersonalizeOptions
            <fastdiffusion.tasks.personalization.options.PersonalizeOptions>`: token, method, class_name, slider, ...
            The run goes to ``runs/NAME``, after the folder.

    Raises:
        InputError: A token that is a word already, a distilled model, an option that does not exist.
        DataError: Too few or too many images that can be used.
    """
    chosen = fill(PersonalizeOptions, **options)
    chosen = replace(chosen, steps=chosen.budget["steps"], optimizer="adamw")
    check(chosen)
    if chosen.slider is not None:
        sliders.check(chosen.method, data, chosen.masks)
        chosen = replace(chosen, lr=sliders.RATE if chosen.lr is None else chosen.lr)
    elif data is None:
        raise InputError(
            "What shall it learn? Give a folder of 3 to 20 images, or --slider 'a red heart|a blue heart'."
        )
    base, chosen = opened_base(model, chosen)
    if base.conditioner is None:
        raise InputError("This model takes no prompts, and learns no new word. Take a text-to-image model.")
    refuse_distilled(base)
    course, notes = _slider(base, chosen) if data is None else _subject(base, data, chosen)
    chosen = chosen.in_runs(safe_name(course.examples.name))
    for note in course.examples.notes:
        warn(note)
    trainer, watch = run(course, chosen, "personalize", {"model": _name(model), "data": _name(data)})
    place, adaptation = Path(str(chosen.folder)), course.adaptation
    file, page = place / adaptation.file, place / reports.FILE
    notes += notes_of(watch, trainer, chosen)
    ready = loaded(file, chosen.device) if adaptation.method == "full" else _with(base, file)
    return PersonalizationResult(
        place, file, ready, page if page.exists() else None, course.token, kept_step(watch, chosen),
        tuple(watch.looks), (*course.examples.notes, *notes), images_retained(place)[0],
    )  # fmt: skip


def _with(base: Model, path: Path) -> Model:
    from ...adapters import with_loras

    return with_loras(base, [path]).eval()


def _name(what: Any) -> str:
    return str(what) if isinstance(what, str | Path) else getattr(what, "name", "model")


def _adaptation(base: Model, chosen: PersonalizeOptions, token: str, class_name: str) -> Adaptation:
    lora = {name: getattr(chosen, name) for name in ADAPTED}
    return adapt(base, chosen.method, token, class_name, chosen.vectors, **lora)


def _subject(base: Model, data: Dataset | str | Path, chosen: PersonalizeOptions) -> tuple[Course, list[str]]:
    """What a new word, or a rare one, is to mean; and what a person should know of it."""
    rare = chosen.method in ("dreambooth", "full") and tokens.rare(base, chosen.token)
    if not rare and (chosen.method != "full" or own_denoiser(base.denoise) is not None):
        tokens.check_new(base, chosen.token)  # all weights of another program: ``adapt`` has a sentence of its own
    examples = opened(base, data, chosen.size, chosen.holdout, chosen.seed, chosen.masks, few=True)
    class_name, start, notes = _class_and_start(base, examples, chosen)
    phrase = f"{chosen.token} {class_name}" if rare else chosen.token
    if rare:
        notes.append(f"{chosen.token!r} is a rare word of this model, and stands for the subject in {phrase!r}.")
    adaptation = _adaptation(base, chosen, "" if rare else chosen.token, start)
    count = chosen.prior if chosen.prior is not None else PRIOR * (chosen.method != "embedding")
    _, others = prompts_of(chosen.prompts, WATCHED, count)
    of_class = f"a {class_name}" if chosen.subject == "object" else class_name
    prior = [others[i] if i % 2 else of_class for i in range(count)]
    shown = [phrase, f"{phrase} on a blue background", f"two {phrase}", f"a red {phrase}"]
    held = _held(base, chosen, prior, shown, class_name)
    return Course(adaptation, examples, templates_of(adaptation.model, chosen.subject, phrase), phrase, **held), notes


def _slider(base: Model, chosen: PersonalizeOptions) -> tuple[Course, list[str]]:
    """The way between two prompts; and what a person should know of it."""
    ends = sliders.opposites(str(chosen.slider), chosen.class_name)
    examples = sliders.examples_of(base, ends, chosen.seed, chosen.size)
    adaptation = _adaptation(base, chosen, "", "")
    _, prior = prompts_of(chosen.prompts, WATCHED, chosen.prior or 0)
    shown = [list(ends)[i % len(ends)] for i in range(sliders.SHOWN)]
    held = _held(base, chosen, prior, shown, str(chosen.slider))
    notes = [
        f"Scale -1 is {first!r}, 1 is {second!r}; --lora FILE:0.5 goes half way." for first, second in ends.values()
    ]
    return sliders.Slider(adaptation, examples, (), "", **{**held, "shown": shown}, ends=ends), notes


def _held(
    base: Model, chosen: PersonalizeOptions, prior: list[str], shown: list[str], class_name: str
) -> dict[str, Any]:
    """What a run is held to, and what tells it from others: fields of ``Course``."""
    watched, _ = prompts_of(chosen.prompts, WATCHED, 0)
    kept = own_images(base, watched, chosen.seed, chosen.size)
    made = own_images(base, prior, chosen.seed + 1000, chosen.size) if prior else []
    names = (
        "token", "method", "subject", "vectors", "rank", "alpha", "targets", "dropout", "text_encoder", "lr",
        "batch_size", "floor",
    )  # fmt: skip
    identity = {name: str(getattr(chosen, name)) for name in names}
    identity |= {"model": base.id, "class_name": class_name, "prior": len(prior), "watched": digest(watched)}
    retention = Retention(base, watched, kept, chosen.seed)
    own = list(zip(prior, made, strict=True))
    compared = compared_prompts(chosen.prompts, prior, (chosen.steps or chosen.usual_steps) * chosen.batch_size)
    shown = [*shown, *watched[:4]]
    return {"own": own, "retention": retention, "shown": shown, "compared": compared, "identity": identity}


def _class_and_start(base: Model, examples: Examples, chosen: PersonalizeOptions) -> tuple[str, str, list[str]]:
    """The class, the word that the new one starts as, and a note where this is not the class that a person named.

    A model that knows an image of the class by heart draws that one whatever the noise, and nothing else grows from it.
    """
    general, named = STYLE_WORDS if chosen.subject == "style" else GENERAL, chosen.class_name
    unknown = getattr(base.conditioner, "unknown_words", lambda text: [])(named or "")
    if unknown:
        raise InputError(
            f"This model knows no {unknown[0]!r}. Give another --class-name; without one the word is taken that "
            "explains the images best."
        )
    if named is not None and own_denoiser(base.denoise) is None:
        return named, named, []  # a network that is large, and was trained on many images of each word
    losses = _losses(base, examples, [*general, *([named] if named else [])])
    start = min(losses, key=lambda name: losses[name]) if losses else "object"
    if named is None:
        return start, start, [f"{chosen.token} started as {start!r}, which explained the images best."]
    if losses.get(named, 0.0) <= BY_HEART * losses.get(start, 0.0):
        return named, named, []
    why = f"explained the images better (loss {losses[start]:.2f}) than {named!r} ({losses[named]:.2f})"
    return named, start, [f"{chosen.token} started as {start!r}, which {why}."]


@torch.no_grad()
def _losses(model: Model, examples: Examples, texts: Sequence[str]) -> dict[str, float]:
    """How badly each word that the model has explains the images: its loss, all at the same noise."""
    unknown = getattr(model.conditioner, "unknown_words", lambda text: [])
    names = [name for name in dict.fromkeys(texts) if not unknown(name)]
    objective, some = Objective(model), list(examples.train)[:4]
    x0 = torch.stack(
        [examples.latents[i] for i in some if examples.latents[i].shape == examples.latents[some[0]].shape]
    )
    u, draw = (torch.arange(4) + 0.5) / 4, torch.Generator().manual_seed(0)
    x0 = x0.repeat_interleave(4, 0).to(model.device)
    sigma = objective.sigmas(u).repeat(len(x0) // 4).to(model.device)
    noise = torch.randn(x0.shape, generator=draw).to(model.device)
    losses: dict[str, float] = {}
    for name in names:
        cond = conditions(model, [name]).expand(len(x0))
        losses[name] = float(objective(x0, sigma, noise, cond).mean())
    return losses
