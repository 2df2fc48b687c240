"""New pictures from a model: ``sample``, step by step with ``sample_steps``, and the same ones ``again``.

Image i has seed + i and a class of its own, and depends on nothing else: neither how many are made nor in what batches.
Floating-point kernels still round differently for different batch sizes (by about 1e-6), so a picture's recipe also
says which batch it came from; ``again`` makes that batch, and with it the same bytes.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ... import prompts
from ...errors import CheckpointError, InputError
from ...guidance import cfg
from ...io.inputs import fit_image
from ...models import Model
from ...models.registry import loaded, named, short_name
from ...noise import resized, toward_seeds
from ...samplers import Table, run
from ...types import Denoise
from ...version import __version__
from . import guidance_spec
from .guidance_spec import Guide
from .samples import RECIPE, Samples, SampleStep

LABEL_GUIDANCE = {"cfg", "apg", "negative"}  # guides that compare what is told with something else, as ``scale`` does
AWAY = 2.0  # the scale by default where negative words are given and the model has none of its own
LARGEST = 2**33  # values that one run may hold: a recipe may come from a stranger


def sample(
    model: Model | str | Path = "emoji",
    prompt: str | Sequence[str] | None = None,
    n: int = 16,
    classes: str | int | Sequence[str | int] | None = None,
    steps: int = 12,
    seed: int = 0,
    scale: float | None = None,
    negative_prompt: str = "",
    guidance: Guide | Sequence[Guide] | None = None,
    image: str | Path | Image.Image | None = None,
    strength: float = 0.5,
    sampler: str | None = None,
    schedule: str | None = None,
    variation_seed: int = 0,
    variation_strength: float = 0.0,
    size: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
) -> Samples:
    """Make ``n`` pictures.

    Args:
        model: A model, its file, the folder of its training run, or the name of one that ships ("emoji").
        prompt: What to draw, for a model of words, in the language of ``fastdiffusion.prompts``; of several (a list, or
            lines), image i takes the i-th, round and round. None draws anything.
        n: How many.
        classes: Names or indices, a list or "3,7"; image i takes the i-th, round and round. By default all in turn;
            "none" is unconditional.
        steps: Denoiser calls per picture (twice that with guidance).
        seed: Of image 0; image i has seed + i.
        scale: Classifier-free guidance; 1 is off. By default what the model's card says for words, else 1.
        negative: What to guide away from, in words.
        guide: More guidance, in words such as "cfg scale=3 interval=0.3..5" or "inpaint photo.png mask.png"
            (``tasks.guides.GUIDES`` has them all), or a function from denoiser to denoiser. Each goes around the last.
        image: A picture to start from instead of noise alone; scaled and cut to the model's size.
        strength: How far to go from ``image``: the part of noise in the mix that is started from, in standard
            deviations, sigma / (sigma + sigma_data). 0 returns the picture, 1 starts from noise. All ``steps`` are
            made, on a textbook table from that noise level down: a fitted one holds for the whole way only.
        sampler: A name in ``samplers.SAMPLERS``; by default the table fitted to the model, else ``dpmpp_2m``.
        schedule: A name in ``schedules.SCHEDULES``; by default ``exponential``.
        variation_seed: Image i is turned towards the noise of this seed + i, by ``variation_strength``.
        variation_strength: 0 (off) to 1.
        size: Height and width instead of the model's own; the same seed keeps its layout.
        batch_size: How many at once: for speed and memory only.
        device: Where to compute; by default where the model is, and for a file the best there is.

    Raises:
        InputError: A value that cannot be used, or an unknown class, sampler or schedule.
        CheckpointError: A model file that cannot be read, or whose pictures are not finite.
    """
    plan = _plan(**locals())
    images = torch.empty(0)
    for step in tqdm(_run(plan), "sampling", plan.nfe, disable=None, leave=False):
        images = step.images
    return plan.samples(images, range(n))


def sample_steps(model: Model | str | Path = "emoji", **parameters: Any) -> Iterator[SampleStep]:
    """The same, call by call, for a live preview; takes what :func:`sample` takes. To stop is to stop iterating."""
    return _run(_plan(model, **parameters), shown=True)


# ---- a run, all its choices made ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    model: Model
    name: str
    table: Table | None  # None: no call at all, the picture itself
    labels: list[int] | None  # one per image; -1 is unconditional
    prompts: list[str] | None  # one per image
    shape: tuple[int, ...]  # of what the denoiser works on
    guided: Callable[[Denoise], Denoise]
    image: Tensor | None  # what is started from
    parameters: dict[str, Any]  # of ``sample``, all of them

    @property
    def n(self) -> int:
        return self.parameters["n"]

    @property
    def batch_size(self) -> int:
        return self.parameters["batch_size"]

    @property
    def nfe(self) -> int:
        return self.table.nfe * len(_batches(self)) if self.table else 0

    def samples(self, images: Tensor, indices: range) -> Samples:
        if not bool(images.isfinite().all()):
            raise CheckpointError(
                f"{self.name} makes pictures that are not finite. Take an earlier checkpoint, or train on."
            )
        recipe = {
            "fastdiffusion": __version__,
            "recipe": RECIPE,
            "verb": "sample",
            "model": {"name": self.name, "sha256": self.model.id},
            "parameters": self.parameters,
            "table": None if self.table is None else json.loads(self.table.to_json()),
        }
        labels = [-1 if self.labels is None else self.labels[i] for i in indices]
        names = tuple(self.model.classes[label] if label >= 0 else "" for label in labels)
        names = names if self.prompts is None else tuple(self.prompts[i] for i in indices)
        seeds = tuple(self.parameters["seed"] + i for i in indices)
        return Samples(images.clamp(-1, 1), seeds, names, tuple(indices), recipe)


def _plan(
    model: Model | str | Path, table: Table | None = None, name: str = "", near: Path | None = None, **parameters: Any
) -> _Plan:
    """Check a call of ``sample`` and make its choices; ``sample``'s signature says what there is and by default.

    A recipe brings its ``table`` and ``name``; its files are looked for ``near`` its picture.
    """
    bound = inspect.signature(sample).bind(model, **parameters)
    bound.apply_defaults()
    p = {key: value for key, value in bound.arguments.items() if key not in ("model", "device")}
    for key in ("n", "steps", "batch_size", "size"):
        if not (type(p[key]) is int and p[key] >= 1) and not (key == "size" and p[key] is None):
            raise InputError(f"{key} must be a whole number of at least 1, got {p[key]!r}. Example: {key}=16.")
    for key in ("seed", "variation_seed"):
        if type(p[key]) is not int:
            raise InputError(f"{key} must be a whole number, got {p[key]!r}. Example: {key}=0.")
    for key in ("variation_strength", "strength"):
        if not 0 <= p[key] <= 1:
            raise InputError(f"{key} must be from 0 to 1, got {p[key]!r}. Try 0.2.")
    ready = loaded(model, bound.arguments["device"])
    if p["size"] is not None and p["size"] % ready.factor:
        raise InputError(
            f"This model makes sizes that divide by {ready.factor}, got {p['size']}. Try {ready.image_shape[1]}."
        )
    side = None if p["size"] is None else p["size"] // ready.factor
    shape = ready.shape if side is None else (ready.shape[0], side, side)
    if p["n"] * math.prod(shape) > LARGEST:
        raise InputError(f"{p['n']} pictures of {shape[1]}x{shape[2]} are too many for one run. Make fewer at a time.")
    labels = _labels(ready, p["classes"], p["n"])
    prompts = _prompts(ready, p["prompt"], p["negative_prompt"], p["n"], p["seed"])
    p["prompt"] = p["prompt"] if p["prompt"] is None or isinstance(p["prompt"], str) else list(p["prompt"])
    p["classes"] = p["classes"] if p["classes"] is None or isinstance(p["classes"], str | int) else list(p["classes"])
    guided, p["guidance"] = guidance_spec.parse_guidance(p["guidance"], guidance_spec.Setting(ready, shape, near))
    by_guide = bool(LABEL_GUIDANCE & set(guidance_spec.names(p["guidance"])))
    if p["prompt"] is not None and p["classes"] is not None:
        raise InputError("Give words or classes, not both.")
    if p["scale"] is None:
        own = 1.0 if p["prompt"] is None else ready.scale
        p["scale"] = 1.0 if by_guide else AWAY if p["negative_prompt"] and own == 1 else own
    if not math.isfinite(p["scale"]):
        raise InputError(f"scale must be finite, got {p['scale']!r}. 1 is off, 2 to 4 is usual.")
    if p["scale"] == 1 and p["negative_prompt"] and not by_guide:
        warnings.warn("Negative words do nothing at scale 1: it turns guidance off. Try scale=3.", stacklevel=4)
    if p["scale"] != 1 and by_guide:
        raise InputError("scale and this guide would both guide by the label. Put the scale into the guide.")
    image, p["image"] = (None, None) if p["image"] is None else _start_image(p["image"], ready, shape, near)
    start = ready if image is None else _from(ready, p["strength"])
    if table is None and start is not None:
        table = start.table(p["steps"], p["sampler"], p["schedule"])
    return _Plan(ready, name or short_name(model), table, labels, prompts, shape, guided, image, p)


def _from(model: Model, strength: float) -> Model | None:
    """The model with the noise level that ``strength`` names as its highest, and no fitted tables; None at 0."""
    sigma = min(model.sigma_data * strength / max(1 - strength, 1e-9), model.sigma_max)
    return replace(model, sigma_min=min(model.sigma_min, sigma / 10), sigma_max=sigma, tables={}) if sigma else None


def _start_image(
    image: str | Path | Image.Image, model: Model, shape: tuple[int, ...], near: Path | None
) -> tuple[Tensor, str]:
    """The picture to start from, and how a recipe names it."""
    path, description = (
        (image, "a picture given in Python") if isinstance(image, Image.Image) else named(str(image), near)
    )
    channels, height, width = model.image_shape[0], shape[1] * model.factor, shape[2] * model.factor
    return fit_image(path, (channels, height, width)), description


def _prompts(
    model: Model, prompt: str | Sequence[str] | None, negative_prompt: str, n: int, seed: int
) -> list[str] | None:
    """The words of each of n images, their choices made; warns of words that the model cannot know."""
    if prompt is None and not negative_prompt:
        return None
    if model.conditioner is None:
        raise InputError("This model was trained without words. Leave the prompt out, or take model='emoji'.")
    texts = [""] if prompt is None else prompts.several(prompt)
    if negative_prompt and prompts.choose(negative_prompt, 0) != negative_prompt.replace("\\{", "{").replace(
        "\\}", "}"
    ):
        raise InputError("A negative prompt takes no choices {a|b}. Write \\{ and \\} for the signs themselves.")
    for text in dict.fromkeys((*texts, negative_prompt)):
        strange = set(model.conditioner.unknown_words(text))
        prompts.warn_unknown(text, lambda word, strange=strange: word not in strange)
    return [prompts.choose(texts[i % len(texts)], seed + i) for i in range(n)]


def _labels(model: Model, classes: str | int | Sequence[str | int] | None, n: int) -> list[int] | None:
    """The class of each of n images: the given ones, or all, round and round."""
    if classes is None:
        chosen: list[Any] = list(range(len(model.classes)))
    elif isinstance(classes, str):
        chosen = (
            [classes] if classes in model.classes else [part.strip() for part in classes.split(",") if part.strip()]
        )
    else:
        chosen = [classes] if isinstance(classes, int) else list(classes)
    chosen = [-1 if label == "none" and "none" not in model.classes else label for label in chosen]
    if not chosen or (not model.classes and set(chosen) == {-1}):
        return None
    cond = model.cond(chosen)
    indices = [] if cond is None or cond.label is None else cond.label.tolist()
    return [indices[i % len(indices)] for i in range(n)]


def _batches(plan: _Plan) -> list[range]:
    """Which images are made together. ``again`` relies on this being a function of the recipe alone."""
    return [range(plan.n)[first : first + plan.batch_size] for first in range(0, plan.n, plan.batch_size)]


def _batch_of(plan: _Plan, index: int) -> range:
    if index not in range(plan.n):
        raise ValueError(f"picture {index} of a run of {plan.n}")
    return _batches(plan)[index // plan.batch_size]


@torch.no_grad()
def _run(plan: _Plan, only: range | None = None, shown: bool = False) -> Iterator[SampleStep]:
    """All batches of a run, or those of the images in ``only``, which must be whole batches.

    Unless they are ``shown``, estimates of pictures in work are not decoded.
    """
    p, device = plan.parameters, plan.model.device
    rows = only or range(plan.n)
    batches = [batch for batch in _batches(plan) if rows.start <= batch.start < rows.stop]
    size = [side * plan.model.factor for side in plan.shape[1:]]
    images = torch.zeros(len(rows), plan.model.image_shape[0], *size)
    if plan.image is not None:
        images += plan.image
    if plan.table is None:
        yield SampleStep(0, 0, 0.0, images)
        return
    known = None if plan.image is None else plan.model.encode(plan.image[None].to(device))
    for k, batch in enumerate(batches):
        seeds = [p["seed"] + i for i in batch]
        start = resized(seeds, plan.shape, plan.model.shape)
        start = toward_seeds(start, [p["variation_seed"] + i for i in batch], p["variation_strength"])
        cond = None if plan.labels is None else plan.model.cond([plan.labels[i] for i in batch])
        place = images[batch.start - rows.start : batch.stop - rows.start]
        x = (plan.table.sigmas[0] * start).to(device)
        x = x if known is None else known + x
        guided = _conditioned(plan, batch)
        for step in run(guided, x, plan.table, cond, seeds):
            last = step.index + 1 == step.of
            if last or shown:
                place.copy_(plan.model.decode(step.x if last else step.x0))
            yield SampleStep(k * step.of + step.index + 1, len(batches) * step.of, step.sigma, images)


def _conditioned(plan: _Plan, batch: range) -> Denoise:
    """The model's denoiser, told its words and guided: by scale, and as the guides say, which see the words too."""
    p, model = plan.parameters, plan.model
    if plan.prompts is None or model.conditioner is None or plan.table is None:
        return plan.guided(cfg(model.denoise, p["scale"]) if p["scale"] != 1 else model.denoise)
    compiled = prompts.compile(
        [plan.prompts[i] for i in batch],
        model.encode_prompt,
        [row.sigma for row in plan.table.rows],
        p["negative_prompt"],
        model.conditioner.token_spans,
        model.conditioner.max_tokens,
    )
    compiled = replace(compiled, negative=model.null() if compiled.negative is None else compiled.negative)
    if not compiled.single and LABEL_GUIDANCE & set(guidance_spec.names(p["guidance"])):
        raise InputError("Parts that AND joins are guided by scale alone: leave cfg, apg and negative out.")
    return compiled.guide(model.denoise, p["scale"], around=plan.guided)
