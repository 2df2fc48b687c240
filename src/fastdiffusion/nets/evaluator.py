"""The evaluator's encoders: a residual net for images, hashed bags of letters for names, one space for both.

It shares no part with the nets that it evaluates (no U-Net, no attention, no tokenizer), so that what deceives them
need not deceive it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import records_config


def parts(name: str) -> list[str]:
    """What a name is made of: words, pairs of neighboring words (their order), and triples of letters (spelling)."""
    terms = name.lower().replace("-", " ").replace(":", " ").replace(",", " ").split()
    pairs = [f"{a} {b}" for a, b in pairwise(["<", *terms, ">"])]
    triples = [f"#{padded[i : i + 3]}" for term in terms for padded in [f"<{term}>"] for i in range(len(padded) - 2)]
    return terms + pairs + triples


class Residual(nn.Module):
    """Two convolutions beside the identity (He et al. 2016)."""

    def __init__(self, n: int):
        super().__init__()
        self.body = nn.Sequential(_conv(n, n), nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class Evaluator(nn.Module):
    """Images in [-1, 1] and names as unit vectors; their product says how well they go together.

    Args:
        names: All names that it was trained on, to draw the wrong ones from.
        side: Pixels of the images that it takes; other sizes are resized.
        width: Channels of the first stage.
        dim: Of the common space.
        buckets: Rows that the parts of names are hashed to; each part takes two, so that two parts rarely share both.
    """

    unit: Tensor

    config: dict[str, Any]

    @records_config
    def __init__(self, names: Sequence[str], side: int = 64, width: int = 24, dim: int = 256, buckets: int = 4096):
        super().__init__()
        self.names, self.side, self.buckets = tuple(names), side, buckets
        w = width
        self.eye = nn.Sequential(
            *(nn.PixelUnshuffle(2), _conv(12, w)),  # 32 x 32
            *(_conv(w, 2 * w, 2), Residual(2 * w)),  # 16 x 16
            *(_conv(2 * w, 4 * w, 2), Residual(4 * w)),  # 8 x 8
            _conv(4 * w, 8 * w, 2),  # 4 x 4
        )
        here = (side // 16) ** 2
        self.place = nn.Sequential(nn.Conv2d(8 * w, 2 * w, 1), nn.Flatten(), nn.Linear(2 * w * here, dim))
        self.ear = nn.EmbeddingBag(buckets, dim // 2, mode="mean")
        self.mind = nn.Sequential(nn.Linear(dim // 2, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.log_scale = nn.Parameter(torch.tensor(2.5))  # of the products, before the softmax
        self.register_buffer("unit", torch.ones(()))

    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f 4 4"]:
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return self.eye(images.contiguous(memory_format=torch.channels_last))

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """The mean of the last maps, in units of its standard deviation over the data: for distances."""
        return self._maps(images).mean((2, 3)) / self.unit

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Images as unit vectors."""
        return F.normalize(self.place(self._maps(images)), dim=1)

    def encode_text(self, names: Sequence[str]) -> Float[Tensor, "n d"]:
        """Names as unit vectors."""
        return self.encode_rows(*self.rows(names))

    def rows(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The hashed parts of all names in one list, and where each name's begin."""
        bags = [[zlib.crc32(f"{salt}{part}".encode()) % self.buckets for part in parts(n) for salt in "ab"] or [0]
                for n in names]  # fmt: skip
        starts = torch.tensor([0, *map(len, bags)]).cumsum(0)[:-1]
        return torch.tensor([row for bag in bags for row in bag]), starts

    def encode_rows(self, rows: Tensor, starts: Tensor) -> Float[Tensor, "n d"]:
        """What :meth:`rows` gave, as unit vectors."""
        return F.normalize(self.mind(self.ear(rows, starts)), dim=1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """:meth:`features`, so that it can stand where a net of features is asked for."""
        return self.features(images)
