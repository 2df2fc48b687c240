"""Files are written beside their place, flushed and renamed over the old ones: a crash leaves one or the other."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, FastdiffusionError


@contextmanager
def replacing(
    path: str | os.PathLike[str], error: type[FastdiffusionError] = CheckpointError, flush: bool = True
) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place, whole and on the disk, when the block ends well.

    On any error the temporary file is gone and the old one untouched; trouble with the disk is an ``error``. Without
    ``flush`` the file is whole after a crash of the program, but not of the machine: for what can be made again.
    """
    path = Path(path)
    part = path.parent / f".{secrets.token_hex(6)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if flush:
            _flush(part)
        os.replace(part, path)
        if flush:
            _flush(path.parent)
    except OSError as trouble:
        raise error(
            f"Cannot write {path}: {trouble.strerror}. What was there is unchanged; make room or choose another place."
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no such call for folders
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(
    path: str | os.PathLike[str],
    data: bytes,
    error: type[FastdiffusionError] = CheckpointError,
    flush: bool = True,
) -> None:
    """Write a file atomically; raises ``error`` when the disk is full or the place cannot be written."""
    with replacing(path, error, flush) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode(errors="backslashreplace"))  # a file name may be no text at all


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
