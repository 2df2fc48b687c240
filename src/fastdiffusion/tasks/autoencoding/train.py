"""Train the autoencoder that a latent model works behind.

    autoencoder = train_autoencoder("photos/", minutes=10, folder="runs/autoencoder").model
    z = autoencoder.encode(images)

The loss of Rombach et al. 2022 (sec. 3.1): squared and absolute error, the distance of perceptual features, and a
little of the divergence to a normal distribution, which keeps latents smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import data as datasets
from ... import nets
from ...data import Dataset
from ...errors import InputError, unknown
from ...io.checkpoints import fingerprint, save_tensors, stored
from ...io.images import as_input
from ...nets.adversarial import LOSSES, PatchDiscriminator, adaptive_weight
from ...nets.autoencoders import Autoencoder, Discrete
from ...nets.layers import drawn
from ...nets.perceptual import perceptual_distance
from ...noise import Stream, generator
from ...options import fill
from ...training.batches import Batches, title
from ...training.report import TrainingResult
from ...training.task import Part, Task, Updates
from ...training.trainer import train
from .options import TrainAutoencoderOptions

FILE = "codec.safetensors"
HELD_OUT = 4  # batches of the validation loss
COMMITMENT = 0.25  # of an encoder to its codebook (van den Oord et al. 2017, eq. 3)
CRITIC_LR = 1e-3
KINDS = ("kl", "vq", "fsq", "gumbel")
LEVELS = {64: (8, 8), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5)}  # Mentzer et al. 2023, table 1


def train_autoencoder(data: Dataset | str, **options: Any) -> TrainingResult[Autoencoder]:
    """An autoencoder for these images; the same call goes on where it stopped.

    Args:
        data: Images, or what ``data.load`` takes.
        options: See :class:`TrainAutoencoderOptions`.
    """
    chosen = fill(TrainAutoencoderOptions, **options)
    data = datasets.load(data, chosen.size)
    original = chosen.decoder_of
    autoencoder = _new(data.shape[0], chosen) if original is None else deepcopy(original)
    if not all(0 <= v < math.inf for v in (chosen.kl, chosen.free_bits, chosen.perceptual, chosen.adversarial)):
        raise InputError(
            "kl, free_bits, perceptual and adversarial are weights: numbers that are not negative. 0 is off."
        )
    train_data, held = data.split(chosen.holdout, chosen.seed)
    config: dict[str, Any] = {"codec": autoencoder.config, "data": train_data.fingerprint}
    names = ("kl", "free_bits", "perceptual", "adversarial", "lr", "batch_size", "optimizer")
    config |= {name: getattr(chosen, name) for name in names}
    config["decoder"] = None if original is None else fingerprint(original.state_dict())
    autoencoder.eval().encoder.requires_grad_(original is None)
    game = _Game(autoencoder, _critic(data.shape[0], chosen), chosen)
    learned = autoencoder if original is None else autoencoder.decoder
    parts = {"autoencoder": Part(learned, game.autoencoder_loss, chosen.optimizer, chosen.lr)}
    if game.critic is not None:
        parts["critic"] = Part(game.critic, game.critic_loss, "adamw", CRITIC_LR)

    def write(folder: Path) -> None:
        if original is None:
            standardize(autoencoder, train_data)
        save(autoencoder, folder / FILE)

    train(Task(
        parts, game.stream(train_data, chosen.seed), config, title(train_data), chosen.usual_examples,
        "train-autoencoder", {"data": data.name}, [autoencoder],
        held_out=list(map(game.stream(held, -1), range(HELD_OUT))) if len(held) else (), updates=Updates(warmup=100),
        before=game.at,
        preview=partial(preview, autoencoder, held if len(held) else train_data), write=write, file=FILE,
    ), chosen)  # fmt: skip
    autoencoder.eval().requires_grad_(True)
    if original is None and not bool(autoencoder.mean.any()):  # in memory, or finished before
        standardize(autoencoder, train_data)
    return TrainingResult.of(autoencoder.cpu(), chosen.folder)


class _Game:
    """What the autoencoder and its critic are trained on: within each step they take turns, on the same images."""

    def __init__(self, autoencoder: Autoencoder, critic: nn.Module | None, chosen: TrainAutoencoderOptions):
        self.autoencoder, self.critic, self.chosen = autoencoder, critic, chosen
        self.weight = chosen.kl if chosen.kind in ("kl", "gumbel") else COMMITMENT
        self.progress, self.made = 0.0, torch.empty(0)  # of the run; the last reconstructions, for the critic's turn

    def at(self, progress: float) -> None:
        self.progress = progress
        self.autoencoder.anneal(progress)

    def stream(self, data: Dataset, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Draws images, and the noise of their latents."""
        batches = Batches(data, min(self.chosen.batch_size, len(data)), seed)
        factor, channels = self.autoencoder.factor, self.autoencoder.noise_channels

        def draw(step: int) -> tuple[Tensor, Tensor]:
            x = batches.draw(step).x0
            shape = (len(x), channels, *(-(-n // factor) for n in x.shape[2:]))
            return x, torch.randn(shape, generator=generator(seed, Stream.POSTERIOR_NOISE, step))

        return draw

    def autoencoder_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        autoencoder, chosen, (x, noise) = self.autoencoder, self.chosen, batch
        y, penalty = autoencoder(x, noise)
        y = y.float()
        self.made = y.detach()
        penalty = penalty.mean(0).clamp(min=chosen.free_bits).mean()
        value = 4 * F.mse_loss(y, x) + F.l1_loss(y, x) + self.weight * penalty
        if chosen.perceptual:
            value = value + chosen.perceptual * perceptual_distance(y, x).mean()
        if self.critic is not None and self.progress >= 0.25 and torch.is_grad_enabled():
            against = LOSSES["hinge"].generator(self.critic(y))
            value = value + chosen.adversarial * adaptive_weight(value, against, autoencoder.last) * against
        return value

    def critic_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """From the first step: the decoder is to follow a critic that knows."""
        assert self.critic is not None
        return LOSSES["hinge"].discriminator(self.critic(batch[0]), self.critic(self.made))


def _new(channels: int, chosen: TrainAutoencoderOptions) -> Autoencoder:
    """An autoencoder with fresh weights."""
    kind, size = chosen.kind, chosen.codebook_size
    if kind not in KINDS:
        raise unknown("kind of autoencoder", kind, KINDS)
    if min(chosen.latent, chosen.width, chosen.blocks, chosen.levels) < 1:
        raise InputError("latent, width, blocks and levels must be at least 1.")
    spec: dict[str, Any] = {"name": kind, "channels": channels, "width": chosen.width, "blocks": chosen.blocks}
    spec["multiples"] = [2**i for i in range(chosen.levels)]
    if kind == "fsq":
        if size not in LEVELS:
            raise InputError(f"fsq has codebooks of {', '.join(map(str, LEVELS))} tokens, got {size}. Try 1024.")
        spec["levels"] = LEVELS[size]
    else:
        spec |= {"latent": chosen.latent} | ({} if kind == "kl" else {"codebook": size})
    return drawn(lambda: nets.build(spec), chosen.seed, Stream.POSTERIOR_NOISE)


def _critic(channels: int, chosen: TrainAutoencoderOptions) -> PatchDiscriminator | None:
    if not chosen.adversarial:
        return None
    return drawn(lambda: PatchDiscriminator(channels, width=32, depth=2), chosen.seed, Stream.POSTERIOR_NOISE, 1)


def fitting(autoencoder: nn.Module, data: Dataset) -> Autoencoder:
    """The autoencoder, if it is one for images of that many channels; InputError if not."""
    if not isinstance(autoencoder, Autoencoder):
        raise InputError(
            f"A {type(autoencoder).__name__} is no autoencoder of this library. Train one: train-autoencoder."
        )
    if autoencoder.config["channels"] != data.shape[0]:
        raise InputError(
            f"This autoencoder takes images of {autoencoder.config['channels']} channels, those of {data.name!r} "
            f"have {data.shape[0]}. Use the data that it was trained on."
        )
    return autoencoder


def batches(
    data: Dataset, n: int | None = None, size: int = 32, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The images (the first ``n``) in [-1, 1] on a device, ``size`` at a time."""
    left = len(data) if n is None else n
    for group in data.groups:
        rows = group[:left]
        left -= len(rows)
        for start in range(0, len(rows), size):
            yield nets_input(data, rows[start : start + size], device)


def nets_input(data: Dataset, rows: list[int], device: torch.device | str) -> Tensor:
    """Images as a net takes them: in [-1, 1], channels-last, where it is."""
    return as_input(data.batch(rows).images).to(device).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def standardize(autoencoder: Autoencoder, data: Dataset, n: int = 1024) -> None:
    """Measure the latents of up to ``n`` images, so that ``encode`` gives each channel mean 0 and variance 1."""
    step = max(len(data) // n, 1)
    rows = [i for i in data.groups[0] if i % step == 0][:n] or data.groups[0][:n]
    autoencoder.mean.zero_()
    autoencoder.std.fill_(1)
    parts = (nets_input(data, rows[i : i + 32], autoencoder.mean.device) for i in range(0, len(rows), 32))
    autoencoder.standardize(torch.cat([autoencoder.encode(x) for x in parts]))


class Quality(NamedTuple):
    """PSNR of the reconstructions in dB (mean over images), and their gradients' energy as a part of the real one."""

    psnr: float
    gradient_energy: float


@torch.no_grad()
def quality(autoencoder: Autoencoder, data: Dataset, n: int | None = None) -> Quality:
    """Measure an autoencoder on images, best on some that it was not trained on."""
    decibels, mine, real = [], 0.0, 0.0
    for x in batches(data, n, device=autoencoder.mean.device):
        y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
        decibels.append(-10 * ((y - x) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10())
        mine, real = mine + _gradients(y), real + _gradients(x)
    return Quality(float(torch.cat(decibels).mean()), mine / max(real, 1e-12))


def _gradients(x: Tensor) -> float:
    return float(x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum())


@torch.no_grad()
def use(autoencoder: Discrete, data: Dataset, n: int | None = None) -> float:
    """The part of the codebook that occurs in the images."""
    tokens = torch.cat([autoencoder.tokens(x).flatten() for x in batches(data, n, device=autoencoder.mean.device)])
    return len(tokens.unique()) / autoencoder.codebook_size


@torch.no_grad()
def preview(autoencoder: Autoencoder, data: Dataset, n: int = 8) -> tuple[Tensor, int]:
    """A sheet and its columns: images above, their reconstructions below."""
    x = nets_input(data, data.groups[0][:: max(len(data.groups[0]) // n, 1)][:n], autoencoder.mean.device)
    y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
    return torch.cat([x, y]), len(x)


def save(autoencoder: Autoencoder, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically; ``dtype`` torch.float16 halves it, torch.int8 quarters it."""
    kind = next(name for name, known in nets.NETS.items() if type(autoencoder) is known)
    save_tensors(path, stored(autoencoder.state_dict(), dtype), {"codec": {"name": kind, **autoencoder.config}})
