"""How near are images to real ones? Numbers, each sensitive to something and blind to something else.

Distances in the features of a net (:func:`frechet`, :func:`kernel_distance`) see content; :func:`precision_recall` and
:func:`density_coverage` tell wrong images from missing kinds; :func:`gradient_distance` sees what such features
forgive: patch seams, broken edges, blur and grain. The net is a small :class:`Classifier`, trained once on the data
itself, and the numbers carry its name (``fd_fashion_mnist``): they compare models of one data set, and are not "FID".

Every distance of finitely many images has a floor above 0. Print it: the same number, real against real.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..noise import generator

Features = Float[Tensor, "n d"]
Others = Float[Tensor, "m d"]
ROWS = 1024  # of a distance matrix that are held at once


# ---- distances between two sets of features ---------------------------------------------------------------------


def _check(real: Features, fake: Others, least: int = 2) -> tuple[Tensor, Tensor]:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < least:
        raise InputError(
            f"need two sets of at least {least} feature rows of equal width, got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}. Make both with the same net."
        )
    return real.double(), fake.double()  # float32 distances lose the small differences between near rows


def frechet(real: Features, fake: Others, shrunk: float = 0.0) -> float:
    """The squared Frechet distance of the two Gaussians through the features (Heusel et al. 2017, eq. 6).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)). It falls with the number of images: compare at equal n only.

    Args:
        real, fake: One row for each image, at least two.
        shrunk: Part of the covariances between features that is left out, 0 to 1 (Ledoit & Wolf 2004): from hardly
            more images than features, they are mostly chance.
    """
    real, fake = _check(real, fake)
    kept = (1 - shrunk) + shrunk * torch.eye(real.shape[1], dtype=real.dtype, device=real.device)
    a, b = (kept * torch.cov(x.T).reshape(x.shape[1], -1) for x in (real, fake))
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()  # tr (C C')^(1/2), and symmetric
    distance = (real.mean(0) - fake.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(real: Features, fake: Others, block: int = 1000) -> float:
    """The unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, eq. 4), as KID has it.

    Its mean is 0 when both sets come from one distribution, so single values may be negative. More than ``block``
    rows are cut into blocks, whose values are averaged: still unbiased, and linear in time.
    """
    real, fake = _check(real, fake)
    blocks = max(1, min(len(real), len(fake)) // block)
    values = []
    for x, y in zip(real.tensor_split(blocks), fake.tensor_split(blocks), strict=True):
        xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        values.append((xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1)) - 2 * xy.mean())
    return float(torch.stack(values).mean())


def nearest(
    queries: Features, points: Others, k: int, exclude_self: bool = False
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to, and indices of, the k nearest points of each query, nearest first.

    ``exclude_self`` is for ``queries`` that are the ``points``: row i is then no neighbour of itself.
    """
    queries, points = _check(queries, points, 1)
    skip = int(exclude_self)
    if not 0 < k <= len(points) - skip:
        raise InputError(f"{len(points)} images do not have {k} neighbors. Use more images, or a smaller k.")
    distances, indices = [], []
    for first in range(0, len(queries), ROWS):
        d = torch.cdist(queries[first : first + ROWS], points)
        if exclude_self:
            d.diagonal(first).fill_(-1)  # so that each row sorts before all others, duplicates included
        value, index = d.topk(k + skip, largest=False)
        distances.append(value[:, skip:])
        indices.append(index[:, skip:])
    return torch.cat(distances), torch.cat(indices)


def _covered(queries: Tensor, centers: Tensor, k: int) -> Float[Tensor, " q"]:
    """In how many balls each query lies; a center's ball reaches to its k-th nearest other center."""
    radii = nearest(centers, centers, k, exclude_self=True)[0][:, -1]
    counts = [(torch.cdist(q, centers) <= radii).sum(1) for q in queries.split(ROWS)]
    return torch.cat(counts).double()


def precision_recall(real: Features, fake: Others, k: int = 3) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2): one 0 or 1 per image; take the means.

    Precision: the share of generated images inside the manifold of the real ones. Recall: the other way round.
    """
    real, fake = _check(real, fake)
    return (_covered(fake, real, k) > 0).double(), (_covered(real, fake, k) > 0).double()


def density_coverage(real: Features, fake: Others, k: int = 5) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
    """Density and coverage (Naeem et al. 2020, eq. 3 and 4): one value per image; take the means.

    Density counts the real balls round a generated image, so that one outlier among the real ones does not bless
    everything near it; it may exceed 1. Coverage: the share of real images with a generated one in their ball.
    """
    real, fake = _check(real, fake)
    radii = nearest(real, real, k, exclude_self=True)[0][:, -1]
    return _covered(fake, real, k) / k, (nearest(real, fake, 1)[0][:, 0] <= radii).double()


def interval(
    statistic: Callable[..., float], *samples: Tensor, rounds: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of ``statistic(*samples)``: between what values would it fall with other images, as many?

    Rows are redrawn within each sample. Redrawing repeats images, which raises distances; the interval is therefore
    the spread of the redrawn values round their mean, put round the value itself.
    """
    source, values = generator(seed), []
    for _ in range(rounds):
        drawn = [s[torch.randint(len(s), (len(s),), generator=source)] for s in samples]
        values.append(statistic(*drawn))
    spread = torch.tensor(values, dtype=torch.float64)
    tail = (1 - level) / 2
    low, high = (spread - spread.mean()).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    value = statistic(*samples)
    return value + low, value + high
