"""Decode once: images, kept as raw uint8 in the user's cache folder under a hash of where they came from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import DataError

MAX_RAM_BYTES = 1 << 29  # bytes; a larger array is left on disk and mapped


def cache_folder() -> Path:
    """Where caches go: $XDG_CACHE_HOME/fastdiffusion, ~/.cache/fastdiffusion, or a private temporary folder.

    The folder exists and can be written to. Deleting it is always safe.
    """
    home, user = os.path.expanduser("~"), getattr(os, "getuid", int)()
    bases = [os.environ.get("XDG_CACHE_HOME"), os.path.join(home, ".cache") if os.path.isabs(home) else None]
    places = [
        *(Path(base) / "fastdiffusion" for base in bases if base),
        Path(tempfile.gettempdir()) / f"fastdiffusion-{user}",
    ]
    for folder in places:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = folder.stat().st_uid
        except OSError:
            continue
        if owner == user and os.access(folder, os.W_OK | os.X_OK):  # not a folder that somebody else laid ready
            return folder
    raise DataError("No folder can be written to for the cache. Name one: XDG_CACHE_HOME=/some/folder.")


class Decoded(NamedTuple):
    """Images by size, each row with its facts, and what could not be read."""

    arrays: list[np.ndarray]
    facts: list[list[dict[str, Any]]]
    skipped: list[dict[str, Any]]


def decode_once(family: str, key: str, items: Iterable[tuple[np.ndarray | None, dict[str, Any]]]) -> Decoded:
    """The images that ``items`` yields, from the cache if they are there.

    Args:
        family: What the images are (a folder and options); a new key replaces the old one of the same family.
        key: Their state: changes whenever the images would.
        items: Pairs of an image, uint8 (c, h, w), and its facts (JSON); None instead of an image that was skipped.
            Not touched when the cache answers.
    """
    place = cache_folder() / "data" / family
    decoded = _load(place / key)
    if decoded is not None:
        return decoded
    try:
        shutil.rmtree(place / key, ignore_errors=True)  # damaged, or not there
        place.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=place))
        try:
            _write(temporary, items)
            with suppress(OSError):  # another process was faster, with the same images
                temporary.rename(place / key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        decoded = _load(place / key)
        for old in place.iterdir():
            if old.name != key and not _half_written(old):
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"Cannot keep the decoded images in {str(place.parent)!r}: {error.strerror}. "
            "Name a folder with more room: XDG_CACHE_HOME=/some/folder."
        ) from None
    if decoded is None:
        raise DataError(f"The decoded images in {str(place)!r} cannot be read back. Remove that folder and try again.")
    return decoded


def _half_written(folder: Path) -> bool:
    """Whether another process is writing here, or has just given it its name: two of one run begin together."""
    try:
        return folder.name.startswith(".") and time.time() - folder.stat().st_mtime < 86400
    except FileNotFoundError:
        return True


def _write(folder: Path, items: Iterable[tuple[np.ndarray | None, dict[str, Any]]]) -> None:
    files: dict[str, BinaryIO] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    skipped = []
    with ExitStack() as stack:
        for pixels, fact in items:
            if pixels is None:
                skipped.append(fact)
                continue
            size = "x".join(map(str, pixels.shape))
            if size not in files:  # plain writes, not a map: a full disk is then an error and not a killed process
                files[size] = stack.enter_context((folder / size).open("wb"))
            files[size].write(np.ascontiguousarray(pixels).data)
            facts.setdefault(size, []).append(fact)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    (folder / "index.json").write_text(json.dumps({"facts": facts, "skipped": skipped}), encoding="ascii")


def _load(folder: Path) -> Decoded | None:
    """What :func:`_write` wrote, or None where it is not there, cut or damaged."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="ascii"))
        arrays = []
        for size, rows in index["facts"].items():
            shape = (len(rows), *map(int, size.split("x")))
            if (folder / size).stat().st_size != np.prod(shape, dtype=np.int64):
                return None
            if np.prod(shape, dtype=np.int64) > MAX_RAM_BYTES:
                arrays.append(np.memmap(folder / size, np.uint8, "r", shape=shape))
            else:
                arrays.append(np.fromfile(folder / size, np.uint8).reshape(shape))
        return Decoded(arrays, list(index["facts"].values()), index["skipped"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
