"""The canvas of image to image: the image that a run starts from, with what is added to it, and what of it stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ...io import inputs
from ...io.images import MAX_PIXELS, to_pil, to_tensor
from ...models import Model, Size
from ..word_masks import shown_mask

Borders = tuple[int, int, int, int]  # left, top, right, bottom
UNCHANGED = 0.1  # difference from what an autoencoder makes of the image, of a range of 2, that is no change
ALIKE = 2  # times as large as the run's images, an image can be drawn at its own size
AROUND = 4  # pixels to each side over which it is taken


@dataclass(frozen=True)
class Canvas:
    """An image at the size of a run, and its mask.

    Attributes:
        image: In [-1, 1].
        mask: 1 where it is drawn anew, 0 where it is kept; None where nothing is kept.
        notes: What was done to it, in sentences.
        size: Height and width of results, at the top left of the run's images; None where those are as large.
    """

    image: Float[Tensor, "c h w"]
    mask: Float[Tensor, "1 h w"] | None = None
    notes: tuple[str, ...] = ()
    size: Size | None = None

    def crop(self, images: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n p q"]:
        """Images of the run without what was added so that their sides divide as the model needs it."""
        return images if self.size is None else images[..., : self.size[0], : self.size[1]]

    def latent_mask(self, factor: int) -> Float[Tensor, "1 1 i j"]:
        """The mask of latents: each may change as much as any pixel of the square that it stands for."""
        assert self.mask is not None
        return functional.max_pool2d(self.mask[None], factor)

    def without_loss(
        self, images: Float[Tensor, "n c h w"], copy: Float[Tensor, "1 c h w"], strength: float
    ) -> Float[Tensor, "n c h w"]:
        """Images with what the autoencoder loses of this one, ``copy`` being what it makes of it.

        Only where a run changed nothing, and the less the further it went: else every run takes the image a little
        further from itself, in its colors above all, and strength 0 would be no limit of small ones.
        """
        difference = functional.pad((images - copy).square().mean(1, keepdim=True), (AROUND,) * 4, mode="replicate")
        changed = functional.avg_pool2d(difference, 2 * AROUND + 1, 1)
        share = (1 - strength) * torch.exp(-changed / UNCHANGED**2)
        return images + share * (self.image.to(images) - copy)

    def hold(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images with this one's own pixels where the mask is 0, which an autoencoder would change; between, a mix."""
        if self.mask is None:
            return images
        return torch.lerp(self.image.to(images), images.clamp(-1, 1), self.mask.to(images))

    def only(self, model: Model, text: str) -> Canvas:
        """The same, of which only what shows ``text``, such as "the hat, the tie", is drawn anew; without text all."""
        if not text.strip():
            return self
        mask = shown_mask(model, self.image, text)
        return replace(self, mask=mask if self.mask is None else mask * self.mask)


def canvas(
    image: Image.Image,
    shape: tuple[int, ...],
    mask: str | Path | Image.Image | None = None,
    borders: Borders | None = None,
    source: Path | Image.Image | None = None,
    step: int = 1,
) -> Canvas:
    """An image brought to the channels and size of a run, (c, h, w), together with its mask.

    Args:
        image: As it was opened.
        shape: Of results.
        mask: See ``inputs.open_mask``.
        borders: How many pixels are added at each side and drawn; they begin as the nearest pixel of the image.
        source: What it was opened from, which may have more frames and bits.
        step: What sides must divide by: the image, and its mask, continue mirrored to the next that do.
    """
    notes = inputs.losses(image if source is None else source) if shape[0] in (1, 3) else []
    marked = None if mask is None else inputs.open_mask(mask, (image.height, image.width))
    if borders is not None:
        marked = torch.zeros(1, image.height, image.width) if marked is None else marked
        left, top, right, bottom = borders
        around = (left, right, top, bottom)
        pixels = (image.width + left + right) * (image.height + top + bottom)
        if pixels > MAX_PIXELS:
            raise InputError(f"With what is added the image has {pixels / 1e6:.0f} megapixels. Add less.")
        image = to_pil(functional.pad(to_tensor(image)[None], around, mode="replicate")[0])
        marked = functional.pad(marked, around, value=1.0)
    height, width = shape[-2:]
    if image.size != (width, height):
        cropped = " and cropped" if image.width * height != image.height * width else ""
        notes.append(f"The image was scaled{cropped} from {image.width}x{image.height} to {width}x{height} pixels.")
        if cropped and image.width < ALIKE * width and image.height < ALIKE * height:
            own = f"{image.width}x{image.height}"
            notes[-1] += f" To keep all of it as it is: size={own!r} (--size {own})."
    marked = None if marked is None else inputs.fit_mask(marked, (height, width))
    fitted = inputs.fit_image(image, shape)
    if not (height % step or width % step):
        return Canvas(fitted, marked, tuple(notes))
    fitted, marked = (None if each is None else _extended(each, step) for each in (fitted, marked))
    assert fitted is not None
    run = f"{fitted.shape[-1]}x{fitted.shape[-2]}"
    notes.append(f"This model makes sizes that divide by {step}: the run is of {run}, cropped to {width}x{height}.")
    return Canvas(fitted, marked, tuple(notes), (height, width))


def _extended(image: Float[Tensor, "c h w"], step: int) -> Float[Tensor, "c p q"]:
    """An image continued to the right and below until its sides divide by ``step``: mirrored, as far as it goes."""
    height, width = image.shape[-2:]
    while (more := (min(-image.shape[-1] % step, width - 1), min(-image.shape[-2] % step, height - 1))) != (0, 0):
        image = functional.pad(image[None], (0, more[0], 0, more[1]), mode="reflect")[0]
    return functional.pad(image[None], (0, -image.shape[-1] % step, 0, -image.shape[-2] % step), mode="replicate")[0]
