"""What the latents of an autoencoder encode, measured: bounds on log p(x), active latents, what each of them changes.

    s = spread(autoencoder, images)
    elbo(autoencoder, images, s), iwae(autoencoder, images, s)  # in nats an image; the second is the tighter bound
    (activity(autoencoder, images) > ACTIVE).sum()              # how many latents depend on the image
    traverse(autoencoder, image, most_active(autoencoder, images))

A variational autoencoder is a model of images: latents are normal, pixels are normal about what the decoder makes of
them (Kingma & Welling 2014, arXiv:1312.6114). Its likelihood is an integral over all latents, bounded from below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ... import noise
from ...data import Dataset
from ...device import device_of
from ...errors import InputError
from ...io.images import grid
from ...nets.autoencoders import KL, Discrete, divergence
from ...noise import Stream, generator
from ...options import fill
from ...progress import Progress
from .options import EvaluateAutoencoderOptions
from .train import batches, fitting, quality, use

ACTIVE = 0.01  # variance over images from which a latent counts as active (Burda et al. 2016)
SHOWN = 8  # columns of a sheet
BATCH = 32


# ---- bounds on the likelihood -----------------------------------------------------------------------------------


def _decoded(autoencoder: KL, z: Float[Tensor, "b d H W"], size: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """The image of latents as they are, not standardized."""
    return autoencoder.decoder(z)[..., : size[0], : size[1]].float()


def _draw(mean: Tensor, log_var: Tensor, seed: int, k: int) -> tuple[Tensor, Tensor]:
    """(a draw from the posterior, the unit normal noise that made it)."""
    drawn = torch.randn(mean.shape, generator=generator(seed, Stream.POSTERIOR_DRAWS, k)).to(mean)
    return mean + drawn * (log_var / 2).exp(), drawn


@torch.no_grad()
def spread(autoencoder: KL, x: Float[Tensor, "b c h w"], seed: int = 0) -> float:
    """Standard deviation of pixels about the decoder's answer: the likeliest, which is the root mean square error.

    Rybkin et al. 2021 (arXiv:2006.13202). With it, bounds of models trained with any weights can be compared.
    """
    errors = []
    for k, part in enumerate(x.split(BATCH)):
        z, _ = _draw(*autoencoder.posterior(part), seed, k)
        errors.append((_decoded(autoencoder, z, x.shape[2:]) - part).square().flatten(1).mean(1))
    return float(torch.cat(errors).mean().sqrt().clamp(min=1e-6))


@torch.no_grad()
def log_weights(
    autoencoder: KL, x: Float[Tensor, "b c h w"], spread: float, samples: int = 64, seed: int = 0
) -> Float[Tensor, "k b"]:
    """log p(x | z) + log p(z) - log q(z | x) in nats, for ``samples`` draws of z from the posterior q."""
    if samples < 1 or not spread > 0:
        raise InputError(f"samples must be at least 1 and spread above 0, got {samples} and {spread:g}.")
    mean, log_var = autoencoder.posterior(x)
    constant = math.log(spread) + math.log(2 * math.pi) / 2
    rows = []
    for k in range(samples):
        z, drawn = _draw(mean, log_var, seed, k)
        pixels = -((x - _decoded(autoencoder, z, x.shape[2:])) / spread).square() / 2 - constant
        latents = (drawn.square() + log_var - z.square()) / 2  # log p - log q, whose 2 pi cancel
        rows.append(pixels.flatten(1).sum(1) + latents.flatten(1).sum(1))
    return torch.stack(rows)


def elbo(
    autoencoder: KL, x: Float[Tensor, "b c h w"], spread: float, samples: int = 64, seed: int = 0
) -> Float[Tensor, " b"]:
    """The evidence lower bound on log p(x) in nats, estimated (Kingma & Welling 2014, eq. 2)."""
    return log_weights(autoencoder, x, spread, samples, seed).mean(0)


def iwae(
    autoencoder: KL, x: Float[Tensor, "b c h w"], spread: float, samples: int = 64, seed: int = 0
) -> Float[Tensor, " b"]:
    """The importance-weighted bound on log p(x) in nats: between the ELBO of the same draws and, in the mean, log p(x).

    Burda et al. 2016 (arXiv:1509.00519, eq. 8): tighter with every sample.
    """
    return log_weights(autoencoder, x, spread, samples, seed).logsumexp(0) - math.log(samples)


# ---- what each latent encodes -----------------------------------------------------------------------------------


@torch.no_grad()
def activity(autoencoder: KL, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "d H W"]:
    """Variance over the images of each latent's posterior mean: 0 where it encodes nothing, 1 where it encodes all.

    A collapsed latent has the prior as its posterior, whatever the image (Burda et al. 2016).
    """
    return torch.cat([autoencoder.posterior(part)[0].float() for part in x.split(BATCH)]).var(0)


def most_active(autoencoder: KL, x: Float[Tensor, "b c h w"], n: int = SHOWN) -> list[int]:
    """The ``n`` channels that encode most, in the mean over their places, best first."""
    variance = activity(autoencoder, x).mean((1, 2))
    return variance.topk(min(n, len(variance))).indices.tolist()


@torch.no_grad()
def traverse(
    autoencoder: KL, x: Float[Tensor, "1 c h w"], channels: Sequence[int], reach: float = 3.0, steps: int = SHOWN
) -> Float[Tensor, "k s c h w"]:
    """What one channel at a time changes: it is shifted in all its places, the others stay as they are.

    Args:
        autoencoder: Trained.
        x: The image to begin with.
        channels: Which, see :func:`most_active`.
        reach: How far to either side, in the channel's standard deviations over the data.
        steps: Images of each.
    """
    z = autoencoder.posterior(x)[0].repeat(len(channels), steps, 1, 1, 1)
    for row, channel in zip(z, channels, strict=True):
        row[:, channel] += autoencoder.std[channel] * torch.linspace(-reach, reach, steps)[:, None, None].to(row)
    return _decoded(autoencoder, z.flatten(0, 1), x.shape[2:]).clamp(-1, 1).unflatten(0, (len(channels), steps))


@torch.no_grad()
def imagine(autoencoder: KL, seeds: Sequence[int], size: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """New images: the decoder's answers to latents from the prior; image i depends on seeds[i] alone."""
    grid_size = [-(-n // autoencoder.factor) for n in size]
    z = noise.initial(seeds, (len(autoencoder.mean), *grid_size)).to(autoencoder.mean)
    return _decoded(autoencoder, z, size).clamp(-1, 1)


# ---- all of it --------------------------------------------------------------------------------------------------


@torch.no_grad()
def describe(autoencoder: nn.Module, data: Dataset, **options: Any) -> dict[str, float]:
    """All that can be measured of an autoencoder, by name, on the first ``n`` images.

    ``psnr``, ``gradient_energy`` and ``bits`` an image (of tokens: places times log2 of their number; of a variational
    one the divergence, which an ideal coder of latents reaches); ``used``, the part of the tokens that occur; ``elbo``
    and ``iwae`` in nats an image at the likeliest ``spread``, and how many ``latents`` are ``active``.

    Args:
        autoencoder: Of this library; moved where ``device`` says.
        data: Images of one size, best some that it was not trained on.
        options: See :class:`EvaluateAutoencoderOptions`.
    """
    chosen = fill(EvaluateAutoencoderOptions, **options)
    autoencoder, n = fitting(autoencoder, data), chosen.n
    if chosen.device is not None:
        autoencoder.to(device_of(chosen.device))
    if len(data.groups) != 1:
        raise InputError("An autoencoder is measured on images of one size. Load the folder with aspect='crop'.")
    if min(n, len(data)) < 2:
        raise InputError(f"An autoencoder is measured on at least 2 images, got {min(n, len(data))}. Try holdout=0.")
    measured = quality(autoencoder, data, n)._asdict()
    x = torch.cat(list(batches(data, n, device=autoencoder.mean.device)))
    if isinstance(autoencoder, Discrete):
        places = autoencoder.tokens(x[:1]).numel()  # an image's
        return measured | {"bits": places * math.log2(autoencoder.codebook_size), "used": use(autoencoder, data, n)}
    return measured | (_likelihood(autoencoder, x, chosen.samples, chosen.seed) if isinstance(autoencoder, KL) else {})


def _likelihood(autoencoder: KL, x: Tensor, samples: int, seed: int) -> dict[str, float]:
    """The part of :func:`describe` that only a variational autoencoder has."""
    rate = torch.cat([divergence(*autoencoder.posterior(part)).flatten(1).sum(1) for part in x.split(BATCH)])
    s, alive = spread(autoencoder, x, seed), activity(autoencoder, x)
    chunks = Progress(x.split(BATCH), "bounds")
    w = torch.cat([log_weights(autoencoder, part, s, samples, seed + i) for i, part in enumerate(chunks)], 1)
    return {
        "bits": float(rate.mean()) / math.log(2),
        "spread": s,
        "elbo": float(w.mean()),
        "iwae": float((w.logsumexp(0) - math.log(samples)).mean()),
        "active": int((alive > ACTIVE).sum()),
        "latents": alive.numel(),
    }


@torch.no_grad()
def sheet(autoencoder: nn.Module, data: Dataset, seed: int = 0) -> Image.Image:
    """Images above, their reconstructions below; of a variational autoencoder then traversals and prior samples."""
    autoencoder = fitting(autoencoder, data)
    some = torch.cat(list(batches(data, 256, device=autoencoder.mean.device)))
    x = some[:: max(len(some) // SHOWN, 1)][:SHOWN]
    rows = [x, autoencoder.decode(autoencoder.encode(x))[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)]
    if isinstance(autoencoder, KL):
        rows += [traverse(autoencoder, x[:1], most_active(autoencoder, some)).flatten(0, 1)]
        rows += [imagine(autoencoder, range(seed, seed + 2 * SHOWN), x.shape[2:])]
    return grid(torch.cat(rows).cpu(), len(x), max(1, 48 // x.shape[-1]))
