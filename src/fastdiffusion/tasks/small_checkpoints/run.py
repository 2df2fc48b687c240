"""All stages of one checkpoint, one after the other; the same call goes on where the last one stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import losses, schedules
from ...data import Dataset
from ...data.latents import Latents
from ...device import best_device, device_of
from ...errors import DataError, InputError
from ...models import Model, load_autoencoder
from ...noise import Stream, generator
from ...options import refuse
from ...training.config import TrainingConfig
from ...training.models import Denoising, averaging, model_task, settle
from ...training.options import Budget
from ...training.task import Task
from ...training.trainer import Trainer
from .heads import LevelsHead, PatchHead
from .stages import DENOISER, EMA, STAGES, autoencoder_task, caption_task, deviation

# What each stage takes of the minutes, and its usual batch and learning rate (docs/lab-notes.md)
SHARES = {"autoencoder": 0.25, "captions": 0.25, "levels": 0.05, DENOISER: 0.45}
BATCHES = {"autoencoder": 16, "captions": 64, "levels": 128, DENOISER: 64}
RATES = {"autoencoder": 6e-3, "captions": 6e-3, "levels": 6e-3, DENOISER: 6e-3}
KNOWN = frozenset(
    {"net", "folder", "autoencoder", "batch_size", "seed", "device", "save_every", "verbose", "track", "captions"}
)
SIDE = 16  # of the latents


@dataclass
class _Run:
    """A run: its settings, and what the stages so far have made."""

    net: str
    data: Dataset
    config: TrainingConfig
    budget: Budget
    stages: tuple[str, ...]

    def train(self, stage: str, task: Callable[[Any], Task], average: bool = True) -> Trainer:
        """Train one stage to the end of its share of the budget."""
        share = SHARES[stage] / sum(SHARES[name] for name in self.stages)
        place = None if self.config.folder is None else Path(self.config.folder) / STAGES / stage
        options = replace(
            self.config, folder=place, batch_size=max(BATCHES[stage] * self.config.batch_size // BATCHES[DENOISER], 1),
            lr=RATES[stage], optimizer="muon", precision="float32",
        )  # fmt: skip
        minutes, steps = self.budget.minutes, self.budget.steps
        trainer = (averaging if average else Trainer)(task(options), options)
        trainer.fit(steps, None if minutes is None else share * minutes, self.budget.fresh)
        if average:
            settle(trainer)
        return trainer

    def seeded(self, make: Callable[[], Any], number: int) -> Any:
        """Something with fresh weights, the same for each seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.config.seed, Stream.WEIGHTS, number).initial_seed() % 2**63)
            return make()


def train_small(data: Dataset, config: TrainingConfig, budget: Budget) -> Model:
    """A checkpoint of ``config.net``'s classes for captioned images of 64 pixels, in ``config.folder``.

    Its autoencoder learns images, or the latents of ``config.autoencoder``; its text encoder the mean latents of the
    captions, by a regression that costs little; a UNet's lower levels the same; then the denoiser all that is left.

    Raises:
        InputError: A setting that does nothing here.
        DataError: No captions, or images of another size.
    """
    from ...adapters import load, small

    refuse(config, [f.name for f in fields(config) if f.name not in KNOWN], f"with --net {config.net}")
    if config.folder is None:
        raise InputError("A checkpoint of several parts needs a place to be written. Give folder='runs/one'.")
    if not any(data.texts()):
        raise DataError(f"{data.name} has no captions. Put a text of the same name beside each image.")
    if tuple(data.shape) != (shape := (3, small.FACTOR * SIDE, small.FACTOR * SIDE)):
        raise DataError(f"--net {config.net} learns images of shape {shape}, got {tuple(data.shape)}. Use --size 64.")
    net, device = str(config.net), device_of(config.device or best_device())
    unet = net == "sd-small"
    run = _Run(net, data, config, budget, ("autoencoder", "captions", *(["levels"] if unet else []), DENOISER))
    autoencoder, latents = _autoencoder(run)
    mean, scale = deviation(latents)
    tokenizer = small.learn_tokenizer(data.texts())
    made = run.seeded(partial(small.parts, net, tokenizer, SIDE, 1 / scale, mean), 1)
    made["vae"].load_state_dict(autoencoder.net.state_dict())
    _captions(run, made, tokenizer, latents)
    folder = Path(config.folder)
    start = folder / STAGES / "start"
    small.write(start, net, made, torch.float32)
    _denoiser(run, load(start, device), latents, partial(small.write, net=net), made["scheduler"])
    return load(folder, device, precision="float32")


def _autoencoder(run: _Run) -> tuple[Any, Latents]:
    """The trained autoencoder, and the images in its latents, or in those that it learned from another."""
    from ...adapters import small

    teacher, latents = run.config.autoencoder, None
    if teacher is not None:
        latents = Latents(run.data, load_autoencoder(teacher) if isinstance(teacher, str | Path) else teacher)
        if tuple(latents.shape) != (small.CHANNELS, SIDE, SIDE):
            raise InputError(
                f"The autoencoder makes latents of shape {latents.shape}, not {(small.CHANNELS, SIDE, SIDE)}."
            )
    net = run.seeded(lambda: small.Moments(small.autoencoder(SIDE)), 0)
    run.train("autoencoder", lambda options: autoencoder_task(net, run.data, latents, options, {}))
    return net, Latents(run.data, net) if latents is None else latents


def _captions(run: _Run, made: dict[str, Any], tokenizer: Any, latents: Latents) -> None:
    """The first text encoder learns the mean latents, and then with the UNet's lower levels."""
    from ...adapters import small

    encoder = run.seeded(partial(small.text_encoder, tokenizer), 2)
    head = run.seeded(partial(PatchHead, small.WIDTH, *latents.shape[:2]), 3)
    run.train("captions", lambda options: caption_task(encoder, tokenizer, head, latents, options, {}), False)
    small.take_text_encoder(made["text_encoder"], encoder)
    if "levels" in run.stages:
        low = run.seeded(partial(LevelsHead, made["unet"]), 4)
        learned = made["text_encoder"]
        run.train("levels", lambda options: caption_task(learned, tokenizer, low, latents, options, {}), False)


def _denoiser(run: _Run, model: Model, latents: Latents, write: Callable[..., None], scheduler: Any) -> None:
    """Denoiser and text encoders, together."""
    family: Any = model.denoise
    trained = [name for name in model.modules if name != "autoencoder"]
    settings = Denoising(
        lambda u: 2 * schedules.lognormal(u, mean=-0.2, std=1.4),  # around 1.6 times the latents' deviation
        partial(losses.denoising_loss, model.denoise, weight=partial(losses.edm, sigma_data=1.0)),
        family.autoencoder.normalize, (EMA,),
    )  # fmt: skip

    def result(folder: Path) -> None:
        whole = {**family.checkpoint.modules, **family.checkpoint.tokenizers, "scheduler": scheduler}
        write(folder.parents[1], made=whole)

    run.train(
        DENOISER,
        lambda options: replace(model_task(model, latents, options, trained, result, settings), write_often=True),
    )
