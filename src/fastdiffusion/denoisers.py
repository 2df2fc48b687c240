"""From a network to a denoiser: preconditioning and parameterisation.

A network ``F`` sees a unit-variance input and is asked for a unit-variance target. What the target is (noise, score,
x0, v, flow velocity, EDM's mix) is a row of four functions of sigma, and every row gives the same thing, a denoiser:

    D(x, sigma) = c_skip(sigma) * x + c_out(sigma) * F(c_in(sigma) * x, c_noise(sigma))    (Karras et al. 2022, eq. 7)

With ``snr = sigma_data^2 / sigma^2`` all schedules (VP, VE, flow) are one and the same family in sigma. The state of
the VP process is ``x / sqrt(1 + sigma^2)``; that of rectified flow ``x / (1 + sigma)``, at ``t = sigma / (1 + sigma)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import InputError, unknown
from .types import Cond, Denoise


class Scaling(NamedTuple):
    """The four coefficients of eq. 7, each of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def _unit(sigma: Tensor, sigma_data: float) -> Tensor:
    """1 / sqrt(sigma^2 + sigma_data^2): scales x = x0 + sigma * noise to unit variance."""
    return torch.rsqrt(sigma.square() + sigma_data**2)


def edm(sigma: Tensor, sigma_data: float) -> Scaling:
    """The F of EDM (Karras et al. 2022, table 1): its target has unit variance at every sigma."""
    c_in = _unit(sigma, sigma_data)
    return Scaling((sigma_data * c_in).square(), sigma * sigma_data * c_in, c_in, sigma.log() / 4)


def v(sigma: Tensor, sigma_data: float) -> Scaling:
    """v = (noise * sigma_data - sigma * x0 / sigma_data) * c_in (Salimans & Ho 2022, app. D, where sigma_data = 1)."""
    skip, out, c_in, c_noise = edm(sigma, sigma_data)
    return Scaling(skip, -out, c_in, c_noise)


def noise(sigma: Tensor, sigma_data: float) -> Scaling:
    """The noise itself (Ho et al. 2020, eq. 14): x0 = x - sigma * F."""
    return Scaling(torch.ones_like(sigma), -sigma, _unit(sigma, sigma_data), sigma.log() / 4)


def score(sigma: Tensor, sigma_data: float) -> Scaling:
    """sigma times the score (Song & Ermon 2020, technique 3): x0 = x + sigma^2 * score = x + sigma * F."""
    return Scaling(torch.ones_like(sigma), sigma, _unit(sigma, sigma_data), sigma.log() / 4)


def x0(sigma: Tensor, sigma_data: float) -> Scaling:
    """The clean data, in units of sigma_data."""
    return Scaling(
        torch.zeros_like(sigma), torch.full_like(sigma, sigma_data), _unit(sigma, sigma_data), sigma.log() / 4
    )


def flow(sigma: Tensor, sigma_data: float) -> Scaling:
    """The velocity noise - x0 of rectified flow (Lipman et al. 2023, Liu et al. 2023), x_t = (1 - t) x0 + t noise.

    ``sigma_data`` plays no part in the path. 1 - t is computed as 1 / (1 + sigma), because t rounds to 1 in float32.
    """
    t, rest = sigma / (1 + sigma), 1 / (1 + sigma)
    return Scaling(rest, -t, rest, t)


PARAMETERIZATIONS: dict[str, Callable[[Tensor, float], Scaling]] = {
    "edm": edm,
    "v": v,
    "noise": noise,
    "score": score,
    "x0": x0,
    "flow": flow,
}


def expand(sigma: Float[Tensor, " b"], like: Float[Tensor, "b *d"]) -> Tensor:
    """Give ``sigma`` trailing axes so that it multiplies ``like`` image by image."""
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))


def scaling(parameterization: str, sigma: Tensor, sigma_data: float) -> Scaling:
    """The coefficients of a named parameterisation; raises InputError for an unknown name."""
    if parameterization not in PARAMETERIZATIONS:
        raise unknown("parameterization", parameterization, PARAMETERIZATIONS)
    return PARAMETERIZATIONS[parameterization](sigma, sigma_data)


