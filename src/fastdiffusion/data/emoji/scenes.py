"""Emoji as scenes: each on white and a few colored backgrounds, with captions in many forms, for text-to-image models.

What ``holdout`` holds out is left out, unless asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from ...errors import InputError, MissingExtra
from ..dataset import Annotations, Batch, Dataset, Images, digest
from . import holdout
from .font import emoji

CLDR = Path("/usr/share/unicode/cldr/common")
PARTS = ("train", "designs", "compositions", "grounds")
_FLAG = re.compile("1f1[ef]")  # a pair of regional indicators
_VERSION = 2


class Phrases(NamedTuple):
    """What a caption may name: the emoji's name, other names, and words that belong to it."""

    name: str
    others: tuple[str, ...]
    keywords: tuple[str, ...]


class Scene(NamedTuple):
    """A row: which image, on which color."""

    image: int
    color: str


def scenes(
    size: int | None = None,
    part: str = "train",
    keywords: bool = True,
    font: str | os.PathLike[str] | None = None,
) -> Scenes:
    """About 1,900 emoji designs and their skin tones on white and colored grounds, with varied English captions.

    Args:
        size: Side in pixels, 64 by default.
        part: "train"; or what it lacks: "designs", "compositions" (skin, hair, feature, color of an object) and
            "grounds" (an emoji on a color that it was not seen on).
        keywords: Also say CLDR's search words (Debian's unicode-cldr-core).
        font: See :func:`emoji`.

    Raises:
        MissingExtra: no font, no names, or no keywords.
    """
    if part not in PARTS:
        raise InputError(f"The emoji scenes have the parts {', '.join(PARTS)}, got {part!r}.")
    glyphs = emoji(size, alpha=True, font=font)
    keywords_of = cldr("en") if keywords else {}
    phrases = []
    for name, captions in zip(glyphs.names, glyphs.captions, strict=True):
        own = keywords_of.get(plain(name), ())
        title = spoken(name, captions[0])
        more = tuple(keyword for keyword in own if keyword not in captions and not holdout.phrase(keyword))
        phrases.append(Phrases(title, _others(name, title, captions), more))
    return Scenes(glyphs, phrases, _rows(glyphs.names, part), part)


def spoken(name: str, caption: str) -> str:
    """What an emoji is called in English: the package emoji calls a flag by its country alone."""
    return f"flag of {caption}" if _FLAG.match(name) else caption


def cldr(language: str) -> dict[str, tuple[str, ...]]:
    """CLDR's search words of every emoji in a language, by its code points without variation selectors."""
    keywords: dict[str, tuple[str, ...]] = {}
    for folder in ("annotations", "annotationsDerived"):
        for node in cldr_file(folder, language).iter("annotation"):
            if node.get("type") != "tts" and node.text:
                key = plain("-".join(f"{ord(c):x}" for c in node.get("cp", "")))
                keywords[key] = tuple(keyword.strip() for keyword in node.text.split("|"))
    return keywords


def cldr_file(folder: str, language: str) -> ElementTree.Element:
    """One of CLDR's files, read; MissingExtra where it is not installed."""
    path = CLDR / folder / f"{language}.xml"
    if not path.is_file():
        raise MissingExtra("The words that belong to emoji need CLDR. Install it: apt install unicode-cldr-core.")
    return ElementTree.fromstring(path.read_bytes())


def plain(name: str) -> str:
    """Code points without variation selectors, as CLDR lists them."""
    return "-".join(part for part in name.split("-") if part != "fe0f")


def _others(name: str, title: str, captions: Sequence[str]) -> tuple[str, ...]:
    """Second names: the font's look-alikes, and the package's aliases without those that are held out."""
    from emoji import EMOJI_DATA

    sequence = "".join(chr(int(part, 16)) for part in name.split("-"))
    aliases = EMOJI_DATA.get(sequence, {}).get("alias", [])
    also = [*captions, *(alias.strip(":").replace("_", " ") for alias in aliases)]
    return tuple(dict.fromkeys(text for text in also if text != title and not holdout.phrase(text)))


