"""How near are pictures to real ones? Numbers, each with what it sees and what it is blind to.

Distances in the features of a net (:func:`frechet`, :func:`kernel_distance`) see content; :func:`precision_recall` and
:func:`density_coverage` tell wrong pictures from missing kinds; :func:`gradient_distance` sees what such features
forgive: patch seams, broken edges, blur and grain. The net is a small :class:`Classifier`, trained once on the data
itself, and the numbers carry its name (``fd_fashion_mnist``): they compare models of one data set, and are not "FID".

Every distance of finitely many pictures has a floor above 0. Print it: the same number, real against real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .checkpoints import load_tensors, save_tensors
from .data import Dataset, cache_folder
from .errors import CheckpointError, DataError, InputError
from .images import safe_name, to_tensor, to_uint8
from .noise import generator

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


def frechet(real: Features, fake: Others) -> float:
    """The squared Frechet distance of the two Gaussians through the features (Heusel et al. 2017, eq. 6).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)). It falls with the number of pictures: compare at equal n only.
    """
    real, fake = _check(real, fake)
    a, b = torch.cov(real.T).reshape(real.shape[1], -1), torch.cov(fake.T).reshape(real.shape[1], -1)
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
        raise InputError(f"{len(points)} pictures do not have {k} neighbors. Use more pictures, or a smaller k.")
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
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2): one 0 or 1 per picture; take the means.

    Precision: the share of generated pictures inside the manifold of the real ones. Recall: the other way round.
    """
    real, fake = _check(real, fake)
    return (_covered(fake, real, k) > 0).double(), (_covered(real, fake, k) > 0).double()


def density_coverage(real: Features, fake: Others, k: int = 5) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
    """Density and coverage (Naeem et al. 2020, eq. 3 and 4): one value per picture; take the means.

    Density counts the real balls round a generated picture, so that one outlier among the real ones does not bless
    everything near it; it may exceed 1. Coverage: the share of real pictures with a generated one in their ball.
    """
    real, fake = _check(real, fake)
    radii = nearest(real, real, k, exclude_self=True)[0][:, -1]
    return _covered(fake, real, k) / k, (nearest(real, fake, 1)[0][:, 0] <= radii).double()


