"""Captions and labels from the files beside the images: .txt, .json, metadata.jsonl, CSV and TSV tables."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import random
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

FILE = ("file_name", "filename", "file", "image", "path", "name")
TEXT = ("text", "texts", "caption", "captions", "prompt", "description")
LABEL = ("label", "class", "category")
_LIMIT = 1 << 30  # bytes of one caption file


class Notes(NamedTuple):
    """What is written about images: captions and label by image name, and what was odd about the files."""

    captions: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    remarks: list[str]


def read_notes(root: Path, images: Iterable[str], others: Iterable[str]) -> Notes:
    """Find the captions and labels of ``images`` in the ``others`` of a folder (names relative to ``root``).

    A table (metadata.jsonl, any .csv or .tsv) names images relative to its own folder, with or without their suffix;
    a .txt or .json file speaks of the image that it is named like, every line of a .txt being a caption. Sources add
    up: several captions of an image are all kept, each once.
    """
    names = set(images)
    stems: dict[str, list[str]] = {}
    for name in sorted(names):
        stems.setdefault(_stem(name), []).append(name)
    captions: dict[str, dict[str, None]] = {}
    labels: dict[str, str] = {}
    remarks: list[str] = []
    for other in sorted(others):
        suffix, beside = PurePosixPath(other).suffix.lower(), stems.get(_stem(other), [])
        if suffix not in TABLES and not (suffix in BESIDE and beside):
            continue
        try:
            rows = (TABLES | BESIDE)[suffix](_text(root / other))
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            remarks.append(f"{other}: cannot be read ({error})")
            continue
        absent = 0
        for row in rows:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(other), str(_first(row, FILE))))
            matches = beside if suffix in BESIDE else [path] if path in names else stems.get(path, [])
            absent += not matches
            for name in matches:
                captions.setdefault(name, {}).update(dict.fromkeys(_texts(_first(row, TEXT))))
                label = _first(row, LABEL)
                if isinstance(label, float) and label.is_integer():  # as tables have them where some rows lack one
                    label = int(label)
                if isinstance(label, str | int) and str(label).strip():
                    labels[name] = str(label).strip()
        if absent:
            remarks.append(f"{other}: {absent} of {len(rows)} rows name no image here (in a column {FILE[0]!r})")
    return Notes({name: tuple(texts) for name, texts in captions.items() if texts}, labels, remarks)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _text(path: Path) -> str:
    if path.stat().st_size > _LIMIT:
        raise ValueError("larger than 1 GB")
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _txt(text: str) -> list[dict[str, Any]]:
    return [{"text": text.splitlines()}]


def _json(text: str) -> list[dict[str, Any]]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return [value]


def _jsonl(text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += _json(line) if line.strip() else []
        except ValueError:
            raise ValueError(f"line {number} is not a JSON object") from None
    return rows


def _csv(text: str, delimiter: str = ",") -> list[dict[str, Any]]:
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    table.fieldnames = [field.strip().lower() for field in table.fieldnames or ()]
    return list(table)


BESIDE = {".txt": _txt, ".caption": _txt, ".json": _json}
TABLES = {".jsonl": _jsonl, ".csv": _csv, ".tsv": partial(_csv, delimiter="\t")}


def _first(row: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def augment_captions(
    captions: Sequence[str], generator: torch.Generator, dropout: float = 0.0, shuffle: bool = False, keep: int = 1
) -> list[str]:
    """Captions for one training step: emptied with probability ``dropout``, comma-separated tags in random order.

    Args:
        captions: One per image.
        generator: All randomness.
        dropout: Share of empty captions, for classifier-free guidance.
        shuffle: Whether to shuffle tags ("cat, red, small").
        keep: How many leading tags keep their place.
    """
    out = []
    drops, seeds = (
        torch.rand(len(captions), generator=generator),
        torch.randint(2**31, (len(captions),), generator=generator),
    )
    for caption, drop, seed in zip(captions, drops.tolist(), seeds.tolist(), strict=True):
        tags = caption.split(", ")
        rest = tags[keep:]
        if shuffle:
            random.Random(seed).shuffle(rest)
        out.append("" if drop < dropout else ", ".join([*tags[:keep], *rest]))
    return out
