"""Training: a loop that yields steps.

    learn = Learner("digits", net="unet-tiny", folder="runs/digits").fit(minutes=1)
    pictures = sample(learn.model, n=16)

Whatever is random in a step (which pictures, noise levels, noise, dropped labels, augmentation) is a function of the
seed and the number of the step, and is drawn for the whole batch of all processes and then divided. So a checkpoint
holds weights and a few numbers but no state of any random generator, a run that was killed goes on bit for bit as if it
had not been, and two processes train as one does.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import data as datasets
from .. import models
from ..corruptions import parse
from ..data import Dataset
from ..data.latents import Latents
from ..errors import CheckpointError, FastdiffusionError, InputError
from ..io.run_folder import Folder
from ..models import Model, load, load_autoencoder
from ..nets import TextConditioned
from ..noise import generator
from . import budget, optimizers, setup
from . import config as beginnings_config
from .batches import DROPOUT, Batches, Objective, TrainingBatch, faster_precision
from .budget import State, TrainStep
from .callback import Callback, report
from .callbacks import complete, defaults
from .distributed import like, rank_and_world, shard, stop_signals, total, whole
from .ema import Ema

# what settings were called in the first version's runs, which are still continued
_NOW = {
    "density": "sigma_distribution", "density_options": "sigma_distribution_options", "weight": "loss_weighting",
    "weight_options": "loss_weighting_options", "text": "captions", "begin": "init_from",
    "label_dropout": "cond_dropout", "clip": "grad_clip",
}  # fmt: skip
BAD_IN_A_ROW = 3  # batches whose loss is not a number, after which training stops


@dataclass(eq=False)
class Learner:
    """A training run. Its keywords are its configuration: a folder that holds another one is not continued.

    Args:
        data: A data set, or what ``data.load`` takes: "digits", "fashion-mnist", a folder of pictures.
        net: A name in ``nets.PRESETS``, or a specification {"name": "unet", ...}.
        parameterization: What the net predicts; a name in ``denoisers.PARAMETERIZATIONS``.
        density: Which noise levels are trained; a name in ``schedules.DENSITIES``, with ``density_options``.
        weight: What an error counts at each level; a name in ``losses.WEIGHTS``, with ``weight_options``.
        uncertainty: Learn the weight's balance over the levels as well (EDM2, Karras et al. 2024, eq. 14).
        text: Read the captions by a text encoder that is trained along, and take words when sampling.
        codec: An autoencoder, or the file of one: train in its latents.
        begin: The file of a trained model to go on from, with its net and words; its codec too, unless one is given.
        restore: Learn to undo this, as ``corruptions.parse`` reads it: "blur 0.5..3, jpeg 10..60". Data sets of pairs
            need no such word.
        self_condition: Also tell the net its own estimate, in half of the cases (Chen et al. 2022).
        sigma_data: Standard deviation of the data; by default measured.
        label_dropout: Part of the pictures trained without their label, for guidance (Ho & Salimans 2022).
        augment: Names in ``data.augment.AUGMENTS``, e.g. ``augment.EDM``; the net is told of them, so they do not leak.
        augment_p: Probability of each.
        dropout: The net's.
        optimizer: A name in ``optimizers.OPTIMIZERS``.
        lr: Highest learning rate, by default 0.001. ``optimizers.find_lr(learner)`` measures one.
        weight_decay: Of AdamW or Muon.
        batch_size: Pictures per step, over all processes and accumulated parts.
        accumulate: Parts that a batch is computed in, one after the other, to save memory.
        clip: Longest gradient; 0 is off.
        warmup: Steps in which the learning rate rises.
        decay: Last part of the run in which it falls to 0, up to 0.95.
        ema: Lengths of the averages of the weights, as parts of the run (EDM2, sec. 3). The model is the last one; at
            the end of the run it is the one with the lowest validation loss.
        holdout: Part of the data kept for the validation loss.
        precision: "float32", "bfloat16", or "auto": the faster of them, measured.
        compile: Use torch.compile; "auto": on a GPU. It costs minutes before it gains.
        shard: Divide weights and optimizer among the processes (FSDP2) instead of copying them (DDP).
        folder: Where the run lives; None keeps it in memory.
        seed: Of everything.
        save_every: Seconds between checkpoints, or more, so that saving takes at most 2 % of the time.
        track: "tensorboard", "trackio" or "wandb", through Accelerate, beside metrics.jsonl and report.html.
        cpu: Stay on the CPU where there is a GPU.
        verbose: Print what is going on.
    """

    data: Dataset | str
    net: str | dict[str, Any] = "unet-small"
    parameterization: str = "edm"
    sigma_distribution: str = "lognormal"
    sigma_distribution_options: dict[str, float] = field(default_factory=dict)
    loss_weighting: str = "edm"
    loss_weighting_options: dict[str, float] = field(default_factory=dict)
    uncertainty: bool = False
    captions: bool = False
    autoencoder: str | Path | nn.Module | None = None
    init_from: str | Path | None = None
    restore: str | None = None
    self_condition: bool = False
    sigma_data: float | None = None
    cond_dropout: float = 0.1
    augment: Sequence[str] = ()
    augment_p: float = 0.12
    dropout: float = 0.0
    optimizer: str = "auto"
    lr: float | None = None
    weight_decay: float = 0.0
    batch_size: int = 64
    grad_accumulation: int = 1
    grad_clip: float = 1.0
    warmup: int = 100
    decay: float = 0.5
    ema: Sequence[float] = (0.05, 0.1)
    holdout: float = 0.05
    precision: str = "auto"
    compile: bool | str = False
    shard: bool = False
    folder: str | Path | None = None
    seed: int = 0
    save_every: float = 30.0
    track: str | None = None
    cpu: bool = False
    verbose: bool = True

    # what may differ between two commands that continue one run
    FREE = frozenset(
        {"folder", "autoencoder", "save_every", "track", "cpu", "verbose", "compile", "shard", "grad_accumulation"}
    )

    def __post_init__(self) -> None:
        if self.optimizer == "auto":
            self.optimizer = optimizers.default(self.shard)
        beginnings_config.check(self)
        self.rank, self.world = rank_and_world()
        self.data = datasets.load(self.data) if isinstance(self.data, str) else self.data
        self.base = None if self.init_from is None else load(self.init_from)
        if self.base is not None and self.autoencoder is None:
            self.autoencoder = self.base.modules.get("autoencoder")
        if self.autoencoder is not None:
            self.autoencoder = (
                load_autoencoder(self.autoencoder) if isinstance(self.autoencoder, str | Path) else self.autoencoder
            )
            self.data = Latents(self.data, self.autoencoder)
        self.train, self.held_out = self.data.split(self.holdout, self.seed)
        self.corruption = None if self.restore is None else parse(self.restore)
        inherited = None if self.base is None else self.base.sigma_data
        self.measured_sigma_data, self.unit = setup.scale(self.train, self.corruption, self.sigma_data, inherited)
        self.levels = setup.levels(self)
        self.run = Folder(self.folder) if self.folder is not None else None
        self.stopped = 0  # the signal that asked for an end
        self.save_due = self.best = False  # whether to save after this step, and whether as the best
        self.validation: float | None = None  # of this step, if it was measured
        self.record: dict[str, Any] | None = None  # this step's line of metrics.jsonl, if it has one
        self.highest_lr = optimizers.RATES[self.optimizer] if self.lr is None else self.lr
        self._signals: list[int] = []
        self._saved = (0.0, 0.0)  # when and how long the last checkpoint took; the first step's tries out the disk
        self._build()

    def _build(self) -> None:
        """The net on its device, optimizers, averages and the stream of examples, all at step 0."""
        from accelerate import Accelerator

        self.state = State(precision=None if self.precision == "auto" else self.precision)
        denoiser = setup.denoiser(self)
        net = denoiser.net
        self.batches = Batches(
            self.train, self.batch_size, self.seed, self.sigma_distribution, self.levels, self.unit,
            self.cond_dropout, self.augment, self.augment_p, self.self_condition,
            net.text_encoder.tokens if isinstance(net, TextConditioned) else None, self.corruption,
            self.rank, self.world,
        )  # fmt: skip
        self.objective = Objective(
            denoiser, self.unit, self.loss_weighting, self.loss_weighting_options, self.uncertainty
        )
        cpu = self.cpu or not torch.accelerator.is_available()  # accelerate joins processes on CPUs only if told so
        self.accelerator = Accelerator(cpu=cpu, log_with=self.track, project_dir=self.folder)
        self.device = self.accelerator.device
        self.objective.to(self.device)
        if self.shard and self.world > 1:
            shard(self.objective)
        if self.compile is True or (self.compile == "auto" and self.device.type == "cuda"):
            net.compile()
        self.trained = self.objective
        if self.world > 1 and not self.shard:
            self.trained = self.accelerator.prepare(self.objective)
            if self.trained is self.objective:
                raise FastdiffusionError("The processes are not joined, and would train apart. Start them by --procs.")
        self.optimizers = optimizers.build(self.optimizer, self.objective, self.highest_lr, self.weight_decay)
        self.average = Ema(net, self.ema)  # both after the joining, which may lay the weights elsewhere

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as JSON: what two runs must share to be one."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.FREE}
        settings["init_from"] = None if self.init_from is None else Path(self.init_from).name
        return json.loads(json.dumps({**settings, "data": self.train.fingerprint}))

    @property
    def info(self) -> dict[str, Any]:
        """What the model file and the report say of the run."""
        s = self.state
        net = self.net if isinstance(self.net, str) else self.net["name"]
        summary = {
            "data": self.train.name, "net": net if self.base is None else self.base.info.get("net", "as it began"),
            "pictures": len(self.train), "steps": s.step, "images_seen": s.step * self.batch_size,
            "minutes": round(s.seconds / 60, 2), "sigma_data": self.measured_sigma_data,
        }  # fmt: skip
        summary |= {"options": dict(self.train.options)} if self.train.options else {}
        return summary if s.validation is None else {**summary, "validation_loss": round(s.validation, 5)}

    @property
    def model(self) -> Model:
        """The averaged model as it stands, a copy of its own."""
        return self.averaged(self.state.length or float(self.ema[-1]) if self.state.step else None)

    def averaged(self, length: float | None) -> Model:
        """The model with the weights averaged over ``length`` of the run; None: the last weights."""
        denoiser = self.objective.denoiser
        frame = Model(
            denoiser, self.train.shape, self.train.classes, 0.002 * self.unit, 80.0 * self.unit,
            info=self.info | {"ema": length},
            autoencoder=cast("Any", self.autoencoder),
            corruption="pairs" if self.train.cond_channels else self.corruption and str(self.corruption),
        )  # fmt: skip
        tensors = {name: whole(t.detach()) for name, t in models.tensors(frame).items()}
        if length is not None:
            tensors |= {f"net.{name}": whole(t) for name, t in self.average.weights(length).items()}
        return models.from_spec(models.spec(frame), tensors).to(self.device)

    # ---- one step ---------------------------------------------------------------------------------------------

    def draw(self, step: int) -> list[TrainingBatch]:
        """This process's part of a step's batch, on the device, in ``accumulate`` pieces."""
        return self.batches.draw(step).split(self.grad_accumulation, self.device)

    def update(self, microbatches: list[TrainingBatch], lr: float) -> tuple[float, float, Tensor]:
        """Learn from one batch, if its gradient is finite: (loss, length of the gradient, each picture's loss)."""
        if self.dropout:
            torch.manual_seed(generator(self.seed, DROPOUT, self.state.step, self.rank).initial_seed() % 2**63)
        each: list[Tensor] = []
        for i, microbatch in enumerate(microbatches):
            wait = i < len(microbatches) - 1 and self.trained is not self.objective
            with self.trained.no_sync() if wait else nullcontext():  # pyright: ignore
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.state.precision == "bfloat16"):
                    loss = self.trained(microbatch)
                (loss.mean() / len(microbatches)).backward()
                each.append(loss.detach())
        norm = whole(nn.utils.clip_grad_norm_(self.objective.parameters(), self.grad_clip or math.inf))
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
        """The pictures whose loss is not a number; the whole batch if it is only the gradient that is not."""
        names = [name for microbatch in microbatches for name in microbatch.names]
        wrong = [name for name, finite in zip(names, each.isfinite().tolist(), strict=True) if not finite]
        if self.world > 1:
            from accelerate.utils import gather_object

            names, wrong = gather_object(names), gather_object(wrong)
        return tuple(wrong or names)

    # ---- the run ----------------------------------------------------------------------------------------------

    def steps(self, steps: int | None = None, minutes: float | None = None) -> Iterator[TrainStep]:
        """Train, and show each step. To stop early is to stop iterating; the next call goes on from there.

        Args:
            steps: Steps of the whole run, those already done included.
            minutes: Training time of the whole run, instead: the number of steps then follows from the speed.
        """
        s = self.state
        s.plan(steps, minutes, self.decay)
        if s.precision is None:
            s.precision = faster_precision(self.objective, self.draw(s.step)[0])
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
                settles = s.settle(pace, self.decay)
                yield TrainStep(s.step, s.total, loss, norm, lr, pace * self.batch_size, s.seconds, s.left(pace), bad)
                if s.bad >= BAD_IN_A_ROW:
                    self._abort(bad)
                if settles:
                    self.save()  # this decision was a measurement: it must not be lost

    def _lr(self) -> float:
        """Learning rate at this step."""
        s = self.state
        warmup = self.warmup if s.decay_from is None else min(self.warmup, (s.decay_from - s.start) // 5)
        decay_from = None if self.optimizer == "schedule_free" else s.decay_from
        return self.highest_lr * optimizers.rate(s.step, s.start, warmup, decay_from, s.total)

    def _agree(self, loss: float, pace: float, started: float) -> tuple[float, float]:
        """What all processes must do alike: the mean loss, the speed, the clock, when to save, whether to stop."""
        now, got = time.perf_counter(), self._signals[0] if self._signals else 0
        due = now - self._saved[0] > max(self.save_every, 50 * self._saved[1])
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
            f"Training stopped at the last good state (step {self.state.step:,}). Look at these pictures, or lower lr."
        )

    @torch.no_grad()
    def validate(self, microbatches: Sequence[TrainingBatch], length: float | None = None) -> float:
        """Mean loss on examples of the averaged model, by default of the last length."""
        with self.average.applied(length or float(self.ema[-1])):
            self.objective.eval()
            value = torch.cat([self.objective(microbatch) for microbatch in microbatches]).mean()
            self.objective.train()
        return float(value)

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, configuration): the whole run."""
        inner, settings = optimizers.pack(self.optimizers)
        groups = {"model": self.objective.state_dict(), "ema": self.average.state_dict(), "optimizer": inner}
        tensors = {f"{part}.{name}": whole(t.detach()) for part, named in groups.items() for name, t in named.items()}
        return tensors, {"learner": self.config, "state": asdict(self.state), "optimizer": settings}

    def unpack(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Become the run that :meth:`pack` saw."""

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}

        for mine in (self.objective, self.average):
            own, saved = mine.state_dict(), part("model" if mine is self.objective else "ema")
            mine.load_state_dict({name: like(own[name], saved[name]) for name in own})
        optimizers.unpack(self.optimizers, part("optimizer"), config["optimizer"])
        self.state = State(**config["state"])

    def save(self) -> None:
        """Write a checkpoint into the run's folder, if it has one."""
        if self.run is None:
            return
        packed, started = self.pack(), time.perf_counter()
        if self.main:
            self.run.save(self.state.step, *packed, best=self.best)
            self._saved = (time.perf_counter(), time.perf_counter() - started)
        self.save_due = self.best = False

    def resume(self, fresh: bool = False) -> None:
        """Go on from the newest checkpoint in the folder; ``fresh`` forgets it and begins anew.

        Raises InputError if the folder holds a run of another configuration.
        """
        if fresh:
            if self.state.step:
                self._build()
            if self.run is not None and self.main:
                self.run.clear()
        self.accelerator.wait_for_everyone()
        latest = None if fresh or self.run is None else self.run.latest()
        if latest is None or latest[0] < self.state.step:
            return
        step, config, tensors = latest
        then = {_NOW.get(name, name): value for name, value in config.get("learner", {}).items()}
        now = self.config
        changed = sorted(name for name in now if now[name] != then.get(name))
        if changed:
            what = ", ".join("other data" if n == "data" else f"{n}={then.get(n)!r} (now {now[n]!r})" for n in changed)
            raise InputError(
                f"{self.folder} holds a run with {what}. Give it as it was, choose another folder, "
                "or start anew with fresh=True (--fresh)."
            )
        try:
            self.unpack(tensors, config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint of step {step} does not fit this version ({error}). Use --fresh."
            ) from None

    def fit(
        self,
        minutes: float | None = None,
        steps: int | None = None,
        fresh: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> Learner:
        """Train until the budget of the run is used up, going on where its folder left off; ten minutes by default.

        The first Ctrl-C or SIGTERM ends after the present step with a checkpoint, the second one at once.

        Args:
            minutes: Budget in time, of all sessions together.
            steps: Budget in steps, instead.
            fresh: Forget what is in the folder.
            callbacks: Called after the usual ones (``callbacks.defaults``), in this order.
        """
        minutes = 10.0 if minutes is None and steps is None else minutes
        budget.check(steps, minutes)
        with ExitStack() as stack:
            if self.run is not None and self.main:
                stack.enter_context(self.run.lock())
            self._signals = stack.enter_context(stop_signals())
            self.resume(fresh)
            jobs = [*defaults(self), *callbacks]
            loop = self.steps(steps, minutes)
            first = next(loop, None)
            if first is None and (self.run is None or complete(self.run.path, self.state.step)):
                spent = f"{self.state.step:,} steps, {self.state.seconds / 60:.1f} minutes"
                report(self, f"This run has had its budget ({spent}). Give more --minutes or --steps, or --fresh.")
                return self
            self.start = self.state.step  # of this session; with no step left, its results were never written
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
