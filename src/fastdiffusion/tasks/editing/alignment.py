"""The two prompts of an edit, word by word: which tokens they are, and what is asked of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from ...errors import InputError, unknown
from ...guidance import prompt_to_prompt as p2p
from ...models.protocols import Conditioner
from .options import EditOptions, Window, pairs_of, weights_of, windows_of

SOURCE, TARGET = 0, 1
_DANGLING = re.compile(r"(?:^|(?<=\W))(?:with|wearing|and|or|of|in|on|at|by|a|an|the)\s*(?=$|[,.;])", re.IGNORECASE)
NAMES = ("word of the old prompt", "word of the new prompt")


class Alignment:
    """Source and target of an edit.

    Attributes:
        texts: Both prompts.
        columns: For each token of the target the one of the source in whose place it stands, or -1.
        weights: Of words of the target, as they were asked for.
        cross, self_attention: Windows.
        windows: Those of single tokens of the target.
    """

    def __init__(self, conditioner: Conditioner, source: str, target: str, options: EditOptions):
        self.texts = (source, target)
        self.spans = [list(conditioner.token_spans(text)) for text in self.texts]
        self.columns = p2p.align(*([text[a:b] for a, b in s] for text, s in zip(self.texts, self.spans, strict=True)))
        for new, old in pairs_of(options.align).items():
            places, taken = self.need(new, TARGET), self.need(old, SOURCE) if old else [-1]
            for n, place in enumerate(places):
                self.columns[place] = taken[n * len(taken) // len(places)]
        self.weights = weights_of(options.reweight)
        for phrase in self.weights:
            self.need(phrase, TARGET)
        windows = windows_of(options.window)
        self.cross, self.self_attention = windows.pop("cross"), windows.pop("self")
        self.windows: dict[int, Window] = {
            token: window for name, window in windows.items() for token in self.need(name, TARGET)
        }

    @property
    def attends(self) -> bool:
        """Whether attention is changed at all."""
        return any(low < high for low, high in (self.cross, self.self_attention, *self.windows.values()))

    def find(self, phrase: str, which: int) -> list[int]:
        """The tokens of a prompt that make up some words; empty if it has none of them.

        Whole words, in any case; in scripts without spaces wherever they stand. A phrase counts as a whole, or else
        each of its words.
        """
        text, spans = self.texts[which], self.spans[which]
        places = _places_of(phrase, text)
        return [i for i, (a, b) in enumerate(spans) if a < b and any(a < end and start < b for start, end in places)]

    def need(self, phrase: str, which: int) -> list[int]:
        """The same; raises InputError where there is none."""
        if not (found := self.find(phrase, which)):
            raise unknown(NAMES[which], phrase, self.texts[which].split())
        return found

    def prompt_with(self, phrase: str) -> str:
        """The prompt, of the two, that has some words; raises InputError if none has."""
        which = next((i for i in (SOURCE, TARGET) if self.find(phrase, i)), None)
        if which is None:
            raise unknown("word of the prompts", phrase, " ".join(self.texts).split())
        return self.texts[which]

    def without(self, phrases: Sequence[str], conditioner: Conditioner) -> Alignment:
        """The same alignment with some words gone from the target."""
        if not phrases:
            return self
        made, full = copy.copy(self), self.texts[TARGET]
        made.texts = (self.texts[SOURCE], removed(full, phrases))
        made.spans = [self.spans[SOURCE], list(conditioner.token_spans(made.texts[TARGET]))]
        tokens = [
            [t[a:b] for a, b in s] for t, s in zip((full, made.texts[1]), (self.spans[1], made.spans[1]), strict=True)
        ]
        kept = p2p.align(*tokens)
        made.columns = [self.columns[k] if k >= 0 else -1 for k in kept]
        made.windows = {i: self.windows[k] for i, k in enumerate(kept) if k in self.windows}
        return made

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a new word and the old one in whose place it stands, "" if it has a place of its own."""
        new, old = (_whole(text, spans) for text, spans in zip(reversed(self.texts), reversed(self.spans), strict=True))
        pairs: dict[tuple[int, int], str] = {}
        for token, column in enumerate(self.columns):
            if token in new:
                taken = self.texts[SOURCE][slice(*old[column])] if column in old else ""
                pairs[new[token]] = pairs.get(new[token]) or taken
        return tuple((self.texts[TARGET][slice(*span)], taken) for span, taken in pairs.items())

    @property
    def note(self) -> str:
        """The alignment in a sentence; words that stayed are left out."""
        pairs = [(a, b) for a, b in self.pairs if a.casefold() != b.casefold()]
        if not pairs:
            return "Alignment: every word has stayed."
        return "Alignment: " + ", ".join(f"{a} = {b}" if b else f"{a} = (new)" for a, b in pairs) + "."


def _places(phrase: str, text: str) -> list[tuple[int, int]]:
    """Where a phrase stands; in Latin and other letters between the borders of words."""
    if not phrase:
        return []
    border = [r"(?<!\w)" if re.match(r"[^\W\u3040-\u9fff]", phrase) else "", r"(?!\w)"]
    after = border[1] if re.search(r"[^\W\u3040-\u9fff]$", phrase) else ""
    pattern = border[0] + r"\s+".join(map(re.escape, phrase.split())) + after
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def _places_of(phrase: str, text: str) -> list[tuple[int, int]]:
    """Where a phrase stands as a whole, or else each of its words."""
    parts = [phrase.strip()] if _places(phrase.strip(), text) else phrase.split()
    return [place for part in parts for place in _places(part, text)]


def removed(text: str, phrases: Sequence[str]) -> str:
    """A text without some words, and without what then leads nowhere: "a face with sunglasses" is "a face"."""
    spans = sorted(place for phrase in phrases for place in _places_of(phrase, text))
    kept, at = "", 0
    for a, b in spans:
        kept, at = kept + text[at : max(a, at)], max(b, at)
    kept = re.sub(r"\s+", " ", kept + text[at:]).strip()
    last = None
    while last != kept:
        last, kept = kept, re.sub(r"(\s*[,;])*\s*(?=[,;.])", "", _DANGLING.sub("", kept)).strip(" ,;")
    return kept


def _whole(text: str, spans: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """By token the word that it is part of, as its place in the text; marks and punctuation are none."""
    whole, found = [match.span() for match in re.finditer(r"[\w'-]+", text)], {}
    for i, (a, b) in enumerate(spans):
        first = next((k for k in range(a, b) if not text[k].isspace()), None)
        if first is None or not re.match(r"\w", text[first]):
            continue
        x, y = next((x, y) for x, y in whole if x <= first < y)
        found[i] = (a, b) if re.match(r"[\u3040-\u9fff]", text[first]) else (x, y)  # no spaces: each token is one
    return found


def check_phrases(phrases: Sequence[str], aligned: Alignment) -> None:
    """Raise InputError for a phrase that neither prompt has."""
    for phrase in phrases:
        if not phrase.strip():
            raise InputError("A word between commas is empty. Write 'the hat, the tie'.")
        aligned.prompt_with(phrase.strip())
