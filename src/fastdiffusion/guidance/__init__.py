"""Guidance is a function from denoiser to denoiser. Wrappers compose freely, because none of them knows the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .classifier_free import apg, autoguidance, cfg, compose, replace_text
from .core import ALWAYS, Guided, Interval, Other, Scale, guidance, scale_at, start
from .gradient import LogProb, classifier, gradient, loss_guidance
from .wrappers import blind, inpaint, self_conditioned, self_ensemble

if TYPE_CHECKING:
    from .features import clip_guidance, feature_guidance
    from .registry import GUIDANCE

__all__ = [
    "ALWAYS",
    "GUIDANCE",
    "Guided",
    "Interval",
    "LogProb",
    "Other",
    "Scale",
    "apg",
    "autoguidance",
    "blind",
    "cfg",
    "classifier",
    "clip_guidance",
    "compose",
    "feature_guidance",
    "gradient",
    "guidance",
    "inpaint",
    "loss_guidance",
    "replace_text",
    "scale_at",
    "self_conditioned",
    "self_ensemble",
    "start",
]


def __getattr__(name: str) -> Any:
    """Load what needs the networks on first use: samplers import this package."""
    if name not in ("GUIDANCE", "clip_guidance", "feature_guidance"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import features, registry

    return registry.GUIDANCE if name == "GUIDANCE" else getattr(features, name)
