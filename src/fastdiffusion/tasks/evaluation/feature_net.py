"""A small classifier of the data, whose features distances are measured in."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ...data import Dataset, cache_folder
from ...data.selection import choose, load_images
from ...errors import CheckpointError, DataError, counted
from ...io.checkpoints import save_tensors
from ...io.images import safe_name, to_tensor
from ...metrics.distances import ROWS
from ...metrics.feature_nets import Classifier, load_classifier
from ...nets.layers import drawn
from ...noise import generator
from ...options import fill
from ...training.batches import title
from ...training.task import Part, Task, Updates
from ...training.trainer import train
from .options import TrainFeatureNetOptions

LEAST = 20  # images, or of those with a label, that a classifier can be trained on


@torch.enable_grad()  # often first needed in the middle of a measurement, which is without
def train_feature_net(data: Dataset, **options: object) -> Classifier:
    """A classifier of ``data``'s labels, or where hardly any image has one, of quarter turns (Gidaris et al. 2018).

    One tenth of the images is kept aside and gives ``info["accuracy"]``. Deterministic on one machine.

    Args:
        data: At least 20 images; at most 100,000 are used.
        options: See :class:`TrainFeatureNetOptions`. Without ``steps`` it sees 420,000 images (2 CPU minutes at 32
            pixels), but none more than 40 times.
    """
    chosen = fill(TrainFeatureNetOptions, **options)
    if len(data) < LEAST:
        raise DataError(
            f"{data.name!r} has {counted(len(data), 'image')}; a classifier to measure with needs at least {LEAST}."
        )
    channels, h, w = data.shape
    side = min(32, max(8, 2 ** round(math.log2(max(h, w)))))
    images, labels = load_images(data, choose(data, 100_000, chosen.seed), (side, side))
    kinds = len(data.classes)
    by_label = kinds > 1 and int((labels >= 0).sum()) >= LEAST
    if by_label:
        images, labels = images[labels >= 0], labels[labels >= 0]
    else:
        kinds = 4
        labels = torch.arange(len(images)) % 4
        images = torch.stack([image.rot90(int(quarter), (1, 2)) for image, quarter in zip(images, labels, strict=True)])
    held = max(len(images) // 10, 2)
    learned, size = len(images) - held, chosen.batch_size
    net: Classifier = drawn(lambda: Classifier(channels, kinds, side), chosen.seed)
    reach = side // 32  # further, or at 8 pixels at all, the shifts cost more than they teach

    @lru_cache(2)
    def order(epoch: int) -> Tensor:
        return held + torch.randperm(learned, generator=generator(chosen.seed, 1, epoch))

    def draw(step: int) -> tuple[Tensor, Tensor]:
        first, last = divmod(step * size, learned), (step + 1) * size // learned
        rows = torch.cat([order(epoch) for epoch in range(first[0], last + 1)])[first[1] :][:size]
        shift = torch.randint(-reach, reach + 1, (2,), generator=generator(chosen.seed, 2, step)).tolist()
        return to_tensor(images[rows]).roll(shift, (2, 3)), labels[rows]

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    usual = math.ceil(min(420_000, 40 * learned) / size)
    part = Part(net, loss, chosen.optimizer, chosen.lr, weight_decay=0.02)
    config = {**net.config, "data": data.fingerprint, "batch_size": size, "lr": chosen.lr}
    train(
        Task(
            {"net": part},
            draw,
            config,
            f"A classifier of {title(data)}",
            usual * size,
            updates=Updates(decay=0.8, grad_clip=0.0),
        ),
        chosen.usually(usual),
    )
    net.cpu().requires_grad_(False)
    right = torch.cat([net(to_tensor(part)).argmax(1) for part in images[:held].split(ROWS)]) == labels[:held]
    inner = torch.cat([net.features(to_tensor(part)) for part in images[held:][:10_000].split(ROWS)])
    net.unit.copy_(inner.var(0).mean().sqrt().clamp(min=1e-6))  # 0 where all images are alike
    net.head.weight.mul_(net.unit)  # the logits stay what they were
    net.info = {
        "name": safe_name(data.name).replace("-", "_").lower(),
        "data": data.fingerprint,
        "accuracy": round(float(right.float().mean()), 4),
        "of": "labels" if by_label else "quarter turns",
    }
    return net


def feature_net(data: Dataset, path: str | Path | None = None, device: str | None = None) -> Classifier:
    """The frozen classifier of ``data``: read from the cache, or trained once (on ``device``) and kept there.

    ``path`` is another place for the file; with it one machine's classifier can be used on another.
    """
    path = Path(path) if path else cache_folder() / f"fd_{safe_name(data.name)}-{data.fingerprint[:16]}.safetensors"
    if path.exists():
        try:
            return load_classifier(path)
        except CheckpointError:
            pass  # cut short or of an older version: it can be made again
    net = train_feature_net(data, device=device)
    save_tensors(path, net.state_dict(), {"classifier": net.config, "info": net.info})
    return net
