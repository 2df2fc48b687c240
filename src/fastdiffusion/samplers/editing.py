"""Ways to edit data without finding their noise: FlowEdit, MagicMix, and where two conditions disagree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..guidance import start
from ..types import Cond, Denoise, Run
from .inversion import drawn


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
            noise = sigma * drawn(seeds, x0, i * draws + k)
            moved = z + sigma * (z - x0) + noise
            change += (there(moved, level, cond[1]) - here(x0 + noise, level, cond[0])) / draws
        z = z + (after - t) / t * (z - x0 - change)
    return z


@torch.no_grad()
def magic_mix(
    denoise: Denoise,
    x0: Float[Tensor, "b *d"],
    sigmas: Sequence[float] | Tensor,
    until: float,
    seeds: Sequence[int],
    cond: Cond | None = None,
    share: float = 0.6,
) -> Float[Tensor, "b *d"]:
    """The layout of one thing with the meaning of another (Liew et al. 2022, "MagicMix", arXiv:2210.16056, sec. 3).

    The data are drowned in noise at ``sigmas[0]``, where layout survives and meaning does not. From there the condition
    fills it in, and down to the level ``until`` each state is mixed with the data's own at that level.

    Args:
        denoise: A model under guidance.
        x0: What the layout is taken of.
        sigmas: Falling, the last one 0.
        until: The level below which nothing is mixed in.
        seeds: Of the noise, one for each.
        cond: What gives the meaning.
        share: Of the drawn state in the mix (nu): 0 keeps the layout, 1 mixes nothing.
    """
    levels = [float(s) for s in sigmas]
    now = Run(tuple(levels[:-1]), len(levels) - 1)
    denoise, noise = start(denoise, now), drawn(seeds, x0, 0)
    x = x0 + levels[0] * noise
    for i, (sigma, to) in enumerate(pairwise(levels)):
        now.index, now.sigma = i, sigma
        estimate = denoise(x, x0.new_full((len(x0),), sigma), cond)
        x = torch.lerp(estimate, x, to / sigma)
        if to > until:
            x = torch.lerp(x0 + to * noise, x, share)
    return x


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
        x = x0 + sigma * drawn(seeds, x0.expand(len(seeds), *x0.shape[1:]), round(1e6 * sigma))
        level = x.new_full((len(x),), sigma)
        estimates = [denoise(x, level, None if cond is None else cond.expand(len(x))) for cond in (first, second)]
        total += (estimates[0] - estimates[1]).square().sum(1).sqrt().mean(0) / sigma**0.5
    smooth = F.avg_pool2d(total[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    return (smooth / smooth.flatten().quantile(0.95).clamp(min=1e-12)).clamp(max=1)
