"""What the verbs of autoencoders can be given. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ... import choices
from ...options import option
from ...training.options import ImageTrainingOptions, default, usual

if TYPE_CHECKING:
    from ...nets.autoencoders import Autoencoder


@dataclass(frozen=True)
class TrainAutoencoderOptions(ImageTrainingOptions):
    """Of ``train_autoencoder``; those of every training run as well.

    Attributes:
        kind: "kl" for continuous latents; "vq", "fsq" or "gumbel" for tokens of a codebook.
        latent: Channels of the latents.
        width: Channels of the first level.
        blocks: Residual blocks of each level, on either side.
        levels: How often the size is halved; level i has ``width * 2**i`` channels.
        codebook_size: Number of tokens; for "fsq", whose levels multiply to about that, 64, 256, 1024 or 4096.
        kl: Weight of the divergence (of kinds "kl" and "gumbel"); larger is smoother and coarser.
        free_bits: Nats a latent number, in the mean of a channel, that cost nothing: against channels that collapse
            to the prior and encode nothing (Kingma et al. 2016, arXiv:1606.04934).
        perceptual: Weight of ``nets.perceptual.perceptual_distance``.
        adversarial: Weight of a critic of patches, beside the adaptive one (VQGAN, Esser et al. 2021, eq. 7). It
            learns alone for a quarter of the steps.
        decoder_of: Instead of a new autoencoder, go on with a copy of this one and train its decoder alone: latents,
            and all that was trained on them, stay what they are.
    """

    steps: int | None = usual(3000)
    kind: str = option(
        "kl", "What it encodes to: kl, continuous latents; vq, fsq or gumbel, tokens.", choices=choices.AUTOENCODERS
    )
    latent: int = option(4, "Channels of the latents.")
    width: int = option(32, "Channels of the first level.")
    blocks: int = option(1, "Residual blocks of each level.")
    levels: int = option(2, "How often the size is halved.")
    codebook_size: int = option(1024, "Number of tokens.")
    kl: float = option(1e-4, "Weight of the divergence; larger is smoother and coarser.")
    free_bits: float = option(0.0, "Nats of each latent number that cost nothing.")
    perceptual: float = option(0.0, "Weight of the distance in a feature net.")
    adversarial: float = option(0.0, "Weight of a critic of patches.")
    decoder_of: Autoencoder | None = option(None, "An autoencoder whose decoder alone is trained.", python_only=True)
    batch_size: int = default("batch_size", 32)
    precision: str = default("precision", "auto")


@dataclass(frozen=True)
class EvaluateAutoencoderOptions:
    """Of ``describe``.

    Attributes:
        n: Images to measure with, at most.
        samples: Draws of the importance-weighted bound.
        seed: Of the draws.
        device: Where to compute; by default where the autoencoder is.
    """

    n: int = option(256, "Number of images to measure with, at most.", "-n", "--n")
    samples: int = option(64, "Draws of the importance-weighted bound.")
    seed: int = option(0, "Seed of the training's split, and of the draws.")
    device: str | None = default("device", None)


@dataclass(frozen=True)
class TrainTokenPriorOptions(ImageTrainingOptions):
    """Of ``train_token_prior``; those of every training run as well.

    Attributes:
        width: Channels of the prior.
        depth: Its layers.
        holdout: Part of the images that the prior is never trained on, to measure :func:`bits` with.
    """

    steps: int | None = usual(2000)
    width: int = option(128, "Channels of the prior.")
    depth: int = option(4, "Layers of the prior.")


@dataclass(frozen=True)
class SampleTokensOptions:
    """Of ``sample_tokens``.

    Attributes:
        n: How many images.
        steps: Evaluations of the prior, each of which sets several tokens; with as many as places, one by one.
        temperature: Below 1, likelier tokens: cleaner images, and fewer kinds.
        seed: Of image 0; image i has seed + i.
        batch_size: Images at once.
        device: Where to compute; by default where the prior is, or for a file the best there is.
    """

    n: int = option(16, "Number of images.", "-n", "--n")
    steps: int = option(16, "Evaluations of the prior per image, each setting several tokens.")
    temperature: float = option(1.0, "Temperature; below 1: likelier tokens, fewer kinds.")
    seed: int = option(0, "Seed of image 0; image i has seed + i.")
    batch_size: int = option(64, "Images computed at once, for speed and memory only.")
    device: str | None = default("device", None)
