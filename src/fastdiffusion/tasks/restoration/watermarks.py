"""The watermark that several images share: found, and removed.

A watermark is laid over: ``y = (1 - a) x + a c`` with the same opacity a and color c in every image. At each pixel
that is a straight line through the images: what varies among them is (1 - a) times what varied before (Dekel et al.
2017, "On the Effectiveness of Visible Watermarks"). So the spread of the images' values at a pixel, against that of its
unmarked surroundings, gives a; their mean then gives c, one color for the whole watermark, and a better a. Of a
watermark in two colors, such as white letters with a dark shadow, the second stays. Where it is opaque, the hole is
inpainted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...corruptions.blurs import gaussian, radius_of, taps
from ...errors import InputError
from ...io.images import grid, open_image, safe_name, to_pil, to_tensor, to_uint8
from ...io.inputs import losses
from ...io.outputs import save_image
from ...models import Model
from ...options import fill
from .options import RemoveWatermarkOptions
from .restore import restore
from .result import NOTE

OPAQUE = 0.85  # opacity from which on too little shines through
FAINT = 0.08  # opacity below which there is no watermark
LEFT = 0.02  # part of the watermark's edges from which on it can still be read; by eye and by tesseract
ENOUGH = 8  # images, from which it is mostly found well


@dataclass(frozen=True)
class WatermarkResult:
    """The images without the watermark, and the watermark: opacity (h, w) and color (3, h, w).

    ``alpha`` is the images' transparency, in [-1, 1], where they have some; ``remains`` the part of the watermark's
    edges that the images still share, about 0 where it is gone; ``notes`` are what a person should know.
    """

    images: Float[Tensor, "n 3 h w"]
    names: tuple[str, ...]
    opacity: Float[Tensor, "h w"]
    color: Float[Tensor, "3 h w"]
    alpha: Float[Tensor, "n 1 h w"] | None = None
    remains: float = 0.0
    notes: tuple[str, ...] = (NOTE,)

    @property
    def succeeded(self) -> bool:
        """Whether nothing that can be read is left of it."""
        return self.remains < LEFT

    def save(self, folder: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None) -> list[Path]:
        """Write one PNG each, and mark.png: opacity and color; all carry the ``recipe``.

        Where another image has a name, a number is added.
        """
        *paths, mark = written(self.names, folder)
        images = self.images if self.alpha is None else torch.cat([self.images, self.alpha], 1)
        shown = torch.where(self.opacity > 0, self.color, -1)
        sheet = grid([(2 * self.opacity - 1).expand(3, -1, -1), shown])
        return [
            *(save_image(x, p, recipe) for x, p in zip(images, paths, strict=True)),
            save_image(sheet, mark, recipe),
        ]

    def __str__(self) -> str:
        share = float((self.opacity > 0).float().mean())
        summary = f"The watermark covers {share:.1%} of the image, opacity up to {float(self.opacity.max()):.2f}."
        failed = (
            f"The watermark is not gone: {self.remains:.0%} of its edges are left, and it may still be read. Give more "
            f"images, {max(ENOUGH, 2 * len(self.images))} or so, or paint over it: fastdiffusion restore IMAGE "
            "--corruption 'inpaint MASK'."
        )
        return "\n".join([summary, *([] if self.succeeded else [failed]), *self.notes])


def written(names: Sequence[str], folder: str | os.PathLike[str]) -> list[Path]:
    """The files of images of these names, and of their watermark; equal names are numbered."""
    taken: dict[str, Path] = {}
    for name in (*map(safe_name, names), "mark"):
        free = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(names) + 3))) if n not in taken)
        taken[free] = Path(folder) / f"{free}.png"
    return list(taken.values())


def remove_watermark(
    images: Sequence[str | os.PathLike[str] | Image.Image],
    model: Model | str | Path | None = None,
    **options: Any,
) -> WatermarkResult:
    """Find the watermark that images of one size share, and remove it; pixels without it stay exactly as they are.

    Args:
        images: Three or more. The more, the better it is found: three to five mostly leave traces, eight are good. The
            result says whether it succeeded.
        model: The restorer that inpaints where the watermark is opaque; see :func:`fastdiffusion.restore`.
        options: See :class:`RemoveWatermarkOptions`.

    Raises:
        InputError: Too few images, unlike sizes, or no watermark in them.
    """
    chosen = fill(RemoveWatermarkOptions, model=model, **options)
    n = len(images)
    if n < 3:
        raise InputError(f"A watermark shows in three or more images, got {n}. For one: corruption='inpaint MASK'.")
    names, loaded = [], []
    notes, layers = {NOTE: None}, []
    for i, source in enumerate(images):
        whole = open_image(source).convert("RGBA")
        loaded.append(to_tensor(whole.convert("RGB")))
        layers.append(to_tensor(whole.getchannel("A")))
        notes |= dict.fromkeys(losses(source, transparency=False))
        names.append(f"image-{i}" if isinstance(source, Image.Image) else Path(source).stem)
    if len({tuple(image.shape) for image in loaded}) > 1:
        sizes = sorted({f"{image.shape[2]}x{image.shape[1]}" for image in loaded})
        raise InputError(f"The images must be of one size, got {' and '.join(sizes)}. Crop them alike.")
    y, alpha = torch.stack(loaded), torch.stack(layers)
    opacity, color = find_watermark(y)
    opacity = opacity * (alpha[:, 0] > -1).any(0)  # where all is transparent, nothing shows
    if not bool((opacity > 0).any()):
        raise InputError(
            "No watermark was found that all images share. Give more images, or a mask: corruption='inpaint MASK'."
        )
    clear = (y - opacity * color) / (1 - opacity).clamp(min=1 - OPAQUE)
    clear = to_tensor(to_uint8(torch.where(opacity > 0, clear, y)))
    hole = opacity > OPAQUE
    if bool(hole.any()):
        from ...corruptions import mask

        hole = F.max_pool2d(hole[None, None].float(), 3, 1, 1) * (opacity > 0)
        for i, image in enumerate(clear):
            painted = restore(to_pil(image), mask(hole), **vars(chosen)).images[0]
            clear[i] = torch.where(hole[0] > 0, painted, image)
    kept = None if bool((alpha == 1).all()) else alpha
    return WatermarkResult(clear, tuple(names), opacity, color, kept, remaining(y, clear), tuple(notes))


def remaining(y: Float[Tensor, "n 3 h w"], x: Float[Tensor, "n 3 h w"]) -> float:
    """The part of what images share that is still in the restored ones: 1 if all, about 0 if nothing.

    Each image's edges are projected on what the other images' edges have in common, so that its own do not count.
    """
    before, after = _gradients(y), _gradients(x)
    own, left = 0.0, 0.0
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        shared = before[:, others].median(1).values if len(y) > 3 else before[:, others].mean(1)
        own, left = own + float((shared * before[:, i]).sum()), left + float((shared * after[:, i]).sum())
    return left / own if own > 0 else 0.0


def find_watermark(y: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "h w"], Float[Tensor, "3 h w"]]:
    """(opacity, color) of the watermark that all share; opacity 0 where there is none."""
    mean = y.mean(0)
    # what a watermark adds is a sharp structure that stays when the images are averaged by their gradients' median
    edges = torch.stack([_gradients(y).median(1).values.abs().amax(0).amax(0)])[None]
    near = _smooth(edges, 1.0)
    rough = near > 6 * near.median() + 0.01
    inside = _filled(rough)
    spread = y.std(0).mean(0)
    around = _around(spread, ~inside)
    opacity = (1 - spread / around.clamp(min=1e-3)).clamp(0, 1) * inside
    opacity = _smooth(opacity[None, None], 0.7)[0, 0] * inside
    base = torch.stack([_around(channel, ~inside) for channel in mean])
    # opacity and color trade off at a pixel; as the color is one for the whole watermark, the mean decides between them
    strong = opacity > 0.5 * opacity.max().clamp(min=FAINT)
    if not bool(strong.any()):
        return torch.zeros_like(opacity), mean
    a = opacity[strong]
    one = ((mean - (1 - opacity) * base)[:, strong] * a).sum(1) / a.square().sum().clamp(min=1e-6)
    one = one.clamp(-1, 1)
    gap = one[:, None, None] - base
    by_mean = ((mean - base) * gap).sum(0) / gap.square().sum(0).clamp(min=1e-3)
    opacity = torch.where(inside, by_mean, 0).clamp(0, 1)
    return torch.where(opacity > FAINT, opacity, 0), one[:, None, None].expand_as(mean)


def _gradients(y: Tensor) -> Float[Tensor, "2 n c h w"]:
    across = F.pad(y[..., 1:] - y[..., :-1], (0, 1))
    down = F.pad(y[..., 1:, :] - y[..., :-1, :], (0, 0, 0, 1))
    return torch.stack([across, down])


def _smooth(x: Float[Tensor, "b c h w"], sigma: float) -> Tensor:
    return gaussian(x, taps(x.new_tensor([sigma]).expand(len(x)), radius_of(sigma)))


def _filled(rough: Tensor) -> Tensor:
    """The marked region: its edges grown, and what they enclose."""
    return F.max_pool2d(rough.float(), 9, 1, 4)[0, 0] > 0


def _around(values: Float[Tensor, "h w"], known: Tensor) -> Float[Tensor, "h w"]:
    """Values of unmarked pixels carried into the marked ones, by normalized blurs of growing width."""
    out, left = torch.where(known, values, 0), ~known
    for sigma in (4.0, 8.0, 16.0, 32.0):
        weight = _smooth(known.float()[None, None], sigma)[0, 0]
        mean = _smooth((values * known)[None, None], sigma)[0, 0] / weight.clamp(min=1e-6)
        take = left & (weight > 0.05)
        out, left = torch.where(take, mean, out), left & ~take
    return torch.where(left, values[known].mean() if bool(known.any()) else values.mean(), out)
