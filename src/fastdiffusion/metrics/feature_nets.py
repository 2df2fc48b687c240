"""Features to measure distances in: of a small classifier, which ``tasks.evaluation.feature_net`` trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.selection import _resized
from ..io import guarded
from ..io.checkpoints import load_tensors
from ..io.images import to_tensor
from ..progress import Progress
from .distances import Features


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


def load_classifier(path: str | Path) -> Classifier:
    """A classifier that ``tasks.evaluation.feature_net`` wrote; raises CheckpointError for any other file."""
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
    for part in Progress(images.split(batch_size), "features"):
        values = look(to_tensor(part) if part.dtype == torch.uint8 else part)
        rows.append((values.flatten(2).mean(2) if values.ndim > 2 else values).float().cpu())
    return torch.cat(rows)
