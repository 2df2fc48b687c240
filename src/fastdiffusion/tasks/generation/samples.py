"""Generated images with all that it takes to make them again."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor, cat, no_grad

from ...errors import InputError, counted, unknown
from ...io.fonts import Font, drawable, font_for, write
from ...io.images import ENDS, checked_name, grid, inner_recipe, safe_name, to_pil
from ...io.outputs import made_before, save_image

RECIPE = 1  # of the recipe's form; one from a newer fastdiffusion is refused, not guessed at
FORMATS = ("png", "webp")
LETTERS = (11, 10, 9, 8)  # sizes of a label's letters in pixels, the first that has room
_UNSPACED = r"\u2e80-\u312f\u31f0-\ua4cf\uf900-\ufaff\uff00-\uffef"  # Chinese and Japanese: lines end anywhere
_UNITS = re.compile(rf"(\s*)([{_UNSPACED}]|[^\s{_UNSPACED}]+)")


@dataclass(frozen=True)
class Samples:
    """Images with all that it takes to make them again. In a notebook they show themselves.

    Attributes:
        images: (n, channels, height, width) in [-1, 1], on the CPU; of a model of other things than images, its
            samples as they are.
        seeds: One per image.
        labels: Class names, "" where there is none.
        indices: Each image's number in the run that ``recipe`` describes.
        recipe: Model, parameters and sampler table, as JSON values: no path, no user, no time of day.
        notes: What a person should know of the run, in sentences.
        withheld: Which images a checker withheld: they are grey, and are not written.
    """

    images: Float[Tensor, "n *d"]
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    indices: tuple[int, ...]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    withheld: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        of, name = "x".join(map(str, self.images.shape[1:])), self.recipe.get("model", {}).get("name")
        ends = [str(seed) for seed in dict.fromkeys((*self.seeds[:1], *self.seeds[-1:]))]
        seeds = f", seed{'s' * (len(ends) > 1)} {' to '.join(ends)}" if ends else ""
        return f"Samples({counted(len(self), 'sample')} of {of}{seeds}{f', by {name}' if name else ''})"

    def __getitem__(self, rows: slice) -> Samples:
        """Some of them, with the same recipe."""
        chosen = {name: getattr(self, name)[rows] for name in ("images", "seeds", "labels", "indices", "withheld")}
        return replace(self, **chosen)

    def recipe_of(self, i: int) -> dict[str, Any]:
        """The recipe of one image, as its file carries it."""
        own = {"index": self.indices[i], "seed": self.seeds[i], "class": self.labels[i]}
        return {**self.recipe, **{key: value for key, value in own.items() if value != ""}}

    def grid(self, columns: int | None = None, zoom: int | None = None, labels: bool = False) -> Image.Image:
        """All images on one sheet, enlarged pixel by pixel to about 64 pixels each, with class names if asked."""
        height, width = self.images.shape[-2:]
        zoom = zoom or max(1, 64 // max(height, width))
        if not 1 <= zoom <= 64 or (columns is not None and columns < 1):
            raise InputError(f"zoom must be from 1 to 64 and columns at least 1, got {zoom} and {columns}. Try zoom=4.")
        if not labels or not any(self.labels):
            return grid(self.images, columns, zoom)
        return grid(
            [
                _captioned(to_pil(image), text, zoom)
                for image, text in zip(self.images, drawable(self.labels), strict=True)
            ],
            columns,
        )

    def save(
        self, out: str | Path, name: str = "", metadata: bool = True, format: str = "png", sidecar: bool = False
    ) -> list[Path]:
        """Write one file each, named by seed and class, with its recipe inside; returns where they are.

        Where another image has the name, -2, -3 and so on is added; the same image is not written again. What a checker
        withheld is not written at all.

        Args:
            out: A folder, which is made if need be; for a single image also a file, such as "heart.png".
            name: Stands before the seed in each file's name.
            metadata: False writes pixels and nothing else.
            format: "png", or "webp" (lossless as well).
            sidecar: Also write each recipe as JSON beside its image.
        """
        paths = []
        for i, (image, path) in enumerate(zip(self.images, self.paths(out, name, format), strict=True)):
            if any(self.withheld[i : i + 1]):
                continue
            recipe = self.recipe_of(i)
            paths.append(save_image(image, path, recipe if metadata else None, recipe if sidecar else None))
        return paths

    def paths(self, out: str | Path, name: str = "", format: str = "png") -> list[Path]:
        """The files' names, as long as no other image has them."""
        if is_file(out, len(self)):
            return [checked_name(out)]
        if format not in FORMATS:
            raise unknown("format", format, FORMATS)
        texts = (
            "-".join(filter(None, (name, f"{s:04d}", label))) for s, label in zip(self.seeds, self.labels, strict=True)
        )
        locale = sys.getfilesystemencoding()  # it may be one without ä
        safe = (safe_name(text.encode(locale, "replace").decode(errors="replace")) for text in texts)
        return [Path(out) / f"{text}.{format}" for text in safe]

    def saved_before(
        self, out: str | Path, metadata: bool = True, format: str = "png", sidecar: bool = False
    ) -> list[Path] | None:
        """The files of an earlier :meth:`save` with these recipes, if all are there and keep them where it is asked."""
        found: list[Path] = []
        for i, path in enumerate(self.paths(out, format=format)):
            place = made_before(path, self.recipe_of(i))
            if place is None or (inner_recipe(place) is not None) != metadata:
                return None
            if sidecar and not place.with_suffix(".json").is_file():
                return None
            found.append(place)
        return found

    def save_grid(self, path: str | Path, metadata: bool = True, **options: Any) -> Path:
        """Write :meth:`grid` with ``options`` as one image, recipe inside; numbered like those of :meth:`save`."""
        return save_image(self.grid(**options), path, {**self.recipe, "grid": options} if metadata else None)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class SampleStep:
    """Where a run is, after one evaluation of a batch.

    Attributes:
        done: Evaluations so far.
        of: Evaluations of the whole run.
        sigma: Noise level of this evaluation.
        finished: The images of each batch that is done.
        estimate: Of the batch in work, what the denoiser estimates; None after its last evaluation.
        rest: What stands for the images of later batches: zeros (grey), or the image that is started from.
        decode: Of the model.
        look: From latents to images like ``decode``, but in no time: see ``preview.LinearPreview``.
        seconds: What this evaluation took.
        evaluations: Of the network, for each image in it: 2 where guidance compares with another prompt.
    """

    done: int
    of: int
    sigma: float
    finished: tuple[Tensor, ...]
    estimate: Tensor | None
    rest: Tensor
    decode: Callable[[Tensor], Tensor]
    look: Callable[[Tensor], Tensor]
    seconds: float = 0.0
    evaluations: float = 0.0

    @cached_property
    def images(self) -> Float[Tensor, "n *d"]:
        """All images: finished ones, the current estimates of those in work, and the rest. Decoded when first asked."""
        return self._all(self.decode)

    @cached_property
    def preview(self) -> Float[Tensor, "n *d"]:
        """The same without decoding what is in work: its colors, by a linear map of the latents."""
        return self._all(self.look)

    def _all(self, decode: Callable[[Tensor], Tensor]) -> Tensor:
        with no_grad():
            work = [] if self.estimate is None else [decode(self.estimate).cpu()]
        return cat([*self.finished, *work, self.rest])


