"""What a verb returns that makes images of images, or of a model's tokens."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import counted
from .images import ENDS, checked_name, grid, to_array, to_pil, to_tensor
from .outputs import save_image


@dataclass(frozen=True)
class ImageResult:
    """Images, how they were made, and what a person should know of them. In a notebook they show themselves.

    Attributes:
        images: In [-1, 1], on the CPU.
        names: Of each image's file, where a folder is given to :meth:`save`; without suffix.
        recipe: What was done, as JSON values; each file carries it.
        notes: Sentences.
    """

    images: Float[Tensor, "n c h w"]
    names: tuple[str, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Sequence[Image.Image], names: Sequence[str], recipe: Mapping[str, Any], **rest: Any):
        """The result that holds PIL images of one size."""
        return cls(torch.stack([to_tensor(to_array(image)) for image in images]), tuple(names), recipe, **rest)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int | slice) -> ImageResult:
        """One of them, or some, with the same recipe."""
        rows = i if isinstance(i, slice) else slice(range(len(self))[i], range(len(self))[i] + 1)
        return ImageResult(self.images[rows], self.names[rows], self.recipe, self.notes)

    def to_pil(self) -> list[Image.Image]:
        """Each as a PIL image."""
        return [to_pil(image) for image in self.images]

    def save(self, out: str | os.PathLike[str], metadata: bool = True) -> list[Path]:
        """Write the images; where another one has a name, -2, -3 and so on is added. Returns where they are.

        Args:
            out: A file that ends in .png, .webp or .jpg, of several images the first part of their names; or a folder.
            metadata: Keep the recipe in the files.
        """
        path = Path(out)
        if path.suffix.lower() not in ENDS and (path.suffix == "" or path.is_dir()):
            paths = [path / f"{name}.png" for name in self.names]
        else:
            path = checked_name(path)
            paths = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(self))]
        recipes = [self.recipe if len(self) == 1 else {**self.recipe, "index": i} for i in range(len(self))]
        kept = recipes if metadata and self.recipe else [None] * len(self)
        return [save_image(*one) for one in zip(self.images, paths, kept, strict=True)]

    def __repr__(self) -> str:
        made = f" by {self.recipe['verb']}" if "verb" in self.recipe else ""
        return f"ImageResult({counted(len(self), 'image')} of {'x'.join(map(str, self.images.shape[1:]))}{made})"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        (to_pil(self.images[0]) if len(self) == 1 else grid(self.images)).save(buffer, "PNG")
        return buffer.getvalue()
