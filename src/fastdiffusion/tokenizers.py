"""Text to numbers: byte-pair encoding (Sennrich et al. 2016) over bytes, trained on one's own captions.

Every text in every script has an encoding, and decoding gives it back exactly. A space belongs to the word after it, so
that "cat" means the same token wherever it stands; see ``words``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

from .errors import InputError

BYTES = 256  # tokens 1 to 256 are single bytes; token 0 is padding
PAD = 0
_PIECES = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\s\w]|\s|_")  # a word, a digit or a sign, with the space before it


class Tokenizer:
    """Byte-pair encoding with ``merges`` learned by :func:`train`.

    Args:
        merges: Pairs of earlier tokens, in the order in which they are joined: the i-th makes token 257 + i.
    """

    def __init__(self, merges: Sequence[tuple[int, int]]):
        self.merges = [(int(a), int(b)) for a, b in merges]
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        self.pieces = [b"", *(bytes([i]) for i in range(BYTES))]
        for a, b in self.merges:
            if not (0 < a < len(self.pieces) and 0 < b < len(self.pieces)):
                raise InputError(f"A merge must join two earlier tokens, got ({a}, {b}).")
            self.pieces.append(self.pieces[a] + self.pieces[b])
        self._word = lru_cache(1 << 14)(self._encode_word)

    def __len__(self) -> int:
        """Number of tokens, with padding."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [token for piece in _PIECES.findall(text) for token in self._word(piece)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of ``encode(text)`` stands in ``text``, as characters from and to.

        A character that several tokens share belongs to all of them; a space before a word is not part of its span.
        """
        starts = [0]  # byte offset of every character, and of the end
        for char in text:
            starts.append(starts[-1] + len(char.encode(errors="surrogatepass")))
        at = {offset: i for i, offset in enumerate(starts)}
        found, position = [], 0
        for token in self.encode(text):
            piece = self.pieces[token]
            begin, end = position, position + len(piece)
            position = end
            while begin not in at:
                begin -= 1
            while end not in at:
                end += 1
            first, last = at[begin], at[end]
            found.append((first + (piece[:1] == b" " and last - first > 1), last))
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; half characters become the replacement sign."""
        return b"".join(self.pieces[t] for t in tokens).decode(errors="replace")

    def known(self, word: str) -> bool:
        """Whether a word is one token: it was common in the captions."""
        return len(self.encode(f" {word}")) == 1

    def _encode_word(self, word: str) -> tuple[int, ...]:
        tokens = [byte + 1 for byte in word.encode(errors="surrogatepass")]
        while len(tokens) > 1:
            rank, i = min((self.rank.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(tokens)))
            if rank == 1 << 30:
                break
            tokens[i : i + 2] = [BYTES + 1 + rank]
        return tuple(tokens)


def train(texts: Iterable[str], size: int = 4096, least: int = 2) -> Tokenizer:
    """Learn merges until there are ``size`` tokens or no pair occurs ``least`` times (Sennrich et al., algorithm 1)."""
    if size <= BYTES:
        raise InputError(f"A vocabulary holds all {BYTES} bytes and more, got size={size}. Try 4096.")
    counts = Counter(piece for text in texts for piece in _PIECES.findall(text))
    words = [[byte + 1 for byte in word.encode(errors="surrogatepass")] for word in counts]
    weights = list(counts.values())
    pairs: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = {}
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[w]
            where.setdefault(pair, set()).add(w)
    merges: list[tuple[int, int]] = []
    waiting = [(-count, pair) for pair, count in pairs.items()]  # a heap; entries of outdated counts are passed over
    heapify(waiting)
    while waiting and BYTES + 1 + len(merges) < size:
        count, best = heappop(waiting)
        if pairs[best] != -count:
            if pairs[best] > 0:
                heappush(waiting, (-pairs[best], best))
            continue
        if -count < least:
            break
        token = BYTES + 1 + len(merges)
        merges.append(best)
        fewer: set[tuple[int, int]] = set()
        for w in where.pop(best):
            word = words[w]
            for pair in pairwise(word):
                pairs[pair] -= weights[w]
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [token]
                i += 1
            for pair in pairwise(word):
                pairs[pair] += weights[w]
                where.setdefault(pair, set()).add(w)
                fewer.add(pair)
        for pair in sorted(fewer):  # new pairs, and old ones whose count went down and up again
            heappush(waiting, (-pairs[pair], pair))
    return Tokenizer(merges)
