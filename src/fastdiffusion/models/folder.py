"""A checkpoint of another program, known by its files alone: its hash, and the tables that were fitted to it.

It is a folder in diffusers' layout, or one file. Nothing here opens a network: ``adapters`` does.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.cache import cache_folder
from ..errors import CheckpointError, DataError
from ..io import untrusted_json
from ..io.atomic import write_json
from ..io.checkpoints import is_own
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


def whole(path: str | Path) -> str | Path:
    """The folder of an index that was given in its place; anything else as it is."""
    return Path(path).parent if Path(path).name == INDEX and is_folder(Path(path).parent) else path


def is_other(path: Any) -> bool:
    """Whether another program's checkpoint is at ``path``: a folder, its index, a GGUF, or safetensors not of ours."""
    try:
        if not isinstance(path, str | Path) or not Path(path).is_file():
            return is_folder(path)
    except (OSError, ValueError):
        return False
    suffix = Path(path).suffix.lower()
    return suffix == ".gguf" or whole(path) != path or (suffix in (".safetensors", ".sft") and not is_own(path))


def title(path: str | Path) -> str:
    """What a checkpoint is called: its folder or file; in the hub's cache, whose folders are hashes, its repository."""
    place = Path(os.path.abspath(path))
    cache = next((each.parent for each in place.parents if each.name == "snapshots"), None)
    if cache is None or not cache.name.startswith("models--"):
        return place.resolve().name
    return cache.name.rpartition("--")[2] if place.parent.name == "snapshots" else place.name


def near(path: Path) -> str:
    """What to give in the place of a folder that is no model: the hub's cache, or a part of a checkpoint; else ""."""
    path = path.resolve()
    if is_folder(path.parent):
        return f"It is a part of a checkpoint. Give the whole: {path.parent}"
    caches = [
        each for each in (path, path.parent) if each.name.startswith("models--") and (each / "snapshots").is_dir()
    ]
    if caches:
        return (
            f"It is in the hub's cache. Give the name: hf:{caches[0].name.removeprefix('models--').replace('--', '/')}"
        )
    return ""


def files(folder: Path) -> list[Path]:
    """What the hash covers: configurations, tokenizers and weights, in a fixed order."""
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir() and part.name not in IGNORED]
    first = [folder / INDEX] if is_folder(folder) else sorted(folder.iterdir())  # or of a tokenizer alone
    paths = [*first, *(path for part in parts for path in sorted(part.iterdir()))]
    return [path for path in paths if path.suffix in KINDS and not path.name.startswith(".") and path.is_file()]


def digest(path: str | Path) -> str:
    """sha256 of a file, as other programs name checkpoints by; of a folder, over the names and contents of its files.

    A file's hash is kept in the cache with its size and time of change: 7 GB take 15 s, once. Raises CheckpointError if
    a file cannot be read.
    """
    try:
        return _digest(Path(os.path.abspath(path)))  # a link of the hub's cache, not its target without a name
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Is it still there?") from None


def _file_digest(path: Path, cache: dict[str, Any]) -> str:
    known: dict[str, Any] = cache.setdefault("files", {})
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns]
    if known.get(str(path), [None])[:-1] != state:
        with path.open("rb") as file:
            known[str(path)] = [*state, hashlib.file_digest(file, "sha256").hexdigest()]
    return str(known[str(path)][-1])


def _digest(place: Path) -> str:
    cache = _cache()
    if place.is_dir():
        pairs = [[path.relative_to(place).as_posix(), _file_digest(path, cache)] for path in files(place)]
        result = hashlib.sha256("".join(map(json.dumps, pairs)).encode()).hexdigest()
    else:
        result = _file_digest(place, cache)
    cache.setdefault("folders", {})[result] = str(place)
    _keep(cache)
    return result


def hashed_before(sha256: str) -> Path | None:
    """A checkpoint or another file on this machine that had this hash when it was last used, and is still there."""
    cache = _cache()
    files = (path for path, state in cache.get("files", {}).items() if state[-1] == sha256)
    places = (Path(path) for path in (cache.get("folders", {}).get(sha256), *files) if path is not None)
    return next((path for path in places if path.is_file() or is_folder(path)), None)


def _cache() -> dict[str, Any]:
    with suppress(OSError, ValueError, DataError):
        cache = untrusted_json.parsed_file(cache_folder() / "hashes.json")
        if isinstance(cache, dict):
            return cache
    return {}


def _keep(cache: dict[str, Any]) -> None:
    with suppress(OSError, DataError, CheckpointError):
        write_json(cache_folder() / "hashes.json", cache)


# ---- fitted tables ----------------------------------------------------------------------------------------------


def tables_file(folder: str | Path) -> Path:
    """Where a checkpoint's tables are: beside it, of ``sdxl/`` in ``sdxl.tables.json``."""
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}.tables.json")


def read_tables(checkpoint: str | Path, model: Model) -> dict[str, Table]:
    """The tables that were fitted to exactly this model of it, by ``table_key``; a bad file is a CheckpointError."""
    places = [path for path in (tables_file(checkpoint), *_elsewhere(model)) if path.is_file()]
    tables: dict[str, Table] = {}
    for path in reversed(places):
        try:
            content = untrusted_json.parsed_file(path)
            if content["checkpoint"] == model.id:
                tables |= {str(key): Table.from_json(json.dumps(raw)) for key, raw in content["tables"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is no file of sampler tables ({error}). Delete it, and fit again.") from None
    return tables


def write_table(folder: str | Path, model: Model, steps: int, scale: float, size: Size, fitted: Table) -> Path:
    """Add a table to the folder's file, or to one in the cache where that place cannot be written.

    Returns where it is. What was fitted to another checkpoint of that name is dropped.
    """
    tables = {key: table for key, table in read_tables(folder, model).items() if key != table_key(steps, scale, size)}
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


def _elsewhere(model: Model) -> list[Path]:
    with suppress(DataError):
        if (place := cache_folder() / "tables").is_dir():
            return [place / f"{model.id}.json"]
    return []
