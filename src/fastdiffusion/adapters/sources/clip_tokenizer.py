"""CLIP's tokenizer, of which only the merges ship (``configs/README.md``)."""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...nets.tokenizer import learn
from . import layouts


@cache
def _pairs(path: Path) -> tuple[tuple[str, str], ...]:
    text = lzma.decompress(path.read_bytes()).decode()
    return tuple((a, b) for a, b in (pair.split() for pair in text.splitlines()))


def _letters() -> list[str]:
    """A printable letter for each byte: its own, or one beyond."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]


def _base() -> list[str]:
    """The tokens that are no pairs: each letter, and each at the end of a word."""
    return [*_letters(), *(f"{letter}</w>" for letter in _letters())]


def clip_tokenizer(kind: Any, merges: Sequence[tuple[str, str]] | None = None, **options: Any) -> Any:
    """CLIP's tokenizer (Radford et al. 2021, sec. 2.4): its vocabulary follows from the 48,894 pairs that it joins.

    With ``merges`` it joins these instead.
    """
    joined = _pairs(layouts.CONFIGS / "clip-merges.txt.xz") if merges is None else merges
    tokens = [*_base(), *(a + b for a, b in joined)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return kind(vocab=vocabulary, merges=list(joined), **options)


def learn_clip_tokenizer(kind: Any, texts: Sequence[str], size: int, **options: Any) -> Any:
    """CLIP's tokenizer with pairs learned from texts, of at most ``size`` tokens; it can write any text."""
    backend = clip_tokenizer(kind, []).backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        counts.update(chunk for chunk, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    tokens = _base()
    number = {token: i for i, token in enumerate(tokens)}
    chunks = [[*(number[letter] for letter in chunk[:-1]), number[f"{chunk[-1]}</w>"]] for chunk in counts]
    merges: list[tuple[str, str]] = []
    for a, b in learn(chunks, list(counts.values()), len(tokens), size - 2):  # two marks
        merges.append((tokens[a], tokens[b]))
        tokens.append(tokens[a] + tokens[b])
    return clip_tokenizer(kind, merges, **options)
