"""Training: a loop that yields steps.

    learner = Learner("digits", net="unet-tiny", folder="runs/digits").fit(minutes=1)
    images = sample(learner.model, n=16)

Whatever is random in a step (which images, noise levels, noise, dropped conditions, augmentation) is a function of the
seed and the number of the step, and is drawn for the whole batch of all processes and then divided. So a checkpoint
holds weights and a few numbers but no state of any random generator, a run that was killed is resumed bit for bit, and
two processes train as one does.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import models
from ..data import Dataset
from ..data.dataset import common_size
from ..device import autocast, choose_precision, device_of
from ..errors import CheckpointError, FastdiffusionError, InputError
from ..io.run_folder import Folder
from ..models import Autoencoder, Model
from ..nets import TextConditioned
from ..noise import Stream, generator
from ..options import fill
from . import budget, optimizers, setup
from .batches import Batches, Objective, TrainingBatch
from .budget import State, TrainStep
from .callback import Callback, report
from .callbacks import complete, defaults
from .config import Budget, TrainingConfig, changes
from .distributed import like, rank_and_world, shard, stop_signals, total, whole
from .ema import Ema

BAD_IN_A_ROW = 3  # batches whose loss is not a number, after which training stops


class Learner:
    """A training run. A folder that holds a run with other settings is not continued.

    Args:
        data: A data set, or what ``data.load`` takes: "digits", "fashion-mnist", a folder of images.
        net: See :class:`~fastdiffusion.training.config.TrainingConfig`.
        options: All other settings of it, by name: ``batch_size=32, folder="runs/one"``.

    Attributes:
        config: The settings, with what "auto" stands for.
        setup: What is trained on and started from; see :class:`~fastdiffusion.training.setup.Setup`.
        state: Where the run is.
        objective: The net in training, with its loss.
        average: The averages of its weights.
    """

    def __init__(self, data: Dataset | str, net: str | dict[str, Any] | None = None, **options: Any):
        config = fill(TrainingConfig, net=net, **options)
        setup.check(config)
        self.rank, self.world = rank_and_world()
        self.device = device_of(config.device)
        self.accelerator = self._accelerator(config) if self.world > 1 or config.track else None
        if self.accelerator is not None and self.world > 1:
            self.device = self.accelerator.device
        self.setup = setup.prepare(config, data, self.device)
        usual = "restorer" if self.setup.restores else "unet-small"
        optimizer = optimizers.default(config.shard) if config.optimizer == "auto" else config.optimizer
        self.config = replace(config, net=config.net or usual, optimizer=optimizer)
        self.run = Folder(config.folder) if config.folder is not None else None
        self.stopped = 0  # the signal that asked for an end
        self.save_due = False  # whether a checkpoint is due after this step
        self.first_step = 0  # of this session
        self.highest_lr = optimizers.RATES[optimizer] if config.lr is None else config.lr
        self._signals: list[int] = []
        self._saved = (0.0, 0.0)  # when and how long the last checkpoint took; the first step's tries out the disk
        self._build()

    def _accelerator(self, config: TrainingConfig) -> Any:
        """Accelerate joins processes and knows trackers; a process alone has no need of it, nor of its global state."""
        from accelerate import Accelerator

        cpu = self.world == 1 or self.device.type == "cpu"  # it joins processes on CPUs only if told so
        return Accelerator(cpu=cpu, log_with=config.track, project_dir=config.folder)

    def _build(self) -> None:
        """The net on its device, optimizers, averages and the stream of batches, all at step 0."""
        config, data = self.config, self.setup
        self.state = State(precision=choose_precision(config.precision, self.device))
        denoiser = setup.denoiser(config, data)
        net = denoiser.net
        self.batches = Batches(
            data.train, config.batch_size, config.seed, config.sigma_distribution, data.levels, data.unit,
            config.cond_dropout, config.augment, config.augment_p, config.self_condition,
            net.text_encoder.tokens if isinstance(net, TextConditioned) else None, data.corruption,
            self.rank, self.world,
        )  # fmt: skip
        self.objective = Objective(
            denoiser, data.unit, config.loss_weighting, config.loss_weighting_options, config.uncertainty
        ).to(self.device)
        if config.shard and self.world > 1:
            shard(self.objective)
        if config.compile is True or (config.compile == "auto" and self.device.type == "cuda"):
            net.compile()
        self.trained = self.objective
        if self.accelerator is not None and self.world > 1 and not config.shard:
            self.trained = self.accelerator.prepare(self.objective)
            if self.trained is self.objective:
                raise FastdiffusionError("The processes are not joined, and would train apart. Start them by --procs.")
        self.optimizers = optimizers.build(config.optimizer, self.objective, self.highest_lr, config.weight_decay)
        self.average = Ema(net, config.ema)  # both after the joining, which may lay the weights elsewhere

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that two runs must share to be one, as JSON."""
        return self.config.identity(self.setup.train.fingerprint)

    @property
    def info(self) -> dict[str, Any]:
        """What the model file and the report say of the run."""
        s, net, data, base = self.state, self.config.net, self.setup.train, self.setup.base
        name = net["name"] if isinstance(net, dict) else net
        summary = {
            "data": data.name, "net": name if base is None else base.info.get("net", "as it began"),
            "pictures": len(data), "steps": s.step, "images_seen": s.step * self.config.batch_size,
            "minutes": round(s.seconds / 60, 2), "sigma_data": self.setup.sigma_data,
        }  # fmt: skip
        if self.setup.autoencoder is None and (sides := common_size(data)) != data.shape[1:]:
            summary["size"] = list(sides)  # what sampling makes by default
        summary |= {"options": dict(data.options)} if data.options else {}
        return summary if s.validation is None else {**summary, "validation_loss": round(s.validation, 5)}

    @property
    def model(self) -> Model:
        """The averaged model as it stands, a copy of its own."""
        return self.averaged(self.state.length or float(self.config.ema[-1]) if self.state.step else None)

    def averaged(self, length: float | None) -> Model:
        """The model with the weights averaged over ``length`` of the run; None: the last weights."""
        denoiser, data, unit = self.objective.denoiser, self.setup.train, self.setup.unit
        frame = Model(
            denoiser, data.shape, data.classes, 0.002 * unit, 80.0 * unit,
            info=self.info | {"ema": length}, autoencoder=cast("Autoencoder | None", self.setup.autoencoder),
            corruption="pairs" if data.cond_channels else self.setup.corruption and str(self.setup.corruption),
        )  # fmt: skip
        tensors = {name: whole(t.detach()) for name, t in models.tensors(frame).items()}
        if length is not None:
            tensors |= {f"net.{name}": whole(t) for name, t in self.average.weights(length).items()}
        return models.from_spec(models.spec(frame), tensors).to(self.device)

    # ---- one step ---------------------------------------------------------------------------------------------

    def draw(self, step: int) -> list[TrainingBatch]:
        """This process's part of a step's batch, on the device, in ``grad_accumulation`` microbatches."""
        return self.batches.draw(step).split(self.config.grad_accumulation, self.device)

    def update(self, microbatches: list[TrainingBatch], lr: float) -> tuple[float, float, Tensor]:
        """Learn from one batch, if its gradient is finite: (loss, norm of the gradient, each image's loss)."""
        if self.config.dropout:
            torch.manual_seed(
                generator(self.config.seed, Stream.DROPOUT, self.state.step, self.rank).initial_seed() % 2**63
            )
        each: list[Tensor] = []
        for i, microbatch in enumerate(microbatches):
            wait = i < len(microbatches) - 1 and self.trained is not self.objective
            with self.trained.no_sync() if wait else nullcontext():  # pyright: ignore
                with autocast(self.state.precision, self.device):
                    loss = self.trained(microbatch)
                (loss.mean() / len(microbatches)).backward()
                each.append(loss.detach())
        norm = whole(nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.grad_clip or math.inf))
        losses = torch.cat(each)
        value, length = torch.stack([losses.mean(), norm]).tolist()  # here alone the processor waits for the device
        if math.isfinite(length):  # the same number in all processes, unlike the loss
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
            self.average.update(self.state.step + 1)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return value, length, losses

    def _culprits(self, microbatches: list[TrainingBatch], each: Tensor) -> tuple[str, ...]:
        """The images whose loss is not a number; the whole batch if it is only the gradient that is not."""
        names = [name for microbatch in microbatches for name in microbatch.names]
        wrong = [name for name, finite in zip(names, each.isfinite().tolist(), strict=True) if not finite]
        if self.world > 1:
            from accelerate.utils import gather_object

            names, wrong = gather_object(names), gather_object(wrong)
        return tuple(wrong or names)

    # ---- the run ----------------------------------------------------------------------------------------------

    def steps(self, steps: int | None = None, minutes: float | None = None) -> Iterator[TrainStep]:
        """Train, and yield each step. To stop early is to stop iterating; the next call continues from there.

        Args:
            steps: Steps of the whole run, those already done included.
            minutes: Training time of the whole run, instead: the number of steps then follows from the speed.
        """
        s = self.state
        s.plan(steps, minutes, self.config.decay)
        started = time.perf_counter() - s.seconds
        ends, settled = deque([time.perf_counter()], maxlen=101), s.step + 4
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.draw, s.step)
            while not s.finished:
                microbatches, coming = coming.result(), ahead.submit(self.draw, s.step + 1)
                lr = self._lr()
                loss, norm, each = self.update(microbatches, lr)
                s.step += 1
                while s.step == settled and len(ends) > 1:
                    ends.popleft()  # the first steps are slower than all others
                ends.append(time.perf_counter())
                pace = (len(ends) - 1) / (ends[-1] - ends[0])
                loss, pace = self._agree(loss, pace, started)
                bad = () if math.isfinite(norm) else self._culprits(microbatches, each)
                s.bad = s.bad + 1 if bad else 0
                settles = s.settle(pace, self.config.decay)
                speed = pace * self.config.batch_size
                yield TrainStep(s.step, s.total, loss, norm, lr, speed, s.seconds, s.left(pace), bad)
                if s.bad >= BAD_IN_A_ROW:
                    self._abort(bad)
                if settles:
                    self.save()  # this decision was a measurement: it must not be lost

    def _lr(self) -> float:
        """Learning rate at this step."""
        s, warmup = self.state, self.config.warmup
        warmup = warmup if s.decay_from is None else min(warmup, (s.decay_from - s.start) // 5)
        decay_from = None if self.config.optimizer == "schedule_free" else s.decay_from
        return self.highest_lr * optimizers.rate(s.step, s.start, warmup, decay_from, s.total)

    def _agree(self, loss: float, pace: float, started: float) -> tuple[float, float]:
        """What all processes must do alike: the mean loss, the speed, the clock, when to save, whether to stop."""
        now, got = time.perf_counter(), self._signals[0] if self._signals else 0
        due = now - self._saved[0] > max(self.config.save_every, 50 * self._saved[1])
        mine = [now - started, float(due), pace] if self.main else [0.0, 0.0, 0.0]
        mine += [loss / self.world, float(got == signal.SIGINT), float(got == signal.SIGTERM)]
        self.state.seconds, due, pace, loss, interrupted, ended = total(mine, self.device)
        self.save_due = due > 0
        self.stopped = signal.SIGTERM if ended else signal.SIGINT if interrupted else 0
        return loss, pace

    def _abort(self, names: Sequence[str]) -> None:
        """Go back to the last checkpoint and end the run."""
        latest = self.run.latest() if self.run is not None else None
        if latest is not None:
            self.unpack(latest[2], latest[1])
        raise FastdiffusionError(
            f"{BAD_IN_A_ROW} batches in a row had a loss that is not a number, the last with {', '.join(names[:3])}. "
            f"Training stopped at the last good state (step {self.state.step:,}). Look at these images, or lower lr."
        )

    @torch.no_grad()
    def validate(self, microbatches: Sequence[TrainingBatch], length: float | None = None) -> float:
        """Mean loss of the averaged model on these examples, by default of the last length."""
        with self.average.applied(length or float(self.config.ema[-1])):
            self.objective.eval()
            value = torch.cat([self.objective(microbatch) for microbatch in microbatches]).mean()
            self.objective.train()
        return float(value)

    def record_validation(self, loss: float, length: float | None = None) -> None:
        """Keep a validation loss with the run; with ``length``, the average of that length is the model."""
        self.state.validation = loss
        self.state.length = self.state.length if length is None else length

    def stop(self, number: int = signal.SIGINT) -> None:
        """End after this step, as the signal of that number would."""
        self.stopped = number

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, configuration): the whole run."""
        inner, settings = optimizers.pack(self.optimizers)
        groups = {"model": self.objective.state_dict(), "ema": self.average.state_dict(), "optimizer": inner}
        tensors = {f"{part}.{name}": whole(t.detach()) for part, named in groups.items() for name, t in named.items()}
        return tensors, {"learner": self.identity, "state": asdict(self.state), "optimizer": settings}

    def unpack(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Become the run that :meth:`pack` saw."""

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}

        for mine in (self.objective, self.average):
            own, saved = mine.state_dict(), part("model" if mine is self.objective else "ema")
            mine.load_state_dict({name: like(own[name], saved[name]) for name in own})
        optimizers.unpack(self.optimizers, part("optimizer"), config["optimizer"])
        self.state = State(**config["state"])

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

        Raises InputError if the folder holds a run of other settings.
        """
        if fresh:
            if self.state.step:
                self._build()
            if self.run is not None and self.main:
                self.run.clear()
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
        latest = None if fresh or self.run is None else self.run.latest()
        if latest is None or latest[0] < self.state.step:
            return
        step, config, tensors = latest
        if changed := changes(self.identity, config.get("learner", {})):
            raise InputError(
                f"{self.config.folder} holds a run with {changed}. Give it as it was, choose another folder, "
                "or start anew with fresh=True (--fresh)."
            )
        try:
            self.unpack(tensors, config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint of step {step} does not fit this version ({error}). Use --fresh."
            ) from None

    def fit(self, *, callbacks: Sequence[Callback] = (), **options: Any) -> Learner:
        """Train until the budget of the run is used up, continuing what is in its folder; ten minutes by default.

        The first Ctrl-C or SIGTERM ends after the present step with a checkpoint, the second one at once.

        Args:
            callbacks: Called after the usual ones (``callbacks.defaults``), in this order.
            options: ``minutes`` or ``steps``, of all sessions together, and ``fresh``; see
                :class:`~fastdiffusion.training.config.Budget`.
        """
        chosen = fill(Budget, **options)
        minutes = 10.0 if chosen.minutes is None and chosen.steps is None else chosen.minutes
        budget.check(chosen.steps, minutes)
        with ExitStack() as stack:
            if self.run is not None and self.main:
                stack.enter_context(self.run.lock())
            self._signals = stack.enter_context(stop_signals())
            self.resume(chosen.fresh)
            jobs = [*defaults(self), *callbacks]
            loop = self.steps(chosen.steps, minutes)
            first = next(loop, None)
            if first is None and (self.run is None or complete(self.run.path, self.state.step)):
                spent = f"{self.state.step:,} steps, {self.state.seconds / 60:.1f} minutes"
                report(self, f"This run has had its budget ({spent}). Give more --minutes or --steps, or --fresh.")
                return self
            self.first_step = self.state.step  # with no step left, its results were never written
            for job in jobs:
                job.start(self)
            for step in loop if first is None else chain([first], loop):
                for job in jobs:
                    job.step(self, step)
                if self.stopped:
                    break
            for job in jobs:
                job.end(self)
        if self.stopped == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.stopped:
            raise KeyboardInterrupt
        return self
