"""What a text in another language means in words that a model knows: names, search words, grounds and dictionaries.

    pairs = bilingual("emoji:ja,es") + bilingual("pairs.csv") + bilingual("edict")

A pair's weight is how often it is drawn; what is one's own or a proper name counts 1, what is only near counts less.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError, InputError, MissingExtra
from . import holdout
from .font import LANGUAGES, emoji
from .scenes import cldr, cldr_file, plain, spoken

EDICT = Path("/usr/share/edict/edict")  # Debian's package edict: Japanese to English, CC-BY-SA-3.0, EDRDG

# How each language says that something is on a colored background, and the colors in the order of ``holdout.COLORS``.
BACKGROUNDS: dict[str, tuple[str, str]] = {
    "ar": ("{name} على خلفية {color}", "بيضاء سوداء حمراء برتقالية صفراء خضراء زرقاء بنفسجية وردية"),
    "de": (
        "{name} auf {color} Hintergrund",
        "weißem schwarzem rotem orangem gelbem grünem blauem violettem rosa",
    ),
    "es": ("{name} sobre fondo {color}", "blanco negro rojo naranja amarillo verde azul morado rosa"),
    "fa": ("{name} روی پس‌زمینه {color}", "سفید سیاه قرمز نارنجی زرد سبز آبی بنفش صورتی"),
    "fr": ("{name} sur fond {color}", "blanc noir rouge orange jaune vert bleu violet rose"),
    "id": ("{name} dengan latar belakang {color}", "putih hitam merah oranye kuning hijau biru ungu pink"),
    "it": ("{name} su sfondo {color}", "bianco nero rosso arancione giallo verde blu viola rosa"),
    "ja": ("{name} {color}の背景", "白 黒 赤 オレンジ 黄色 緑 青 紫 ピンク"),
    "ko": ("{name} {color} 배경", "흰색 검은색 빨간색 주황색 노란색 초록색 파란색 보라색 분홍색"),
    "pt": ("{name} em fundo {color}", "branco preto vermelho laranja amarelo verde azul roxo rosa"),
    "ru": ("{name} на {color} фоне", "белом чёрном красном оранжевом жёлтом зелёном синем фиолетовом розовом"),
    "tr": ("{name} {color} arka planda", "beyaz siyah kırmızı turuncu sarı yeşil mavi mor pembe"),
    "zh": ("{name} {color}背景", "白色 黑色 红色 橙色 黄色 绿色 蓝色 紫色 粉色"),
}


class Pair(NamedTuple):
    """A text in the new language, what the model already understands, and how often to say so."""

    text: str
    known: str
    weight: float = 1.0


def translations(source: str | Path) -> list[Pair]:
    """Pairs from a place that is named: "emoji", "emoji:ja,es", "edict", or the file of a table or of EDICT.

    Raises:
        InputError: An unknown language.
        DataError: A file that cannot be read, or has no pairs.
        MissingExtra: Names, search words or the dictionary are not installed.
    """
    name = str(source)
    if name == "emoji" or name.startswith("emoji:"):
        languages = name[6:].split(",") if name[5:] else LANGUAGES[1:]
        return emoji_pairs(languages) + emoji_phrases(languages)
    if name == "edict" or Path(name).name.startswith("edict"):
        return edict(EDICT if name == "edict" else Path(name))
    return table(Path(name))


def emoji_pairs(languages: Sequence[str] = LANGUAGES[1:], held_out: bool = False) -> list[Pair]:
    """Names of emoji in several languages beside the English ones.

    Args:
        languages: Of ``data.emoji.LANGUAGES``.
        held_out: Instead those that ``holdout.pair`` keeps from training.
    """
    return list(
        dict.fromkeys(
            Pair(text, known, 0.15 if holdout.skins(name) else 1.0)  # five tones of one name teach little more than one
            for language in languages
            for name, known, texts in _glyphs(language, held_out)
            if len(holdout.skins(name)) < 2
            for text in texts
        )
    )


def emoji_phrases(languages: Sequence[str] = LANGUAGES[1:]) -> list[Pair]:
    """Other phrases for the same emoji: CLDR's search words, names on the grounds that were trained on, countries.

    A search word belongs to many emoji; what it comes to mean is the mean of them. A country's name, which is no
    emoji's, stands for its flag.
    """
    pairs: list[Pair] = []
    for language in languages:
        keywords = cldr(language)
        held = {text.casefold() for text in held_out(language)}
        countries = territories(language)
        pairs += [
            Pair(country, known)
            for held_back in (False, True)
            for name, known, _ in _glyphs(language, held_back)
            if (country := countries.get(_letters(name), "")) and country.casefold() not in held
        ]
        for name, known, texts in _glyphs(language):
            if holdout.skins(name):
                continue
            more = (
                keyword
                for keyword in keywords.get(plain(name), ())
                if keyword not in texts and keyword.casefold() not in held
            )
            pairs += [Pair(keyword, known, 0.1) for keyword in more]
            pairs += [
                Pair(describe_background(text, language, color), f"{known} on {color}", 0.08)
                for text in texts
                for color in holdout.COLORS
                if color != "white" and not holdout.background(name, color)
            ]
    return list(dict.fromkeys(pairs))


def describe_background(name: str, language: str, color: str) -> str:
    """How a language says that something is on a background of one of ``holdout.COLORS``; white goes unsaid."""
    saying, colors = BACKGROUNDS.get(language, ("{name} on {color}", " ".join(holdout.COLORS)))
    names_of = dict(zip(holdout.COLORS, colors.split(), strict=True))
    return name if color == "white" else saying.format(name=name, color=names_of[color])


def territories(language: str) -> dict[str, str]:
    """CLDR's names of countries and regions in a language, by their two letters."""
    nodes = cldr_file("main", language).iter("territory")
    return {node.get("type", ""): node.text or "" for node in nodes if node.get("alt") is None}


