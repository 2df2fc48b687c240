"""Zero-shot restoration: any denoiser as the prior of a measurement ``y = A x0 + b + std * noise``.

Each method is a guidance (``fastdiffusion.guidance.core``): it takes D, the mean of x0 given the noisy x, and gives an
estimate of the mean given x and y. All four are one formula,

    D' = D + C A' (A R A' + std^2)^-1 (y - A D - b)

the posterior mean where x0 given x is normal with covariance C = R. They differ in what they take C and R for: a number
(``ddnm``, ``diffpir``: no gradient, the cheapest), the denoiser's own covariance C = sigma^2 dD/dx on the left alone
(``pigdm``), with the inverse replaced by a number, which any differentiable corruption allows (``dps``), or on both
sides (``tmpd``: exact for every normal distribution, and the most expensive).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..corruptions import Operator
from ..corruptions.blurs import mirror
from ..denoisers import expand
from ..errors import InputError
from ..types import Cond, Denoise
from .core import Guided, guidance

Measured = Float[Tensor, "b o p q"]


def _variance(sigma: Tensor, sigma_data: float) -> Float[Tensor, "b 1 1 1"]:
    """Of x0 given x, for data of standard deviation ``sigma_data`` (Song et al. 2023, PiGDM, eq. 9 and app. A.3)."""
    s = sigma.square()[:, None, None, None]
    return s * sigma_data**2 / (s + sigma_data**2)


def _noise(operator: Operator, std: float | None, like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """Variance of the measurement's noise."""
    if std is not None:
        return like.new_full((len(like), 1, 1, 1), std**2)
    if operator.std is None:
        return like.new_zeros(len(like), 1, 1, 1)
    return operator.std.to(like).square()[:, None, None, None].expand(len(like), 1, 1, 1)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "b 1 1 1"]:
    return (a * b).sum((1, 2, 3), keepdim=True)


def solve(
    apply: Callable[[Tensor], Tensor], right: Tensor, steps: int = 20, tolerance: float = 1e-3
) -> Float[Tensor, "b o p q"]:
    """Conjugate gradients for a symmetric positive ``apply``, image by image."""
    z, r = torch.zeros_like(right), right
    p, rho = r, _dot(r, r)
    first = rho.clamp(min=1e-30)
    for _ in range(steps):
        if bool((rho <= tolerance**2 * first).all()):
            break
        q = apply(p)
        bend = _dot(p, q)
        if bool((bend <= 0).all()):
            break
        a = torch.where(bend > 0, rho / bend.clamp(min=1e-30), 0)  # a learned covariance may not be positive
        z, r = z + a * p, r - a * q
        before, rho = rho, _dot(r, r)
        p = r + rho / before.clamp(min=1e-30) * p
    return z


def _check(x: Tensor, y: Tensor, operator: Operator) -> None:
    if len(y) != len(x) or tuple(y.shape[1:]) != operator.out or tuple(x.shape[1:]) != operator.shape:
        raise InputError(
            f"The measurement has shape {tuple(y.shape)} and the images {tuple(x.shape)}; the corruption turns "
            f"{operator.shape} into {operator.out}, and needs one measurement per image."
        )


def nearby(x0: Tensor, y: Measured, operator: Operator, variance: Tensor, noise: Tensor) -> Tensor:
    """The mean of x0 given y, where x0 is normal around ``x0`` with ``variance``; a projection where there is no noise.

    Where the corruption is not linear but can be undone (JPEG's cells) it is that projection.
    """
    if not operator.linear or not bool((noise > 0).any()):
        return operator.project(x0, y)
    ridge, offset = noise / variance.clamp(min=1e-12), operator.mean(torch.zeros_like(x0))
    if operator.gain is not None:  # pixel by pixel: a strange one shall not spoil the others
        gain = operator.gain.to(x0)
        return x0 + gain * (y - operator.mean(x0)) / (gain.square() + ridge)
    z = solve(lambda v: operator.mean(operator.adjoint(v)) - offset + ridge * v, y - operator.mean(x0))
    return x0 + operator.adjoint(z)


def smoothly(
    x0: Tensor, y: Measured, operator: Operator, noise: Tensor, roughness: float, steps: int = 40, margin: int = 0
) -> Float[Tensor, "b c h w"]:
    """The likeliest x0 given y, where x0 is off by something smooth: its second differences are off by ``roughness``.

    That is what a blurred image lacks. A number as the variance (:func:`nearby`) makes ringing as likely as edges.
    Minimizes |y - A x|^2 / noise + |L (x - x0)|^2 / roughness^2, L the Laplacian, by conjugate gradients.

    With a ``margin`` the image is a window of a larger scene, of which as many pixels more on each side are found too
    and cut away: what lies beyond the border is blurred into it, and no mirror stands there.

    Args:
        x0: An answer to begin from.
        y: What was measured.
        operator: What happened; linear.
        noise: Variance of the measurement's noise (b, 1, 1, 1).
        roughness: Standard deviation, in units of the image.
        steps: Of conjugate gradients.
        margin: Pixels that ``operator`` takes beyond each side of ``y`` and ``x0``.
    """
    inner = (..., slice(margin, -margin or None), slice(margin, -margin or None))
    edge = (margin,) * 4
    for dim in (2, 3):
        x0 = mirror(x0, margin, margin, dim)  # a start for what lies outside
    offset, ridge = operator.mean(torch.zeros_like(x0)), noise / roughness**2

    def padded_adjoint(v: Tensor) -> Tensor:
        return operator.adjoint(functional.pad(v, edge))

    def system(v: Tensor) -> Tensor:
        return padded_adjoint((operator.mean(v) - offset)[inner]) + ridge * laplacian(laplacian(v))

    return (x0 + solve(system, padded_adjoint(y - operator.mean(x0)[inner]), steps))[inner]


