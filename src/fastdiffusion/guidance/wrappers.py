"""Guidance by known pixels, an estimated noise level, a symmetry of the data, or the previous estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers import expand
from ..types import Cond, Denoise
from .core import guidance, rows_like


@guidance
def self_conditioned(denoise: Denoise) -> Denoise:
    """Feed each estimate back into the next evaluation (Chen et al. 2022, arXiv:2208.04202, algorithm 2)."""
    estimate: Tensor | None = None

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        nonlocal estimate
        previous = torch.zeros_like(x) if estimate is None else rows_like(estimate, x)
        estimate = denoise(x, sigma, replace(cond or Cond(), estimate=previous))
        return estimate

    return guided


@guidance
def inpaint(denoise: Denoise, image: Float[Tensor, "b *d"], mask: Tensor, sigma_data: float = 0.5) -> Denoise:
    """Paint where ``mask`` is 1 and keep ``image`` where it is 0; m between changes by the strength m.

    Replacement (Song et al. 2021b, app. I.2; Lugmayr et al. 2022, RePaint): the sampler re-degrades the known pixels
    with the run's own noise, and the result holds them exactly. A pixel of mask m is known until the noise falls to
    the level that ``strength`` m means, and free from there on (differential diffusion, Levin & Fried 2023,
    arXiv:2306.00950, in sigma): soft edges are drawn, not faded. ``image`` and ``mask`` broadcast to the batch.
    """
    level = sigma_data * mask / (1 - mask)  # infinite where the mask is 1

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        free = expand(sigma, x) <= rows_like(level, x)
        return torch.where(free, denoise(x, sigma, cond), rows_like(image, x))

    return guided


@guidance
def blind(denoise: Denoise, level: Callable[[Tensor], Tensor]) -> Denoise:
    """Pass the denoiser the noise level that ``level(x)`` estimates for each image, instead of the sampler's.

    ``fastdiffusion.tasks.classification.train.train_noise_level`` trains one. The sampler's own steps stay as planned.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return denoise(x, level(x).to(sigma), cond)

    return guided


@guidance
def self_ensemble(denoise: Denoise) -> Denoise:
    """The mean of the estimates of all eight rotations and mirror images, each turned back: eight evaluations for one.

    Timofte et al. 2016 (arXiv:1511.02228, sec. 3.6). The best denoiser of data that look alike in all eight
    orientations turns with its input; a learned one nearly does, and the squared error of the mean is at most the mean
    of the eight (Jensen). For images (b, c, h, w); a square one turns by quarters, any other by halves.
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
