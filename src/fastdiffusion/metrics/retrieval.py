"""How often an image's own caption ranks first among others (R-precision)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..nets.evaluator import Evaluator
from . import distances, feature_nets


class Encoders(Protocol):
    """What can rank: the evaluator, or a ``Clip``. Both give unit vectors."""

    def encode_image(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "b d"]: ...
    def encode_text(self, texts: Sequence[str], /) -> Float[Tensor, "b d"]: ...


class RPrecision(NamedTuple):
    """How often the right name won, and its 95 % bootstrap interval over the images."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}], n={self.n}"


@torch.no_grad()
def chances(
    evaluator: Encoders, images: Tensor, names: Sequence[str], among: int = 100, pool: Sequence[str] | None = None
) -> Float[Tensor, " n"]:
    """For each image the probability that its name wins among ``among``, the others drawn from ``pool``.

    Not by drawing: of M other names r fit better, and none of them is among the k = among - 1 drawn with probability
    C(M - r, k) / C(M, k), which is exact.

    Args:
        evaluator: Who compares.
        images: (n, 3, h, w), in [-1, 1] or uint8.
        names: What each shows.
        among: Size of the choice; chance is 1 / among.
        pool: Where the wrong names come from; by default all that the evaluator knows (for a ``Clip``: ``names``).
    """
    if pool is None:
        pool = evaluator.names if isinstance(evaluator, Evaluator) else names
    pool = list(dict.fromkeys(pool))
    if len(images) != len(names) or not names:
        raise InputError(f"The evaluator needs one name per image, got {len(names)} for {len(images)}.")
    if not 2 <= among <= len(pool):
        raise InputError(f"among must be from 2 to the {len(pool)} names of the pool, got {among}. Try among=100.")
    image_vectors = feature_nets.features(evaluator.encode_image, images)
    wanted, others = evaluator.encode_text(names).cpu(), evaluator.encode_text(pool).cpu()  # as the images' vectors
    right = (image_vectors * wanted).sum(1, keepdim=True)
    same = torch.tensor([[own == other for other in pool] for own in names])
    better = (~(image_vectors @ others.T < right) & ~same).sum(1).double()
    total, k = len(pool) - same.sum(1).double(), among - 1
    log_favorable = torch.lgamma(total - better + 1) - torch.lgamma(total - better - k + 1)
    log_total = torch.lgamma(total + 1) - torch.lgamma(total - k + 1)
    return torch.where(total - better >= k, (log_favorable - log_total).exp(), 0.0)


def r_precision(
    evaluator: Encoders, images: Tensor, names: Sequence[str], among: int = 100, pool: Sequence[str] | None = None
) -> RPrecision:
    """Part of the images whose own name fits best among ``among``; arguments as of :func:`chances`."""
    won = chances(evaluator, images, names, among, pool)
    low, high = distances.interval(lambda rows: float(rows.mean()), won, rounds=1000)
    return RPrecision(float(won.mean()), max(low, 0.0), min(high, 1.0), len(won))
