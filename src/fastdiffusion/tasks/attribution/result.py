"""What ``explain`` returns: numbers, maps, and a page to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from ...errors import InputError, counted
from ...io.images import to_pil
from ...io.outputs import write_numbered
from ...io.results import ImageResult
from .integrated import Attribution

VIEWED = 384  # pixels of the longer side to which smaller images are enlarged in files


class WordNumbers(NamedTuple):
    """What a word, or another part of the condition, has to do with the target.

    Attributes:
        text: The word, or what the part is called.
        kind: "word", "punctuation", "start", "end", "padding", "pooled", "other", "negative" or "pixels".
        share: Of the whole, for (above 0) or against (below 0). All shares add up to 1; what is no word has none, and
            without the integral nothing has.
        by_step: The same by evaluation of the denoiser.
        held: Where in the condition the prompt's share is held: by the rows of this word, mark, or part. These add up
            to the shares of all words.
        occlusion: What is lost of the whole without the word, the run made again; None for what is no word.
        mapped: Its map's part of all words' maps in the region; None for what is no word.
    """

    text: str
    kind: str
    share: float | None
    by_step: tuple[float, ...]
    held: float | None
    occlusion: float | None
    mapped: float | None


@dataclass(frozen=True, repr=False, kw_only=True)
class Explanation(ImageResult):
    """Why an image looks as it does. In a notebook it shows the image and where its words are.

    ``images`` are the image itself and each word's map over it.

    Attributes:
        text: The prompt, without weights and brackets.
        terms: A row for each word and other part of the condition.
        maps: Of each word at each evaluation, (k, t, h, w); shares of attention, or how far estimates move.
        steps: The estimate of the image at each evaluation.
        sigmas: Its noise level.
        method: How the maps were made, "attention" or "occlusion".
        region: 1 where the image is explained, (1, h, w).
        attribution: The integral with all its parts; None where it was left out.
        box: The region as left, top, right, bottom, if it is a box.
        agreement: Rank correlation of the shares with what is lost without a word, and with the maps.
        toward: What the image is compared with; "" is the image without its prompt.
    """

    text: str
    terms: tuple[WordNumbers, ...]
    maps: Float[Tensor, "k t h w"]
    steps: Float[Tensor, "k c h w"]
    sigmas: tuple[float, ...]
    method: str
    region: Float[Tensor, "1 h w"]
    attribution: Attribution | None
    box: tuple[int, int, int, int] | None
    agreement: dict[str, float]
    toward: str

    @property
    def top(self) -> WordNumbers:
        """The word with the largest share."""
        terms = [row for row in self.terms if row.kind == "word"]
        return max(terms, key=lambda row: (row.share if row.share is not None else row.occlusion) or 0.0)

    def boxed(self) -> Image.Image:
        """The image with the region drawn on it: its box, or what is outside of a mask faded."""
        shown = to_pil(torch.lerp(torch.zeros_like(self.images[0]), self.images[0], 0.3 + 0.7 * self.region))
        if self.box is not None:
            left, top, right, bottom = self.box
            ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline="red")
        return shown

    def numbers(self) -> dict[str, Any]:
        """All numbers, as JSON values."""
        return {
            "prompt": self.text,
            "target": f"fits {self.toward!r}" if self.toward else "difference from the image without the prompt",
            "box": None if self.box is None else list(self.box),
            "maps": self.method,
            "words": [row._asdict() for row in self.terms],
            "integral": None if self.attribution is None else {
                "points": self.attribution.points, "missing": self.attribution.missing,
                "low": self.attribution.low, "high": self.attribution.high,
                "shares": "integral" if self.attribution.exact is None else "finite steps",
            },
            "agreement": self.agreement,
            "sigmas": list(self.sigmas),
            "notes": list(self.notes),
            "recipe": dict(self.recipe),
        }  # fmt: skip

    def html(self) -> str:
        """One page that needs nothing else: words, maps, steps; see ``page``."""
        from .page import page

        return page(self)

    def save(self, out: str | os.PathLike[str], metadata: bool = True) -> list[Path]:
        """Write the page and the numbers: ``explain.html`` and ``explain.json`` in a folder, or a file NAME.html.

        A folder also gets the images, as :meth:`ImageResult.save` writes them; small ones enlarged, so that they can be
        looked at (``images`` has them as they are).
        """
        place, page = Path(out), page_of(out)
        numbers = self.numbers() if metadata else {**self.numbers(), "recipe": {}}
        written = [
            write_numbered(page, self.html().encode()),
            write_numbered(page.with_suffix(".json"), json.dumps(numbers, indent=1, ensure_ascii=False).encode()),
        ]
        if place.suffix:
            return written
        viewed = ImageResult(self.enlarged(), self.names, self.recipe, self.notes)
        return [*written, *viewed.save(place, metadata)]

    def enlarged(self) -> Float[Tensor, "n c p q"]:
        """``images`` a whole number of times as large, up to 384 pixels: pixels stay squares, maps are smooth."""
        zoom = max(1, VIEWED // max(self.images.shape[-2:]))
        image = self.images[0].repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
        if len(self.images) == 1 or zoom == 1:
            return image[None] if len(self.images) == 1 else self.images
        maps = functional.interpolate(self.maps.mean(0)[:, None], scale_factor=zoom, mode="bilinear")[:, 0]
        return torch.stack([image, *(faded(image, each) for each in maps)])

    def __repr__(self) -> str:
        terms = [row for row in self.terms if row.kind == "word"]
        return f"Explanation({self.text!r}: {counted(len(terms), 'word')}, maps by {self.method})"

    def __str__(self) -> str:
        rows = []
        for row in self.terms:
            cells = [("share", row.share), ("held", row.held), ("lost without it", row.occlusion)]
            shown = "  ".join(f"{name} {value:+7.1%}" for name, value in cells if value is not None)
            rows.append(f"{row.text:>20}  {shown}")
        return "\n".join(rows)


def page_of(out: str | os.PathLike[str]) -> Path:
    """The file of the page; InputError for one of another kind."""
    place = Path(out)
    if place.suffix and place.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"An explanation is a page: out is a folder, or a file NAME.html, got {str(out)!r}.")
    return place if place.suffix else place / "explain.html"


def faded(image: Float[Tensor, "c h w"], places: Float[Tensor, "h w"]) -> Float[Tensor, "c h w"]:
    """A map over its image: what it leaves out is faded to gray."""
    shown = (places / places.flatten().max().clamp(min=1e-12)).clamp(0, 1)[None]
    gray = image.mean(0, keepdim=True) * 0.35 - 0.2
    return torch.lerp(gray.expand_as(image), image, shown)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties; 0 where one of them is constant."""

    def ranks(values: Sequence[float]) -> Tensor:
        v = torch.tensor(list(values), dtype=torch.float64)
        return (v[:, None] > v).sum(1).double() + ((v[:, None] == v).sum(1).double() - 1) / 2

    a, b = (r - r.mean() for r in (ranks(first), ranks(second)))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0