def interval(
    statistic: Callable[..., float], *samples: Tensor, rounds: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of ``statistic(*samples)``: between what values would it fall with other pictures, as many?

    Rows are redrawn within each sample. Redrawing repeats pictures, which raises distances; the interval is therefore
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


# ---- gradients: what classifiers do not look at -------------------------------------------------------------------

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # of a difference between neighboring pixels, in the range [-1, 1]


def gradient_statistics(images: Float[Tensor, "n c h w"]) -> dict[str, Features]:
    """Four families of numbers per picture, in [-1, 1] pixel units, that content leaves nearly alone.

    - ``seams``: gradient strength by position modulo 2, 4 and 8, over its mean: nets that work in patches leave a comb;
    - ``edges``: the share of neighboring pixels that differ by more than each of ``THRESHOLDS``: blur, ringing;
    - ``texture``: the same of second differences: grain, speckle, stair-steps;
    - ``coherence``: how far gradients within 3, 5 and 9 pixels agree in direction (the structure tensor's anisotropy,
      weighted by energy): broken and frayed edges disagree.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 4:
        raise InputError(f"gradients need pictures of at least 4x4 pixels, got shape {tuple(images.shape)}.")
    chunks = [_gradient_statistics(part) for part in images.float().split(ROWS)]
    return {name: torch.cat([p[name] for p in chunks]) for name in chunks[0]}


def _gradient_statistics(x: Tensor) -> dict[str, Tensor]:
    both = (x, x.transpose(-1, -2))  # so that one formula, along the last axis, does columns and rows
    slopes = [v.diff(dim=-1).abs() for v in both]
    bends = [v.diff(n=2, dim=-1).abs() for v in both]
    seams = []
    for slope in slopes:
        profile = slope.mean((1, 2)) + 1e-3  # by position; the 1e-3 keeps blank pictures finite
        profile = profile / profile.mean(1, keepdim=True)
        for period in (2, 4, 8):
            if profile.shape[1] > period:
                # a phase averages 1/period of the positions: 8 / period gives every period the same variance
                seams += [profile[:, phase::period].mean(1) * (8 / period) for phase in range(period)]
    # The structure tensor, from differences over 2x2 pixels so that both directions sit at the same place.
    dx = (x.diff(dim=-1)[:, :, 1:] + x.diff(dim=-1)[:, :, :-1]) / 2
    dy = (x.diff(dim=-2)[..., 1:] + x.diff(dim=-2)[..., :-1]) / 2
    tensor = torch.stack([dx * dx, dy * dy, dx * dy], 1).sum(2)
    coherence = []
    for window in (3, 5, 9):
        if window <= min(tensor.shape[-2:]):
            xx, yy, xy = functional.avg_pool2d(tensor, window, stride=1).unbind(1)
            anisotropy = ((xx - yy).square() + 4 * xy.square()).sqrt()
            coherence.append((anisotropy.sum((1, 2)) + 1e-6) / ((xx + yy).sum((1, 2)) + 1e-6))
    if not coherence:  # a 2x2 tensor of a tiny picture: one window over all of it
        xx, yy, xy = tensor.mean((2, 3)).unbind(1)
        coherence.append((((xx - yy).square() + 4 * xy.square()).sqrt() + 1e-6) / (xx + yy + 1e-6))
    return {
        "seams": torch.stack(seams, 1),
        "edges": torch.stack([(s > t).float().mean((1, 2, 3)) for s in slopes for t in THRESHOLDS], 1),
        "texture": torch.stack([(b > t).float().mean((1, 2, 3)) for b in bends for t in THRESHOLDS], 1),
        "coherence": torch.stack(coherence, 1),
    }


def gradient_distance(real: dict[str, Features], fake: dict[str, Features]) -> dict[str, float]:
    """Frechet distance in each family of :func:`gradient_statistics`, and their mean as ``all``.

    The unit is the variance among the real pictures: 1 means that the sets are as far apart as single pictures are.
    """
    result = {}
    for name, values in real.items():
        unit = values.double().var(0).sum().sqrt().clamp(min=1e-6)
        result[name] = frechet(values / unit, fake[name] / unit)
    return {"all": sum(result.values()) / len(result), **result}


# ---- the net whose features are compared --------------------------------------------------------------------------


class Classifier(nn.Module):
    """A small convolutional classifier: the ruler of :func:`frechet`, and the judge of labels.

    Takes pictures in [-1, 1] of any size and looks at them at ``side`` x ``side``.

    Args:
        channels: Of the pictures.
        classes: How many it tells apart.
        side: Pixels that it looks at, a power of two; at most 32 keeps its training in minutes on a CPU.
        width: Channels of the first stage; features are twice as wide.
    """

    unit: Tensor

    def __init__(self, channels: int, classes: int, side: int = 32, width: int = 32):
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "side": side, "width": width}
        self.info: dict[str, Any] = {}  # name, accuracy and data, once trained
        self.side = side
        fold = 2 if side > 8 else 1  # 2x2 pixels become channels: a quarter of the work, at the size where work is
        wide = (width, 2 * width, 2 * width)

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            core = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return nn.Sequential(core, nn.BatchNorm2d(outputs), nn.ReLU())

        self.stem = nn.Sequential(nn.PixelUnshuffle(fold), conv(channels * fold**2, wide[0]))
        self.body = nn.Sequential(
            conv(wide[0], wide[1], 2), conv(wide[1], wide[1]), conv(wide[1], wide[2], 2), conv(wide[2], wide[2])
        )
        self.head = nn.Linear(wide[2], classes)
        self.register_buffer("unit", torch.ones(()))

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the last layer sees, averaged over the picture, scaled to unit variance on the training data."""
        images = _resized(images, self.side, self.side)
        return self.body(self.stem(images)).mean((2, 3)) / self.unit

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        return self.head(self.features(images))


def load_images(
    data: Dataset, indices: Sequence[int], size: tuple[int, int] | None = None
) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The pictures at ``indices``, in that order and of one size (by default the data's), and their labels."""
    c, *nominal = data.shape
    h, w = size or nominal
    images, labels = torch.empty(len(indices), c, h, w, dtype=torch.uint8), torch.full((len(indices),), -1)
    place = {index: i for i, index in enumerate(indices)}
    for group in data.groups:
        wanted = [index for index in group if index in place]
        for first in range(0, len(wanted), 256):
            part = wanted[first : first + 256]
            batch, rows = data.batch(part), [place[index] for index in part]
            images[rows] = to_uint8(_resized(_cropped(to_tensor(batch.images), h, w), h, w))
            labels[rows] = batch.labels
    return images, labels


def choose(data: Dataset, n: int, seed: int = 0) -> list[int]:
    """``n`` different indices, drawn from ``seed``; a larger n begins with the smaller's."""
    return torch.randperm(len(data), generator=generator(seed))[:n].tolist()


def _cropped(images: Tensor, h: int, w: int) -> Tensor:
    """The middle of pictures from an aspect bucket, in the shape h:w; squeezed, they would be of another kind."""
    height, width = images.shape[-2:]
    tall, wide = min(height, round(width * h / w)), min(width, round(height * w / h))
    top, left = (height - tall) // 2, (width - wide) // 2
    return images[..., top : top + tall, left : left + wide]


def _resized(images: Tensor, h: int, w: int) -> Tensor:
    if images.shape[-2:] == (h, w):
        return images
    return functional.interpolate(images, (h, w), mode="bilinear", antialias=True)


@torch.enable_grad()  # often first needed in the middle of a measurement, which is without
def train_classifier(data: Dataset, passes: float | None = None, batch_size: int = 128, seed: int = 0) -> Classifier:
    """A classifier of ``data``'s labels, or where it has none, of quarter turns (Gidaris et al. 2018).

    One tenth of the pictures is kept aside and gives ``info["accuracy"]``. Deterministic on one machine.

    Args:
        data: At least 20 pictures; at most 100,000 are used.
        passes: Over the data; by default 420,000 pictures' worth (2 CPU minutes at 32 pixels), but at most 40.
        batch_size: Pictures per step.
        seed: Of the weights, the order and the shifts.
    """
    if len(data) < 20:
        raise DataError(f"{data.name!r} has {len(data)} pictures; a classifier to measure with needs at least 20.")
    channels, h, w = data.shape
    side = min(32, max(8, 2 ** round(math.log2(max(h, w)))))
    images, labels = load_images(data, choose(data, 100_000, seed), (side, side))
    kinds = len(data.classes)
    if kinds > 1 and bool((labels >= 0).any()):
        images, labels = images[labels >= 0], labels[labels >= 0]
    else:
        kinds = 4
        labels = torch.arange(len(images)) % 4
        images = torch.stack([image.rot90(int(quarter), (1, 2)) for image, quarter in zip(images, labels, strict=True)])
    held = max(len(images) // 10, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(channels, kinds, side)
    passes = passes or min(420_000 / len(images), 40)
    steps = math.ceil(passes * (len(images) - held) / batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    source = generator(seed, 1)
    order = torch.cat(
        [held + torch.randperm(len(images) - held, generator=source) for _ in range(math.ceil(passes) + 1)]
    )
    reach = side // 32  # further, or at 8 pixels at all, the shifts cost more than they teach
    for step in tqdm(range(steps), f"teaching a classifier of {data.name}", disable=None, leave=False):
        rows = order[step * batch_size : (step + 1) * batch_size]
        shift = torch.randint(-reach, reach + 1, (2,), generator=source).tolist()
        loss = functional.cross_entropy(net(to_tensor(images[rows]).roll(shift, (2, 3))), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)
    right = torch.cat([net(to_tensor(part)).argmax(1) for part in images[:held].split(ROWS)]) == labels[:held]
    inner = torch.cat([net.features(to_tensor(part)) for part in images[held:][:10_000].split(ROWS)])
    net.unit.copy_(inner.var(0).mean().sqrt())
    net.head.weight.mul_(net.unit)  # the logits stay what they were
    net.info = {
        "name": safe_name(data.name).replace("-", "_").lower(),
        "data": data.fingerprint,
        "accuracy": round(float(right.float().mean()), 4),
        "of": "labels" if len(data.classes) > 1 else "quarter turns",
    }
    return net


def classifier(data: Dataset, path: str | Path | None = None) -> Classifier:
    """The frozen classifier of ``data``: read from the cache, or trained once and kept there.

    ``path`` is another place for the file; with it one machine's ruler can be used on another.
    """
    path = Path(path) if path else cache_folder() / f"fd_{safe_name(data.name)}-{data.fingerprint[:16]}.safetensors"
    if path.exists():
        try:
            return load_classifier(path)
        except CheckpointError:
            pass  # cut short or of an older version: it can be made again
    net = train_classifier(data)
    save_tensors(path, net.state_dict(), {"classifier": net.config, "info": net.info})
    return net


def load_classifier(path: str | Path) -> Classifier:
    """A classifier that :func:`classifier` wrote; raises CheckpointError for any other file."""
    config, tensors = load_tensors(path)
    try:
        net = Classifier(**config["classifier"])
        net.load_state_dict(tensors)
        net.info = dict(config["info"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a classifier of fastdiffusion ({type(error).__name__}).") from None
    return net.eval().requires_grad_(False)


@torch.no_grad()
def features(net: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 256) -> Features:
    """What ``net`` sees in uint8 or [-1, 1] pictures; feature maps are averaged.

    ``net`` is a :class:`Classifier`, or any module from (b, c, h, w) in [-1, 1] to (b, d) or (b, d, h, w).
    """
    look = net.features if isinstance(net, Classifier) else net
    rows = []
    for part in tqdm(images.split(batch_size), "features", disable=None, leave=False):
        values = look(to_tensor(part) if part.dtype == torch.uint8 else part)
        rows.append((values.flatten(2).mean(2) if values.ndim > 2 else values).float().cpu())
    return torch.cat(rows)
