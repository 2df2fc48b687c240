"""The options of ``edit``, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ... import choices
from ...errors import InputError, unknown
from ...options import option
from ..generation.options import SIZE, plain_size, seed_of
from ..generation.regions import Place, parse_regions
from ..loading import LoadOptions

if TYPE_CHECKING:
    from PIL import Image

METHODS = choices.EDITS
WINDOW = "cross=0..0.8, self=0..0.4"
Window = tuple[float, float]


@dataclass(frozen=True)
class EditOptions(LoadOptions):
    """Options of :func:`fastdiffusion.edit`, besides those of ``LoadOptions``.

    Attributes:
        source: What the image shows; without an image, what is drawn first.
        method: See docs/edit.md. "diffedit" inverts the image and draws the target from its noise, held to the image
            where the prompts agree; "flowedit" walks from the image by the difference of two flows; "p2p" holds the
            layout by attention, on the noise that one of the inversions finds ("ddim", "fixed-point", "null-text",
            "flow-ode", "edit-friendly", "direct": naming one means p2p on it); "sdedit" and "magicmix" put noise on
            the image and draw the target from there; "imagic" adapts embedding and network to the image; "reference"
            gives it to a network that takes images. "auto" chooses, and the notes say what and why.
        strength: Of a given image: the part of noise in the mix that it goes back to, from 0 (the image itself) to 1.
            For methods that invert, how much of its layout is free; by default .8, of sdedit and flowedit .7.
        window: Parts of the run in which attention is the source's: "cross=0..0.8" tokens keep the places of the old
            ones, "self=0..0.4" places attend to each other as in the source, which holds the shape; "hat=0..0.3" is
            for one word of the new prompt.
        align: Which words of the new prompt stand where which of the old one do, if the notes show a wrong alignment:
            "sunglasses=eyes, hat=" (nothing: a word of its own).
        reweight: Words of the new prompt with weights, "sunglasses:2, red:-0.5": how far the image goes from what the
            prompt without them would make of it towards what they add. 1 is the prompt, 0 the prompt without the word.
        normalize: Whether contrast stays that of the unweighed estimates where words are reweighted.
        keep: Whether pixels stay where the two prompts disagree least about the image; ``mask`` and ``only`` go first.
        only: Words of either prompt, such as "the hat, the tie": where they are, the image may change.
        protect: Words of either prompt: where they are, the image stays.
        threshold: How much of a map's largest value is inside of its mask, from 0 (all) to 1; by default .7 of ``keep``
            and .3 of words.
        mask: An image, or its file, white where the image may change. For "sdedit", gray is a part of the strength.
        regions: Of "sdedit": what is drawn in parts of the image, or how far back they go, "left: a tree; right: 0.3".
            A place is a word (left, right, top, bottom, top left, ..., center, all) or left,top,right,bottom from 0 to
            1; both may be said of one place.
        extra_steps: Of gradient descent: for "imagic" in all, for "null-text" in each step.
        cached: Whether an inversion is looked for and kept in the cache, by image, prompt, model and settings.
        steps: Intervals of the sampler's table.
        scale: Guidance towards the new prompt; by default the model's own.
        size: Of the result, as of ``sample``; by default the model's own. A given image's size keeps all of it.
        seed: Of the noise.
    """

    source: str = option("", "What the image shows; without an image, what is drawn first.")
    method: str = option("auto", "How; auto chooses, and says what and why.", choices=METHODS)
    strength: float | None = option(None, "Of a given image: how far to go back, 0 (the image itself) to 1.")
    window: str = option(WINDOW, 'Parts of the run in which attention is the source\'s; also by word, "hat=0..0.3".')
    align: str = option("", 'Words that stand where others stood: "sunglasses=eyes"; "hat=" stands alone.')
    reweight: str = option("", 'Words of the new prompt with weights, 1 for none: "sunglasses:2".')
    normalize: bool = option(True, "Keep the contrast of the image where words are reweighted.")
    keep: bool = option(True, "Keep pixels where the two prompts disagree least.")
    only: str = option("", "Words: only where they are the image changes.")
    protect: str = option("", "Words: where they are the image stays.")
    threshold: float | None = option(None, "How much of a map's largest value is inside of its mask, 0 to 1.")
    mask: str | Path | Image.Image | None = option(None, "White where the image may change.", kind=Path | None)
    regions: str = option("", 'Prompts or strengths of parts, for sdedit: "left: a tree; right: 0.3".')
    extra_steps: int | None = option(None, "Steps of gradient descent: of imagic; of null-text, for each step.")
    cached: bool = option(True, "Look for an inversion in the cache, and keep it there.")
    steps: int = option(20, "Solver steps.")
    scale: float | None = option(None, "Guidance; by default the model's own.")
    size: int | str | tuple[int, int] | None = option(None, SIZE, kind=str | None)
    seed: int = option(0, "Of the noise. Or: random.", kind=str, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("strength", "threshold"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name)!r}. Try 0.5.")
        if type(self.steps) is not int or self.steps < 2:
            raise InputError(f"steps must be a whole number of at least 2, got {self.steps!r}. Try 20.")
        if self.extra_steps is not None and (type(self.extra_steps) is not int or self.extra_steps < 1):
            raise InputError(f"extra_steps must be a whole number above 0, got {self.extra_steps!r}. Try 10.")
        windows_of(self.window)
        weights_of(self.reweight)
        pairs_of(self.align)
        if regions_of(self.regions) and self.method not in ("auto", "sdedit"):
            raise InputError(f"Regions are for sdedit, not for {self.method}. Take --mask, or leave --method out.")
        object.__setattr__(self, "seed", seed_of(self.seed))
        object.__setattr__(self, "size", plain_size(self.size))


def _entries(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def windows_of(text: str) -> dict[str, Window]:
    """Windows by name: "cross", "self", and words."""
    windows = {"cross": (0.0, 0.0), "self": (0.0, 0.0)}
    for entry in _entries(text):
        name, _, span = entry.rpartition("=")
        match = re.fullmatch(r"\s*([\d.]+)\s*\.\.\s*([\d.]+)\s*", re.sub(r"(?<=\d)\.\.(?=[\d.])", " .. ", span))
        try:
            low, high = float(match[1]), float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            low, high = -1.0, -1.0
        if not name.strip() or not 0 <= low <= high <= 1:
            raise InputError(f"A window is written NAME=FROM..TO, from 0 to 1, got {entry!r}. Example: {WINDOW!r}.")
        windows[name.strip()] = (low, high)
    return windows


def weights_of(text: str) -> dict[str, float]:
    """Weights by word."""
    weights = {}
    for entry in _entries(text):
        name, _, factor = entry.rpartition(":")
        try:
            weights[name.strip()] = float(factor)
        except ValueError:
            raise InputError(f"reweight is written WORD:FACTOR, got {entry!r}. Example: 'sunglasses:2'.") from None
        if not abs(weights[name.strip()]) <= 100:
            raise InputError(f"The factor of {name.strip()!r} must be from -100 to 100, got {factor}.")
    return weights


def regions_of(text: str) -> list[tuple[Place, str | float]]:
    """Places with their prompts or strengths."""
    regions: list[tuple[Place, str | float]] = []
    for place, entry in parse_regions(text) if text.strip() else ():
        try:
            strength = float(entry)
        except ValueError:
            regions.append((place, entry))
            continue
        if not 0 <= strength <= 1:
            raise InputError(f"The strength of a region must be from 0 to 1, got {entry}.")
        regions.append((place, strength))
    return regions


def pairs_of(text: str) -> dict[str, str]:
    """Old words, or nothing, by new ones."""
    pairs = {}
    for entry in _entries(text):
        new, sign, old = entry.partition("=")
        if not sign or not new.strip():
            raise InputError(f"align is written NEW=OLD, or NEW= for nothing, got {entry!r}. Example: 'cat=dog'.")
        pairs[new.strip()] = old.strip()
    return pairs
