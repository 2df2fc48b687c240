"""What happens beside a training loop: small parts, called in order after every step.

None of them changes the training. Those that compute (validation, previews) come so seldom that they take at most about
2 % of it each, decided by counting and not by the clock, so that a run that was killed and went on does the same.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import reports, samplers
from .budgets import TrainStep
from .checkpoints import load_tensors, save_tensors
from .distributed import whole
from .errors import CheckpointError
from .examples import Batches
from .guidance import cfg
from .images import grid, save_png
from .models import FILE, Model, save
from .noise import initial

if TYPE_CHECKING:
    from .learner import Learner

PREVIEWS, STEPS = 16, 12  # images in a preview, and solver steps for each
TEXT_SCALE = 3.0  # guidance of previews that are made from words
HELD_OUT = 256  # pictures of the validation loss, at most
VALUES = 2**25  # and numbers in them


class Callback:
    """Does nothing. Subclasses override what they need. Called in all processes; only ``learner.main`` writes."""

    def start(self, learner: Learner) -> None:
        """Before the first step is shown; the run is loaded."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """After each step."""

    def end(self, learner: Learner) -> None:
        """After the last step, or the one at which the run was told to stop (``learner.stopped``)."""


def defaults(learner: Learner) -> list[Callback]:
    """The usual callbacks in their order: measure, record, save, show."""
    jobs: list[Callback] = [Validation(), Metrics()]
    jobs += [Tracker()] if learner.track else []
    jobs += [Checkpoint(), Preview(), Results()] if learner.run is not None else []
    return [*jobs, Console()] if learner.verbose and learner.main else jobs


def report(learner: Learner, text: str) -> None:
    """Tell the person, once, unless the run is to be silent."""
    if learner.verbose and learner.main:
        print(text, file=sys.stderr, flush=True)


def is_due(step: TrainStep, batch_size: int, evaluations: int, share: float = 0.02) -> bool:
    """Whether something that costs ``evaluations`` forward passes of one image is due: at most about 20 times a run.

    A picture trained costs about three forward passes, so a ``share`` of the time is 3 * batch_size * share a step.
    """
    every = max(math.ceil((step.of or 0) / 20), math.ceil(evaluations / (3 * share * batch_size)))
    return step.step % every == 0 or step.step == step.of


class Validation(Callback):
    """The loss of the averaged model on held-out pictures, with noise and noise levels that never change."""

    def start(self, learner: Learner) -> None:
        """Draw the pictures and their noise: the beginning of a stream that never goes on."""
        n = min(64, learner.batch_size, len(learner.held_out))
        stream = Batches(
            learner.held_out, n, -1, learner.sigma_distribution, learner.levels, learner.unit,
            self_condition=learner.self_condition, tokens=learner.batches.tokens,
            corruption=learner.batches.corruption,
        ) if n else None  # fmt: skip
        limit = max(VALUES // (n * math.prod(learner.train.shape)), 1) if n else 0  # all stay in memory
        count = min(stream.per_epoch, HELD_OUT // n, limit) if stream else 0
        self.batches = [stream.draw(i).split(1, learner.device)[0] for i in range(count)] if stream else []
        self.evaluations = count * n
        past = learner.run.metrics() if learner.run is not None else []  # of a run that goes on
        losses = [m["validation_loss"] for m in past if "validation_loss" in m and m["step"] < learner.state.step]
        self.best = min(losses, default=math.inf)

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Measure, seldom, and mark the best so far for the next checkpoint."""
        learner.validation = None
        if self.batches and is_due(step, learner.batch_size, self.evaluations):
            learner.validation = learner.state.validation = learner.validate(self.batches)
            learner.best = learner.validation <= self.best
            self.best = min(learner.validation, self.best)

    def end(self, learner: Learner) -> None:
        """Choose the length of the average by the same pictures."""
        if self.batches and not learner.stopped:
            losses = {length: learner.validate(self.batches, length) for length in map(float, learner.ema)}
            learner.state.length = min(losses, key=lambda length: losses[length])
            learner.state.validation = losses[learner.state.length]


class Metrics(Callback):
    """metrics.jsonl: one line for the steps since the last, at 10, 20, ... 1000, 1100, ... 10000, 11000, ..."""

    def start(self, learner: Learner) -> None:
        """Begin a mean."""
        self.losses: list[float] = []

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Add to the mean; write it when its turn has come, or when something else is worth a line."""
        record: dict[str, Any] = {"step": step.step}
        if step.bad:
            record["skipped"] = list(step.bad)
        else:
            self.losses.append(step.loss)
        if learner.validation is not None:
            record["validation_loss"] = round(learner.validation, 6)
        due = step.step % 10 ** max(1, int(math.log10(step.step)) - 1) == 0
        if self.losses and (due or step.step == step.of):
            record |= {
                "loss": round(sum(self.losses) / len(self.losses), 6), "norm": round(step.norm, 5), "lr": step.lr,
                "images_per_second": round(step.images_per_second, 1), "seconds": round(step.seconds, 2),
            }  # fmt: skip
            self.losses = []
        learner.record = record if len(record) > 1 else None
        if learner.record and learner.run is not None and learner.main:
            learner.run.append(learner.record)


class Tracker(Callback):
    """The same lines for TensorBoard, trackio or Weights & Biases, through Accelerate."""

    def start(self, learner: Learner) -> None:
        """Open the tracker."""
        settings = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in learner.config.items()}
        learner.accelerator.init_trackers("fastdiffusion", settings)

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Pass the line on."""
        if learner.record:
            numbers = {k: v for k, v in learner.record.items() if isinstance(v, (int, float)) and k != "step"}
            learner.accelerator.log(numbers, step=step.step)

    def end(self, learner: Learner) -> None:
        """Close it."""
        learner.accelerator.end_training()


