"""Guidance: a function from denoiser to denoiser. Wrappers nest freely, because none of them knows the sampler.

    guided = inpaint(cfg(model.denoise, scale=3), picture, mask)

A guidance is written as a factory that returns the guided denoiser. What it remembers between calls (momentum, the
previous estimate) lives in the factory's own variables, and the sampling loop calls the factory anew at the start of
each run (:func:`start`): nothing survives a run, and two interleaved runs cannot disturb each other.

All of it rests on one identity. With Tweedie's formula D(x, sigma) = x + sigma^2 * grad log p(x; sigma), more
knowledge y adds its own gradient (Bayes):

    D(x, sigma | y) = D(x, sigma) + sigma^2 * grad_x log p(y | x; sigma)

A guidance is a way to get the last term: from a classifier, from a loss on x0, from the difference of two denoisers.
Every ``scale`` is a number or a function of sigma. Where guidance mixes two estimates 1 is off; where it adds a
gradient 0 is off; off costs nothing and changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .denoisers import expand
from .errors import InputError
from .types import Cond, Denoise

Scale = float | Callable[[float], float]
Interval = tuple[float, float]
ALWAYS: Interval = (0.0, float("inf"))
Other = TypeVar("Other")
SLACK = 1 + 1e-6  # a level that is meant may arrive rounded up to float32


@dataclass(frozen=True)
class Guided:
    """A denoiser under guidance, not yet started. Called directly, it is a run of one call."""

    factory: Callable[..., Denoise]
    denoise: Denoise
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def start(self) -> Denoise:
        """A fresh guided denoiser for one run, everything inside it started too."""
        kwargs = {name: start(value) for name, value in self.kwargs.items()}
        return self.factory(start(self.denoise), *map(start, self.args), **kwargs)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return self.start()(x, sigma, cond)


def start(denoise: Any) -> Any:
    """A denoiser ready for one run: guidance is built anew, a plain denoiser (or anything else) is itself."""
    return denoise.start() if isinstance(denoise, Guided) else denoise


def guidance(factory: Callable[..., Denoise]) -> Callable[..., Guided]:
    """Make ``factory(denoise, ...) -> denoiser`` a guidance: started anew for each run."""

    @wraps(factory)
    def wrap(denoise: Denoise, *args: Any, **kwargs: Any) -> Guided:
        return Guided(factory, denoise, args, kwargs)

    return wrap


def scale_at(scale: Scale, sigma: Tensor, interval: Interval = ALWAYS, off: float = 1.0) -> float:
    """The scale at this noise level: ``off`` unless low < sigma <= high."""
    level = float(sigma[0])
    if not interval[0] * SLACK < level <= interval[1] * SLACK:
        return off
    return scale(level) if callable(scale) else scale


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """``value`` broadcast to ``like``; one row serves all, and b rows serve a batch of several conditions per image.

    A guidance outside may stack conditions in one call and not in the next; the images are then the same, cycled.
    """
    if value.ndim == like.ndim:
        if len(like) % len(value) and len(value) % len(like):
            raise InputError(f"{len(value)} images were given for a batch of {len(like)}. Give one, or one per image.")
        value = value[torch.arange(len(like), device=value.device) % len(value)]
    return value.to(like).expand_as(like)


# ---- between two conditions, or two denoisers --------------------------------------------------------------------


@guidance
def self_conditioned(denoise: Denoise) -> Denoise:
    """Feed each estimate back into the next call (Chen et al. 2022, arXiv:2208.04202, algorithm 2)."""
    estimate: Tensor | None = None

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        nonlocal estimate
        previous = torch.zeros_like(x) if estimate is None else _rows(estimate, x)
        estimate = denoise(x, sigma, replace(cond or Cond(), estimate=previous))
        return estimate

    return guided


def replace_text(cond: Cond, other: Cond | None, rows: int) -> Cond:
    """``other`` in place of the label and words of ``cond``, whose rest is kept; None means "nothing"."""
    specified = {name: value for name, value in vars(other).items() if value is not None} if other is not None else {}
    merged = {name: value for name, value in (vars(cond.null()) | specified).items() if value is not None}
    return Cond(**{name: value.expand(rows, *value.shape[1:]) for name, value in merged.items()})


def _stacked(denoise: Denoise, x: Tensor, sigma: Tensor, conds: Sequence[Cond]) -> tuple[Tensor, ...]:
    """The estimates under several conditions, in one call."""
    n = len(conds)
    return denoise(x.repeat(n, *[1] * (x.ndim - 1)), sigma.repeat(n), Cond.cat(conds)).chunk(n)


@guidance
def cfg(
    denoise: Denoise, scale: Scale, uncond: Cond | None = None, interval: Interval = ALWAYS, rescale: float = 0.0
) -> Denoise:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    Args:
        denoise: A model trained with dropped conditions.
        scale: 1 is off and costs one call; 0 is unconditional.
        uncond: What stands for "nothing" (a negative prompt; one row serves all images); by default the condition
            with label and words dropped.
        interval: Guide only where low < sigma <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        rescale: 0 to 1, how far to pull each image's standard deviation back to that of the conditional estimate,
            against over-exposure (Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16).
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, sigma, interval)
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
def apg(
    denoise: Denoise,
    scale: Scale,
    uncond: Cond | None = None,
    interval: Interval = ALWAYS,
    parallel: float = 0.0,
    momentum: float = -0.5,
    norm: float = float("inf"),
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
        now = scale_at(scale, sigma, interval)
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
def autoguidance(denoise: Denoise, weak: Denoise, scale: Scale, interval: Interval = ALWAYS) -> Denoise:
    """Guide by a worse version of the model: weak + scale * (D - weak) (Karras et al. 2024, arXiv:2406.02507, eq. 5).

    ``weak`` is smaller or trained for less long, and told the same condition; the errors that both make are pushed
    away without narrowing to the condition. 1 is off and costs one call.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, sigma, interval)
        strong = denoise(x, sigma, cond)
        return strong if now == 1 else torch.lerp(weak(x, sigma, cond), strong, now)

    return guided


