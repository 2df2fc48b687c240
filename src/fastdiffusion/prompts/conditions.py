"""Prompts as conditions: every text encoded once, weighed, and told to the denoiser at its noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import guidance
from ..errors import InputError
from ..guidance import Guided
from ..types import Cond, Denoise
from .language import Line, Part, Prompt, at, moments, parse

Encode = Callable[[list[str]], Any]  # texts to a Cond with one row each: emb, mask and pooled, whichever it has
Spans = Callable[[str], Sequence[tuple[int, int]]]  # of each token's letters in a text; empty for marks of start, end


@dataclass(frozen=True)
class Stage:
    """What holds from this call of the run on: one condition and one weight (b,) for each part."""

    call: int
    conds: tuple[Cond, ...]
    weights: tuple[Tensor, ...]


@dataclass(frozen=True)
class Compiled:
    """Prompts, one for each picture of a batch, as conditions. ``guide`` makes a denoiser that follows them."""

    stages: tuple[Stage, ...]
    negative: Cond | None
    sigmas: tuple[float, ...]  # of each call

    @property
    def single(self) -> bool:
        """Whether every picture is told one text at a time: no AND, and no weight of a whole part."""
        return all(len(stage.conds) == 1 and bool((stage.weights[0] == 1).all()) for stage in self.stages)

    def guide(
        self,
        denoise: Denoise,
        scale: float = 1.0,
        guide: Callable[..., Guided] | None = None,
        around: Callable[[Denoise], Denoise] = lambda denoise: denoise,
    ) -> Denoise:
        """The denoiser that is told the prompts, under guidance.

        Args:
            denoise: The model's.
            scale: Of the guidance; 1 is off, and negative words then do nothing.
            guide: ``guidance.cfg`` or another of its form, ``guide(denoise, scale, uncond)``; parts that AND joins are
                always composed.
            around: More guidance, which is told the words too (those of parts joined by AND are told within).
        """
        guide = guide or guidance.cfg
        now = list(self.stages[:1])
        guided = guide(denoise, scale, self.negative) if self.single else _composed(denoise, now, scale, self.negative)
        return _paced(around(guided), self, now)


@guidance.guidance
def _paced(denoise: Denoise, compiled: Compiled, now: list[Stage]) -> Denoise:
    """Counts the calls of a run, so that ``now`` holds the stage of each, and tells its words if it is one text."""
    call = -1

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        nonlocal call
        call = _next(compiled.sigmas, call, float(sigma[0]))
        now[0] = [stage for stage in compiled.stages if stage.call <= call][-1]
        if compiled.single:
            cond = guidance.replace_text(cond or now[0].conds[0], now[0].conds[0], len(x))
        return denoise(x, sigma, cond)

    return guided


def _next(sigmas: Sequence[float], call: int, sigma: float) -> int:
    """The first call after ``call`` at this noise level; of a level that no call has, the last one above it."""
    same = (i for i in range(call + 1, len(sigmas)) if math.isclose(sigmas[i], sigma, rel_tol=2e-6))
    above = (i for i in reversed(range(len(sigmas))) if sigmas[i] > sigma)
    return next(same, next(above, 0))


@guidance.guidance
def _composed(denoise: Denoise, now: list[Stage], scale: float, negative: Cond | None) -> Denoise:
    """``guidance.compose`` with the parts of the stage that holds."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        scales: Any = [scale * w.to(x).reshape(-1, *[1] * (x.ndim - 1)) for w in now[0].weights]  # one per picture
        return guidance.compose(denoise, now[0].conds, scales, negative)(x, sigma, cond)

    return guided