def is_file(out: str | Path, n: int = 1) -> bool:
    """Whether results go to one file, and not to a folder: by the end of its name. InputError where there are ``n``."""
    single = Path(out).suffix.lower() in ENDS and not Path(out).is_dir()
    if single and n > 1:
        raise InputError(f"{n} images need a folder, and {str(out)!r} is a file's name. Try n=1 (-n 1), or out='out'.")
    return single


def _captioned(image: Image.Image, text: str, zoom: int) -> Image.Image:
    """An image enlarged, with its label under it: in two lines and smaller letters where it is long."""
    width, height = image.width * zoom, image.height * zoom
    rows, size = _rows_of_text(text, width)
    sheet = Image.new("RGB", (width, height + 3 + (size + 1) * max(len(rows), 1)), "white")
    sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST))
    draw, font = ImageDraw.Draw(sheet), font_for(text, size)
    for i, row in enumerate(rows):
        write(draw, ((width - draw.textlength(row, font)) // 2, height + i * (size + 1)), row, font)
    return sheet


def _rows_of_text(text: str, width: int) -> tuple[list[str], int]:
    """At most two lines of whole words, and the size of their letters; what has no room ends in an ellipsis."""
    units = [f" {m[2]}" if m[1] else m[2] for m in _UNITS.finditer(text)]  # a name may hold a line break
    size = next((size for size in LETTERS if not _wrapped(units, font_for(text, size), width)[1]), LETTERS[-1])
    font = font_for(text, size)
    filled, rest = _wrapped(units, font, width)
    rows = ["".join(line).strip() for line in filled]
    if rest:
        last = filled[-1] if filled else []
        while last and font.getlength(f"{''.join(last).strip()}…") > width:
            last = last[:-1]
        rows = [*rows[:-1], f"{''.join(last).strip()}…"]
    return rows, size


def _wrapped(units: list[str], font: Font, width: int) -> tuple[list[list[str]], list[str]]:
    """As many units as two lines have room for, line by line; and those that are left over."""
    filled, rest = list[list[str]](), list(units)
    while rest and len(filled) < 2 and font.getlength(rest[0].strip()) <= width:
        filled.append([rest.pop(0)])
        while rest and font.getlength("".join((*filled[-1], rest[0])).strip()) <= width:
            filled[-1].append(rest.pop(0))
    return filled, rest
