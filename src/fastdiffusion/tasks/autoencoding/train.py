"""Train the autoencoder that a latent model works behind.

    autoencoder = train_autoencoder("photos/", minutes=10, folder="runs/autoencoder")
    z = autoencoder.encode(images)

The loss of Rombach et al. 2022 (sec. 3.1): squared and absolute error, the distance of perceptual features, and a
little of the divergence to a normal distribution, which keeps latents smooth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
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
from ...io.images import as_input, grid, save_png
from ...nets.adversarial import LOSSES, PatchDiscriminator, adaptive_weight
from ...nets.autoencoders import Autoencoder, Discrete
from ...nets.layers import drawn
from ...nets.perceptual import perceptual_distance
from ...noise import Stream, generator
from ...options import fill
from ...training.batches import Batches
from ...training.trainer import Part, train
from .options import TrainAutoencoderOptions

FILE = "codec.safetensors"
PREVIEW_EVERY = 500
COMMITMENT = 0.25  # of an encoder to its codebook (van den Oord et al. 2017, eq. 3)
CRITIC_LR = 1e-3
KINDS = ("kl", "vq", "fsq", "gumbel")
LEVELS = {64: (8, 8), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5)}  # Mentzer et al. 2023, table 1


def train_autoencoder(data: Dataset | str, **options: Any) -> Autoencoder:
    """An autoencoder for these images; the same call goes on where it stopped.

    One that ``minutes`` stopped can be used, but its file is written when it is finished.

    Args:
        data: Images, or what ``data.load`` takes.
        options: See :class:`TrainAutoencoderOptions`.
    """
    chosen = fill(TrainAutoencoderOptions, **options)
    data = datasets.load(data, chosen.size)
    original, place = chosen.decoder_of, chosen.place
    autoencoder = (_new(data.shape[0], chosen) if original is None else deepcopy(original)).to(place)
    if not all(0 <= v < math.inf for v in (chosen.kl, chosen.free_bits, chosen.perceptual, chosen.adversarial)):
        raise InputError(
            "kl, free_bits, perceptual and adversarial are weights: numbers that are not negative. 0 is off."
        )
    train_data, held = data.split(chosen.holdout, chosen.seed)
    config: dict[str, Any] = {"codec": autoencoder.config, "data": train_data.fingerprint}
    names = ("kl", "free_bits", "perceptual", "adversarial", "lr", "batch_size", "optimizer")
    config |= {name: getattr(chosen, name) for name in names}
    config["decoder"] = None if original is None else fingerprint(original.state_dict())
    autoencoder.encoder.requires_grad_(original is None)
    game = _Game(autoencoder, _critic(data.shape[0], chosen), train_data, chosen)
    learned = autoencoder if original is None else autoencoder.decoder
    parts = {"autoencoder": Part(learned, game.autoencoder_loss, chosen.optimizer, chosen.lr)}
    if game.critic is not None:
        parts["critic"] = Part(game.critic, game.critic_loss, "adamw", CRITIC_LR)
    shown, step = held if len(held) else train_data, 0
    for step, *_ in train(parts, config=config, warmup=100, **chosen.run()):
        if chosen.folder is not None and (step % PREVIEW_EVERY == 0 or step == chosen.steps):
            preview(autoencoder.eval(), shown, Path(chosen.folder) / "preview.png")
            autoencoder.train(original is None)
    autoencoder.eval().requires_grad_(True)
    if original is None:
        standardize(autoencoder, train_data)
    if chosen.folder is not None and step in (0, chosen.steps):  # finished: now, or before
        save(autoencoder, Path(chosen.folder) / FILE)
    return autoencoder.cpu()


class _Game:
    """What the autoencoder and its critic are trained on: within each step they take turns, on the same images."""

    def __init__(
        self, autoencoder: Autoencoder, critic: nn.Module | None, data: Dataset, chosen: TrainAutoencoderOptions
    ):
        self.autoencoder, self.critic, self.chosen, self.place = autoencoder, critic, chosen, chosen.place
        self.batches = Batches(data, min(chosen.batch_size, len(data)), chosen.seed)
        self.weight = chosen.kl if chosen.kind in ("kl", "gumbel") else COMMITMENT
        self.made = torch.empty(0)  # the last reconstructions, for the critic's turn

    def images(self, step: int) -> Tensor:
        return self.batches.draw(step).x0.to(self.place).contiguous(memory_format=torch.channels_last)

    def autoencoder_loss(self, step: int) -> Tensor:
        autoencoder, chosen, x = self.autoencoder, self.chosen, self.images(step)
        side = [-(-n // autoencoder.factor) for n in x.shape[2:]]
        autoencoder.anneal(step / chosen.steps)
        noise = torch.randn(
            len(x), len(autoencoder.mean), *side, generator=generator(chosen.seed, Stream.POSTERIOR_NOISE, step)
        )
        y, penalty = autoencoder(x, noise.to(x.device))
        y = y.float()
        self.made = y.detach()
        penalty = penalty.mean(0).clamp(min=chosen.free_bits).mean()
        value = 4 * F.mse_loss(y, x) + F.l1_loss(y, x) + self.weight * penalty
        if chosen.perceptual:
            value = value + chosen.perceptual * perceptual_distance(y, x).mean()
        if self.critic is not None and step >= chosen.steps // 4:
            against = LOSSES["hinge"].generator(self.critic(y))
            value = value + chosen.adversarial * adaptive_weight(value, against, autoencoder.last) * against
        return value

    def critic_loss(self, step: int) -> Tensor:  # from the first step: the decoder is to follow a critic that knows
        assert self.critic is not None
        return LOSSES["hinge"].discriminator(self.critic(self.images(step)), self.critic(self.made))


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
    return drawn(lambda: PatchDiscriminator(channels, width=32, depth=2), chosen.seed, Stream.POSTERIOR_NOISE, 1).to(
        chosen.place
    )


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
def preview(autoencoder: Autoencoder, data: Dataset, path: Path, n: int = 8) -> None:
    """A sheet: images above, their reconstructions below."""
    x = nets_input(data, data.groups[0][:: max(len(data.groups[0]) // n, 1)][:n], autoencoder.mean.device)
    y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
    save_png(grid(torch.cat([x, y]).cpu(), len(x), max(1, 64 // x.shape[-1])), path)


def save(autoencoder: Autoencoder, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically; ``dtype`` torch.float16 halves it, torch.int8 quarters it."""
    kind = next(name for name, known in nets.NETS.items() if type(autoencoder) is known)
    save_tensors(path, stored(autoencoder.state_dict(), dtype), {"codec": {"name": kind, **autoencoder.config}})
