"""Several answers to one image, weighed by a trial: how near each comes to the truth where the truth is known.

A photograph made small looks like a photograph. So the image itself, small enough to be sharp, is degraded as it was,
and every answer is tried on it. Of the answers to the whole image, that mixture is taken which came nearest there. What
was given is one of them: a model that takes this image's texture for noise, or sharpens what is not there, shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ...corruptions import Chain, Corruption, Step
from ...io.images import to_array, to_pil, to_tensor, to_uint8
from ...models import Model
from .blind_deblurring import liveliest
from .colorization import luminance
from .inputs import Inputs, has_answers
from .jpeg_files import left_over
from .measurement import Measurement
from .method import BLURS, learned, shrinking
from .options import RestoreOptions
from .tiled import TiledRestoration

MOST, LEAST = 384, 48  # sides of an image that a trial is made with
SHARES = 20  # weights are multiples of one part in as many
ROWS = 256  # that are mixed at a time
Pixels = UInt8[Tensor, "c h w"]


@dataclass(frozen=True)
class Trial:
    """An image that was blurred or made smaller, and then rounded or noisy.

    Attributes:
        image: What was given.
        head: What happened first.
        tail: What happened last: noise and JPEG, in some order.
        model: A restorer that undoes either alone.
        joint: Whether it undoes both together. Of what was only blurred it then makes what it makes of the tail alone,
            since it works from the image alone, whatever happened to it.
        options: As the caller gave them.
    """

    image: Image.Image
    head: Chain
    tail: Chain
    model: Model
    joint: bool
    options: RestoreOptions

    @classmethod
    def of(cls, found: Inputs, model: Model, options: RestoreOptions) -> Trial | None:
        """None where there is one answer only."""
        head, tail = Chain(found.what.steps), Chain(found.last.steps)
        if found.degraded is None or not has_answers(head, tail, model, options):
            return None
        joint = learned(model, Chain((*head.parts, *tail.parts))) and not all(step.name in BLURS for step in head.steps)
        return cls(found.degraded, head, tail, model, joint, options)

    def run(self) -> UInt8[Tensor, "1 c h w"]:
        """The mixture of the answers that the trial finds."""
        found = self.answers(self.image)
        truth = self._truth(found[-1])
        if min(truth.shape[1:]) < LEAST:
            weights = [1 / len(found)] * len(found)
        else:
            happened = Chain((*self.head.parts, *self.tail.parts))
            degraded = happened.on(tuple(truth.shape), [1]).forward(to_tensor(truth)[None])
            weights = mixture(self.answers(to_pil(to_uint8(degraded)[0])), truth)
        return mixed(found, weights)[None]

    def answers(self, image: Image.Image) -> list[UInt8[Tensor, "c h w"]]:
        """What was given, as large as the others; without its tail; all undone together; and one after the other."""
        # an open quality: the estimate as it is, not led back to the file, since the trial weighs it
        tail = Step("jpeg") if len(self.tail.steps) == 1 and self.tail.steps[0].name == "jpeg" else self.tail
        last = to_pil(self._run(image, tail, "supervised", exact=False))
        answers = [self._run(one, self.head, "none", exact=False) for one in (image, last)]
        if self.joint:
            answers.append(self._run(image, Chain((*self.head.parts, *self.tail.parts)), "supervised"))
        rounding = left_over(to_tensor(last)[None], self.tail)
        method = "supervised" if learned(self.model, self.head) else "zero-shot"
        return [*answers, self._run(last, self.head, method, rounding)]

    def _run(
        self, image: Image.Image, what: Corruption, method: str, rounding: float = 0.0, exact: bool = True
    ) -> Pixels:
        measurement = Measurement(image, what, self.model.shape[0], exact, self.model.device, rounding=rounding)
        tiling = measurement.tiling(self.options.tile, self.options.overlap)
        return TiledRestoration(measurement, self.model, method, self.options).run(*tiling)[0]

    def _truth(self, answer: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c p q"]:
        """A part of what was given, if that is smaller than what it shows; of a blurred one an answer, made small."""
        x = torch.from_numpy(to_array(self.image.convert("L" if len(answer) == 1 else "RGB")))
        if any(step.name in BLURS for step in self.head.steps):
            x = to_uint8(F.avg_pool2d(to_tensor(answer)[None], 2))[0]
        light = to_tensor(x)[None] if len(x) == 1 else luminance(to_tensor(x)[None])
        rows, columns = liveliest(light, MOST)
        part = x[:, rows, columns]
        grid = math.lcm(16, math.prod(map(shrinking, self.head.steps)))
        return part[:, : part.shape[1] // grid * grid, : part.shape[2] // grid * grid]


def mixture(answers: Sequence[Pixels], truth: Pixels) -> list[float]:
    """The weights, none negative and with sum 1, of the mixture of answers that is nearest to the truth."""
    errors = torch.stack([(answer.float() - truth.float()).flatten() for answer in answers])
    products = (errors @ errors.T).double()
    shares = [s for s in product(range(SHARES + 1), repeat=len(answers) - 1) if sum(s) <= SHARES]
    weights = torch.tensor([(SHARES - sum(s), *s) for s in shares], dtype=torch.double) / SHARES
    return weights[int(((weights @ products) * weights).sum(1).argmin())].tolist()


def mixed(images: Sequence[UInt8[Tensor, "*c h w"]], weights: Sequence[float]) -> UInt8[Tensor, "*c h w"]:
    """Their weighted sum, some rows at a time."""
    parts = []
    for rows in zip(*(x.split(ROWS, -2) for x in images), strict=True):
        total = sum((w * x.float() for w, x in zip(weights, rows, strict=True)), torch.zeros(()))
        parts.append(total.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts, -2)
