"""A look at latents without the decoder: the linear map to colors that comes nearest to the autoencoder.

Latents of images are, but for their fine structure, a small image in other colors: one matrix of a few numbers shows
what is being drawn, at the resolution of the latents and a thousandth of the decoder's price.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...data.cache import cache_folder
from ...errors import DataError
from ...io import untrusted_json
from ...io.atomic import write_json
from ...models import Model
from ...noise import generator

IMAGES, CELLS = 24, 16  # that are fitted to, and latents in a row of each


@dataclass(frozen=True)
class LinearPreview:
    """colors = weight @ latent + bias, latent by latent.

    Attributes:
        weight: By latent channel and color.
        bias: By color.
    """

    weight: Float[Tensor, "d c"]
    bias: Float[Tensor, " c"]

    def __call__(self, latents: Float[Tensor, "b d *s"]) -> Float[Tensor, "b c *s"]:
        """Images in about [-1, 1], one pixel for each latent."""
        colors = latents.movedim(1, -1) @ self.weight.to(latents) + self.bias.to(latents)
        return colors.movedim(-1, 1).clamp(-1, 1)


@torch.no_grad()
def fit(model: Model) -> LinearPreview:
    """By least squares on the latents of drawn images: soft colors at all scales, each pixel square's mean color."""
    assert model.autoencoder is not None
    side, channels = CELLS * model.factor, model.image_shape[0]
    images, rng = torch.zeros(IMAGES, channels, side, side), generator(0)
    for cells in (1, 2, 4, 8, 16):
        colors = torch.rand(IMAGES, channels, cells, cells, generator=rng) * 2 - 1
        images += functional.interpolate(colors, (side, side), mode="bicubic") * cells**-0.5
    images = images.clamp(-1, 1)
    latents = torch.cat([model.encode(part.to(model.device)).cpu() for part in images.split(4)])
    rows = latents.movedim(1, -1).flatten(0, -2).double()
    wanted = functional.avg_pool2d(images, model.factor).movedim(1, -1).flatten(0, -2).double()
    mean, color = rows.mean(0), wanted.mean(0)
    weight = torch.linalg.lstsq(rows - mean, wanted - color, driver="gelsd").solution  # 0 for channels that are idle
    return LinearPreview(weight.float(), (color - mean @ weight).float())


def linear_preview(model: Model) -> LinearPreview:
    """The map of a model: without an autoencoder that changes nothing; else fitted once, and kept in the cache."""
    if model.autoencoder is None:
        return LinearPreview(torch.eye(model.shape[0]), torch.zeros(model.shape[0]))
    known = _kept(model.id)
    if known is None:
        known = fit(model)
        with suppress(OSError, DataError):
            write_json(_place(model.id), {"weight": known.weight.tolist(), "bias": known.bias.tolist()})
            _kept.cache_clear()
    return known


@lru_cache(maxsize=8)
def _kept(sha256: str) -> LinearPreview | None:
    with suppress(OSError, ValueError, KeyError, TypeError, DataError):
        content = untrusted_json.parsed_file(_place(sha256))
        return LinearPreview(torch.tensor(content["weight"]), torch.tensor(content["bias"]))
    return None


def _place(sha256: str) -> Path:
    folder = cache_folder() / "previews"
    folder.mkdir(exist_ok=True)
    return folder / f"{sha256}.json"
