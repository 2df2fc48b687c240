"""What a run has before its first step: settings that go together, data and their scale, and a denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .. import data as datasets
from .. import losses, nets
from ..corruptions import Corruption, parse
from ..data import Dataset, augment, measure_sigma_data
from ..data.latents import Latents
from ..denoisers import PARAMETERIZATIONS, Denoiser
from ..errors import DataError, InputError, unknown, warn
from ..models import Model, load, load_autoencoder, native_denoiser
from ..nets import tokenizer as tokenizers
from ..nets.layers import Embed
from ..nets.text import normalized, vocabulary_ids
from ..noise import Stream, generator
from ..schedules import SIGMA_DISTRIBUTIONS
from .batches import measure_damage
from .config import TrainingConfig
from .distributed import rank_and_world

VOCABULARY = 4096  # most tokens of a text encoder
DECIDED = {"in_channels", "out_channels", "classes", "augment", "context", "pooled", "dropout"}  # of a net, by a run


@dataclass(frozen=True)
class Setup:
    """What a run trains on and starts from.

    Attributes:
        train: What is trained on.
        held_out: What the validation loss is measured on; may be empty.
        base: The model that the run starts from.
        autoencoder: In whose latents it trains.
        corruption: What happens to each image, for a restorer.
        sigma_data: Standard deviation of the data, or for a restorer the mean damage.
        unit: What noise levels are multiplied by: 1 for images, for other data their own scale.
        levels: Options of the distribution of noise levels.
    """

    train: Dataset
    held_out: Dataset
    base: Model | None
    autoencoder: nn.Module | None
    corruption: Corruption | None
    sigma_data: float
    unit: float
    levels: dict[str, float]

    @property
    def restores(self) -> bool:
        """Whether the model is given a degraded image to work from."""
        return self.corruption is not None or self.train.cond_channels > 0


def check(config: TrainingConfig) -> None:
    """Refuse settings that cannot be trained, before anything is loaded."""
    for kind, name, known in (
        ("parameterization", config.parameterization, PARAMETERIZATIONS),
        ("noise level distribution", config.sigma_distribution, SIGMA_DISTRIBUTIONS),
        ("loss weighting", config.loss_weighting, losses.LOSS_WEIGHTINGS),
    ):
        if name is not None and name not in known:
            raise unknown(kind, name, known)
    if config.net is not None and (decided := DECIDED & nets.specification(config.net).keys()):
        raise InputError(
            f"The net's {', '.join(sorted(decided))}: decided by the data and by the other options "
            "(dropout, captions, augment, self_condition). Leave it out of net."
        )
    some = torch.full((1,), 0.5)
    for kind, options, f in (
        ("loss_weighting", config.loss_weighting_options, partial(losses.weight, config.loss_weighting, some, 0.5)),
        (
            "sigma_distribution",
            config.sigma_distribution_options,
            partial(SIGMA_DISTRIBUTIONS[config.sigma_distribution], some),
        ),
    ):
        try:
            f(**options)
        except TypeError as error:
            name = getattr(config, kind)
            raise InputError(f"{kind} {name} does not take these options ({error}).") from None
    size, splits = config.batch_size, rank_and_world()[1] * config.grad_accumulation
    if size < 1 or splits < 1 or size % splits:
        raise InputError(
            f"batch_size must be a multiple of processes times grad_accumulation, here {splits}; got {size}."
        )
    if not isinstance(config.ema, Sequence) or not config.ema:
        raise InputError(f"ema needs at least one length, e.g. ema=(0.1,), got {config.ema!r}.")
    if config.sigma_data is not None and not 0 < config.sigma_data < math.inf:
        raise InputError(f"sigma_data must be above 0, got {config.sigma_data}. Leave it out to have it measured.")
    if config.restore is not None and config.autoencoder is not None:
        raise InputError("Restoration works on images, not on latents. Leave out restore or autoencoder.")
    if not 0 <= config.decay <= 0.95:
        raise InputError(f"decay must be from 0 to 0.95, got {config.decay}. Try 0.5.")
    if not 0 <= config.cond_dropout <= 1:
        raise InputError(f"cond_dropout is a part of the examples, 0 to 1, got {config.cond_dropout}. Try 0.1.")
    if not 0 <= config.dropout <= 1:
        raise InputError(f"dropout must be from 0 to 1, got {config.dropout}. Try 0.1.")
    if config.warmup < 0 or not config.grad_clip >= 0:
        raise InputError(
            f"warmup and grad_clip cannot be negative, got {config.warmup} and {config.grad_clip}. 0 is off."
        )
    if config.shard and config.optimizer == "muon":
        raise InputError("Muon needs whole matrices and cannot train with shard. Use optimizer='adamw'.")


def prepare(config: TrainingConfig, data: Dataset | str, device: torch.device) -> Setup:
    """Load what a run trains on and starts from, and measure the scale of its data."""
    corruption = None if config.restore is None else parse(config.restore)
    images = datasets.load(data)
    base = None if config.init_from is None else load(config.init_from)
    autoencoder = config.autoencoder
    if base is not None and autoencoder is None:
        autoencoder = base.modules.get("autoencoder")
    elif isinstance(autoencoder, str | Path):
        autoencoder = load_autoencoder(autoencoder).to(device)
    if autoencoder is not None:
        images = Latents(images, autoencoder)
    train, held_out = images.split(config.holdout, config.seed)
    inherited = None if base is None else base.sigma_data
    sigma_data, unit = scale(train, corruption, config.sigma_data, inherited)
    setup = Setup(train, held_out, base, autoencoder, corruption, sigma_data, unit, config.sigma_distribution_options)
    if setup.restores and (config.sigma_distribution, setup.levels) == ("lognormal", {}):
        # a restorer gives its answer in one evaluation at the highest noise level: train much there
        return replace(setup, levels={"mean": 1.5, "std": 2.2})
    return setup


def scale(
    data: Dataset, corruption: Corruption | None, sigma_data: float | None, init_sigma_data: float | None = None
) -> tuple[float, float]:
    """sigma_data, and the unit in which noise levels are counted: 1 for images, for other data its own scale.

    Args:
        data: What is trained on.
        corruption: What happens to each image, for a restorer.
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
        warn(f"{text} Leave sigma_data out to have it measured.")
    sigma_data = sigma_data or init_sigma_data or round(measured, 4)
    return sigma_data, 1.0 if is_image else sigma_data / 0.5


