"""Blind deblurring: which kernel blurred a photograph?

Edges of photographs are sharp, so the blurred picture's own edges, sharpened by a shock filter, tell what it was before
the blur; the kernel is then a least-squares problem (Cho & Lee 2009, "Fast Motion Deblurring"), solved anew with every
better picture, from coarse to fine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..corruptions.blurs import convolve, gaussian, taps
from .coloring import luminance

MOST = 1024  # longer side of the part that is looked at


def estimate_kernel(
    picture: Float[Tensor, "1 c h w"], size: int = 25, rounds: int = 6
) -> Float[Tensor, "{size} {size}"]:
    """The blur kernel of a picture, centred, with sum 1.

    Args:
        picture: Blurred by one kernel all over.
        size: Side of the kernel in pixels, odd.
        rounds: Turns of picture and kernel at each scale.
    """
    blurred = picture if picture.shape[1] == 1 else luminance(picture)
    top, left = (max(0, (n - MOST) // 2) for n in blurred.shape[2:])
    blurred = blurred[:, :, top : top + MOST, left : left + MOST]
    sizes = [size]
    while sizes[-1] > 5:
        sizes.append(max(5, int(sizes[-1] / 1.6) // 2 * 2 + 1))
    kernel = None
    for side in reversed(sizes):
        scale = side / size
        small = blurred if side == size else F.interpolate(blurred, scale_factor=scale, mode="area")
        if kernel is None:
            kernel = torch.zeros(side, side)
            kernel[side // 2, side // 2] = 1
        else:
            kernel = _clean(F.interpolate(kernel[None, None], (side, side), mode="bicubic")[0, 0])
        for turn in range(rounds):
            sharp = _wiener(small, kernel, 0.02 if turn else 0.05)
            edges = _edges(_shock(sharp, 8), keep=max(0.04, 0.15 - 0.02 * turn))
            kernel = _clean(_fit(edges, small, side))
    assert kernel is not None
    return _centred(kernel)


def _gradients(x: Tensor) -> Float[Tensor, "2 1 h w"]:
    across = F.pad(x, (1, 1, 0, 0), mode="replicate")
    down = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return torch.cat([(across[..., 2:] - across[..., :-2]) / 2, (down[..., 2:, :] - down[..., :-2, :]) / 2])


def _shock(x: Tensor, steps: int) -> Tensor:
    """Sharpen edges to steps (Osher & Rudin 1990): walk uphill where the picture is concave, downhill elsewhere."""
    x = gaussian(x, taps(torch.tensor([1.0]), 4))
    for _ in range(steps):
        smooth = gaussian(x, taps(torch.tensor([0.7]), 3))
        padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
        laplacian = (
            padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2] + padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1] - 4 * smooth
        )
        x = x - 0.3 * laplacian.sign() * _gradients(x).square().sum(0, keepdim=True).sqrt()
    return x


def _edges(x: Tensor, keep: float) -> Float[Tensor, "2 1 h w"]:
    """Gradients of the strongest edges alone, ``keep`` of all pixels."""
    gradients = _gradients(x)
    size = gradients.square().sum(0, keepdim=True).sqrt()
    least = size.flatten().kthvalue(max(1, int(size.numel() * (1 - keep)))).values
    return gradients * (size >= least)


def _fit(edges: Tensor, blurred: Tensor, side: int, ridge: float = 2e-2) -> Tensor:
    """The kernel that turns the edges into the blurred picture's gradients: least squares in the Fourier basis."""
    size = blurred.shape[-2:]
    a, b = torch.fft.rfft2(edges), torch.fft.rfft2(_gradients(blurred))
    power = (a.conj() * a).real.sum(0)
    k = torch.fft.irfft2((a.conj() * b).sum(0) / (power + ridge * power.mean()), size)[0]
    half = side // 2
    return torch.roll(k, (half, half), (0, 1))[:side, :side]


def _clean(kernel: Tensor) -> Tensor:
    """Nothing negative, no crumbs far below the top, sum 1."""
    kernel = torch.where(kernel > 0.06 * kernel.max(), kernel, 0)
    return kernel / kernel.sum()


def _centred(kernel: Tensor) -> Tensor:
    """Its centre of mass in the middle, to a whole pixel: a shift of kernel and picture cannot be told from none."""
    at = torch.arange(len(kernel), dtype=kernel.dtype) - len(kernel) // 2
    shift = [-round(float((kernel.sum(1 - axis) * at).sum())) for axis in (0, 1)]
    return torch.roll(kernel, shift, (0, 1))


def _wiener(y: Tensor, kernel: Tensor, noise: float) -> Tensor:
    """Deconvolved, with mirrored borders."""
    pad = len(kernel)
    wide = F.pad(y, (pad, pad, pad, pad), mode="reflect")
    big = torch.zeros(wide.shape[-2:])
    big[: len(kernel), : len(kernel)] = kernel
    transfer = torch.fft.rfft2(torch.roll(big, (-(len(kernel) // 2),) * 2, (0, 1)))
    x = torch.fft.irfft2(torch.fft.rfft2(wide) * transfer.conj() / (transfer.abs().square() + noise), wide.shape[-2:])
    return x[..., pad:-pad, pad:-pad]


def wiener(y: Float[Tensor, "b c h w"], kernel: Float[Tensor, "k k"], noise: float = 1e-3) -> Tensor:
    """Wiener's filter with a flat spectrum of the signal; ``noise`` is its ratio of noise to signal. A baseline."""
    return _wiener(y, kernel, noise)


def richardson_lucy(y: Float[Tensor, "b c h w"], kernel: Float[Tensor, "k k"], steps: int = 30) -> Tensor:
    """Richardson (1972) and Lucy's (1974) deconvolution of light. A baseline."""
    light = (y + 1) / 2
    x = torch.full_like(light, 0.5)
    kernels = kernel[None].expand(len(y), -1, -1)
    for _ in range(steps):
        x = x * convolve(light / convolve(x, kernels).clamp(min=1e-4), kernels.flip(1, 2))
    return 2 * x - 1
