"""What a step trains on, all drawn from the seed and the step alone, and the loss that it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import losses
from ..corruptions import Corruption
from ..data import Dataset, augment
from ..denoisers import Denoiser
from ..errors import InputError, counted, unknown
from ..io.images import as_input, to_tensor
from ..noise import Stream, generator
from ..schedules import SIGMA_DISTRIBUTIONS, stratified
from ..types import Cond


class TrainingBatch(NamedTuple):
    """A batch, or a part of one, with all that was drawn for it; ``names`` say which images they were."""

    x0: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    cond: Cond | None
    self_condition_mask: Bool[Tensor, " b"] | None
    names: Sequence[str]


def title(data: Dataset) -> str:
    """What is trained on, for people."""
    return f"{data.name}: {counted(len(data), 'image')} of {'x'.join(map(str, data.shape))}"


@dataclass
class Batches:
    """The endless stream of batches of a run: ``draw(step)``, in any order, always the same.

    Attributes:
        data: Images in uint8, or floats of any scale.
        batch_size: Of all processes together.
        seed: Of the run.
        sigma_distribution: A name in ``schedules.SIGMA_DISTRIBUTIONS``, with ``sigma_distribution_options``.
        unit: What noise levels are multiplied by: the scale of the data, 1 for images.
        cond_dropout: Part of the examples that lose their condition.
        augments: Names in ``augment.AUGMENTS``, each acting with probability ``augment_p``.
        self_condition: Whether to draw where the net is conditioned on its own estimate.
        corruption: What happens to each image: the model is conditioned on the result and learns to undo it.
        tokens: Turns captions into token numbers, where the net is conditioned on text.
        rank: Number of this process, of ``world``: each gets its part of the batch that one would get.
    """

    data: Dataset
    batch_size: int
    seed: int = 0
    sigma_distribution: str = "lognormal"
    sigma_distribution_options: dict[str, float] = field(default_factory=dict)
    unit: float = 1.0
    cond_dropout: float = 0.0
    augments: Sequence[str] = ()
    augment_p: float = 0.12
    self_condition: bool = False
    tokens: Callable[[Sequence[str]], Tensor] | None = None
    corruption: Corruption | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.sigma_distribution not in SIGMA_DISTRIBUTIONS:
            raise unknown("noise level distribution", self.sigma_distribution, SIGMA_DISTRIBUTIONS)
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}. Try 64.")
        self.groups = self.data.groups
        self.per_epoch = math.ceil(len(self.data) / self.batch_size)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def order(self, step: int) -> list[int]:
        """The rows of a step: images of one size, each image once an epoch but for rounding.

        The batches of an epoch are divided among groups of unlike image sizes by systematic sampling, so that in the
        mean every image is seen equally often, however small its group.
        """
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            g, n, size = generator(self.seed, Stream.BATCH_ORDER, epoch), self.per_epoch, self.batch_size
            points = (torch.arange(n) + torch.rand(1, generator=g)) / n * len(self.data)
            ends = torch.tensor([len(group) for group in self.groups]).cumsum(0)
            which = torch.bucketize(points, ends, right=True).clamp(max=len(ends) - 1)  # the last may round up
            shares = which.bincount(minlength=len(ends)).tolist()
            batches: list[list[int]] = []
            for group, share in zip(self.groups, shares, strict=True):
                rounds = [torch.randperm(len(group), generator=g) for _ in range(math.ceil(share * size / len(group)))]
                for rows in torch.cat(rounds)[: share * size].split(size) if rounds else ():
                    batches.append([group[i] for i in rows.tolist()])
            self._epoch = (epoch, [batches[i] for i in torch.randperm(n, generator=g).tolist()])
        return self._epoch[1][place]

    def draw(self, step: int) -> TrainingBatch:
        """This process's part of a step's batch."""
        n, share = self.batch_size, self.batch_size // self.world
        rows = slice(self.rank * share, (self.rank + 1) * share)
        order, alone = self.order(step), self.world == 1
        batch = self.data.batch(
            order[rows], generator(self.seed, Stream.CAPTION, step) if self.tokens and alone else None
        )
        x0 = as_input(batch.images)

        def random(purpose: int) -> torch.Generator:
            return generator(self.seed, purpose, step)

        sigma = (
            SIGMA_DISTRIBUTIONS[self.sigma_distribution](
                stratified(n, random(Stream.BATCH_SIGMA)), **self.sigma_distribution_options
            )[rows]
            * self.unit
        )
        noise = torch.randn((n, *x0.shape[1:]), generator=random(Stream.BATCH_NOISE))[rows]
        cond = self_condition_mask = None
        if self.data.classes or self.tokens is not None:
            dropped = torch.rand(n, generator=random(Stream.COND_DROPOUT)) < self.cond_dropout
            labels = batch.labels if self.data.classes else None
            token_ids = None
            if self.tokens is not None:  # drawn for the whole batch, however many processes share it
                captions = (
                    batch.captions if alone else self.data.annotations(order, random(Stream.CAPTION)).captions[rows]
                )
                token_ids = self.tokens(captions)
            cond = Cond(label=labels, tokens=token_ids).drop(dropped[rows])
        plan = None
        if self.augments:
            plan = augment.draw(n, random(Stream.AUGMENT), self.augments, self.augment_p)[rows]
            x0, cond = augment.apply(x0, plan), replace(cond or Cond(), augment=plan.vector)
        if self.corruption is not None:
            seeds = torch.randint(2**62, (n,), generator=random(Stream.CORRUPTION))[rows].tolist()
            cond = replace(cond or Cond(), image=degraded(self.corruption, x0, seeds))
        elif batch.inputs is not None:
            inputs = to_tensor(batch.inputs)
            cond = replace(cond or Cond(), image=inputs if plan is None else augment.move(inputs, plan))
        if self.self_condition:
            self_condition_mask = torch.rand(n, generator=random(Stream.SELF_CONDITION))[rows] < 0.5
        return TrainingBatch(x0, sigma, noise, cond, self_condition_mask, batch.names)


def degraded(corruption: Corruption, x0: Float[Tensor, "b c h w"], seeds: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """The inputs of a restorer: degraded images on the grid of the clean ones, in the range that a file can hold."""
    what = corruption.on(x0.shape[1:], seeds)
    return what.lift(what.forward(x0).clamp(-1, 1))


def damage(x0: Float[Tensor, "b c h w"], observed: Float[Tensor, "b k h w"]) -> Float[Tensor, " b"]:
    """Root mean square of what was lost, image by image, and at least 0.03.

    Where less was lost, little can be restored; weighted by less, such images drown all others (docs/lab-notes.md).
    """
    return (x0 - observed[:, : x0.shape[1]]).square().flatten(1).mean(1).sqrt().clamp(min=0.03)


def measure_damage(data: Dataset, corruption: Corruption | None, n: int = 256) -> float:
    """sigma_data of a restorer: the mean damage to ``n`` images spread over the data."""
    rows = data.groups[0]
    batch = data.batch(rows[:: math.ceil(len(rows) / n)])
    x0 = as_input(batch.images)
    if batch.inputs is not None:
        inputs = to_tensor(batch.inputs)
    else:
        assert corruption is not None
        inputs = degraded(corruption, x0, range(len(x0)))
    return float(damage(x0, inputs).mean())


class Objective(nn.Module):
    """The loss as a module, so that what DDP or FSDP wrap is exactly what a step computes."""

    def __init__(
        self, denoiser: Denoiser, unit: float, loss_weighting: str, options: dict[str, float], uncertainty: bool
    ):
        super().__init__()
        self.denoiser, self.unit, self.kind = denoiser, unit, loss_weighting
        self.weight = partial(losses.weight, loss_weighting, sigma_data=denoiser.sigma_data / unit, **options)
        self.uncertainty = losses.Uncertainty() if uncertainty else None

    def forward(self, e: TrainingBatch) -> Float[Tensor, " b"]:
        """One loss per image; where the mask is set, the net is conditioned on an estimate that it makes first."""
        cond = e.cond
        if e.self_condition_mask is not None and bool(e.self_condition_mask.any()):
            with torch.no_grad():
                x = e.x0 + e.sigma[:, None, None, None] * e.noise
                some = None if cond is None else cond[e.self_condition_mask]
                estimate = torch.zeros_like(x)
                estimate[e.self_condition_mask] = self.denoiser(
                    x[e.self_condition_mask], e.sigma[e.self_condition_mask], some
                ).to(x.dtype)
            cond = replace(cond or Cond(), estimate=estimate)
        weigh = self._weight
        if cond is not None and cond.image is not None and self.kind == "edm":
            # beside the degraded image only the damage is unknown: slight and heavy damage count alike, as in decibels
            weigh = partial(self.weight, sigma_data=damage(e.x0, cond.image))
        return losses.denoising_loss(self.denoiser, e.x0, e.sigma, e.noise, cond, weigh, self.uncertainty)

    def _weight(self, sigma: Tensor) -> Tensor:
        return self.weight(sigma / self.unit) / self.unit**2