def compile(
    prompts: Sequence[str],
    encode: Encode,
    sigmas: Sequence[float] = (1.0,),
    negative: str = "",
    spans: Spans | None = None,
    limit: int | None = None,
) -> Compiled:
    """Prompts, one for each picture, as conditions for each call of a run.

    Args:
        prompts: Choices already made (:func:`choose`); "" says nothing.
        encode: The model's text encoder.
        sigmas: Noise level of each call, in order.
        negative: What to guide away from; weights and BREAK are understood, the rest is refused.
        spans: Which letters each of the encoder's tokens covers; without it weights are refused.
        limit: Most tokens that the encoder takes, its marks included. A longer text is cut between words and encoded
            piece by piece, so that nothing of it is lost.

    Raises:
        InputError: A prompt that cannot be read, or that says what this encoder cannot do.
    """
    parsed = [parse(text) if text.strip() else Prompt((Part(((),)),)) for text in prompts]
    without = parse(negative) if negative.strip() else None
    if without and (len(without.parts) > 1 or moments(without, 12) != [0]):
        raise InputError("A negative prompt takes weights and BREAK, but neither AND nor changes during the run.")
    made = _Maker(encode, spans, limit)
    total, most = len(sigmas), max(len(prompt.parts) for prompt in parsed)
    by_call: dict[int, list[list[tuple[Line, ...]]]] = {}  # by call, part and prompt
    for call in sorted({call for prompt in parsed for call in moments(prompt, total)}):
        rows = [[tuple(at(items, call, total) for items in part.texts) for part in prompt.parts] for prompt in parsed]
        by_call[call] = [[row[k] if k < len(row) else row[0] for row in rows] for k in range(most)]  # [0]: at weight 0
    away = None if without is None else tuple(at(items, 0, 1) for part in without.parts for items in part.texts)
    wanted = [segments for parts in by_call.values() for part in parts for segments in part]
    made.prepare(wanted + ([away] if away else []))
    weights = [torch.tensor([p.parts[k].weight if k < len(p.parts) else 0.0 for p in parsed]) for k in range(most)]
    stages = [Stage(call, tuple(map(made.conds, parts)), tuple(weights)) for call, parts in by_call.items()]
    return Compiled(tuple(stages), None if away is None else made.conds([away]), tuple(sigmas))


def aligned(spans: Spans, normalize: Callable[[str], str]) -> Spans:
    """Spans of the raw text, where a tokenizer reads ``normalize(text)`` (folded case, other white space)."""

    def raw_spans(text: str) -> list[tuple[int, int]]:
        token_spans = spans(normalize(text))
        ends = [len(normalize(text[:i])) for i in range(len(text) + 1)]  # of what has become of the first i letters

        def raw_index(position: int) -> int:
            return next((i for i, end in enumerate(ends) if end >= position), len(text))

        return [(raw_index(a + 1) - 1, raw_index(b)) for a, b in token_spans]

    return raw_spans


