"""Data sets of the Hugging Face hub, and any files that ``datasets`` reads: parquet, webdataset shards, ..."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from ..errors import DataError, InputError, missing
from ..io import images
from ..progress import Progress
from .cache import decode_once
from .captions import LABEL, TEXT
from .dataset import Images, digest
from .folders import checked_size, fit, natural

IMAGE = ("image", "img", "picture", "jpg", "png", "webp", "jpeg")
_VERSION = 1


def hub(
    name: str,
    size: int | None = None,
    split: str = "train",
    streaming: bool = False,
    limit: int | None = None,
    aspect: str = "crop",
    mode: str = "RGB",
    columns: dict[str, str] | None = None,
    **options: Any,
) -> Images:
    """A data set of the hub, decoded once into the cache; the network is asked only here.

    Args:
        name: As in ``datasets.load_dataset``: "owner/name", or a builder such as "webdataset" with ``data_files=``.
        size: Side of the images, 64 by default.
        split: Which part.
        streaming: Read shard after shard instead of downloading all first; the cache keeps what was read.
        limit: At most so many images.
        aspect: See :class:`ImageFolder`.
        mode: "L", "RGB" or "RGBA".
        columns: Which columns hold "image", "label" and "text", where their names do not tell.
        options: Passed on to ``datasets.load_dataset`` (``revision=``, ``data_files=``, ...).

    Raises:
        MissingExtra: ``datasets`` is not installed.
        DataError: the data set cannot be loaded, or has no images.
    """
    size = checked_size(size if size is not None else 64)
    try:
        import datasets
    except ImportError:
        raise missing(f"Loading 'hf:{name}'", "datasets", "data") from None
    if options.pop("trust_remote_code", False):
        raise InputError("trust_remote_code is never on: it would run the data set's own programs. Leave it out.")
    try:
        table = datasets.load_dataset(name, split=split, streaming=streaming, **options)
    except Exception as error:  # its errors are its own: network, names, formats, missing splits
        raise DataError(
            f"Cannot load 'hf:{name}' ({type(error).__name__}: {error}). Check the name and the split."
        ) from None
    features = table.features or {}
    column = _columns(name, features, columns or {})
    if isinstance(features.get(column["image"]), datasets.Image):
        table = table.cast_column(column["image"], datasets.Image(decode=False))  # decoded here, safely
    classes = getattr(features.get(column["label"]), "names", None)

    family = digest("hub", name, split, str(sorted(options.items())), size, aspect, mode)
    state = digest(_VERSION, limit, streaming, column, str(getattr(table, "_fingerprint", None)))
    rows = Progress(islice(table, limit), desc="reading", unit="", delay=1)
    decoded = decode_once(family, state, _decode(rows, column, classes, size, aspect, mode))
    facts = [fact for group in decoded.facts for fact in group]
    if not facts:
        raise DataError(f"None of the {len(decoded.skipped)} rows of 'hf:{name}' holds an image that can be used.")
    classes = classes or sorted({fact["label"] for fact in facts} - {""}, key=natural)
    return Images(
        name.split("/")[-1],
        decoded.arrays,
        labels=[classes.index(fact["label"]) if fact["label"] else -1 for fact in facts],
        captions=[fact["captions"] for fact in facts],
        names=[fact["name"] for fact in facts],
        classes=classes,
        shape=(len(decoded.arrays[0][0]), size, size),
        fingerprint=digest(family, state),
    )


def _columns(name: str, features: Any, chosen: dict[str, str]) -> dict[str, str]:
    """Which column is the image, the label, the text; "" where there is none."""
    absent = [column for column in chosen.values() if column not in features]
    if absent:
        raise InputError(f"'hf:{name}' has no column {absent[0]!r}. It has: {', '.join(features)}.")
    columns = {
        kind: chosen.get(kind) or next((known for known in names if known in features), "")
        for kind, names in (("image", IMAGE), ("label", (*LABEL, "cls")), ("text", (*TEXT, "txt")))
    }
    if not columns["image"]:
        raise DataError(
            f"'hf:{name}' has no image column among {', '.join(features)}. Name it: columns={{'image': '...'}}."
        )
    return columns


def _decode(
    rows: Any, column: dict[str, str], classes: list[str] | None, size: int, aspect: str, mode: str
) -> Iterator[tuple[np.ndarray | None, dict[str, Any]]]:
    for number, row in enumerate(rows):
        label, text = row.get(column["label"]), row.get(column["text"])
        if classes is not None:  # class numbers; -1 or None is "not known"
            label = classes[label] if isinstance(label, int) and label >= 0 else None
        captions = [t for t in (text if isinstance(text, list) else [text]) if isinstance(t, str) and t]
        fact = {"name": str(number), "label": "" if label is None else str(label), "captions": captions}
        try:
            yield fit(_opened(row[column["image"]]), size, aspect, mode), fact
        except DataError as error:
            yield None, {"name": str(number), "reason": str(error)}


def _opened(value: Any) -> Any:
    """A cell of the table as a PIL image: {"bytes", "path"}, bytes, or already an image."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise DataError("empty cell")
    return images.read_image(value) if isinstance(value, str | bytes) else images.plain(value)
