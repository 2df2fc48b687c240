"""Random numbers: one generator per image, on the CPU, so that image i depends on seeds[i] alone.

Neither the batch it is drawn in, nor the device, nor the number of steps changes a seed's noise: that of stochastic
samplers is a Brownian path keyed by seed and noise level, and 20 and 40 steps walk along the same path. What a network
makes of it is rounded otherwise in another batch or on another device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_CELLS = 12  # of a block of a Brownian path, which is two octaves of sigma: from 1 to 16 in 1/sigma^2
_EDGES = [16.0 ** (c / _CELLS) for c in range(_CELLS + 1)]
_WIDTHS = torch.tensor(_EDGES, dtype=torch.float64).diff().sqrt()


class Stream(IntEnum):
    """What a generator is for: one key for each purpose, so that draws for one never move those for another.

    Numbers stay as they are, because runs are continued and images reproduced by them. Equal ones belong to verbs that
    share no seed.
    """

    LIKELIHOOD_PROBE = 4
    DEQUANTIZATION = 5
    PROCESS_NOISE = 6
    BATCH_ORDER = 16
    BATCH_SIGMA = 17
    BATCH_NOISE = 18
    COND_DROPOUT = 19
    SELF_CONDITION = 20
    AUGMENT = 21
    DROPOUT = 22
    WEIGHTS = 23
    CAPTION = 24
    CORRUPTION = 25
    CORRUPTION_PARAMETERS = 40
    POSTERIOR_NOISE = 40
    TILE_NOISE = 41
    LANGUAGE_PAIRS = 41
    POSTERIOR_DRAWS = 41
    LANGUAGE_QUERIES = 42
    RETRIEVAL = 43
    CONDITION_IMAGE_NOISE = 44
    CLIP_CAPTION = 48
    CLIP_AUGMENT = 49
    CLIP_NOISE = 50
    CLIP_SIGMA = 51
    PRIOR_CAPTION = 56
    PRIOR_ORDER = 57
    PRIOR_SIGMA = 58
    PRIOR_NOISE = 59
    COLD_ROWS = 60
    PRIOR_BLUR = 60
    COLD_NOISE = 61
    TOKEN_ORDER = 61
    COLD_LEVEL = 62
    TOKEN_MASK = 62
    TOKEN_DRAW = 63
    TOKEN_PLACES = 64
    DOMAIN_ROWS = 70
    TRANSLATION_SIGMA = 71
    TRANSLATION_NOISE = 72
    TRANSLATION_POOL = 73
    STYLE_ROWS = 80
    CAPTION_MEAN_ROWS = 96
    CAPTION_MEAN_CAPTION = 97
    EDIT_NOISE = 100
    CONDITION_NOISE = 110


def generator(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator for ``seed``; further ``keys`` (step, cell, purpose) give independent streams."""
    mixed = int(seed) & 0xFFFFFFFFFFFFFFFF
    if not keys and int(seed) >= 1 << 32:  # of a large seed torch would take the lower half alone
        keys = (mixed >> 32,)
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


def toward_seeds(noise: Tensor, seeds: Sequence[int], strength: float) -> Tensor:
    """Turn ``noise`` towards the noises of other ``seeds`` (variation seeds); strength 0 returns it unchanged."""
    return noise if strength == 0 else slerp(noise, initial(seeds, noise.shape[1:]).to(noise), strength)


