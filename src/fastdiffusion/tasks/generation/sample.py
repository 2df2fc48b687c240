"""New images from a model: ``sample``, and evaluation by evaluation ``sample_steps``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...models import Model
from ...options import fill
from .options import SampleOptions
from .plan import perform, plan
from .samples import Samples, SampleStep


def sample(model: Model | str | Path = "emoji", prompt: str | Sequence[str] | None = None, **options: Any) -> Samples:
    """Make new images.

    Args:
        model: A model, its file, the folder of its training run, or the name of one that ships ("emoji").
        prompt: What to draw, for a text-to-image model; several in a list, or in lines.
        options: See :class:`SampleOptions <fastdiffusion.tasks.generation.options.SampleOptions>`: n, steps, seed,
            scale, classes, negative_prompt, guidance, image, strength, size, ...

    Raises:
        InputError: An option that does not exist or a value that cannot be used.
        CheckpointError: A model file that cannot be read, or whose images are not finite.
    """
    ready = plan(model, fill(SampleOptions, prompt=prompt, **options))
    last = deque(tqdm(perform(ready), "sampling", ready.nfe, disable=None, leave=False), maxlen=1).pop()
    return ready.samples(last.images, range(ready.options.n))


def sample_steps(
    model: Model | str | Path = "emoji", prompt: str | Sequence[str] | None = None, **options: Any
) -> Iterator[SampleStep]:
    """The same, evaluation by evaluation, for a live preview; takes what :func:`sample` takes.

    To stop is to stop iterating. Latents are decoded only for the steps whose ``images`` are asked for.
    """
    return perform(plan(model, fill(SampleOptions, prompt=prompt, **options)))
