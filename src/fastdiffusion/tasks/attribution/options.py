"""The options of ``explain``, without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ... import choices
from ...errors import InputError, unknown
from ...options import option
from ..generation.options import SIZE, seed_of
from ..loading import LoadOptions

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ExplainOptions(LoadOptions):
    """Options of :func:`fastdiffusion.explain`, besides those of ``LoadOptions``.

    The first ones are as of ``sample``, for an image that is drawn now; one that carries its recipe brings them.

    Attributes:
        seed: Of the noise.
        steps: Solver steps.
        scale: Guidance; by default the model's own.
        negative_prompt: What to guide away from; it gets its share too.
        image: An image to start from; then its pixels get shares too.
        strength: How far to go from ``image``, 0 to 1.
        size: As of ``sample``.
        box: The part of the image that is explained, in pixels from its upper left corner: left, top, right, bottom,
            the last two not included. By default all of it.
        mask: Another part: white in an image of the same size.
        toward: Explain how well the image fits these words instead, by the bundled CLIP.
        maps: How words are placed: "attention", "occlusion", or "auto", which says what it chose and why.
        points: Most points of the integral; each costs about four runs. 0 leaves the integral out, and shares are those
            of occlusion.
        batch_size: Points at once, for speed and memory only; by default 4 of images up to 128x128, else 1.
    """

    seed: int = option(0, "Of the noise. Or: random.", kind=str, metavar="N")
    steps: int = option(12, "Solver steps.")
    scale: float | None = option(None, "Guidance; by default the model's own.")
    negative_prompt: str = option("", "A prompt to guide away from.", "--negative", "--negative-prompt")
    image: str | Path | Image.Image | None = option(None, "An image to start from.", kind=Path | None)
    strength: float = option(0.5, "How far to go from --image, 0 to 1.")
    size: int | str | tuple[int, int] | None = option(None, SIZE, kind=str | None)
    box: str | Sequence[int] | None = option(
        None, "The part of the image to explain, in pixels.", kind=str | None, metavar="LEFT,TOP,RIGHT,BOTTOM"
    )
    mask: str | Path | Image.Image | None = option(None, "The part to explain: white in this image.", kind=Path | None)
    toward: str = option("", "Explain how well the image fits these words instead, by CLIP.")
    maps: str = option("auto", "How words are placed; auto says what it chose and why.", choices=choices.MAPS)
    points: int = option(16, "Most points of the integral; 0 leaves it out.")
    batch_size: int | None = option(None, "Points at once, for speed and memory only.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps not in choices.MAPS:
            raise unknown("method of maps", self.maps, choices.MAPS)
        for name, least in (("steps", 1), ("points", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is None and name == "batch_size":
                continue
            if not (type(value) is int and value >= least):
                raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        if self.points and self.points < 8:
            raise InputError(f"points must be 0 or at least 8, got {self.points}. Try 16.")
        if self.box is not None:
            if self.mask is not None:
                raise InputError("A box and a mask both say which part is explained. Give one of them.")
            object.__setattr__(self, "box", ",".join(map(str, corners(self.box))))
        object.__setattr__(self, "seed", seed_of(self.seed))


def corners(box: str | Sequence[int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a box, or of its text."""
    parts = re.findall(r"[^\s,;]+", box) if isinstance(box, str) else list(box)
    numbers = [int(part) if re.fullmatch(r"\d{1,6}", str(part)) else -1 for part in parts]
    if len(numbers) != 4 or min(numbers) < 0 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise InputError(
            f"box is left, top, right and bottom in pixels, right and bottom beyond the others, got {box!r}. "
            "Example: box='8,16,40,48'."
        )
    left, top, right, bottom = numbers
    return left, top, right, bottom
