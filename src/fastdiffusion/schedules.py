"""Noise levels: where to sample, and where to train.

``schedules.<name>(n, ...)`` gives the n + 1 decreasing sigmas of an n-step run, the last one 0 (float64).
``SIGMA_DISTRIBUTIONS[name](u, ...)`` turns u, uniform in (0, 1), into the sigma of a training image: an inverse
distribution function, so that a stratified u makes a stratified sigma and a quantile is one evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import InputError, unknown

Sigmas = Float[Tensor, " n"]
_LATEST = 1e9  # of the times that a process is followed to


def check_sigmas(sigmas: Tensor | Sequence[float], rising: bool = False) -> Tensor:
    """Sigmas as a float64 tensor; raises InputError unless they are finite, decrease (or ``rising``) and end at 0."""
    s = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").flatten()
    remedy = f"Make them with fastdiffusion.schedules.karras({max(len(s) - 1, 1)})."
    if len(s) < 2 or not bool(s.isfinite().all()) or bool((s < 0).any()):
        raise InputError(
            f"sigmas must be at least two finite numbers, got {[round(v, 4) for v in s.tolist()]}. {remedy}"
        )
    if s[-1] != 0:
        raise InputError(f"sigmas must decrease and end at 0, got {len(s)} values ending at {s[-1]:g}. {remedy}")
    if not bool((s[:-1] > 0).all()):
        raise InputError(f"only the last sigma may be 0, got {int((s[:-1] == 0).sum())} earlier ones. {remedy}")
    if not rising and not bool((s.diff() < 0).all()):
        where = int((s.diff() >= 0).nonzero()[0])
        raise InputError(f"sigmas must decrease, got {s[where]:g} then {s[where + 1]:g} at {where}. {remedy}")
    return s


def _grid(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """0 to 1 in n values; n = 1 is the start alone."""
    if n < 1:
        raise InputError(f"steps must be at least 1, got {n}. Try steps=12.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise InputError(f"need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}. Try 0.002 and 80.")
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)


def _close(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Sigmas:
    """Even steps in sigma^(1/rho) (Karras et al. 2022, eq. 5); rho = 1 is linear in sigma."""
    u = _grid(n, sigma_min, sigma_max)
    a, b = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _close((a + u * (b - a)) ** rho)


def exponential(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Sigmas:
    """Even steps in log sigma (the limit of ``karras`` at rho = infinity); best for most multistep samplers."""
    u = _grid(n, sigma_min, sigma_max)
    return _close((math.log(sigma_max) + u * math.log(sigma_min / sigma_max)).exp())


def _by_snr(n: int, sigma_min: float, sigma_max: float, sigma_of_t: Callable[[Tensor], Tensor]) -> Sigmas:
    """Even steps in the time t of a monotone sigma(t), between the times of sigma_max and sigma_min (by bisection)."""
    u = _grid(n, sigma_min, sigma_max)
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    low, high = torch.zeros_like(ends), torch.ones_like(ends)
    while bool((sigma_of_t(high) < ends).any()):  # a process may be followed beyond its customary end, t = 1
        high = 2 * high
        if high[0] > _LATEST:
            raise InputError(f"This schedule never reaches the noise level {sigma_max:g}. Try 'exponential'.")
    for _ in range(60):
        midpoint = (low + high) / 2
        below = sigma_of_t(midpoint) < ends
        low, high = torch.where(below, midpoint, low), torch.where(below, high, midpoint)
    t = low[0] + u * (low[1] - low[0])
    return _close(sigma_of_t(t))


def sigma_linear(t: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """sigma(t) of the linear-beta VP process (Ho et al. 2020): beta from 1e-4 to 0.02 over 1,000 steps."""
    return torch.expm1(beta_min * t + (beta_max - beta_min) * t * t / 2).sqrt()


def time_linear(sigma: float, beta_min: float = 0.1, beta_max: float = 20.0) -> float:
    """t of the linear-beta VP process at ``sigma``: the inverse of :func:`sigma_linear`."""
    slope = beta_max - beta_min
    return (math.sqrt(beta_min**2 + 2 * slope * math.log1p(sigma * sigma)) - beta_min) / slope


def sigma_scaled_linear(t: Tensor, beta_min: float = 0.85, beta_max: float = 12.0) -> Tensor:
    """sigma(t) where sqrt(beta) is linear (Rombach et al. 2022): Stable Diffusion's 0.00085..0.012."""
    a, b = math.sqrt(beta_min), math.sqrt(beta_max)
    return torch.expm1(a * a * t + a * (b - a) * t**2 + (b - a) ** 2 * t**3 / 3).sqrt()


