"""The denoising loss and its weights. A weight is a function of sigma: how much the error of x0 counts there.

    loss = E[ weight(sigma) * |D(x0 + sigma * noise, sigma) - x0|^2 ]

Because the error is measured in x0, a weight means the same whatever the network predicts: ``weight="noise"`` is
DDPM's simple loss for an x0 network too. ``snr = 1 / sigma^2`` (Ho et al.'s alpha_bar / (1 - alpha_bar)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .denoisers import expand
from .errors import unknown
from .types import Cond, Denoise

SIGMA_LIMIT = 1e4  # stands for infinity (SNR 0): x0 is then lost in float32 anyway, and no weight overflows


def _snr(sigma: Tensor) -> Tensor:
    return sigma.clamp(1e-6, SIGMA_LIMIT).square().reciprocal()


def edm(sigma: Tensor, sigma_data: float | Tensor = 0.5) -> Tensor:
    """1 / c_out^2, so that every noise level starts with a loss of 1 (Karras et al. 2022, table 1)."""
    return _snr(sigma) + sigma_data**-2


def noise(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """snr: the mean squared error of the noise (Ho et al. 2020, eq. 14)."""
    return _snr(sigma)


def x0(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """1: the mean squared error of the clean data."""
    return torch.ones_like(sigma)


def v(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """snr + 1: the mean squared error of v where sigma_data is 1 (Salimans & Ho 2022); elsewhere ``edm`` is."""
    return _snr(sigma) + 1


def flow(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """((1 + sigma) / sigma)^2: the mean squared error of the velocity (Lipman et al. 2023)."""
    return (1 + 1 / sigma.clamp(1e-6, SIGMA_LIMIT)).square()


def min_snr(sigma: Tensor, sigma_data: float = 0.5, gamma: float = 5.0) -> Tensor:
    """min(snr, gamma) (Hang et al. 2023, arXiv:2303.09556)."""
    return _snr(sigma).clamp(max=gamma)


def p2(sigma: Tensor, sigma_data: float = 0.5, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """snr / (k + snr)^gamma (Choi et al. 2022, arXiv:2204.00227, eq. 8); gamma = 0 is ``noise`` exactly."""
    return _snr(sigma) / (k + _snr(sigma)) ** gamma


LOSS_WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "edm": edm,
    "noise": noise,
    "x0": x0,
    "v": v,
    "flow": flow,
    "min_snr": min_snr,
    "p2": p2,
}


class Uncertainty(nn.Module):
    """Learned uncertainty u(sigma): the loss becomes loss / exp(u) + u (Karras et al. 2024, EDM2, eq. 14).

    It evens out the gradients of all noise levels as training goes. That is all it does: the loss that is shown stays
    what it is without it, so that runs can be compared. A small random Fourier layer of log sigma.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int = 64, seed: int = 0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.register_buffer("freqs", 2 * torch.pi * torch.randn(channels, generator=g))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(channels, generator=g))
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """u(sigma), 0 at the start."""
        angle = sigma.log()[:, None] / 4 * self.freqs + self.phases
        return self.linear(2**0.5 * angle.cos())[:, 0]


def weight(name: str, sigma: Tensor, sigma_data: float | Tensor = 0.5, **options: float) -> Tensor:
    """The named weight at ``sigma``; raises InputError for an unknown name."""
    if name not in LOSS_WEIGHTINGS:
        raise unknown("weight", name, LOSS_WEIGHTINGS)
    return LOSS_WEIGHTINGS[name](sigma, sigma_data, **options)


def denoising_loss(
    denoise: Denoise,
    x0: Float[Tensor, "b *d"],
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b *d"],
    cond: Cond | None = None,
    weight: Callable[[Tensor], Tensor] = edm,
    uncertainty: Uncertainty | None = None,
) -> Float[Tensor, " b"]:
    """One loss per image (mean over its numbers). Denoising score matching (Vincent 2011) in EDM's form.

    ``sigma`` may be infinite (SNR 0): it is clamped to a large finite value, so that the loss stays finite.
    """
    sigma = sigma.clamp(max=SIGMA_LIMIT)
    error = denoise(x0 + expand(sigma, x0) * noise, sigma, cond) - x0
    loss = weight(sigma) * error.float().square().flatten(1).mean(1)
    if uncertainty is not None:
        u = uncertainty(sigma)
        learned = loss / u.exp() + u
        loss = learned + (loss - learned).detach()
    return loss
