"""Translation by a diffusion model as it is: SDEdit and DDIB."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ... import noise, samplers, schedules
from ...guidance import cfg
from ...models import Model
from ...samplers import probability_flow
from ...schedules import strength_sigma
from ...types import Cond, Denoise


@torch.no_grad()
def sdedit(
    model: Model,
    source: Float[Tensor, "b c h w"],
    strength: float = 0.5,
    cond: Cond | None = None,
    steps: int = 20,
    seeds: Sequence[int] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """Noise on the source, and the model removes it (Meng et al. 2022, arXiv:2108.01073).

    Args:
        model: Of the domain to translate to.
        source: Images in [-1, 1], of its channels and size.
        strength: Where it starts (:func:`fastdiffusion.schedules.strength_sigma`): 0 returns the source, 1 starts from
            noise.
        cond: What the result is conditioned on.
        steps: Evaluations, all of them from that noise level down.
        seeds: One per image.
        scale: Classifier-free guidance towards ``cond``; 1 is off.

    Returns images in [-1, 1], on the device of ``source``.
    """
    table = samplers.strength_table(
        strength, steps, lambda n: model.schedule(n, None), model.sigma_data, model.sigma_max
    )
    if table is None:
        return source.clone()
    x0 = model.encode(source.to(model.device))
    drawn = noise.initial(range(len(x0)) if seeds is None else seeds, x0.shape[1:]).to(x0)
    x = (x0 if strength < 1 else 0) + table.sigmas[0] * drawn
    made = samplers.final(samplers.run(_guided(model, scale), x, table, cond))
    return model.decode(made).clamp(-1, 1).to(source.device)


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
) -> Float[Tensor, "b c h w"]:
    """Up one model's probability flow, down the other's: no noise is drawn, and the flow is reversible.

    Dual diffusion implicit bridges (Su et al. 2023, arXiv:2203.08382, algorithm 1). One model with two conditions, its
    classes for example, serves as well; two models in latents must share the autoencoder. ``strength`` below 1 turns
    round earlier, at the noise level where :func:`sdedit` would start. ``scale`` is classifier-free guidance, both up
    and down: further away from the source's domain, and further into the target's.
    """
    low = max(source_model.sigma_min, target_model.sigma_min)
    high = strength_sigma(strength, source_model.sigma_data, min(source_model.sigma_max, target_model.sigma_max))
    if high <= low:
        return source.clone()
    sigmas = schedules.exponential(steps, low, high)
    here, there = _guided(source_model, scale), _guided(target_model, scale)
    x = probability_flow.invert(here, source_model.encode(source.to(source_model.device)), sigmas, source_cond)
    table = samplers.table("dpmpp_2m", sigmas)
    made = samplers.final(samplers.run(there, x.to(target_model.device), table, target_cond))
    return target_model.decode(made).clamp(-1, 1).to(source.device)


def _guided(model: Model, scale: float) -> Denoise:
    """Classifier-free guidance, away from what "unconditional" is for this model."""
    return cfg(model.denoise, scale, None if model.conditioner is None else model.conditioner.null(1))
