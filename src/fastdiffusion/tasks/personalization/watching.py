"""When to stop: held-out images and retention are looked at in turns, and the best step is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...io import untrusted_json
from ...io.atomic import write_json
from ...io.checkpoints import load_tensors, save_tensors
from ...io.images import grid, save_png
from ...training.budget import TrainStep
from ...training.callback import Callback, TrainingView, report

LOOKS = 16  # in a run
SHOWN = 4  # looks between two sheets of what the model draws
SAME = 0.05  # of what was learned: held-out losses that are nearer than that are taken for the same
PATIENCE = 5  # looks without a better one, after which a run ends
KEPT, LOG = "best.safetensors", "looks.json"
IMAGES = "images.json"  # what was left of what the model drew


class Look(NamedTuple):
    """What was measured after a step.

    Attributes:
        step: Steps done.
        loss: On held-out images, at fixed noise and levels.
        retention: See ``retention.Retention``; 1 where nothing is to be kept.
    """

    step: int
    loss: float
    retention: float


def best(looks: list[Look], floor: float) -> Look:
    """The look to keep: of those with nearly the least loss, the one that retains most.

    Nearly is within a part ``SAME`` of what was learned. It is chosen step by step, as the looks come: what is kept is
    either what was kept before, or the newest. The first look always retains enough; with a floor of 0 retention does
    not count at all.
    """
    first = kept = least = looks[0]
    for look in looks[1:]:
        if not _retains(look, floor):
            continue
        least = min(least, look, key=lambda one: one.loss)
        limit = least.loss + (SAME if floor else 0.0) * (first.loss - least.loss)
        better = (look.retention, -look.loss) > (kept.retention, -kept.loss)
        if look.loss <= limit and (better or kept.loss > limit):
            kept = look
    return kept


def _least(looks: list[Look], floor: float) -> Look:
    """The look with the least loss among those that retain enough."""
    return min((look for look in looks if _retains(look, floor) or look is looks[0]), key=lambda look: look.loss)


def _retains(look: Look, floor: float) -> bool:
    """Whether a step may be kept. A floor of 0 is none: a style may be meant to change all that a model draws."""
    return floor == 0 or look.retention >= floor


def reason_to_end(looks: list[Look], floor: float, patience: int = PATIENCE) -> str:
    """Why a run should end now; "" while it should not."""
    after = [look for look in looks if look.step > _least(looks, floor).step]
    if len(after) >= 2 and not any(_retains(look, floor) for look in after[-2:]):
        return f"it retains less than {floor:.0%} of what it knew"
    if len(after) >= patience:
        return f"held-out images have not come out better for {len(after)} looks"
    return ""


class Watch(Callback):
    """Looks at a run every few steps, shows what it draws, keeps the best step, and ends it.

    What it measured is kept beside the checkpoints, and is a function of the step: so a run that was killed decides as
    one that was not.

    Args:
        folder: Of the run.
        module: What is trained, whose tensors are kept.
        every: Steps between looks.
        measure: (loss, retention) now.
        preview: Images to show, and how many stand in a row.
        floor: Least retention of a step that may be kept.
        ends: Whether it may end the run.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        every: int,
        measure: Callable[[], tuple[float, float]],
        preview: Callable[[], tuple[Tensor, int]],
        floor: float,
        ends: bool,
    ):
        self.folder, self.module, self.every = folder, module, every
        self.measure, self.preview, self.floor, self.ends = measure, preview, floor, ends
        self.looks: list[Look] = []
        self.reason = ""

    def prepare(self, training: Any, fresh: bool) -> None:
        """Look at the model as it is, before the first step; then take up the looks of an earlier session."""
        first = self.look(training, 0, write=False)
        if not fresh:
            training.resume()
        step = training.state.step
        self.looks = [first, *(look for look in self._kept() if 0 < look.step <= step and not fresh)]
        if step == 0:
            self._write(first)
        elif step % self.every == 0 and (
            self.looks[-1].step != step or self._step_of_kept() != best(self.looks, self.floor).step
        ):
            self.looks = [look for look in self.looks if look.step != step]
            self.look(training, step)  # a kill came between the checkpoint and the look

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Look, if it is time."""
        if step.step % self.every and not step.last:
            return
        if any(look.step == step.step for look in self.looks):
            return
        self.look(training, step.step)
        self.reason = reason_to_end(self.looks, self.floor) if self.ends else ""
        if self.reason and not step.last:
            training.end(self.reason)

    def look(self, training: Any, step: int, write: bool = True) -> Look:
        """Measure, note, keep and show."""
        with training.evaluating():
            look = Look(step, *self.measure())
            self.looks.append(look)
            if training.main and write:
                self._write(look)
                record = {"step": step, "held_out_loss": round(look.loss, 6), "retention": round(look.retention, 4)}
                training.run.append(record)
            path = self.folder / "previews" / f"{step:07d}.png"
            if training.main and step % (SHOWN * self.every) == 0 and (write or not path.exists()):
                try:
                    self.show(path)
                except Exception as error:  # a full disk, a sampler that diverges: not worth a run
                    report(training, f"\nNo preview at step {step:,}: {error}")
        report(training, f"step {step:,}: held-out loss {look.loss:.4f}, retention {look.retention:.0%}")
        return look

    def show(self, path: Path) -> None:
        """Write a sheet of what the model draws now."""
        images, columns = self.preview()
        save_png(grid(images.cpu(), columns, max(1, 96 // images.shape[-1])), path)

    def _write(self, look: Look) -> None:
        write_json(self.folder / LOG, [list(look) for look in self.looks])
        if best(self.looks, self.floor) is look:
            save_tensors(self.folder / KEPT, self.module.state_dict(), {"step": look.step})

    def _step_of_kept(self) -> int:
        with suppress(CheckpointError):
            return int(load_tensors(self.folder / KEPT)[0].get("step", -1))
        return -1

    def _kept(self) -> list[Look]:
        with suppress(OSError, ValueError, TypeError):
            return [Look(int(s), float(loss), float(r)) for s, loss, r in untrusted_json.parsed_file(self.folder / LOG)]
        return []

    def restore(self) -> Look | None:
        """Put the kept tensors back; returns the look that they are of."""
        self.looks = self.looks or self._kept()
        if not self.looks:
            return None
        chosen = best(self.looks, self.floor)
        config, tensors = load_tensors(self.folder / KEPT)
        if config.get("step") != chosen.step:
            raise CheckpointError(f"{self.folder / KEPT} is of another step. Start anew with --fresh.")
        with torch.no_grad():
            for name, own in self.module.state_dict().items():
                own.copy_(tensors[name])
        return chosen


def images_retained(folder: Path) -> tuple[float | None, int]:
    """What was left of the images that a model drew of other prompts, and of how many; None where none were drawn."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = untrusted_json.parsed_file(folder / IMAGES)
        return float(found["retained"]), int(found["images"])
    return None, 0


def summary(folder: Path, looks: list[Look], floor: float, reason: str) -> dict[str, str]:
    """What a report says of a run in a folder: which step was kept, and what came after it."""
    if not looks:
        return {}
    first, kept, last = looks[0], best(looks, floor), looks[-1]
    facts = {
        "kept": f"step {kept.step:,}",
        "held-out loss": f"{first.loss:.4f} at first, {kept.loss:.4f} kept ({kept.loss / first.loss - 1:+.1%})",
        "retention": f"{kept.retention:.1%} of the answers to other prompts",
    }
    images, n = images_retained(folder)
    if images is not None:
        facts["images"] = (
            f"{images:.1%} left of {n} images of other prompts, drawn before and after from the same noise"
        )
    if reason:
        facts["ended"] = f"after {last.step:,} steps, because {reason}"
    if last.loss > 1.01 * kept.loss:
        facts["overfit"] = f"held-out loss rose by {last.loss / kept.loss - 1:.1%} after the kept step"
    if last.retention < kept.retention - 0.01:
        facts["forgetting"] = f"retention fell to {last.retention:.1%} at the last step"
    return facts
