"""Features to measure distances in: a small classifier trained on the data itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..data import Dataset, cache_folder
from ..data.selection import _resized, choose, load_images
from ..device import device_of
from ..errors import CheckpointError, DataError
from ..io import guarded
from ..io.checkpoints import load_tensors, save_tensors
from ..io.images import safe_name, to_tensor
from ..noise import generator
from .distances import ROWS, Features


class Classifier(nn.Module):
    """A small convolutional classifier: features for :func:`frechet`, and predicted labels.

    Takes images in [-1, 1] of any size and resizes them to ``side`` x ``side``.

    Args:
        channels: Of the images.
        classes: How many there are.
        side: Pixels of the resized images, a power of two; at most 32 keeps its training in minutes on a CPU.
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
        """Input of the last layer, averaged over the image and scaled to unit variance on the training data."""
        images = _resized(images, self.side, self.side)
        return self.body(self.stem(images)).mean((2, 3)) / self.unit

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        return self.head(self.features(images))


@torch.enable_grad()  # often first needed in the middle of a measurement, which is without
def train_classifier(
    data: Dataset,
    passes: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str | None = None,
) -> Classifier:
    """A classifier of ``data``'s labels, or where it has none, of quarter turns (Gidaris et al. 2018).

    One tenth of the images is kept aside and gives ``info["accuracy"]``. Deterministic on one machine.

    Args:
        data: At least 20 images; at most 100,000 are used.
        passes: Over the data; by default 420,000 images' worth (2 CPU minutes at 32 pixels), but at most 40.
        batch_size: Images per step.
        seed: Of the weights, the order and the shifts.
        device: Where to train; by default the best there is. The result is on the CPU.
    """
    if len(data) < 20:
        raise DataError(f"{data.name!r} has {len(data)} images; a classifier to measure with needs at least 20.")
    place = device_of(device)
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
        net = Classifier(channels, kinds, side).to(place)
    images, labels = images.to(place), labels.to(place)
    passes = passes or min(420_000 / len(images), 40)
    steps = math.ceil(passes * (len(images) - held) / batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    source = generator(seed, 1)
    order = torch.cat(
        [held + torch.randperm(len(images) - held, generator=source) for _ in range(math.ceil(passes) + 1)]
    )
    reach = side // 32  # further, or at 8 pixels at all, the shifts cost more than they teach
    for step in tqdm(range(steps), f"training a classifier of {data.name}", disable=None, leave=False):
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
    return net.cpu()


def classifier(data: Dataset, path: str | Path | None = None, device: str | None = None) -> Classifier:
    """The frozen classifier of ``data``: read from the cache, or trained once (on ``device``) and kept there.

    ``path`` is another place for the file; with it one machine's classifier can be used on another.
    """
    path = Path(path) if path else cache_folder() / f"fd_{safe_name(data.name)}-{data.fingerprint[:16]}.safetensors"
    if path.exists():
        try:
            return load_classifier(path)
        except CheckpointError:
            pass  # cut short or of an older version: it can be made again
    net = train_classifier(data, device=device)
    save_tensors(path, net.state_dict(), {"classifier": net.config, "info": net.info})
    return net


def load_classifier(path: str | Path) -> Classifier:
    """A classifier that :func:`classifier` wrote; raises CheckpointError for any other file."""
    config, tensors = load_tensors(path)
    net = guarded.module(path, config.get("classifier"), Classifier, tensors)
    net.info = dict(config.get("info", {}))
    return net


@torch.no_grad()
def features(net: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 256) -> Features:
    """Features of images (uint8, or [-1, 1]), on the CPU, computed where the net is; feature maps are averaged.

    ``net`` is a :class:`Classifier`, or any module (or method of one) from (b, c, h, w) in [-1, 1] to (b, d) or
    (b, d, h, w).
    """
    look = net.features if isinstance(net, Classifier) else net
    owner = net if isinstance(net, nn.Module) else getattr(net, "__self__", None)
    if isinstance(owner, nn.Module):
        images = images.to(next((t.device for t in owner.parameters()), images.device))
    rows = []
    for part in tqdm(images.split(batch_size), "features", disable=None, leave=False):
        values = look(to_tensor(part) if part.dtype == torch.uint8 else part)
        rows.append((values.flatten(2).mean(2) if values.ndim > 2 else values).float().cpu())
    return torch.cat(rows)
