"""A prompt as a tree: read, checked, written, and its text at each evaluation of a run. Pure Python."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import InputError

UP = 1.1  # what a pair of brackets multiplies by
HEAVIEST = 10.0  # weights beyond it only break images
DEEPEST = 50  # brackets in brackets
LONGEST = 500  # words; a caption has five to fifty
LETTERS = 20 * LONGEST  # characters
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NEARLY = r"(?<!\\):\s*([-+]?[\d.,][^\s()\[\]:|]*)\s*$"  # what stands where a number should, and begins like one
_WIDE = {
    ord(wide): ord(sign)
    for wide, sign in zip("（）［］｛｝｜：．０１２３４５６７８９", "()[]{}|:.0123456789", strict=True)
}
_TOKEN = re.compile(rf"\\.|:\s*{_NUMBER}\s*(?=\))|\b(?:AND|BREAK)\b|[()\[\]:|]|[^\\()\[\]:|AB]+|.", re.DOTALL)

# How prompts of other programs name files.
FILES = re.compile(r"<lora:(?P<lora>[^:<>]+)(?::(?P<scale>[-\d.]+))?[^<>]*>|\bembedding:(?P<token>[\w.-]*\w)")


# ---- the tree -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Weighted:
    """What counts ``weight`` times."""

    items: tuple[Node, ...]
    weight: float


@dataclass(frozen=True)
class Switch:
    """``before``, and from the part ``at`` (0 to 1) of the evaluations on ``after``."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    at: float


@dataclass(frozen=True)
class Alternation:
    """One of ``options`` each evaluation, round and round."""

    options: tuple[tuple[Node, ...], ...]


Node = Text | Weighted | Switch | Alternation


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins: texts that BREAK parts, and its weight."""

    texts: tuple[tuple[Node, ...], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read: all its parts hold at once."""

    parts: tuple[Part, ...]


class Line(NamedTuple):
    """Plain words at one moment, and the spans (start, end, weight) of those that do not count once."""

    text: str
    spans: tuple[tuple[int, int, float], ...]


# ---- reading ------------------------------------------------------------------------------------------------------


def several(text: str | Iterable[str]) -> list[str]:
    """One prompt per line, or as given; empty lines are none."""
    candidates = text.split("\n") if isinstance(text, str) else list(text)
    prompts = [line.strip() for line in candidates if line.strip()]
    if not prompts:
        raise InputError("The prompt is empty. Say what to draw, e.g. 'a cat with heart eyes'.")
    return prompts


def narrow(text: str) -> str:
    """The signs of the language that a Japanese or Chinese keyboard writes in full width as the usual ones."""
    return re.sub(r"\\.|.", lambda m: m[0] if len(m[0]) > 1 else m[0].translate(_WIDE), text, flags=re.DOTALL)


def choose(text: str, seed: int, wildcards: Mapping[str, Sequence[str]] | None = None) -> str:
    """Make the choices of ``{red|blue}`` and of ``__color__``, which draws from ``wildcards["color"]``, by ``seed``."""
    _check_length(text)
    draw, text = random.Random(seed), narrow(text)
    if wildcards:

        def one_of(match: re.Match[str]) -> str:
            if match[1] not in wildcards:
                raise InputError(f"No wildcard named {match[1]!r}. Known: {', '.join(sorted(wildcards))}.")
            return "{" + "|".join(wildcards[match[1]]) + "}"

        text = re.sub(r"__([\w-]+?)__", one_of, text)
        _check_length(text)
    options: list[list[str]] = [[""]]  # of each open brace; at the bottom the text itself, whose bars are no choices
    for sign in re.findall(r"\\.|.", text, re.DOTALL):
        if sign == "{":
            options.append([""])
        elif sign == "|" and len(options) > 1:
            options[-1].append("")
        elif sign == "}":
            if len(options) == 1:
                raise InputError(f"The prompt {_short(text)} closes a brace that is not open. Write \\}} for the sign.")
            made = options.pop()
            options[-1][-1] += made[int(draw.random() * len(made))]
        else:
            options[-1][-1] += sign if sign not in ("\\{", "\\}") else sign[1]
    if len(options) > 1:
        raise InputError(f"The prompt {_short(text)} has a brace that is never closed. Write \\{{ for the sign itself.")
    return options[0][0]


