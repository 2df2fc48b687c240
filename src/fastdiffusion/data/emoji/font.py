"""The emoji of an installed color font as images, with their names in fourteen languages as captions.

A sequence that the font lacks would be drawn as an empty box, as nothing, as a flag with a question mark, or as several
images side by side: all are recognised by drawing them, and left out. Two sequences that look the same become one
image with the names of both.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from ...errors import DataError, InputError, MissingExtra, missing, warn
from ...io import fonts, images
from ..cache import decode_once
from ..dataset import Images, digest
from ..folders import checked_size

LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
FONTS = (
    "NotoColorEmoji.ttf",
    "Apple Color Emoji.ttc",
    "seguiemj.ttf",
    "NotoColorEmoji-Regular.ttf",
    "TwitterColorEmoji-SVGinOT.ttf",
)
_STRIKES = (109, 160, 136, 128, 96, 72, 64, 40, 32)  # sizes that bitmap fonts come in; Noto has 109 only, Apple 160
_UNKNOWN_FLAG = "\U0001f1fd\U0001f1fd"  # XX is no country; Noto draws a flag with a question mark
_MISSING = (_UNKNOWN_FLAG, "\U0010ffff", "\U000e0fff", "\uffff", "\u0378")  # what no font has: it draws tofu instead
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")
_VERSION = 1


def emoji(
    size: int | None = None,
    languages: Sequence[str] = ("en",),
    alpha: bool = False,
    font: str | os.PathLike[str] | None = None,
) -> Images:
    """About 3,700 emoji, each a centred image with its names as captions.

    Args:
        size: Side in pixels, 64 by default; 32 is still legible.
        languages: Of the captions: en ar de es fa fr id it ja ko pt ru tr zh. The first's come first.
        alpha: Keep transparency, shape (4, size, size); else on white, (3, size, size).
        font: A font file; by default the first known color font in the system's font folders.

    Raises:
        MissingExtra: no font, or not the ``emoji`` package.
        DataError: a font that does not draw emoji here.
    """
    size = checked_size(size if size is not None else 64, most=512)
    languages = [languages] if isinstance(languages, str) else list(languages)
    wrong = [name for name in languages if name not in LANGUAGES]
    if wrong or not languages:
        raise InputError(f"Emoji have names in {' '.join(LANGUAGES)}, got {wrong or 'none'}.")
    names = _names(languages)
    path = Path(font) if font is not None else find_font()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read the font {path.name!r}: {error.strerror}. Give another: font='...'.") from None
    ligatures = bool(features.check("raqm"))
    if not ligatures:
        warn("This Pillow lacks raqm: emoji of several code points (flags, families) are left out.")
    pen = Pen(content, ligatures)
    state = digest(_VERSION, hashlib.sha256(content).hexdigest(), list(names), ligatures)
    decoded = decode_once(digest("emoji", path.name, size, alpha), state, _render(pen, list(names), size, alpha))
    sequences = [fact["sequences"] for fact in decoded.facts[0]]
    return Images(
        "emoji",
        decoded.arrays,
        captions=[list(dict.fromkeys(name for s in same for name in names[s])) for same in sequences],
        names=["-".join(f"{ord(c):x}" for c in same[0]) for same in sequences],
        keys=[_SKIN.sub("", same[0]) for same in sequences],  # the five skin colors stay on one side of a split
    )


def _names(languages: Sequence[str]) -> dict[str, list[str]]:
    """Every fully qualified emoji and its names, ':thumbs_up:' written 'thumbs up'."""
    try:
        import emoji as package
    except ImportError:
        raise missing("The emoji data set", "emoji", "data") from None
    for language in languages:
        package.config.load_language(language)
    qualified = package.STATUS["fully_qualified"]
    known = {e: data for e, data in package.EMOJI_DATA.items() if data["status"] == qualified}
    return {
        e: [data[lang].strip(":").replace("_", " ") for lang in languages if lang in data]
        for e, data in sorted(known.items())
    }


def find_font() -> Path:
    """The first known color emoji font of this system; raises MissingExtra."""
    for folder in fonts.FOLDERS:
        there = Path(folder).expanduser().rglob("*.tt[fc]") if fonts.folder_exists(folder) else ()
        found = {path.name: path for path in sorted(there)}
        for name in FONTS:
            if name in found:
                return found[name]
    hint = "apt install fonts-noto-color-emoji" if sys.platform == "linux" else "download NotoColorEmoji.ttf"
    raise MissingExtra(f"No color emoji font found ({', '.join(FONTS[:3])}). Install one: {hint}; or give font='...'.")


class Pen:
    """Draws sequences in one font, and knows what the font lacks.

    Args:
        font: The content of the font file.
        ligatures: Whether Pillow can join code points (raqm); if not, only single ones are drawn.
    """

    def __init__(self, font: bytes, ligatures: bool = True):
        self.font, self.ligatures = self._open(font), ligatures
        self.tofu = {self._sheet(text).tobytes() for text in _MISSING}
        self.advance = max(self.font.getlength("\U0001f600"), 1.0)

    @staticmethod
    def _open(font: bytes) -> ImageFont.FreeTypeFont:
        for strike in _STRIKES:
            try:
                return ImageFont.truetype(io.BytesIO(font), strike)  # given a path, Pillow may open another font
            except OSError:  # "invalid pixel size": not among the font's bitmaps
                continue
        raise DataError("This is not a font that can be opened. Give another: font='...NotoColorEmoji.ttf'.")

    def _sheet(self, text: str) -> Image.Image:
        side = 2 * int(self.font.size)
        sheet = Image.new("RGBA", (side, side), (255, 255, 255, 0))
        ImageDraw.Draw(sheet).text((side // 8, side // 8), text, font=self.font, embedded_color=True)
        return sheet

    def draw(self, sequence: str) -> Image.Image | None:
        """The emoji on a transparent sheet, or None where the font has no one color glyph for it."""
        if not self.ligatures:
            sequence = sequence.replace("\ufe0f", "")  # asks for the colored form, which is the only one here
        if (not self.ligatures and len(sequence) > 1) or self.font.getlength(sequence) > 1.5 * self.advance:
            return None  # would be drawn as its parts, side by side
        sheet = self._sheet(sequence)
        if sheet.getchannel("A").getbbox() is None or sheet.tobytes() in self.tofu:
            return None
        return sheet


def _render(pen: Pen, sequences: list[str], size: int, alpha: bool) -> Iterator[tuple[np.ndarray, dict]]:
    """Each distinct image and the sequences that give it."""
    distinct: dict[bytes, tuple[Image.Image, list[str]]] = {}
    colored = False
    for sequence in sequences:
        sheet = pen.draw(sequence)
        if sheet is None:
            continue
        red, green, blue, _ = sheet.split()
        colored = colored or any(ImageChops.difference(red, other).getbbox() for other in (green, blue))
        distinct.setdefault(hashlib.sha256(sheet.tobytes()).digest(), (sheet, []))[1].append(sequence)
    if not distinct or not colored:
        why = "draws nothing" if not distinct else "draws no color"
        raise DataError(
            f"The font {pen.font.getname()[0]!r} {why} here: Pillow {Image.__version__} may not know its format. "
            "Use Noto's bitmap font, e.g. apt install fonts-noto-color-emoji."
        )
    # One frame for all, so that a small emoji (a dot) stays small beside a large one.
    boxes = np.array([sheet.getchannel("A").getbbox() for sheet, _ in distinct.values()])
    left, top, right, bottom = *boxes[:, :2].min(0), *boxes[:, 2:].max(0)
    side = int(max(right - left, bottom - top))
    x, y = int(left + right - side) // 2, int(top + bottom - side) // 2
    for sheet, same in distinct.values():
        glyph = sheet.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.LANCZOS)
        yield images.to_array(glyph if alpha else images.flatten(glyph)), {"sequences": same}
