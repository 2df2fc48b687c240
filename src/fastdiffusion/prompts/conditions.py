"""Prompts as conditions: every text encoded once, weighted, and put in force at its evaluations of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import guidance
from ..errors import InputError
from ..guidance import Guided
from ..guidance.core import to_rows
from ..types import Cond, Denoise, Run
from .language import Line, Part, Prompt, at, moments, parse

Encode = Callable[[list[str]], Any]  # texts to a Cond with one row each: emb, mask and pooled, whichever it has
Spans = Callable[[str], Sequence[tuple[int, int]]]  # of each token's letters in a text; empty for marks of start, end
Reader = tuple[Encode, Spans | None, int | None]  # how texts are encoded, their spans, and most tokens


@dataclass(frozen=True)
class Stage:
    """What holds from evaluation ``first`` of the run on: one condition and one weight (b,) for each part."""

    first: int
    conds: tuple[Cond, ...]
    weights: tuple[Tensor, ...]


@dataclass(frozen=True)
class Compiled:
    """Prompts, one for each image of a batch, as conditions. ``guide`` makes a denoiser that follows them.

    Attributes:
        stages: In order; the first holds from evaluation 0 on.
        negative: What to guide away from; None is the condition without its text.
        evaluations: Of the run that the stages were made for; in a longer one they hold proportionally longer.
    """

    stages: tuple[Stage, ...]
    negative: Cond | None
    evaluations: int

    @property
    def single(self) -> bool:
        """Whether every image has one text at a time: no AND, and no weight of a whole part."""
        return all(len(stage.conds) == 1 and bool((stage.weights[0] == 1).all()) for stage in self.stages)

    def stage(self, run: Run) -> Stage:
        """The stage that holds at the present evaluation."""
        if len(self.stages) == 1:
            return self.stages[0]
        if not run.sigmas:
            raise InputError(
                "A prompt that changes during the run needs a sampler with a fixed number of evaluations, and an "
                "adaptive solver has none. Take one of samplers.SAMPLERS, or a prompt without [a:b:0.5] and [a|b]."
            )
        index = run.index * self.evaluations // len(run.sigmas)
        return next(stage for stage in reversed(self.stages) if stage.first <= index)

    def guide(
        self,
        denoise: Denoise,
        scale: float = 1.0,
        guide: Callable[..., Guided] | None = None,
        around: Callable[[Denoise], Denoise] = lambda denoise: denoise,
    ) -> Denoise:
        """The denoiser conditioned on the prompts, under guidance.

        Args:
            denoise: The model's.
            scale: Of the guidance; 1 is off, and a negative prompt then does nothing.
            guide: ``guidance.cfg`` or another of its form, ``guide(denoise, scale, uncond)``; parts that AND joins are
                always composed.
            around: More guidance, which gets the prompts' condition too (parts joined by AND are composed inside it).
        """
        guide = guide or guidance.cfg
        if self.negative is not None and scale == 1:
            denoise = _filled(denoise, self.negative)
        guided = guide(denoise, scale, self.negative) if self.single else _composed(denoise, self, scale)
        guided = around(guided)
        return _conditioned(guided, self) if self.single else guided


@guidance.guidance
def _conditioned(denoise: Denoise, compiled: Compiled, *, run: Run) -> Denoise:
    """Conditions on the one text of the stage that holds."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        (text,) = compiled.stage(run).conds
        return denoise(x, sigma, guidance.replace_text(cond or text, text, len(x)))

    return guided


@guidance.guidance
def _filled(denoise: Denoise, negative: Cond) -> Denoise:
    """The negative prompt in rows whose text is hidden: what guidance outside compares with, if it is not said."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        hidden = [] if cond is None or cond.mask is None else (~cond.mask.any(1)).tolist()
        if cond is not None and any(hidden):
            other = guidance.replace_text(cond, negative, len(x))
            cond = Cond.cat([(other if gone else cond)[[i]] for i, gone in enumerate(hidden)])
        return denoise(x, sigma, cond)

    return guided


@guidance.guidance
def _composed(denoise: Denoise, compiled: Compiled, scale: float, *, run: Run) -> Denoise:
    """``guidance.compose`` with the parts of the stage that holds."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        stage = compiled.stage(run)
        shape = (-1, *[1] * (x.ndim - 1))
        scales: Any = [scale * to_rows(w, len(x)).to(x).reshape(shape) for w in stage.weights]  # one per image
        composed = guidance.compose(denoise, stage.conds, scales, compiled.negative)
        return guidance.start(composed, run)(x, sigma, cond)

    return guided