@guidance
def compose(denoise: Denoise, conds: Sequence[Cond], scales: Sequence[float], uncond: Cond | None = None) -> Denoise:
    """Several conditions at once ("a AND b"): uncond + sum of scale_i * (cond_i - uncond).

    Concept conjunction (Liu et al. 2022, arXiv:2206.01714, eq. 11); a negative scale is concept negation. The
    condition given at the call only says what else is known (picture, estimate). One call on a larger batch.
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


@guidance
def scheduled(denoise: Denoise, conds: Sequence[tuple[float, Cond]]) -> Denoise:
    """Change the condition on the way ("[a:b:0.4]"): pairs (sigma, cond), each used where the level is <= its sigma.

    Pairs fall in sigma; above the first the condition of the call is used. What a pair does not say is kept.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        for level, other in conds:
            if float(sigma[0]) <= level * SLACK:
                cond = replace_text(cond or other, other, len(x))
        return denoise(x, sigma, cond)

    return guided


# ---- by a gradient ----------------------------------------------------------------------------------------------


class LogProb(Protocol):
    """log p(y | x; sigma) of noisy ``x``, one number per image, up to a constant; ``cond`` says which y."""

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]: ...


def gradient(f: Callable[[Tensor], tuple[Tensor, Other]], x: Tensor) -> tuple[Tensor, Other]:
    """(gradient of the values' sum, other) for ``f(x) = (values, other)``, values one per image.

    Works inside ``no_grad``, and stays differentiable where the caller differentiates the whole run.
    """
    outer = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        x = x if outer else x.detach().requires_grad_()
        values, other = f(x)
        if values.shape != x.shape[:1]:
            raise InputError(
                f"A loss or log-probability must give one number per image, got shape {tuple(values.shape)} for "
                f"{len(x)} images. Average within the image only: (...).flatten(1).mean(1)."
            )
        return torch.autograd.grad(values.sum(), x, create_graph=outer)[0], other


