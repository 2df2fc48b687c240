"""The settings of a training run, as options. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import choices
from ..options import DEVICE, FRESH, PRECISION, SEED, option

# What two commands that continue one run may give differently.
FREE = frozenset(
    {"folder", "autoencoder", "save_every", "track", "device", "verbose", "compile", "shard", "grad_accumulation"}
)
# What settings were called in the first version's runs, which can still be continued.
_NOW = {
    "density": "sigma_distribution", "density_options": "sigma_distribution_options", "weight": "loss_weighting",
    "weight_options": "loss_weighting_options", "text": "captions", "begin": "init_from",
    "label_dropout": "cond_dropout", "clip": "grad_clip",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run can be given; ``setup.check`` refuses what cannot be trained.

    Attributes:
        net: A name in ``nets.PRESETS``, or a specification {"name": "unet", ...}; by default "unet-small", for
            restoration "restorer".
        parameterization: What the net predicts; a name in ``denoisers.PARAMETERIZATIONS``.
        sigma_distribution: Which noise levels are trained; a name in ``schedules.SIGMA_DISTRIBUTIONS``.
        sigma_distribution_options: Its keywords, such as {"mean": -1.2}.
        loss_weighting: What an error counts at each noise level; a name in ``losses.LOSS_WEIGHTINGS``.
        loss_weighting_options: Its keywords, such as {"gamma": 1.0}.
        uncertainty: Also learn the weighting over the noise levels (EDM2, Karras et al. 2024, eq. 14).
        captions: Train a text encoder along on the captions: the model can then be sampled with prompts.
        autoencoder: An autoencoder, or the file of one: train in its latents.
        init_from: The file of a trained model to start from, with its net and text encoder; with its autoencoder too,
            unless one is given.
        restore: Learn to undo this corruption, in the notation of ``corruptions.parse``: "blur 0.5..3, jpeg 10..60".
            A data set of pairs needs none.
        self_condition: Also condition the net on its own estimate, in half of the cases (Chen et al. 2022).
        sigma_data: Standard deviation of the data in [-1, 1]; by default measured.
        cond_dropout: Part of the examples trained without their condition, 0 to 1, for guidance (Ho & Salimans 2022).
        augment: Names in ``data.augment.AUGMENTS``, e.g. ``augment.EDM`` or "mirror,crop"; the net is conditioned on
            them, so that they do not leak into the samples.
        augment_p: Probability of each.
        dropout: Of the net.
        optimizer: A name in ``optimizers.OPTIMIZERS``; "auto" is muon, with ``shard`` adamw.
        lr: Highest learning rate, by default the optimizer's in ``optimizers.RATES``. ``lr_finder.find_lr(learner)``
            measures one.
        weight_decay: Of AdamW or Muon.
        batch_size: Images per step, over all processes and microbatches.
        grad_accumulation: Microbatches that a batch is computed in, one after the other, to save memory.
        grad_clip: Greatest norm of the gradient; 0 is off.
        warmup: Steps in which the learning rate rises.
        decay: Last part of the run in which it falls to 0, up to 0.95.
        ema: Lengths of the averages of the weights, as parts of the run (EDM2, sec. 3). The model is the last one; at
            the end of the run it is the one with the lowest validation loss.
        holdout: Part of the data kept for the validation loss.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it, else float32.
        compile: Use torch.compile; "auto": on a GPU. It costs minutes before it gains.
        shard: Divide weights and optimizer among the processes (FSDP2) instead of copying them (DDP).
        track: "tensorboard", "trackio" or "wandb", through Accelerate, beside metrics.jsonl and report.html.
        folder: Where the run lives; None keeps it in memory.
        save_every: Seconds between checkpoints, or more, so that saving takes at most 2 % of the time.
        seed: Of everything.
        device: "cpu", "cuda" or "mps"; by default the best there is.
        verbose: Print what is going on.
    """

    net: str | dict[str, Any] | None = option(
        None,
        "The network; by default unet-small, and for --restore restorer.",
        kind=str,
        choices=choices.NETS,
    )
    folder: str | Path | None = option(
        None, "Folder of the run; by default runs/NAME, after the data.", "--folder", "--out", "-o", kind=Path
    )
    batch_size: int = option(64, "Images in each step, over all processes.")
    grad_accumulation: int = option(1, "Microbatches that a batch is computed in, to save memory.")
    lr: float | None = option(None, "Highest learning rate; by default the optimizer's.")
    optimizer: str = option(
        "auto", "The optimizer; auto is muon, with --shard adamw.", choices=("auto", *choices.OPTIMIZERS)
    )
    weight_decay: float = option(0.0, "Of AdamW or Muon.", python_only=True)
    grad_clip: float = option(1.0, "Greatest norm of the gradient; 0 is off.", python_only=True)
    warmup: int = option(100, "Steps in which the learning rate rises.", python_only=True)
    decay: float = option(0.5, "Last part of the run in which the learning rate falls.", python_only=True)
    ema: Sequence[float] = option((0.05, 0.1), "Lengths of the averages, as parts of the run.", python_only=True)
    augment: str | Sequence[str] = option(
        "", "Augmentations, with commas, e.g. mirror,crop.", kind=str, choices=choices.AUGMENTS
    )
    augment_p: float = option(0.12, "Probability of each augmentation.")
    dropout: float = option(0.0, "Dropout of the net.")
    cond_dropout: float = option(0.1, "Part of the examples trained without their condition, for guidance.")
    parameterization: str = option("edm", "What the net predicts.", choices=choices.PARAMETERIZATIONS)
    sigma_distribution: str = option("lognormal", "Noise levels to train at.", choices=choices.SIGMA_DISTRIBUTIONS)
    sigma_distribution_options: dict[str, float] = option(dict, "Its keywords.", python_only=True)
    loss_weighting: str = option("edm", "What an error counts at each noise level.", choices=choices.LOSS_WEIGHTINGS)
    loss_weighting_options: dict[str, float] = option(dict, "Its keywords.", python_only=True)
    uncertainty: bool = option(False, "Also learn the weighting.", python_only=True)
    captions: bool = option(False, "Train on captions: a text-to-image model.")
    autoencoder: Any = option(
        None, "File of an autoencoder: train in its latents.", "--autoencoder", "--vae", kind=Path
    )
    restore: str | None = option(None, 'Learn to undo this, e.g. "blur 0.5..3, jpeg 10..60", from DATA\'s photographs.')
    init_from: str | Path | None = option(None, "File of a trained model to start from.", kind=Path)
    self_condition: bool = option(False, "Also condition the net on its own estimate.")
    sigma_data: float | None = option(None, "Standard deviation of the data; by default measured.", python_only=True)
    holdout: float = option(0.05, "Part of the data that is kept for the validation loss.")
    precision: str = option("auto", PRECISION, choices=choices.PRECISIONS)
    compile: bool | str = option(False, "Use torch.compile.", python_only=True)
    shard: bool = option(False, "Divide the weights among the processes, in place of copying them.")
    track: str | None = option(None, "A tracker, besides report.html.", choices=choices.TRACKERS)
    save_every: float = option(30.0, "Seconds between checkpoints.", python_only=True)
    verbose: bool = option(True, "Print what is going on.", python_only=True)
    seed: int = option(0, SEED)
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)

    def __post_init__(self) -> None:
        if isinstance(self.augment, str):
            names = tuple(name.strip() for name in self.augment.split(",") if name.strip())
            object.__setattr__(self, "augment", names)

    def identity(self, data: str) -> dict[str, Any]:
        """The settings that two runs must share to be one, as JSON, with the fingerprint of their ``data``."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in FREE}
        settings["init_from"] = None if self.init_from is None else Path(self.init_from).name
        return json.loads(json.dumps({**settings, "data": data}))


@dataclass(frozen=True)
class Budget:
    """How long a run lasts, all sessions together; ten minutes where neither is given.

    Attributes:
        minutes: Training time.
        steps: Steps, instead.
        fresh: Forget what the folder holds and start anew.
    """

    minutes: float | None = option(None, "Minutes to train, of all sessions together; 10 by default.")
    steps: int | None = option(None, "Steps to train, instead of minutes.")
    fresh: bool = option(False, FRESH, "--fresh/--resume")


def changes(now: dict[str, Any], then: dict[str, Any]) -> str:
    """How an identity differs from the one that is stored with a run, which may be of an earlier version; "" if not."""
    then = {_NOW.get(name, name): value for name, value in then.items()}
    different = sorted(name for name in now if now[name] != then.get(name))
    return ", ".join("other data" if n == "data" else f"{n}={then.get(n)!r} (now {now[n]!r})" for n in different)