def compile(
    prompts: Sequence[str],
    encode: Encode,
    evaluations: int | None = None,
    negative: str = "",
    spans: Spans | None = None,
    limit: int | None = None,
    uncond: Cond | None = None,
    measure: Spans | None = None,
    reader: Reader | None = None,
) -> Compiled:
    """Prompts, one for each image, as conditions for each evaluation of a run.

    Args:
        prompts: Choices already made (:func:`choose`); "" is the empty text.
        encode: The model's text encoder.
        evaluations: How many the run makes (``table.nfe``); needed where a prompt changes on the way.
        negative: What to guide away from; weights and BREAK are understood, the rest is refused.
        spans: Which letters each of the encoder's tokens covers; without it weights are refused.
        limit: Most tokens that the encoder takes, its marks included. A longer text is cut between words and encoded
            piece by piece, so that nothing of it is lost.
        uncond: The model's unconditional case (``conditioner.null``), used where ``negative`` is empty.
        measure: The spans that ``limit`` counts, where ``spans`` are of several encoders' tokens in turn.
        reader: What encodes ``negative``, its spans and its limit, where that is not what encodes the prompts.

    Raises:
        InputError: A prompt that cannot be read, or that this encoder cannot follow.
    """
    parsed = [parse(text) if text.strip() else Prompt((Part(((),)),)) for text in prompts]
    if evaluations is None and any(moments(prompt, 12) != [0] for prompt in parsed):
        raise InputError("This prompt changes during the run. Say how many evaluations that has: evaluations=12.")
    without = parse(negative) if negative.strip() else None
    if without and (len(without.parts) > 1 or moments(without, 12) != [0]):
        raise InputError("A negative prompt takes weights and BREAK, but neither AND nor changes during the run.")
    made = _Maker(encode, spans, limit, measure or spans)
    negatives = made if reader is None else _Maker(*reader, reader[1])
    total, most = evaluations or 1, max(len(prompt.parts) for prompt in parsed)
    changes: dict[int, list[list[tuple[Line, ...]]]] = {}  # by evaluation, part and prompt
    for i in sorted({i for prompt in parsed for i in moments(prompt, total)}):
        rows = [[tuple(at(items, i, total) for items in part.texts) for part in prompt.parts] for prompt in parsed]
        changes[i] = [[row[k] if k < len(row) else row[0] for row in rows] for k in range(most)]  # [0]: at weight 0
    away = None if without is None else tuple(at(items, 0, 1) for part in without.parts for items in part.texts)
    wanted = [segments for parts in changes.values() for part in parts for segments in part]
    made.prepare(wanted + ([away] if away and negatives is made else []))
    if away and negatives is not made:
        negatives.prepare([away])
    weights = [torch.tensor([p.parts[k].weight if k < len(p.parts) else 0.0 for p in parsed]) for k in range(most)]
    stages = []
    for i, parts in changes.items():
        conds = tuple(map(made.conds, parts))
        device = next((v.device for v in vars(conds[0]).values() if isinstance(v, Tensor)), None)
        stages.append(Stage(i, conds, tuple(w.to(device) for w in weights)))
    return Compiled(tuple(stages), uncond if away is None else negatives.conds([away]), total)


def aligned(spans: Spans, normalize: Callable[[str], str]) -> Spans:
    """Spans of the raw text, where a tokenizer reads ``normalize(text)`` (folded case, other white space)."""

    def raw_spans(text: str) -> list[tuple[int, int]]:
        token_spans = spans(normalize(text))
        ends = [len(normalize(text[:i])) for i in range(len(text) + 1)]  # of what has become of the first i letters

        def raw_index(position: int) -> int:
            return next((i for i, end in enumerate(ends) if end >= position), len(text))

        return [(raw_index(a + 1) - 1, raw_index(b)) for a, b in token_spans]

    return raw_spans


def cuts(text: str, measure: Spans | None, limit: int | None) -> list[tuple[int, int]]:
    """Where to cut a text whose tokens are more than ``limit``: before words. Each piece is encoded on its own."""
    if measure is None or limit is None:
        return [(0, len(text))]
    spans = measure(text)
    capacity = limit - sum(a == b for a, b in spans)
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


class _Maker:
    """Encodes every text of a batch at once, puts pieces together, and weights their tokens."""

    def __init__(self, encode: Encode, spans: Spans | None, limit: int | None, measure: Spans | None):
        self.encode, self.spans, self.limit, self.measure = encode, spans, limit, measure
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
                    raise InputError(
                        "This model's text encoder has no token spans: its words take no weights. Leave (a:1.2) out."
                    )
        encoded = self.encode(list(texts))
        self.rows = {text: encoded[i : i + 1] for i, text in enumerate(texts)}
        self.longest = max(self._length(segments) for segments in wanted)

    def _length(self, segments: tuple[Line, ...]) -> int:
        return sum(self._tokens(text[a:b]) for text, _ in segments for a, b in self.cut[text])

    def _tokens(self, chunk: str) -> int:
        emb = self.rows[chunk].emb
        return 0 if emb is None else emb.shape[1]

    def _cuts(self, text: str) -> list[tuple[int, int]]:
        return cuts(text, self.measure, self.limit)

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
