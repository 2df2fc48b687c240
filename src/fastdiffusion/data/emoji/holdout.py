"""What the emoji generator never sees: decided by rule before anything was trained, so that nobody can choose later.

Every decision is a hash of the thing itself, or one of a few combinations listed by hand. What comes out is written in
``docs/emoji-reserved.json``; a test compares the two. The evaluator is trained on everything.
"""

from __future__ import annotations

import hashlib
import re

COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (33, 33, 33),
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "blue": (30, 136, 229),
    "purple": (142, 36, 170),
    "pink": (240, 98, 146),
}
BACKGROUNDS = 3  # colored grounds that each emoji is seen on in training; the other five are compositions of their own

# Combinations whose parts are all seen elsewhere: cat x feature, hair x person, object x color.
COMPOSITIONS = {
    "1f639": "cat with tears of joy",
    "1f63f": "crying cat",
    "1f9d1-200d-1f9b3": "person: white hair",
    "1f469-200d-1f9b1": "woman: curly hair",
    "1f9e1": "orange heart",
    "1f7e3": "purple circle",
    "1f7e9": "green square",
}
_SKIN = re.compile(r"-?\b1f3f[b-f]\b")


def share(*values: str) -> float:
    """A number in [0, 1) that belongs to these words for ever."""
    return int.from_bytes(hashlib.sha256("/".join(values).encode()).digest()[:6], "big") / 2**48


def skinless(name: str) -> str:
    """A sequence ("1f469-1f3fb-200d-1f373") without skin tones and variation selectors: the design."""
    return _SKIN.sub("", name).replace("-fe0f", "").lstrip("-")


def skins(name: str) -> list[str]:
    """The skin tones of a sequence, "1f3fb" (light) to "1f3ff" (dark)."""
    return [point for point in name.split("-") if re.fullmatch("1f3f[b-f]", point)]


def glyph(name: str) -> bool:
    """Whether this design is held out, in every skin: a twentieth of all."""
    return share("design", skinless(name)) < 0.05


def composition(name: str) -> bool:
    """Whether this combination is held out: those of ``COMPOSITIONS``, and a tenth of (design, one skin tone)."""
    if skinless(name) in COMPOSITIONS:
        return True
    tones = skins(name)
    return len(tones) == 1 and share("skin", skinless(name), tones[0]) < 0.1


def background(name: str, color: str) -> bool:
    """Whether this emoji is held out on this color; on white none is."""
    others = sorted((c for c in COLORS if c != "white"), key=lambda c: share("color", skinless(name), c))
    return color in others[BACKGROUNDS:]


def phrase(text: str) -> bool:
    """Whether these words are held out as a second name of an image: a tenth of them."""
    return share("name", text.casefold()) < 0.1


def pair(name: str, language: str) -> bool:
    """Whether this design's name in a language other than English is held out: a tenth."""
    return language != "en" and share("language", language, skinless(name)) < 0.1


def reserved(name: str) -> bool:
    """Whether the generator may not see this image at all."""
    return glyph(name) or composition(name)
