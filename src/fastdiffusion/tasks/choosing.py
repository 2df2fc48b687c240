"""Choosing among sampler tables by their images: which come nearest to images that are given.

A fit follows the model's own flow, and a model that is little trained does not end in its best images there: coarser
or noisier steps may leave out details that it learned badly. Only real images tell. All tables start from the same
noises. The distance is Frechet's, in the bundled perceptual features averaged over places, with covariances that are
halfway to those of independent features: so few images know little of how features vary together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .. import samplers, schedules
from ..data import selection
from ..errors import DataError, counted
from ..io.images import to_tensor
from ..metrics import frechet
from ..nets import perceptual
from ..samplers import Table

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Model
    from ..samplers.fitting import Problem
    from ..samplers.ledger import Ledger
    from ..types import Cond

TEXTBOOK = ("euler", "lms", "deis", "dpmpp_2m", "consistency", "euler_ancestral")
SCHEDULES = ("flow", "exponential")
PUBLISHED = tuple(schedules.AYS)
LEAST, MOST = 64, 192  # images of each table
SHRUNK = 0.5  # part of the covariances between features that is left out
SEEDS = 10_000_000  # from here on: other noises than a fit takes


@dataclass(frozen=True)
class Choice:
    """What tables are chosen by.

    Attributes:
        model: It decodes what the denoiser makes.
        problem: As the tables were fitted to it.
        real: Features of the given images.
        name: Of the given images.
    """

    model: Model
    problem: Problem
    real: Float[Tensor, "n d"]
    name: str

    def images(self, table: Table, n: int) -> Float[Tensor, "n c h w"]:
        """What a table makes of n noises that no table was fitted to, in about [-1, 1]."""
        parts, most = [], self.problem.batch_size
        for first in range(0, n, most):
            count = min(most, n - first)
            x, cond = replace(self.problem, seed=self.problem.seed + SEEDS).draw(first, count)
            seeds = range(SEEDS + first, SEEDS + first + count)
            x = x * (table.sigmas[0] / self.problem.sigma_max)
            latents = samplers.final(samplers.run(self.problem.denoise, x, table, cond, seeds))
            parts.append(self.model.decode(latents).float())
        return torch.cat(parts)

    def distance(self, table: Table) -> float:
        """From the given images to as many that the table makes; a very large number where some are not finite."""
        made = self.images(table, len(self.real))
        return frechet(self.real, features(made.clamp(-1, 1)), SHRUNK) if made.isfinite().all() else 1e9

    def others(self, steps: int) -> list[Table]:
        """The textbook tables that a fitted one is compared with."""
        own = None if self.problem.schedule is None else self.problem.schedule(steps)
        return textbook(steps, self.problem.sigma_min, self.problem.sigma_max, own)

    @torch.no_grad()
    def nearest(self, fitted: Table, ledger: Ledger) -> Table:
        """The table whose images are nearest to the given ones: the fitted one, or a textbook table as long.

        ``info`` says what was kept, and the distances.
        """
        tables = [fitted, *self.others(fitted.nfe)]
        n = len(self.real)
        distances = [ledger.measure(lambda t=table: (self.distance(t), n * t.nfe)) for table in tables]
        best = min(range(len(tables)), key=distances.__getitem__)
        facts = {
            "reference": self.name, "images": n, "distance": distances[best], "fitted_distance": distances[0],
            "textbook_distance": min(distances[1:]),
        }  # fmt: skip
        kept = tables[best]
        return replace(kept, info={**fitted.info, **kept.info, "fitted": best == 0 and fitted.info["fitted"], **facts})


def choice(model: Model, problem: Problem, reference: Dataset, rows: Sequence[int], cond: Cond | None) -> Choice:
    """Choose by the images ``rows`` of ``reference``; ``cond`` says what they show, or what else to draw in turn."""
    images = selection.load_images(reference, rows)[0]
    real = features(to_tensor(images).to(problem.device))
    return Choice(model, replace(problem, cond=cond), real, reference.name)


def chosen_rows(reference: Dataset, channels: int) -> list[int]:
    """Which of the images are looked at; DataError for images that tables cannot be chosen by."""
    if len(reference) < LEAST:
        raise DataError(
            f"Choosing tables by images takes at least {LEAST} of them, {reference.name!r} has {len(reference)}."
        )
    if reference.shape[0] != channels:
        theirs = counted(reference.shape[0], "channel")
        raise DataError(f"The images of {reference.name!r} have {theirs}, those of the model {channels}.")
    rows = selection.choose(reference, MOST)
    captions = reference.annotations(rows).captions
    captioned = [row for row, caption in zip(rows, captions, strict=True) if caption]
    return captioned if len(captioned) >= LEAST else rows  # a prompt is drawn for the image that it describes


def cost(steps: Sequence[int], images: int) -> int:
    """Evaluations of one image that choosing takes, at most."""
    levels = 2 * len(SCHEDULES) + len(PUBLISHED) + 1
    return (len(TEXTBOOK) * levels + 1) * min(images, MOST) * sum(steps)


def features(images: Tensor) -> Float[Tensor, "n d"]:
    """The last map of the bundled perceptual features, averaged over places."""
    return torch.cat([perceptual.maps(None, part)[-1].mean((2, 3)) for part in images.split(32)])


def textbook(steps: int, sigma_min: float, sigma_max: float, own: Tensor | None = None) -> list[Table]:
    """Textbook tables of so many evaluations.

    On two schedules, each ended at the model's own level and at a higher one; on published lists; and on levels that a
    model comes with.
    """
    ends = dict.fromkeys((sigma_min, max(sigma_min, sigma_max / 1000)))
    spaced = [(name, low) for low in ends for name in SCHEDULES] + [(name, sigma_min) for name in PUBLISHED]
    levels = {
        f"{name}, sigma_min {low:g}": schedules.schedule(name, steps, sigma_min=low, sigma_max=sigma_max)
        for name, low in spaced
    }
    if own is not None and not any(len(own) == len(x) and torch.allclose(own, x.to(own)) for x in levels.values()):
        levels["the model's own"] = own
    tables = [
        replace(samplers.table(name, sigmas), info={"textbook": f"{name}, {text}"})
        for name in TEXTBOOK
        for text, sigmas in levels.items()
    ]
    return [table for table in tables if table.nfe == steps]
