"""Between noise levels and the times that a network was trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import schedules
from ..errors import InputError

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}  # diffusers' names of what a network predicts
CONSISTENCY = ("LCMScheduler", "TCDScheduler")  # which begin at the last time, whatever their spacing says
LAST = 2.0**-24  # alpha_bar of the last step under zero-terminal SNR, so that its sigma (4096) is finite, as diffusers


class TrainedLevels:
    """The noise levels of a trained beta schedule, sigma = sqrt((1 - alpha_bar) / alpha_bar), at t = 0, 1, ..., n - 1.

    In between, t is linear in log sigma: no level is ever rounded to a trained one.

    Args:
        config: Of a diffusers scheduler (``scheduler_config.json``).

    Attributes:
        prediction: What the network predicts, a name in ``denoisers.PARAMETERIZATIONS``.
        zero_snr: Whether the last level is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
        trailing: Whether the times of a run are even from the last one on: under zero-terminal SNR, and for networks
            distilled for few steps (Turbo, Lightning, latent consistency), whose schedulers say so.
    """

    def __init__(self, config: Mapping[str, Any]):
        scheduler = str(config.get("_class_name", "scheduler"))
        if "sigma_data" in config or "FlowMatch" in scheduler:
            raise InputError(
                f"The scheduler is {scheduler}: noise levels of EDM, and rectified flows, are not supported for this "
                "family. Take a checkpoint that was trained with betas."
            )
        kind = config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise InputError(f"The scheduler predicts {kind!r}, which this family does not: {', '.join(PREDICTIONS)}.")
        self.prediction = PREDICTIONS[kind]
        self.zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        distilled = config.get("timestep_spacing") == "trailing" or scheduler in CONSISTENCY
        self.trailing = self.zero_snr or distilled
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

    def schedule(self, steps: int, tokens: int = 0) -> Tensor:
        """The levels of a run: Karras et al.'s; if ``trailing``, even in t from the last one (Lin et al.)."""
        if not self.trailing:
            return schedules.karras(steps, self.sigma_min, self.sigma_max)
        n = len(self.log_sigmas)
        sigmas = self.sigma(n - 1 - torch.arange(steps, dtype=torch.float64) * n / steps)
        return torch.cat([sigmas, sigmas.new_zeros(1)])


TIMES: dict[str, Callable[[Tensor], Tensor]] = {  # what a network takes for t = sigma / (1 + sigma)
    "t": lambda sigma: sigma / (1 + sigma),
    "1000 t": lambda sigma: 1000 * (sigma / (1 + sigma)),
    "1 - t": lambda sigma: 1 / (1 + sigma),  # t itself rounds to 1 in float32
}


def _beta(n: int, least: float, most: float) -> Tensor:
    from scipy.stats import beta  # comes with scikit-learn

    quantiles = torch.as_tensor(beta.ppf(1 - torch.linspace(0, 1, n, dtype=torch.float64).numpy(), 0.6, 0.6))
    return least + quantiles * (most - least)


RESPACED: dict[str, Callable[[int, float, float], Tensor]] = {  # a run's times between their ends, as schedulers say
    "use_karras_sigmas": lambda n, least, most: schedules.karras(n, least, most)[:-1],
    "use_exponential_sigmas": lambda n, least, most: schedules.exponential(n, least, most)[:-1],
    "use_beta_sigmas": _beta,  # Lee et al. 2024, arXiv:2407.12173
}


class FlowLevels:
    """The noise levels of rectified flow, at t = sigma / (1 + sigma): x / (1 + sigma) = (1 - t) x0 + t noise.

    A shift of its schedule by s is sigma times s (Esser et al. 2024, arXiv:2403.03206, sec. 5.3.2); a dynamic one is
    sigma times exp(mu), where mu depends on the number of an image's tokens.

    Args:
        config: Of a diffusers scheduler.
        time: What the network takes, in ``TIMES``.
        spacing: A run's times before the shift are even from 1 to "1/n" for n steps, or to the least "trained" one.
        mu: From tokens and steps to mu; by default linear in tokens, as the configuration says.

    Attributes:
        sigma_max: Where named schedules and fits start. A usual run starts from ``TOP``.
    """

    prediction = "flow"
    TOP = 1e7  # for infinity: a finite top changes results by about its inverse

    def __init__(
        self,
        config: Mapping[str, Any],
        time: str = "t",
        spacing: str = "1/n",
        mu: Callable[[int, int], float] | None = None,
    ):
        if not is_flow(config):
            kind = config.get("_class_name", "scheduler")
            raise InputError(
                f"The scheduler is {kind}, with betas, and this family is a rectified flow. Take the folder's own one."
            )
        self.config, self.t, self.spacing, self.mu = config, TIMES[time], spacing, mu or self._linear_mu
        self.trained = int(config.get("num_train_timesteps", 1000))
        shift = float(config.get("shift", config.get("flow_shift", 1.0)) or 1.0)
        self.shift = 1.0 if config.get("use_dynamic_shifting") else shift
        self.sigma_min, self.sigma_max = self.shift / (self.trained - 1), 1e3

    def _linear_mu(self, tokens: int, steps: int) -> float:
        config = self.config
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return least + (most - least) * (tokens - low) / (high - low)

    def factor(self, steps: int, tokens: int) -> float:
        """What the sigmas of a run are multiplied by."""
        if not self.config.get("use_dynamic_shifting"):
            return self.shift
        mu = self.mu(tokens, steps)
        return mu if self.config.get("time_shift_type") == "linear" else math.exp(mu)

    def schedule(self, steps: int, tokens: int = 4096) -> Tensor:
        """The usual levels of a run, for images of so many tokens."""
        ends = {"1/n": 1 / steps, "trained": self.sigma_min / (1 + self.sigma_min)}
        t = torch.linspace(1.0, ends[self.spacing], steps, dtype=torch.float64)
        rest = 1 / (1 + self.factor(steps, tokens) * t / (1 - t))  # 1 - t of the shifted times
        if (terminal := self.config.get("shift_terminal")) and rest[-1] > 0:
            rest = rest * (1 - terminal) / rest[-1]
        if (kind := next((name for name in RESPACED if self.config.get(name)), None)) and steps > 1:
            rest = 1 - RESPACED[kind](steps, float(1 - rest[-1]), float(1 - rest[0]))
        sigmas = ((1 - rest) / rest).clamp(max=self.TOP)
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's levels are those of a rectified flow: it has no betas, or does not use them."""
    flow = config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))
    return flow or not ({"beta_start", "trained_betas"} & config.keys())


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
    if kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17
        root = ((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2).cos()
        return (1 - (root[1:] / root[:-1]).square()).clamp(max=0.999).float()
    raise InputError(
        f"The scheduler has the beta schedule {kind!r}; linear, scaled_linear and squaredcos_cap_v2 can be read."
    )
