"""Guidance is a function from denoiser to denoiser. Wrappers compose freely, because none of them knows the sampler."""

from .classifier_free import apg, autoguidance, cfg, compose, replace_text
from .core import ALWAYS, Guided, Interval, Other, Scale, guidance, scale_at, start
from .gradient import LogProb, classifier, gradient, loss_guidance
from .registry import GUIDANCE
from .wrappers import blind, inpaint, self_conditioned, self_ensemble

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
    "compose",
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
