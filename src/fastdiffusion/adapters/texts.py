"""A text encoder with its tokenizer, or a student of several: from texts to what is made of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import warn
from ..nets.student import StudentEncoder
from ..nets.text import normalized, respelled
from ..prompts import aligned
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
        marks: Whether the tokenizer adds its marks of start and end; a chat template may bring them.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        limit: int,
        pad: str = "max_length",
        template: Callable[[str], str] = str,
        drop: int = 0,
        marks: bool = True,
    ):
        self.encoder, self.tokenizer, self.limit, self.pad = encoder, tokenizer, limit, pad
        self.template, self.drop, self.marks = template, drop, marks
        self.added = of_several_rows(tokenizer)

    def written(self, text: str) -> str:
        """A text as the tokenizer takes it: an added token of several rows is as many tokens."""
        return respelled(text, self.added)

    def tokens(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """The token numbers of each text, and where they are no padding."""
        options: Any = {"padding": self.pad, "max_length": self.limit, "truncation": True, "return_tensors": "pt"}
        options |= {"return_attention_mask": True, "add_special_tokens": self.marks}
        found = self.tokenizer([self.template(self.written(text)) for text in prompts], **options)
        return found["input_ids"].to(self.encoder.device), found["attention_mask"].to(self.encoder.device).bool()

    def __call__(self, prompts: Sequence[str], masked: bool = False, **options: Any) -> Any:
        """The encoder's output for the texts; ``masked`` hides the padding from it."""
        ids, mask = self.tokens(prompts)
        return self.encoder(ids, **({"attention_mask": mask.long()} if masked else {}), **options)

    def normed_states(self, prompts: Sequence[str], skip: int = 0) -> Tensor:
        """CLIP's states of its last layer, or of ``skip`` layers before it, through the norm that follows the last."""
        if not skip:
            return self(prompts)[0]
        states = self(prompts, output_hidden_states=True).hidden_states[-1 - skip]
        return getattr(self.encoder, "text_model", self.encoder).final_layer_norm(states)  # transformers 4, and 5

    def spans(self, text: str) -> Spans:
        """Which characters of the raw text each row of the result covers, to its end; empty for all that is no text."""
        return list(aligned(self._spans, self.written)(text)) if self.added else self._spans(text)

    def _spans(self, text: str) -> Spans:
        start = self.template("\0").index("\0")
        options: Any = {"return_offsets_mapping": True, "verbose": False, "add_special_tokens": self.marks}
        offsets = self.tokenizer(self.template(text), **options)["offset_mapping"]
        if self.pad == "max_length" and self.tokenizer.padding_side == "left":
            offsets = [(0, 0)] * (self.limit - len(offsets)) + offsets
        inside = [(max(a - start, 0), min(b - start, len(text))) for a, b in offsets[self.drop :]]
        return [(a, b) if a < b else (0, 0) for a, b in inside]

    def check(self, prompts: Sequence[str]) -> None:
        """Warn of texts that lose their end."""
        for text in prompts:
            length, most = len(self.spans(text)), self.limit - self.drop
            if length > most:
                warn(
                    f"Only the first {most} of {length} tokens of {text[:40]!r} are encoded. "
                    "sample(prompt=...) encodes a long prompt in pieces."
                )

    def knows(self, text: str) -> bool:
        """Whether the tokenizer can write a text; byte pairs write any."""
        unknown = {self.tokenizer.unk_token_id} - {self.tokenizer.eos_token_id}
        return not unknown & set(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class Student:
    """A student of a family's text encoders, which encodes the texts of its languages in their place.

    Args:
        encoder: The network.
    """

    def __init__(self, encoder: StudentEncoder):
        self.encoder = encoder

    def reads(self, text: str) -> bool:
        """Whether it is the one to encode a text."""
        return self.encoder.reads(text)

    def knows(self, term: str) -> bool:
        """Whether a word was in the texts that it learned, or looks so."""
        return self.encoder.lists(term) or self.encoder.encoder.knows(term)

    def condition(self, prompts: Sequence[str], nothing: Cond) -> Cond:
        """The condition of each text; what no text decides is that of ``nothing``, one row."""
        tokenizer, most = self.encoder.encoder.tokenizer, self.encoder.encoder.length
        for text in prompts:
            if (length := len(tokenizer.encode(normalized(text)))) > most:
                warn(
                    f"Only the first {most} of {length} tokens of {text[:40]!r} are encoded. "
                    "sample(prompt=...) encodes a long prompt in pieces."
                )
        tokens = self.encoder.encoder.tokens(prompts).to(self.encoder.places.device)
        return nothing.expand(len(prompts)).with_text(self.encoder(tokens).cond())

    def spans(self, text: str) -> Spans:
        """Which characters of the raw text each row is made of most."""
        return list(aligned(self.encoder.spans, normalized)(text))

    def measure(self, text: str) -> Spans:
        """Which characters each of its own tokens covers."""
        return list(aligned(self.encoder.encoder.tokenizer.spans, normalized)(text))


def of_several_rows(tokenizer: Any) -> dict[str, str]:
    """The added tokens of several rows, and the tokens that are read for each: "dog dog_1", as in diffusers."""
    known, found = tokenizer.get_added_vocab(), {}
    for name in known:
        names = [name]
        while f"{name}_{len(names)}" in known:
            names.append(f"{name}_{len(names)}")
        found |= {name: " ".join(names)} if len(names) > 1 else {}
    return found


def rows_of(states: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], drop: int = 0) -> Cond:
    """Token states as a condition: without padding (on either side) and the first ``drop`` tokens, masked if uneven."""
    kept = [row[real][drop:].float() for row, real in zip(states, mask, strict=True)]
    return Cond.cat([Cond(emb=row[None]) for row in kept])


def no_padding(cond: Cond) -> list[Float[Tensor, "n d"]]:
    """The token states of each row, of its own length."""
    assert cond.emb is not None
    return list(cond.emb) if cond.mask is None else [row[real] for row, real in zip(cond.emb, cond.mask, strict=True)]


def compact(cond: Cond) -> Cond:
    """The tokens of each row together, padding after them: a text in pieces has padding between them."""
    if cond.mask is None or not bool((cond.mask.int().diff(dim=1) > 0).any()):
        return cond
    return replace(cond, emb=None, mask=None).with_text(Cond.cat([Cond(emb=row[None]) for row in no_padding(cond)]))


def grouped(cond: Cond, kept: Bool[Tensor, "b n"] | None) -> list[tuple[list[int], Cond]]:
    """Rows with equally many tokens ``kept`` (None: all) together, as (indices, condition of these tokens)."""
    if kept is None or cond.emb is None:
        return [(list(range(len(cond))), cond)]
    groups: dict[int, list[int]] = {}
    for i, n in enumerate(kept.sum(1).tolist()):
        groups.setdefault(n, []).append(i)
    made = []
    for rows in groups.values():
        some, own = cond[rows], kept[rows]
        chosen = {
            name: v[own].unflatten(0, (len(rows), -1)) for name, v in some.parts().items() if name in ("emb", "mask")
        }
        made.append((rows, Cond.of(some.parts() | chosen)))
    return made


def chat(tokenizer: Any, system: str = "", **options: Any) -> Callable[[str], str]:
    """The tokenizer's chat template around a text of the user, after a system prompt if there is one."""

    def template(text: str) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        if system:
            messages = [{"role": "system", "content": system}, *messages]
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    return template
