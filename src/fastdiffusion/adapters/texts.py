"""One text encoder with its tokenizer: from texts to what the encoder makes of their tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..types import Cond

Spans = list[tuple[int, int]]


class Text:
    """A text encoder, its tokenizer, and how many tokens of a text the family lets it have.

    Args:
        encoder: A network of transformers.
        tokenizer: Its tokenizer, one that knows offsets.
        limit: Most tokens, marks and template included; every text is padded to it where ``pad`` says so.
        pad: "max_length", or "longest" for families that take a mask.
        template: What is really read for a text (a chat template, a system prompt).
        drop: How many tokens of the template's beginning leave no row in the result.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        limit: int,
        pad: str = "max_length",
        template: Callable[[str], str] = str,
        drop: int = 0,
    ):
        self.encoder, self.tokenizer, self.limit, self.pad = encoder, tokenizer, limit, pad
        self.template, self.drop = template, drop

    def tokens(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """The token numbers of each text, and where they are no padding."""
        options: Any = {"padding": self.pad, "max_length": self.limit, "truncation": True, "return_tensors": "pt"}
        found = self.tokenizer([self.template(text) for text in prompts], return_attention_mask=True, **options)
        return found["input_ids"].to(self.encoder.device), found["attention_mask"].to(self.encoder.device).bool()

    def __call__(self, prompts: Sequence[str], masked: bool = False, **options: Any) -> Any:
        """The encoder's output for the texts; ``masked`` hides the padding from it."""
        ids, mask = self.tokens(prompts)
        return self.encoder(ids, **({"attention_mask": mask.long()} if masked else {}), **options)

    def spans(self, text: str) -> Spans:
        """Which characters of the raw text each row of the result covers, to its end; empty for all that is no text."""
        start = self.template("\0").index("\0")
        options: Any = {"return_offsets_mapping": True, "verbose": False}
        offsets = self.tokenizer(self.template(text), **options)["offset_mapping"][self.drop :]
        inside = [(max(a - start, 0), min(b - start, len(text))) for a, b in offsets]
        return [(a, b) if a < b else (0, 0) for a, b in inside]

    def check(self, prompts: Sequence[str]) -> None:
        """Warn of texts that lose their end."""
        for text in prompts:
            length, most = len(self.spans(text)), self.limit - self.drop
            if length > most:
                warnings.warn(
                    f"Only the first {most} of {length} tokens of {text[:40]!r} are encoded. "
                    "sample(prompt=...) encodes a long prompt in pieces.",
                    stacklevel=4,
                )

    def knows(self, text: str) -> bool:
        """Whether the tokenizer can write a text; byte pairs write any."""
        unknown = {self.tokenizer.unk_token_id} - {self.tokenizer.eos_token_id}
        return not unknown & set(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def rows_of(states: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], drop: int = 0) -> Cond:
    """Token states as a condition: without padding (on either side) and the first ``drop`` tokens, masked if uneven."""
    kept = [row[real][drop:].float() for row, real in zip(states, mask, strict=True)]
    return Cond.cat([Cond(emb=row[None]) for row in kept])


def no_padding(cond: Cond) -> list[Float[Tensor, "n d"]]:
    """The token states of each row, of its own length."""
    assert cond.emb is not None
    return list(cond.emb) if cond.mask is None else [row[real] for row, real in zip(cond.emb, cond.mask, strict=True)]


def grouped(cond: Cond) -> list[tuple[list[int], Cond]]:
    """Rows of equally many tokens together, as (indices, condition without mask): for networks that take no mask."""
    if cond.mask is None:
        return [(list(range(len(cond))), cond)]
    groups: dict[int, list[int]] = {}
    for i, n in enumerate(cond.mask.sum(1).tolist()):
        groups.setdefault(n, []).append(i)
    return [
        (rows, replace(some, emb=torch.stack(no_padding(some)), mask=None))
        for rows, some in ((rows, cond[rows]) for rows in groups.values())
    ]
