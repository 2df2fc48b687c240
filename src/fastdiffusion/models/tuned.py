"""Settings that were measured on this machine for one checkpoint (``doctor MODEL --tune``), kept beside it.

They hold for the file that they were measured with, and for a machine with as many cores and the same device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..data.cache import cache_folder
from ..errors import CheckpointError, DataError, warn
from ..io import untrusted_json
from ..io.atomic import write_json
from . import folder

LOADED = {"engine": str, "precision": str, "mem": str}  # what ``load`` takes of them, and its type
KNOWN = {**LOADED, "threads": int, "batch_size": int}


def machine(device: torch.device | str) -> str:
    """What the settings depend on besides the checkpoint."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return f"{name}, {os.cpu_count()} cores"


def settings_file(checkpoint: str | Path) -> Path:
    """Where a checkpoint's settings are: beside it, of ``sdxl/`` in ``sdxl.settings.json``."""
    path = Path(checkpoint).resolve()
    return path.with_name(f"{path.name}.settings.json")


def save_settings(
    checkpoint: str | Path, device: torch.device | str, chosen: Mapping[str, Any], why: Mapping[str, str]
) -> Path:
    """Write settings beside the checkpoint, or into the cache where that place cannot be written; returns where."""
    sha256 = folder.digest(checkpoint)
    content = {"checkpoint": sha256, "machine": machine(device), "settings": dict(chosen), "measured": dict(why)}
    with suppress(OSError, CheckpointError, DataError):
        write_json(settings_file(checkpoint), content)
        return settings_file(checkpoint)
    path = cache_folder() / "settings" / f"{sha256}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, content)
    return path


def options_for(checkpoint: str | Path, device: torch.device | str) -> dict[str, Any]:
    """What ``load`` should be asked for, by its settings, with a warning that says so; threads are set at once."""
    chosen = settings_for(checkpoint, device)
    if threads := chosen.get("threads"):
        torch.set_num_threads(threads)
    options = {name: value for name, value in chosen.items() if name in LOADED}
    if options:
        listed = ", ".join(f"--{name} {value}" for name, value in options.items())
        warn(f"Loaded with {listed}, as doctor --tune chose here. To measure anew: fastdiffusion doctor MODEL --tune")
    return options


def settings_for(checkpoint: str | Path, device: torch.device | str) -> dict[str, Any]:
    """The settings that hold for this checkpoint on this machine; none if there are none.

    Raises CheckpointError for a file that is no such file.
    """
    place = next((place for place in _places(checkpoint) if place.is_file()), None)
    if place is None:
        return {}
    try:
        content = untrusted_json.parsed_file(place)
        chosen = {str(key): value for key, value in content["settings"].items()}
        holds = content["checkpoint"] == folder.digest(checkpoint) and content["machine"] == machine(device)
        if any(not isinstance(value, KNOWN[key]) for key, value in chosen.items()):
            raise ValueError("a setting of another kind")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place} is no file of settings ({error}). Delete it, and tune again.") from None
    return chosen if holds else {}


def _places(checkpoint: str | Path) -> list[Path]:
    """Beside the checkpoint, and in the cache where there is any."""
    places = [settings_file(checkpoint)]
    with suppress(DataError):
        if (kept := cache_folder() / "settings").is_dir():
            places.append(kept / f"{folder.digest(checkpoint)}.json")
    return places
