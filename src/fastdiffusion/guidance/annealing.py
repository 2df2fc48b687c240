"""Noise on the condition while noise is high: more variety from models that draw the same image for a prompt."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..errors import InputError
from ..noise import Stream, generator
from ..types import Cond, Denoise, Run
from .core import guidance

NOISED = ("emb", "pooled")


@guidance
def cads(
    denoise: Denoise,
    noise: float = 0.5,
    start: float = 0.9,
    end: float = 0.6,
    mix: float = 1.0,
    sigma_data: float = 0.5,
    *,
    run: Run,
) -> Denoise:
    """Condition-annealed sampling (CADS, Sadat et al. 2023, arXiv:2310.17347, algorithm 1).

    The condition's vectors become sqrt(g) c + noise sqrt(1 - g) std(c) n, scaled back to c's mean and deviation, where
    g rises from 0 at noise levels above ``start`` to 1 below ``end``: the layout is drawn with little regard to the
    prompt, the rest by it. Each image has its own n at each evaluation, which follows from what it starts from, so that
    no image depends on its batch. 0 is off. It goes around classifier-free guidance, whose "nothing" stays as it is.

    Args:
        denoise: What to guide; a condition without vectors of a text passes as it is.
        noise: The paper's s, here in units of the vectors' own standard deviation.
        start, end: Noise levels as ``strength`` has them: sigma / (sigma + sigma_data), from 1 (noise alone) to 0.
        mix: How much of the scaling back (their psi); less gives more variety and worse images.
        sigma_data: Standard deviation of the data.
    """
    if start < end:
        raise InputError(f"cads anneals from the level start down to end, got {start:g} and {end:g}. Exchange them.")
    seeds: list[int] = []

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        if not seeds:
            seeds.extend(map(_seed, x))
        level = run.sigma / (run.sigma + sigma_data)
        g = min(max((start - level) / max(start - end, 1e-9), 0.0), 1.0)
        if cond is None or noise == 0 or g == 1:
            return denoise(x, sigma, cond)
        parts = cond.parts()
        for k, name in enumerate(name for name in NOISED if name in parts):
            c = parts[name].expand(len(x), *parts[name].shape[1:])
            own = [generator(seed, Stream.CONDITION_NOISE, run.index, k) for seed in seeds]
            n = torch.stack([torch.randn(c.shape[1:], generator=each) for each in own]).to(c)
            axes = tuple(range(1, c.ndim))
            mean, std = c.mean(axes, keepdim=True), c.std(axes, keepdim=True)
            noisy = g**0.5 * c + noise * (1 - g) ** 0.5 * std * n
            new_mean, new_std = noisy.mean(axes, keepdim=True), noisy.std(axes, keepdim=True)
            scaled = (noisy - new_mean) / new_std.clamp(min=1e-8) * std + mean
            parts[name] = torch.lerp(noisy, scaled, mix)
        return denoise(x, sigma, Cond.of(parts))

    return guided


def _seed(x: Tensor) -> int:
    """A number that follows from the values of one sample."""
    values = x.detach().float().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(values).digest()[:7], "big")
