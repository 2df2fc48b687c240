"""Train the codec that a latent model works behind.

    codec = train_autoencoder("photos/", minutes=10, folder="runs/codec")
    z = codec.encode(pictures)

The loss of Rombach et al. 2022 (sec. 3.1): squared and absolute error, the distance of perceptual features, and a
little of the divergence to a normal distribution, which keeps latents smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import data as datasets
from .. import nets
from ..checkpoints import save_tensors
from ..data import Dataset
from ..errors import InputError
from ..examples import Examples
from ..images import grid, save_png
from ..nets.autoencoders import KL
from ..noise import generator
from .loop import Part, train

FILE = "codec.safetensors"
NOISE = 40  # purpose of the generator of the posterior's noise
PREVIEW_EVERY = 500
Features = Callable[[Tensor, Tensor], Tensor]  # a distance of two batches of pictures, one number each


def train_autoencoder(
    data: Dataset | str,
    steps: int = 3000,
    latent: int = 4,
    width: int = 32,
    blocks: int = 1,
    levels: int = 2,
    kl: float = 1e-4,
    perceptual: float = 0.0,
    features: Features | None = None,
    size: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 32,
    lr: float = 1e-2,
    optimizer: str = "muon",
    holdout: float = 0.05,
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> KL:
    """A variational autoencoder for these pictures; the same call goes on where it stopped.

    Args:
        data: Pictures, or what ``data.load`` takes.
        steps: Of training.
        latent: Channels of the latents.
        width: Channels of the first level.
        blocks: Residual blocks of each level, on either side.
        levels: How often the size is halved; level i has ``width * 2**i`` channels.
        kl: Weight of the divergence; larger is smoother and coarser.
        perceptual: Weight of ``features``' distance.
        features: A distance in the features of another net, to be differentiated.
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
    if min(latent, width, blocks, levels) < 1 or kl < 0:
        raise InputError(f"latent, width, blocks and levels must be at least 1 and kl not negative, got kl={kl}.")
    config = {"latent": latent, "width": width, "blocks": blocks, "levels": levels, "kl": kl, "perceptual": perceptual,
              "batch_size": batch_size, "lr": lr, "optimizer": optimizer, "data": data.fingerprint}  # fmt: skip
    train_part, held = data.split(holdout, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, NOISE).initial_seed() % 2**63)
        codec = KL(data.shape[0], latent, width, [2**i for i in range(levels)], blocks)
    examples = Examples(train_part, min(batch_size, len(train_part)), seed)

    def loss(step: int) -> Tensor:
        x = examples.draw(step).x0.contiguous(memory_format=torch.channels_last)
        shape = (len(x), latent, -(-x.shape[2] // codec.factor), -(-x.shape[3] // codec.factor))
        y, mean, log_var = codec(x, torch.randn(shape, generator=generator(seed, NOISE, step)))
        y = y.float()
        value = 4 * F.mse_loss(y, x) + F.l1_loss(y, x) + kl * divergence(mean.float(), log_var.float()).mean()
        return value if features is None or not perceptual else value + perceptual * features(y, x).mean()

    shown = held if len(held) else train_part
    for done in train(
        {"codec": Part(codec, loss, optimizer, lr)}, steps, config, folder, seed, 100, 0.5, minutes, fresh
    ):
        if folder is not None and (done.step % PREVIEW_EVERY == 0 or done.step == steps):
            preview(codec.eval(), shown, Path(folder) / "preview.png")
            codec.train()
    codec.eval()
    standardize(codec, train_part)
    if folder is not None:
        save(codec, Path(folder) / FILE)
    return codec


def divergence(mean: Float[Tensor, "b *d"], log_var: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """KL(q(z | x) || N(0, 1)) of each latent number, in nats (Kingma & Welling 2014, app. B)."""
    return (mean.square() + log_var.exp() - 1 - log_var) / 2


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
    from ..images import to_tensor

    images = data.batch(rows).images
    x = images if images.is_floating_point() else to_tensor(images)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def standardize(codec: KL, data: Dataset, n: int = 1024) -> None:
    """Measure the latents of up to ``n`` pictures, so that ``encode`` gives each channel mean 0 and variance 1."""
    step = max(len(data) // n, 1)
    rows = [i for i in data.groups[0] if i % step == 0][:n] or data.groups[0][:n]
    codec.standardize(
        torch.cat([codec.posterior(nets_input(data, rows[i : i + 32]))[0] for i in range(0, len(rows), 32)])
    )


class Quality(NamedTuple):
    """How faithful a codec is: PSNR in dB (mean over pictures), and its gradients' energy as a part of the real one."""

    psnr: float
    gradient_energy: float


@torch.no_grad()
def quality(codec: KL, data: Dataset, n: int | None = None) -> Quality:
    """Measure a codec on pictures, best on some that it never saw."""
    decibels, mine, real = [], 0.0, 0.0
    for x in batches(data, n):
        y = codec.decode(codec.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
        decibels.append(-10 * ((y - x) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10())
        mine, real = mine + _gradients(y), real + _gradients(x)
    return Quality(float(torch.cat(decibels).mean()), mine / max(real, 1e-12))


def _gradients(x: Tensor) -> float:
    return float(x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum())


@torch.no_grad()
def preview(codec: KL, data: Dataset, path: Path, n: int = 8) -> None:
    """A sheet: pictures above, what the codec makes of them below."""
    x = nets_input(data, data.groups[0][:: max(len(data.groups[0]) // n, 1)][:n])
    y = codec.decode(codec.encode(x)).clamp(-1, 1)[..., : x.shape[-2], : x.shape[-1]]
    save_png(grid(torch.cat([x, y]), len(x), max(1, 64 // x.shape[-1])), path)


def save(codec: KL, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically; ``dtype`` torch.float16 halves it."""
    kind = next(name for name, known in nets.NETS.items() if type(codec) is known)
    tensors = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in codec.state_dict().items()}
    save_tensors(path, tensors, {"codec": {"name": kind, **codec.config}})