@guidance
def classifier(denoise: Denoise, log_prob: LogProb, scale: Scale = 1.0, interval: Interval = ALWAYS) -> Denoise:
    """Classifier guidance: D + scale * sigma^2 * grad_x log p(y | x; sigma) (Dhariwal & Nichol 2021, arXiv:2105.05233).

    Their algorithm 2 in sigma. With the exact log-probability and scale 1 this is the exact conditional denoiser;
    ``fastdiffusion.tasks.classifiers.train_classifier`` trains one. 0 is off.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, sigma, interval, off=0.0)
        x0 = denoise(x, sigma, cond)
        if now == 0:
            return x0
        push, _ = gradient(lambda at: (log_prob(at, sigma, cond), None), x)
        return x0 + now * expand(sigma, x).square() * push

    return guided


@guidance
def loss_guidance(
    denoise: Denoise,
    loss: Callable[[Tensor], Tensor],
    scale: Scale = 1.0,
    interval: Interval = ALWAYS,
    through: bool = True,
    sigma_data: float = 0.5,
) -> Denoise:
    """Lower any Python ``loss`` on x0 while sampling, as if p(y | x0) were exp(-scale * loss(x0)).

    D' = D - scale * Cov(x0 | x) * grad loss(D): the posterior mean of x0 to first order in ``scale``. Cov / sigma^2
    is the denoiser's own Jacobian, so ``through=True`` differentiates through the denoiser (Chung et al. 2023, DPS,
    arXiv:2209.14687; about three calls' time). ``through=False`` takes Cov of Gaussian data instead, sigma^2 *
    sigma_data^2 / (sigma^2 + sigma_data^2) (Song et al. 2023, PGDM), and differentiates the loss alone. 0 is off.

    Args:
        denoise: What to steer.
        loss: From x0 of shape (b, *d) to one number per image, shape (b,).
        scale: How strongly; in 1 / units of the loss.
        interval: Steer only where low < sigma <= high.
        through: Whether to differentiate through the denoiser.
        sigma_data: Standard deviation of the data, for ``through=False`` only.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, sigma, interval, off=0.0)
        if now == 0:
            return denoise(x, sigma, cond)
        variance = expand(sigma, x).square()
        if through:

            def forward(at: Tensor) -> tuple[Tensor, Tensor]:
                x0 = denoise(at, sigma, cond)
                return loss(x0), x0

            push, x0 = gradient(forward, x)
            x0 = x0 if x.requires_grad else x0.detach()
        else:
            x0 = denoise(x, sigma, cond)
            push, _ = gradient(lambda at: (loss(at), None), x0)
            variance = variance * sigma_data**2 / (variance + sigma_data**2)
        return x0 - now * variance * push

    return guided


# ---- by what is known -------------------------------------------------------------------------------------------


@guidance
def inpaint(denoise: Denoise, image: Float[Tensor, "b *d"], mask: Tensor) -> Denoise:
    """Paint where ``mask`` is 1 and keep ``image`` where it is 0; between is a mix.

    Replacement (Song et al. 2021b, app. I.2; Lugmayr et al. 2022, RePaint): the sampler re-degrades the known pixels
    with the run's own noise, and the result holds them exactly. ``image`` and ``mask`` broadcast to the batch.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.lerp(_rows(image, x), denoise(x, sigma, cond), _rows(mask, x))

    return guided


@guidance
def blind(denoise: Denoise, level: Callable[[Tensor], Tensor]) -> Denoise:
    """Tell the denoiser the noise level that ``level(x)`` sees in each image, instead of the one that is given.

    ``fastdiffusion.tasks.classifiers.train_noise_level`` trains one. The sampler's own steps stay as planned.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return denoise(x, level(x).to(sigma), cond)

    return guided


@guidance
def self_ensemble(denoise: Denoise) -> Denoise:
    """The mean of the answers to all eight turns and mirror images, each turned back; eight calls for one.

    Timofte et al. 2016 (arXiv:1511.02228, sec. 3.6; "self-ensemble"). The best denoiser of data that look alike in all
    eight ways turns with its input; a learned one nearly does, and the squared error of the mean is at most the mean of
    the eight (Jensen). For pictures (b, c, h, w); a square one turns by quarters, any other by halves.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        images = {} if cond is None else {"image": cond.image, "estimate": cond.estimate}

        def answer(rotations: int, mirror: bool) -> Tensor:
            def there(v: Tensor) -> Tensor:
                v = torch.rot90(v, rotations, (2, 3))
                return v.flip(3) if mirror else v

            moved = cond and replace(cond, **{k: there(v) for k, v in images.items() if v is not None})
            output = denoise(there(x), sigma, moved)
            return torch.rot90(output.flip(3) if mirror else output, -rotations, (2, 3))

        rotations = range(0, 4, 1 if x.shape[2] == x.shape[3] else 2)
        answers = [answer(t, mirror) for t in rotations for mirror in (False, True)]
        return torch.stack(answers).mean(0)

    return guided


GUIDANCE: dict[str, Callable[..., Guided]] = {
    f.__name__: f
    for f in (
        cfg, apg, autoguidance, compose, scheduled, classifier, loss_guidance, inpaint, blind, self_ensemble,
        self_conditioned,
    )
}  # fmt: skip
