"""Random numbers: one generator per image, on the CPU, so that picture i depends on seeds[i] alone.

Neither the batch it is drawn in, nor the device, nor the number of steps changes a seed's picture: the noise of
stochastic samplers is a Brownian path keyed by seed and noise level, and 20 and 40 steps walk along the same path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_CELLS = 8  # cells of a Brownian path per octave of sigma


def generator(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator for ``seed``; further ``keys`` (step, cell, purpose) give independent streams."""
    mixed = int(seed) & 0xFFFFFFFFFFFFFFFF
    for key in keys:  # splitmix64's finalizer: neighbouring keys give unrelated streams
        mixed = (mixed + 0x9E3779B97F4A7C15 * (int(key) + 1)) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed)


def initial(seeds: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "b *d"]:
    """Unit normal noise of shape (len(seeds), *shape), each image from its own seed."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed)) for seed in seeds])


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of two noises, image by image: variance is kept (Shoemake 1985)."""
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle = cosine.acos().clamp(min=1e-9)[:, None]
    mixed = ((1 - t) * angle).sin() / angle.sin() * flat_a + (t * angle).sin() / angle.sin() * flat_b
    return mixed.to(a.dtype).reshape(a.shape)


def vary(noise: Tensor, seeds: Sequence[int], strength: float) -> Tensor:
    """Turn ``noise`` towards the noises of other ``seeds`` (variation seeds); strength 0 returns it unchanged."""
    return noise if strength == 0 else slerp(noise, initial(seeds, noise.shape[1:]).to(noise), strength)


def resized(seeds: Sequence[int], shape: Sequence[int], base: Sequence[int]) -> Tensor:
    """Noise of ``shape`` whose low frequencies are those of the same seeds at ``base``: the picture keeps its layout.

    White noise at ``shape`` with its orthonormal DCT coefficients below ``base`` replaced by the base noise's.
    """
    small, large = initial(seeds, base), initial(seeds, shape)
    if tuple(shape) == tuple(base):
        return small
    keep = tuple(slice(0, min(a, b)) for a, b in zip(shape[-2:], base[-2:], strict=True))
    spectrum = dct2(large)
    spectrum[(..., *keep)] = dct2(small)[(..., *keep)]
    return idct2(spectrum)


def dct_matrix(n: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II: row k is the k-th cosine."""
    k = torch.arange(n, dtype=torch.float64)
    m = (math.pi / n * k[:, None] * (k + 0.5)).cos() * math.sqrt(2 / n)
    m[0] /= math.sqrt(2)
    return m.to(dtype)


def dct2(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Orthonormal two-dimensional DCT of the last two axes."""
    h, w = dct_matrix(x.shape[-2], x.dtype).to(x.device), dct_matrix(x.shape[-1], x.dtype).to(x.device)
    return h @ x @ w.T


def idct2(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Inverse of :func:`dct2`."""
    h, w = dct_matrix(x.shape[-2], x.dtype).to(x.device), dct_matrix(x.shape[-1], x.dtype).to(x.device)
    return h.T @ x @ w


class BrownianPath:
    """The noise that one image's stochastic run needs between any two falling noise levels.

    The reverse diffusion with a constant estimate D is driven by a Brownian motion B in the precision u = 1/sigma^2:
    x' = D + (s'/s)^2 (x - D) + s'^2 (B(1/s'^2) - B(1/s^2)). So ``between(s, s')`` is B's increment, scaled to unit
    variance. B is cut into cells of 1/8 octave of sigma; each cell always draws the same two normals per number (its
    increment and one bridge inside), whatever the steps, so that runs of different length see the same path. A cell
    that is visited more often draws further bridges: the law is exact, always.
    """

    def __init__(self, seed: int, shape: Sequence[int]):
        self.seed, self.shape = seed, tuple(shape)
        self._octave: int | None = None
        self._at: tuple[float, Tensor] | None = None  # the last point asked for: (log2 sigma, B there - B at its cell's start)
        self._visits: tuple[int, int] = (0, 0)  # cell, how often
        self._draws: Tensor = torch.empty(0)

    def _cell(self, cell: int) -> Tensor:
        """The two unit normals (increment, bridge) of a cell; cell c covers log2 sigma in (-(c+1)/8, -c/8]."""
        octave = cell // _CELLS
        if octave != self._octave:
            self._draws = torch.randn((_CELLS, 2, *self.shape), generator=generator(self.seed, 1, octave + 64))
            self._octave = octave
        return self._draws[cell % _CELLS]

    @staticmethod
    def _edges(cell: int) -> tuple[float, float]:
        return 4.0 ** (cell / _CELLS), 4.0 ** ((cell + 1) / _CELLS)  # in u; u grows as sigma falls

    def _inside(self, cell: int, u: float) -> Tensor:
        """B(u) - B(start of cell), bridged between the last point in this cell (or its start) and its end."""
        start, end = self._edges(cell)
        increment, bridge = self._cell(cell)
        whole = math.sqrt(end - start) * increment
        left_u, left = start, torch.zeros_like(whole)
        if self._visits[0] == cell and self._visits[1] > 0 and self._at is not None:
            left_u, left = self._at
            bridge = torch.randn(self.shape, generator=generator(self.seed, 2, cell + 1024, self._visits[1]))
            self._visits = (cell, self._visits[1] + 1)
        else:
            self._visits = (cell, 1)
        w = min(max((u - left_u) / (end - left_u), 0.0), 1.0)
        value = torch.lerp(left, whole, w) + math.sqrt(w * (1 - w) * (end - left_u)) * bridge
        self._at = (u, value)
        return value

    def between(self, sigma: float, to: float) -> Float[Tensor, "*d"]:
        """The unit normal that drives the step from ``sigma`` down to ``to`` (0 < to < sigma). Ask in falling order."""
        u0, u1 = sigma**-2, to**-2
        first, last = (math.floor(-math.log2(s) * _CELLS) for s in (sigma, to))
        if self._at is None or self._at[0] != u0:
            self._visits = (first, 0)
            self._inside(first, u0)
        assert self._at is not None
        before = self._at[1]
        total = -before
        for cell in range(first, last):
            start, end = self._edges(cell)
            total = total + math.sqrt(end - start) * self._cell(cell)[0]
        total = total + self._inside(last, u1)
        return total / math.sqrt(u1 - u0)


class Paths:
    """The Brownian paths and loose draws of a whole batch: what the sampling loop asks for noise."""

    def __init__(self, seeds: Sequence[int], like: Float[Tensor, "b *d"]):
        self.seeds, self.like = list(seeds), like
        self.paths = [BrownianPath(seed, like.shape[1:]) for seed in self.seeds]

    def draw(self, index: int, part: int, sigma: float, to: float) -> Float[Tensor, "b *d"]:
        """Unit noise for one move: along the path where the level falls, fresh (keyed by the step) where it rises."""
        if 0 < to < sigma:
            parts = [path.between(sigma, to) for path in self.paths]
        else:
            shape = self.like.shape[1:]
            parts = [torch.randn(shape, generator=generator(seed, 3, index, part)) for seed in self.seeds]
        return torch.stack(parts).to(self.like)