def _rows(names: Sequence[str], part: str) -> list[Scene]:
    """Which images on which grounds: in training, plain designs often, skin tones less, pairs of tones least."""
    rows: list[Scene] = []
    colors = [color for color in holdout.COLORS if color != "white"]
    for i, name in enumerate(names):
        tones = len(holdout.skins(name))
        if part == "designs":
            rows += [Scene(i, "white")] * (holdout.glyph(name) and tones < 2)
        elif part == "compositions":
            rows += [Scene(i, "white")] * (holdout.composition(name) and not holdout.glyph(name))
        elif not holdout.reserved(name):
            held = [color for color in colors if holdout.background(name, color)]
            if part == "grounds":
                rows += [Scene(i, color) for color in held] if tones == 0 else []
            else:
                trained = [Scene(i, color) for color in colors if color not in held]
                rows += [Scene(i, "white")] * (1 if tones else 5) + (
                    trained if tones == 0 else trained[: 1 - tones // 2]
                )
    return rows


class Scenes(Dataset):
    """Images with transparency on grounds; see :func:`scenes`. A generator given to ``batch`` varies the captions."""

    classes = ()

    def __init__(self, glyphs: Images, phrases: Sequence[Phrases], rows: Sequence[Scene], part: str):
        self.images, self.phrases, self.rows, self.part = glyphs, list(phrases), list(rows), part
        self.name = "emoji-scenes" if part == "train" else f"emoji-scenes-{part}"
        self.shape = (3, *glyphs.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See :class:`Dataset`."""
        return digest(_VERSION, self.images.fingerprint, self.phrases, self.rows)

    def key(self, index: int) -> str:
        """See :meth:`Dataset.key`."""
        return holdout.skinless(self.images.names[self.rows[index].image])

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`."""
        rows = [self.rows[i] for i in indices]
        images = self.images.batch([row.image for row in rows]).images
        colors = torch.tensor([holdout.COLORS[row.color] for row in rows], dtype=torch.uint8)
        return Batch(composite(images, colors), *self.annotations(indices, generator))

    def annotations(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Annotations:
        """See :meth:`Dataset.annotations`."""
        rows = [self.rows[i] for i in indices]
        names = [" on ".join((self.images.names[row.image], row.color)) for row in rows]
        return Annotations(torch.full((len(names),), -1), [self.caption(i, generator) for i in indices], names)

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """See :meth:`Dataset.texts`: every phrase once, and every color."""
        rows = self.rows if indices is None else [self.rows[i] for i in indices]
        used = (self.phrases[i] for i in sorted({row.image for row in rows}))
        texts = (text for phrases in used for text in (phrases.name, *phrases.others, *phrases.keywords))
        return [*dict.fromkeys(texts), *(f"a {color} background on {color}" for color in holdout.COLORS)]

    def source(self, index: int) -> int:
        """See :meth:`Dataset.source`."""
        return self._first[self.rows[index]]

    @cached_property
    def _first(self) -> dict[Scene, int]:
        return {row: i for i, row in reversed(list(enumerate(self.rows)))}

    @cached_property
    def _titles(self) -> set[str]:
        return {phrases.name for phrases in self.phrases}

    def caption(self, index: int, generator: torch.Generator | None = None) -> str:
        """The name and the color; with a generator, one of the many ways to say it."""
        scene = self.rows[index]
        phrases, colored = self.phrases[scene.image], scene.color != "white"
        if generator is None:
            return f"{phrases.name} on {scene.color}" if colored else phrases.name
        u = torch.rand(6, generator=generator).tolist()
        text = phrases.name
        if u[0] < 0.2 and phrases.others:
            text = phrases.others[int(u[1] * len(phrases.others))]
        elif u[0] < 0.5 and phrases.keywords:
            order = torch.randperm(len(phrases.keywords), generator=generator)
            some = [phrases.keywords[int(k)] for k in order[: 1 + int(u[1] * 3)]]
            alone = u[0] < 0.3 and not (len(some) == 1 and some[0] in self._titles)  # "cat" is the cat, not its faces
            text = ", ".join(some if alone else [text, *some])
        if u[2] < 0.2 and not text.startswith(("a ", "the ")):
            text = _an(text)
        if colored or u[3] < 0.05:
            text += f" on {scene.color}" if u[4] < 0.5 else f" on {_an(scene.color)} background"
        return text


def _an(text: str) -> str:
    return f"{'an' if text[:1].lower() in 'aeiou' else 'a'} {text}"


def composite(images: Tensor, colors: Tensor) -> Tensor:
    """Images with alpha (b, 4, h, w) over one color each (b, 3), all uint8, rounded."""
    alpha = images[:, 3:].float() / 255
    mixed = images[:, :3].float() * alpha + colors[:, :, None, None].float() * (1 - alpha)
    return mixed.round().to(torch.uint8)
