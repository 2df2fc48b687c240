"""The prior: from what words are to what a picture of them is, in CLIP's space, by a diffusion of vectors.

    prior = train_prior(clip, data)
    vectors = imagine(prior, clip.read(["a red car"]), seeds=[0])     # for a generator that takes image embeddings

Ramesh et al. 2022 (unCLIP, arXiv:2204.06125, sec. 2.2). Words say less than a picture shows, and in a contrastive space
they lie apart from it; the prior crosses that gap, and gives a new picture's vector for every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ... import losses, noise, samplers, schedules
from ...data import Dataset
from ...denoisers import Denoiser
from ...io import guarded
from ...io.checkpoints import fingerprint, save_tensors
from ...nets.clip import Clip, Prior
from ...noise import generator
from ...training.trainer import Part, train
from ...types import Cond
from .clip import embedded

FILE = "prior.safetensors"
DRAWS, ORDER, SIGMA, NOISE, BLUR = range(56, 61)  # what a generator is for


def train_prior(
    clip: Clip,
    data: Dataset,
    steps: int = 3000,
    folder: str | Path | None = None,
    batch_size: int = 256,
    lr: float = 5e-3,
    optimizer: str = "muon",
    draws: int = 4,
    blur: float = 0.05,
    dropout: float = 0.1,
    seed: int = 0,
    fresh: bool = False,
) -> Denoiser:
    """A denoiser of image embeddings that is told the embedding of their words.

    Args:
        clip: Whose space it is.
        data: Captioned pictures.
        steps: Of training.
        folder: Where checkpoints go; the same call goes on from there.
        batch_size: Vectors a step.
        lr: Highest learning rate.
        optimizer: A name in ``optimizers.OPTIMIZERS``.
        draws: Captions that are drawn and embedded for each picture.
        blur: Noise on the words' vectors, against trusting those of the training set too much.
        dropout: Part of the examples that are not told their words, for guidance.
        seed: Of everything.
        fresh: Forget what the folder holds.
    """
    image_vectors, text_vectors = embeddings(clip, data, draws, seed)
    unit = clip.dim**0.5  # unit vectors have numbers of about 1 / unit
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, 1).initial_seed() % 2**63)
        prior = Denoiser(Prior(clip.dim), "edm", sigma_data=1.0)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(image_vectors), (batch_size,), generator=generator(seed, ORDER, step))
        which = torch.randint(draws, (batch_size,), generator=generator(seed, DRAWS, step))
        text = text_vectors[which, rows]
        text = text + blur * torch.randn(text.shape, generator=generator(seed, BLUR, step))
        source = generator(seed, SIGMA, step)
        sigma = schedules.lognormal(torch.rand(batch_size, generator=source), 0.0, 1.4)
        cond = Cond(pooled=unit * text).drop(torch.rand(batch_size, generator=source) < dropout)
        x0 = unit * image_vectors[rows]
        unit_noise = torch.randn(x0.shape, generator=generator(seed, NOISE, step))
        weight = lambda s: losses.weight("edm", s, sigma_data=1.0)  # noqa: E731
        return losses.denoising_loss(prior, x0, sigma, unit_noise, cond, weight).mean()

    config = {
        "prior": clip.dim,
        "clip": fingerprint(clip.state_dict()),
        "draws": draws,
        "dropout": dropout,
        "data": data.fingerprint,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "blur": blur,
    }
    trained = {"prior": Part(prior, loss, optimizer, lr)}
    for _ in train(trained, steps, config, folder, seed, fresh=fresh, precision="float32"):
        pass
    prior.eval().requires_grad_(False)
    if folder is not None:
        save(prior, Path(folder) / FILE)
    return prior


@torch.no_grad()
def embeddings(
    clip: Clip, data: Dataset, draws: int = 1, seed: int = 0
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "k n d"]]:
    """The vectors of all pictures, and of ``draws`` captions of each (of one draw: the first caption)."""
    text_vectors = torch.zeros(draws, len(data), clip.dim)
    sources = [generator(seed, DRAWS, k) if draws > 1 else None for k in range(draws)]
    for group in data.groups:
        for first in range(0, len(group), 256):
            rows = group[first : first + 256]
            for k, source in enumerate(sources):
                text_vectors[k, rows] = clip.encode_text(data.annotations(rows, source).captions)
    return embedded(clip, data), text_vectors


@torch.no_grad()
def imagine(
    prior: Denoiser, text_vectors: Float[Tensor, "b d"], seeds: Sequence[int], steps: int = 8, scale: float = 1.0
) -> Float[Tensor, "b d"]:
    """Image embeddings, unit vectors, for the embeddings of words; picture i depends on seeds[i] alone.

    One step gives the expected vector, which is the nearest to the truth; more steps draw one, with all its variety.
    """
    from ...guidance import cfg

    unit = text_vectors.shape[1] ** 0.5
    table = samplers.table("dpmpp_2m", schedules.exponential(steps, 0.02, 20.0))
    x = table.sigmas[0] * noise.initial(seeds, (text_vectors.shape[1],))
    made = samplers.final(samplers.run(cfg(prior, scale), x, table, Cond(pooled=unit * text_vectors), list(seeds)))
    return F.normalize(made, dim=1)


def save(prior: Denoiser, path: str | Path) -> None:
    """Write one safetensors file in half precision, atomically."""
    assert isinstance(prior.net, Prior)
    save_tensors(path, {k: v.half() for k, v in prior.state_dict().items()}, {"kind": "prior", **prior.net.config})


def load(path: str | Path) -> Denoiser:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(path, {"prior": lambda **c: Denoiser(Prior(**c), "edm", sigma_data=1.0)}, "train_prior")
