"""Captions and labels from the files beside the pictures: .txt, .json, metadata.jsonl, CSV and TSV tables."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

FILE = ("file_name", "filename", "file", "image", "path", "name")
TEXT = ("text", "texts", "caption", "captions", "prompt", "description")
LABEL = ("label", "class", "category")
TABLES = (".jsonl", ".csv", ".tsv")
_LIMIT = 1 << 30  # bytes of one caption file


class Notes(NamedTuple):
    """What is written about pictures: captions and label by picture name, and what was odd about the files."""

    captions: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    remarks: list[str]


def read_notes(root: Path, pictures: Iterable[str], others: Iterable[str]) -> Notes:
    """Find the captions and labels of ``pictures`` in the ``others`` of a folder (names relative to ``root``).

    A table (metadata.jsonl, any .csv or .tsv) names pictures relative to its own folder. Every line of a .txt file is
    a caption. Sources add up: several captions of a picture are all kept, each once.
    """
    names, others = set(pictures), set(others)
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
    captions: dict[str, dict[str, None]] = {}
    labels: dict[str, str] = {}
    remarks: list[str] = []
    for other in sorted(others):
        suffix = PurePosixPath(other).suffix.lower()
        beside = stems.get(str(PurePosixPath(other).with_suffix("")), []) if suffix in (".txt", ".caption", ".json") else []
        if not beside and other in names or suffix not in TABLES and not beside:
            continue
        try:
            text = _text(root / other)
            if suffix == ".json":
                rows = [{**_dict(json.loads(text)), "file_name": PurePosixPath(name).name} for name in beside]
            elif suffix in TABLES:
                rows = _rows(text, suffix)
            else:
                rows = [{"file_name": PurePosixPath(name).name, "text": text.splitlines()} for name in beside]
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            remarks.append(f"{other}: cannot be read ({error})")
            continue
        absent = 0
        for row in rows:
            name = str(PurePosixPath(other).parent / str(_first(row, FILE) or ""))
            if name not in names:
                absent += 1
                continue
            for caption in _list(_first(row, TEXT)):
                captions.setdefault(name, {})[caption] = None
            label = _first(row, LABEL)
            if isinstance(label, str | int) and str(label).strip():
                labels[name] = str(label).strip()
        if absent and absent == len(rows):
            remarks.append(f"{other}: none of its {absent} rows names a picture here (column {FILE[0]!r})")
        elif absent:
            remarks.append(f"{other}: {absent} of {len(rows)} rows name no picture here")
    return Notes({name: tuple(found) for name, found in captions.items()}, labels, remarks)


def _text(path: Path) -> str:
    if path.stat().st_size > _LIMIT:
        raise ValueError("larger than 1 GB")
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _rows(text: str, suffix: str) -> list[dict[str, Any]]:
    if suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                rows += [_dict(json.loads(line))] if line.strip() else []
            except ValueError:
                raise ValueError(f"line {number} is not a JSON object") from None
        return rows
    table = csv.DictReader(text.splitlines(), delimiter="\t" if suffix == ".tsv" else ",")
    table.fieldnames = [field.strip().lower() for field in table.fieldnames or ()]
    return list(table)


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _first(row: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _list(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [text.strip() for text in found if isinstance(text, str) and text.strip()]


def vary(
    captions: Sequence[str], generator: torch.Generator, dropout: float = 0.0, shuffle: bool = False, keep: int = 1
) -> list[str]:
    """Captions for one training step: emptied with probability ``dropout``, comma-separated tags in random order.

    Args:
        captions: One per picture.
        generator: All randomness.
        dropout: Share of empty captions, for classifier-free guidance.
        shuffle: Whether to shuffle tags ("cat, red, small").
        keep: How many leading tags keep their place.
    """
    out = []
    drops, seeds = torch.rand(len(captions), generator=generator), torch.randint(2**31, (len(captions),), generator=generator)
    for caption, drop, seed in zip(captions, drops.tolist(), seeds.tolist(), strict=True):
        tags = caption.split(", ")
        rest = tags[keep:]
        if shuffle:
            random.Random(seed).shuffle(rest)
        out.append("" if drop < dropout else ", ".join([*tags[:keep], *rest]))
    return out
