"""JSON of an untrusted source: bounded, and whatever is wrong with it is one InputError, which is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError

LARGEST = 16 << 20  # characters; parsed they take at most some thirty times that


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text; raises InputError for what is none, is too long, or nested too deep."""
    if len(text) > LARGEST:
        raise InputError(f"it has {len(text):,} characters of JSON; at most {LARGEST:,} are read")
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError("its JSON is nested too deep") from None
    except ValueError as error:  # what is no JSON, no UTF-8, and numbers of thousands of digits
        raise InputError(str(error)[:200]) from None


def parsed_file(path: str | Path) -> Any:
    """The value in a file of JSON; raises what :func:`parsed` does, and OSError."""
    with Path(path).open("rb") as file:
        content = file.read(4 * LARGEST + 1)  # of a character at most four bytes
    return parsed(content if len(content) > 4 * LARGEST else _decoded(content))


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"it is no UTF-8: {error}") from None