def to_x0(parameterization: str, output: Tensor, x: Tensor, sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """A network's output turned into x0 (eq. 7). ``sigma`` has shape (b,)."""
    c = scaling(parameterization, expand(sigma, x), sigma_data)
    return c.c_skip * x + c.c_out * output


def from_x0(parameterization: str, x0: Tensor, x: Tensor, sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """The network output that means ``x0``: the inverse of :func:`to_x0`, and the target of training."""
    c = scaling(parameterization, expand(sigma, x), sigma_data)
    return (x0 - c.c_skip * x) / c.c_out


class Denoiser(nn.Module):
    """A network with its preconditioning: ``D(x, sigma, cond) -> x0``.

    Args:
        net: ``net(x, c_noise, cond) -> F`` with ``x`` of shape (b, c, h, w) and ``c_noise`` of shape (b,).
        parameterization: A name in ``PARAMETERIZATIONS``: what the network predicts.
        sigma_data: Standard deviation of the data (measure it: ``fastdiffusion.data.measure_sigma_data``).
        self_condition: Whether the network also takes its previous estimate (Chen et al. 2022).
        cond_channels: Channels of ``cond.image``, an image to condition on (a degraded input); 0 is none.

    With such an image, what is denoised is the difference ``x - image``, and ``sigma_data`` is its standard deviation:
    an untrained network returns the image itself. The noisy difference is an input as its best linear estimate, which
    fades as sigma grows: at the highest level the output depends on the image alone, and one evaluation gives the
    posterior mean E[x0 | image] without noise in it.
    """

    def __init__(
        self,
        net: nn.Module,
        parameterization: str = "edm",
        sigma_data: float = 0.5,
        self_condition: bool = False,
        cond_channels: int = 0,
    ):
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise unknown("parameterization", parameterization, PARAMETERIZATIONS)
        if not sigma_data > 0:
            raise InputError(f"sigma_data must be above 0, got {sigma_data}. Measure it on the data, e.g. 0.5.")
        self.net = net
        self.parameterization = parameterization
        self.sigma_data = float(sigma_data)
        self.self_condition = self_condition
        self.cond_channels = cond_channels

    def forward(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]:
        """The expected clean data given ``x`` at noise level ``sigma``."""
        c = scaling(self.parameterization, expand(sigma, x), self.sigma_data)
        if not self.cond_channels:
            return c.c_skip * x + c.c_out * self.net(self._inputs(c.c_in * x, cond), c.c_noise.flatten(), cond)
        if cond is None or cond.image is None:
            raise InputError("This model restores an image, and none was given. Use fastdiffusion.restore.")
        base = cond.image[:, : x.shape[1]]
        x = x - base
        linear = (self.sigma_data * _unit(expand(sigma, x), self.sigma_data)).square() * x
        inputs = torch.cat([self._inputs(2 * linear, cond), 2 * cond.image], 1)  # images vary by about 0.5
        return base + c.c_skip * x + c.c_out * self.net(inputs, c.c_noise.flatten(), cond)

    def _inputs(self, x: Tensor, cond: Cond | None) -> Tensor:
        """What the network sees of the noisy data, and its previous estimate if it takes one."""
        if not self.self_condition:
            return x
        estimate = cond.estimate if cond is not None and cond.estimate is not None else torch.zeros_like(x)
        return torch.cat([x, estimate / self.sigma_data], 1)


class Converted(nn.Module):
    """A network trained under one parameterisation, converted to another: the denoiser is the same.

    ``Denoiser(Converted(net, "noise", "v"), "v")`` equals ``Denoiser(net, "noise")``; distillation and fine-tuning
    can so change the target of a trained model.
    """

    def __init__(self, net: nn.Module, source: str, target: str, sigma_data: float = 0.5):
        super().__init__()
        self.net, self.source, self.target, self.sigma_data = net, source, target, sigma_data

    def forward(self, inputs: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Recover sigma from ``c_noise``, evaluate the old network, and convert its output."""
        sigma = c_noise / (1 - c_noise) if self.target == "flow" else (4 * c_noise).exp()
        new, old = (scaling(p, expand(sigma, inputs), self.sigma_data) for p in (self.target, self.source))
        x = inputs / new.c_in
        x0 = old.c_skip * x + old.c_out * self.net(old.c_in * x, old.c_noise.flatten(), cond)
        return (x0 - new.c_skip * x) / new.c_out


def score_of(denoise: Denoise) -> Callable[..., Tensor]:
    """The score of the noisy data, (D(x, sigma) - x) / sigma^2 (Tweedie's formula; Karras et al. 2022, eq. 3)."""

    def score(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return (denoise(x, sigma, cond) - x) / expand(sigma, x).square()

    return score
