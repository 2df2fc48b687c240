"""The text encoder: a small transformer over byte-pair tokens, stored together with its tokenizer."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..errors import InputError
from ..types import Cond
from .layers import Attention, records_config
from .tokenizer import BYTES, PAD, Tokenizer

SIGN = 0xE000  # the first private sign of Unicode: signs stand for the rows of added tokens
ADDED = 1 << 20  # the number of the first added row, above those of any vocabulary


def normalized(text: str) -> str:
    """A caption as it is tokenized: compatibility forms folded, lower case, no hyphens, one space before every word."""
    return "".join(f" {term}" for term in unicodedata.normalize("NFKC", text).casefold().replace("-", " ").split())


def occurrences(names: Iterable[str], tolerant: bool = False) -> re.Pattern[str]:
    """What finds names in a text, the longest first, and none within a word: "bad" is in no "bad_hands" or "badminton".

    ``tolerant`` also finds those in small letters where they are written in capitals, or with other spaces, hyphens or
    apostrophes; :func:`spelling` knows which one it was.
    """
    return _compiled(tuple(sorted(names, key=len, reverse=True)), tolerant)


@lru_cache(64)
def _compiled(names: tuple[str, ...], tolerant: bool) -> re.Pattern[str]:
    return re.compile("|".join(_pattern(name, tolerant) for name in names) or r"(?!)")


def _pattern(name: str, tolerant: bool) -> str:
    if not re.fullmatch(r"\w(.*\w)?", name):
        return re.escape(name)
    if not tolerant or name != name.casefold():
        return rf"(?<!\w){re.escape(name)}(?!\w)"
    written = (r"[\s-]+" if sign in " -" else "['’]" if sign == "’" else re.escape(sign) for sign in name)
    return rf"(?<!\w)(?i:{''.join(written)})(?!\w)"


def spelling(found: str, spellings: Mapping[str, str]) -> str:
    """What stands for a name that :func:`occurrences` found."""
    return spellings[found] if found in spellings else {_folded(n): s for n, s in spellings.items()}[_folded(found)]


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("’", "'").split())


def respelled(text: str, spellings: Mapping[str, str], tolerant: bool = False) -> str:
    """A text with some of its words written otherwise, all at once."""
    return occurrences(spellings, tolerant).sub(lambda match: spelling(match[0], spellings), text)


def traced(text: str, spellings: Mapping[str, str], tolerant: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """The same, and for each of its characters which ones of ``text`` it stands for."""
    origins, end = list[tuple[int, int]](), 0
    for match in occurrences(spellings, tolerant).finditer(text):
        origins += [(i, i + 1) for i in range(end, match.start())]
        origins += [match.span()] * len(spelling(match[0], spellings))
        end = match.end()
    return respelled(text, spellings, tolerant), [*origins, *((i, i + 1) for i in range(end, len(text)))]


def vocabulary_ids(texts: Iterable[str]) -> list[int]:
    """The distinct words of texts, normalized, each as a number, in order."""
    distinct = {term for text in texts for term in re.findall(r"[^\W\d_]+", normalized(text))}
    return sorted({zlib.crc32(term.encode()) for term in distinct})


class Layer(nn.Module):
    """Self-attention among the tokens and an MLP, each beside the identity (pre-norm)."""

    def __init__(self, dim: int, head: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, head)
        self.norm2, self.mlp_in, self.mlp_out = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class TextEncoder(nn.Module):
    """Captions to token states and one vector.

    Its tokenizer's merges are a buffer, so that a model file is complete.

    With a ``student_encoder`` it understands other languages: a second encoder, distilled from this one
    (``tasks.text_image.multilingual``), encodes the texts of which this one does not know every word. Its tokens are
    numbered after this one's. All other texts are encoded as before, bit for bit.

    Args:
        vocabulary: Number of tokens.
        width: Of a token's state.
        depth: Number of layers.
        head: Channels of an attention head.
        length: Most tokens of a caption; what is longer is cut.
        known: Number of distinct words in its training captions; 0 = they are not listed.
    """

    config: dict[str, Any]

    @records_config
    def __init__(
        self,
        vocabulary: int = 4096,
        width: int = 192,
        depth: int = 3,
        head: int = 48,
        length: int = 24,
        known: int = 0,
    ):
        super().__init__()
        if vocabulary <= BYTES:
            raise InputError(f"vocabulary must be above {BYTES}, got {vocabulary}. Try 4096.")
        self.width, self.length = width, length
        self.register_buffer("merges", torch.zeros(vocabulary - BYTES - 1, 2, dtype=torch.int32))
        if known:
            self.register_buffer("known", torch.zeros(known, dtype=torch.int64))
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(length, width))
        nn.init.normal_(self.embed.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(width, head) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.student_encoder: TextEncoder | None = None
        self._tokenizer: Tokenizer | None = None
        self._known_ids: frozenset[int] | None = None
        self.signs: dict[str, str] = {}  # what an added token is spelled with

    merges: Tensor
    known: Tensor
    added_rows: nn.ParameterList  # of each added token

    def add_tokens(self, rows: Mapping[str, Float[Tensor, "n d"]]) -> None:
        """Add tokens, each of one row or several. A text with one is always encoded here, never by the student."""
        kept = [*self.added_rows] if self.signs else []
        for name, own in rows.items():
            if own.ndim != 2 or own.shape[1] != self.width or name in self.signs:
                raise InputError(f"{name!r} is there already, or its rows are not {self.width} wide.")
            first = SIGN + sum(map(len, self.signs.values()))
            self.signs[name] = "".join(chr(first + i) for i in range(len(own)))
        own = self.embed.weight
        new = [nn.Parameter(t.to(own.device, torch.float32), requires_grad=own.requires_grad) for t in rows.values()]
        self.added_rows = nn.ParameterList([*kept, *new])
        self.config["added"] = {name: len(signs) for name, signs in self.signs.items()}

    @property
    def _added(self) -> int:
        """How many rows were added."""
        return sum(map(len, self.signs.values()))

    def spelled(self, text: str) -> str:
        """A text with its added tokens as their signs."""
        return respelled(text, self.signs, tolerant=True)

    def set_vocabulary(self, tokenizer: Tokenizer, texts: Sequence[str] = ()) -> None:
        """Take over a tokenizer of at most ``vocabulary`` tokens, and list the ``known`` words of the texts."""
        if len(tokenizer) > self.config["vocabulary"]:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} tokens, the encoder room for {len(self.embed.weight)}."
            )
        self.merges.zero_()
        self.merges[: len(tokenizer.merges)] = torch.tensor(tokenizer.merges, dtype=torch.int32).reshape(-1, 2)
        self._tokenizer, self._known_ids = tokenizer, None
        if self.config["known"]:
            self.known.copy_(torch.tensor(vocabulary_ids(texts)))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the merges describe."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer([pair for pair in self.merges.tolist() if pair[0]])
        return self._tokenizer

    def knows(self, term: str) -> bool:
        """Whether a word was in the captions; without a list, or in a script without spaces, whether it looks so.

        Known words are one token, or few for their length. See :meth:`encoder_of` for the words of a student encoder.
        """
        if self.config["known"] and not any(unicodedata.east_asian_width(letter) in "WF" for letter in term):
            return self.lists(term)
        return len(self.tokenizer.encode(normalized(term))) <= max(3, (len(term) + 1) // 2)

    def encoder_of(self, text: str) -> TextEncoder:
        """The encoder of a text: this one if it lists every word or has no student, else the student."""
        added = bool(self.signs) and any(ord(sign) - SIGN in range(self._added) for sign in self.spelled(text))
        return self if self.student_encoder is None or added or self.lists(text) else self.student_encoder

    def lists(self, text: str) -> bool:
        """Whether every word of a text was in the captions, of an encoder that lists its words."""
        if not self.config["known"]:
            return False
        if self._known_ids is None:
            self._known_ids = frozenset(self.known.tolist())
        text = self.spelled(text)
        return self._known_ids.issuperset(vocabulary_ids([text]))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Which characters of the normalized text (:func:`normalized`) each token covers."""
        encoder = self.encoder_of(text)
        if encoder is not self or not self.signs:
            return encoder.tokenizer.spans(text)
        spelled, origins = traced(text, self.signs, tolerant=True)
        spans, start = list[tuple[int, int]](), 0
        for part in self._parts(spelled):  # signs have one token each
            own = [(len(part) - 1, len(part))] if self._is_sign(part) else self.tokenizer.spans(part)
            spans += [(start + a, start + b) for a, b in own]
            start += len(part)
        return [(origins[a][0], origins[b - 1][1]) for a, b in spans]

    def _is_sign(self, part: str) -> bool:
        return len(part) < 3 and SIGN <= ord(part[-1]) < SIGN + self._added

    def _parts(self, text: str) -> list[str]:
        """A text cut at the signs of added tokens, each a part with the space before it."""
        last = chr(SIGN + self._added - 1)
        return [part for part in re.split(f"( ?[{chr(SIGN)}-{last}])", text) if part]

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "b n"]:
        """Token numbers, padded with 0; an empty text is all padding, the unconditional case."""
        rows = [self._numbers(text) for text in texts]
        longest = max(map(len, rows), default=0) or 1
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.long)

    def _numbers(self, text: str) -> list[int]:
        if not text.strip():
            return []
        other = self.encoder_of(text)
        if other is not self:
            return [self.config["vocabulary"] + token for token in other._numbers(text)]
        if not self.signs:
            return self.tokenizer.encode(normalized(text))[: self.length]
        numbers = list[int]()
        for part in self._parts(normalized(self.spelled(text))):
            numbers += [ADDED + ord(part[-1]) - SIGN] if self._is_sign(part) else self.tokenizer.encode(part)
        return numbers[: self.length]

    def forward(self, tokens: Int64[Tensor, "b n"]) -> tuple[Tensor, Tensor, Tensor]:
        """(token states (b, n, d), mask (b, n), the mean state of each caption (b, d); 0 for padding)."""
        if self.student_encoder is not None:
            strange = ((tokens > self.config["vocabulary"]) & (tokens < ADDED)).any(1)
            if bool(strange.any()):
                theirs = self.student_encoder((tokens[strange] - self.config["vocabulary"]).clamp(min=PAD))
                return _joined(strange, theirs, self._understood(tokens[~strange][:, : self.length]))
        return self._understood(tokens[:, : self.length])  # wider where another batch had longer ones

    def _embedded(self, tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """The tokens' rows, also those of added ones."""
        if not self.signs:
            return self.embed(tokens)
        added = tokens >= ADDED
        own = self.embed(tokens.masked_fill(added, PAD))
        return torch.where(added[..., None], torch.cat([*self.added_rows])[(tokens - ADDED).clamp(min=0)], own)

    def _understood(self, tokens: Int64[Tensor, "b n"]) -> tuple[Tensor, Tensor, Tensor]:
        mask = tokens != PAD
        x = self._embedded(tokens) + self.position[: tokens.shape[1]]
        visible = mask | ~mask.any(1, keepdim=True)  # a row of padding attends to itself: no NaN, and masked later
        for layer in self.layers:
            x = layer(x, visible)
        x = self.norm(x) * mask[..., None]
        return x, mask, x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _joined(
    which: Bool[Tensor, " b"], some: tuple[Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of two encoders' rows: ``some`` where ``which``, the others padded to their length."""
    joined = []
    for a, b in zip(some, others, strict=True):
        both = a.new_zeros(len(which), *a.shape[1:])
        both[which] = a
        both[~which, : b.shape[1]] = b
        joined.append(both)
    return joined[0], joined[1], joined[2]


class CaptionMean(nn.Module):
    """The caption-conditional mean E[x0 | caption], as a small image made from the caption's pooled vector.

    It is the denoiser's best estimate from pure noise. A denoiser learns it slowly, since each step costs a pass
    through the whole network and most of the loss is about details. This net costs a thousandth, learns the same mean
    by regression (``tasks.text_image.caption_mean``), and its output is an input of the denoiser.

    Args:
        width: Length of the caption's vector.
        channels: Of the image or latents.
        side: Of the map.
        hidden: Width of the two layers between.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, width: int = 128, channels: int = 4, side: int = 16, hidden: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, channels * side**2), nn.Unflatten(1, (channels, side, side)),
        )  # fmt: skip

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b c s s"]:
        """The map, in units of the data's standard deviation."""
        return self.layers(pooled)


class TextConditioned(nn.Module):
    """A network with the text encoder that is trained with it: ``Cond.tokens`` become ``emb``, ``mask`` and ``pooled``.

    With a caption-conditional mean, the network has that mean as more input channels. A condition whose text is encoded
    already passes as it is, so that a sampling run encodes its prompts once.
    """

    def __init__(self, net: nn.Module, text_encoder: TextEncoder, caption_mean: CaptionMean | None = None):
        super().__init__()
        self.net, self.text_encoder, self.caption_mean = net, text_encoder, caption_mean

    @property
    def config(self) -> dict[str, Any]:
        """The inner network's keywords; under "words", "foreign" and "draft" (as in files) those of the other parts."""
        others = {"foreign": self.text_encoder.student_encoder, "draft": self.caption_mean}
        config = {**cast("dict[str, Any]", self.net.config), "words": self.text_encoder.config}
        return config | {name: part.config for name, part in others.items() if part is not None}

    def encode_prompt(self, cond: Cond) -> Cond:
        """The condition with its tokens encoded."""
        if cond.tokens is None:
            return cond
        emb, mask, pooled = self.text_encoder(cond.tokens)
        return replace(cond, tokens=None, emb=emb, mask=mask, pooled=pooled)

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b o h w"]:
        """The inner network's output."""
        cond = None if cond is None else self.encode_prompt(cond)
        if self.caption_mean is not None:
            pooled = None if cond is None else cond.pooled
            drawn = self.caption_mean(x.new_zeros(len(x), self.text_encoder.width) if pooled is None else pooled)
            x = torch.cat([x, drawn if drawn.shape[2:] == x.shape[2:] else F.interpolate(drawn, x.shape[2:])], 1)
        return self.net(x, c_noise, cond)
