"""The options of ``edit``, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, unknown
from ...options import option
from ..generation.options import seed_of
from ..loading import LoadOptions

if TYPE_CHECKING:
    from PIL import Image

METHODS = ("auto", "p2p", "flowedit", "sdedit")


@dataclass(frozen=True)
class EditOptions(LoadOptions):
    """Options of :func:`fastdiffusion.edit`, besides those of ``LoadOptions``.

    Attributes:
        source: What the image shows; without an image, what is drawn first.
        method: "p2p" holds the layout by attention (of a given image after an edit-friendly inversion), "flowedit"
            walks from the image by the difference of two flows, "sdedit" puts noise on the image and removes it under
            the new prompt. "auto" chooses, and the notes say what and why.
        strength: Of a given image: the part of noise in the mix that it goes back to, from 0 (the image itself) to 1.
        cross: Part of the run in which the new prompt's tokens keep the places of the old one's.
        self_attention: Part of the run in which places attend to each other as in the source: it holds the shape.
        keep: Whether pixels stay where the two prompts disagree least about the image; ``mask`` and ``only`` go first.
        only: Words of either prompt: where they are, the image may change; elsewhere its pixels are kept.
        mask: An image, or its file, white where the image may change.
        reweight: Words of the new prompt with factors, "sunglasses:2, red:0.5".
        steps: Intervals of the sampler's table.
        scale: Guidance towards the new prompt; by default the model's own.
        seed: Of the noise.
    """

    source: str = option("", "What the image shows; without an image, what is drawn first.")
    method: str = option("auto", "How; auto chooses, and says what and why.", choices=METHODS)
    strength: float = option(0.7, "Of a given image: how far to go back, from 0 (the image itself) to 1.")
    cross: float = option(0.8, "Part of the run in which tokens keep their places, 0 to 1.")
    self_attention: float = option(0.4, "Part of the run in which the shape is held, 0 to 1.")
    keep: bool = option(True, "Keep pixels where the two prompts disagree least.")
    only: str = option("", "Words: only where they are the image changes.")
    mask: str | Path | Image.Image | None = option(None, "White where the image may change.", kind=Path | None)
    reweight: str = option("", 'Words of the new prompt with factors: "sunglasses:2".')
    steps: int = option(20, "Solver steps.")
    scale: float | None = option(None, "Guidance; by default the model's own.")
    seed: int = option(0, "Of the noise. Or: random.", kind=str, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("strength", "cross", "self_attention"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name)!r}. Try 0.5.")
        if type(self.steps) is not int or self.steps < 2:
            raise InputError(f"steps must be a whole number of at least 2, got {self.steps!r}. Try 20.")
        object.__setattr__(self, "seed", seed_of(self.seed))
