"""A student of another model's text encoders: from texts of new languages to the conditions that these make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..types import Cond
from .layers import HOOKS, Attention, AttentionCall, records_config, zero
from .text import TextEncoder, normalized, vocabulary_ids
from .tokenizer import Tokenizer

Span = tuple[int, int]


class Answer(NamedTuple):
    """What a student makes of texts, in the units of its teacher.

    Attributes:
        emb: Token states, in the places that the teacher would give them.
        pooled: One vector of each text, if the teacher has one.
        present: Logit of there being a token at each place, if the teacher's texts have a mask.
    """

    emb: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None
    present: Float[Tensor, "b n"] | None

    def cond(self) -> Cond:
        """The condition; a text has at least one token."""
        mask = None if self.present is None else self.present > 0
        if mask is not None:
            mask[:, 0] |= ~mask.any(1)
        return Cond(emb=self.emb, mask=mask, pooled=self.pooled)


class Readout(nn.Module):
    """Cross-attention from places of the answer to the tokens of a text, and an MLP, each beside the identity."""

    def __init__(self, dim: int, head: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, head, context=dim)
        self.norm2, self.mlp_in, self.mlp_out = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(
        self, x: Float[Tensor, "b n d"], states: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm1(x), states, mask)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class StudentEncoder(nn.Module):
    """A text encoder with its own tokenizer, and places that read its states: one for each row of the teacher's.

    The answer is the teacher's mean over the texts that it was asked, and what the text adds to it. It lists what its
    language is recognized by (:meth:`reads`).

    Args:
        rows: Rows of the teacher's token states.
        emb: Their width.
        pooled: Length of its vector of a whole text; 0 is none.
        masked: Whether its texts have a mask.
        vocabulary, width, depth, head, length: Of the text encoder.
        readouts: Layers of the places.
        terms: Number of words that are of the new language alone.
        shared: Number of words that both languages have.
        letters: Number of letters that are of the new language alone.
    """

    config: dict[str, Any]
    mean_emb: Tensor
    mean_pooled: Tensor
    mean_present: Tensor
    scales: Tensor
    terms: Tensor
    shared: Tensor
    letters: Tensor

    @records_config
    def __init__(
        self,
        rows: int = 77,
        emb: int = 768,
        pooled: int = 0,
        masked: bool = False,
        vocabulary: int = 8192,
        width: int = 384,
        depth: int = 3,
        head: int = 48,
        length: int = 77,
        readouts: int = 1,
        terms: int = 0,
        shared: int = 0,
        letters: int = 0,
    ):
        super().__init__()
        self.encoder = TextEncoder(vocabulary, width, depth, head, length)
        self.places = nn.Parameter(torch.zeros(rows, width))
        nn.init.normal_(self.places, std=0.5)
        self.readouts = nn.ModuleList(Readout(width, head) for _ in range(readouts))
        self.norm, self.to_emb = nn.LayerNorm(width), zero(nn.Linear(width, emb))  # at first it answers the mean
        self.to_pooled = zero(nn.Linear(width, pooled)) if pooled else None
        self.to_present = zero(nn.Linear(width, 1)) if masked else None
        self.register_buffer("mean_emb", torch.zeros(rows, emb))
        self.register_buffer("mean_present", torch.zeros(rows))  # as a logit
        self.register_buffer("mean_pooled", torch.zeros(pooled))
        self.register_buffer("scales", torch.ones(2))  # of emb and pooled: root mean square of what texts add
        for name, number in (("terms", terms), ("shared", shared), ("letters", letters)):
            self.register_buffer(name, torch.zeros(number, dtype=torch.int64))
        self._lists: tuple[frozenset[int], ...] | None = None

    def set_vocabulary(self, tokenizer: Tokenizer, lists: Sequence[Sequence[int]]) -> None:
        """Take over a tokenizer, and the lists of :func:`recognized`."""
        self.encoder.set_vocabulary(tokenizer)
        for name, numbers in zip(("terms", "shared", "letters"), lists, strict=True):
            getattr(self, name).copy_(torch.tensor(numbers, dtype=torch.int64))
        self._lists = None

    def set_teacher(self, answers: Cond) -> None:
        """Take over what a teacher's answers are on average, and how far texts move them."""
        if answers.mask is not None:
            self.mean_present.copy_(answers.mask.float().mean(0).clamp(0.01, 0.99).logit())
        for i, (mean, some) in enumerate(((self.mean_emb, answers.emb), (self.mean_pooled, answers.pooled))):
            if some is not None:
                mean.copy_(some.mean(0))
                self.scales[i] = (some - some.mean(0)).square().mean().sqrt().clamp(min=1e-6)

    def forward(self, tokens: Int64[Tensor, "b n"]) -> Answer:
        """The condition of texts, from :meth:`TextEncoder.tokens <fastdiffusion.nets.TextEncoder.tokens>`."""
        states, mask, pooled = self.encoder(tokens)
        x = self.places.expand(len(tokens), -1, -1)
        for layer in self.readouts:
            x = layer(x, states, mask)
        x = self.norm(x)
        return Answer(
            self.mean_emb + self.scales[0] * self.to_emb(x),
            None if self.to_pooled is None else self.mean_pooled + self.scales[1] * self.to_pooled(pooled),
            None if self.to_present is None else self.mean_present + self.to_present(x).squeeze(-1),
        )

    def reads(self, text: str) -> bool:
        """Whether a text is in the new language: more of its words are of it alone than are unknown to it.

        Words that both languages have count for neither.
        """
        terms, shared, letters = self._recognized()
        balance = 0
        for term in _terms(text):
            (number,) = vocabulary_ids([term])
            if number in terms or not letters.isdisjoint(map(ord, term)):
                balance += 1
            elif number not in shared:
                balance -= 1
        return balance > 0

    def lists(self, text: str) -> bool:
        """Whether every word of a text was in the texts of the new language."""
        terms, shared, _ = self._recognized()
        return (terms | shared).issuperset(vocabulary_ids([text]))

    def _recognized(self) -> tuple[frozenset[int], ...]:
        if self._lists is None:
            self._lists = tuple(frozenset(t.tolist()) for t in (self.terms, self.shared, self.letters))
        return self._lists

    @torch.no_grad()
    def spans(self, text: str) -> list[Span]:
        """Which characters of the normalized text each row is made of most; empty where it is of none.

        Rows stand where the teacher's would, so which tokens they come from is what their places attend to.
        """
        looked: list[Tensor] = []
        layers = [layer.attention for layer in self.readouts if isinstance(layer, Readout)]

        def look(call: AttentionCall) -> None:
            if any(call.module is layer for layer in layers):
                looked.append(call.probabilities[0].mean(0))

        tokens = self.encoder.tokens([text]).to(self.places.device)
        HOOKS.stack.append(look)
        try:
            self(tokens)
        finally:
            HOOKS.stack.remove(look)
        most = torch.stack(looked).mean(0).argmax(-1).tolist()  # 0 is the key of nothing
        of = self.encoder.tokenizer.spans(normalized(text))
        return [of[i - 1] if i else (0, 0) for i in most]


def _terms(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", normalized(text)))


def recognized(new: Iterable[str], known: Iterable[str]) -> tuple[list[int], list[int], list[int]]:
    """What new texts are recognized by: words of theirs alone, words of both, and letters of theirs alone."""
    theirs, mine = _terms(" ".join(new)), _terms(" ".join(known))
    letters = set(map(ord, "".join(theirs))) - set(map(ord, "".join(mine)))
    return vocabulary_ids(theirs - mine), vocabulary_ids(theirs & mine), sorted(letters)
