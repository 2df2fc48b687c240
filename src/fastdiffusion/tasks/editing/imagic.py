"""Imagic: the prompt's embedding and the network are adapted to one image, and the embedding then moves to the prompt.

Kawar et al. 2023, arXiv:2210.09276. It needs no source prompt, and it is the most expensive way.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ... import samplers
from ...errors import InputError
from ...models import Model
from ...noise import Stream, generator
from ...samplers import inversion
from ...schedules import Sigmas
from ...types import Cond, Denoise

EMBEDDING = 0.4  # of the steps; the rest is the network's (100 of 250 in the paper's, at other step sizes)
RATES = (3e-2, 1e-4)  # of Adam: in units of the embedding's spread, and of the network's weights


def imagic(
    model: Model,
    x0: Float[Tensor, "1 *d"],
    target: Cond,
    levels: Sigmas,
    scale: float,
    toward: float = 0.7,
    steps: int = 150,
    seed: int = 0,
) -> tuple[Float[Tensor, "1 *d"], str]:
    """Latents of the image as the target has it, and how well the image was learned, in a sentence.

    The model itself is left as it is: a copy of the network learns. The image's own noise (a fixed point of the
    adapted model) is where the result is drawn from, so that few steps of learning are enough to hold its layout.

    Args:
        model: Whose network can be differentiated.
        x0: Latents of the image.
        target: What the result shows, one row.
        levels: Of the run that draws it, falling, the last one 0.
        scale: Guidance.
        toward: Where between the image's embedding, 0, and the target's, 1, the result's lies (eta; .6 to .8 is usual).
        steps: Of gradient descent in all.
        seed: Of its noise.
    """
    if target.emb is None and target.pooled is None:
        raise InputError("Imagic adapts a prompt's embedding, and this model has none. Take another method.")
    start, net = time.monotonic(), model.modules.get("net")
    if net is None:
        raise InputError("Imagic adapts a network, and this model brings none. Take another method.")
    denoise, net = copy.deepcopy((model.denoise, net))
    names = [name for name in ("emb", "pooled") if getattr(target, name) is not None]
    wanted = [getattr(target, name).detach().float() for name in names]
    own = [value.clone().requires_grad_() for value in wanted]
    groups = [{"params": [v], "lr": RATES[0] * float(v.detach().std().clamp(min=1e-6))} for v in own]
    first = _learn(
        denoise, x0, target, dict(zip(names, own, strict=True)), groups, levels, round(EMBEDDING * steps), seed
    )
    learned = [v.detach() for v in own]
    weights = [p for p in net.parameters() if p.is_floating_point()]
    for p in weights:
        p.requires_grad_()
    fixed = dict(zip(names, learned, strict=True))
    groups = [{"params": weights, "lr": RATES[1]}]
    last = _learn(denoise, x0, target, fixed, groups, levels, steps - round(EMBEDDING * steps), seed + 1)
    with torch.no_grad():
        cond = replace(target, **fixed)
        found = inversion.euler(denoise, x0, levels, cond, 8, model.sigma_data)
        mixed = {n: torch.lerp(a, b, toward) for n, a, b in zip(names, learned, wanted, strict=True)}
        guided = model.guide(denoise, scale, model.null(1)) if scale != 1 else denoise
        made = samplers.final(samplers.run(guided, found.x, found.table, replace(target, **mixed)))
    note = (
        f"Imagic: {time.monotonic() - start:.1f} s; the image's denoising loss went from {first[0]:.3g} to "
        f"{last[1]:.3g} (of the first and last ten steps)."
    )
    return made, note


def _learn(
    denoise: Denoise,
    x0: Tensor,
    cond: Cond,
    parts: dict[str, Tensor],
    groups: Sequence[dict[str, object]],
    levels: Sigmas,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Adam on the denoising loss of one image; its mean over the first ten steps and over the last ten."""
    random = generator(seed, Stream.EDIT_NOISE, 1 << 20)
    low, high = float(levels[-2]), float(levels[0])
    data = float(x0.std())
    search, losses = torch.optim.Adam(list(groups)), []  # type: ignore[arg-type]
    for _ in range(max(steps, 1)):
        with torch.enable_grad():
            u = torch.rand((), generator=random).item()
            sigma = min(max(low, data * u / max(1 - u, 1e-6)), high)  # even in the part of noise
            noise = torch.randn(x0.shape, generator=random).to(x0)
            estimate = denoise(x0 + sigma * noise, x0.new_full((len(x0),), sigma), replace(cond, **parts))
            loss = (estimate - x0).square().mean() * (sigma**2 + data**2) / (sigma * data) ** 2
            search.zero_grad()
            loss.backward()
        search.step()
        losses.append(loss.item())
    return sum(losses[:10]) / len(losses[:10]), sum(losses[-10:]) / len(losses[-10:])
