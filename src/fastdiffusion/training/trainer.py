"""One loop for every kind of net: diffusion models, autoencoders, dual encoders, classifiers, translators.

    trainer = Trainer(task, options).fit(steps=2000)

Whatever is random in a step (which examples, noise levels, noise, dropped conditions, augmentation) is a function of
the seed and the number of the step, and is drawn for the whole batch of all processes and then divided. So a checkpoint
holds weights and a few numbers but no state of any random generator, a run that was killed is resumed bit for bit, and
two processes train as one does.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..device import autocast, check_precision, choose_precision
from ..errors import CheckpointError, FastdiffusionError, InputError, counted, missing, unknown
from ..io import config as configs
from ..io.checkpoints import in_code, on_disk
from ..io.run_folder import Folder
from ..noise import Stream, generator
from ..options import changed
from . import budget, optimizers, results
from .budget import State, TrainStep
from .callback import Callback, report
from .callbacks import defaults
from .distributed import check_world, like, mean_gradients, place, rank_and_world, shard, stop_signals, total, whole
from .ema import Ema
from .options import RunOptions
from .task import Batch, Part, Task, length, rows

BAD_IN_A_ROW = 3  # batches whose loss is not a number, after which training stops
LOOK = 448  # forward passes of one example that validation and a preview cost, about
SHARE = 0.05  # of the time, at most, for them
TRACKERS = ("tensorboard", "trackio", "wandb")


class Trainer:
    """A training run. A folder that holds a run with other settings is not continued.

    Args:
        task: What is trained.
        options: How.

    Attributes:
        task: What is trained.
        options: How, with what "auto" stands for.
        state: Where the run is.
        average: The averages of the weights, if the task wants any.
        device: Where it trains.
        run: Its folder, if it has one.
    """

    average: Ema | None

    def __init__(self, task: Task, options: RunOptions):
        check(options)
        self.options = options
        self.rank, self.world = rank_and_world()
        self.device = place(options.device)
        self.run = Folder(options.folder) if options.folder is not None else None
        self.stopped = 0  # the signal that asked for an end
        self.save_due = False  # whether a checkpoint is due after this step
        self.first_step = 0  # of this session
        self._signals: list[int] = []
        self._saved = (0.0, 0.0)  # when and how long the last checkpoint took; the first step's tries out the disk
        self.set_up(task)

    def set_up(self, task: Task) -> None:
        """Put a task at step 0: nets on the device, fresh optimizers and averages."""
        if not task.updates.divided:  # batches of fewer rows than processes cannot be measured by all
            task = replace(task, held_out=[batch for batch in task.held_out if length(batch) >= self.world])
        if next(iter(task.parts.values())).optimizer == "schedule_free":  # it needs none
            task = replace(task, updates=task.updates._replace(decay=0.0))
        self.task, self.state = task, State(precision=choose_precision(self.options.precision, self.device))
        for module in (*task.modules, *(part.module for part in task.parts.values())):
            module.to(self.device)
        if task.updates.shard and self.world > 1:
            for part in task.parts.values():
                shard(part.module)
        self.rates: dict[str, float] = {}
        self.optimizers: dict[str, list[Any]] = {}
        for name, part in task.parts.items():
            kind = optimizers.default(task.updates.shard) if part.optimizer == "auto" else part.optimizer
            self.rates[name] = optimizers.RATES.get(str(kind), 1e-3) if part.lr is None else part.lr
            self.optimizers[name] = optimizers.build(kind, _learned(part.module), self.rates[name], part.weight_decay)
        self.iterates = optimizers.Iterates(chain.from_iterable(self.optimizers.values()))
        self.average = Ema(task.updates.averaged, task.updates.ema) if task.updates.averaged is not None else None

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that two runs must share to be one, as JSON."""
        return json.loads(json.dumps({"seed": self.options.seed, **self.task.identity}))

    @property
    def info(self) -> dict[str, Any]:
        """What the report says of the run."""
        s = self.state
        examples = s.step * self.options.batch_size
        summary = {"steps": s.step, "images_seen": examples, "minutes": round(s.seconds / 60, 2)}
        return summary if s.validation is None else {**summary, "validation_loss": round(s.validation, 5)}

    # ---- one step -------------------------------------------------------------------------------------------------

    def draw(self, step: int) -> list[Batch]:
        """This process's part of a step's batch, on the device, in microbatches."""
        return self._divide(self.task.draw(step), self.task.updates.grad_accumulation)

    def _divide(self, batch: Batch, count: int = 1) -> list[Batch]:
        rank, world = (0, 1) if self.task.updates.divided else (self.rank, self.world)
        size = length(batch) // (world * count)
        if size < 1:
            some = counted(length(batch), "example")
            raise InputError(f"A batch of {some} cannot be divided in {world * count}. Use fewer processes.")
        starts = range(rank * count * size, (rank + 1) * count * size, size)
        return [rows(batch, slice(start, start + size), self.device) for start in starts]

    def update(self, microbatches: Sequence[Batch], rate: float = 1.0) -> tuple[dict[str, float], float, list[Tensor]]:
        """Learn from one batch: each part's loss, the first part's norm of the gradient and each example's loss.

        Args:
            microbatches: Of :meth:`draw`.
            rate: Factor of the parts' learning rates.
        """
        losses: dict[str, float] = {}
        first: tuple[float, list[Tensor]] = (0.0, [])
        with self._chance(self.state.step):
            for name, part in self.task.parts.items():
                losses[name], norm, each = self._learn(name, part, microbatches, rate)
                first = first if len(losses) > 1 else (norm, each)
        return losses, *first

    def _learn(
        self, name: str, part: Part, microbatches: Sequence[Batch], rate: float
    ) -> tuple[float, float, list[Tensor]]:
        """Learn by one part's loss, if it and its gradient are finite: (loss, norm of the gradient, losses)."""
        self._forget(name)  # of the other parts' losses, which may have gone through this part
        each: list[Tensor] = []
        for microbatch in microbatches:
            with autocast(self.state.precision, self.device):
                loss = part.loss(microbatch)
            (loss.mean() / len(microbatches)).backward()
            each.append(loss.detach())
        value = torch.stack([loss.float().mean() for loss in each]).mean()
        value = mean_gradients(part.module, value)
        norm = whole(nn.utils.clip_grad_norm_(part.module.parameters(), self.task.updates.grad_clip or math.inf))
        mean, steepness = torch.stack([value, norm.float()]).tolist()  # here alone the processor waits for the device
        if math.isfinite(mean) and math.isfinite(steepness):  # the same numbers in all processes
            for optimizer in self.optimizers[name]:
                for group in optimizer.param_groups:
                    group["lr"] = self.rates[name] * rate * group.get("factor", 1.0)
                optimizer.step()
            if self.average is not None and name == next(iter(self.rates)):
                self.average.update(self.state.step + 1)
        self._forget(name)
        return mean, steepness if math.isfinite(mean) else math.nan, each

    def _forget(self, name: str) -> None:
        for optimizer in self.optimizers[name]:
            optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _chance(self, step: int) -> Iterator[None]:
        """Dropout and the like are functions of the step; whoever trains keeps his own chance."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(generator(self.options.seed, Stream.DROPOUT, step, self.rank).initial_seed() % 2**63)
            yield

    def _culprits(self, microbatches: Sequence[Batch], each: Sequence[Tensor]) -> tuple[str, ...]:
        """The examples whose loss is not a number; the whole batch if it is only the gradient that is not."""
        names = [name for microbatch in microbatches for name in getattr(microbatch, "names", ())]
        finite = torch.cat([loss.reshape(-1) for loss in each]).isfinite().tolist()
        wrong = [name for name, good in zip(names, finite, strict=False) if not good] if len(finite) > 1 else []
        if self.world > 1:
            from accelerate.utils import gather_object

            names, wrong = gather_object(names), gather_object(wrong)
        return tuple(wrong or names or ["one of the batch"])

    # ---- the run --------------------------------------------------------------------------------------------------

    def steps(self, steps: int | None = None, minutes: float | None = None) -> Iterator[TrainStep]:
        """Train, and yield each step. To stop early is to stop iterating; the next call continues from there.

        Args:
            steps: Steps of the whole run, those already done included.
            minutes: Time of the whole run, instead.
        """
        self.iterates.use_trained()
        s, task, name = self.state, self.task, next(iter(self.task.parts))
        s.plan(steps, minutes)
        for part in task.parts.values():
            part.module.train()
        started = time.perf_counter() - s.seconds
        ends = deque([time.perf_counter()], maxlen=101)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.draw, s.step)
            while not s.finished:
                microbatches, coming = coming.result(), ahead.submit(self.draw, s.step + 1)
                if task.before is not None:
                    task.before(s.progress)
                rate = s.rate(task.updates.warmup, task.updates.decay)
                losses, norm, each = self.update(microbatches, rate)
                finite = all(map(math.isfinite, (*losses.values(), norm)))
                bad = () if finite else self._culprits(microbatches, each)
                s.bad = s.bad + 1 if bad else 0
                ends.append(time.perf_counter())
                pace = self._agree(started, (len(ends) - 1) / max(ends[-1] - ends[0], 1e-9))
                yield TrainStep(
                    s.step, s.of_steps(pace), s.progress, losses[name], losses, norm, self.rates[name] * rate,
                    pace * self.options.batch_size, s.seconds, s.left(pace), bad,
                )  # fmt: skip
                if s.bad >= BAD_IN_A_ROW:
                    self._abort(bad)

    def _agree(self, started: float, pace: float) -> float:
        """What all processes must do alike: the clock, the speed, when to save, whether to stop; returns the speed."""
        now, got = time.perf_counter(), self._signals[0] if self._signals else 0
        every = self.options.save_every
        due = every == 0 or now - self._saved[0] > max(every, 50 * self._saved[1])
        mine = [now - started, float(due), pace] if self.main else [0.0, 0.0, 0.0]
        mine += [float(got == signal.SIGINT), float(got == signal.SIGTERM)]
        seconds, due, pace, interrupted, ended = total(mine, self.device)
        self.state.advance(seconds, pace, self._results() / (3 * self.options.batch_size * pace))
        self.save_due = due > 0
        self.stopped = signal.SIGTERM if ended else signal.SIGINT if interrupted else 0
        return pace

    def _results(self) -> int:
        """Forward passes that follow the last step: to train on an example costs about three."""
        shown = 3 * LOOK // 2 if self.run is not None and self.task.preview is not None else 0
        return shown + (1 + len(self.task.updates.ema)) * sum(map(length, self.task.held_out))

    def _abort(self, names: Sequence[str]) -> None:
        """Go back to the last checkpoint and end the run."""
        latest = self.run.latest() if self.run is not None else None
        if latest is not None:
            self.unpack(latest[2], latest[1])
        raise FastdiffusionError(
            f"{BAD_IN_A_ROW} batches in a row had a loss that is not a number, the last with {', '.join(names[:3])}. "
            f"Training stopped at the last good state (step {self.state.step:,}). Look at these images, or lower lr."
        )

    def fit(
        self,
        steps: int | None = None,
        minutes: float | None = None,
        fresh: bool = False,
        procs: int = 1,
        callbacks: Sequence[Callback] = (),
    ) -> Self:
        """Train until the budget of the run is used up, continuing what is in its folder.

        The first Ctrl-C or SIGTERM ends after the present step with a checkpoint, the second one at once.

        Args:
            steps: Steps of the whole run; see :class:`~fastdiffusion.training.options.Budget`.
            minutes: Time of the whole run, instead.
            fresh: Forget what the folder holds and start anew.
            procs: Processes that were asked for, to be refused where they are not there.
            callbacks: Called after the usual ones (``callbacks.defaults``), in this order.
        """
        budget.check(steps, minutes)
        if procs not in (1, self.world):
            raise InputError(f"{procs} processes were asked for, {self.world} runs. Start with torchrun, or --procs.")
        with ExitStack() as stack:
            if self.run is not None and self.main:
                stack.enter_context(self.run.lock())
            self._signals = stack.enter_context(stop_signals())
            self.resume(fresh)
            usual = defaults(self)
            jobs = [*usual, *callbacks]
            if self.run is not None and self.main and self.task.command:
                budget_given = {"steps": steps, "minutes": minutes}
                configs.keep(self.run.path, self.task.command, {**self.task.arguments, **self._flags(), **budget_given})
            loop = self.steps(steps, minutes)
            first = next(loop, None)
            if first is None and results.complete(self):
                spent = f"{counted(self.state.step, 'step')}, {self.state.seconds / 60:.1f} minutes"
                why = (
                    f"has ended ({spent}): {self.state.ended}" if self.state.ended else f"has had its budget ({spent})"
                )
                report(self, f"This run {why}. Give more --minutes or --steps, or --fresh.")
                return self._done()
            self.first_step = self.state.step  # with no step left, its results were never written
            for job in jobs:
                job.start(self)
            for step in loop if first is None else chain([first], loop):
                self._after(step, usual, callbacks)
                if self.stopped:
                    break
            self._finish(jobs)
        if self.stopped == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.stopped:
            raise KeyboardInterrupt
        return self._done()

    def _flags(self) -> dict[str, Any]:
        """The options that can be typed, where they are not what they are by default."""
        typed = [f.name for f in fields(self.options) if not f.metadata["flag"].python_only]
        return {name: getattr(self.options, name) for name in changed(self.options, typed)}

    def _after(self, step: TrainStep, usual: Sequence[Callback], callbacks: Sequence[Callback]) -> None:
        """What follows a step: measure, note, save, show; then others may look, who may be slow."""
        looks, improved = self.state.look(math.ceil(LOOK / (3 * SHARE * self.options.batch_size))), False
        if looks and self.task.held_out:
            best = min((loss for _, loss in self.state.validations), default=math.inf)
            loss = self.validate()
            step, improved = step._replace(validation=loss), loss <= best
            self.state.validations.append((step.step, loss))
        for job in usual:
            job.step(self, step)
        if self.save_due or improved:
            self.save(improved)
        if looks and not step.last:
            results.show(self)
        for job in callbacks:
            job.step(self, step)

    def _finish(self, jobs: Sequence[Callback]) -> None:
        """Save before anything else that could fail; then the results, also of a run that was stopped."""
        lengths = list(map(float, self.task.updates.ema))
        if self.task.held_out and len(lengths) > 1 and not self.stopped:
            losses = {length: self.validate(length) for length in lengths}
            self.state.length = min(losses, key=lambda length: losses[length])
            self.state.validation = losses[self.state.length]
        self.save()
        results.finish(self)
        for job in jobs:
            job.end(self)

    def _done(self) -> Self:
        self.iterates.use_average()
        for part in self.task.parts.values():
            part.module.eval()
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Nothing is learned, nothing drawn from the run's chance, and the nets are in evaluation mode."""
        modules = [part.module for part in self.task.parts.values()]
        with torch.no_grad(), self._chance(0), self.iterates.average():
            for module in modules:
                module.eval()
            try:
                yield
            finally:  # a preview that fails must not leave them so
                for module in modules:
                    module.train()

    def validate(self, length: float | None = None) -> float:
        """The first part's mean loss on held-out data, by the average of a length, by default the last; it is kept."""
        part = next(iter(self.task.parts.values()))
        length = length or float([*self.task.updates.ema, 0.0][len(self.task.updates.ema) - 1])
        averaged = self.average.applied(length) if self.average is not None else nullcontext()
        with self.evaluating(), averaged:
            losses = [part.loss(mine).float().mean() for batch in self.task.held_out for mine in self._divide(batch)]
        mean = float(torch.stack(losses).mean())
        self.state.validation = total([mean / self.world], self.device)[0]
        return self.state.validation

    def stop(self, number: int = signal.SIGINT) -> None:
        """End after this step, as the signal of that number would."""
        self.stopped = number

    def end(self, reason: str) -> None:
        """End after this step as if the budget were used up, and say why."""
        self.state.progress, self.state.ended = 1.0, reason
        report(self, f"\nThe run ends after {counted(self.state.step, 'step')}: {reason}.")

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, configuration): the whole run."""
        groups: dict[str, Mapping[str, Tensor]] = {n: p.module.state_dict() for n, p in self.task.parts.items()}
        groups |= {} if self.average is None else {"ema": self.average.state_dict()}
        settings: dict[str, Any] = {}
        for name, own in self.optimizers.items():
            groups[f"optimizer.{name}"], settings[on_disk(name)] = optimizers.pack(own)
        tensors = {f"{part}.{name}": whole(t.detach()) for part, named in groups.items() for name, t in named.items()}
        return tensors, {"run": self.identity, "state": asdict(self.state), "optimizer": settings}

    def unpack(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Become the run that :meth:`pack` saw."""

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}

        owners: dict[str, Any] = {n: p.module for n, p in self.task.parts.items()}
        for name, mine in (owners | ({} if self.average is None else {"ema": self.average})).items():
            own, saved = mine.state_dict(), part(name)
            mine.load_state_dict({name: like(own[name], saved[name]) for name in own})
        settings = config["optimizer"]
        if isinstance(settings, list):  # version 0.1, of a Learner
            optimizers.unpack(self.optimizers["model"], part("optimizer"), settings)
        else:
            for name, kept in settings.items():
                optimizers.unpack(self.optimizers[in_code(name)], part(f"optimizer.{in_code(name)}"), kept)
        self.state = State.of(config["state"])

    def save(self, best: bool = False) -> None:
        """Write a checkpoint into the run's folder, if it has one; ``best`` keeps it as the best so far too."""
        if self.run is None:
            return
        packed, started = self.pack(), time.perf_counter()
        if self.main:
            self.run.save(self.state.step, *packed, best=best)
            self._saved = (time.perf_counter(), time.perf_counter() - started)
        self.save_due = False

    def resume(self, fresh: bool = False) -> None:
        """Continue from the newest checkpoint in the folder; ``fresh`` forgets it and starts anew.

        Raises CheckpointError if the folder holds a run of other settings.
        """
        self.iterates.use_trained()
        if fresh and self.run is not None and self.main:
            self.run.clear()
        if self.world > 1:
            torch.distributed.barrier()
        latest = None if fresh or self.run is None else self.run.latest()
        if latest is None or latest[0] < self.state.step:
            return
        step, config, tensors = latest
        if "state" not in config:
            raise CheckpointError(
                f"{self.options.folder} holds a run of version 0.1, which cannot be continued. "
                "Choose another folder, or start anew with fresh=True (--fresh)."
            )
        now, then = self.options.precision, State.of(config["state"]).precision
        other = self.differences(config.get("run") or config.get("learner", {}))
        if other := other or ("" if now in ("auto", then) else f"precision={then} (now {now})"):
            raise CheckpointError(
                f"{self.options.folder} holds a run with {other}. Give it as it was, choose another folder, "
                "or start anew with fresh=True (--fresh)."
            )
        try:
            self.unpack(tensors, config)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint of step {step} is of another version, or of other options such as the optimizer "
                f"({error}). Give them as they were, or use --fresh."
            ) from None

    def differences(self, then: Mapping[str, Any]) -> str:
        """How this run's identity differs from one that is stored; "" if it does not."""
        now = self.identity
        different = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
        return ", ".join(
            "other data" if n == "data" else f"{n}={str(then.get(n))[:40]} (now {str(now.get(n))[:40]})"
            for n in different
        )


def train(task: Task, options: Any, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Train a task with the options of a verb, a ``TrainingOptions``, to the end of their budget."""
    return Trainer(task, options).fit(**options.budget, callbacks=callbacks)


def check(options: RunOptions) -> None:
    """Refuse what cannot be trained, before anything is loaded."""
    check_precision(options.precision)
    check_world()
    if options.optimizer not in (known := ("auto", *optimizers.OPTIMIZERS)):
        raise unknown("optimizer", options.optimizer, known)
    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {options.batch_size}. Try 64.")
    if options.track is not None and options.track not in TRACKERS:
        raise unknown("tracker", options.track, TRACKERS)
    if options.track is not None and find_spec(options.track) is None:
        raise missing(f"track={options.track!r}", options.track, "track")
    if options.track is not None and options.folder is None:
        raise InputError(f"track={options.track!r} needs a place to write. Give folder='runs/one'.")


def _learned(module: nn.Module) -> nn.Module:
    """What of a module asks for gradients; the module itself if that is all, so that optimizers can tell its layers."""
    learned = [p for p in module.parameters() if p.requires_grad]
    return module if len(learned) == len(list(module.parameters())) else nn.ParameterList(learned)
