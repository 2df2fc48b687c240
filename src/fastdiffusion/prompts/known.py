"""What the emoji model draws: its names, other names for the same things, and phrases as these tables list them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import NamedTuple

Lists = Callable[[str], bool]  # whether every word of a text was in the training captions

ARTICLES = frozenset({"a", "an", "the"})
PHRASE = 9  # words of a name: "flag of St. Helena, Ascension & Tristan da Cunha"
NARROW = frozenset({"with", "and", "of", "on", "in", "at", "to", "from", "for", "by"})
_SCENIC = "at in under near beside behind over through riding by inside beneath between while"
SCENIC = frozenset(_SCENIC.split())  # between two things they make a scene
EDGES = '.!?;:…"“”„«»()[]*'


class Names(NamedTuple):
    """What the emoji model draws: its names by their :func:`key`, and other names for the same things.

    Attributes:
        names: By their keys.
        everyday, search: Other words for them, as people say and as CLDR lists.
        clearer: Names that it draws badly, and others of the same things; and those with parentheses.
        closed: Names and everyday words for them, by their letters without spaces.
    """

    names: dict[str, str]
    everyday: dict[str, str]
    search: dict[str, str]
    clearer: dict[str, str]
    closed: dict[str, str]

    def find(self, text: str, n: int = 20) -> list[str]:
        """The names that a text means, then those that share its words, then those that are spelled alike."""
        wanted = key(text)
        tables = (self.names, self.everyday, self.search)
        meant = [table[form] for form in (wanted, *forms(wanted)) for table in tables if form in table]
        terms = set(wanted.split())
        others = {phrase: name for table in reversed(tables) for phrase, name in table.items()}
        shared = sorted(
            (phrase for phrase in others if terms & set(phrase.split()) or (len(wanted) > 3 and wanted in phrase)),
            key=lambda phrase: (len(terms ^ set(phrase.split())), phrase not in self.names, phrase),
        )
        alike = get_close_matches(wanted, others, n=n, cutoff=0.72)
        return list(dict.fromkeys([*meant, *(others[phrase] for phrase in (*shared, *alike))]))[:n]


class Token(NamedTuple):
    """A word of a prompt, or a name in place of some, and the characters that it stands for."""

    text: str
    start: int
    end: int


@cache
def known_names() -> Names:
    """The table of scripts/synonyms."""
    table = json.loads(files("fastdiffusion.prompts").joinpath("names.json").read_text(encoding="utf-8"))
    known = {key(name): name for name in table["names"]}
    closed = {phrase.replace(" ", ""): name for phrase, name in {**table["everyday"], **known}.items()}
    # parentheses weigh words in a prompt, and what is left of "flag of Myanmar (Burma)" is no caption
    bare = {key(name): name for name in table["names"] if "(" in name}
    return Names(known, table["everyday"], table["search"], table["clearer"] | bare, closed)


def names(text: str = "", n: int = 20) -> list[str]:
    """Names of what the bundled model draws: all of them, or the ``n`` that are nearest to a text, best first."""
    table = known_names()
    return table.find(text, n) if text.strip() else sorted(table.names.values())


def key(text: str) -> str:
    """A phrase as tables list it: folded, without hyphens, articles and signs at the ends of its words."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("-", " ").replace("’", "'")
    terms = [term for term in (part.strip(EDGES + ",'") for part in folded.split()) if term]
    return " ".join(terms[1:] if len(terms) > 1 and terms[0] in ARTICLES else terms)


def forms(phrase: str) -> Iterator[str]:
    """The singulars, plurals and plain forms that a phrase may be an inflection of, likeliest first."""
    head, _, last = phrase.rpartition(" ")
    irregular = {"men": "man", "people": "person", "children": "child", "mice": "mouse", "feet": "foot",
                 "teeth": "tooth", "geese": "goose", "leaves": "leaf", "wolves": "wolf", "knives": "knife"}  # fmt: skip
    found = [last[: -len(end)] + irregular[end] for end in irregular if last.endswith(end)]
    for end, base in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("'s", ""), ("es", ""), ("s", "")):
        found += [last.removesuffix(end) + base] * last.endswith(end)
    found += [last[:-1] + "ies"] * last.endswith("y")
    found += [last + "s"] * (not last.endswith("s"))
    for end in ("ing", "ed"):
        if last.endswith(end):
            stem = last.removesuffix(end)
            found += [stem, stem + "e", *([stem[:-1]] if stem[-2:-1] == stem[-1:] else [])]
    yield from (f"{head} {form}".strip() for form in dict.fromkeys(found) if len(form) > 1)
