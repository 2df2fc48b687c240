"""What a run has before its first step: settings that go together, the scale of its data, and a denoiser."""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import nets
from ..corruptions import Corruption
from ..data import Dataset, augment, measure_sigma_data
from ..denoisers import Denoiser
from ..errors import DataError, InputError
from ..models import Model, native_denoiser
from ..nets import presets
from ..nets import tokenizer as tokenizers
from ..nets.layers import Embed
from ..nets.text import normalized, vocabulary_ids
from ..noise import generator
from .batches import WEIGHTS, measure_damage

if TYPE_CHECKING:
    from .learner import Learner

VOCABULARY = 4096  # most tokens of a text encoder


def scale(
    data: Dataset, corruption: Corruption | None, sigma_data: float | None, init_sigma_data: float | None = None
) -> tuple[float, float]:
    """sigma_data, and the unit in which noise levels are counted: 1 for pictures, for other data its own scale.

    Args:
        data: What is trained on.
        corruption: What happens to each picture, for a restorer.
        sigma_data: By default measured. Warns if it is far from that.
        init_sigma_data: What the weights that the run starts from were made for; it overrides the measured value.
    """
    rows = data.groups[0]
    is_image = not data.batch(rows[:1]).images.is_floating_point()
    if corruption is not None or data.cond_channels:
        measured = measure_damage(data, corruption)
    elif is_image:
        measured = measure_sigma_data(data)
    else:
        some = data.batch(rows[:: math.ceil(len(rows) / 512)]).images.double()
        measured = float(some[some.isfinite()].std())
    if sigma_data is not None and not 0.8 < sigma_data / measured < 1.25:
        text = f"sigma_data is {sigma_data:.3g} but the data's standard deviation is {measured:.3g}."
        warnings.warn(f"{text} Leave sigma_data out to have it measured.", stacklevel=4)
    sigma_data = sigma_data or init_sigma_data or round(measured, 4)
    return sigma_data, 1.0 if is_image else sigma_data / 0.5


def levels(learner: Learner) -> dict[str, float]:
    """Options of the density. A restorer gives its one-call answer at the highest noise level: train much there."""
    restores = learner.corruption is not None or learner.train.cond_channels > 0
    if restores and (learner.sigma_distribution, learner.sigma_distribution_options) == ("lognormal", {}):
        return {"mean": 1.5, "std": 2.2}
    return learner.sigma_distribution_options


def denoiser(learner: Learner) -> Denoiser:
    """The denoiser at step 0: its weights are fresh, or those of the model that the run begins with."""
    data = learner.train
    if data.cond_channels and learner.corruption is not None:
        raise InputError(f"{data.name} is made of pairs, which say themselves what is to be undone. Leave out restore.")
    if learner.augment and data.batch(data.groups[0][:1]).images.is_floating_point():
        raise InputError("Augmentation works on pictures, not on latents. Leave out augment or codec.")
    if data.cond_channels and (colors := set(learner.augment) & set(augment.COLOR)):
        raise InputError(f"{', '.join(sorted(colors))} would change the answers and not what is given: leave it out.")
    cond_channels = data.cond_channels or (0 if learner.corruption is None else data.shape[0])
    net = _fresh(learner, cond_channels) if learner.base is None else _taken(learner, learner.base, cond_channels)
    return Denoiser(net, learner.parameterization, learner.measured_sigma_data, learner.self_condition, cond_channels)


def _fresh(learner: Learner, cond_channels: int) -> nn.Module:
    """The net with random weights, and its words."""
    data, channels = learner.train, learner.train.shape[0]
    spec = presets.PRESETS[learner.net] if isinstance(learner.net, str) else learner.net
    spec = {
        **spec, "in_channels": channels * (2 if learner.self_condition else 1) + cond_channels,
        "out_channels": channels, "classes": len(data.classes), "dropout": learner.dropout,
        "augment": augment.length(learner.augment),
    }  # fmt: skip
    texts = _texts(data) if learner.captions else []
    tokenizer = tokenizers.train(texts, VOCABULARY) if learner.captions else None
    if tokenizer is not None:
        spec["words"] = {"vocabulary": len(tokenizer), **_listed(texts), **spec.get("words", {})}
        if "draft" in spec:  # as many more channels beside the noisy picture
            spec["draft"] = {"channels": channels, **spec["draft"]}
            spec["in_channels"] += channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(learner.seed, WEIGHTS).initial_seed() % 2**63)
        net = nets.build(spec)
    if isinstance(net, nets.TextConditioned):
        assert tokenizer is not None
        net.text_encoder.set_vocabulary(tokenizer, texts)
    return net


def _taken(learner: Learner, base: Model, cond_channels: int) -> nn.Module:
    """The net of a trained model, if it is one of such data."""
    data, its = learner.train, native_denoiser(base, "Going on from a model")
    augment_length = max(
        (m.augment.in_features for m in its.net.modules() if isinstance(m, Embed) and m.augment), default=0
    )
    has = (
        base.shape[0],
        base.classes,
        base.conditioner is not None,
        its.cond_channels,
        its.self_condition,
        augment_length,
    )
    wants = (
        data.shape[0], data.classes, learner.captions, cond_channels, learner.self_condition,
        augment.length(learner.augment),
    )  # fmt: skip
    if has != wants or its.parameterization != learner.parameterization:
        raise InputError(
            f"{Path(learner.init_from or '').name} cannot go on here. (channels, classes, words, given channels, "
            f"self_condition, length of the augmentation vector) are {has} there and {wants} here, and it "
            f"predicts {its.parameterization}."
        )
    net = deepcopy(its.net).train()
    for module in net.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = learner.dropout  # pyright: ignore[reportArgumentType]
    return net


def _listed(texts: list[str]) -> dict[str, int]:
    """How many words a text encoder lists, if they are not too many."""
    count = len(vocabulary_ids(texts))
    return {"known": count} if count <= nets.LIMITS["known"] else {}


def _texts(data: Dataset) -> list[str]:
    """The captions as the text encoder will read them."""
    texts = [normalized(text) for text in data.texts()]
    if not texts:
        raise DataError(
            f"{data.name} has no captions to learn words from. Put a NAME.txt beside each NAME.png, or a "
            "metadata.jsonl with file_name and text; or leave out --text."
        )
    return texts
