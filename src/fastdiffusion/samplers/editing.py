"""Two ways to edit data without finding their noise: edit-friendly inversion, and FlowEdit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..guidance import start
from ..noise import Stream, generator
from ..types import Cond, Denoise, Run
from .tables import Table, move


def _drawn(seeds: Sequence[int], like: Tensor, key: int) -> Tensor:
    """Unit noise, of each image its own, another for each key."""
    draws = [torch.randn(like.shape[1:], generator=generator(s, Stream.EDIT_NOISE, key)) for s in seeds]
    return torch.stack(draws).to(like)


@dataclass(frozen=True)
class Inversion:
    """Data as the start and the noise of a stochastic run.

    Attributes:
        x: The state at ``table.sigmas[0]``.
        noises: For each row of the table the noise that it adds.
        rest: What the run's end lacks of the data: the last step adds no noise.
    """

    x: Float[Tensor, "b *d"]
    noises: tuple[Float[Tensor, "b *d"] | None, ...]
    rest: Float[Tensor, "b *d"]

    def paths(self, rows: int = 1) -> Recorded:
        """The noise for ``run(paths=...)``; the same for each of ``rows`` copies of the data."""
        return Recorded([n.repeat(rows, *[1] * (n.ndim - 1)) for n in self.noises if n is not None])


class Recorded:
    """Noise that was written down, in order."""

    def __init__(self, noises: Sequence[Tensor]):
        self._rest = deque(noises)

    def draw(self, sigma: float, to: float) -> Tensor:
        """The next one."""
        return self._rest.popleft()


@torch.no_grad()
def edit_friendly(
    denoise: Denoise, x0: Float[Tensor, "b *d"], table: Table, cond: Cond | None, seeds: Sequence[int]
) -> Inversion:
    """The noise with which a stochastic sampler makes exactly these data (Huberman-Spiegelglas et al. 2024).

    Edit-friendly DDPM inversion (arXiv:2304.06140): states are drawn from the forward process, each with noise of its
    own (eq. 6), and the noise of each step is what is missing from one to the next. It has more variance than a
    sampler's, and holds the structure of the data: under another prompt it stays.

    Args:
        denoise: A model, or a model under guidance.
        x0: The data.
        table: Of a sampler that adds noise once in each step but the last, such as "euler_ancestral".
        cond: What the data show.
        seeds: One for each.
    """
    if not all(len(row.noise) == (i < len(table.rows) - 1) for i, row in enumerate(table.rows)):
        raise InputError(f"Sampler {table.name!r} does not add noise once in each step. Take euler_ancestral.")
    now = Run(tuple(row.sigma for row in table.rows), len(table.sigmas) - 1)
    denoise = start(denoise, now)
    x = first = x0 + table.sigmas[0] * _drawn(seeds, x0, 0)
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    noises: list[Tensor | None] = []
    for i, row in enumerate(table.rows):
        now.index, now.sigma = i, row.sigma
        estimate = denoise(x, x0.new_full((len(x0),), row.sigma), cond)
        mean = move(row, x, estimate, history)
        history.appendleft(estimate)
        if not row.noise:
            return Inversion(first, tuple(noises), x0 - mean)
        ((b, _, _),) = row.noise
        noise = (x0 + table.rows[i + 1].sigma * _drawn(seeds, x0, i + 1) - mean) / b
        noises.append(noise)
        x = mean + b * noise
    raise AssertionError("a table without rows")


@torch.no_grad()
def flow_edit(
    source: Denoise,
    target: Denoise,
    x0: Float[Tensor, "b *d"],
    sigmas: Sequence[float] | Tensor,
    seeds: Sequence[int],
    cond: tuple[Cond | None, Cond | None] = (None, None),
    draws: int = 1,
) -> Float[Tensor, "b *d"]:
    """From what ``source`` describes to what ``target`` does, by the difference of their flows (Kulikov et al. 2024).

    FlowEdit (arXiv:2412.08629, algorithm 1): no noise is found, the data are walked directly. At time
    t = sigma / (1 + sigma) the source's state is (1 - t) x0 + t noise, the target's lies as far from it as the result
    lies from x0, and the result moves by the difference of the velocities (x - D) / t. Any denoiser will do.

    Args:
        source, target: A model under the guidance for each prompt.
        x0: The data.
        sigmas: Falling, the last one 0; the first one says how far the result may go.
        seeds: One for each of the data; every step has noise of its own.
        cond: Of the source, of the target.
        draws: Noises whose mean is taken in each step.
    """
    levels = [float(s) for s in sigmas]
    now = Run(tuple(levels[:-1]), len(levels) - 1)
    here, there = start(source, now), start(target, now)
    z = x0.clone()
    for i, (sigma, to) in enumerate(pairwise(levels)):
        now.index, now.sigma = i, sigma
        t, after, level = sigma / (1 + sigma), to / (1 + to), x0.new_full((len(x0),), sigma)
        change = torch.zeros_like(z)
        for k in range(draws):
            noise = sigma * _drawn(seeds, x0, i * draws + k)
            moved = z + sigma * (z - x0) + noise
            change += (there(moved, level, cond[1]) - here(x0 + noise, level, cond[0])) / draws
        z = z + (after - t) / t * (z - x0 - change)
    return z


@torch.no_grad()
def difference_map(
    denoise: Denoise,
    x0: Float[Tensor, "1 c h w"],
    sigmas: Sequence[float],
    first: Cond | None,
    second: Cond | None,
    seeds: Sequence[int],
) -> Float[Tensor, "h w"]:
    """Where two conditions disagree about an image, from 0 to 1 (DiffEdit, Couairon et al. 2022, arXiv:2210.11427).

    The mean over noise levels and seeds of the estimates' distance at each place, smoothed over its neighbours; the
    greatest twentieth counts as 1, so that single places do not decide.
    """
    total = x0.new_zeros(x0.shape[-2:])
    for sigma in sigmas:
        x = x0 + sigma * _drawn(seeds, x0.expand(len(seeds), *x0.shape[1:]), round(1e6 * sigma))
        level = x.new_full((len(x),), sigma)
        estimates = [denoise(x, level, None if cond is None else cond.expand(len(x))) for cond in (first, second)]
        total += (estimates[0] - estimates[1]).square().sum(1).sqrt().mean(0) / sigma**0.5
    smooth = F.avg_pool2d(total[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    return (smooth / smooth.flatten().quantile(0.95).clamp(min=1e-12)).clamp(max=1)
