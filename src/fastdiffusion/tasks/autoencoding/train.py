"""Train the codec that a latent model works behind.

    codec = train_autoencoder("photos/", minutes=10, folder="runs/codec")
    z = codec.encode(pictures)

The loss of Rombach et al. 2022 (sec. 3.1): squared and absolute error, the distance of perceptual features, and a
little of the divergence to a normal distribution, which keeps latents smooth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

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
from ...nets.perceptual import perceptual_distance
from ...noise import generator
from ...training.batches import Batches
from ...training.trainer import Part, train

FILE = "codec.safetensors"
NOISE = 40  # purpose of the generator of the posterior's noise
PREVIEW_EVERY = 500
COMMITMENT = 0.25  # of an encoder to its codebook (van den Oord et al. 2017, eq. 3)
CRITIC_LR = 1e-3
KINDS = ("kl", "vq", "fsq", "gumbel")
LEVELS = {64: (8, 8), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5)}  # Mentzer et al. 2023, table 1


def train_autoencoder(
    data: Dataset | str,
    steps: int = 3000,
    kind: str = "kl",
    latent: int = 4,
    width: int = 32,
    blocks: int = 1,
    levels: int = 2,
    codebook_size: int = 1024,
    kl: float = 1e-4,
    free_bits: float = 0.0,
    perceptual: float = 0.0,
    adversarial: float = 0.0,
    decoder_of: Autoencoder | None = None,
    size: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 32,
    lr: float = 1e-2,
    optimizer: str = "muon",
    holdout: float = 0.05,
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Autoencoder:
    """An autoencoder for these pictures; the same call goes on where it stopped.

    One that ``minutes`` stopped can be used, but its file is written when it is finished.

    Args:
        data: Pictures, or what ``data.load`` takes.
        steps: Of training.
        kind: "kl" for continuous latents; "vq", "fsq" or "gumbel" for words of a codebook.
        latent: Channels of the latents.
        width: Channels of the first level.
        blocks: Residual blocks of each level, on either side.
        levels: How often the size is halved; level i has ``width * 2**i`` channels.
        codebook: Number of words; for "fsq", whose levels multiply to about that, 64, 256, 1024 or 4096.
        kl: Weight of the divergence (of kinds "kl" and "gumbel"); larger is smoother and coarser.
        free_bits: Nats a latent number, in the mean of a channel, that cost nothing: against channels that collapse
            to the prior and say nothing (Kingma et al. 2016, arXiv:1606.04934).
        perceptual: Weight of ``nets.perceptual.perceptual_distance``.
        adversarial: Weight of a critic of patches, beside the adaptive one (VQGAN, Esser et al. 2021, eq. 7). It
            learns alone for a quarter of the steps.
        decoder_of: Instead of a new autoencoder, go on with a copy of this one and teach its decoder alone: latents,
            and all that was trained on them, stay what they are.
        size: Side of the pictures, if ``data`` is a name or folder.
        folder: Where checkpoints, previews and the finished file go.
        batch_size: Pictures a step.
        lr: Highest learning rate.
        optimizer: A name in ``optimizers.OPTIMIZERS``.
        holdout: Part of the pictures kept for the previews and for measuring.
        minutes: End after so long; the same call goes on.
        fresh: Forget what the folder holds.
        seed: Of everything.
    """
    data = datasets.load(data, size)
    autoencoder = (
        _new(data.shape[0], kind, latent, width, blocks, levels, codebook_size, seed)
        if decoder_of is None
        else deepcopy(decoder_of)
    )
    if not all(0 <= value < math.inf for value in (kl, free_bits, perceptual, adversarial)):
        raise InputError(
            "kl, free_bits, perceptual and adversarial are weights: numbers that are not negative. 0 is off."
        )
    train_data, held = data.split(holdout, seed)
    config = {"codec": autoencoder.config, "kl": kl, "free_bits": free_bits, "perceptual": perceptual, "lr": lr,
              "adversarial": adversarial, "batch_size": batch_size, "optimizer": optimizer,
              "data": train_data.fingerprint,
              "decoder": None if decoder_of is None else fingerprint(decoder_of.state_dict())}  # fmt: skip
    examples = Batches(train_data, min(batch_size, len(train_data)), seed)
    autoencoder.encoder.requires_grad_(decoder_of is None)
    critic = _critic(data.shape[0], seed) if adversarial else None
    critic_start, weight = steps // 4, kl if kind in ("kl", "gumbel") else COMMITMENT
    made = torch.empty(0)  # the generator's last pictures, for the critic's turn

    def images(step: int) -> Tensor:
        return examples.draw(step).x0.contiguous(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        nonlocal made
        x = images(step)
        side = [-(-n // autoencoder.factor) for n in x.shape[2:]]
        autoencoder.anneal(step / steps)
        y, penalty = autoencoder(
            x, torch.randn(len(x), len(autoencoder.mean), *side, generator=generator(seed, NOISE, step))
        )
        y = y.float()
        made = y.detach()
        value = 4 * F.mse_loss(y, x) + F.l1_loss(y, x) + weight * penalty.mean(0).clamp(min=free_bits).mean()
        if perceptual:
            value = value + perceptual * perceptual_distance(y, x).mean()
        if critic is not None and step >= critic_start:
            against = LOSSES["hinge"].generator(critic(y))
            value = value + adversarial * adaptive_weight(value, against, autoencoder.last) * against
        return value

    def critic_loss(step: int) -> Tensor:  # from the first step: the decoder is to follow a critic that knows something
        return LOSSES["hinge"].discriminator(critic(images(step)), critic(made))  # pyright: ignore

    parts = {"autoencoder": Part(autoencoder if decoder_of is None else autoencoder.decoder, loss, optimizer, lr)}
    if critic is not None:
        parts["critic"] = Part(critic, critic_loss, "adamw", CRITIC_LR)
    shown, step = held if len(held) else train_data, 0
    for step, *_ in train(parts, steps, config, folder, seed, 100, 0.5, minutes, fresh):
        if folder is not None and (step % PREVIEW_EVERY == 0 or step == steps):
            preview(autoencoder.eval(), shown, Path(folder) / "preview.png")
            autoencoder.train(decoder_of is None)
    autoencoder.eval().requires_grad_(True)
    if decoder_of is None:
        standardize(autoencoder, train_data)
    if folder is not None and step in (0, steps):  # finished: now, or before
        save(autoencoder, Path(folder) / FILE)
    return autoencoder


def _new(
    channels: int, kind: str, latent: int, width: int, blocks: int, levels: int, codebook_size: int, seed: int
) -> Autoencoder:
    """A codec with fresh weights."""
    if kind not in KINDS:
        raise unknown("kind of autoencoder", kind, KINDS)
    if min(latent, width, blocks, levels) < 1:
        raise InputError("latent, width, blocks and levels must be at least 1.")
    spec = {"name": kind, "channels": channels, "width": width, "multiples": [2**i for i in range(levels)]}
    spec |= {"blocks": blocks}
    if kind == "fsq":
        if codebook_size not in LEVELS:
            raise InputError(
                f"fsq has codebooks of {', '.join(map(str, LEVELS))} words, got {codebook_size}. Try 1024."
            )
        spec["levels"] = LEVELS[codebook_size]
    else:
        spec |= {"latent": latent} | ({} if kind == "kl" else {"codebook": codebook_size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, NOISE).initial_seed() % 2**63)
        autoencoder = nets.build(spec)
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder


def _critic(channels: int, seed: int) -> PatchDiscriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, NOISE, 1).initial_seed() % 2**63)
        return PatchDiscriminator(channels, width=32, depth=2)


def fitting(autoencoder: nn.Module, data: Dataset) -> Autoencoder:
    """The codec, if it is one for pictures of that many channels; InputError if not."""
    if not isinstance(autoencoder, Autoencoder):
        raise InputError(
            f"A {type(autoencoder).__name__} is no autoencoder of this library. Train one: train-autoencoder."
        )
    if autoencoder.config["channels"] != data.shape[0]:
        raise InputError(
            f"This autoencoder takes pictures of {autoencoder.config['channels']} channels, those of {data.name!r} "
            f"have {data.shape[0]}. Use the data that it was trained on."
        )
    return autoencoder


def batches(data: Dataset, n: int | None = None, size: int = 32) -> Iterator[Tensor]:
    """The pictures (the first ``n``) in [-1, 1], ``size`` at a time."""
    left = len(data) if n is None else n
    for group in data.groups:
        rows = group[:left]
        left -= len(rows)
        for start in range(0, len(rows), size):
            yield nets_input(data, rows[start : start + size])


def nets_input(data: Dataset, rows: list[int]) -> Tensor:
    """Pictures as a net takes them: in [-1, 1], channels-last."""
    return as_input(data.batch(rows).images).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def standardize(autoencoder: Autoencoder, data: Dataset, n: int = 1024) -> None:
    """Measure the latents of up to ``n`` pictures, so that ``encode`` gives each channel mean 0 and variance 1."""
    step = max(len(data) // n, 1)
    rows = [i for i in data.groups[0] if i % step == 0][:n] or data.groups[0][:n]
    autoencoder.mean.zero_()
    autoencoder.std.fill_(1)
    z = torch.cat([autoencoder.encode(nets_input(data, rows[i : i + 32])) for i in range(0, len(rows), 32)])
    autoencoder.standardize(z)


class Quality(NamedTuple):
    """How faithful a codec is: PSNR in dB (mean over pictures), and its gradients' energy as a part of the real one."""

    psnr: float
    gradient_energy: float


