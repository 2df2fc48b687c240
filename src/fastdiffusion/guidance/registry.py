"""All guidance functions by name."""

from __future__ import annotations

from collections.abc import Callable

from .classifier_free import apg, autoguidance, cfg, compose
from .core import Guided
from .gradient import classifier, loss_guidance
from .wrappers import blind, inpaint, self_conditioned, self_ensemble

GUIDANCE: dict[str, Callable[..., Guided]] = {
    f.__name__: f
    for f in (
        cfg, apg, autoguidance, compose, classifier, loss_guidance, inpaint, blind, self_ensemble,
        self_conditioned,
    )
}  # fmt: skip