class Checkpoint(Callback):
    """A checkpoint whenever the learner says that one is due, and at the end."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Save, if due, and the best so far at once."""
        if learner.save_due or learner.best:
            learner.save()

    def end(self, learner: Learner) -> None:
        """Save before anything else that could fail."""
        learner.save()


class Snapshots(Callback):
    """ema/<step>.safetensors, so that any length can be chosen afterwards with ``ema.posthoc``. Not a default: large.

    Args:
        every: Steps between two.
    """

    def __init__(self, every: int):
        self.every = every

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Store the averages as they are."""
        if learner.run is None or (step.step % self.every and step.step != step.of):
            return
        state = {name: whole(t) for name, t in learner.average.state_dict().items()}
        if learner.main:
            save_tensors(learner.run.path / "ema" / f"{step.step:07d}.safetensors", state, learner.info)


class Preview(Callback):
    """previews/<step>.png: the same noises and classes each time. Whatever goes wrong, training goes on."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Sample a sheet, seldom."""
        if not is_due(step, learner.batch_size, PREVIEWS * STEPS):
            return
        try:
            images = preview(learner)
            if learner.main:
                zoom = max(1, 32 // images.shape[-1])
                save_png(grid(images, 4, zoom), learner.run.path / "previews" / f"{step.step:07d}.png")  # pyright: ignore
        except Exception as error:  # a full disk, a sampler that diverges: not worth a run
            report(learner, f"\nNo preview at step {step.step:,}: {error}")


@torch.no_grad()
def preview(learner: Learner, n: int = PREVIEWS, steps: int = STEPS) -> torch.Tensor:
    """Pictures of the averaged model from the seeds 0, 1, ... and its classes in turn."""
    model = learner.model
    table = model.table(steps)
    cond, denoise = None, model.denoise
    if model.corruption is not None:
        return restoration_preview(learner, n)
    if model.text_encoder is not None:  # captions of training pictures, with the guidance that words need
        rows = [i * len(learner.train) // n for i in range(n)]
        cond, denoise = model.encode_prompt(learner.train.annotations(rows).captions), cfg(denoise, TEXT_SCALE)
    elif model.classes:
        cond = model.cond([i % len(model.classes) for i in range(n)])
    x = table.sigmas[0] * initial(range(n), model.shape).to(model.device)
    return model.decode(samplers.final(samplers.run(denoise, x, table, cond, range(n))))


@torch.no_grad()
def restoration_preview(learner: Learner, n: int) -> torch.Tensor:
    """Held-out pictures as they are given, and the one-call answers: two of each a row."""
    data = learner.held_out if len(learner.held_out) else learner.train
    stream = Batches(data, n // 2, -1, corruption=learner.batches.corruption)
    batch, model = stream.draw(0).split(1, learner.device)[0], learner.model
    assert batch.cond is not None and batch.cond.image is not None
    inputs = batch.cond.image[:, : model.shape[0]]
    answer = model.denoise(inputs, inputs.new_full((len(inputs),), model.sigma_max), batch.cond)
    return torch.stack([inputs, answer], 1).flatten(0, 1)


def complete(folder: Path, step: int) -> bool:
    """Whether a run's folder holds the results of its last step: the model, and the report, which comes last."""
    try:
        config, _ = load_tensors(folder / FILE)
    except CheckpointError:
        return False
    return config.get("info", {}).get("steps") == step and (folder / reports.FILE).is_file()


class Results(Callback):
    """model.safetensors as it stands, seldom and whenever the run ends; report.html beside it when it is done."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Write the model so far, so that one can sample from a run that goes on. A full disk is not worth a run."""
        if step.step != step.of and is_due(step, learner.batch_size, PREVIEWS * STEPS):
            try:
                self.write(learner)
            except CheckpointError as error:
                report(learner, f"\nNo model at step {step.step:,}: {error}")

    def end(self, learner: Learner) -> None:
        """Write both; a run that was told to stop has a checkpoint by now, and no time for a report."""
        model = self.write(learner)
        if learner.main and learner.run is not None and not learner.stopped:
            reports.write(learner.run, learner.config, model)

    def write(self, learner: Learner) -> Model:
        """The averaged model, into the run's folder."""
        model = learner.model
        if learner.main and learner.run is not None:
            save(model, learner.run.path / FILE)
        return model


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