@torch.no_grad()
def quality(autoencoder: Autoencoder, data: Dataset, n: int | None = None) -> Quality:
    """Measure a codec on pictures, best on some that it never saw."""
    decibels, mine, real = [], 0.0, 0.0
    for x in batches(data, n):
        y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
        decibels.append(-10 * ((y - x) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10())
        mine, real = mine + _gradients(y), real + _gradients(x)
    return Quality(float(torch.cat(decibels).mean()), mine / max(real, 1e-12))


def _gradients(x: Tensor) -> float:
    return float(x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum())


@torch.no_grad()
def use(autoencoder: Discrete, data: Dataset, n: int | None = None) -> float:
    """The part of the codebook that occurs in the pictures."""
    tokens = torch.cat([autoencoder.tokens(x).flatten() for x in batches(data, n)])
    return len(tokens.unique()) / autoencoder.codebook_size


@torch.no_grad()
def preview(autoencoder: Autoencoder, data: Dataset, path: Path, n: int = 8) -> None:
    """A sheet: pictures above, what the codec makes of them below."""
    x = nets_input(data, data.groups[0][:: max(len(data.groups[0]) // n, 1)][:n])
    y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
    save_png(grid(torch.cat([x, y]), len(x), max(1, 64 // x.shape[-1])), path)


def save(autoencoder: Autoencoder, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically; ``dtype`` torch.float16 halves it, torch.int8 quarters it."""
    kind = next(name for name, known in nets.NETS.items() if type(autoencoder) is known)
    save_tensors(path, stored(autoencoder.state_dict(), dtype), {"codec": {"name": kind, **autoencoder.config}})
