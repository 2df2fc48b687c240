"""Translation by a diffusion model as it is: SDEdit and DDIB."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ... import noise, samplers, schedules
from ...errors import InputError
from ...guidance import cfg
from ...models import Model
from ...samplers import probability_flow
from ...types import Cond


@torch.no_grad()
def sdedit(
    model: Model,
    source: Float[Tensor, "b c h w"],
    strength: float = 0.5,
    cond: Cond | None = None,
    steps: int = 20,
    seeds: Sequence[int] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Noise on the source, and the model takes it away as it sees fit (Meng et al. 2022, arXiv:2108.01073).

    Args:
        model: Of the kind to come out.
        source: Pictures in [-1, 1], of its channels and size.
        strength: 0 returns the source, 1 forgets it: a picture at noise sigma_data * tan(strength * pi / 2) has kept
            cos^2 of that angle of its variance.
        cond: Of what kind it is to be.
        steps: Calls, all of them below that noise.
        seeds: One per picture.
        scale: Classifier-free guidance towards ``cond``; 1 is off.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be from 0 to 1, got {strength:g}. Try 0.5.")
    high = min(model.sigma_data * math.tan(strength * math.pi / 2), model.sigma_max)
    if high <= model.sigma_min:
        return source.clone()
    sigmas = schedules.exponential(steps, model.sigma_min, high)
    x0 = model.encode(source)
    x = x0 + high * noise.initial(list(seeds or range(len(x0))), x0.shape[1:])
    guided = cfg(model.denoise, scale)
    return model.decode(samplers.final(samplers.run(guided, x, samplers.table("dpmpp_2m", sigmas), cond))).clamp(-1, 1)


@torch.no_grad()
def ddib(
    source_model: Model,
    target_model: Model,
    source: Float[Tensor, "b c h w"],
    source_cond: Cond | None = None,
    target_cond: Cond | None = None,
    steps: int = 40,
    strength: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """Up one model's probability flow, down the other's: no noise is drawn, and the way back is the same way.

    Dual diffusion implicit bridges (Su et al. 2023, arXiv:2203.08382, algorithm 1). One model with two conditions, its
    classes for example, serves as well; two models in latents must share the codec. ``strength`` below 1 turns round
    earlier, as in :func:`sdedit`. ``scale`` is classifier-free guidance, both up and down: further away from the
    source's kind, and further into the target's.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be from 0 to 1, got {strength:g}. Try 0.8.")
    low = max(source_model.sigma_min, target_model.sigma_min)
    high = min(source_model.sigma_max, target_model.sigma_max)
    high = min(high, source_model.sigma_data * math.tan(strength * math.pi / 2) if strength < 1 else high)
    if high <= low:
        return source.clone()
    sigmas = schedules.exponential(steps, low, high)
    here, there = (cfg(model.denoise, scale) for model in (source_model, target_model))
    x = probability_flow.invert(here, source_model.encode(source), sigmas, source_cond)
    made = samplers.final(samplers.run(there, x, samplers.table("dpmpp_2m", sigmas), target_cond))
    return target_model.decode(made).clamp(-1, 1)
