"""Sliders: a LoRA whose scale moves images between two prompts, learned without any images.

Gandikota et al. 2023, Concept Sliders (arXiv:2311.12092), eq. 7: with the LoRA at scale s = 1 and -1 the model shall
answer a prompt between the two, c, as it did, moved along what sets them apart:

    D(x, sigma, c) + s * STRENGTH * (D(x, sigma, c_second) - D(x, sigma, c_first))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.dataset import digest
from ...denoisers import expand
from ...errors import InputError
from ...models import Model
from .course import Conditions, Course, drawn
from .images import Examples
from .objective import Objective
from .retention import own_images

STRENGTH = 0.5  # how far a scale of 1 goes, in differences of the two prompts: from the middle to an end
RATE = 1e-3  # there is no subject to learn, and much to lose
IMAGES, HELD_OUT = 24, 3  # of the model's own, of prompts between the two
SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of the previews
SHOWN = 3  # images of each


def opposites(text: str, between: str | None = None) -> dict[str, tuple[str, str]]:
    """The two ends by the prompt between them: "FIRST|SECOND", several with ";".

    What is between two prompts are the words that they share, or what ``between`` says. Raises InputError for a text
    that is not of this form.
    """
    found: dict[str, tuple[str, str]] = {}
    for pair in text.split(";"):
        ends = [" ".join(end.split()) for end in pair.split("|")]
        if len(ends) != 2 or not all(ends) or ends[0] == ends[1]:
            raise InputError(
                f"A slider lies between two prompts, got {pair.strip()!r}. Try 'a red heart|a blue heart'."
            )
        first, second = ends
        shared = [part for part in first.split() if part in second.split()]
        prompt = " ".join(shared) if between is None else between
        if not prompt.strip():
            raise InputError(f"{first!r} and {second!r} share no word. Say what is between: --class-name heart.")
        if prompt in found:
            raise InputError(
                f"Two pairs lie around {prompt!r}, and a prompt can go one way alone. Say more in each pair"
                + (", and leave --class-name out." if between is not None else ", such as 'a red ball|a blue ball'.")
            )
        found[prompt] = (first, second)
    return found


@dataclass(frozen=True)
class Slider(Course):
    """A run that learns a slider from the model's own images.

    Attributes:
        ends: The two prompts, by the one between them.
    """

    ends: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def _at(self, scale: float) -> None:
        assert self.adaptation.lora is not None  # a slider is one
        self.adaptation.lora.scale = scale

    def loss(self, batch: tuple[Any, ...], objective: Objective, texts: Conditions) -> Float[Tensor, " b"]:
        """At one side of the slider: all images of a batch are of one."""
        x0, sigma, noise, prompts, mask, own, sides = batch
        side, n, base = float(sides[0]), len(x0) - int(own.sum()), self.adaptation.base.denoise
        self._at(side)
        with torch.no_grad():
            x = x0 + expand(sigma, x0) * noise
            target = base(x, sigma, texts.of_base(prompts))
            away = [
                base(x[:n], sigma[:n], texts.of_base([self.ends[prompt][i] for prompt in prompts[:n]])) for i in (0, 1)
            ]
            target[:n] += side * STRENGTH * (away[1] - away[0])
        return objective(x0, sigma, noise, texts(prompts), mask, target.to(x0))

    def batches(self, objective: Objective, batch_size: int, seed: int) -> Callable[[int], tuple[Any, ...]]:
        """Both sides in turn."""
        draw = super().batches(objective, batch_size, seed)

        def both(step: int) -> tuple[Any, ...]:
            batch = draw(step)
            return (*batch, torch.full((len(batch[0]),), 1.0 if step % 2 else -1.0))

        return both

    def held_out(self, objective: Objective) -> list[tuple[Any, ...]]:
        """Each image at both sides."""
        return [
            (*batch, torch.full((len(batch[0]),), side))
            for batch in super().held_out(objective)
            for side in (-1.0, 1.0)
        ]

    def measure(
        self, batches: Sequence[tuple[Any, ...]], objective: Objective, texts: Conditions
    ) -> tuple[float, float]:
        """The loss at both sides; and what is retained at scale 1, where the last batch leaves it."""
        measured = super().measure(batches, objective, texts)
        self._at(1.0)
        return measured

    def preview(self) -> tuple[Tensor, int]:
        """A row of scales for each of some seeds."""
        columns = []
        for scale in SCALES:
            self._at(scale)
            columns.append(drawn(self.adaptation.model, self.shown))
        self._at(1.0)
        return torch.stack(columns, 1).flatten(0, 1), len(SCALES)


def examples_of(model: Model, ends: Mapping[str, tuple[str, str]], seed: int, size: int | None = None) -> Examples:
    """The model's own images of the prompts between, some of them held out."""
    prompts, train = [list(ends)[i % len(ends)] for i in range(IMAGES)], IMAGES - HELD_OUT
    latents = own_images(model, prompts, seed + 2000, size)
    name = "; ".join(f"{first} to {second}" for first, second in ends.values())
    return Examples(
        latents, [[text] for text in prompts], None, range(train), range(train, IMAGES), name,
        digest("slider", prompts, list(ends.values()), model.id, seed, STRENGTH, *([] if size is None else [size])),
    )  # fmt: skip


def check(method: str, data: Any, masks: Any) -> None:
    """InputError for what a slider does not take."""
    if data is not None or masks is not None:
        raise InputError("A slider is learned from its two prompts, without images. Leave the folder out.")
    if method != "lora":
        raise InputError(f"A slider is a LoRA, got method={method!r}. Leave --method out.")
