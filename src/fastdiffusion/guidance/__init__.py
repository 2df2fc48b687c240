"""Guidance is a function from denoiser to denoiser. Wrappers compose freely, because none of them knows the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .annealing import cads
from .classifier_free import apg, autoguidance, cfg, cfg_zero, compose, embedded, replace_text
from .core import ALWAYS, Guided, Interval, Other, Scale, guidance, scale_at, start
from .gradient import LogProb, classifier, gradient, loss_guidance
from .regional import Region, regional
from .wrappers import blind, inpaint, self_conditioned, self_ensemble

if TYPE_CHECKING:
    from .registry import GUIDANCE

__all__ = [
    "ALWAYS",
    "GUIDANCE",
    "Guided",
    "Interval",
    "LogProb",
    "Other",
    "Region",
    "Scale",
    "apg",
    "autoguidance",
    "blind",
    "cads",
    "cfg",
    "cfg_zero",
    "classifier",
    "compose",
    "embedded",
    "gradient",
    "guidance",
    "inpaint",
    "loss_guidance",
    "regional",
    "replace_text",
    "scale_at",
    "self_conditioned",
    "self_ensemble",
    "start",
]


def __getattr__(name: str) -> Any:
    """Load what needs the networks on first use: samplers import this package."""
    if name != "GUIDANCE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .registry import GUIDANCE

    return GUIDANCE
