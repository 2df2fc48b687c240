"""The words of a prompt, and which rows of its condition each of them became.

A word is one in the raw text, whatever the tokenizer makes of it: capitals and hyphens stay, punctuation stands alone,
a word of several tokens is one, and in a script without spaces each token is a word. What is no text (marks of start
and end, padding, a template) is kept too, under a name of its own: much of a prompt's effect may sit there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, unknown
from .language import Line, at, moments, parse, plain

if TYPE_CHECKING:
    from ..types import Cond

_PIECE = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
_SIGNS = {"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "Zs"}  # punctuation and the like; no emoji
_ARTICLE = re.compile(r"(?:a|an|the)\s+", re.IGNORECASE)


class Term(NamedTuple):
    """One word of a prompt, or a kind of rows that are no text.

    Attributes:
        text: As it stands in the raw text; for what is no text the name of its kind.
        span: Its characters there; empty for what is no text.
        rows: Its rows of ``Cond.emb``.
        kind: "word", "punctuation", "start", "end" or "padding".
    """

    text: str
    span: tuple[int, int]
    rows: tuple[int, ...]
    kind: str = "word"


class Terms(NamedTuple):
    """A prompt as it is encoded: its raw text without weights and brackets, and its words in order."""

    text: str
    all: tuple[Term, ...]
    texts: tuple[Line, ...]

    @property
    def content(self) -> list[Term]:
        """Those that are words."""
        return [term for term in self.all if term.kind == "word"]

    def find(self, phrase: str) -> list[Term]:
        """The terms of a phrase wherever it stands, in any case; if it stands nowhere as a whole, of each of its words.

        An article at its beginning may differ: "the hat" is found in "a cat with a hat".

        Raises:
            InputError: A word that is not there, or that the model does not read.
        """
        if not (places := _places(phrase, self.text) or _places(_ARTICLE.sub("", phrase, 1), self.text)):
            for part in (_ARTICLE.sub("", phrase, 1) or phrase).split():
                if not (found := _places(part, self.text)):
                    raise unknown("word of the prompt", part, [term.text for term in self.content])
                places += found
        chosen = [term for term in self.all if any(term.span[0] < b and a < term.span[1] for a, b in places)]
        if not chosen or not places:
            raise InputError(
                f"{phrase!r} is in the prompt {self.text!r}, but this model does not read it. Name another word: "
                f"{', '.join(term.text for term in self.content)}."
            )
        return chosen

    def without(self, terms: Sequence[Term]) -> str:
        """The prompt, in the language of prompts, without some of its words."""
        gone, start, texts = [term.span for term in terms], 0, []
        for line in self.texts:
            kept = [i for i in range(len(line.text)) if not any(a <= start + i < b for a, b in gone)]
            texts.append(_written(line, kept))
            start += len(line.text) + 1
        return " BREAK ".join(filter(None, texts))


def terms(prompt: str, conditioner: Any, cond: Cond | None = None) -> Terms:
    """The words of a prompt, choices already made, and their rows in ``cond``, its condition.

    Args:
        prompt: In the language of prompts: weights and BREAK are understood.
        conditioner: Of the model (``models.protocols.Conditioner``).
        cond: By default what ``prompts.compile`` makes of the prompt has as many rows as its tokens have spans.

    Raises:
        InputError: Prompts joined by AND, and one that changes during the run: they are several texts.
    """
    parsed = parse(prompt)
    if len(parsed.parts) > 1 or moments(parsed, 1000) != [0]:
        raise InputError(
            f"The prompt {prompt[:60]!r} is several texts, joined by AND or changing during the run, and words are "
            "explained in one. Give one of them."
        )
    part = next(iter(parsed.parts))
    texts = tuple(at(items, 0, 1) for items in part.texts)
    spans: list[tuple[int, int]] = []
    start = 0
    for line in texts:
        for a, b in _cuts(line.text, conditioner):
            own = conditioner.token_spans(line.text[a:b])
            count = _rows(conditioner, line.text[a:b], len(own))
            own = [*own, *[(0, 0)] * (count - len(own))]
            spans += [(start + a + i, start + a + j) if i < j else (0, 0) for i, j in own[:count]]
        start += len(line.text) + 1
    if cond is not None and cond.emb is not None:
        spans += [(0, 0)] * (cond.emb.shape[1] - len(spans))
    text = " ".join(line.text for line in texts)
    return Terms(text, tuple(_grouped(text, spans)), texts)


def _cuts(text: str, conditioner: Any) -> list[tuple[int, int]]:
    from .conditions import cuts  # needs torch

    return cuts(text, getattr(conditioner, "measure", conditioner.token_spans), conditioner.max_tokens)


def _rows(conditioner: Any, text: str, default: int) -> int:
    emb = conditioner.encode([text]).emb
    return default if emb is None else emb.shape[1]


def _grouped(text: str, spans: Sequence[tuple[int, int]]) -> list[Term]:
    """Tokens of one word together, in the order of the text; and what is no text."""
    chunks = [match.span() for match in _PIECE.finditer(text)]
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (a, b) in enumerate(spans):
        if a >= b:
            continue
        first = next((i for i in range(a, b) if not text[i].isspace()), a)
        piece = next(((i, j) for i, j in chunks if i <= first < j), (a, b))
        if _wide(text[first]):  # a script without spaces: each token, but those that share a letter
            piece = (first, b)
            for other in [key for key in groups if key[0] < b and first < key[1]]:
                piece = (min(piece[0], other[0]), max(piece[1], other[1]))
                groups[piece] = groups.pop(other)
        groups.setdefault(piece, []).append(row)
    made = []
    for (a, b), rows in sorted(groups.items()):
        signs = all(unicodedata.category(sign) in _SIGNS for sign in text[a:b])
        made.append(Term(text[a:b], (a, b), tuple(rows), "punctuation" if signs else "word"))
    real = [row for row, (a, b) in enumerate(spans) if a < b]
    empty = [row for row, (a, b) in enumerate(spans) if a >= b]
    start = tuple(row for row in empty if not real or row < real[0])
    end = tuple(row for row in empty if row not in start and row - 1 in real)  # the mark after the last token
    rest = tuple(row for row in empty if row not in start and row not in end)
    kinds = {"start": start, "end": end, "padding": rest}
    return made + [Term(kind, (0, 0), rows, kind) for kind, rows in kinds.items() if rows]


def _wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF" and letter.isalpha()


def _places(phrase: str, text: str) -> list[tuple[int, int]]:
    """Where a phrase stands in a text: as whole words, where its script has spaces."""
    parts = phrase.split()
    if not parts:
        return []
    before = "" if _wide(phrase.strip()[0]) else r"(?<!\w)"
    after = "" if _wide(phrase.strip()[-1]) else r"(?!\w)"
    pattern = before + r"\s+".join(map(re.escape, parts)) + after
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def _written(line: Line, kept: Sequence[int]) -> str:
    """Some letters of a line as a prompt, each at its weight."""
    chunks: list[tuple[str, float]] = []
    for i in kept:
        weight = next((w for a, b, w in line.spans if a <= i < b), 1.0)
        if chunks and chunks[-1][1] == weight:
            chunks[-1] = (chunks[-1][0] + line.text[i], weight)
        else:
            chunks.append((line.text[i], weight))
    made = "".join(plain(text) if weight == 1 else f"({plain(text)}:{weight!r})" for text, weight in chunks)
    made = re.sub(r"\s+", " ", re.sub(r"\(\s*:[^)]*\)", "", made)).strip(" ,;")
    return made
