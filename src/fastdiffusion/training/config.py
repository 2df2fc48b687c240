"""What a training run may be asked for, checked before anything is built."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from .. import losses
from ..corruptions import parse
from ..denoisers import PARAMETERIZATIONS
from ..errors import InputError, missing, unknown
from ..nets import presets
from ..schedules import SIGMA_DISTRIBUTIONS
from . import optimizers
from .distributed import check_world, rank_and_world

if TYPE_CHECKING:
    from .learner import Learner


TRACKERS = ("tensorboard", "trackio", "wandb")


def check(learner: Learner) -> None:
    """Refuse settings that cannot be trained, before anything is loaded."""
    for kind, name, known in (
        ("parameterization", learner.parameterization, PARAMETERIZATIONS),
        ("density", learner.sigma_distribution, SIGMA_DISTRIBUTIONS),
        ("weight", learner.loss_weighting, losses.LOSS_WEIGHTINGS),
        ("optimizer", learner.optimizer, optimizers.OPTIMIZERS),
        ("precision", learner.precision, ("auto", "float32", "bfloat16")),
        ("tracker", learner.track or "tensorboard", TRACKERS),
    ):
        if name not in known:
            raise unknown(kind, name, known)
    if isinstance(learner.net, str) and learner.net not in presets.PRESETS:
        raise unknown("net", learner.net, presets.PRESETS)
    one = torch.full((1,), 0.5)
    for kind, options, f in (
        (
            f"weight {learner.loss_weighting}",
            learner.loss_weighting_options,
            losses.LOSS_WEIGHTINGS[learner.loss_weighting],
        ),
        (
            f"density {learner.sigma_distribution}",
            learner.sigma_distribution_options,
            SIGMA_DISTRIBUTIONS[learner.sigma_distribution],
        ),
    ):
        try:
            f(one, **options)
        except TypeError as error:
            raise InputError(f"{kind} does not take these options ({error}).") from None
    check_world()
    size, splits = learner.batch_size, rank_and_world()[1] * learner.grad_accumulation
    if size < 1 or splits < 1 or size % splits:
        raise InputError(f"batch_size must be a multiple of processes times accumulate, here {splits}; got {size}.")
    if learner.track and find_spec(learner.track) is None:
        raise missing(f"track={learner.track!r}", learner.track, "track")
    if learner.track and learner.folder is None:
        raise InputError(f"track={learner.track!r} needs a place to write. Give folder='runs/one'.")
    if not learner.ema:
        raise InputError("ema needs at least one length, e.g. ema=(0.1,).")
    if learner.restore is not None and learner.autoencoder is not None:
        raise InputError("Restoring works on pictures, not on latents. Leave out restore or codec.")
    if learner.restore is not None:
        parse(learner.restore)
    if not 0 <= learner.decay <= 0.95:
        raise InputError(f"decay must be from 0 to 0.95, got {learner.decay}. Try 0.5.")
    if not 0 <= learner.cond_dropout <= 1:
        raise InputError(f"label_dropout is a part of the pictures, 0 to 1, got {learner.cond_dropout}. Try 0.1.")
    if learner.warmup < 0 or not learner.grad_clip >= 0:
        raise InputError(f"warmup and clip cannot be negative, got {learner.warmup} and {learner.grad_clip}. 0 is off.")
    if learner.shard and learner.optimizer == "muon":
        raise InputError("Muon needs whole matrices and cannot train with shard. Use optimizer='adamw'.")
