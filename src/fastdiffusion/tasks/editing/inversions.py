"""The inversions by name: how an image becomes noise for an edit, how long that took, and how far it comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from ... import samplers
from ...data.cache import cache_folder
from ...errors import FastdiffusionError, InputError
from ...io.checkpoints import fingerprint, load_tensors, save_tensors
from ...models import Model
from ...samplers import inversion
from ...samplers.inversion import Inversion
from ...schedules import Sigmas
from ...types import Cond, Denoise

ITERATIONS = 8  # of a fixed point
NEAR_ITERATIONS = 3  # where the source is led back exactly, whatever the path
GUIDED_ITERATIONS = 30  # it converges more slowly under guidance
NULL_TEXT_ITERATIONS = 10


@dataclass(frozen=True)
class Inverted:
    """An inversion of one image.

    Attributes:
        inversion: Its states, noise, and what replaces "nothing".
        denoise: What the target is drawn with, of a batch of any size.
        known: The estimates that lead the source back exactly; None where the denoiser leads it.
        note: What it took and how near it comes back, in a sentence.
    """

    inversion: Inversion
    denoise: Denoise
    known: list[Float[Tensor, "1 c h w"]] | None
    note: str


@dataclass(frozen=True)
class Task:
    """What is inverted, and how.

    Attributes:
        model, x0, cond, prompt: What shows what.
        levels: Of the run, falling, the last one 0.
        guide: From an unconditional condition to the guided denoiser.
        seed: Of the noise of edit-friendly inversion.
        iterations: Of null-text inversion in each step.
        scale: Of guidance.
        cached: Whether the cache is used.
    """

    model: Model
    x0: Float[Tensor, "1 c h w"]
    cond: Cond
    prompt: str
    levels: Sigmas
    guide: Callable[[Cond | None], Denoise]
    scale: float
    seed: int = 0
    iterations: int = NULL_TEXT_ITERATIONS
    cached: bool = True

    def euler(self, denoise: Denoise, iterations: int) -> Inversion:
        return inversion.euler(denoise, self.x0, self.levels, self.cond, iterations, self.model.sigma_data)

    @property
    def null(self) -> Cond | None:
        return self.model.null(1)


def inverted(method: str, task: Task) -> Inverted:
    """The noise of an image by one of ``METHODS``."""
    start = time.monotonic()
    found, denoise, reverse, exact = METHODS[method](task)
    seconds = time.monotonic() - start
    known = found.estimates(task.x0) if exact else None
    made = task.x0 if known is not None else found.reconstruction(reverse, task.cond)
    error = float((made - task.x0).abs().max() / task.x0.abs().max().clamp(min=1e-12))
    note = (
        f"Inversion {method}: {seconds:.1f} s, {found.evaluations} evaluations; under its own prompt the image comes "
        f"back within {error:.1e} of its largest value."
    )
    return Inverted(found, denoise, known, note)


Way = tuple[Inversion, Denoise, Denoise, bool]


def _ddim(task: Task) -> Way:
    guided = task.guide(task.null)
    return task.euler(task.model.denoise, 0), guided, guided, False


def _fixed_point(task: Task) -> Way:
    guided = task.guide(task.null)
    return task.euler(guided, GUIDED_ITERATIONS), guided, guided, False


def _direct(task: Task) -> Way:
    return task.euler(task.model.denoise, NEAR_ITERATIONS), task.guide(task.null), task.model.denoise, True


def _edit_friendly(task: Task) -> Way:
    table = samplers.table("euler_ancestral", task.levels)
    found = inversion.edit_friendly(task.model.denoise, task.x0, table, task.cond, [task.seed])
    return found, task.guide(task.null), task.model.denoise, True


def _null_text(task: Task) -> Way:
    if task.model.guidance != "cfg" or (null := task.null) is None:
        raise InputError(
            "Null-text inversion changes what guidance compares with, and this model compares with nothing. "
            "Take --method direct or edit-friendly."
        )
    settings = {
        "inversion": 1, "prompt": task.prompt, "model": task.model.id, "scale": task.scale,
        "levels": [float(s) for s in task.levels], "iterations": task.iterations,
    }  # fmt: skip
    key = fingerprint({"x0": task.x0}, settings)
    found = _kept(key, task) if task.cached else None
    if found is None:
        found = task.euler(task.model.denoise, ITERATIONS)
        found = inversion.null_text(lambda u: task.guide(u), found, task.x0, null, task.cond, task.iterations)
        if task.cached:
            _keep(key, found)
    guided = inversion.by_step(task.model.denoise, [task.guide(uncond) for uncond in found.uncond])
    return found, guided, guided, False


METHODS: dict[str, Callable[[Task], Way]] = {
    "ddim": _ddim,
    "fixed-point": _fixed_point,
    "direct": _direct,
    "edit-friendly": _edit_friendly,
    "null-text": _null_text,
}


# ---- the cache: by image, prompt, model and settings, in a file that runs nothing when it is opened ----------------


def _keep(key: str, found: Inversion) -> None:
    tensors = {f"states.{i}": state.clone() for i, state in enumerate(found.states)}
    for i, cond in enumerate(found.uncond):
        tensors |= {f"uncond.{i}.{name}": part.clone() for name, part in cond.parts().items()}  # none shares memory
    with suppress(FastdiffusionError, OSError):  # a cache that cannot be written is none
        folder = cache_folder() / "inversions"
        folder.mkdir(exist_ok=True)
        save_tensors(folder / f"{key}.safetensors", tensors, {"evaluations": found.evaluations})


def _kept(key: str, task: Task) -> Inversion | None:
    try:
        _, tensors = load_tensors(cache_folder() / "inversions" / f"{key}.safetensors")
    except FastdiffusionError:
        return None
    tensors = {name: t.to(task.x0.device) for name, t in tensors.items()}
    rows = len(task.levels) - 1
    try:
        states = tuple(tensors[f"states.{i}"] for i in range(rows))
    except KeyError:
        return None
    conds = []
    for i in range(rows):
        start = f"uncond.{i}."
        conds.append(Cond.of({name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}))
    return replace(Inversion(samplers.table("euler", task.levels), states), uncond=tuple(conds))
