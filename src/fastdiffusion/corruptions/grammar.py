"""Corruptions as text, the same on the command line, in Python, in the app and in model files.

    gray, blur 1.5, jpeg 30          one after the other
    blur 0.5..3                      a range: drawn for each image
    blur                             its usual range
    (blur 1..3 | noise 0.1), jpeg 40 one of them
    watermark 'SAMPLE' 0.5           texts in quotes, or as they are if they are one word

``str`` of what is parsed is the text again.
"""

from __future__ import annotations

import re

from ..errors import InputError, unknown
from ..io.guarded import BUDGET
from .core import CORRUPTIONS, Corruption, OneOf, Step, sequence

_TOKEN = re.compile(
    r"""\s*(?:(?P<range>(?P<low>-?\d+(?:\.\d+)?(?:e-?\d+)?)\.\.(?P<high>-?\d+(?:\.\d+)?(?:e-?\d+)?)(?=[\s,|()]|$))
    |(?P<number>-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?=[\s,|()]|$)|(?P<factor>x(?P<times>\d+(?:\.\d+)?)(?=[\s,|()]|$))
    |(?P<text>'[^']*'|"[^"]*")|(?P<word>[\w./\\~:-]+)|(?P<sign>[,|()]))""",
    re.VERBOSE,
)


def parse(text: str | Corruption) -> Corruption:
    """The corruption that ``text`` describes; raises InputError that names the nearest one, or where it breaks off."""
    if isinstance(text, Corruption):
        return text
    BUDGET.check(characters=len(text))
    tokens = _tokens(text)
    depth = 0
    for token in tokens:
        depth += (token == ("sign", "(")) - (token == ("sign", ")"))
        BUDGET.check(depth=depth)
    made, rest = _either(tokens, text)
    if rest:
        raise InputError(f"{text!r} goes on with {rest[0][1]!r} where it should end. {_HELP}")
    return made


_HELP = "Example: gray, blur 1.5, jpeg 30 (ranges: blur 0.5..3; one of two: blur 2 | noise 0.1)."
Token = tuple[str, object]


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InputError(f"Cannot read {text[at:].strip()[:20]!r} in {text!r}. {_HELP}")
        kind = next(k for k in ("range", "number", "factor", "text", "word", "sign") if match[k] is not None)
        value: object = {
            "range": lambda m=match: (float(m["low"]), float(m["high"])),
            "number": lambda m=match: float(m["number"]),
            "factor": lambda m=match: float(m["times"]),
            "text": lambda m=match: m["text"][1:-1],
            "word": lambda m=match: m["word"],
            "sign": lambda m=match: m["sign"],
        }[kind]()
        tokens.append(("number" if kind == "factor" else kind, value))
        at = match.end()
    return tokens


def _either(tokens: list[Token], text: str) -> tuple[Corruption, list[Token]]:
    part, tokens = _after(tokens, text)
    parts = [part]
    while tokens and tokens[0] == ("sign", "|"):
        part, tokens = _after(tokens[1:], text)
        parts.append(part)
    return (parts[0] if len(parts) == 1 else OneOf(tuple(parts))), tokens


def _after(tokens: list[Token], text: str) -> tuple[Corruption, list[Token]]:
    part, tokens = _one(tokens, text)
    parts = [part]
    while tokens and tokens[0] == ("sign", ","):
        part, tokens = _one(tokens[1:], text)
        parts.append(part)
    return sequence(parts), tokens


def _one(tokens: list[Token], text: str) -> tuple[Corruption, list[Token]]:
    if tokens and tokens[0] == ("sign", "("):
        part, tokens = _either(tokens[1:], text)
        if not tokens or tokens[0] != ("sign", ")"):
            raise InputError(f"A parenthesis in {text!r} is not closed. {_HELP}")
        return part, tokens[1:]
    if not tokens or tokens[0][0] != "word":
        got = f"{tokens[0][1]!r}" if tokens else "nothing more"
        raise InputError(f"{text!r} has {got} where the name of a corruption should stand. {_HELP}")
    name = str(tokens[0][1])
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    end = 1
    while end < len(tokens) and tokens[end][0] != "sign":
        end += 1
    values = [value for _, value in tokens[1:end]]
    wanted = list(CORRUPTIONS[name].parameters.values())
    for i, value in enumerate(values[: len(wanted)]):  # a word that is written like a number: jpeg 30 420
        if isinstance(value, float) and not hasattr(wanted[i], "least"):
            values[i] = f"{value:g}"
    try:
        return Step(name, tuple(values)), tokens[end:]
    except InputError as error:
        near = [value for value in values if value in CORRUPTIONS]
        comma = f" Put a comma before {near[0]!r}." if near else ""
        raise InputError(f"{error}{comma}") from None
