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

from ..errors import InputError
from ..io.guarded import BUDGET

BYTES = 256  # tokens 1 to 256 are single bytes; token 0 is padding
PAD = 0
_CHUNK = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\s\w]|\s|_")  # a word, a digit or a sign, with the space before it


class Tokenizer:
    """Byte-pair encoding with ``merges`` learned by :func:`train`.

    Args:
        merges: Pairs of earlier tokens, in the order in which they are joined: the i-th makes token 257 + i.
    """

    def __init__(self, merges: Sequence[tuple[int, int]]):
        self.merges = [(int(a), int(b)) for a, b in merges]
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        self.token_bytes = [b"", *(bytes([i]) for i in range(BYTES))]
        total = BYTES
        for a, b in self.merges:
            if not (0 < a < len(self.token_bytes) and 0 < b < len(self.token_bytes)):
                raise InputError(f"A merge must join two earlier tokens, got ({a}, {b}).")
            self.token_bytes.append(self.token_bytes[a] + self.token_bytes[b])
            total += len(self.token_bytes[-1])
            BUDGET.check(token=len(self.token_bytes[-1]), tokens=total)  # merges of merges double
        self._encode_cached = lru_cache(1 << 14)(self._encode_chunk)

    def __len__(self) -> int:
        """Number of tokens, with padding."""
        return len(self.token_bytes)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [token for chunk in _CHUNK.findall(text) for token in self._encode_cached(chunk)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of ``encode(text)`` stands in ``text``, as characters from and to.

        A character that several tokens share belongs to all of them; a space before a word is not part of its span.
        """
        starts = [0]  # byte offset of every character, and of the end
        for char in text:
            starts.append(starts[-1] + len(char.encode(errors="surrogatepass")))
        at = {offset: i for i, offset in enumerate(starts)}
        result, position = [], 0
        for token in self.encode(text):
            chunk = self.token_bytes[token]
            start, end = position, position + len(chunk)
            position = end
            while start not in at:
                start -= 1
            while end not in at:
                end += 1
            first, last = at[start], at[end]
            result.append((first + (chunk[:1] == b" " and last - first > 1), last))
        return result

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; half characters become the replacement sign."""
        return b"".join(self.token_bytes[t] for t in tokens).decode(errors="replace")

    def known(self, term: str) -> bool:
        """Whether a word is one token: it was common in the captions."""
        return len(self.encode(f" {term}")) == 1

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        tokens = [byte + 1 for byte in chunk.encode(errors="surrogatepass")]
        end = len(tokens)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        waiting = [(self.rank[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in self.rank]
        heapify(waiting)  # by rank, then place: linear but for the heap, since a text may be long
        while waiting:
            rank, i = heappop(waiting)
            j = after[i]
            if j == end or self.rank.get((tokens[i], tokens[j])) != rank:
                continue  # one of the two has been joined with another since
            tokens[i], tokens[j], after[i] = BYTES + 1 + rank, PAD, after[j]
            if after[j] < end:
                before[after[j]] = i
            for k in (before[i], i):
                if k >= 0 and after[k] < end and (pair := (tokens[k], tokens[after[k]])) in self.rank:
                    heappush(waiting, (self.rank[pair], k))
        return tuple(token for token in tokens if token != PAD)


def train(texts: Iterable[str], size: int = 4096, least: int = 2) -> Tokenizer:
    """Learn merges until there are ``size`` tokens or no pair occurs ``least`` times (Sennrich et al., algorithm 1)."""
    if size <= BYTES:
        raise InputError(f"A vocabulary holds all {BYTES} bytes and more, got size={size}. Try 4096.")
    counts = Counter(chunk for text in texts for chunk in _CHUNK.findall(text))
    sequences = [[byte + 1 for byte in chunk.encode(errors="surrogatepass")] for chunk in counts]
    return Tokenizer(learn(sequences, list(counts.values()), BYTES + 1, size, least))


def learn(
    sequences: list[list[int]], weights: Sequence[int], base: int, size: int, least: int = 2
) -> list[tuple[int, int]]:
    """The pairs that are joined, in order: the i-th makes token ``base + i``, until there are ``size`` tokens.

    The same for the same sequences, ties included.

    Args:
        sequences: Tokens below ``base`` of each word; they are joined in place.
        weights: How often each occurs.
        base: Number of tokens that are there already, each of one byte.
        size: Most tokens.
        least: How often a pair must occur.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = {}
    for w, sequence in enumerate(sequences):
        for pair in pairwise(sequence):
            pairs[pair] += weights[w]
            where.setdefault(pair, set()).add(w)
    merges: list[tuple[int, int]] = []
    length = [1] * base  # bytes of each token
    waiting = [(-count, pair) for pair, count in pairs.items()]  # a heap; entries of outdated counts are passed over
    heapify(waiting)
    while waiting and base + len(merges) < size:
        count, best = heappop(waiting)
        if pairs[best] != -count:
            if pairs[best] > 0:
                heappush(waiting, (-pairs[best], best))
            continue
        if -count < least:
            break
        if (joined := length[best[0]] + length[best[1]]) > BUDGET.token:
            continue
        token = base + len(merges)
        merges.append(best)
        length.append(joined)
        fewer: set[tuple[int, int]] = set()
        for w in where.pop(best):
            sequence = sequences[w]
            for pair in pairwise(sequence):
                pairs[pair] -= weights[w]
            i = 0
            while i < len(sequence) - 1:
                if (sequence[i], sequence[i + 1]) == best:
                    sequence[i : i + 2] = [token]
                i += 1
            for pair in pairwise(sequence):
                pairs[pair] += weights[w]
                where.setdefault(pair, set()).add(w)
                fewer.add(pair)
        for pair in sorted(fewer):  # new pairs, and old ones whose count went down and up again
            heappush(waiting, (-pairs[pair], pair))
    return merges
