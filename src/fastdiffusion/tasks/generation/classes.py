"""The classes that are asked for, by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from ...errors import InputError
from ...models import Model
from .options import SampleOptions


def labels_of(model: Model, chosen: SampleOptions) -> list[int] | None:
    """The class of each image: those that were asked for, or all, round and round."""
    classes = chosen.classes
    if classes is None:
        wanted: Sequence[Any] = range(len(model.classes))
    elif isinstance(classes, str):
        wanted = _split_classes(classes, model.classes)
    else:
        wanted = [classes] if isinstance(classes, str | int) else classes
    wanted = [-1 if label == "none" and "none" not in model.classes else label for label in wanted]
    if not wanted and classes is not None:
        raise InputError(f"{classes!r} names no class. Leave classes out for all in turn, or take 'none'.")
    if not wanted or (not model.classes and set(wanted) == {-1}):
        return None
    cond = model.cond(wanted)
    indices = [] if cond is None or cond.label is None else cond.label.tolist()
    return [indices[i % len(indices)] for i in range(chosen.n)]


def _split_classes(text: str, known: Sequence[str]) -> list[str]:
    """The classes between commas; a comma inside a known name is its own, and the longest name counts."""
    parts, wanted = text.split(","), []
    names = {normalize("NFC", name) for name in known}
    while parts:
        ends = range(len(parts), 0, -1)
        length = next((i for i in ends if normalize("NFC", ",".join(parts[:i]).strip()) in names), 1)
        wanted.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return [name for name in wanted if name]
