"""All guidance by name: the function, and how it is written in words (``--guidance "cfg scale=3"``).

A word stands for an argument of one of a few kinds. What reads a kind (numbers, classes, files) is injected by whoever
parses the words: ``tasks.generation.guidance_spec``. Guidance without an example takes what only Python can express.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from .annealing import cads
from .classifier_free import apg, autoguidance, cfg, cfg_zero, compose
from .core import Guided
from .features import clip_guidance, feature_guidance
from .gradient import classifier, loss_guidance
from .wrappers import blind, inpaint, self_conditioned, self_ensemble

Kind = Literal["number", "count", "interval", "label", "image", "mask", "model", "classifier", "class", "clip", "text"]


class Entry(NamedTuple):
    """What a name stands for.

    Attributes:
        factory: From a denoiser and the arguments to a guided denoiser; its signature has the defaults.
        arguments: The parameters whose values follow the name, in order.
        options: The parameters that may follow as key=value.
        example: How it is written; empty if it cannot be.
    """

    factory: Callable[..., Guided]
    arguments: Mapping[str, Kind] = {}
    options: Mapping[str, Kind] = {}
    example: str = ""


_SCALE: dict[str, Kind] = {"scale": "number", "interval": "interval"}
_CFG: dict[str, Kind] = {**_SCALE, "rescale": "number"}
_APG: dict[str, Kind] = {**_SCALE, "parallel": "number", "momentum": "number", "norm": "number"}
_CADS: dict[str, Kind] = {"noise": "number", "start": "number", "end": "number", "mix": "number"}

GUIDANCE: dict[str, Entry] = {
    "cfg": Entry(cfg, {}, _CFG, "cfg scale=3 interval=0.3..5 rescale=0.7"),
    "apg": Entry(apg, {}, _APG, "apg scale=5"),
    "cfg_zero": Entry(cfg_zero, {}, {**_SCALE, "zero": "count"}, "cfg_zero scale=3"),
    "cads": Entry(cads, {}, _CADS, "cads noise=0.5"),
    "negative": Entry(cfg, {"uncond": "label"}, _CFG, "negative dog scale=2"),
    "autoguidance": Entry(autoguidance, {"weak": "model"}, _SCALE, "autoguidance weak.safetensors scale=2"),
    "classifier": Entry(
        classifier,
        {"log_prob": "classifier"},
        {**_SCALE, "label": "class"},
        "classifier classifier.safetensors scale=2",
    ),
    "feature_guidance": Entry(
        feature_guidance, {"classifier": "classifier"}, _SCALE, "feature_guidance reader.safetensors scale=2"
    ),
    "clip": Entry(
        clip_guidance, {"clip": "clip", "prompt": "text"}, _SCALE, "clip noisy.safetensors 'a red car' scale=2"
    ),
    "inpaint": Entry(inpaint, {"image": "image", "mask": "mask"}, {}, "inpaint photo.png mask.png"),
    **{f.__name__: Entry(f) for f in (compose, loss_guidance, blind, self_ensemble, self_conditioned)},
}
ALIASES = {"middle": "feature_guidance"}  # of the first version, in saved recipes
