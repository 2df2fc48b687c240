"""Guidance by comparison with the estimate without the condition, or with that of a weaker model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..denoisers import expand, from_x0, to_x0
from ..errors import InputError
from ..types import Cond, Denoise, Run
from .core import ALWAYS, Interval, Scale, guidance, scale_at, to_rows


def replace_text(cond: Cond, other: Cond | None, rows: int) -> Cond:
    """``other`` in place of the label and the text of ``cond``, all else of which is kept; None is no label, no text.

    Each may have one row, or one row per image (see :func:`~fastdiffusion.guidance.core.to_rows`).
    """
    without = cond.null().map(lambda v: to_rows(v, rows))
    return without if other is None else without.with_text(other.map(lambda v: to_rows(v, rows)))


def _stacked(denoise: Denoise, x: Tensor, sigma: Tensor, conds: Sequence[Cond]) -> tuple[Tensor, ...]:
    """The estimates under several conditions, in one evaluation of a larger batch."""
    n = len(conds)
    return denoise(x.repeat(n, *[1] * (x.ndim - 1)), sigma.repeat(n), Cond.cat(conds)).chunk(n)


@guidance
def cfg(
    denoise: Denoise,
    scale: Scale,
    uncond: Cond | None = None,
    interval: Interval = ALWAYS,
    rescale: float = 0.0,
    *,
    run: Run,
) -> Denoise:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    Args:
        denoise: A model trained with dropped conditions.
        scale: 1 is off and costs one evaluation; 0 is unconditional.
        uncond: What stands for "nothing": one row, or one per image. A negative prompt, or the model's own
            unconditional case (``conditioner.null``); by default the condition with its label and text dropped.
        interval: Guide only where low < sigma <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        rescale: 0 to 1, how far to pull each image's standard deviation back to that of the conditional estimate,
            against over-exposure (Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16).
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run, interval)
        if now == 1 or cond is None:
            return denoise(x, sigma, cond)
        negative = replace_text(cond, uncond, len(x))
        if now == 0 and rescale == 0:
            return denoise(x, sigma, negative)
        positive, without = _stacked(denoise, x, sigma, [cond, negative])
        x0 = torch.lerp(without, positive, now)
        if rescale == 0:
            return x0
        ratio = positive.flatten(1).std(1) / x0.flatten(1).std(1).clamp(min=1e-8)
        return x0 * torch.lerp(torch.ones_like(ratio), ratio, rescale).reshape(-1, *[1] * (x.ndim - 1))

    return guided


@guidance
def cfg_zero(
    denoise: Denoise,
    scale: Scale,
    uncond: Cond | None = None,
    interval: Interval = ALWAYS,
    zero: int | None = None,
    *,
    run: Run,
) -> Denoise:
    """CFG-Zero*: classifier-free guidance of flows (Fan et al. 2025, arXiv:2503.18886, algorithm 1).

    In velocities v = noise - x0: a * v_uncond + scale * (v_cond - a * v_uncond), where a = <v_cond, v_uncond> /
    |v_uncond|^2 for each image makes the two as alike as one number can. In the first ``zero`` evaluations the velocity
    is 0, and the network is not asked: what a flow says of pure noise is worse than nothing while it is undertrained.

    Args:
        denoise, scale, uncond, interval: As for :func:`cfg`.
        zero: Evaluations at velocity 0; by default the first 4 % of the steps, as in the paper: none of fewer than 25.
    """
    waiting = int(0.04 * run.steps) if zero is None else zero

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run, interval)
        if now == 1 or cond is None:
            return denoise(x, sigma, cond)
        if run.index < waiting:
            return to_x0("flow", torch.zeros_like(x), x, sigma)
        both = _stacked(denoise, x, sigma, [cond, replace_text(cond, uncond, len(x))])
        positive, without = (from_x0("flow", x0, x, sigma) for x0 in both)
        dot, square = ((a * without).flatten(1).sum(1) for a in (positive, without))
        alike = expand(dot / square.clamp(min=1e-8), x) * without
        return to_x0("flow", torch.lerp(alike, positive, now), x, sigma)

    return guided


@guidance
def embedded(denoise: Denoise, scale: Scale, uncond: Cond | None = None, *, run: Run) -> Denoise:
    """Guidance that the network was distilled to take as an input (Meng et al. 2023, arXiv:2210.03142).

    The scale is ``cond.extra["guidance"]``; one evaluation, in which ``uncond`` plays no part.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        cond = cond or Cond()
        return denoise(
            x, sigma, replace(cond, extra={**cond.extra, "guidance": sigma.new_full((len(x),), scale_at(scale, run))})
        )

    return guided