def _letters(name: str) -> str:
    """The two letters of a flag's code points; of anything else nothing."""
    letters = [int(point, 16) - 0x1F1E6 for point in name.split("-")]
    return (
        "".join(chr(ord("A") + n) for n in letters) if len(letters) == 2 and all(0 <= n < 26 for n in letters) else ""
    )


def held_out(language: str) -> list[str]:
    """The names that ``holdout.pair`` keeps from training."""
    return [pair.text for pair in emoji_pairs([language], held_out=True)]


def _glyphs(language: str, held_out: bool = False) -> list[tuple[str, str, list[str]]]:
    """(code points, the English name, the first name in ``language``) of what may be said, or what is held out."""
    if language not in LANGUAGES:
        raise InputError(f"Emoji have names in {' '.join(LANGUAGES)}, got {language!r}.")
    english, names = emoji(languages=["en"]), emoji(languages=[language])
    return [
        (name, spoken(name, known[0]), list(own[:1]))
        for name, known, own in zip(names.names, english.captions, names.captions, strict=True)
        if not holdout.reserved(name) and holdout.pair(name, language) == held_out
    ]


def edict(path: Path = EDICT, most: int = 2, names: Collection[str] = ()) -> list[Pair]:
    """Japanese words with their English glosses of at most ``most`` words, from a dictionary in EDICT's form.

    A line is "word;other spelling [reading] /(part of speech) gloss/another gloss/(P)/"; (P) marks common words.
    Words that mean first one of ``names``, what the images are called, count as much as names do.

    Raises MissingExtra without the file, DataError for one of another form.
    """
    try:
        entries = path.read_text(encoding="euc-jp", errors="ignore").splitlines()
    except FileNotFoundError:
        raise MissingExtra(f"There is no dictionary at {path}. Install one: apt install edict.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path.name!r}: {error.strerror}.") from None
    weights: dict[tuple[str, str], float] = {}
    called = {name.casefold() for name in names}
    for entry in entries:
        head, _, rest = entry.partition(" /")
        forms = re.findall(r"[^\s\[\];]+", re.sub(r"\([^)]*\)", "", head))[:2]
        glosses = [re.sub(r"\([^)]*\)|[{}]", "", gloss).strip() for gloss in rest.split("/")]
        glosses = [re.sub(r"^(to|a|an|the) ", "", gloss) for gloss in glosses if gloss]
        for rank, gloss in enumerate(glosses):
            if 0 < len(gloss.split()) <= most:
                often = 1.0 if gloss.casefold() in called and rank < 2 else 0.3 if "(P)" in rest else 0.05
                weight = often / (1 + rank)
                for form in forms:
                    weights[form, gloss] = max(weight, weights.get((form, gloss), 0.0))
    if not weights:
        raise DataError(f"{path.name!r} is no dictionary in EDICT's form.")
    return [Pair(text, known, weight) for (text, known), weight in weights.items()]


def table(path: Path) -> list[Pair]:
    """Pairs from a .tsv or .csv file whose rows are the new text and the known one."""
    try:
        rows = list(csv.reader(path.open(encoding="utf-8-sig"), delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path.name!r} ({error}).") from None
    pairs = [
        Pair(row[0].strip(), row[1].strip()) for row in rows if len(row) >= 2 and row[0].strip() and row[1].strip()
    ]
    if not pairs:
        raise DataError(f"{path.name!r} has no pairs. Each row is: text in the new language, the same in a known one.")
    return pairs
