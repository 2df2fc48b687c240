"""What ``edit`` returns: the result beside its source, and their files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...io.images import checked_name, grid
from ...io.outputs import save_image


@dataclass(frozen=True)
class EditResult:
    """An edited image. In a notebook it shows itself beside its source.

    Attributes:
        images: The result, (1, c, h, w) in [-1, 1].
        source: What it was made from.
        mask: Where pixels could change, from 0 to 1; None is everywhere.
        notes: What a person should know.
        recipe: What was done, as JSON values.
    """

    images: Float[Tensor, "1 c h w"]
    source: Float[Tensor, "1 c h w"]
    mask: Float[Tensor, "1 1 h w"] | None = None
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def comparison(self) -> Image.Image:
        """Source, result and their difference (grey is none)."""
        zoom = max(1, 192 // max(self.images.shape[-2:]))
        return grid([self.source[0], self.images[0], ((self.images - self.source) / 2)[0]], columns=3, zoom=zoom)

    def save(self, path: str | os.PathLike[str], compare: bool = False, metadata: bool = True) -> list[Path]:
        """Write the result, as NAME-2 and so on where another image has the name; returns where it is.

        Args:
            path: A file that ends in .png, .webp or .jpg, or a folder, in which it is ``edited.png``.
            compare: Write NAME-compare.png as well: source, result, difference.
            metadata: Keep the recipe in the file.
        """
        place = Path(path)
        place = checked_name(place) if place.suffix else place / "edited.png"
        written = [save_image(self.images[0], place, self.recipe if metadata else None)]
        if compare:
            shown = {**self.recipe, "shows": "compare"} if metadata else None
            written.append(save_image(self.comparison(), place.with_name(f"{place.stem}-compare.png"), shown))
        return written

    def __repr__(self) -> str:
        return f"EditResult({self.images.shape[-1]}x{self.images.shape[-2]}, {self.recipe['parameters']['method']})"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.comparison().save(buffer, "PNG")
        return buffer.getvalue()