class _Maker:
    """Encodes every text of a batch in one call, puts pieces together, and weighs their tokens."""

    def __init__(self, encode: Encode, spans: Spans | None, limit: int | None):
        self.encode, self.spans, self.limit = encode, spans, limit
        self.cut: dict[str, list[tuple[int, int]]] = {}
        self.rows: dict[str, Cond] = {}
        self.longest = 0

    def prepare(self, wanted: Sequence[tuple[Line, ...]]) -> None:
        """Encode all that the lines need."""
        texts: dict[str, None] = {}
        for segments in wanted:
            for line in segments:
                self.cut[line.text] = self._cuts(line.text)
                chunks = [line.text[a:b] for a, b in self.cut[line.text]]
                for text in _without(line).values():
                    self.cut[text] = self._cuts(text)
                    chunks += [text[a:b] for a, b in self.cut[text]]
                texts.update(dict.fromkeys(chunks))
                if line.spans and self.spans is None:
                    raise InputError("This model's text encoder tells no tokens apart, so its words take no weights.")
        encoded = self.encode(list(texts))
        self.rows = {text: encoded[i : i + 1] for i, text in enumerate(texts)}
        self.longest = max(self._length(segments) for segments in wanted)

    def _length(self, segments: tuple[Line, ...]) -> int:
        return sum(self._tokens(text[a:b]) for text, _ in segments for a, b in self.cut[text])

    def _tokens(self, chunk: str) -> int:
        emb = self.rows[chunk].emb
        return 0 if emb is None else emb.shape[1]

    def _cuts(self, text: str) -> list[tuple[int, int]]:
        """Where to cut a text whose tokens are too many: before words."""
        if self.spans is None or self.limit is None:
            return [(0, len(text))]
        spans = self.spans(text)
        capacity = self.limit - sum(a == b for a, b in spans)
        spans = [(a, b) for a, b in spans if a != b]
        starts, first = [0], 0
        while len(spans) - first > capacity:
            last = first + capacity  # the first token that has no room
            while last > first and not (spans[last][0] == 0 or text[spans[last][0]].isspace()
                                        or text[spans[last][0] - 1].isspace()):  # fmt: skip
                last -= 1
            first = last if last > first else first + capacity  # a word longer than the room is cut where it must be
            starts.append(spans[first][0])
        return list(zip(starts, [*starts[1:], len(text)], strict=True))

    def conds(self, batch: Sequence[tuple[Line, ...]]) -> Cond:
        """One row per item, all of one length."""
        return Cond.cat([self._cond(segments) for segments in batch])

    def _cond(self, segments: tuple[Line, ...]) -> Cond:
        rows: list[Any] = []
        factors: list[Tensor] = []
        pooled: list[Tensor | None] = []
        for line in segments:
            for a, b in self.cut[line.text]:
                chunk = line.text[a:b]
                rows.append(self.rows[chunk])
                factors.append(self._factors(chunk, a, line.spans))
            pooled.append(self._pooled(line))
        first = rows[0]
        if first.emb is None:
            return replace(first, pooled=_mean(pooled))
        emb = torch.cat([row.emb for row in rows], 1)
        masks = [torch.ones(row.emb.shape[:2], dtype=torch.bool) if row.mask is None else row.mask for row in rows]
        mask = torch.cat(masks, 1).to(emb.device)
        factor = torch.cat(factors).to(emb)
        if bool((factor != 1).any()):
            mean = (emb * mask[..., None]).sum(1, keepdim=True) / mask.sum().clamp(min=1)
            emb = torch.where((factor != 1)[None, :, None], mean + factor[None, :, None] * (emb - mean), emb)
        more = self.longest - emb.shape[1]
        emb, mask = functional.pad(emb, (0, 0, 0, more)), functional.pad(mask, (0, more), value=False)
        return replace(first, emb=emb, mask=mask, pooled=_mean(pooled))

    def _factors(self, chunk: str, start: int, spans: Sequence[tuple[int, int, float]]) -> Tensor:
        """The weight of each token: that of its letters, on average."""
        factors = torch.ones(self._tokens(chunk))
        weights = [1.0] * len(chunk)
        for a, b, weight in spans:
            for i in range(max(a - start, 0), min(b - start, len(chunk))):
                weights[i] = weight
        if spans and self.spans is not None and len(factors):
            for i, (a, b) in enumerate(self.spans(chunk)):
                own = [w for w, sign in zip(weights[a:b], chunk[a:b], strict=True) if not sign.isspace()]
                factors[i] = sum(own) / len(own) if own and any(w != 1 for w in own) else 1.0
        return factors

    def _pooled(self, line: Line) -> Tensor | None:
        def of(text: str) -> Tensor | None:
            return _mean([self.rows[text[a:b]].pooled for a, b in self.cut[text]])

        whole = moved = of(line.text)
        for weight, text in _without(line).items():
            less = of(text)
            if moved is not None and whole is not None and less is not None:
                moved = moved + (weight - 1) * (whole - less)
        return moved


def _without(line: Line) -> dict[float, str]:
    """For each weight the text without what has it."""
    kept = {weight: line.text for *_, weight in line.spans}
    for a, b, weight in reversed(line.spans):  # from behind: what is before stays where it is
        kept[weight] = kept[weight][:a] + kept[weight][b:]
    return kept


def _mean(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return sum(present[1:], present[0]) / len(present) if present else None
