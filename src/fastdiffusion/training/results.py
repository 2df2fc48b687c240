"""What a run leaves in its folder: sheets in previews/, the file of what was trained, report.html, run.toml."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..io.images import grid, save_png
from . import report as reports
from .callback import TrainingView, report

SIDE = 32  # pixels that an image of a sheet has at least


class Run(TrainingView, Protocol):
    """A run whose nets can be evaluated in between."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Nothing is learned meanwhile."""
        ...


def complete(training: TrainingView) -> bool:
    """Whether the run's folder holds the results of its last step; the report comes last."""
    if training.run is None:
        return True
    page, file = training.run.path / reports.FILE, training.run.path / training.task.file
    return file.exists() and page.is_file() and reports.mark(training.state.step) in page.read_text("utf-8")


def show(training: Run) -> None:
    """A sheet, and the result so far where that is cheap. Whatever goes wrong, training goes on."""
    task, run = training.task, training.run
    if run is None or not (training.main or task.updates.shard):
        return
    try:
        with training.evaluating():
            if task.preview is not None:
                images, columns = task.preview()
                if training.main:
                    zoom = max(1, SIDE // images.shape[-1])
                    sheet = grid(images.cpu(), columns, zoom)
                    save_png(sheet, run.path / "previews" / f"{training.state.step:07d}.png")
            if task.write is not None and task.write_often:
                task.write(run.path)
    except Exception as error:  # a full disk, a sampler that diverges: not worth a run
        report(training, f"\nNo preview at step {training.state.step:,}: {error}")


def finish(training: Run) -> None:
    """The results, also of a run that was stopped, which has a checkpoint by now, and no time for a report."""
    task, run = training.task, training.run
    if run is None or not (training.main or task.updates.shard):
        return
    if not training.stopped:
        show(training)
    notes: Mapping[str, Any] = {}
    if task.write is not None:
        with training.evaluating():
            notes = task.write(run.path) or {}
    if training.main and not training.stopped:
        info = {**training.info, **notes, "in words": reports.verdict(training)}
        reports.write(run, training.identity, info, training.state.step)
