"""A run of ``personalize`` or ``finetune`` as a trainer's task: its batches, its loss, and who looks at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ... import samplers, schedules
from ...denoisers import expand
from ...guidance import Guided
from ...io.atomic import write_json
from ...io.images import grid, save_png
from ...models import Model
from ...noise import Stream, generator, initial
from ...prompts import plain
from ...training.callbacks import Callback
from ...training.task import Part, Task, Updates, rows
from ...training.trainer import Trainer
from ...types import Cond
from .adapting import Adaptation
from .images import Examples, caption
from .objective import Objective, conditions
from .options import AdaptationOptions
from .retention import Retention, compared_images
from .watching import IMAGES, LOOKS, Watch, best, summary

HELD_OUT = 8  # noise levels at which each held-out image is measured
MEASURED = 16  # held-out images that are measured, at most: a look shall cost little beside the steps between two
PREVIEW_STEPS = 8
KEEPING = 4.0  # how much an error on the model's own images counts


class Conditions:
    """Conditions of texts: encoded with gradients where they are trained, else each text once."""

    def __init__(self, adaptation: Adaptation):
        self.model, self.live = adaptation.model, adaptation.reads_texts or adaptation.method == "full"
        self.base, self.kept, self.kept_of_base = adaptation.base, dict[str, Cond](), dict[str, Cond]()

    def __call__(self, texts: Sequence[str]) -> Cond | None:
        """One row for each text; None for a model without prompts."""
        if self.model.conditioner is None:
            return None
        if self.live:
            return conditions(self.model, texts)
        return _once(self.model, texts, self.kept)

    def of_base(self, texts: Sequence[str]) -> Cond | None:
        """The same of the model as it was, whose texts stay what they are."""
        if self.base.conditioner is None:
            return None
        return _once(self.base, texts, self.kept_of_base if self.live else self.kept)


@torch.no_grad()
def _once(model: Model, texts: Sequence[str], kept: dict[str, Cond]) -> Cond:
    for text in texts:
        if text not in kept:  # one by one: what is encoded together would depend on where a run went on
            kept[text] = conditions(model, [text])
    return Cond.cat([kept[text] for text in texts])


@dataclass(frozen=True)
class Course:
    """What a run learns, and how it is measured.

    Attributes:
        adaptation: What is trained.
        examples: On what.
        templates: Texts for images without captions, the plain one first.
        token: The new word; "" without one.
        own: (prompt, latents) of images that the model made, trained on beside; empty without.
        retention: What is measured of what it knew.
        shown: Prompts of the previews, the new word's first.
        compared: Prompts whose images are drawn at the end by the model before and after; none are trained on.
        dropped: Part of the captions that is left out, for guidance.
        identity: What two runs must share to be one.
    """

    adaptation: Adaptation
    examples: Examples
    templates: Sequence[str]
    token: str
    own: Sequence[tuple[str, Tensor]]
    retention: Retention
    shown: Sequence[str]
    compared: Sequence[str] = ()
    dropped: float = 0.0
    identity: Mapping[str, Any] = field(default_factory=dict)

    def loss(self, batch: tuple[Any, ...], objective: Objective, texts: Conditions) -> Float[Tensor, " b"]:
        """Of each image of a batch; on its own images the model is held to what it answered as it was."""
        x0, sigma, noise, prompts, mask, own = batch
        cond, n = texts(prompts), len(x0) - int(own.sum())
        if n == len(x0):
            return objective(x0, sigma, noise, cond, mask)
        with torch.no_grad():  # what it answered, and not what it drew: so nothing pulls at the start
            x = x0[n:] + expand(sigma[n:], x0[n:]) * noise[n:]
            was = self.adaptation.base.denoise(x, sigma[n:], texts.of_base(prompts[n:]))
        each = objective(x0, sigma, noise, cond, mask, torch.cat([x0[:n], was.to(x0)]))
        return torch.cat([each[:n], KEEPING * each[n:]])

    def batches(self, objective: Objective, batch_size: int, seed: int) -> Callable[[int], tuple[Any, ...]]:
        """``draw(step)``: images of the folder, and behind them some that the model made itself."""
        examples, groups = self.examples, self.examples.groups()
        sizes = torch.tensor([len(group) for group in groups], dtype=torch.float)

        def draw(step: int) -> tuple[Any, ...]:
            g = generator(seed, Stream.BATCH_ORDER, step)
            group = groups[int(torch.multinomial(sizes, 1, generator=g))]
            order = torch.randperm(len(group), generator=g).tolist()
            chosen: list[int] = [group[order[i % len(group)]] for i in range(batch_size)]
            choice = torch.rand(len(chosen), 2, generator=generator(seed, Stream.CAPTION, step)).tolist()
            prompts = [
                "" if drop < self.dropped else caption(self.token, self.templates, examples.captions[i], c)
                for i, (c, drop) in zip(chosen, choice, strict=True)
            ]
            x0 = [examples.latents[i] for i in chosen]
            masks = None if examples.masks is None else [examples.masks[i] for i in chosen]
            if self.own and x0[0].shape == self.own[0][1].shape:
                some = torch.randperm(len(self.own), generator=g)[: max(batch_size // 2, 1)].tolist()
                prompts += [self.own[i][0] for i in some]
                x0 += [self.own[i][1] for i in some]
                masks = None if masks is None else masks + [torch.ones_like(masks[0])] * len(some)
            even = schedules.stratified(len(x0), generator(seed, Stream.BATCH_SIGMA, step))
            noise = torch.randn(len(x0), *x0[0].shape, generator=generator(seed, Stream.BATCH_NOISE, step))
            mask = None if masks is None else torch.stack(masks)
            own = torch.arange(len(x0)) >= len(chosen)
            return torch.stack(x0), objective.sigmas(even), noise, prompts, mask, own

        return draw

    def held_out(self, objective: Objective) -> list[tuple[Any, ...]]:
        """A batch for each held-out image: the same noise and levels at every look."""
        examples, batches = self.examples, []
        u = (torch.arange(HELD_OUT) + 0.5) / HELD_OUT
        for i in examples.held_out[:: -(-len(examples.held_out) // MEASURED)]:
            x0 = examples.latents[i]
            noise = torch.randn(HELD_OUT, *x0.shape, generator=generator(0, Stream.BATCH_NOISE, 1 << 21, i))
            texts = [caption(self.token, self.templates, examples.captions[i], 0.0)] * HELD_OUT
            mask = None if examples.masks is None else examples.masks[i].expand(HELD_OUT, -1, -1, -1)
            x0 = x0.expand(HELD_OUT, *x0.shape)
            batches.append((x0, objective.sigmas(u), noise, texts, mask, torch.zeros(HELD_OUT)))
        return batches

    def measure(
        self, batches: Sequence[tuple[Any, ...]], objective: Objective, texts: Conditions
    ) -> tuple[float, float]:
        """The loss on held-out images, and the retention."""
        device, total, count = self.adaptation.model.device, 0.0, 0
        for batch in batches:
            each = self.loss(rows(batch, slice(None), device), objective, texts)
            total, count = total + float(each.sum()), count + len(each)
        return total / count, self.retention(self.adaptation.model)

    def preview(self) -> tuple[Tensor, int]:
        """What the model draws now of fixed prompts, from fixed seeds, and how many images stand in a row."""
        return drawn(self.adaptation.model, self.shown), max(len(self.shown) // 2, 1)

    def compare(self, folder: Path, seed: int, size: int | None) -> None:
        """Note, and show, what is left of what the model drew."""
        left, images = compared_images(self.adaptation.base, self.adaptation.model, self.compared, seed, size)
        write_json(folder / IMAGES, {"retained": round(left, 4), "images": len(self.compared)})
        save_png(grid(images.cpu(), len(self.compared), max(1, 96 // images.shape[-1])), folder / "compared.png")


def run(
    course: Course, options: AdaptationOptions, command: str, arguments: Mapping[str, Any]
) -> tuple[Trainer, Watch]:
    """Train; the same call goes on where the last one stopped. Returns the trainer and who looked at it."""
    adaptation, folder = course.adaptation, Path(str(options.folder))
    objective, texts = Objective(adaptation.model), Conditions(adaptation)

    def loss(batch: tuple[Any, ...]) -> Tensor:
        return course.loss(batch, objective, texts)

    held_out = course.held_out(objective)

    def measure() -> tuple[float, float]:
        return course.measure(held_out, objective, texts)

    def write(place: Path) -> Mapping[str, Any]:
        chosen = watch.restore()
        adaptation.write(place, {"step": 0 if chosen is None else chosen.step})
        watch.show(place / "preview.png")
        (place / IMAGES).unlink(missing_ok=True)  # of an earlier end
        if course.compared and not trainer.stopped:
            course.compare(place, options.seed, options.size)
        notes = summary(place, watch.looks, options.floor, trainer.state.ended)
        return {**notes, "notes": " ".join(course.examples.notes)} if course.examples.notes else notes

    lr = options.lr if options.lr is not None else adaptation.rate
    part = Part(adaptation.part, loss, adaptation.optimizer, lr)
    n = len(course.examples.train)
    draw = course.batches(objective, options.batch_size, options.seed)
    task = Task(
        {"adaptation": part}, draw, {**course.identity, "data": course.examples.fingerprint},
        f"{course.examples.name}: {n} images", command=command, arguments=arguments,
        modules=list(adaptation.model.modules.values()), updates=Updates(warmup=20, decay=0.3), write=write,
        file=adaptation.file,
    )  # fmt: skip
    trainer = Trainer(task, options)
    steps = options.budget["steps"] or options.usual_steps
    every = max(steps // LOOKS, 5)
    watch = Watch(folder, adaptation.part, every, measure, course.preview, options.floor, options.early_stop)
    watch.prepare(trainer, options.fresh)
    jobs: list[Callback] = [watch]
    trainer.fit(**options.budget, callbacks=jobs)
    watch.restore()
    return trainer, watch


@torch.no_grad()
def drawn(model: Model, prompts: Sequence[str], steps: int = PREVIEW_STEPS, seed: int = 0) -> Tensor:
    """An image of each prompt, under the model's own guidance; image i has seed + i."""
    n, table = len(prompts), model.table(steps)
    denoise: Any = model.denoise
    cond = model.null(n) if model.conditioner is None else conditions(model, [plain(text) for text in prompts])
    if model.scale != 1 and model.guidance == "cfg":
        guided: Guided = model.guide(denoise, model.scale, model.null(n))
        denoise = guided
    x = table.sigmas[0] * initial(range(seed, seed + n), model.shape).to(model.device)
    return model.decode(samplers.final(samplers.run(denoise, x, table, cond, range(n)))).float().clamp(-1, 1)


def notes_of(watch: Watch, trainer: Trainer, options: AdaptationOptions) -> list[str]:
    """What a person should know of a run, in sentences."""
    facts = summary(watch.folder, watch.looks, options.floor, trainer.state.ended)
    return [f"{name}: {text}." for name, text in facts.items()]


def kept_step(watch: Watch, options: AdaptationOptions) -> int:
    """The step whose weights were kept."""
    return best(watch.looks, options.floor).step if watch.looks else 0
