"""A model folder in diffusers' layout, known by its files alone: its hash, and the tables that were fitted to it.

Nothing here opens a network: ``adapters`` does.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.cache import cache_folder
from ..errors import CheckpointError, DataError
from ..io.atomic import write_json
from ..samplers import Table
from .model import Model, table_key
from .protocols import Size

INDEX = "model_index.json"
KINDS = (".json", ".txt", ".safetensors")  # files that decide what the model makes
IGNORED = frozenset({"safety_checker", "feature_extractor"})  # parts that do not


def is_folder(path: Any) -> bool:
    """Whether there is a model folder of diffusers at ``path``."""
    try:
        return isinstance(path, str | Path) and (Path(path) / INDEX).is_file()
    except (OSError, ValueError):  # a prompt too long for a name
        return False


def files(folder: Path) -> list[Path]:
    """What the hash covers: configurations, tokenizers and weights, in a fixed order."""
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir() and part.name not in IGNORED]
    paths = [folder / INDEX, *(path for part in parts for path in sorted(part.iterdir()))]
    return [path for path in paths if path.suffix in KINDS and not path.name.startswith(".") and path.is_file()]


def digest(folder: str | Path) -> str:
    """sha256 over the names and contents of the folder's files.

    A file's hash is kept in the cache with its size and time of change: 7 GB take 15 s, once. Raises CheckpointError if
    a file cannot be read.
    """
    try:
        return _digest(Path(folder).resolve())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}. Is it still there?") from None


def file_digest(path: str | Path) -> str:
    """sha256 of a file, kept in the cache likewise; raises CheckpointError if it cannot be read."""
    cache, path = _cache(), Path(path).resolve()
    try:
        result = _file_digest(path, cache)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Is it still there?") from None
    _keep(cache)
    return result


def _file_digest(path: Path, cache: dict[str, Any]) -> str:
    known: dict[str, Any] = cache.setdefault("files", {})
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns]
    if known.get(str(path), [None])[:-1] != state:
        with path.open("rb") as file:
            known[str(path)] = [*state, hashlib.file_digest(file, "sha256").hexdigest()]
    return str(known[str(path)][-1])


def _digest(folder: Path) -> str:
    cache, sha = _cache(), hashlib.sha256()
    for path in files(folder):
        sha.update(json.dumps([path.relative_to(folder).as_posix(), _file_digest(path, cache)]).encode())
    result = sha.hexdigest()
    cache.setdefault("folders", {})[result] = str(folder)
    _keep(cache)
    return result


def hashed_before(sha256: str) -> Path | None:
    """A folder on this machine that had this hash when it was last used, and still has an index."""
    path = _cache().get("folders", {}).get(sha256)
    return Path(path) if path is not None and is_folder(path) else None


def file_hashed_before(sha256: str) -> Path | None:
    """A file on this machine that had this hash when it was last used, and still is there."""
    places = (Path(path) for path, state in _cache().get("files", {}).items() if state[-1] == sha256)
    return next((path for path in places if path.is_file()), None)


def _cache() -> dict[str, Any]:
    with suppress(OSError, ValueError, DataError):
        cache = json.loads((cache_folder() / "hashes.json").read_text())
        if isinstance(cache, dict):
            return cache
    return {}


def _keep(cache: dict[str, Any]) -> None:
    with suppress(OSError, DataError, CheckpointError):
        write_json(cache_folder() / "hashes.json", cache)


# ---- fitted tables ----------------------------------------------------------------------------------------------


def tables_file(folder: str | Path) -> Path:
    """Where the folder's tables are: beside it, ``sdxl/`` and ``sdxl.tables.json``."""
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}.tables.json")


def read_tables(folder: str | Path) -> dict[str, Table]:
    """The tables that were fitted to exactly this checkpoint, by ``table_key``; a bad file is a CheckpointError."""
    places = [path for path in (tables_file(folder), *_elsewhere(folder)) if path.is_file()]
    if not places:
        return {}
    sha256, tables = digest(folder), {}
    for path in reversed(places):
        try:
            content = json.loads(path.read_text())
            if content["checkpoint"] == sha256:
                tables |= {str(key): Table.from_json(json.dumps(raw)) for key, raw in content["tables"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is no file of sampler tables ({error}). Delete it, and fit again.") from None
    return tables


def write_table(folder: str | Path, model: Model, steps: int, scale: float, size: Size, fitted: Table) -> Path:
    """Add a table to the folder's file, or to one in the cache where that place cannot be written.

    Returns where it is. What was fitted to another checkpoint of that name is dropped.
    """
    tables = {key: table for key, table in read_tables(folder).items() if key != table_key(steps, scale, size)}
    tables[table_key(steps, scale, size)] = fitted
    content = {"checkpoint": model.id, "tables": {key: asdict(table) for key, table in tables.items()}}
    try:
        write_json(tables_file(folder), content)
        return tables_file(folder)
    except (OSError, CheckpointError, DataError):
        path = cache_folder() / "tables" / f"{model.id}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, content)
        return path


def _elsewhere(folder: str | Path) -> list[Path]:
    with suppress(DataError):
        if (place := cache_folder() / "tables").is_dir():
            return [place / f"{digest(folder)}.json"]
    return []
