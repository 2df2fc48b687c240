"""New images from a model: ``sample``, and evaluation by evaluation ``sample_steps``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import counted
from ...io.images import read_image, to_tensor
from ...models import Model
from ...models.registry import model_and_prompt
from ...options import fill
from ...progress import Progress
from .checking import Checker, flagged, load_checker, withheld
from .options import SampleOptions
from .plan import perform, plan
from .samples import Samples, SampleStep, is_file


def sample(
    model: Model | str | Path = "emoji",
    prompt: str | Sequence[str] | None = None,
    *,
    checker: Checker | str | None = None,
    **options: Any,
) -> Samples:
    """Make new images.

    Args:
        model: A model, its file, the folder of its training run, or the name of one that ships ("emoji"); or the
            prompt itself, which that one draws.
        prompt: What to draw, for a text-to-image model; several in a list, or in lines.
        checker: A function of finished images (n, c, h, w) in [-1, 1] that says of each whether to withhold it, or
            "module:function". Withheld images are grey, are not written, and ``withheld`` of the result says which.
        options: See :class:`SampleOptions <fastdiffusion.tasks.generation.options.SampleOptions>`: n, steps, seed,
            scale, classes, negative_prompt, guidance, image, strength, size, ...

    Raises:
        InputError: An option that does not exist or a value that cannot be used.
        CheckpointError: A model file that cannot be read, or whose images are not finite.
    """
    model, prompt = model_and_prompt(model, prompt)
    check = load_checker(checker)
    ready = plan(model, fill(SampleOptions, prompt=prompt, **options))
    last = deque(Progress(perform(ready), "sampling", ready.nfe), maxlen=1).pop()
    return _checked(ready.samples(ready.finish(last.images), range(ready.options.n)), check)


def _checked(made: Samples, checker: Checker | None) -> Samples:
    """What a checker lets through, the rest grey."""
    flags = flagged(made.images, checker)
    if not any(flags):
        return made
    note = f"{sum(flags)} of {counted(len(made), 'image')} withheld by the checker."
    return replace(made, images=withheld(made.images, flags), withheld=flags, notes=(*made.notes, note))


def sample_to(
    out: str | Path,
    model: Model | str | Path = "emoji",
    prompt: str | Sequence[str] | None = None,
    *,
    metadata: bool = True,
    format: str = "png",
    sidecar: bool = False,
    watch: Callable[[SampleStep], None] | None = None,
    checker: Checker | str | None = None,
    **options: Any,
) -> tuple[Samples, list[Path]]:
    """Like :func:`sample`, each batch written to ``out`` as soon as it is done: see :meth:`Samples.save`.

    Batches that lie there already, by the same recipe, are read and not made again: what was interrupted goes on.
    ``watch`` is called with every step of those that are made, one batch after the other.
    """
    model, prompt = model_and_prompt(model, prompt)
    check = load_checker(checker)
    ready = plan(model, fill(SampleOptions, prompt=prompt, **options))
    is_file(out, ready.options.n)
    parts: list[Samples] = []
    paths: list[Path] = []
    with Progress(desc="sampling", total=ready.nfe) as bar:
        for batch in ready.batches:
            names = ready.samples(torch.zeros(len(batch), *ready.model.image_shape), batch)
            before = names.saved_before(out, metadata, format, sidecar) if metadata or sidecar else None
            if before is not None:
                bar.update(ready.nfe // len(ready.batches))
                known = replace(names, images=torch.stack([to_tensor(read_image(path)) for path in before]))
                parts.append(_checked(known, check))
                flags = parts[-1].withheld or (False,) * len(before)
                paths += [path for path, flag in zip(before, flags, strict=True) if not flag]
                continue
            images = names.images
            for step in perform(ready, batch):
                bar.update(step.of > 0)
                if watch is not None:
                    watch(step)
                if step.done == step.of:
                    images = step.images
            parts.append(_checked(ready.samples(ready.finish(images), batch), check))
            paths += parts[-1].save(out, metadata=metadata, format=format, sidecar=sidecar)
    all_flags = tuple(flag for part in parts for flag in part.withheld or (False,) * len(part))
    made = ready.samples(torch.cat([part.images for part in parts]), range(ready.options.n))
    return replace(made, withheld=all_flags if any(all_flags) else ()), paths


def sample_steps(
    model: Model | str | Path = "emoji", prompt: str | Sequence[str] | None = None, **options: Any
) -> Iterator[SampleStep]:
    """The same, evaluation by evaluation, for a live preview; takes what :func:`sample` takes.

    No checker sees these: show them only to who may see all. To stop is to stop iterating. Latents are decoded only for
    the steps whose ``images`` are asked for.
    """
    model, prompt = model_and_prompt(model, prompt)
    return perform(plan(model, fill(SampleOptions, prompt=prompt, **options)))