def resized(seeds: Sequence[int], shape: Sequence[int], base: Sequence[int]) -> Tensor:
    """Noise of ``shape`` whose low frequencies are those of the same seeds at ``base``: the image keeps its layout.

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


class Brownian:
    """The noise that a batch of stochastic runs needs, each image's own, between falling noise levels.

    The reverse diffusion with a constant estimate D is driven by a Brownian motion B in the precision u = 1/sigma^2:
    x' = D + (s'/s)^2 (x - D) + s'^2 (B(1/s'^2) - B(1/s^2)). So :meth:`between` is B's increment, scaled to unit
    variance. Every two octaves of sigma are a block of 12 cells; a cell always draws the same two normals per number
    (its increment and one bridge inside), whatever the steps, so that runs of different length see the same path. A
    cell that is visited more often draws further bridges: the law is exact, always.

    Args:
        seeds: One per image.
        like: A tensor of the batch's shape, type and device.
        key: Different keys give independent paths of the same seeds.
    """

    def __init__(self, seeds: Sequence[int], like: Float[Tensor, "b *d"], key: int = 0):
        self.seeds, self.like, self.key = list(seeds), like, key
        self._zero = torch.zeros_like(like)
        self._widths = _WIDTHS.to(like).reshape(-1, *[1] * like.ndim)
        self._block: int | None = None
        self._cell, self._visits = -1, 0
        self._u, self._value = 0.0, self._zero  # where the walk stands, and B there counted from its block's start

    def _normal(self, shape: Sequence[int], *keys: int) -> Float[Tensor, "*shape b *d"]:
        """Unit normals, each image's from its own generator."""
        shape = tuple(shape)
        draws = [torch.randn(shape + self.like.shape[1:], generator=generator(s, self.key, *keys)) for s in self.seeds]
        return torch.stack(draws, len(shape)).to(self.like)

    def _enter(self, block: int) -> None:
        """Stand at the start of a block, u = 16^block."""
        self._block, self._cell, self._value = block, -1, self._zero
        increments, self._bridges = self._normal((2, _CELLS), 1, block + 64)
        self._ends = (increments * self._widths).cumsum(0).mul_(4.0**block)  # B at the end of each cell

    def _walk(self, u: float) -> Tensor:
        """Go on to ``u``; returns B's increment since the last point."""
        at = math.log2(u) / 4
        block = math.floor(at)
        if self._block is None:
            self._enter(block)
        assert self._block is not None and u >= self._u, "a path is walked towards falling sigma"
        behind = -self._value
        while self._block < block:
            behind += self._ends[-1]
            self._enter(self._block + 1)
        cell = min(int((at - block) * _CELLS), _CELLS - 1)
        scale = 16.0**block
        if cell == self._cell:  # here again: bridge from where we stand to the cell's end
            self._visits += 1
            start, left = self._u, self._value
            bridge = self._normal((), 2, block + 64, cell, self._visits)
        else:
            self._visits = 0
            start, left = scale * _EDGES[cell], self._ends[cell - 1] if cell else self._zero
            bridge = self._bridges[cell]
        length = max(scale * _EDGES[cell + 1] - start, 1e-300)
        w = min(max((u - start) / length, 0.0), 1.0)
        value = torch.lerp(left, self._ends[cell], w).add_(bridge, alpha=math.sqrt(w * (1 - w) * length))
        self._u, self._cell, self._value = u, cell, value
        return behind.add_(value)

    def between(self, sigma: float, to: float) -> Float[Tensor, "b *d"]:
        """The unit normals that drive the step from ``sigma`` down to ``to`` (0 < to < sigma). Ask in falling order."""
        u, v = sigma**-2, to**-2
        if u != self._u:
            self._walk(u)
        return self._walk(v).div_(math.sqrt(v - u))


class Fresh(Protocol):
    """Where a run's noise comes from: ``draw(sigma, to)`` gives unit noise for the move from one level to another."""

    def draw(self, sigma: float, to: float) -> Float[Tensor, "b *d"]: ...


class Paths:
    """What the sampling loop asks for noise: Brownian paths while the level falls, loose draws where it rises."""

    def __init__(self, seeds: Sequence[int], like: Float[Tensor, "b *d"]):
        self.seeds, self.like, self.rises = list(seeds), like, 0
        self.path = Brownian(seeds, like, key=1)

    def draw(self, sigma: float, to: float) -> Float[Tensor, "b *d"]:
        """Unit noise for one move. A rise starts new paths, so that the second way down is independent of the first."""
        if to < sigma:
            return self.path.between(sigma, to)
        self.rises += 1
        self.path = Brownian(self.seeds, self.like, key=1 + self.rises)
        return self.path._normal((), 3)
