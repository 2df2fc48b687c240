"""Blurs: Gaussian, motion, defocus, any kernel, and one whose width is learned.

Beyond its border an image goes on as in a mirror (the border pixel twice), so that a blur never darkens an edge, and a
symmetric one is diagonal in the cosine basis: its pseudo-inverse then costs two transforms.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..io.images import open_image, to_tensor
from ..noise import dct2, idct2
from .core import Draw, Number, Operator, Shape, corruption

CUT = 1e-3  # of the largest singular value: smaller ones are not inverted


def mirror(x: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Continue ``x`` along ``dim`` as in a mirror, as often as it takes."""
    n = x.shape[dim]
    index = torch.arange(-before, n + after, device=x.device) % (2 * n)
    return x.index_select(dim, torch.minimum(index, 2 * n - 1 - index))


def convolve(x: Float[Tensor, "b c h w"], kernel: Float[Tensor, "b k m"]) -> Float[Tensor, "b c h w"]:
    """Each image with its own kernel (odd sides, centred); by Fourier transforms where the kernel is large."""
    (b, c, _, _), (k, m) = x.shape, kernel.shape[1:]
    padded, kernel = mirror(mirror(x, k // 2, k // 2, 2), m // 2, m // 2, 3), kernel.to(x)
    if min(k, m) > 3:
        size = padded.shape[2:]
        spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, size)[:, None]
        return torch.fft.irfft2(spectrum, size)[..., k - 1 :, m - 1 :]
    flipped = kernel.flip(1, 2)[:, None].repeat_interleave(c, 0)
    folded = padded.reshape(1, b * c, *padded.shape[2:])
    return F.conv2d(folded, flipped, groups=b * c).reshape(x.shape)


def taps(sigma: Float[Tensor, " b"], radius: int) -> Float[Tensor, "b k"]:
    """Gaussians of standard deviation ``sigma`` pixels that sum to 1; sigma 0 is no blur."""
    at = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    return F.softmax(-at.square() / (2 * sigma.clamp(min=1e-3).square())[:, None], 1)


def gaussian(x: Float[Tensor, "b c h w"], kernel: Float[Tensor, "b k"]) -> Float[Tensor, "b c h w"]:
    """Along both axes with the same odd taps."""
    return convolve(convolve(x, kernel[:, :, None]), kernel[:, None, :])


def radius_of(sigma: float) -> int:
    """Where a Gaussian has fallen to 1 / 3,000 of its top."""
    return max(1, math.ceil(4 * sigma))


@corruption(sigma=Number(0.5, 3.0, most=64, none=0))
def blur(draw: Draw, shape: Shape, sigma: Tensor) -> Operator:
    """Gaussian blur; sigma: its standard deviation in pixels."""
    kernel = taps(sigma.double(), radius_of(float(sigma.max())))
    return Operator(shape, shape, lambda x: gaussian(x, kernel.to(x)), inverse=lambda y: _divide(y, kernel))


def transfer(kernel: Float[Tensor, "b k"], n: int) -> Float[Tensor, "b n"]:
    """What symmetric taps leave of each cosine of ``n`` pixels: the exact singular values along one axis."""
    r = kernel.shape[1] // 2
    j = torch.arange(-r, r + 1, dtype=kernel.dtype, device=kernel.device)
    k = torch.arange(n, dtype=kernel.dtype, device=kernel.device)
    return kernel @ (math.pi / n * j[:, None] * k).cos()


def _divide(y: Tensor, kernel: Tensor) -> Tensor:
    h, w = (transfer(kernel.to(y.device), n).to(y) for n in y.shape[-2:])
    values = (h[:, :, None] * w[:, None, :])[:, None]
    inverse = torch.where(values.abs() > CUT, 1 / values, 0)
    return idct2(dct2(y) * inverse)


@corruption(length=Number(5, 21, least=1, most=200, none=1), angle=Number(0, 180, most=360))
def motion(draw: Draw, shape: Shape, length: Tensor, angle: Tensor) -> Operator:
    """Motion along a straight line; length in pixels, angle in degrees from the horizontal, counted upwards."""
    return _filtered(shape, line(length, angle))


def line(length: Float[Tensor, " b"], angle: Float[Tensor, " b"]) -> Float[Tensor, "b k k"]:
    """Kernels of straight lines, antialiased."""
    radius = math.ceil(float(length.max()) / 2)
    along = torch.linspace(-0.5, 0.5, 16 * radius + 1, device=length.device)[None] * (length - 1)[:, None]
    radians = torch.deg2rad(angle)[:, None]
    return splat(along * radians.cos(), -along * radians.sin(), radius)


def splat(x: Float[Tensor, "b n"], y: Float[Tensor, "b n"], radius: int) -> Float[Tensor, "b k k"]:
    """Kernels from the points of a path, each shared out among its four neighbours; they sum to 1."""
    side = 2 * radius + 1
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    across, down = (F.relu(1 - (p[:, :, None] - at).abs()) for p in (x, y))
    return torch.einsum("bnk,bnl->bkl", down, across) / x.shape[1] if side > 1 else x.new_ones(len(x), 1, 1)


@corruption(radius=Number(1, 6, most=64, none=0))
def defocus(draw: Draw, shape: Shape, radius: Tensor) -> Operator:
    """Out of focus: every point becomes a disk; radius in pixels."""
    return _filtered(shape, disk(radius))


def disk(radius: Float[Tensor, " b"]) -> Float[Tensor, "b k k"]:
    """Kernels of disks with soft edges, one pixel wide."""
    r = math.ceil(float(radius.max())) + 1
    at = torch.arange(-r, r + 1, dtype=radius.dtype, device=radius.device)
    distance = torch.hypot(at[:, None], at[None, :])
    inside = (radius[:, None, None] + 0.5 - distance).clamp(0, 1)
    return inside / inside.sum((1, 2), keepdim=True)


@corruption(file=Number(0, 0, file=True))
def kernel(draw: Draw, shape: Shape, file: str | Tensor) -> Operator:
    """Any blur kernel: the file of its image, or in Python a tensor; the middle is the centre, the sum is made 1."""
    return _filtered(shape, load_kernel(file).expand(len(draw), -1, -1))


def load_kernel(file: str | Tensor) -> Float[Tensor, "1 k l"]:
    """A kernel of odd sides that sums to 1; raises InputError where it does not fit."""
    if isinstance(file, str):
        values = (to_tensor(open_image(file, "kernel").convert("L")) + 1) / 2
    elif isinstance(file, Tensor):
        values = file
    else:
        raise InputError("kernel needs the file of a kernel's image, e.g. kernel k.png.")
    values = values.reshape(1, *values.shape[-2:]).float()
    if float(values.sum()) <= 0 or not bool(values.isfinite().all()) or max(values.shape) > 255:
        raise InputError(f"A kernel has a sum above 0 and sides of at most 255, got {tuple(values.shape[1:])}.")
    values = F.pad(values, (0, 1 - values.shape[2] % 2, 0, 1 - values.shape[1] % 2))
    return values / values.sum()


def reach(name: str, value: float | str | Tensor) -> int:
    """How far a blur spreads a pixel, of its name and first number (or kernel)."""
    if name == "kernel":
        return max(load_kernel(value).shape) // 2  # pyright: ignore[reportArgumentType]
    width = float(value)  # pyright: ignore[reportArgumentType]
    return {"blur": radius_of(width), "motion": math.ceil(width / 2), "defocus": math.ceil(width) + 1}[name]


def _filtered(shape: Shape, kernels: Float[Tensor, "b k l"]) -> Operator:
    return Operator(shape, shape, lambda x: convolve(x, kernels))


class LearnedBlur(nn.Module):
    """A Gaussian blur whose standard deviation is a parameter: "what blur was it?" answered by gradient descent.

    Args:
        sigma: To begin with, in pixels.
        most: The largest it can become.
    """

    def __init__(self, sigma: float = 1.0, most: float = 8.0):
        super().__init__()
        if not 0 < sigma <= most:
            raise InputError(f"sigma must be above 0 and at most {most:g}, got {sigma:g}.")
        self.log_sigma, self.most = nn.Parameter(torch.tensor(math.log(sigma))), most

    @property
    def sigma(self) -> Tensor:
        """The standard deviation."""
        return self.log_sigma.exp().clamp(max=self.most)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Blurred images, differentiable in sigma too."""
        return gaussian(x, taps(self.sigma.expand(1), radius_of(self.most)).expand(len(x), -1))
