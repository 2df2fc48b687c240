"""A run of ``sample`` with all its choices made, and how it is performed.

Image i has seed + i and a class of its own, and depends on nothing else: neither how many are made nor in what batches.
Floating-point kernels still round differently for different batch sizes (by about 1e-6), so an image's recipe also says
which batch it came from; ``reproduce`` makes that batch, and with it the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ... import prompts, schedules
from ...errors import CheckpointError, InputError, warn
from ...guidance import cfg, embedded, inpaint
from ...guidance.regional import Region, regional
from ...io.guarded import BUDGET
from ...io.images import open_image
from ...io.mark import SMALLEST, mark
from ...models import Model, Size
from ...models.registry import named, short_name
from ...nets.seamless import seamless
from ...noise import Fresh, resized, toward_seeds
from ...samplers import Table, run, strength_table
from ...schedules import Sigmas
from ...types import Cond, Denoise
from ...version import __version__
from ..loading import loaded, of_run, settings
from . import guidance_spec
from .canvas import Canvas, canvas
from .classes import labels_of
from .conditioning import (
    conditioned,
    fetched,
    idle_notes,
    learned_size,
    on_torus,
    size_notes,
    sized,
    step_of,
    with_extra,
)  # fmt: skip
from .meter import Meter
from .options import SampleOptions, borders, image_size
from .preview import linear_preview
from .regions import Place, parse_regions
from .rng import THEIRS, caveats, unlike
from .samples import RECIPE, Samples, SampleStep
from .upscale import upscaled

LABEL_GUIDANCE = {
    "cfg",
    "apg",
    "cfg_zero",
    "negative",
}  # these compare with and without the condition, as ``scale`` does
NEGATIVE_SCALE = 2.0  # by default, where a negative prompt is given and the model has no scale of its own
LARGEST = 2**33  # values that one run may hold: a recipe may come from an untrusted source


@dataclass(frozen=True)
class Plan:
    """A run, all its choices made.

    Attributes:
        model: What makes the images.
        name: Of the model, as the recipe calls it.
        options: Of ``sample``, as the recipe keeps them: files and guidance by name and content, the scale filled in.
        table: The sampler's; None at strength 0, where the result is the image itself.
        labels: One per image, -1 is unconditional; None without classes.
        prompts: One per image; None without prompts.
        shape: Of what the denoiser works on.
        guided: What ``options.guidance`` does to a denoiser.
        regions: Places with a prompt of their own, one for each image.
        canvas: The image that is started from, and its mask.
        kept: Canvases whose pixels results hold, where their masks are 0: that one's, and those of the guidance.
        notes: What a person should know, in sentences.
    """

    model: Model
    name: str
    options: SampleOptions
    table: Table | None
    labels: list[int] | None
    prompts: list[str] | None
    shape: tuple[int, ...]
    guided: Callable[[Denoise], Denoise]
    regions: tuple[tuple[Place, list[str]], ...] = ()
    canvas: Canvas | None = None
    kept: tuple[Canvas, ...] = ()
    notes: tuple[str, ...] = ()

    def decode(self, latents: Tensor) -> Tensor:
        """The images of latents, with the pixels that inpainting keeps, and what the autoencoder loses of an image."""
        with self.torus():
            images = self.model.decode(latents)
        strength = self.options.strength
        if self.canvas is not None and self.model.autoencoder is not None and strength is not None and strength < 1:
            images = self.canvas.without_loss(images, self._copy.to(images), strength)
        return self._held(images)

    def torus(self) -> AbstractContextManager[None]:
        """Where the edges of images continue on the other side, if they are to."""
        return nullcontext() if self.options.seamless is None else seamless(self.options.seamless)

    def preview(self, latents: Tensor) -> Tensor:
        """The same without the autoencoder's decoder, in no time: see ``preview``."""
        factor, frames = self.model.factor, getattr(self.model.autoencoder, "temporal_factor", 1)
        images = linear_preview(self.model)(latents).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        if frames > 1:  # the first one of a film is encoded alone
            images = images.repeat_interleave(frames, 2)[:, :, frames - 1 :]
        return self._held(images)

    def _held(self, images: Tensor) -> Tensor:
        for each in self.kept:
            images = each.hold(images)
        return images if self.canvas is None else self.canvas.crop(images)

    @cached_property
    def known(self) -> Tensor:
        """The canvas as the denoiser knows it, (1, *shape)."""
        assert self.canvas is not None
        with self.torus():
            return self.model.encode(self.canvas.image[None].to(self.model.device))

    @cached_property
    def _copy(self) -> Tensor:
        """What the autoencoder makes of the canvas."""
        with self.torus():
            return self.model.decode(self.known)

    def _conditioned_on_image(self) -> Denoise:
        """The model's denoiser; a network that was trained to inpaint takes the kept image and its mask as inputs."""
        denoise, inpainting = self.model.denoise, getattr(self.model.denoise, "inpainting", None)
        if self.options.seamless is not None:
            denoise = on_torus(denoise, self.options.seamless)
        masked = [(each.image, each.mask) for each in self.kept if each.mask is not None]
        if inpainting is None or not masked:
            return denoise
        return with_extra(denoise, inpainting(*(part[None].to(self.model.device) for part in masked[-1])))

    def guide(self, denoise: Denoise) -> Denoise:
        """A denoiser under the guidance of the options, and held to what the mask keeps."""
        denoise = self.guided(denoise)
        if self.canvas is None or self.canvas.mask is None or hasattr(self.model.denoise, "inpainting"):
            return denoise
        return inpaint(denoise, self.known, self.canvas.latent_mask(self.model.factor), self.model.sigma_data)

    @property
    def batches(self) -> list[range]:
        """Which images are made together. ``reproduce`` relies on this being a function of the recipe alone."""
        n, size = self.options.n, self.options.batch_size
        return [range(n)[first : first + size] for first in range(0, n, size)]

    @property
    def nfe(self) -> int:
        """Number of function evaluations of the whole run, as the progress bar counts them."""
        return self.table.nfe * len(self.batches) if self.table else 0

    def batch_of(self, index: int) -> range:
        """The batch of an image."""
        if index not in range(self.options.n):
            raise ValueError(f"image {index} of a run of {self.options.n}")
        return self.batches[index // self.options.batch_size]

    def conditioned(self, batch: range, compiled: prompts.Compiled | None = None) -> tuple[Denoise, Cond | None]:
        """The denoiser of a batch, conditioned on its prompts and guided, and the condition that it is called with.

        ``compiled`` stands for what the batch's prompts compile to.
        """
        p, model = self.options, self.model
        scale, denoise = 1.0 if p.scale is None else p.scale, self._conditioned_on_image()
        if model.guidance == "embedded":  # an input of the network, which leaves classifier-free guidance off
            scale, denoise = 1.0, embedded(denoise, scale)
        conditioner = model.conditioner
        if self.prompts is None or conditioner is None or self.table is None:
            denoise = cfg(denoise, scale) if scale != 1 else denoise
            null = None if conditioner is None else conditioner.null(len(batch), self.size)
            cond = null if self.labels is None else model.cond([self.labels[i] for i in batch])
            return self.guide(denoise), cond
        guide, names = model.guide if scale != 1 else None, {*guidance_spec.names(str(p.guidance or ""))}
        compiled = self.compiled(self.prompts, batch) if compiled is None else compiled
        if (self.regions or not compiled.single) and (LABEL_GUIDANCE | {"cads"}) & names:
            what = "Regions" if self.regions else "Prompts joined by AND"
            raise InputError(f"{what} are guided by scale alone. Leave cfg, apg, negative and cads out.")
        if self.regions:
            step, (height, width) = getattr(model.denoise, "patch", 1), self.shape[-2:]
            parts = [
                Region(self.compiled(texts, batch).guide(denoise, scale, guide), place.box(height, width, step))
                for place, texts in self.regions
            ]
            size = model.shape[-2], model.shape[-1]
            return self.guide(regional(compiled.guide(denoise, scale, guide), parts, size)), None
        return compiled.guide(denoise, scale, guide, self.guide), None

    def compiled(self, texts: Sequence[str], batch: range) -> prompts.Compiled:
        """The prompts of a batch, of those of all images, as conditions."""
        conditioner, p = self.model.conditioner, self.options
        assert conditioner is not None and self.table is not None
        other = getattr(conditioner, "negative", conditioner)
        reader = partial(other.encode, size=self.size), other.token_spans, other.max_tokens
        return prompts.compile(
            [texts[i] for i in batch],
            partial(self.model.encode_prompt, size=self.size),
            self.table.nfe,
            p.negative_prompt,
            conditioner.token_spans,
            conditioner.max_tokens,
            conditioner.null(len(batch), self.size),
            getattr(conditioner, "measure", None),
            None if other is conditioner else reader,
        )

    @property
    def size(self) -> Size | None:
        """Height and width of the images in pixels; None where the samples are no images."""
        return _pixels(self.model, self.shape)

    def samples(self, images: Tensor, indices: range) -> Samples:
        """The images of a run that was performed, with its recipe; raises CheckpointError if they are not finite."""
        if not bool(images.isfinite().all()):
            rounded = getattr(getattr(self.model.denoise, "net", None), "dtype", None) == torch.float16
            remedy = "or try --precision bf16" if rounded else "take an earlier checkpoint, or train on"
            raise CheckpointError(f"{self.name} makes images that are not finite. Guide it less, {remedy}.")
        recipe = {
            "fastdiffusion": __version__,
            "recipe": RECIPE,
            "verb": "sample",
            "model": {
                "name": self.name,
                "sha256": self.model.info.get("base_id", self.model.id),
                **settings(self.model),
            },
            "parameters": of_run(vars(self.options)),
            "table": None if self.table is None else json.loads(self.table.to_json()),
        }
        labels = [-1 if self.labels is None else self.labels[i] for i in indices]
        names = tuple(self.model.classes[label] if label >= 0 else "" for label in labels)
        names = names if self.prompts is None else tuple(self.prompts[i] for i in indices)
        seeds = tuple(self.options.seed + i * (self.options.rng != "comfy") for i in indices)
        images = images.detach() if self.size is None else images.detach().clamp(-1, 1)
        return Samples(images, seeds, names, tuple(indices), recipe, self.notes)

    def finish(self, images: Tensor) -> Tensor:
        """What is done to the images after the run."""
        if self.options.upscale:
            images = upscaled(images, self.options.upscale, self.model.device)
        return mark(images.clamp(-1, 1)) if self.options.mark else images

    def noise(self, batch: range) -> tuple[Tensor, Fresh | None]:
        """What a batch starts from, on the CPU; and where its later noise comes from, if not as usual."""
        p, fresh = self.options, None
        if p.rng == "own":
            noise = resized([p.seed + i for i in batch], self.shape, self.model.shape)
        else:
            fresh = THEIRS[p.rng](p.seed, p.n, batch, self.shape, self.model.device)
            noise = fresh.initial()
            fresh = None if unlike(self.table) else fresh
        return toward_seeds(noise, [p.variation_seed + i for i in batch], p.variation_strength), fresh


@torch.no_grad()
def perform(plan: Plan, only: range | None = None) -> Iterator[SampleStep]:
    """All batches of a run, evaluation by evaluation, or those of the images in ``only``, which are whole batches."""
    p, model = plan.options, plan.model
    rows = only or range(p.n)
    batches = [batch for batch in plan.batches if rows.start <= batch.start < rows.stop]
    blank = torch.zeros(*model.image_shape[:-2], *(plan.size or model.image_shape[-2:]))
    blank = blank if plan.canvas is None else plan.canvas.crop(plan.canvas.image)
    if plan.table is None:
        yield SampleStep(0, 0, 0.0, (), None, blank.expand(len(rows), *blank.shape), plan.decode, plan.preview)
        return
    start = 0.0 if plan.canvas is None or p.strength == 1 else plan.known
    finished: list[Tensor] = []
    for k, batch in enumerate(batches):
        (noise, fresh), (denoise, cond), meter = plan.noise(batch), plan.conditioned(batch), Meter(model)
        x = start + (plan.table.sigmas[0] * noise).to(model.device)
        for step in run(meter.around(denoise), x, plan.table, cond, [p.seed + i for i in batch], fresh):
            last = step.index + 1 == step.of
            seconds, evaluations = meter.cost()
            if last:
                finished.append(plan.decode(step.x).cpu())
            left = len(rows) - (batch.start - rows.start) - len(batch)
            yield SampleStep(
                k * step.of + step.index + 1,
                len(batches) * step.of,
                step.sigma,
                tuple(finished),
                None if last else step.x0,
                blank.expand(left, *blank.shape),
                plan.decode,
                plan.preview,
                seconds,
                evaluations,
            )


# ---- the choices --------------------------------------------------------------------------------------------------


def plan(
    model: Model | str | Path,
    chosen: SampleOptions,
    table: Table | None = None,
    name: str = "",
    near: Path | None = None,
) -> Plan:
    """Make the choices of a run, or raise the errors of ``sample``.

    A recipe brings its ``table`` and ``name``; its files are looked for ``near`` its image.
    """
    chosen = fetched(model, chosen)
    ready = loaded(model, chosen)
    (source, image_name), (mask, mask_name) = _file(chosen.image, near), _file(chosen.mask, near)
    image = None if source is None else open_image(source)
    chosen = sized(ready, chosen, image)
    sides = _sides(ready, chosen, image)
    begun = image is not None and getattr(ready.denoise, "image", "") != "input"  # that one is a condition
    shape = _shape(ready, chosen, sides, begun)
    sides = sides or _pixels(ready, shape)
    under = conditioned(ready, chosen, _pixels(ready, shape), image, near)
    ready, chosen, image = under.model, under.options, under.image
    if chosen.prompt is not None and chosen.classes is not None:
        raise InputError("Give a prompt or classes, not both.")
    labels, (texts, notes) = labels_of(ready, chosen), _prompts(ready, chosen)
    regions = _regions(ready, chosen, shape)
    if regions:
        texts = texts or [""] * chosen.n
        notes += prompts.notes(ready.conditioner, [text for _, parts in regions for text in parts])
    setting = guidance_spec.Setting(ready, shape, near, size=sides)
    guided, recorded = guidance_spec.parse_guidance(chosen.guidance, setting)
    drawn = None
    if image is not None:
        if len(shape) != 3:
            raise InputError("This model makes no single images, and starts from none. Leave image out.")
        around = None if chosen.outpaint is None else borders(chosen.outpaint)
        drawn = canvas(image, setting.image_shape, mask, around, source, step_of(ready)).only(ready, chosen.only)
    options = replace(
        chosen,
        prompt=chosen.prompt if chosen.prompt is None or isinstance(chosen.prompt, str) else list(chosen.prompt),
        classes=chosen.classes if isinstance(chosen.classes, str | int | None) else list(chosen.classes),
        guidance=recorded,
        scale=_scale(ready, chosen, bool(LABEL_GUIDANCE & set(guidance_spec.names(recorded)))),
        image=image_name,
        mask=mask_name,
    )
    if table is None:
        table = _table(ready, options, _pixels(ready, shape))
    kept = [*setting.kept, *([] if drawn is None else [drawn])]
    if regions and hasattr(ready.denoise, "inpainting") and any(each.mask is not None for each in kept):
        raise InputError("A network that was trained to inpaint takes no regions beside its mask. Leave one out.")
    notes += [note for each in kept for note in each.notes]
    notes += [
        *idle_notes(chosen),
        *caveats(options.rng, table),
        *([] if chosen.regions else size_notes(ready, sides)),
    ]  # a region shows a thing each
    if chosen.mark:
        notes += _mark_notes(ready, shape, any(each.mask is not None for each in kept))
    for note in (notes := list(dict.fromkeys(notes))):
        warn(note)
    if image is None and table is not None and chosen.sampler is None and chosen.schedule is None:
        notes += filter(None, [ready.table_note(table, options.steps, _pixels(ready, shape), options.scale)])
    name = name or short_name(model)
    return Plan(ready, name, options, table, labels, texts, shape, guided, regions, drawn, tuple(kept), tuple(notes))


def _sides(model: Model, chosen: SampleOptions, image: Image.Image | None) -> Size | None:
    """Height and width of results: as asked for, of what is outpainted, or as the model learned; None is its own."""
    sides = image_size(chosen.size)
    if sides is None and image is not None and chosen.outpaint is not None:
        left, top, right, bottom = borders(chosen.outpaint)
        sides = (image.height + top + bottom, image.width + left + right)
    return sides or (None if model.info.get("size") is None else learned_size(model))


def _shape(model: Model, chosen: SampleOptions, sides: Size | None, begun: bool) -> tuple[int, ...]:
    """Of what the denoiser works on, for results of these sides; ``begun`` says that there is an image to extend."""
    shape = model.shape
    if sides is not None:
        if len(shape) < 3:
            raise InputError(f"This model makes no images, and takes no size. Leave out size={chosen.size!r}.")
        step = step_of(model)
        height, width = (-(-side // step) * step for side in sides)
        if (height, width) != sides and (not begun or chosen.seamless is not None):
            near = f"{width}x{height}"
            raise InputError(
                f"This model makes sizes that divide by {step}, got {sides[1]}x{sides[0]}. Nearest is {near}: "
                f"try size={near!r} (--size {near})."
            )
        shape = (*shape[:-2], height // model.factor, width // model.factor)
    if chosen.n * math.prod(shape) > LARGEST:
        sizes = "x".join(map(str, shape[1:]))
        raise InputError(f"{chosen.n} images of {sizes} are too many for one run. Make fewer at a time.")
    return shape


def _pixels(model: Model, shape: tuple[int, ...]) -> Size | None:
    return (shape[-2] * model.factor, shape[-1] * model.factor) if len(shape) > 2 else None


def _table(model: Model, chosen: SampleOptions, size: Size | None) -> Table | None:
    """The sampler's table: all the way, or from the noise level that ``strength`` names; None where that is 0."""
    if chosen.image is None or chosen.strength == 1:
        return model.table(chosen.steps, chosen.sampler, chosen.schedule, size, chosen.scale)

    def schedule(n: int) -> Sigmas:
        if chosen.schedule is None:
            return model.schedule(n, size)
        return schedules.schedule(chosen.schedule, n, sigma_min=model.sigma_min, sigma_max=model.sigma_max)

    sampler = chosen.sampler or model.sampler
    assert chosen.strength is not None  # ``SampleOptions`` has chosen
    return strength_table(chosen.strength, chosen.steps, schedule, model.sigma_data, model.sigma_max, sampler)


def _scale(model: Model, chosen: SampleOptions, guided: bool) -> float:
    """The scale of a run; ``guided`` says that the guidance compares with and without the condition itself."""
    scale, embedded = chosen.scale, model.guidance == "embedded"
    if scale is None:
        asked = chosen.prompt is not None or chosen.regions is not None or chosen.image_prompt or embedded
        own = model.scale if asked else 1.0
        compared = 1.0 if guided else NEGATIVE_SCALE if chosen.negative_prompt and own == 1 else own
        scale = own if embedded else compared
    if not abs(scale) <= BUDGET.number:
        raise InputError(f"scale must be finite, got {scale!r}. 1 is off, 2 to 4 is usual.")
    if chosen.negative_prompt and not guided and embedded:
        warn("A negative prompt does nothing here: add guidance='cfg scale=3'.")
    elif chosen.negative_prompt and not guided and scale == 1:
        warn("A negative prompt does nothing at scale 1, which is off. Try scale=3.")
    if scale != 1 and guided and not embedded:
        raise InputError("scale and this guidance would both guide by the label. Leave scale out.")
    return scale


def _file(image: str | Path | Image.Image | None, near: Path | None) -> tuple[Path | Image.Image | None, str | None]:
    """An image or its file, and how a recipe names it."""
    if image is None or isinstance(image, Image.Image):
        return image, None if image is None else "an image given in Python"
    return named(str(image), near)


def _prompts(model: Model, chosen: SampleOptions) -> tuple[list[str] | None, list[str]]:
    """The prompt of each image, its choices {a|b} made, or None without any; and what is to be said of them."""
    prompt, negative = chosen.prompt, chosen.negative_prompt
    if prompt is None and not negative and not chosen.image_prompt:
        return None, []
    if model.conditioner is None:
        raise InputError("This model was trained without captions. Leave the prompt out, or take model='emoji'.")
    texts = [""] if prompt is None else prompts.several(prompt)
    if negative and prompts.choose(negative, 0) != negative.replace("\\{", "{").replace("\\}", "}"):
        raise InputError("A negative prompt takes no choices {a|b}. Write \\{ and \\} for the signs themselves.")
    wanted = [prompts.choose(texts[i % len(texts)], chosen.seed + i) for i in range(chosen.n)]
    return wanted, prompts.notes(model.conditioner, (*wanted, negative))


def _mark_notes(model: Model, shape: tuple[int, ...], keeps: bool) -> list[str]:
    """What is to be said of the mark; raises InputError where the samples have no room for it."""
    size = _pixels(model, shape)
    if size is None or len(shape) != 3 or min(size) < SMALLEST:
        raise InputError(f"The mark needs images of at least {SMALLEST} pixels a side. Leave mark out.")
    return ["The mark changes pixels that the mask keeps, too, by a few of 255."] if keeps else []


def _regions(model: Model, chosen: SampleOptions, shape: tuple[int, ...]) -> tuple[tuple[Place, list[str]], ...]:
    """The regions, with the prompt of each image, its choices {a|b} made."""
    if chosen.regions is None:
        return ()
    if model.conditioner is None or chosen.classes is not None or len(shape) < 3:
        raise InputError("Regions have prompts: they are for images of a model with captions. Leave regions out.")
    regions = parse_regions(chosen.regions)
    for place, _ in regions:
        place.box(shape[-2], shape[-1], getattr(model.denoise, "patch", 1))
    return tuple((place, [prompts.choose(text, chosen.seed + i) for i in range(chosen.n)]) for place, text in regions)
