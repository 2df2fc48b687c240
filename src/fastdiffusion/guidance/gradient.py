"""Guidance by the gradient of a log-probability or of any loss on x0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers import expand
from ..errors import InputError
from ..types import Cond, Denoise, Run
from .core import ALWAYS, Interval, Other, Scale, guidance, scale_at


class LogProb(Protocol):
    """log p(y | x; sigma) of noisy ``x``, one number per image, up to a constant; ``cond`` holds y."""

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
def classifier(
    denoise: Denoise,
    log_prob: LogProb,
    scale: Scale = 1.0,
    interval: Interval = ALWAYS,
    label: int | None = None,
    *,
    run: Run,
) -> Denoise:
    """Classifier guidance: D + scale * sigma^2 * grad_x log p(y | x; sigma) (Dhariwal & Nichol 2021, arXiv:2105.05233).

    Their algorithm 2 in sigma. With the exact log-probability and scale 1 this is the exact conditional denoiser;
    ``tasks.classification.train.train_classifier`` trains one: a net whose ``log_prob`` is meant. 0 is off. With a
    ``label`` it is of that class for every image, of a model that may have no classes of its own.
    """
    log_prob = getattr(log_prob, "log_prob", log_prob)

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run, interval, off=0.0)
        x0 = denoise(x, sigma, cond)
        if now == 0:
            return x0
        of = cond if label is None else Cond(label=torch.full((len(x),), label, device=x.device))
        push, _ = gradient(lambda at: (log_prob(at, sigma, of), None), x)
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
    decode: Callable[[Tensor], Tensor] | None = None,
    *,
    run: Run,
) -> Denoise:
    """Lower any Python ``loss`` on x0 while sampling, as if p(y | x0) were exp(-scale * loss(x0)).

    D' = D - scale * Cov(x0 | x) * grad loss(D): the posterior mean of x0 to first order in ``scale``. Cov / sigma^2
    is the denoiser's own Jacobian, so ``through=True`` differentiates through the denoiser (Chung et al. 2023, DPS,
    arXiv:2209.14687; it takes about three times as long). ``through=False`` takes Cov of Gaussian data instead,
    sigma^2 * sigma_data^2 / (sigma^2 + sigma_data^2) (Song et al. 2023, PGDM), and differentiates the loss alone.
    0 is off.

    Args:
        denoise: What to guide.
        loss: From x0 of shape (b, *d), or the images of it, to one number per image, shape (b,).
        scale: How strongly; in 1 / units of the loss.
        interval: Guide only where low < sigma <= high.
        through: Whether to differentiate through the denoiser.
        sigma_data: Standard deviation of the data, for ``through=False`` only.
        decode: From x0 to images, for a loss on the images of a model of latents: ``model.autoencoder.decode``
            (``Model.decode`` keeps no graph).
    """

    def of_images(x0: Tensor) -> Tensor:
        return loss(x0 if decode is None else decode(x0))

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run, interval, off=0.0)
        if now == 0:
            return denoise(x, sigma, cond)
        variance = expand(sigma, x).square()
        if through:

            def forward(at: Tensor) -> tuple[Tensor, Tensor]:
                x0 = denoise(at, sigma, cond)
                return of_images(x0), x0

            push, x0 = gradient(forward, x)
            x0 = x0 if x.requires_grad else x0.detach()
        else:
            x0 = denoise(x, sigma, cond)
            push, _ = gradient(lambda at: (of_images(at), None), x0)
            variance = variance * sigma_data**2 / (variance + sigma_data**2)
        return x0 - now * variance * push

    return guided
