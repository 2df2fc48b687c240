"""The settings of training a diffusion model, as options. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import choices
from ..options import option
from .options import RunOptions

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
class TrainingConfig(RunOptions):
    """What training a diffusion model can be given, with what every run can; ``setup.check`` refuses what cannot be.

    Attributes:
        net: A name in ``nets.PRESETS``, with changes if need be ("unet-small blur=learned", see
            ``nets.specification``), or a specification {"name": "unet", ...}; by default "unet-small", for
            restoration "restorer". "sd-small" and "sd3-small" are whole checkpoints of Stable Diffusion's classes, for
            captioned images of 64 pixels (``tasks.small_checkpoints``): few of the other settings count there.
        parameterization: What the net predicts; a name in ``denoisers.PARAMETERIZATIONS``. By default that of
            ``init_from``, else "flow" for images, and "edm" for latents and restoration.
        sigma_distribution: Which noise levels are trained; a name in ``schedules.SIGMA_DISTRIBUTIONS``.
        sigma_distribution_options: Its keywords, such as {"mean": -1.2}.
        loss_weighting: What an error counts at each noise level; a name in ``losses.LOSS_WEIGHTINGS``.
        loss_weighting_options: Its keywords, such as {"gamma": 1.0}.
        uncertainty: Also learn the weighting over the noise levels (EDM2, Karras et al. 2024, eq. 14). By default
            where no weighting is chosen, but for restoration.
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
        weight_decay: Of AdamW or Muon.
        grad_accumulation: Microbatches that a batch is computed in, one after the other, to save memory.
        grad_clip: Greatest norm of the gradient; 0 is off.
        warmup: Steps in which the learning rate rises.
        decay: Last part of the run in which it falls to 0, up to 0.95.
        ema: Lengths of the averages of the weights, as parts of the run (EDM2, sec. 3). The model is the last one; at
            the end of the run it is the one with the lowest validation loss.
        holdout: Part of the data kept for the validation loss.
        compile: Use torch.compile; "auto": on a GPU. It costs minutes before it gains.
        shard: Divide weights and optimizer among the processes (FSDP2) instead of copying them (DDP).
    """

    net: str | dict[str, Any] | None = option(
        None,
        "The network; by default unet-small, and for --restore restorer. sd-small and sd3-small give a checkpoint that "
        "other programs open.",
        kind=str,
        choices=(*choices.NETS, *choices.SMALL_NETS),
    )
    grad_accumulation: int = option(1, "Microbatches that a batch is computed in, to save memory.")
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
    parameterization: str | None = option(
        None,
        "What the net predicts; by default flow, and edm of latents and for --restore.",
        choices=choices.PARAMETERIZATIONS,
    )
    sigma_distribution: str = option("lognormal", "Noise levels to train at.", choices=choices.SIGMA_DISTRIBUTIONS)
    sigma_distribution_options: dict[str, float] = option(dict, "Its keywords.", python_only=True)
    loss_weighting: str = option(
        "edm",
        "What an error counts at each noise level; edm is evened out by a learned weight, others are not.",
        choices=choices.LOSS_WEIGHTINGS,
    )
    loss_weighting_options: dict[str, float] = option(dict, "Its keywords.", python_only=True)
    uncertainty: bool | None = option(None, "Also learn the weighting.", python_only=True)
    captions: bool = option(False, "Train on captions: a text-to-image model.")
    autoencoder: Any = option(
        None, "File of an autoencoder: train in its latents.", "--autoencoder", "--vae", kind=Path
    )
    restore: str | None = option(None, 'Learn to undo this, e.g. "blur 0.5..3, jpeg 10..60", from DATA\'s photographs.')
    init_from: str | Path | None = option(None, "File of a trained model to start from.", kind=Path)
    self_condition: bool = option(False, "Also condition the net on its own estimate.")
    sigma_data: float | None = option(None, "Standard deviation of the data; by default measured.", python_only=True)
    holdout: float = option(0.05, "Part of the data that is kept for the validation loss.")
    compile: bool | str = option(False, "Use torch.compile.", python_only=True)
    shard: bool = option(False, "Divide the weights among the processes, in place of copying them.")

    def __post_init__(self) -> None:
        if isinstance(self.augment, str):
            names = tuple(name.strip() for name in self.augment.split(",") if name.strip())
            object.__setattr__(self, "augment", names)

    def identity(self, data: str) -> dict[str, Any]:
        """The settings that two runs must share to be one, as JSON, with the fingerprint of their ``data``."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in FREE}
        settings["init_from"] = None if self.init_from is None else Path(self.init_from).name
        return json.loads(json.dumps({**settings, "data": data}))


def renamed(then: Mapping[str, Any]) -> dict[str, Any]:
    """An identity that is stored with a run, perhaps by version 0.1, in the names of today."""
    return {_NOW.get(name, name): value for name, value in then.items()}
