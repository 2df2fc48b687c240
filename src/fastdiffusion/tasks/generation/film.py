"""A film of sampling: how images emerge, one frame for each evaluation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import InputError
from ...io.images import checked_name, grid
from ...io.outputs import write_numbered
from .samples import SampleStep

FILMS = (".gif", ".webp", ".png")
FRAME, LAST = 120, 1500  # milliseconds that a frame is shown, and the last one
LARGEST = 1024  # pixels of a side


class Film:
    """The denoiser's estimates, all images of a run's first batch on one sheet.

    for step in sample_steps("emoji", "a red heart", n=4):
        film.add(step)
    film.save("steps.gif")

    Each frame of a model of latents is decoded.
    """

    def __init__(self) -> None:
        self.frames: list[Image.Image] = []
        self.complete = False

    def add(self, step: SampleStep) -> None:
        """Add the images at a step as a frame, until the first batch is done."""
        if not self.complete:
            sheet = grid(step.images, zoom=max(1, 64 // max(step.images.shape[-2:])))
            sheet.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
            self.frames.append(sheet)
            self.complete = step.estimate is None

    def save(self, path: str | Path) -> Path:
        """Write an animated GIF, WebP or PNG, by the end of the name; a name that is taken gets a number.

        Returns where it is.
        """
        path = checked_film(path)
        if not self.frames:
            raise InputError("This film has no frames: nothing was sampled. Take another --out, or delete the images.")
        options: dict[str, Any] = {"save_all": True, "append_images": self.frames[1:], "loop": 0}
        options["duration"] = [FRAME] * (len(self.frames) - 1) + [LAST]
        if path.suffix.lower() == ".webp":
            options["lossless"] = True
        buffer = io.BytesIO()
        self.frames[0].save(buffer, path.suffix[1:].upper(), **options)
        return write_numbered(path, buffer.getvalue())


def checked_film(path: str | Path) -> Path:
    """A name that a film can be written under; raises InputError before any work is done."""
    path = Path(path)
    if path.suffix.lower() not in FILMS:
        raise InputError(f"Films are written as {', '.join(FILMS)}, not {path.suffix!r}. Try {path.stem}.gif.")
    checked_name(path.with_suffix(".png"))
    return path
