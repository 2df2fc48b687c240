"""Images with all that it takes to make them again."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import InputError, unknown
from ...io.images import grid, safe_name, save_png, save_sidecar, to_pil

RECIPE = 1  # of the recipe's form; one from a newer fastdiffusion is refused, not guessed at


FORMATS = ("png", "webp")  # of pictures


@dataclass(frozen=True)
class Samples:
    """Pictures with all that it takes to make them again. In a notebook they show themselves.

    Attributes:
        images: In [-1, 1], on the CPU.
        seeds: One per image.
        labels: Class names, "" where there is none.
        indices: Each image's number in the run that ``recipe`` describes.
        recipe: Model, parameters and sampler table, as JSON values: no path, no user, no time of day.
    """

    images: Float[Tensor, "n c h w"]
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    indices: tuple[int, ...]
    recipe: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Samples:
        """Some of them, with the same recipe."""
        return Samples(self.images[rows], self.seeds[rows], self.labels[rows], self.indices[rows], self.recipe)

    def recipe_of(self, i: int) -> dict[str, Any]:
        """The recipe of one picture, as its PNG carries it."""
        own = {"index": self.indices[i], "seed": self.seeds[i], "class": self.labels[i]}
        return {**self.recipe, **{key: value for key, value in own.items() if value != ""}}

    def grid(self, columns: int | None = None, zoom: int | None = None, labels: bool = False) -> Image.Image:
        """All pictures on one sheet, enlarged pixel by pixel to about 64 pixels each, with class names if asked."""
        height, width = self.images.shape[-2:]
        zoom = zoom or max(1, 64 // max(height, width))
        if not 1 <= zoom <= 64 or (columns is not None and columns < 1):
            raise InputError(f"zoom must be from 1 to 64 and columns at least 1, got {zoom} and {columns}. Try zoom=4.")
        if not labels or not any(self.labels):
            return grid(self.images, columns, zoom)
        return grid(
            [_captioned(to_pil(image), text, zoom) for image, text in zip(self.images, self.labels, strict=True)],
            columns,
        )

    def save(
        self, folder: str | Path, name: str = "", metadata: bool = True, format: str = "png", sidecar: bool = False
    ) -> list[Path]:
        """Write one file each, named by seed and class, with its recipe inside.

        Args:
            folder: It is made if need be.
            name: Stands before the seed in each file's name.
            metadata: False writes pictures and nothing else.
            format: "png", or "webp" (lossless as well).
            sidecar: Also write each recipe as JSON beside its picture.
        """
        if format not in FORMATS:
            raise unknown("format", format, FORMATS)
        paths = []
        for i, (image, seed, label) in enumerate(zip(self.images, self.seeds, self.labels, strict=True)):
            text = "-".join(part for part in (name, f"{seed:04d}", label) if part)
            text = text.encode(sys.getfilesystemencoding(), "replace").decode(errors="replace")  # a locale without ä
            paths.append(Path(folder) / f"{safe_name(text)}.{format}")
            save_png(image, paths[-1], self.recipe_of(i) if metadata else None)
            if sidecar:
                save_sidecar(paths[-1], self.recipe_of(i))
        return paths

    def save_grid(self, path: str | Path, metadata: bool = True, **options: Any) -> Path:
        """Write :meth:`grid` with ``options`` as one picture, recipe inside."""
        save_png(self.grid(**options), path, {**self.recipe, "grid": options} if metadata else None)
        return Path(path)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()


class SampleStep(NamedTuple):
    """Where a run is. ``images`` is the run's own tensor and goes on changing: copy what you keep.

    Attributes:
        done: Denoiser calls so far.
        of: Calls of the whole run.
        sigma: Noise level of this call.
        images: All pictures: finished ones, the current estimates of those in work, zeros (grey) for the rest.
    """

    done: int
    of: int
    sigma: float
    images: Float[Tensor, "n c h w"]


def _captioned(image: Image.Image, text: str, zoom: int) -> Image.Image:
    """A picture enlarged, with a line of text under it."""
    width, height = image.width * zoom, image.height * zoom
    sheet = Image.new("RGB", (width, height + 14), "white")
    sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    tofu = _drawn("\uffff", font)
    text = "".join(letter if _drawn(letter, font) != tofu else normalize("NFKD", letter)[0] for letter in text)
    text = "".join(letter for letter in text if _drawn(letter, font) != tofu)  # no boxes for a script that it lacks
    while text and draw.textlength(text, font) > width:
        text = text[:-1]
    draw.text(((width - draw.textlength(text, font)) // 2, height), text, "black", font)
    return sheet


def _drawn(letter: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bytes:
    """What a letter looks like."""
    sheet = Image.new("L", (24, 24))
    ImageDraw.Draw(sheet).text((4, 4), letter, 255, font)
    return sheet.tobytes()
