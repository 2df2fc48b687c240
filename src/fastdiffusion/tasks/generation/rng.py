"""The noise that other programs draw for a seed, so that an image of theirs comes out alike.

Both draw on the CPU. AUTOMATIC1111 (its setting RNG: CPU) has a generator for each image, seeded with seed + i, that
also draws the noise of ancestral samplers, step by step. ComfyUI draws all images of a batch at once from one
generator, and the later noise from a second one where it computes: on a CPU it is seeded with seed + 1. For the SDE
samplers both draw from a Brownian tree, which is not repeated here: only the start is alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...samplers import Table


def unlike(table: Table | None) -> bool:
    """Whether other programs draw a sampler's later noise from a Brownian tree."""
    return table is not None and table.stochastic and table.name.endswith("sde")


def caveats(rng: str, table: Table | None) -> list[str]:
    """Where an image will not be alike, in sentences."""
    if rng == "own" or table is None or not table.stochastic:
        return []
    if unlike(table):
        return [f"With {table.name} only the start is as elsewhere: its later noise comes from another source there."]
    return [f"ComfyUI draws the later noise of {table.name} as here on a CPU only."] if rng == "comfy" else []


def generator(seed: int) -> torch.Generator:
    """As both programs make one: of a seed of 64 bits."""
    return torch.Generator().manual_seed(seed & 0xFFFFFFFFFFFFFFFF)


class Automatic1111:
    """The noise of images ``rows`` of a run, (len(rows), *shape) at each draw; a ``noise.Fresh``."""

    def __init__(self, seed: int, n: int, rows: range, shape: tuple[int, ...], device: torch.device):
        self.generators, self.shape, self.device = [generator(seed + i) for i in rows], shape, device

    def initial(self) -> Float[Tensor, "b *d"]:
        """What a run starts from, on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=one) for one in self.generators])

    def draw(self, sigma: float, to: float) -> Float[Tensor, "b *d"]:
        """The noise of the next move."""
        return self.initial().to(self.device)


class ComfyUI:
    """The same for ComfyUI, whose batch is the whole run of ``n`` images."""

    def __init__(self, seed: int, n: int, rows: range, shape: tuple[int, ...], device: torch.device):
        self.seed, self.shape, self.rows, self.device = seed, (n, *shape), slice(rows.start, rows.stop), device
        self.later = generator(seed + 1)

    def initial(self) -> Float[Tensor, "b *d"]:
        """What a run starts from, on the CPU."""
        return torch.randn(self.shape, generator=generator(self.seed))[self.rows]

    def draw(self, sigma: float, to: float) -> Float[Tensor, "b *d"]:
        """The noise of the next move."""
        return torch.randn(self.shape, generator=self.later)[self.rows].to(self.device)


THEIRS: dict[str, Callable[..., Automatic1111 | ComfyUI]] = {"a1111": Automatic1111, "comfy": ComfyUI}
