"""Letters on images: a font that has those of a text, the one that Pillow carries or one of the system's."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import warn

FOLDERS = (
    *("~/.fonts", "~/.local/share/fonts", "/usr/share/fonts", "/usr/local/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
LONGEST = 200  # letters of a label that are looked at
_SIZE = 16  # in pixels, at which letters are looked up
_MOST = 2000  # fonts of a system that are looked at
_BOXES = re.compile(r"last ?resort|blank|tofu", re.IGNORECASE)  # fonts that have every letter, as the same box
_UNLIKE = (
    *("bold", "italic", "oblique", "light", "thin", "black", "heavy", "condensed", "narrow"),
    *("mono", "serif", "math", "symbol", "emoji"),
)
_EAST_ASIAN = re.compile("CJK|HIRAGANA|KATAKANA|HANGUL|BOPOMOFO")

Font = ImageFont.FreeTypeFont


def folder_exists(folder: str) -> bool:
    """Whether a folder of FOLDERS is there."""
    try:
        return Path(folder).expanduser().is_dir()
    except (OSError, RuntimeError):  # RuntimeError: "~" without a home
        return False


def font_for(text: str, size: float) -> Font:
    """The font that Pillow carries if it has all letters of a text, else the system's that has most of them."""
    path = _path_for(text)
    return _carried(size) if path is None else ImageFont.truetype(path, size)


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Font) -> None:
    """A line of black text below a place, whatever room its font leaves above its letters."""
    draw.text((place[0], place[1] + _carried(font.size).getmetrics()[0]), text, "black", font, "ls")


def _carried(size: float) -> Font:
    """The font that Pillow carries."""
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)  # with a size it is none of bitmaps
    return font


def legible(text: str) -> str:
    """A text without what no font here has: letters at least without their marks."""
    text = unicodedata.normalize("NFC", text[:LONGEST].encode(errors="ignore").decode())
    path = _path_for(text)
    plain = "".join(_plainest(letter, path) for letter in text)
    return "".join(letter for letter in plain if letter.isspace() or _has(path, letter))


def drawable(texts: Sequence[str]) -> list[str]:
    """Texts as they can be drawn: a number, from 1, in place of one whose letters no font here has; warns of those."""
    drawn = [legible(text) for text in texts]
    blank = [i for i, text in enumerate(texts) if text.strip() and not drawn[i].strip()]
    if blank:
        meant = [f"{i + 1} is {texts[i][:40]!r}" for i in blank]
        more = f" and {len(meant) - 3} more" if len(meant) > 3 else ""
        why = f"No font here has the letters of some labels, so they are numbers: {', '.join(meant[:3])}{more}."
        warn(f"{why} {_remedy(texts[i] for i in blank)}".strip())
    return [f"{i + 1}" if i in blank else text for i, text in enumerate(drawn)]


def _remedy(texts: Iterable[str]) -> str:
    """What to install for the letters of texts; nothing for emoji, whose fonts come in one size."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    if sys.platform != "linux":
        return "Install a Noto font that has them." if letters else ""
    names = (unicodedata.name(letter, "") for letter in letters)
    packages = sorted({f"fonts-noto-{'cjk' if _EAST_ASIAN.match(name) else 'core'}" for name in names})
    return f"On Debian or Ubuntu: sudo apt-get install {' '.join(packages)}" if packages else ""


def _plainest(letter: str, path: Path | None) -> str:
    """A letter, or without its marks where the font lacks it so."""
    return letter if _has(path, letter) else unicodedata.normalize("NFKD", letter)[0]


def _path_for(text: str) -> Path | None:
    """The font file for a text; None is the font that Pillow carries."""
    shown = frozenset(letter for letter in text[:LONGEST] if unicodedata.category(letter)[0] not in "ZC")
    return None if all(_has(None, letter) for letter in shown) else _fullest(shown)


@lru_cache(1024)
def _fullest(letters: frozenset[str]) -> Path | None:
    """Of Pillow's font and the system's, the first that has as many of these letters as any."""
    best, most = None, sum(_has(None, letter) for letter in letters)
    for path in _installed(FOLDERS):
        count = sum(_has(path, letter) for letter in letters)
        if count > most:
            best, most = path, count
        if most == len(letters):
            break
    return best


@cache
def _installed(folders: tuple[str, ...]) -> list[Path]:
    """The fonts in these folders, plain ones first."""
    found = {
        path
        for folder in folders
        if folder_exists(folder)
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in (".ttf", ".otf", ".ttc") and not _BOXES.search(path.name)
    }

    def rank(path: Path) -> tuple[int, int, str]:
        name = path.stem.lower().replace("sansserif", "sans")
        return sum(trait in name for trait in _UNLIKE), len(name), str(path)

    return sorted(found, key=rank)[:_MOST]


@lru_cache(256)
def _opened(path: Path | None) -> Font | None:
    try:
        return _carried(_SIZE) if path is None else ImageFont.truetype(path, _SIZE)
    except OSError:  # damaged, or of bitmaps in one size, as color emoji are
        return None


@lru_cache(65536)
def _has(path: Path | None, letter: str) -> bool:
    """Whether a font draws a letter as something else than what it draws for those that it lacks."""
    return (font := _opened(path)) is not None and _drawn(font, letter) != _drawn(font, "\uffff")


def _drawn(font: Font, letter: str) -> bytes:
    sheet = Image.new("L", (2 * _SIZE, 2 * _SIZE))
    ImageDraw.Draw(sheet).text((_SIZE // 2, _SIZE // 2), letter, 255, font)
    return sheet.tobytes()
