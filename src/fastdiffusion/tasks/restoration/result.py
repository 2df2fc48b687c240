"""What a restoration returns: images, their uncertainty, their agreement with the input; and their files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ...io.images import checked_name, grid, to_pil, to_tensor
from ...io.outputs import save_image

NOTE = (
    "You removed a watermark. Watermarks often say whose an image is: only remove one from images that are yours, or "
    "that you may change, and do not pass the result off as somebody else's original."
)


@dataclass(frozen=True)
class RestorationResult:
    """The restored images. In a notebook it shows itself.

    Attributes:
        pixels: The results as they are written, 0 to 255; a large image takes a quarter of the memory so.
        degraded: The input, on its own grid.
        corruption: What was undone.
        method: How: "supervised", "zero-shot", "cold" or "patches".
        error: Root mean square and largest difference, in units of 1/255, between the input and the results degraded
            again; None where what happened is not known exactly.
        uncertainty: Standard deviation of the results at each pixel, in units of 1/255; zeros for one result.
        notes: What a person should know.
        recipe: What was done, as JSON values.
        kernel: The blur kernel that was found, if it was looked for.
        opacity: Of an input with transparency, in the size of the results: ``to_pil`` and ``save`` have it, and
            ``pixels`` are the colors.
    """

    pixels: UInt8[Tensor, "n c h w"]
    degraded: UInt8[Tensor, "k p q"]
    corruption: str
    method: str
    error: tuple[float, float] | None
    uncertainty: Float[Tensor, "h w"]
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    kernel: Float[Tensor, "s t"] | None = None
    opacity: UInt8[Tensor, "1 h w"] | None = None

    @property
    def images(self) -> Float[Tensor, "n c h w"]:
        """The results in [-1, 1], made from ``pixels`` each time."""
        return to_tensor(self.pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def to_pil(self) -> list[Image.Image]:
        """Each as a PIL image."""
        return [to_pil(image if self.opacity is None else torch.cat([image, self.opacity])) for image in self.pixels]

    def comparison(self, side: int = 900) -> Image.Image:
        """Before, after and their difference (grey is none, four times enlarged), each at most ``side`` pixels."""
        after = self.pixels[0]
        before = to_tensor(self.degraded)[None]
        before = before.expand(1, after.shape[0], *before.shape[2:]) if len(self.degraded) == 1 else before
        before = torch.nn.functional.interpolate(before, after.shape[1:], mode="nearest")[0]
        difference = 2 * (to_tensor(after) - before)
        panels = [to_pil(panel) for panel in (before, after, difference)]
        for panel in panels:
            panel.thumbnail((side, side), Image.Resampling.LANCZOS)
        return grid(panels, columns=3)

    def save(self, path: str | os.PathLike[str], compare: bool = False, metadata: bool = True) -> list[Path]:
        """Write the images: ``path``, or NAME-1.png and so on if there are several, with NAME-uncertainty.png.

        Where another image has a name, -2, -3 and so on is added. Returns where they are.

        Args:
            path: Ends in .png, .webp or .jpg.
            compare: Write NAME-compare.png as well: before, after, difference.
            metadata: Keep the recipe in the files.
        """
        path = checked_name(path)

        def named(end: str) -> Path:
            return path.with_name(f"{path.stem}-{end}{path.suffix}")

        written = []
        for i, image in enumerate(self.to_pil()):
            place = path if len(self) == 1 else named(str(i + 1))
            written.append(save_image(image, place, {**self.recipe, "index": i} if metadata else None))
        extra: dict[str, Any] = {}
        if len(self) > 1:
            extra["uncertainty"] = (2 * self.uncertainty / float(self.uncertainty.max().clamp(min=1)) - 1)[None]
        if self.kernel is not None:
            extra["kernel"] = grid([(2 * self.kernel / self.kernel.max() - 1)[None]], zoom=8)
        if compare:
            extra["compare"] = self.comparison()
        for end, image in extra.items():
            written.append(save_image(image, named(end), {**self.recipe, "shows": end} if metadata else None))
        return written

    def __str__(self) -> str:
        size = f"{self.pixels.shape[3]}x{self.pixels.shape[2]}"
        undone, how = self.corruption, self.method
        report = [f"{undone} undone ({how}): {size}" + (f", {len(self)} answers" if len(self) > 1 else "")]
        if self.error is not None:
            report.append(
                f"degraded again, it differs from the input by {self.error[0]:.2f} (at most {self.error[1]:.1f}) of 255"
            )
        return "\n".join([*report, *self.notes])

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.to_pil()[0].save(buffer, "PNG")
        return buffer.getvalue()
