"""What ``edit`` returns: the results beside their source."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...io.images import grid
from ...io.outputs import save_image
from ...io.results import ImageResult


@dataclass(frozen=True, repr=False)
class EditResult(ImageResult):
    """Edited images, one for each prompt. In a notebook they show themselves beside their source.

    Attributes:
        source: What they were made from, (1, c, h, w).
        mask: Where pixels could change, from 0 to 1; None is everywhere.
        alignment: Pairs of a word of the (first) new prompt and the old one in whose place it stands, "" if in none.
    """

    source: Float[Tensor, "1 c h w"] | None = None
    mask: Float[Tensor, "n 1 h w"] | None = None
    alignment: tuple[tuple[str, str], ...] = ()

    def comparison(self) -> Image.Image:
        """Source, result and their difference (grey is none), a row for each result."""
        assert self.source is not None
        zoom = max(1, 192 // max(self.images.shape[-2:]))
        cells = [cell for made in self.images for cell in (self.source[0], made, (made - self.source[0]) / 2)]
        return grid(cells, columns=3, zoom=zoom)

    def save(self, out: str | os.PathLike[str], metadata: bool = True, compare: bool = False) -> list[Path]:
        """Write them as :meth:`ImageResult.save` does; ``compare`` adds :meth:`comparison` as NAME-compare.png."""
        written = super().save(out, metadata)
        if compare:
            recipe = {**self.recipe, "shows": "compare"} if metadata else None
            first = written[0]
            written.append(save_image(self.comparison(), first.with_name(f"{first.stem}-compare.png"), recipe))
        return written

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.comparison().save(buffer, "PNG")
        return buffer.getvalue()
