"""Checkpoints of the Hugging Face hub: ``hf:owner/name``, and ``hf:owner/name/file.safetensors`` of one file in it.

The network is asked only where somebody says so; else a checkpoint is taken from the hub's cache on this machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, InputError
from ...models.folder import INDEX
from .folders import read_json
from .weights import PICKLES

PREFIX = "hf:"
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, tokenizers, chat templates
LORA = "pytorch_lora_weights.safetensors"  # as diffusers and peft's trainers write it
HALF = ("fp16", "bf16")  # variants of weights that have fewer digits


def fetch(name: str, parts: Callable[[Mapping[str, Any]], Iterable[str]], download: bool, half: bool = False) -> Path:
    """Where a checkpoint of the hub is on this machine, downloaded if asked for.

    Args:
        name: "hf:owner/name", or with the name of one file behind it.
        parts: Which folders of it are needed, by its ``model_index.json``; raises InputError for another kind.
        download: Whether the network may be asked.
        half: Take weights with fewer digits, where there are both.

    Raises:
        InputError: No such name.
        CheckpointError: It is not here and may not be downloaded, the network or the hub refuses, or it has only
            pickles.
    """
    with _asked(name, download) as (hub, owner, file):
        if file:
            return Path(hub.hf_hub_download(owner, file, local_files_only=not download))
        if not download:
            return _whole(Path(hub.snapshot_download(owner, local_files_only=True)), name)
        index = read_json(Path(hub.hf_hub_download(owner, INDEX)))
        chosen = selection(name, hub.HfApi().list_repo_files(owner), [*parts(index), "scheduler"], half)
        return Path(hub.snapshot_download(owner, allow_patterns=[INDEX, *chosen]))


def fetch_lora(name: str, download: bool) -> Path:
    """Where a LoRA of the hub is on this machine: the file that is named, or the repository's own."""
    with _asked(name, download) as (hub, owner, file):
        file = file or _lora(name, _listed(hub, owner, download))
        return Path(hub.hf_hub_download(owner, file, local_files_only=not download))


def fetch_network(name: str, download: bool) -> Path:
    """Where a network alone is on this machine, such as a ControlNet: its folder, or the file of its weights in it.

    Behind the repository's name may be that of a folder or file in it; see :func:`fetch`.
    """
    with _asked(name, download) as (hub, owner, place):
        folder, _, last = place.rpartition("/")
        if not last.endswith(".safetensors"):
            folder, last = place, ""
        files = _listed(hub, owner, download)
        config = f"{folder}/config.json".lstrip("/")
        chosen = [config, place] if last else [config, *selection(name, files, [folder])]
        if missing := [file for file in chosen if file not in files]:
            raise FileNotFoundError(f"it has no {missing[0]}")
        return Path(hub.snapshot_download(owner, local_files_only=not download, allow_patterns=chosen)) / place


def _listed(hub: Any, owner: str, download: bool) -> list[str]:
    """The files of a repository, or without ``download`` those that are here."""
    if download:
        return hub.HfApi().list_repo_files(owner)
    here = Path(hub.snapshot_download(owner, local_files_only=True))
    return [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]


def _lora(name: str, files: Iterable[str]) -> str:
    """The file of a repository that is its LoRA."""
    found = sorted(file for file in files if "/" not in file and file.endswith(".safetensors"))
    if LORA in found:
        return LORA
    if len(found) > 1:
        raise InputError(f"{name} has {len(found)} files of weights. Name one, such as {name}/{found[0]}")
    if not found:
        raise FileNotFoundError("it has no .safetensors file")
    return found[0]


@contextmanager
def _asked(name: str, download: bool) -> Iterator[tuple[Any, str, str]]:
    """The hub's library, a repository, and what is named in it or ""; what goes wrong within becomes one sentence."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?", name)
    if match is None:
        raise InputError(f"A checkpoint of the hub is written hf:owner/name, got {name!r}.")
    import huggingface_hub as hub  # one of the dependencies of accelerate

    try:
        yield hub, match[1], match[2] or ""
    except (CheckpointError, InputError):
        raise
    except Exception as error:  # its errors are its own: no network, no such name, gated, offline mode
        if not download:
            raise CheckpointError(f"{name} is not on this machine. Add --download to fetch it from the hub.") from None
        offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false")
        hint = "HF_HUB_OFFLINE is set: unset it" if offline else "Check the name, the network and hf auth login"
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise CheckpointError(f"{name} cannot be downloaded ({type(error).__name__}: {reason}). {hint}.") from None


def selection(name: str, files: Iterable[str], parts: Iterable[str], half: bool = False) -> list[str]:
    """Of a repository's files those that are needed: configurations, tokenizers, and one variant of the weights."""
    files = list(files)
    chosen = [file for file in files if re.fullmatch(r"(\w+_scheduler|feature_extractor)/\w+\.json", file)]
    for part in parts:
        own = [file for file in files if file.rpartition("/")[0] == part]
        chosen += [file for file in own if any(fnmatch(file, text) for text in TEXTS) and ".index." not in file]
        variants: dict[str, list[str]] = {}
        for file in own:
            if match := re.fullmatch(r"(?:.+/)?(?:model|diffusion_pytorch_model)(.*)\.safetensors(.*)", file):
                kept = re.sub(r"-\d{5}-of-\d{5}|\.index|\.json", "", match[1] + match[2]).strip(".")
                variants.setdefault(kept, []).append(file)
        if not variants and any(file.endswith(PICKLES) for file in own):
            raise CheckpointError(
                f"{name} has pickles only in {part}, which can run any program when they are opened. Find a repository "
                "with .safetensors files of this model."
            )
        wanted = (*HALF, "") if half else ("", *HALF)
        best = next((variant for variant in (*wanted, *sorted(variants)) if variant in variants), None)
        chosen += [] if best is None else variants[best]
    return chosen


def _whole(path: Path, name: str) -> Path:
    """A folder of the cache that has an index; whether its parts are whole is seen when they are opened."""
    if not (path / INDEX).is_file():
        raise CheckpointError(f"{name} is not whole on this machine. Add --download to fetch the rest of it.")
    return path
