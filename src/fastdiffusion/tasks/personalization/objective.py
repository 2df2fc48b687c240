"""What is minimized on any model: the error of what its own network predicts, at noise levels as it was trained for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ... import losses, schedules
from ...denoisers import expand
from ...errors import InputError, warn
from ...models import Model
from ...models.native import own_denoiser
from ...types import Cond

WEIGHTS = {"noise": losses.noise, "v": losses.v, "x0": losses.x0, "flow": losses.flow}
HIGHER = 3.0  # noise levels of a model of this package, against those that it was trained at
DISTILLED = re.compile(r"turbo|lightning|hyper-?sd|schnell|lcm|distill|dmd|klein(?!.*base)", re.IGNORECASE)


class Objective:
    """The denoising loss of a model's own parameterization.

    A model of this package has EDM's weight, and its noise levels three times as high: there it is decided what a thing
    looks like as a whole, and a few hundred steps would hardly meet them. Of another family a network that predicts the
    noise, v or a velocity is trained by the squared error of that: at times even in its schedule, or for a flow by
    Esser et al. 2024 (arXiv:2403.03206, eq. 19), logit-normal and shifted as its images are.
    """

    def __init__(self, model: Model):
        self.model, self.levels = model, getattr(model.denoise, "levels", None)
        if own_denoiser(model.denoise) is not None:
            self.weight: Any = partial(losses.edm, sigma_data=model.sigma_data)
        else:
            self.weight = WEIGHTS[getattr(self.levels, "prediction", "noise")]

    def sigmas(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Noise levels of training, for numbers that are even in (0, 1)."""
        low, high = self.model.sigma_min, self.model.sigma_max
        if self.levels is None:
            return (schedules.lognormal(u) * 2 * HIGHER * self.model.sigma_data).clamp(low, high)
        if hasattr(self.levels, "log_sigmas"):
            return self.levels.sigma(u * (len(self.levels.log_sigmas) - 1)).float().clamp(low, high)
        tokens = (self.model.shape[-1] // getattr(self.model.denoise, "patch", 1)) ** 2
        logit = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
        return (logit.exp() * self.levels.factor(28, tokens)).float().clamp(low, high)

    def __call__(
        self,
        x0: Float[Tensor, "b *d"],
        sigma: Float[Tensor, " b"],
        noise: Float[Tensor, "b *d"],
        cond: Cond | None,
        mask: Float[Tensor, "b *m"] | None = None,
        target: Float[Tensor, "b *d"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss of each image.

        ``mask`` says how much each of its places counts, ``target`` what is to be estimated in place of ``x0``.
        """
        error = self.model.denoise(x0 + expand(sigma, x0) * noise, sigma, cond) - (x0 if target is None else target)
        squared = error.float().square()
        if mask is not None:
            squared = squared * mask / mask.flatten(1).mean(1).clamp(min=1e-3).reshape(-1, *[1] * (mask.ndim - 1))
        return self.weight(sigma) * squared.flatten(1).mean(1)


def refuse_distilled(model: Model) -> None:
    """InputError for a model that was distilled to a few steps: this loss would undo it."""
    config = getattr(getattr(model.denoise, "net", None), "config", None)
    checkpoint = getattr(model.denoise, "checkpoint", None)
    scheduler = dict(getattr(checkpoint, "scheduler", {}) or {})
    named = [str(model.info.get("name", "")), str(scheduler.get("_class_name", ""))]
    few = getattr(config, "time_cond_proj_dim", None) is not None or any(map(DISTILLED.search, named))
    few = few or (model.info.get("family") == "flux" and not getattr(config, "guidance_embeds", False))
    if few or model.info.get("distilled"):
        raise InputError(
            "This model was distilled to a few steps, and training by noise levels would make it need many again. "
            "Train on the model that it was distilled from, and use the LoRA on this one: --lora."
        )
    if model.guidance == "embedded":
        warn(
            "Guidance is distilled into this model. What is trained here holds for its usual scale "
            f"({model.scale:g}), and less for others."
        )


def conditions(model: Model, prompts: Sequence[str]) -> Cond:
    """The condition of some prompts, with gradients of the text encoders where they ask for them."""
    conditioner: Any = model.conditioner
    return conditioner.condition(list(prompts), model.pixels)