def sigma_cosine(t: Tensor, shift: float = 1.0) -> Tensor:
    """sigma(t) = shift * tan(pi t / 2) (Nichol & Dhariwal 2021, with s = 0; shifted as Hoogeboom et al. 2023)."""
    return shift * (math.pi / 2 * t.clamp(max=1 - 1e-9)).tan()


def sigma_sigmoid(t: Tensor, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """sigma(t) of the sigmoid schedule (Jabri et al. 2022, arXiv:2212.11972)."""
    a, b = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))
    gamma = ((b - torch.sigmoid((t * (end - start) + start) / tau)) / (b - a)).clamp(1e-12, 1)
    return (1 / gamma - 1).sqrt()


def sigma_flow(t: Tensor, shift: float = 1.0) -> Tensor:
    """sigma(t) = shift * t / (1 - t): rectified flow. A "shift" only multiplies sigma (Esser et al. 2024)."""
    return shift * t / (1 - t).clamp(min=1e-9)


def linear(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Sigmas:
    """Even steps in the time of the linear-beta process, DDPM's."""
    return _by_snr(n, sigma_min, sigma_max, sigma_linear)


def scaled_linear(n: int, sigma_min: float = 0.002, sigma_max: float = 14.0) -> Sigmas:
    """Even steps in the time of Stable Diffusion's process."""
    return _by_snr(n, sigma_min, sigma_max, sigma_scaled_linear)


def cosine(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, shift: float = 1.0) -> Sigmas:
    """Even steps in the time of the cosine process."""
    return _by_snr(n, sigma_min, sigma_max, lambda t: sigma_cosine(t, shift))


def sigmoid(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Sigmas:
    """Even steps in the time of the sigmoid process."""
    return _by_snr(n, sigma_min, sigma_max, sigma_sigmoid)


def flow(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, shift: float = 1.0) -> Sigmas:
    """Even steps in the time of rectified flow, shifted."""
    return _by_snr(n, sigma_min, sigma_max, lambda t: sigma_flow(t, shift))


# "Align Your Steps": levels of 10 steps that their authors optimized for three models.
AYS = {
    "ays_sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def _ays(name: str, n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """A published list for another number of steps, log-linearly as its authors do, its ends moved to this model's."""
    _grid(n, sigma_min, sigma_max)
    u = torch.tensor(AYS[name], dtype=torch.float64).log()
    u = (u - u[0]) / (u[-1] - u[0])
    at = torch.linspace(0, len(u) - 1, n + 1, dtype=torch.float64)[:-1]
    below = at.long()
    u = torch.lerp(u[below], u[below + 1], at - below)
    return _close(sigma_max * (u * math.log(sigma_min / sigma_max)).exp())


def ays_sd1(n: int, sigma_min: float = 0.029, sigma_max: float = 14.615) -> Sigmas:
    """Align Your Steps for Stable Diffusion 1 (Sabour et al. 2024, arXiv:2404.14507), stretched to other levels."""
    return _ays("ays_sd1", n, sigma_min, sigma_max)


def ays_sdxl(n: int, sigma_min: float = 0.029, sigma_max: float = 14.615) -> Sigmas:
    """Align Your Steps for SDXL (Sabour et al. 2024, arXiv:2404.14507), stretched to other levels."""
    return _ays("ays_sdxl", n, sigma_min, sigma_max)


def ays_svd(n: int, sigma_min: float = 0.002, sigma_max: float = 700.0) -> Sigmas:
    """Align Your Steps for Stable Video Diffusion (Sabour et al. 2024, arXiv:2404.14507), stretched likewise."""
    return _ays("ays_svd", n, sigma_min, sigma_max)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (karras, exponential, linear, scaled_linear, cosine, sigmoid, flow, ays_sd1, ays_sdxl, ays_svd)
}


def schedule(name: str, n: int, **options: float) -> Sigmas:
    """The named schedule; raises InputError for an unknown name."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name](n, **options)


def strength_sigma(strength: float, sigma_data: float, sigma_max: float = math.inf) -> float:
    """The noise level that image to image starts from: ``strength`` is the part of noise in the mix.

    sigma = sigma_data * s / (1 - s), so that s = sigma / (sigma + sigma_data), the time of a rectified flow. 0 keeps
    the image, 1 forgets it: a run then starts from ``sigma_max``, which no strength goes beyond. Raises InputError
    outside of 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be from 0 to 1, got {strength!r}. Try 0.5.")
    return min(sigma_data * strength / (1 - strength), sigma_max) if strength < 1 else sigma_max


# ---- sigmas that rise on purpose ------------------------------------------------------------------------------


def restart(sigmas: Tensor | Sequence[float], low: float, high: float, steps: int, times: int) -> Sigmas:
    """From the sigma nearest ``low`` go back to ``high`` and down in ``steps``, ``times`` over (Xu et al. 2023).

    Sigmas too coarse to have one below ``high`` are returned as they are.
    """
    s = check_sigmas(sigmas)
    if not 0 < low < high or steps < 1 or times < 0:
        raise InputError(
            f"restart needs 0 < low < high and steps >= 1, got {low:g}, {high:g}, {steps}. Try 0.05, 0.3, 4."
        )
    at = int((s[:-1].log() - math.log(low)).abs().argmin())
    if s[at] >= high:
        return s
    excursion = karras(steps + 1, float(s[at]), high)[:-1]
    return torch.cat([s[: at + 1], *[excursion] * times, s[at + 1 :]])


def repaint(sigmas: Tensor | Sequence[float], segment: int, times: int) -> Sigmas:
    """Do every ``segment`` steps ``times``, each time back from the end to the start (Lugmayr et al. 2022)."""
    s = check_sigmas(sigmas)
    if segment < 1 or times < 1:
        raise InputError(f"repaint needs segment and times of at least 1, got {segment} and {times}. Try 10 and 2.")
    blocks = [s[i : i + segment + 1] for i in range(0, len(s) - 1, segment)]
    out = [s[:1]]
    for block in blocks:
        once = block if block[-1] > 0 else block[:-1]  # 0 cannot be gone back from
        out += [torch.cat([once[1:], once[:1]]) for _ in range(times - 1) if len(once) > 1] + [block[1:]]
    return torch.cat(out)


# ---- where to train -------------------------------------------------------------------------------------------


def lognormal(u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log sigma is normal (Karras et al. 2022, table 1)."""
    return (mean + std * math.sqrt(2) * torch.erfinv(2 * u - 1)).exp()


def uniform(u: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """log sigma is uniform."""
    return (math.log(sigma_min) + u * math.log(sigma_max / sigma_min)).exp()


def cosine_interpolated(
    u: Tensor, size: int = 32, low: float = 32, high: float = 256, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Tensor:
    """Cosine, its noise shifted from resolution ``high`` to ``low`` as t goes (Hoogeboom et al. 2023, eq. 6)."""

    def logsnr(t: Tensor, reference: float) -> Tensor:
        return -2 * (math.pi / 2 * t).tan().log() + 2 * math.log(reference / size)

    t = u.clamp(1e-6, 1 - 1e-6)
    sigma = (-(t * logsnr(t, low) + (1 - t) * logsnr(t, high)) / 2).exp()
    return sigma.clamp(sigma_min, sigma_max)


def beta_linear(u: Tensor, sigma_min: float = 0.002, sigma_max: float = 157.0) -> Tensor:
    """t uniform on the linear-beta process: DDPM's own training density."""
    return sigma_linear(u).clamp(sigma_min, sigma_max)


def beta_cosine(u: Tensor, sigma_min: float = 0.002, sigma_max: float = 157.0) -> Tensor:
    """t uniform on the cosine process."""
    return sigma_cosine(u).clamp(sigma_min, sigma_max)


def logit_normal(u: Tensor, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> Tensor:
    """Rectified flow's logit-normal time (Esser et al. 2024): sigma = t / (1 - t), so log sigma is normal again."""
    return lognormal(u, mean + math.log(shift), std)


SIGMA_DISTRIBUTIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (lognormal, uniform, cosine_interpolated, beta_linear, beta_cosine, logit_normal)
}


def stratified(n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
    """n uniform numbers, one in each n-th of (0, 1), in random order (Kingma et al. 2021, app. I.1): less variance."""
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return u[torch.randperm(n, generator=generator)].clamp(1e-6, 1 - 1e-6)