def denoiser(config: TrainingConfig, setup: Setup) -> Denoiser:
    """The denoiser at step 0: its weights are fresh, or those of the model that the run starts from."""
    data = setup.train
    if data.cond_channels and setup.corruption is not None:
        raise InputError(f"{data.name} is made of pairs, which say themselves what is to be undone. Leave out restore.")
    if config.augment and data.batch(data.groups[0][:1]).images.is_floating_point():
        raise InputError("Augmentation works on images, not on latents. Leave out augment or autoencoder.")
    if data.cond_channels and (colors := set(config.augment) & set(augment.COLOR)):
        raise InputError(f"{', '.join(sorted(colors))} would change the targets and not the inputs: leave it out.")
    cond_channels = data.cond_channels or (0 if setup.corruption is None else data.shape[0])
    if setup.base is None:
        net = _fresh_net(config, data, cond_channels)
    else:
        net = _net_of(setup.base, config, data, cond_channels)
    assert config.parameterization is not None
    return Denoiser(net, config.parameterization, setup.sigma_data, config.self_condition, cond_channels)


def _fresh_net(config: TrainingConfig, data: Dataset, cond_channels: int) -> nn.Module:
    """The net with random weights, and its vocabulary."""
    channels = data.shape[0]
    assert config.net is not None
    spec = nets.specification(config.net)
    spec = {
        **spec, "in_channels": channels * (2 if config.self_condition else 1) + cond_channels,
        "out_channels": channels, "classes": len(data.classes), "dropout": config.dropout,
        "augment": augment.length(config.augment),
    }  # fmt: skip
    texts = _texts(data) if config.captions else []
    tokenizer = tokenizers.train(texts, VOCABULARY) if config.captions else None
    if tokenizer is not None:
        spec["words"] = {"vocabulary": len(tokenizer), **_known_words(texts), **spec.get("words", {})}
        if "draft" in spec:  # as many more channels beside the noisy image
            spec["draft"] = {"channels": channels, **spec["draft"]}
            spec["in_channels"] += channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, Stream.WEIGHTS).initial_seed() % 2**63)
        net = nets.build(spec)
    if isinstance(net, nets.TextConditioned):
        assert tokenizer is not None
        net.text_encoder.set_vocabulary(tokenizer, texts)
    return net


def _net_of(base: Model, config: TrainingConfig, data: Dataset, cond_channels: int) -> nn.Module:
    """A copy of a trained model's net, if it is one of such data."""
    its = native_denoiser(base, "Training from a model")
    augment_length = max(
        (m.augment.in_features for m in its.net.modules() if isinstance(m, Embed) and m.augment), default=0
    )
    has = (
        base.shape[0], base.classes, base.conditioner is not None, its.cond_channels, its.self_condition,
        augment_length,
    )  # fmt: skip
    wants = (
        data.shape[0], data.classes, config.captions, cond_channels, config.self_condition,
        augment.length(config.augment),
    )  # fmt: skip
    if has != wants or its.parameterization != config.parameterization:
        raise InputError(
            f"{Path(config.init_from or '').name} cannot be trained on here. (channels, classes, captions, channels "
            f"of the condition, self_condition, length of the augmentation vector) are {has} there and {wants} here, "
            f"and it predicts {its.parameterization}."
        )
    net = deepcopy(its.net).train()
    for module in net.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = config.dropout  # pyright: ignore[reportArgumentType]
    return net


def _known_words(texts: list[str]) -> dict[str, int]:
    """How many words a text encoder lists, if they are not too many."""
    count = len(vocabulary_ids(texts))
    return {"known": count} if count <= nets.LIMITS["known"] else {}


def _texts(data: Dataset) -> list[str]:
    """The captions as the text encoder will read them."""
    texts = [normalized(text) for text in data.texts()]
    if not texts:
        raise DataError(
            f"{data.name} has no captions to learn from. Put a NAME.txt beside each NAME.png, or a "
            "metadata.jsonl with file_name and text; or leave out --captions."
        )
    return texts