def laplacian(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Four times the difference to the mean of the four neighbors; a border goes on as it is, so it is symmetric."""
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
    return 4 * x - across - padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]


@guidance
def ddnm(
    denoise: Denoise, operator: Operator, y: Measured, std: float | None = None, sigma_data: float = 0.5
) -> Denoise:
    """Range-null-space: D' = D + A+ (y - A D) without noise (Wang et al. 2022, DDNM, arXiv:2212.00490, eq. 13).

    With noise the projection becomes the posterior mean of a normal prior of PiGDM's width around D.

    Args:
        denoise: The prior.
        operator: What happened, with one row per image; linear, or with a projection of its own.
        y: What came of it.
        std: Of its noise; by default the operator's.
        sigma_data: Standard deviation of clean data.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        _check(x, y, operator)
        x0 = denoise(x, sigma, cond)
        return nearby(x0, y.to(x), operator, _variance(sigma, sigma_data).to(x), _noise(operator, std, x))

    return guided


@guidance
def diffpir(
    denoise: Denoise, operator: Operator, y: Measured, std: float | None = None, strength: float = 1.0
) -> Denoise:
    """Half-quadratic splitting: the nearest answer to y within sigma / sqrt(strength) of D (Zhu et al. 2023, DiffPIR).

    arXiv:2305.08995, eq. 13, whose lambda is ``strength``. See :func:`ddnm` for the other arguments.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        _check(x, y, operator)
        x0 = denoise(x, sigma, cond)
        width = expand(sigma, x).square() / strength
        return nearby(x0, y.to(x), operator, width, _noise(operator, std, x))

    return guided


def _with_pullback(
    denoise: Denoise, x: Tensor, sigma: Tensor, cond: Cond | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """D, and v -> sigma^2 (dD/dx)' v: the covariance of x0 given x, which is symmetric for a true denoiser."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        x0 = denoise(at, sigma, cond)

    def pull(v: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(x0, at, v, retain_graph=True)
        return expand(sigma, x).square() * gradient

    return x0.detach(), pull


@guidance
def pigdm(
    denoise: Denoise, operator: Operator, y: Measured, std: float | None = None, sigma_data: float = 0.5
) -> Denoise:
    """Pseudo-inverse guidance through the denoiser (Song et al. 2023, PiGDM, ICLR, eq. 7); see :func:`ddnm`."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        _check(x, y, operator)
        x0, pull = _with_pullback(denoise, x, sigma, cond)
        variance, noise = _variance(sigma, sigma_data).to(x), _noise(operator, std, x)
        move = nearby(x0, y.to(x), operator, variance, noise) - x0
        return x0 + pull(move) / variance

    return guided


@guidance
def dps(
    denoise: Denoise,
    operator: Operator,
    y: Measured,
    std: float | None = None,
    sigma_data: float = 0.5,
    scale: float = 1.0,
) -> Denoise:
    """Any differentiable corruption, by the gradient of its error through the denoiser (Chung et al. 2023, DPS).

    arXiv:2209.14687, algorithm 1. Its step size is not a knob here: A R A' is taken for the number that it is along
    the present error e, R |A' e|^2 / |e|^2. ``scale`` multiplies the step. See :func:`ddnm` for the other arguments.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        _check(x, y, operator)
        x0, pull = _with_pullback(denoise, x, sigma, cond)
        with torch.enable_grad():
            at = x0.requires_grad_()
            error = y.to(x) - operator.mean(at)
            (descent,) = torch.autograd.grad(error.square().sum() / -2, at)
        error = error.detach()
        gain = _dot(descent, descent) / _dot(error, error).clamp(min=1e-20)
        width = (_variance(sigma, sigma_data).to(x) * gain + _noise(operator, std, x)).clamp(min=1e-12)
        return x0.detach() + scale * pull(descent / width)

    return guided


@guidance
def tmpd(denoise: Denoise, operator: Operator, y: Measured, std: float | None = None, steps: int = 20) -> Denoise:
    """The denoiser's own covariance on both sides (Boys et al. 2023, TMPD, arXiv:2310.06721, eq. 8): exact if normal.

    ``steps`` conjugate gradients, each a backward pass through the denoiser. See :func:`ddnm` for the other arguments.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        _check(x, y, operator)
        x0, pull = _with_pullback(denoise, x, sigma, cond)
        offset, noise = operator.mean(torch.zeros_like(x0)), _noise(operator, std, x)
        ridge = torch.maximum(noise, 1e-6 * expand(sigma, x).square().clamp(max=1))
        z = solve(
            lambda v: operator.mean(pull(operator.adjoint(v))) - offset + ridge * v,
            y.to(x) - operator.mean(x0),
            steps,
        )
        return x0 + pull(operator.adjoint(z))

    return guided


INVERSE: dict[str, Callable[..., Guided]] = {f.__name__: f for f in (ddnm, diffpir, pigdm, dps, tmpd)}
