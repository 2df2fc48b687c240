"""What a person sees of a training: one line that moves, and where the results are."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

import torch

from ..models import FILE
from .budget import TrainStep

if TYPE_CHECKING:
    from .learner import Learner
from .callback import Callback


class Console(Callback):
    """What a person sees: what it will cost, a line that moves, and where the results are."""

    def start(self, learner: Learner) -> None:
        """Whether there is anybody to see a moving line."""
        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.announced, self.shown, self.loss = False, 0.0, math.nan
        if learner.state.step > 1:
            print(f"Going on from step {learner.state.step - 1:,}.", file=sys.stderr)

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Say once what is to be expected, then show the progress four times a second."""
        if step.bad:
            names = ", ".join(step.bad[:3]) + (f" and {len(step.bad) - 3} more" if len(step.bad) > 3 else "")
            print(f"\nStep {step.step:,} was skipped: its loss is not a number ({names}).", file=sys.stderr)
            return
        self.loss = step.loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * step.loss
        if not self.announced and step.of is not None and step.step >= min(learner.start + 10, step.of):
            self.announced = True
            print(expectations(learner, step), file=sys.stderr)
        if self.live and time.monotonic() - self.shown > 0.25:
            self.shown = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line(step, self.loss)[:width].ljust(width), end="", file=sys.stderr, flush=True)

    def end(self, learner: Learner) -> None:
        """Say where things are."""
        s = learner.state
        text = "Stopped" if learner.stopped else "Done"
        text += f" at step {s.step:,} after {clock(s.seconds)}"
        text += "." if math.isnan(self.loss) else f", loss {self.loss:.4f}."
        if learner.run is not None:
            text += (
                f" The same command goes on from here; {learner.run.path / FILE} is the model so far."
                if learner.stopped
                else f"\n{learner.run.path / FILE}, previews/ and report.html are there."
            )
        print(("\n" if self.live else "") + text, file=sys.stderr, flush=True)


def expectations(learner: Learner, step: TrainStep) -> str:
    """Parameters, memory, speed and what the budget buys, in two lines."""
    count = sum(p.numel() for p in learner.objective.denoiser.parameters())
    size = "x".join(map(str, learner.train.shape))
    images = (step.of or 0) * learner.batch_size
    return (
        f"{learner.train.name}: {len(learner.train):,} pictures of {size}, {count / 1e6:.2f} M parameters, "
        f"{footprint()}, {learner.state.precision} on {learner.device}"
        + (f", {learner.world} processes" if learner.world > 1 else "")
        + f"\n{step.images_per_second:,.0f} images/s: about {step.of:,} steps, {images:,} images, "
        f"{images / len(learner.train):,.1f} epochs, {clock(step.seconds + step.eta)}"
    )


def line(step: TrainStep, loss: float) -> str:
    """The moving line; what matters most comes first, because a narrow terminal cuts it."""
    of = f"/{step.of:,}" if step.of else ""
    speed = f"{step.images_per_second:,.0f} img/s"
    return f"loss {loss:.4f}  {clock(step.eta)} left  {speed}  {step.step:,}{of}  lr {step.lr:.1e}"


def clock(seconds: float) -> str:
    """Time as 0:07, 12:34 or 3:25:45."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def footprint() -> str:
    """Memory in use by this process, of the GPU if there is one."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MB of GPU memory"
    try:
        with open("/proc/self/statm") as file:
            return f"{int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20:,.0f} MB"
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"{peak / (2**20 if sys.platform == 'darwin' else 2**10):,.0f} MB"
