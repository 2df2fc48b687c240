"""CLIP's tokenizer, of which only the merges ship (``configs/README.md``)."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import layouts


@cache
def _pairs(path: Path) -> tuple[tuple[str, str], ...]:
    text = lzma.decompress(path.read_bytes()).decode()
    return tuple((a, b) for a, b in (pair.split() for pair in text.splitlines()))


def clip_tokenizer(kind: Any, merges: Sequence[tuple[str, str]] | None = None, **options: Any) -> Any:
    """CLIP's tokenizer (Radford et al. 2021, sec. 2.4): its vocabulary follows from the 48,894 pairs that it joins.

    With ``merges`` it joins these instead.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes with a printable letter; the rest gets others
    letters = [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]
    merges = _pairs(layouts.CONFIGS / "clip-merges.txt.xz") if merges is None else merges
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return kind(vocab=vocabulary, merges=list(merges), **options)
