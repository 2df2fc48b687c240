"""What a person sees of a training: one line that moves, and where the results are."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from contextlib import suppress

import torch

from ..errors import counted
from .budget import TrainStep
from .callback import Callback, TrainingView
from .report import verdict


class Console(Callback):
    """What a person sees: what it will cost, a line that moves, and where the results are."""

    def start(self, training: TrainingView) -> None:
        """Whether there is anybody to see a moving line."""
        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.announced, self.shown, self.loss = False, 0.0, math.nan
        if training.state.step > 1:
            say(f"Resuming after {counted(training.state.step - 1, 'step')}.")

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Say once what is to be expected, then show the progress four times a second."""
        if step.bad:
            names = ", ".join(step.bad[:3]) + (f" and {len(step.bad) - 3} more" if len(step.bad) > 3 else "")
            say(f"\nStep {step.step:,} was skipped: its loss is not a number ({names}).")
            return
        self.loss = step.loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * step.loss
        if not self.announced and (step.last or step.step >= training.first_step + 10):
            self.announced = True
            say(expectations(training, step))
        if self.live and time.monotonic() - self.shown > 0.25:
            self.shown = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            say("\r" + line(step, self.loss)[:width].ljust(width), end="")

    def end(self, training: TrainingView) -> None:
        """Say where things are."""
        s = training.state
        text = "Stopped" if training.stopped else "Done"
        text += f" at step {s.step:,} after {clock(s.seconds)}"
        text += "." if math.isnan(self.loss) else f", loss {self.loss:.4f}."
        if training.run is not None:
            file = training.run.path / (training.task.file or "report.html")
            text += f" The same command continues it; {file} is the result so far." if training.stopped else ""
            text += "" if training.stopped else f"\n{file}, previews/ and report.html are there."
        say(("\n" if self.live else "") + text)
        if not training.stopped:
            say(verdict(training))


def say(text: str, end: str = "\n") -> None:
    """Print to stderr; a training does not end because nobody can read it any more (a full disk, a closed pipe)."""
    with suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def expectations(training: TrainingView, step: TrainStep) -> str:
    """Parameters, memory, speed and what the budget buys, in two lines."""
    count = sum(p.numel() for part in training.task.parts.values() for p in part.module.parameters())
    return (
        f"{training.task.title}, {count / 1e6:.2f} M parameters, "
        f"{footprint()}, {training.state.precision} on {training.device}"
        + (f", {training.world} processes" if training.world > 1 else "")
        + f"\n{step.images_per_second:,.0f} examples/s: about {counted(step.of, 'step')}, "
        f"{counted(step.of * training.options.batch_size, 'example')}, {clock(step.seconds + step.eta)}"
    )


def line(step: TrainStep, loss: float) -> str:
    """The moving line; what matters most comes first, because a narrow terminal cuts it."""
    speed = f"{step.images_per_second:,.0f} img/s"
    return f"loss {loss:.4f}  {clock(step.eta)} left  {speed}  {step.step:,}/{step.of:,}  lr {step.lr:.1e}"


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
