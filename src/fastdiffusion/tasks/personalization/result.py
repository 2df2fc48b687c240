"""What ``personalize`` and ``finetune`` return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...models import Model
from .watching import Look


@dataclass(frozen=True)
class PersonalizationResult:
    """What a run made.

    Attributes:
        path: Its folder.
        file: What is to be kept: a LoRA, a file of one token, or a model.
        model: Ready to sample from.
        report: The page with its curves and previews; None as long as the run has not reached its end.
        token: The new word; "" without one.
        step: The step that was kept.
        looks: What was measured: loss on held-out images, and retention, after some steps.
        notes: What a person should know, in sentences.
        images: What is left of the images that it drew of other prompts, from 1, the same, to 0, as different as the
            image of another prompt (``retention.compared_images``); None as long as the run has not reached its end.
    """

    path: Path
    file: Path
    model: Model
    report: Path | None
    token: str = ""
    step: int = 0
    looks: tuple[Look, ...] = ()
    notes: tuple[str, ...] = ()
    images: float | None = None