@guidance
def apg(
    denoise: Denoise,
    scale: Scale,
    uncond: Cond | None = None,
    interval: Interval = ALWAYS,
    parallel: float = 0.0,
    momentum: float = -0.5,
    norm: float = float("inf"),
    *,
    run: Run,
) -> Denoise:
    """Adaptive projected guidance: high scales without over-saturation (Sadat et al. 2024, arXiv:2410.02416, alg. 1).

    The difference of the two estimates is averaged over the steps, limited in length, and loses its part along the
    conditional estimate. ``parallel=1, momentum=0, norm=inf`` is :func:`cfg`.

    Args:
        denoise, scale, uncond, interval: As for :func:`cfg`.
        parallel: How much of the part along the estimate is kept (the paper's eta).
        momentum: Weight of the earlier differences; negative pushes away from them (beta).
        norm: Longest difference allowed, in Euclidean norm over an image (r; the paper uses 2.5 to 15 on latents).
    """
    average: Tensor | float = 0.0

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        nonlocal average
        now = scale_at(scale, run, interval)
        if now == 1 or cond is None:
            return denoise(x, sigma, cond)
        positive, without = _stacked(denoise, x, sigma, [cond, replace_text(cond, uncond, len(x))])
        average = positive - without + momentum * average
        push, along = average.flatten(1), positive.flatten(1)
        if norm < math.inf:
            push = push * (norm / push.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        along = functional.normalize(along, dim=1)
        push = push + (parallel - 1) * (push * along).sum(1, keepdim=True) * along
        return positive + (now - 1) * push.reshape(x.shape)

    return guided


@guidance
def autoguidance(denoise: Denoise, weak: Denoise, scale: Scale, interval: Interval = ALWAYS, *, run: Run) -> Denoise:
    """Guide by a worse version of the model: weak + scale * (D - weak) (Karras et al. 2024, arXiv:2406.02507, eq. 5).

    ``weak`` is smaller or trained for less long, and gets the same condition; the errors that both make are pushed
    away without narrowing to the condition. 1 is off and costs one evaluation.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run, interval)
        strong = denoise(x, sigma, cond)
        return strong if now == 1 else torch.lerp(weak(x, sigma, cond), strong, now)

    return guided


@guidance
def compose(denoise: Denoise, conds: Sequence[Cond], scales: Sequence[float], uncond: Cond | None = None) -> Denoise:
    """Several conditions at once ("a AND b"): uncond + sum of scale_i * (cond_i - uncond).

    Concept conjunction (Liu et al. 2022, arXiv:2206.01714, eq. 11); a negative scale is concept negation. The
    condition of the evaluation only adds what they leave open (image, estimate). One evaluation of a larger batch.
    """
    if len(conds) != len(scales):
        raise InputError(
            f"compose needs one scale per condition, got {len(scales)} scales for {len(conds)} conditions."
        )

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        base = cond or conds[0]
        negative = replace_text(base, uncond, len(x))
        wanted = [replace_text(base, c, len(x)) for c in conds]
        *positives, without = _stacked(denoise, x, sigma, [*wanted, negative])
        return without + sum(s * (p - without) for s, p in zip(scales, positives, strict=True))

    return guided
