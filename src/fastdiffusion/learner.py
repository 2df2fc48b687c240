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
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import data as datasets
from . import losses, nets, optimizers, tokenizers
from .budgets import State, TrainStep
from .callbacks import Callback, defaults, say
from .checkpoints import Folder
from .corruptions import parse
from .data import Dataset, augment
from .denoisers import PARAMETERIZATIONS, Denoiser
from .distributed import check_world, like, rank_and_world, stop_signals, total, whole
from .ema import Ema
from .errors import CheckpointError, DataError, FastdiffusionError, InputError, missing, unknown
from .examples import DROPOUT, WEIGHTS, Example, Examples, Objective, faster_precision, measure_damage
from .latents import Latents
from .models import Model, load, load_codec
from .nets.text import normalized
from .noise import generator
from .schedules import DENSITIES

TRACKERS = ("tensorboard", "trackio", "wandb")
VOCABULARY = 4096  # most tokens of a text encoder
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
    density: str = "lognormal"
    density_options: dict[str, float] = field(default_factory=dict)
    weight: str = "edm"
    weight_options: dict[str, float] = field(default_factory=dict)
    uncertainty: bool = False
    text: bool = False
    codec: str | Path | nn.Module | None = None
    begin: str | Path | None = None
    restore: str | None = None
    self_condition: bool = False
    sigma_data: float | None = None
    label_dropout: float = 0.1
    augment: Sequence[str] = ()
    augment_p: float = 0.12
    dropout: float = 0.0
    optimizer: str = "auto"
    lr: float | None = None
    weight_decay: float = 0.0
    batch_size: int = 64
    accumulate: int = 1
    clip: float = 1.0
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
    FREE = frozenset({"folder", "codec", "save_every", "track", "cpu", "verbose", "compile", "shard", "accumulate"})

    def __post_init__(self) -> None:
        if self.optimizer == "auto":
            self.optimizer = optimizers.default(self.shard)
        self._check()
        self.rank, self.world = rank_and_world()
        self.data = datasets.load(self.data) if isinstance(self.data, str) else self.data
        self.base = None if self.begin is None else load(self.begin)
        if self.base is not None and self.codec is None:
            self.codec = self.base.codec
        if self.codec is not None:
            self.codec = load_codec(self.codec) if isinstance(self.codec, str | Path) else self.codec
            self.data = Latents(self.data, self.codec)
        self.train, self.held_out = self.data.split(self.holdout, self.seed)
        self.run = Folder(self.folder) if self.folder is not None else None
        self.stopped = 0  # the signal that asked for an end
        self.save_due = self.best = False  # whether to save after this step, and whether as the best
        self.validation: float | None = None  # of this step, if it was measured
        self.record: dict[str, Any] | None = None  # this step's line of metrics.jsonl, if it has one
        self.highest_lr = optimizers.RATES[self.optimizer] if self.lr is None else self.lr
        self._signals: list[int] = []
        self._saved = (0.0, 0.0)  # when and how long the last checkpoint took; the first step's tries out the disk
        self._measure_data()
        self._build()

    def _check(self) -> None:
        """Refuse what cannot be trained, before anything is loaded."""
        for kind, name, known in (
            ("parameterization", self.parameterization, PARAMETERIZATIONS),
            ("density", self.density, DENSITIES),
            ("weight", self.weight, losses.WEIGHTS),
            ("optimizer", self.optimizer, optimizers.OPTIMIZERS),
            ("precision", self.precision, ("auto", "float32", "bfloat16")),
            ("tracker", self.track or "tensorboard", TRACKERS),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        if isinstance(self.net, str) and self.net not in nets.PRESETS:
            raise unknown("net", self.net, nets.PRESETS)
        one = torch.full((1,), 0.5)
        for kind, options, f in (
            (f"weight {self.weight}", self.weight_options, losses.WEIGHTS[self.weight]),
            (f"density {self.density}", self.density_options, DENSITIES[self.density]),
        ):
            try:
                f(one, **options)
            except TypeError as error:
                raise InputError(f"{kind} does not take these options ({error}).") from None
        check_world()
        parts = rank_and_world()[1] * self.accumulate
        if self.batch_size < 1 or self.accumulate < 1 or self.batch_size % parts:
            raise InputError(
                f"batch_size must be a multiple of processes times accumulate, here {parts}; got {self.batch_size}."
            )
        if self.track and find_spec(self.track) is None:
            raise missing(f"track={self.track!r}", self.track, "track")
        if self.track and self.folder is None:
            raise InputError(f"track={self.track!r} needs a place to write. Give folder='runs/one'.")
        if not self.ema:
            raise InputError("ema needs at least one length, e.g. ema=(0.1,).")
        if self.restore is not None and self.codec is not None:
            raise InputError("Restoring works on pictures, not on latents. Leave out restore or codec.")
        if self.restore is not None:
            parse(self.restore)
        if not 0 <= self.decay <= 0.95:
            raise InputError(f"decay must be from 0 to 0.95, got {self.decay}. Try 0.5.")
        if self.shard and self.optimizer == "muon":
            raise InputError("Muon needs whole matrices and cannot train with shard. Use optimizer='adamw'.")

    def _measure_data(self) -> None:
        """sigma_data, and the unit in which noise levels are counted: 1 for pictures, for other data its own scale."""
        rows = self.train.groups[0]
        pictures = not self.train.batch(rows[:1]).images.is_floating_point()
        if pictures:
            measured = datasets.measure_sigma_data(self.train)
        else:
            some = self.train.batch(rows[:: math.ceil(len(rows) / 512)]).images.double()
            measured = float(some[some.isfinite()].std())
        if self.restores:
            measured = measure_damage(self.train, None if self.restore is None else parse(self.restore))
        if self.sigma_data is not None and not 0.8 < self.sigma_data / measured < 1.25:
            text = f"sigma_data is {self.sigma_data:.3g} but the data's standard deviation is {measured:.3g}."
            warnings.warn(f"{text} Leave sigma_data out to have it measured.", stacklevel=4)
        self.measured_sigma_data = self.sigma_data or round(measured, 4)
        self.unit = 1.0 if pictures else self.measured_sigma_data / 0.5

    def _build(self) -> None:
        """The net on its device, optimizers, averages and the stream of examples, all at step 0."""
        from accelerate import Accelerator

        self.state = State(precision=None if self.precision == "auto" else self.precision)
        channels = self.train.shape[0]
        corruption = None if self.restore is None else parse(self.restore)
        picture = self.train.given or (0 if corruption is None else channels)
        self.corruption = "pairs" if self.train.given else None if corruption is None else str(corruption)
        net = self._net(picture) if self.base is None else self._taken(self.base, picture)
        self.examples = Examples(
            self.train, self.batch_size, self.seed, self.density, self.levels, self.unit,
            self.label_dropout, self.augment, self.augment_p, self.self_condition,
            net.words.tokens if isinstance(net, nets.Worded) else None, corruption, self.rank, self.world,
        )  # fmt: skip
        denoiser = Denoiser(net, self.parameterization, self.measured_sigma_data, self.self_condition, picture)
        self.objective = Objective(denoiser, self.unit, self.weight, self.weight_options, self.uncertainty)
        where = str(self.folder) if self.folder is not None else None
        self.accelerator = Accelerator(cpu=self.cpu, log_with=self.track, project_dir=where)
        self.device = self.accelerator.device
        self.objective.to(self.device)
        if self.shard and self.world > 1:
            from torch.distributed.fsdp import fully_shard

            for p in self.objective.parameters():
                p.data = p.data.contiguous()  # FSDP takes no other order
            fully_shard(self.objective)
        self.optimizers = optimizers.build(self.optimizer, self.objective, self.highest_lr, self.weight_decay)
        self.average = Ema(net, self.ema)
        if self.compile is True or (self.compile == "auto" and self.device.type == "cuda"):
            net.compile()
        self.trained = self.objective
        if self.world > 1 and not self.shard:
            self.trained = self.accelerator.prepare(self.objective)

    def _net(self, picture: int) -> nn.Module:
        """The net with fresh weights, and its words."""
        channels = self.train.shape[0]
        spec = nets.PRESETS[self.net] if isinstance(self.net, str) else self.net
        spec = {
            **spec, "in_channels": channels * (2 if self.self_condition else 1) + picture, "out_channels": channels,
            "classes": len(self.train.classes), "dropout": self.dropout, "augment": augment.length(self.augment),
        }  # fmt: skip
        tokenizer = tokenizers.train(self._texts(), VOCABULARY) if self.text else None
        if tokenizer is not None:
            spec["words"] = {"vocabulary": len(tokenizer), **spec.get("words", {})}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, WEIGHTS).initial_seed() % 2**63)
            net = nets.build(spec)
        if isinstance(net, nets.Worded):
            assert tokenizer is not None
            net.words.learn_words(tokenizer)
        return net

    def _taken(self, base: Model, picture: int) -> nn.Module:
        """The net of a trained model, if it is one of such data."""
        denoiser = base.denoiser
        has = (base.shape[0], base.classes, base.words is not None, denoiser.picture, denoiser.self_condition)
        wants = (self.train.shape[0], self.train.classes, self.text, picture, self.self_condition)
        if has != wants or denoiser.parameterization != self.parameterization:
            raise InputError(
                f"{Path(self.begin or '').name} cannot go on here. (channels, classes, words, given channels, "
                f"self_condition) are {has} there and {wants} here, and it predicts {denoiser.parameterization}."
            )
        return deepcopy(denoiser.net).train()

    def _texts(self) -> list[str]:
        """The captions as the text encoder will read them."""
        texts = [normalized(text) for text in self.train.texts()]
        if not texts:
            raise DataError(
                f"{self.train.name} has no captions to learn words from. Put a NAME.txt beside each NAME.png, or a "
                "metadata.jsonl with file_name and text; or leave out --text."
            )
        return texts

    @property
    def restores(self) -> bool:
        """Whether the model is given a picture to work from."""
        return self.restore is not None or self.train.given > 0

    @property
    def levels(self) -> dict[str, float]:
        """Options of the density. A restorer gives its one-call answer at the highest noise level: train much there."""
        return (
            {"mean": 1.5, "std": 2.2}
            if self.restores and (self.density, self.density_options) == ("lognormal", {})
            else (self.density_options)
        )

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as JSON: what two runs must share to be one."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.FREE}
        given["begin"] = None if self.begin is None else Path(self.begin).name
        return json.loads(json.dumps({**given, "data": self.train.fingerprint}))

    @property
    def info(self) -> dict[str, Any]:
        """What the model file and the report say of the run."""
        s, name = self.state, self.net if isinstance(self.net, str) else self.net["name"]
        said = {
            "data": self.train.name,
            "net": name,
            "pictures": len(self.train),
            "steps": s.step,
            "images_seen": s.step * self.batch_size,
            "minutes": round(s.seconds / 60, 2),
            "sigma_data": self.measured_sigma_data,
        }
        return said if s.validation is None else {**said, "validation_loss": round(s.validation, 5)}

    @property
    def model(self) -> Model:
        """The averaged model as it stands, a copy of its own."""
        return self.averaged(self.state.length or float(self.ema[-1]) if self.state.step else None)

    def averaged(self, length: float | None) -> Model:
        """The model with the weights averaged over ``length`` of the run; None: the last weights."""
        denoiser = self.objective.denoiser
        frame = Model(
            denoiser, self.train.shape, self.train.classes, 0.002 * self.unit, 80.0 * self.unit,
            info=self.info | {"ema": length}, codec=self.codec if isinstance(self.codec, nn.Module) else None,
            corruption=self.corruption,
        )  # fmt: skip
        tensors = {name: whole(t.detach()) for name, t in frame.tensors().items()}
        if length is not None:
            tensors |= {f"net.{name}": whole(t) for name, t in self.average.weights(length).items()}
        return Model.from_spec(frame.spec(), tensors).to(self.device)

    # ---- one step ---------------------------------------------------------------------------------------------

    def draw(self, step: int) -> list[Example]:
        """This process's part of a step's batch, on the device, in ``accumulate`` pieces."""
        return self.examples.draw(step).split(self.accumulate, self.device)

    def update(self, pieces: list[Example], lr: float) -> tuple[float, float, Tensor]:
        """Learn from one batch, if its gradient is finite: (loss, length of the gradient, each picture's loss)."""
        if self.dropout:
            torch.manual_seed(generator(self.seed, DROPOUT, self.state.step, self.rank).initial_seed() % 2**63)
        each: list[Tensor] = []
        for i, piece in enumerate(pieces):
            wait = i < len(pieces) - 1 and self.trained is not self.objective
            with self.trained.no_sync() if wait else nullcontext():  # pyright: ignore
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.state.precision == "bfloat16"):
                    loss = self.trained(piece)
                (loss.mean() / len(pieces)).backward()
                each.append(loss.detach())
        norm = whole(nn.utils.clip_grad_norm_(self.objective.parameters(), self.clip or math.inf))
        value, length = torch.stack(
            [torch.cat(each).mean(), norm]
        ).tolist()  # the one point where the processor waits for the device
        if math.isfinite(length):  # the same number in all processes, unlike the loss
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
            self.average.update(self.state.step + 1)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return value, length, torch.cat(each)

    def _culprits(self, pieces: list[Example], each: Tensor) -> tuple[str, ...]:
        """The pictures whose loss is not a number; the whole batch if it is only the gradient that is not."""
        names = [name for piece in pieces for name in piece.names]
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
        begun = time.perf_counter() - s.seconds
        ends, settled = deque([time.perf_counter()], maxlen=101), s.step + 4
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.draw, s.step)
            while not s.finished:
                pieces, coming = coming.result(), ahead.submit(self.draw, s.step + 1)
                lr = self._lr()
                loss, norm, each = self.update(pieces, lr)
                s.step += 1
                while s.step == settled and len(ends) > 1:
                    ends.popleft()  # the first steps are slower than all others
                ends.append(time.perf_counter())
                pace = (len(ends) - 1) / (ends[-1] - ends[0])
                loss = self._agree(loss, begun)
                bad = () if math.isfinite(norm) else self._culprits(pieces, each)
                s.bad = s.bad + 1 if bad else 0
                yield TrainStep(s.step, s.total, loss, norm, lr, pace * self.batch_size, s.seconds, s.left(pace), bad)
                if s.bad >= BAD_IN_A_ROW:
                    self._give_up(bad)
                if s.settle(pace, self.decay):
                    self.save()  # this decision was a measurement: it must not be lost

    def _lr(self) -> float:
        """Learning rate at this step."""
        s = self.state
        warmup = self.warmup if s.decay_from is None else min(self.warmup, (s.decay_from - s.start) // 5)
        decay_from = None if self.optimizer == "schedule_free" else s.decay_from
        return self.highest_lr * optimizers.rate(s.step, s.start, warmup, decay_from, s.total)

    def _agree(self, loss: float, begun: float) -> float:
        """What all processes must do alike: the mean loss, the clock, when to save, whether to stop."""
        now, got = time.perf_counter(), self._signals[0] if self._signals else 0
        due = now - self._saved[0] > max(self.save_every, 50 * self._saved[1])
        mine = [now - begun, float(due)] if self.main else [0.0, 0.0]
        mine += [loss / self.world, float(got == signal.SIGINT), float(got == signal.SIGTERM)]
        self.state.seconds, due, loss, interrupted, ended = total(mine, self.device)
        self.save_due = due > 0
        self.stopped = signal.SIGTERM if ended else signal.SIGINT if interrupted else 0
        return loss

    def _give_up(self, names: Sequence[str]) -> None:
        """Go back to the last checkpoint and end the run."""
        found = self.run.latest() if self.run is not None else None
        if found is not None:
            self.unpack(found[2], found[1])
        raise FastdiffusionError(
            f"{BAD_IN_A_ROW} batches in a row had a loss that is not a number, the last with {', '.join(names[:3])}. "
            f"Training stopped at the last good state (step {self.state.step:,}). Look at these pictures, or lower lr."
        )

    @torch.no_grad()
    def validate(self, pieces: Sequence[Example], length: float | None = None) -> float:
        """Mean loss on examples of the averaged model, by default of the last length."""
        with self.average.applied(length or float(self.ema[-1])):
            self.objective.eval()
            value = torch.cat([self.objective(piece) for piece in pieces]).mean()
            self.objective.train()
        return float(value)

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, configuration): the whole run."""
        inner, settings = optimizers.pack(self.optimizers)
        parts = {"model": self.objective.state_dict(), "ema": self.average.state_dict(), "optimizer": inner}
        tensors = {f"{part}.{name}": whole(t.detach()) for part, named in parts.items() for name, t in named.items()}
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
        packed, begun = self.pack(), time.perf_counter()
        if self.main:
            self.run.save(self.state.step, *packed, best=self.best)
            self._saved = (time.perf_counter(), time.perf_counter() - begun)
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
        found = None if fresh or self.run is None else self.run.latest()
        if found is None or found[0] < self.state.step:
            return
        step, config, tensors = found
        then, now = config.get("learner", {}), self.config
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
        with ExitStack() as stack:
            if self.run is not None and self.main:
                stack.enter_context(self.run.lock())
            self._signals = stack.enter_context(stop_signals())
            self.resume(fresh)
            jobs = [*defaults(self), *callbacks]
            loop = self.steps(steps, minutes)
            first = next(loop, None)
            if first is None:
                spent = f"{self.state.step:,} steps, {self.state.seconds / 60:.1f} minutes"
                say(self, f"This run has had its budget ({spent}). Give more --minutes or --steps, or --fresh.")
                return self
            self.start = first.step  # of this session
            for job in jobs:
                job.start(self)
            for step in chain([first], loop):
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
