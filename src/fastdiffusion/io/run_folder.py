"""The folder of a training run: checkpoints, metrics, a lock."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from ..errors import CheckpointError, UnavailableError, warn
from . import untrusted_json
from .atomic import replacing
from .checkpoints import load_tensors, read_config, save_tensors


class Folder:
    """The folder of one training run: ``step-*.safetensors``, ``best.safetensors``, ``metrics.jsonl`` and a lock."""

    def __init__(self, path: str | Path, keep: int = 2):
        self.path = Path(path)
        self.keep = max(keep, 1)

    @contextmanager
    def lock(self) -> Iterator[Folder]:
        """Hold the folder for this process and clear what a killed save left; raises CheckpointError if it is held.

        The system drops the lock when the process ends, however it ends.
        """
        if os.fsencode(self.path) != str(self.path).encode(errors="replace"):
            raise CheckpointError(
                f"The folder's name {str(self.path)!r} is no text in UTF-8, and no weights can be read from it. "
                "Choose another one."
            )
        with _hold(self.path):
            for leftover in self.path.glob(".*.part"):
                leftover.unlink(missing_ok=True)
            yield self

    def checkpoints(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self.path.glob("step-" + "[0-9]" * 9 + ".safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], best: bool = False) -> Path:
        """Write a step's checkpoint; ``keep`` up to it stay, and besides them the last ``best`` one."""
        path = self.path / f"step-{step:09d}.safetensors"
        save_tensors(path, tensors, {"step": step, "config": dict(config)})
        if best:
            with replacing(self.path / "best.safetensors") as part:
                try:
                    os.link(path, part)  # one file under two names: no second write
                except OSError:
                    shutil.copyfile(path, part)
        kept = [other for other in self.checkpoints() if other <= path][: self.keep]
        for other in self.checkpoints():
            if other not in kept:  # too old, or of a later step: of a future that could not be read and was given up
                other.unlink(missing_ok=True)
        return path

    def latest(self) -> tuple[int, dict[str, Any], dict[str, Tensor]] | None:
        """``(step, config, tensors)`` of the newest checkpoint that is whole; None in a new folder.

        Raises CheckpointError if there are checkpoints but none can be read: a run is never begun over them silently;
        UnavailableError for one that may be whole but cannot be read this time.
        """
        failures = []
        for path in self.checkpoints():
            try:
                checkpoint = self._load_checkpoint(path)
            except UnavailableError:  # falling back would have the next save delete what may be whole
                raise
            except CheckpointError as error:
                failures.append(str(error))
                continue
            if failures:
                warn(f"{failures[0]} Continuing from {path.name}.")
            return checkpoint
        if failures:
            raise CheckpointError(
                f"{failures[0]} No older checkpoint can be read. Start anew with fresh=True (--fresh)."
            )
        return None

    def settings(self) -> dict[str, Any]:
        """The identity of the run that the newest checkpoint is of; empty where none can be read."""
        for path in self.checkpoints():
            try:
                config = read_config(path).get("config", {})
                return dict(config.get("run") or config.get("learner") or {})
            except (CheckpointError, UnavailableError, AttributeError, TypeError, ValueError):
                continue
        return {}

    def best(self) -> tuple[int, dict[str, Any], dict[str, Tensor]] | None:
        """The checkpoint saved last with ``best=True``, or None."""
        path = self.path / "best.safetensors"
        return self._load_checkpoint(path) if path.exists() else None

    @staticmethod
    def _load_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        config, tensors = load_tensors(path)
        if not isinstance(config.get("step"), int) or not isinstance(config.get("config"), dict):
            raise CheckpointError(f"{path} is not a training checkpoint.")
        return config["step"], config["config"], tensors

    def clear(self) -> None:
        """Delete the run: its checkpoints, averages, metrics and previews. A finished model stays until the next."""
        kinds = ("best.safetensors", "ema/*.safetensors", "metrics.jsonl", "preview.png", "previews/[0-9]*.png")
        for path in (*self.checkpoints(), *(path for kind in kinds for path in self.path.glob(kind))):
            path.unlink(missing_ok=True)

    def finished(self, steps: int) -> bool:
        """Whether the run in the folder has reached its last step."""
        return any(record.get("step") == steps for record in self.metrics()[-1:])

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; a last line that a crash cut in half is closed first."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise CheckpointError(f"Cannot write {path}: {error.strerror}.") from None

    def metrics(self) -> list[dict[str, Any]]:
        """The records in order, without broken lines, and without the steps that a resumed run did again."""
        path = self.path / "metrics.jsonl"
        records: list[dict[str, Any]] = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with suppress(ValueError):
                record = untrusted_json.parsed(line)
                if not isinstance(record, dict):
                    continue
                while records and _supersedes(record, records[-1]):
                    records.pop()
                records.append(record)
        return records


def _supersedes(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether ``old`` lies in the future of ``new``, or is the same line of an earlier run."""
    a, b = new.get("step", 0), old.get("step", 0)
    return a < b or (a == b and new.keys() == old.keys())


def _hold(folder: Path) -> IO[str]:
    """A folder's lock file, open and locked for this process. Without fcntl (Windows) it locks nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115 (the caller closes it, and with it the lock)
    except OSError as error:
        raise CheckpointError(f"Cannot use {folder} for a run: {error.strerror}. Choose another with --out.") from None
    file.seek(0)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return file
    except OSError as error:
        owner = file.read(20).strip() or "unknown"
        file.close()
        if not isinstance(error, BlockingIOError):
            raise CheckpointError(
                f"Cannot lock {folder}: {error.strerror}. Choose another folder with --out."
            ) from None
        raise CheckpointError(
            f"Another run is using {folder} (pid {owner}). Wait for it or choose another folder with --out."
        ) from None
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
