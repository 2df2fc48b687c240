"""Image to image: noise on an image, and a denoiser takes it away (SDEdit, Meng et al. 2022, arXiv:2108.01073).

    table = strength_table(0.6, 12, lambda n: schedules.karras(n, 0.002, 80), sigma_data=0.5, sigma_max=80)
    x = x0 + table.sigmas[0] * noise          # at strength 0 there is no table: the image stays
    result = final(run(denoise, x, table, cond))

``sample``, translation, variations and editing all start here, so that one strength means one noise level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import schedules
from ..schedules import Sigmas
from .registry import table
from .tables import Table

FINE = 1000  # steps of the schedule that a shorter way is read off


def strength_table(
    strength: float,
    steps: int,
    schedule: Callable[[int], Sigmas],
    sigma_data: float,
    sigma_max: float,
    sampler: str = "dpmpp_2m",
) -> Table | None:
    """A sampler's table from the noise level of ``strength`` down, in ``steps`` intervals; None at strength 0.

    A table that was fitted to a model holds for the whole way only, so that this is always a textbook one.

    Args:
        strength: From 0 to 1; see :func:`fastdiffusion.schedules.strength_sigma`.
        steps: Intervals of the table.
        schedule: The n + 1 noise levels of a whole run in n steps.
        sigma_data: Standard deviation of the data.
        sigma_max: The highest noise level.
        sampler: A name in ``SAMPLERS``.
    """
    start = schedules.strength_sigma(strength, sigma_data, sigma_max)
    return table(sampler, below(start, steps, schedule)) if start > 0 else None


def below(start: float, steps: int, schedule: Callable[[int], Sigmas]) -> Sigmas:
    """The levels of a schedule from ``start`` down: as even in the schedule's own time as the whole ones are.

    For the schedules in ``SCHEDULES`` (published lists aside) that is, to within 0.1 %, the schedule with
    sigma_max = start. Where ``start`` lies close to the schedule's lowest level or under it, the levels go on below
    it, down to a tenth of ``start``.
    """
    whole, fine = schedule(steps), schedule(FINE)[:-1].double()
    if start >= float(whole[0]):
        return whole
    if start < 2 * float(fine[-1]):
        return schedules.exponential(steps, start / 10, start)
    levels = fine.log()
    i = int((fine > start).sum()) - 1  # fine[i] > start >= fine[i + 1]
    first = i + (levels[i] - torch.tensor(start, dtype=torch.float64).log()) / (levels[i] - levels[i + 1])
    at = first + torch.linspace(0, 1, steps, dtype=torch.float64) * (len(fine) - 1 - first)
    left = at.long().clamp(max=len(fine) - 2)
    sigmas = torch.lerp(levels[left], levels[left + 1], at - left).exp()
    sigmas[0] = start
    return torch.cat([sigmas, sigmas.new_zeros(1)])
