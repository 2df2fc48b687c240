"""Prompts of other languages in English, by a dictionary of the emoji's names and search words (scripts/synonyms).

A student encoder comes near to what it was taught, a dictionary says just that: where all words of a text are in it,
it is the English text that is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

LONGEST = 5  # words of a phrase
TOGETHER, LETTERS = ("ja", "zh"), 12  # languages without spaces between words, and the longest of their words
_HIRAGANA = {letter: letter - 0x60 for letter in range(0x30A1, 0x30F7)}  # of katakana
_KATAKANA = {hiragana: katakana for katakana, hiragana in _HIRAGANA.items()}
_ACCENTS = str.maketrans("áéíóú", "aeiou")
AFTER = frozenset({"es", "fr", "it", "pt", "id"})  # here colors stand behind what they color


class Part(NamedTuple):
    """Words of a text, from the first to before the last, and what they are in English: "" for nothing."""

    first: int
    last: int
    english: str
    joins: bool = False


@cache
def _dictionaries() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    tables = json.loads(files("fastdiffusion.prompts").joinpath("abroad.json").read_text(encoding="utf-8"))
    for table in tables["ja"].values():  # what is written in one kana is known in the other
        for term, english in list(table.items()):
            table.setdefault(term.translate(_HIRAGANA), english)
            table.setdefault(term.translate(_KATAKANA), english)
    return tables


def _plurals(term: str) -> Iterator[str]:
    """What the plural of a word may be: names of things that come in pairs are plurals (calcetín, calzino, Socke)."""
    yield from (term + end for end in ("s", "es", "n", "en", "e", "er"))
    yield term.translate(_ACCENTS) + "es"
    yield from (term[:-1] + end for last, end in (("o", "i"), ("e", "i"), ("a", "e")) if term.endswith(last))


def translated(keys: Sequence[str], forms: Callable[[str], Iterable[str]]) -> list[Part] | None:
    """A text's parts in English and in its order, by the language that knows all of its words; None if none does.

    Args:
        keys: Its words, each as tables list it.
        forms: Singulars that a word may be an inflection of.
    """
    for language, dictionary in _dictionaries().items():
        if (parts := _parts(keys, dictionary, forms)) is not None:
            if all(part.joins for part in parts):
                return None
            return _ordered(parts, dictionary) if language in AFTER else parts
    return None


def split(text: str) -> list[str]:
    """The words of a text without spaces, where one language knows all of them: as few as can be; else the text."""
    found = (_split(text, dictionary) for dictionary in map(_dictionaries().__getitem__, TOGETHER))
    return min(filter(None, found), key=len, default=[text])


def _split(text: str, dictionary: Mapping[str, Mapping[str, str]]) -> list[str] | None:
    fewest: list[list[str] | None] = [*[None] * len(text), []]  # from each letter to the end
    for i in reversed(range(len(text))):
        terms = (text[i:end] for end in range(i + 1, min(i + LETTERS, len(text)) + 1) if fewest[end] is not None)
        known = (term for term in terms if any(term in dictionary[table] for table in ("names", "words", "joining")))
        fewest[i] = min(([term, *(fewest[i + len(term)] or ())] for term in known), key=len, default=None)
    return fewest[0]


def _parts(
    keys: Sequence[str], dictionary: Mapping[str, Mapping[str, str]], forms: Callable[[str], Iterable[str]]
) -> list[Part] | None:
    parts, i = list[Part](), 0
    while i < len(keys):
        for n in range(min(LONGEST, len(keys) - i), 0, -1):
            after = bool(parts) and not parts[-1].joins
            if (part := _part(" ".join(keys[i : i + n]), i, i + n, dictionary, forms, after)) is not None:
                parts.append(part)
                break
        else:
            return None
        i = parts[-1].last
    return parts


def _part(
    phrase: str,
    first: int,
    last: int,
    dictionary: Mapping[str, Mapping[str, str]],
    forms: Callable[[str], Iterable[str]],
    after: bool,
) -> Part | None:
    """What a phrase is; a word that is a color and a thing, such as "rosa", colors the thing that it is ``after``."""
    joining, things = dictionary["joining"].get(phrase), (*(dictionary[table] for table in ("names", "words")),)
    if joining is not None and (after or phrase not in dictionary["names"]):
        return Part(first, last, joining, True)
    tried = (phrase, *forms(phrase), *(_plurals(phrase) if len(phrase) > 3 else ()))
    found = (table[form] for form in tried for table in things if form in table)
    return next((Part(first, last, english) for english in found), None)


def _ordered(parts: list[Part], dictionary: Mapping[str, Mapping[str, str]]) -> list[Part]:
    """Colors before what they color."""
    colors = set(dictionary["joining"].values()) - {"", "and", "with", "on"}
    done = list(parts)
    for i, part in enumerate(parts[1:], 1):
        if part.english in colors and not parts[i - 1].joins:
            done[i - 1 : i + 1] = [part, parts[i - 1]]
    return done
