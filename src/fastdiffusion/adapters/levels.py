"""Between noise levels and the times that a network was trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import schedules
from ..errors import InputError
from ..models import Size

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}  # diffusers' names of what a network predicts
LAST = 2.0**-24  # alpha_bar of the last step under zero-terminal SNR, so that its sigma (4096) is finite, as diffusers


class TrainedLevels:
    """The noise levels of a trained beta schedule, sigma = sqrt((1 - alpha_bar) / alpha_bar), at t = 0, 1, ..., n - 1.

    In between, t is linear in log sigma: no level is ever rounded to a trained one.

    Args:
        config: Of a diffusers scheduler (``scheduler_config.json``).

    Attributes:
        prediction: What the network predicts, a name in ``denoisers.PARAMETERIZATIONS``.
        zero_snr: Whether the last level is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    """

    def __init__(self, config: Mapping[str, Any]):
        kind = config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise InputError(f"The scheduler predicts {kind!r}, which this family does not: {', '.join(PREDICTIONS)}.")
        self.prediction = PREDICTIONS[kind]
        self.zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        betas = _betas(config)
        if self.zero_snr:
            root = (1 - betas).cumprod(0).sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            squared = root.square()
            betas = 1 - torch.cat([squared[:1], squared[1:] / squared[:-1]])
        alpha_bar = (1 - betas).cumprod(0).double()  # float32 up to here, as diffusers
        if self.zero_snr:
            alpha_bar[-1] = LAST
        self.log_sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().log()
        if not bool((self.log_sigmas.diff() > 0).all()):
            raise InputError("The betas of the scheduler give no rising noise levels. Take the folder's original one.")

    @property
    def sigma_min(self) -> float:
        """The level of t = 0."""
        return math.exp(float(self.log_sigmas[0]))

    @property
    def sigma_max(self) -> float:
        """The level of the last t."""
        return math.exp(float(self.log_sigmas[-1]))

    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The time, with its fraction, of each noise level; levels beyond the trained ones get the nearest."""
        exact = torch.float32 if sigma.device.type == "mps" else torch.float64  # which has no float64
        levels, u = self.log_sigmas.to(sigma.device, exact), sigma.to(exact).log()
        upper = torch.searchsorted(levels, u).clamp(1, len(levels) - 1)
        low, high = levels[upper - 1], levels[upper]
        return (upper - 1 + ((u - low) / (high - low)).clamp(0, 1)).float()

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The noise level of each time from 0 to n - 1: the inverse of :meth:`t`."""
        t = t.double().clamp(0, len(self.log_sigmas) - 1)
        lower = t.long().clamp(max=len(self.log_sigmas) - 2)
        return torch.lerp(self.log_sigmas[lower], self.log_sigmas[lower + 1], t - lower).exp()

    def schedule(self, steps: int, size: Size | None = None) -> Tensor:
        """The levels of a run: Karras et al.'s; under zero-terminal SNR even in t from the last one (Lin et al.)."""
        if not self.zero_snr:
            return schedules.karras(steps, self.sigma_min, self.sigma_max)
        n = len(self.log_sigmas)
        sigmas = self.sigma(n - 1 - torch.arange(steps, dtype=torch.float64) * n / steps)
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def _betas(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    n, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
    first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if not 1 < n <= 1 << 16:
        raise InputError(f"The scheduler has {n} training steps. Take the folder's original scheduler.")
    if kind == "linear":
        return torch.linspace(first, last, n, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float32).square()
    raise InputError(f"The scheduler has the beta schedule {kind!r}; linear and scaled_linear can be read.")
