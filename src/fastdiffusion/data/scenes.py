"""Emoji as scenes: each on white and on a few colored grounds, told in many ways; the text-to-image model's data.

What ``data.reserved`` holds out is left out, unless asked for.
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

from ..errors import InputError, MissingExtra
from . import reserved
from .dataset import Batch, Dataset, Pictures, Told, digest
from .emoji import emoji

CLDR = Path("/usr/share/unicode/cldr/common")
PARTS = ("train", "designs", "compositions", "grounds")
_FLAG = re.compile("1f1[ef]")  # a pair of regional indicators
_VERSION = 1


class Words(NamedTuple):
    """What may be said of a picture: its name, other names, and words that belong to it."""

    name: str
    others: tuple[str, ...]
    keywords: tuple[str, ...]


class Scene(NamedTuple):
    """A row: which picture, on which color."""

    picture: int
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
    pictures = emoji(size, alpha=True, font=font)
    found = cldr("en") if keywords else {}
    words = []
    for name, captions in zip(pictures.names, pictures.captions, strict=True):
        own = found.get(plain(name), ())
        told = spoken(name, captions[0])
        more = tuple(word for word in own if word not in captions and not reserved.phrase(word))
        words.append(Words(told, _others(name, told, captions), more))
    return Scenes(pictures, words, _rows(pictures.names, part), part)


def spoken(name: str, caption: str) -> str:
    """What an emoji is called in English: the package emoji calls a flag by its country alone."""
    return f"flag of {caption}" if _FLAG.match(name) else caption


def cldr(language: str) -> dict[str, tuple[str, ...]]:
    """CLDR's search words of every emoji in a language, by its code points without variation selectors."""
    found: dict[str, tuple[str, ...]] = {}
    for folder in ("annotations", "annotationsDerived"):
        for node in cldr_file(folder, language).iter("annotation"):
            if node.get("type") != "tts" and node.text:
                key = plain("-".join(f"{ord(c):x}" for c in node.get("cp", "")))
                found[key] = tuple(word.strip() for word in node.text.split("|"))
    return found


def cldr_file(folder: str, language: str) -> ElementTree.Element:
    """One of CLDR's files, read; MissingExtra where it is not installed."""
    path = CLDR / folder / f"{language}.xml"
    if not path.is_file():
        raise MissingExtra("The words that belong to emoji need CLDR. Install it: apt install unicode-cldr-core.")
    return ElementTree.fromstring(path.read_bytes())


def plain(name: str) -> str:
    """Code points without variation selectors, as CLDR lists them."""
    return "-".join(part for part in name.split("-") if part != "fe0f")


def _others(name: str, told: str, captions: Sequence[str]) -> tuple[str, ...]:
    """Second names: the font's look-alikes, and the package's aliases without those that are held out."""
    from emoji import EMOJI_DATA

    sequence = "".join(chr(int(part, 16)) for part in name.split("-"))
    aliases = EMOJI_DATA.get(sequence, {}).get("alias", [])
    also = [*captions, *(alias.strip(":").replace("_", " ") for alias in aliases)]
    return tuple(dict.fromkeys(text for text in also if text != told and not reserved.phrase(text)))


def _rows(names: Sequence[str], part: str) -> list[Scene]:
    """Which pictures on which grounds: in training, plain designs often, skin tones less, pairs of tones least."""
    rows: list[Scene] = []
    colors = [color for color in reserved.COLORS if color != "white"]
    for i, name in enumerate(names):
        tones = len(reserved.skins(name))
        if part == "designs":
            rows += [Scene(i, "white")] * (reserved.design(name) and tones < 2)
        elif part == "compositions":
            rows += [Scene(i, "white")] * (reserved.composition(name) and not reserved.design(name))
        elif not reserved.reserved(name):
            held = [color for color in colors if reserved.ground(name, color)]
            if part == "grounds":
                rows += [Scene(i, color) for color in held] if tones == 0 else []
            else:
                seen = [Scene(i, color) for color in colors if color not in held]
                rows += [Scene(i, "white")] * (1 if tones else 5) + (seen if tones == 0 else seen[: 1 - tones // 2])
    return rows


class Scenes(Dataset):
    """Pictures with transparency on grounds; see :func:`scenes`. A generator given to ``batch`` varies the captions."""

    classes = ()

    def __init__(self, pictures: Pictures, words: Sequence[Words], rows: Sequence[Scene], part: str):
        self.pictures, self.words, self.rows, self.part = pictures, list(words), list(rows), part
        self.name = "emoji-scenes" if part == "train" else f"emoji-scenes-{part}"
        self.shape = (3, *pictures.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See :class:`Dataset`."""
        return digest(_VERSION, self.pictures.fingerprint, self.words, self.rows)

    def key(self, index: int) -> str:
        """See :meth:`Dataset.key`."""
        return reserved.skinless(self.pictures.names[self.rows[index].picture])

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`."""
        rows = [self.rows[i] for i in indices]
        images = self.pictures.batch([row.picture for row in rows]).images
        grounds = torch.tensor([reserved.COLORS[row.color] for row in rows], dtype=torch.uint8)
        return Batch(on_ground(images, grounds), *self.told(indices, generator))

    def told(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Told:
        """See :meth:`Dataset.told`."""
        names = [f"{self.pictures.names[row.picture]} on {row.color}" for row in (self.rows[i] for i in indices)]
        return Told(torch.full((len(names),), -1), [self.caption(i, generator) for i in indices], names)

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """See :meth:`Dataset.texts`: every phrase once, and every color."""
        rows = self.rows if indices is None else [self.rows[i] for i in indices]
        told = (self.words[picture] for picture in sorted({row.picture for row in rows}))
        said = (text for words in told for text in (words.name, *words.others, *words.keywords))
        return [*dict.fromkeys(said), *(f"a {color} background on {color}" for color in reserved.COLORS)]

    def source(self, index: int) -> int:
        """See :meth:`Dataset.source`."""
        return self._first[self.rows[index]]

    @cached_property
    def _first(self) -> dict[Scene, int]:
        return {row: i for i, row in reversed(list(enumerate(self.rows)))}

    def caption(self, index: int, generator: torch.Generator | None = None) -> str:
        """The name and the color; with a generator, one of the many ways to say it."""
        scene = self.rows[index]
        words, colored = self.words[scene.picture], scene.color != "white"
        if generator is None:
            return f"{words.name} on {scene.color}" if colored else words.name
        u = torch.rand(6, generator=generator).tolist()
        text = words.name
        if u[0] < 0.2 and words.others:
            text = words.others[int(u[1] * len(words.others))]
        elif u[0] < 0.5 and words.keywords:
            order = torch.randperm(len(words.keywords), generator=generator)
            some = [words.keywords[int(k)] for k in order[: 1 + int(u[1] * 3)]]
            text = ", ".join(some if u[0] < 0.3 else [text, *some])
        if u[2] < 0.2 and not text.startswith(("a ", "the ")):
            text = _an(text)
        if colored or u[3] < 0.05:
            text += f" on {scene.color}" if u[4] < 0.5 else f" on {_an(scene.color)} background"
        return text


def _an(text: str) -> str:
    return f"{'an' if text[:1].lower() in 'aeiou' else 'a'} {text}"


def on_ground(pictures: Tensor, grounds: Tensor) -> Tensor:
    """Pictures with alpha (b, 4, h, w) over one color each (b, 3), all uint8, rounded."""
    alpha = pictures[:, 3:].float() / 255
    mixed = pictures[:, :3].float() * alpha + grounds[:, :, None, None].float() * (1 - alpha)
    return mixed.round().to(torch.uint8)
