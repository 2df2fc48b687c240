"""run.toml: the settings of a command, written by a run and read by ``--config``."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown
from .atomic import write_bytes

NAME = "run.toml"
running: ContextVar[tuple[str, Mapping[str, Any]]] = ContextVar("running")  # the command, and its settings as typed


def keep(folder: Path, command: str, settings: Mapping[str, Any]) -> None:
    """Write run.toml into a run's folder: the running command as it was typed, or else the settings of the call."""
    plain = {k: v for k, v in settings.items() if isinstance(v, str | int | float | Path | tuple | list)}
    name, typed = running.get((command, plain))
    # whoever continues with this file does not mean to start anew again
    write_config(folder / NAME, name, {k: v for k, v in typed.items() if k != "fresh"})


def write_config(path: str | os.PathLike[str], command: str, settings: Mapping[str, Any]) -> None:
    """Write the settings of a command; those that are None or empty are its defaults, and left out.

    So is a file's name in bytes that are no text, which TOML cannot hold: a comment says so.
    """
    rows = [f"# fastdiffusion {command} --config {Path(path).name}", f"command = {_toml(command)}"]
    rows += [f"{key} = {_toml(value)}" for key, value in settings.items() if value not in (None, [], "")]
    held = [row if _is_text(row) else f"# {row.partition(' = ')[0]} is left out: it is no text" for row in rows]
    write_bytes(path, "\n".join([*held, ""]).encode())


def read_config(path: str | os.PathLike[str], command: str, known: Iterable[str]) -> dict[str, Any]:
    """The settings in a file of :func:`write_config` or by hand, as they would be typed.

    Raises InputError for a file that cannot be read, is of another command, or has a setting that is none of ``known``.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {os.fspath(path)!r}: {error.strerror}. Give a file such as run.toml.") from None
    except ValueError as error:  # no TOML, or no text
        raise InputError(f"{os.fspath(path)!r} is not TOML: {error}. A setting is a line such as: steps = 12") from None
    written = settings.pop("command", command)
    if written != command:
        raise InputError(f"{os.fspath(path)!r} is of another command: fastdiffusion {written} --config {Path(path)}")
    named = {key.replace("-", "_"): value for key, value in settings.items()}
    for key, value in named.items():
        if key not in known:
            raise unknown(f"setting of {command}", key, known)
        if isinstance(value, Mapping):
            raise InputError(f"{key} in {os.fspath(path)!r} is a table, not a value. Write: {key} = ...")
    return {key: _typed(value) for key, value in named.items()}


def _typed(value: Any) -> Any:
    return value if isinstance(value, bool) else list(map(str, value)) if isinstance(value, list) else str(value)


def _is_text(row: str) -> bool:
    try:
        return bool(row.encode())
    except UnicodeEncodeError:
        return False


def _toml(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
