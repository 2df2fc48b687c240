"""What ``edit`` returns: the result beside its source."""

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
    """An edited image. In a notebook it shows itself beside its source.

    Attributes:
        source: What it was made from, (1, c, h, w).
        mask: Where pixels could change, from 0 to 1; None is everywhere.
    """

    source: Float[Tensor, "1 c h w"] | None = None
    mask: Float[Tensor, "1 1 h w"] | None = None

    def comparison(self) -> Image.Image:
        """Source, result and their difference (grey is none)."""
        assert self.source is not None
        zoom = max(1, 192 // max(self.images.shape[-2:]))
        return grid([self.source[0], self.images[0], ((self.images - self.source) / 2)[0]], columns=3, zoom=zoom)

    def save(self, out: str | os.PathLike[str], metadata: bool = True, compare: bool = False) -> list[Path]:
        """Write it as :meth:`ImageResult.save` does; ``compare`` adds :meth:`comparison` as NAME-compare.png."""
        (path,) = written = super().save(out, metadata)
        if compare:
            recipe = {**self.recipe, "shows": "compare"} if metadata else None
            written.append(save_image(self.comparison(), path.with_name(f"{path.stem}-compare.png"), recipe))
        return written

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.comparison().save(buffer, "PNG")
        return buffer.getvalue()