def parse(text: str) -> Prompt:
    """Read a prompt, choices already made.

    Raises:
        InputError: It is empty or too long, brackets do not match, or a weight or moment is out of range.
    """
    _check_length(text)
    parser = _Parser(narrow(text))
    parts = parser.parts()
    prompt = Prompt(tuple(parts))
    if not any(at(text, 0, 1).text or at(text, 1, 1).text for part in parts for text in part.texts):
        raise InputError("The prompt is empty. Say what to draw, e.g. 'a cat with heart eyes'.")
    return prompt


def _check_length(text: str) -> None:
    """Refuse what is no prompt: all that follows may take time that grows with the square of its length."""
    if len(text.split()) > LONGEST:
        raise InputError(f"The prompt has {len(text.split())} words; at most {LONGEST} are read. Shorten it.")
    if len(text) > LETTERS:
        raise InputError(f"The prompt has {len(text):,} characters; at most {LETTERS:,} are read. Shorten it.")
    if any("\ud800" <= sign <= "\udfff" for sign in text):  # bytes of a command line in another encoding
        raise InputError(f"The prompt {_short(text)} is no text in the encoding of this system. Try UTF-8.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _weight(text: str, of: str, low: float = 0.0) -> float:
    value = float(text)
    if not low <= value <= HEAVIEST:
        raise InputError(
            f"The weight {text} of {_short(of)} must be from {low:g} to {HEAVIEST:g}. Usual is 0.5 to 1.5."
        )
    return value


def _number_meant(source: str, kind: str, example: str) -> None:
    """Raise InputError where the end of ``source`` is nearly a number: it would be drawn as a word."""
    match = re.search(_NEARLY, source)
    if match is not None:
        raise InputError(
            f"The {kind} {match[1]!r} in {_short(source)} cannot be read: one number with a point, such as {example}. "
            "Write \\: for the sign itself."
        )


class _Parser:
    """Recursive descent over the signs of a prompt."""

    def __init__(self, text: str):
        self.text = text
        self.signs = [(m.start(), m[0]) for m in _TOKEN.finditer(text)]
        self.i = 0

    def peek(self) -> str:
        return self.signs[self.i][1] if self.i < len(self.signs) else ""

    def parts(self) -> list[Part]:
        parts, texts = [], [self.items(0, ("AND", "BREAK"))]
        joined = any(sign == "AND" for _, sign in self.signs)
        while True:
            ended, self.i = self.peek(), self.i + 1
            if ended == "BREAK":
                texts.append(self.items(0, ("AND", "BREAK")))
                continue
            weight = 1.0
            if joined:
                texts[-1], weight = self._trailing(texts[-1])
            kept = tuple(text for text in map(_stripped, texts) if text)
            parts.append(Part(kept or ((),), weight))
            if not ended:
                return parts
            texts = [self.items(0, ("AND", "BREAK"))]

    @staticmethod
    def _trailing(items: tuple[Node, ...]) -> tuple[tuple[Node, ...], float]:
        """Cut ``: number`` off the end of a part."""
        last = items[-1] if items else None
        match = re.search(rf":\s*({_NUMBER})\s*$", last.text) if isinstance(last, Text) else None
        if not isinstance(last, Text) or match is None:
            if isinstance(last, Text) and re.search(r":\s*\d+,\d+\s*$", last.text):
                _number_meant(last.text, "weight", "a AND b:0.5")
            return items, 1.0
        left = last.text[: match.start()]
        return (*items[:-1], *_text(left)), _weight(match[1], left.strip(), -HEAVIEST)

    def items(self, depth: int, ends: tuple[str, ...]) -> tuple[Node, ...]:
        """What stands until one of ``ends`` or the end of the prompt, neither of which is taken."""
        if depth > DEEPEST:
            raise InputError(f"The prompt {_short(self.text)} has brackets more than {DEEPEST} deep. Write (word:1.5).")
        nodes: list[Node] = []
        while (sign := self.peek()) and sign not in ends:
            start = self.signs[self.i][0]
            if sign.startswith(":") and len(sign) > 1 and ")" in ends:
                break
            self.i += 1
            if sign in ("(", "["):
                nodes.append(self.round(depth, start) if sign == "(" else self.square(depth, start))
            elif sign in (")", "]"):
                raise InputError(
                    f"The bracket {sign!r} at character {start + 1} of {_short(self.text)} closes nothing. "
                    f"Open it, or write \\{sign} for the sign itself."
                )
            elif depth and sign in ("AND", "BREAK"):
                raise InputError(f"{sign} joins whole texts and cannot stand in brackets, as in {_short(self.text)}.")
            else:
                text = sign[1:] if sign.startswith("\\") and len(sign) > 1 else sign
                if nodes and isinstance(nodes[-1], Text):
                    text = nodes.pop().text + text  # pyright: ignore[reportAttributeAccessIssue]
                nodes.append(Text(text))
        return tuple(nodes)

    def close(self, bracket: str, start: int) -> None:
        if not self.peek():
            raise InputError(
                f"The bracket {bracket!r} at character {start + 1} of {_short(self.text)} is never closed. "
                f"Close it, or write \\{bracket} for the sign itself."
            )
        self.i += 1

    def _since(self, start: int) -> str:
        """The source from ``start`` to the present sign."""
        return self.text[start : self.signs[self.i][0] if self.i < len(self.signs) else None]

    def round(self, depth: int, start: int) -> Node:
        items, weight = self.items(depth + 1, (")",)), UP
        _number_meant(self._since(start), "weight", "(cat:1.3)")
        if self.peek().startswith(":"):
            weight = _weight(self.peek()[1:].strip(), self.text[start:])
            self.i += 1
        self.close("(", start)
        return Weighted(items, weight)

    def square(self, depth: int, start: int) -> Node:
        fields, marks = [self.items(depth + 1, (":", "|", "]"))], ""
        while self.peek() in (":", "|") and self.peek():
            marks += self.peek()
            self.i += 1
            fields.append(self.items(depth + 1, (":", "|", "]")))
        source = self._since(start)
        self.close("[", start)
        if marks and set(marks) == {"|"}:
            return Alternation(tuple(fields))
        last = "".join(node.text if isinstance(node, Text) else "?" for node in fields[-1]).strip()
        if marks in (":", "::") and re.fullmatch(_NUMBER, last):
            if not 0 <= float(last) <= 1:
                raise InputError(
                    f"The moment {last} in {_short(self.text)} must be from 0 to 1, a part of the run. Try 0.4."
                )
            return Switch(() if marks == ":" else fields[0], fields[-2], float(last))
        _number_meant(source, "moment", "[cat:dog:0.4]")
        joined = list(fields[0])
        for mark, field in zip(marks, fields[1:], strict=True):  # colons that mean nothing: text
            joined += [Text(mark), *field]
        return Weighted(_merged(joined), 1 / UP)


def _merged(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Neighboring texts as one."""
    merged: list[Node] = []
    for node in nodes:
        if merged and isinstance(node, Text) and isinstance(last := merged[-1], Text):
            merged[-1] = Text(last.text + node.text)
        else:
            merged.append(node)
    return tuple(merged)


def _stripped(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Without the space round a text."""
    if items and isinstance(items[0], Text):
        items = (*_text(items[0].text.lstrip()), *items[1:])
    if items and isinstance(items[-1], Text):
        items = (*items[:-1], *_text(items[-1].text.rstrip()))
    return items


def _text(text: str) -> tuple[Node, ...]:
    return (Text(text),) if text else ()


# ---- writing, and the text at an evaluation -----------------------------------------------------------------------


def write(prompt: Prompt) -> str:
    """The prompt as text; reading it again gives an equal tree."""
    written = []
    for part in prompt.parts:
        text = " BREAK ".join(_written(items) for items in part.texts)
        written.append(text if part.weight == 1 and len(prompt.parts) == 1 else f"{text}:{part.weight!r}")
    return " AND ".join(written)


def plain(text: str) -> str:
    """The prompt that means these words and nothing else: every sign of the language is escaped."""
    return re.sub(r"([\\()\[\]{}|:（）［］｛｝｜：．０-９])|\b(?=AND\b|BREAK\b)", lambda m: f"\\{m[1] or ''}", text)


def _written(items: Sequence[Node]) -> str:
    out = ""
    for node in items:
        match node:
            case Text(text):
                out += plain(text)
            case Weighted(inner, weight):
                out += f"({_written(inner)}:{weight!r})"
            case Switch(before, after, moment):
                out += f"[{_written(before)}:{_written(after)}:{moment!r}]"
            case Alternation(options):
                out += f"[{'|'.join(map(_written, options))}]"
    return out


def at(items: Sequence[Node], index: int, of: int) -> Line:
    """The words at evaluation ``index`` of a run of ``of``, white space made single, with their weights."""
    signs: list[tuple[str, float]] = []

    def walk(nodes: Sequence[Node], weight: float) -> None:
        for node in nodes:
            match node:
                case Text(text):
                    signs.extend((sign, weight) for sign in text)
                case Weighted(inner, factor):
                    walk(inner, weight * factor)
                case Switch(before, after, moment):
                    walk(after if index >= moment * of else before, weight)
                case Alternation(options):
                    walk(options[index % len(options)], weight)

    walk(items, 1.0)
    text, weights = "", list[float]()
    for sign, weight in signs:
        if not sign.isspace():
            text += sign
            weights.append(weight)
        elif text and not text.endswith(" "):
            text += " "
            weights.append(1.0)
    text = text.rstrip()
    spans: list[tuple[int, int, float]] = []
    for i, weight in enumerate(weights[: len(text)]):
        if weight > HEAVIEST:
            raise InputError(f"The brackets round {text[i : i + 20]!r} multiply to {weight:.3g}; at most {HEAVIEST:g}.")
        if spans and spans[-1][1] == i and spans[-1][2] == weight:
            spans[-1] = (spans[-1][0], i + 1, weight)
        elif weight != 1:
            spans.append((i, i + 1, weight))
    return Line(text, tuple(spans))


def moments(prompt: Prompt, total: int) -> list[int]:
    """The evaluations at which the words change, 0 first."""
    texts = [[at(items, i, total) for part in prompt.parts for items in part.texts] for i in range(total)]
    return [i for i in range(total) if i == 0 or texts[i] != texts[i - 1]]


def unknown_words(prompt: str, knows: Callable[[str], bool]) -> list[str]:
    """The words of a prompt for which ``knows(word)`` is False, each once."""
    tokens = re.findall(r"[^\W\d_]+", re.sub(r"\b(?:AND|BREAK)\b", " ", prompt).lower())
    return list(dict.fromkeys(token for token in tokens if not knows(token)))


def _elsewhere(match: re.Match[str]) -> str:
    """What to say of a file that a prompt names, as those of other programs do."""
    if match["token"]:
        return f"{match[0]} is text here: for that embedding add --lora {match['token']}.safetensors."
    scale = f":{match['scale']}" if match["scale"] else ""
    return f"{match[0]} is text here: for that LoRA add --lora {match['lora']}.safetensors{scale}, and leave it out."


def notes(conditioner: Any, texts: Iterable[str]) -> list[str]:
    """What a conditioner has to say about prompts (choices made), each sentence once."""
    sentences: dict[str, None] = {}
    for text in dict.fromkeys(text for text in texts if text.strip()):
        sentences.update((_elsewhere(match), None) for match in FILES.finditer(text))
        if not hasattr(conditioner, "notes"):
            if strange := conditioner.unknown_words(text):
                sentences[f"The model was not trained on {', '.join(strange)}: it may ignore it."] = None
            continue
        prompt = parse(text)
        texts_of_run = (at(items, i, 12).text for part in prompt.parts for items in part.texts for i in range(12))
        sentences.update(
            (note, None) for line in dict.fromkeys(texts_of_run) if line for note in conditioner.notes(line)
        )
    return list(sentences)
