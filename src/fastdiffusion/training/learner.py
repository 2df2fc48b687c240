"""Training of diffusion models: what the trainer is given for them.

learner = Learner("digits", net="unet-tiny", folder="runs/digits").fit(minutes=1)
images = sample(learner.model, n=16)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from .. import models
from ..data import Dataset
from ..data.dataset import common_size
from ..io.run_folder import Folder
from ..models import FILE, Autoencoder, Model, native_denoiser
from ..nets import TextConditioned
from ..options import fill
from . import optimizers, setup
from .batches import Batches, Objective, TrainingBatch, title
from .callback import Callback
from .config import TrainingConfig, renamed
from .distributed import place, rank_and_world, whole
from .ema import Ema
from .options import Budget
from .previews import preview
from .task import Part, Task, Updates
from .trainer import Trainer, check

HELD_OUT = 256  # images of the validation loss, at most
VALUES = 2**25  # and numbers in them
USUAL = 80_000  # images, after which a small net's samples look like the data (docs/lab-notes.md)


class Learner(Trainer):
    """A training run of a diffusion model. A folder that holds a run with other settings is not continued.

    Args:
        data: A data set, or what ``data.load`` takes: "digits", "fashion-mnist", a folder of images.
        net: See :class:`~fastdiffusion.training.config.TrainingConfig`.
        options: All other settings of it, by name: ``batch_size=32, folder="runs/one"``.

    Attributes:
        config: The settings, with what "auto" stands for.
        setup: What is trained on and started from; see :class:`~fastdiffusion.training.setup.Setup`.
        objective: The net in training, with its loss.
        batches: The stream of its batches.
    """

    average: Ema  # pyright: ignore[reportIncompatibleVariableOverride] # always there

    def __init__(self, data: Dataset | str, net: str | dict[str, Any] | None = None, **options: Any):
        config = fill(TrainingConfig, net=net, **options)
        check(config)
        setup.check(config)
        self.setup = setup.prepare(config, data, place(config.device))
        self._given = config
        self.config = self._decided(config, {} if config.folder is None else Folder(config.folder).settings())
        super().__init__(self._task(), self.config)

    def _decided(self, config: TrainingConfig, before: Mapping[str, Any]) -> TrainingConfig:
        """The settings with what was left open: as the run ``before`` in the folder has it, which is continued."""
        restores, base = self.setup.restores, self.setup.base
        # it would even out whatever weighting somebody chooses
        learned = not restores and (config.loss_weighting, config.loss_weighting_options) == ("edm", {})
        if base is not None:
            predicts = native_denoiser(base, "Training from a model").parameterization
        else:
            usual = "edm" if restores or self.setup.unit != 1 else "flow"  # a flow's path has no scale of its own
            predicts = before.get("parameterization", usual)
        return replace(
            config,
            net=config.net or ("restorer" if restores else "unet-small"),
            optimizer=optimizers.default(config.shard) if config.optimizer == "auto" else config.optimizer,
            parameterization=config.parameterization or predicts,
            uncertainty=before.get("uncertainty", learned) if config.uncertainty is None else config.uncertainty,
        )

    def _task(self) -> Task:
        """The net with fresh weights, and the stream of its batches."""
        config, data = self.config, self.setup
        denoiser = setup.denoiser(config, data)
        net = denoiser.net
        self.batches = self._stream(
            data.train, config.batch_size, config.seed,
            net.text_encoder.tokens if isinstance(net, TextConditioned) else None, config.cond_dropout, config.augment,
        )  # fmt: skip
        self.objective = Objective(
            denoiser, data.unit, config.loss_weighting, config.loss_weighting_options, bool(config.uncertainty)
        )
        if config.compile is True or (config.compile == "auto" and place(config.device).type == "cuda"):
            net.compile()
        return Task(
            {"model": Part(self.objective, self.objective, config.optimizer, config.lr, config.weight_decay)},
            self.batches.draw,
            config.identity(data.train.fingerprint),
            title(data.train), USUAL, "train", {"data": data.train.name},
            held_out=self._held_out(),
            updates=Updates(
                net, config.ema, config.warmup, 0.0 if config.optimizer == "schedule_free" else config.decay,
                config.grad_clip, config.grad_accumulation, config.shard, divided=True,
            ),
            preview=lambda: (preview(self.model, self.setup), 4), write=self._write, write_often=True, file=FILE,
        )  # fmt: skip

    def _stream(
        self, data: Dataset, n: int, seed: int, tokens: Any, cond_dropout: float = 0.0, augments: Sequence[str] = ()
    ) -> Batches:
        config, its = self.config, self.setup
        return Batches(
            data, n, seed, config.sigma_distribution, its.levels, its.unit, cond_dropout, augments, config.augment_p,
            config.self_condition, tokens, its.corruption, *rank_and_world(),
        )  # fmt: skip

    def _held_out(self) -> list[TrainingBatch]:
        """Held-out images with noise that never changes: the first batches of a stream that is never continued."""
        held, world = self.setup.held_out, rank_and_world()[1]
        n = min(64, self.config.batch_size, len(held)) // world * world
        if not n:
            return []
        stream = self._stream(held, n, -1, self.batches.tokens)
        limit = max(VALUES // (n * math.prod(held.shape)), 1)  # all stay in memory
        return [stream.draw(i) for i in range(min(stream.per_epoch, HELD_OUT // n, limit))]

    def differences(self, then: Mapping[str, Any]) -> str:
        """How this run's identity differs from one that is stored, perhaps by an earlier version; "" if not."""
        return super().differences(renamed(then))

    @property
    def info(self) -> dict[str, Any]:
        """What the model file and the report say of the run."""
        net, data, base = self.config.net, self.setup.train, self.setup.base
        name = net["name"] if isinstance(net, dict) else net
        summary = {
            "data": data.name, "net": name if base is None else base.info.get("net", "as it began"),
            "pictures": len(data), **super().info, "sigma_data": self.setup.sigma_data,
        }  # fmt: skip
        if self.setup.autoencoder is None and (sides := common_size(data)) != data.shape[1:]:
            summary["size"] = list(sides)  # what sampling makes by default
        return summary | ({"options": dict(data.options)} if data.options else {})

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

    def _write(self, folder: Path) -> dict[str, Any]:
        """The averaged model, into the run's folder."""
        model = self.model
        if self.main:
            models.save(model, folder / FILE)
        return {**model.info, "parameters": f"{model.parameters_count:,}"}

    def resume(self, fresh: bool = False) -> None:
        """Continue from the newest checkpoint in the folder; ``fresh`` forgets it and starts anew."""
        config = self._decided(self._given, {}) if fresh else self.config
        if fresh and (self.state.step or config != self.config):
            self.config = self.options = config
            self.set_up(self._task())
        super().resume(fresh)

    def fit(self, *, callbacks: Sequence[Callback] = (), **options: Any) -> Self:  # pyright: ignore
        """Train until the budget of the run is used up, continuing what is in its folder; ten minutes by default.

        The first Ctrl-C or SIGTERM ends after the present step with a checkpoint, the second one at once.

        Args:
            callbacks: Called after the usual ones (``callbacks.defaults``), in this order.
            options: ``minutes`` or ``steps``, of all sessions together, and ``fresh``; see
                :class:`~fastdiffusion.training.options.Budget`.
        """
        chosen = fill(Budget, **options)
        minutes = 10.0 if chosen.minutes is None and chosen.steps is None else chosen.minutes
        return super().fit(**{**vars(chosen), "minutes": minutes}, callbacks=callbacks)
