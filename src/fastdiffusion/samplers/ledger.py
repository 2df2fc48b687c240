"""What a search has measured and what that cost: it decides by these numbers alone, so a search can be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..io import untrusted_json
from ..io.atomic import write_text

Progress = Callable[[int, int, str], None]  # evaluations done, of how many, and what is being done


def silent(done: int, of: int, what: str) -> None:
    """No progress."""


class Ledger:
    """Measurements in the order of their making, each with its cost in evaluations.

    With a file it outlives the program: what was measured before is read and not measured again, and because nothing
    but measurements decides what is measured next, a search that was killed ends where it would have ended.

    Args:
        total: Evaluations that may be spent; ``limit`` may be set lower for a while.
        path: The file.
        progress: See ``Progress``.
    """

    def __init__(self, total: int, path: Path | None = None, progress: Progress = silent):
        self.total = self.limit = total
        self.path, self.progress = path, progress
        self.spent = self.shown = 0
        self.what = ""
        self.known: list[list[Any]] = []
        self.position = 0
        if path is not None:
            self.known = _read(path)
            write_text(path, "".join(json.dumps(line) + "\n" for line in self.known))  # a torn end is gone

    def affords(self, cost: int) -> bool:
        """Whether so many evaluations are left."""
        return self.spent + cost <= self.limit

    def measure(self, compute: Callable[[], tuple[Any, int]]) -> Any:
        """The value of ``compute() -> (value, cost)``, JSON, from the file if it was measured before."""
        if self.position == len(self.known):
            self.known.append(list(compute()))
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self.known[-1]) + "\n")
        value, cost = self.known[self.position]
        self.position += 1
        self.spend(cost)
        return value

    def spend(self, cost: int) -> None:
        """Count evaluations that something else keeps."""
        self.spent += cost
        self.shown = self.spent
        self.progress(self.shown, self.total, self.what)

    def tick(self, images: int) -> None:
        """Show evaluations as they are done; counted they are by :meth:`measure`."""
        self.shown += images
        self.progress(self.shown, self.total, self.what)


def _read(path: Path) -> list[list[Any]]:
    """The measurements in a file, but for one that was not written to its end."""
    entries: list[list[Any]] = []
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                entries.append(untrusted_json.parsed(line))
    return entries
