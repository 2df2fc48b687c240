"""Images made of another one's patches: what an ideal denoiser does that has seen one image only, patch by patch.

Each patch of an image gives way to one of the source, and where they overlap they are averaged; done again, they agree
(Kwatra et al. 2005, "Texture Optimization for Example-based Synthesis"). Taking the nearest patch alone would take
plain ones again and again, since a plain patch is near to every mean. So a patch of the source is nearer the fewer of
the image's are near to it (Granot et al. 2022, "Drop the GAN", arXiv:2103.15545, eq. 2): all of the source is made use
of. From coarse to fine this gives a photograph another one's strokes (``stylize``), another layout (``rearrange``),
and holes what lies around them (``restore``). Nothing is trained.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import InputError
from .noise import generator

SIDE, STRIDE = 7, 3  # of a patch, and from one to the next, in pixels
WORK = 256  # longest side that patches are looked up at; of a larger image, they are then laid out at its own size
RATIO = 4 / 3  # of a scale's sides to those of the one before
LARGE = 120  # pixels of the longest side, from where on few rounds do, and patches need not begin at every pixel
KEYS, AXES = 1 << 14, 40  # patches of the source that are looked at; principal components that they are compared in
ROWS = 64  # compared at once: their distances to all keys stay in a CPU's cache
STRIP = 1 << 12  # patches that are replaced at once: beside each other, some rows of them
ASKED = 4  # one patch of so many is asked which patches of the source it is near to
USED = 0.5  # squared distance below which a patch of the source counts as used


class Patches:
    """The patches of one image, to be looked up.

    Args:
        image: In [-1, 1].
        side: Of a patch in pixels, at most that of the image.
        seed: Which patches, where there are more than ``KEYS``, and which ones are asked.
        known: Of the image's size: only patches that lie in it are taken. None is all of it.
        used: Squared distance below which a patch counts as used: the larger, the less it matters whether others are
            near to it, and the nearest one is taken.

    Raises:
        InputError: No patch is known.
    """

    def __init__(
        self,
        image: Float[Tensor, "1 c h w"],
        side: int,
        seed: int,
        known: Bool[Tensor, "h w"] | None = None,
        used: float = USED,
    ):
        self.image, self.side, self.seed, self.used = image, side, seed, used
        known = torch.ones_like(image[0, 0], dtype=torch.bool) if known is None else known
        places = known.unfold(0, side, 1).unfold(1, side, 1).all(-1).all(-1).flatten().nonzero()[:, 0]
        if not len(places):
            raise InputError(f"Nowhere in the image are {side}x{side} pixels known: there is nothing to copy from.")
        self.places = places[_some(len(places), KEYS, seed, image.device)]
        keys = self.rows()
        self.mean = keys.mean(0)
        spread = (keys - self.mean).T @ (keys - self.mean)
        self.axes = torch.linalg.eigh(spread.cpu().double()).eigenvectors[:, -AXES:].to(image)  # mps has no float64
        self.small = (keys - self.mean) @ self.axes
        self.norms = self.small.square().sum(1)

    def rows(self) -> Float[Tensor, "k p"]:
        """The patches themselves, each as one row."""
        return _rows(_grid(self.image, self.side, 1), self.places)

    def replaced(
        self,
        x: Float[Tensor, "1 c h w"],
        stride: int,
        offset: int = 0,
        part: Bool[Tensor, "h w"] | None = None,
        source: Float[Tensor, "1 c H W"] | None = None,
        trust: Float[Tensor, "h w"] | None = None,
    ) -> Float[Tensor, "1 c ..."]:
        """``x`` with each patch, ``stride`` pixels from the next one, replaced by one of these.

        Args:
            x: In [-1, 1].
            stride: Between patches.
            offset: How far outside the first patch begins: with another one in each round, no grid becomes visible.
            part: Of x's size: only patches that touch it are replaced, and what no patch covers is 0.
            source: The image that these patches are of, a whole number of times larger: its own patches are laid out,
                and the result is as many times larger than x.
            trust: Of x's size: how much a patch counts where it overlaps others, by its middle.
        """
        h, w = x.shape[-2:]
        right, below = (-(n + offset - self.side) % stride for n in (w, h))
        around = (offset, right, offset, below)
        grid = _grid(F.pad(x, around, mode="replicate"), self.side, stride)
        down, across = grid.shape[1:3]
        wanted = worth = None
        if trust is not None:
            padded = F.pad(trust[None, None], around, mode="replicate")[0, 0, self.side // 2 :, self.side // 2 :]
            worth = padded[::stride, ::stride][:down, :across].flatten()
        if part is not None:
            touched = F.pad(part, around).unfold(0, self.side, stride).unfold(1, self.side, stride)
            wanted = touched.any(-1).any(-1).flatten()
        source = self.image if source is None else source
        times = source.shape[-1] // self.image.shape[-1]
        side, step, tiles = self.side * times, stride * times, _grid(source, self.side * times, times)
        window = torch.hann_window(side + 2, periodic=False, device=x.device)[1:-1]
        weights = (window[:, None] * window).flatten().repeat(len(x[0]))
        size = [(n - 1) * step + side for n in (down, across)]
        total, share = source.new_zeros(1, len(x[0]), *size), source.new_zeros(1, len(x[0]), *size)
        price = self._prices(grid, wanted)
        strip = max(STRIP // (across * times * times), 1)
        for top in range(0, down, strip):
            count = min(strip, down - top)
            places = torch.arange(top * across, (top + count) * across, device=x.device)
            chosen = torch.arange(len(places), device=x.device) if wanted is None else wanted[places].nonzero()[:, 0]
            if not len(chosen):
                continue
            found = self.places[self._cheapest(_rows(grid, places[chosen]), price)]
            laid = source.new_zeros(2, len(places), len(weights))
            laid[0, chosen], laid[1, chosen] = _rows(tiles, found) * weights, weights
            if worth is not None:
                laid *= worth[places][:, None]
            rows = slice(top * step, top * step + (count - 1) * step + side)
            high = (rows.stop - rows.start, size[1])
            total[..., rows, :] += F.fold(laid[:1].mT, high, side, stride=step)
            share[..., rows, :] += F.fold(laid[1:].mT, high, side, stride=step)
        first = offset * times
        return (total / share.clamp(min=1e-30))[..., first : first + h * times, first : first + w * times]

    def _prices(self, grid: Tensor, wanted: Tensor | None) -> Float[Tensor, " k"]:
        """What a squared distance to each key is divided by: how far the nearest of ``grid`` is from it."""
        n = grid.shape[1] * grid.shape[2]
        rows = torch.arange(n, device=grid.device) if wanted is None else wanted.nonzero()[:, 0]
        asked = self._small(_rows(grid, rows[_some(len(rows), max(len(rows) // ASKED, 2048), self.seed, grid.device)]))
        nearest = torch.full_like(self.norms, torch.inf)
        norms = asked.square().sum(1, keepdim=True)
        for part, norm in zip(asked.split(ROWS), norms.split(ROWS), strict=True):
            nearest = torch.minimum(nearest, (torch.addmm(self.norms, part, self.small.T, alpha=-2) + norm).amin(0))
        return nearest.clamp(min=0) + self.used

    def _cheapest(self, queries: Float[Tensor, "n p"], price: Float[Tensor, " k"]) -> Int[Tensor, " n"]:
        """The key of least |query - key|^2 / price for each query."""
        small = self._small(queries)
        asked = torch.cat([small, small.square().sum(1, keepdim=True)], 1)
        keys = torch.cat([-2 * self.small, torch.ones_like(price)[:, None]], 1) / price[:, None]
        offset = self.norms / price
        return torch.cat([torch.addmm(offset, part, keys.T).argmin(1) for part in asked.split(ROWS)])

    def _small(self, rows: Tensor) -> Float[Tensor, "n a"]:
        return (rows - self.mean) @ self.axes


def _grid(x: Tensor, side: int, stride: int) -> Float[Tensor, "c down across side side"]:
    """All patches, as a view."""
    return x[0].unfold(1, side, stride).unfold(2, side, stride)


def _rows(grid: Tensor, places: Int[Tensor, " n"]) -> Float[Tensor, "n p"]:
    """Some of the patches, row by row."""
    across = grid.shape[2]
    return grid[:, places // across, places % across].movedim(0, 1).flatten(1)


def _some(n: int, most: int, seed: int, device: torch.device) -> Int[Tensor, " m"]:
    """Places of at most so many of n patches."""
    if n <= most:
        return torch.arange(n, device=device)
    return torch.randperm(n, generator=generator(seed))[:most].to(device)


def times_smaller(*sides: int) -> int:
    """How many times smaller an image, and what is made of it, are where patches are looked up."""
    return max(min(math.ceil(max(sides) / WORK), min(sides) // (2 * SIDE)), 1)


def side_and_stride(*images: Tensor) -> tuple[int, int]:
    """Of patches that fit into each of the images."""
    side = min(SIDE, *(n for image in images for n in image.shape[-2:]))
    return side, max(min(STRIDE, side // 2), 1)
