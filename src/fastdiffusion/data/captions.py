"""Captions and labels from the files beside the images: .txt, .json, metadata.jsonl, CSV and TSV tables."""

from __future__ import annotations

import csv
import io
import posixpath
import random
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

import torch

from ..io import untrusted_json

FILE = ("file_name", "filename", "file", "image", "path", "name")
TEXT = ("text", "texts", "caption", "captions", "prompt", "description")
LABEL = ("label", "class", "category")
GUESS = "cp1252"  # of Windows in western Europe: what is not UTF-8 is taken for it
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
    names: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for name in sorted(images):  # a Mac decomposes the letters of file names, which others write composed
        names.setdefault(normalize("NFC", name), []).append(name)
        stems.setdefault(_stem(name), []).append(name)
    captions: dict[str, dict[str, None]] = {}
    labels: dict[str, str] = {}
    remarks: list[str] = []
    guessed, alone = [], []
    for other in sorted(others):
        suffix = PurePosixPath(other).suffix.lower()
        beside = stems.get(_stem(other)) or names.get(normalize("NFC", other[: -len(suffix)])) or []  # or a.png.txt
        if suffix not in TABLES and not (suffix in BESIDE and beside):
            alone += [other] * (suffix in (".txt", ".caption") and not _hidden(other))
            continue
        try:
            text, encoding = _text(root / other)
            rows = (TABLES | BESIDE)[suffix](text)
            guessed += [other] * (encoding == GUESS)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            remarks.append(f"{other}: cannot be read ({error})")
            continue
        if suffix in TABLES:
            rows, remark = _with_columns(rows, lambda written, at=other: bool(_named(written, at, names, stems)))
            remarks += [f"{other}: {remark}"] * bool(remark)
        absent = 0
        for row in rows:
            matches = beside if suffix in BESIDE else _named(str(_first(row, FILE)), other, names, stems)
            absent += not matches
            for name in matches:
                captions.setdefault(name, {}).update(dict.fromkeys(_texts(_first(row, TEXT))))
                label = _first(row, LABEL)
                if isinstance(label, float) and label.is_integer():  # as tables have them where some rows lack one
                    label = int(label)
                if isinstance(label, str | int) and str(label).strip():
                    labels[name] = normalize("NFC", str(label).strip())
        if absent:
            remarks.append(f"{other}: {absent} of {len(rows)} rows name no image here (in a column {FILE[0]!r})")
    if guessed:
        remarks.append(f"not UTF-8, and read as {GUESS}: {_some(guessed)}")
    if alone:
        remarks.append(f"no image of this name: {_some(alone)}")
    return Notes({name: tuple(texts) for name, texts in captions.items() if texts}, labels, remarks)


def _named(written: str, table: str, *tables: dict[str, list[str]]) -> list[str]:
    """The images that a cell of ``table`` means, which is relative to the table's own folder."""
    forms = dict.fromkeys((written, written.replace("\\", "/")))  # as Windows writes paths
    paths = [posixpath.normpath(posixpath.join(posixpath.dirname(table), form)) for form in forms]
    paths = [normalize("NFC", path) for path in paths]
    return next((known[path] for known in tables for path in paths if path in known), [])


def _with_columns(rows: list[dict[str, Any]], names_image: Callable[[str], bool]) -> tuple[list[dict[str, Any]], str]:
    """The rows of a table whose columns have other names, by what the columns hold; and what was taken for what."""
    keys = list(dict.fromkeys(key for row in rows for key in row if isinstance(key, str)))
    if not rows or {*keys} & {*FILE}:
        return rows, ""
    named = {key: sum(names_image(str(row.get(key))) for row in rows) for key in keys}
    file = max(named, key=lambda key: named[key], default="")
    if named.get(file, 0) * 2 <= len(rows):
        return rows, ""
    others = {key: sum(len(str(row.get(key) or "")) for row in rows) for key in keys if key != file}
    text = "" if {*keys} & {*TEXT, *LABEL} or not others else max(others, key=lambda key: others[key])
    rows = [{**row, FILE[0]: row.get(file), **({TEXT[0]: row.get(text)} if text else {})} for row in rows]
    return rows, f"{file!r} names the images" + f", and {text!r} is taken for their captions" * bool(text)


def _stem(name: str) -> str:
    return normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _text(path: Path) -> tuple[str, str]:
    """The text of a file, and its encoding: by its mark, by the zeros that UTF-16 has, or UTF-8 where it can be."""
    if path.stat().st_size > _LIMIT:
        raise ValueError("larger than 1 GB")
    content = path.read_bytes()
    even, odd = content[::2].count(0), content[1::2].count(0)
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        encoding = "utf-16"
    elif even != odd and len(content) % 2 == 0:
        encoding = "utf-16-le" if odd > even else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError:
        return content.decode(GUESS, "replace"), GUESS


def _txt(text: str) -> list[dict[str, Any]]:
    return [{"text": text.splitlines()}]


def _json(text: str) -> list[dict[str, Any]]:
    value = untrusted_json.parsed(text)
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
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep="):  # as Excel may write it
        first, text = rest.partition("\n")[0], rest
    for other in (delimiter, ",", ";", "\t", "|"):
        if {field.strip().lower() for field in next(csv.reader([first], delimiter=other), [])} & {*FILE}:
            delimiter = other
            break
    else:  # names in another language: what parts the most
        delimiter = max(
            (delimiter, ",", ";", "\t", "|"), key=lambda sign: len(next(csv.reader([first], delimiter=sign), []))
        )
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
