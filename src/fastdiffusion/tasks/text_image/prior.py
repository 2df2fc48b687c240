"""The prior: from a text's vector to that of an image of it, in CLIP's space, by a diffusion of vectors.

    prior = train_prior(clip, data)
    vectors = imagine(prior, clip.encode_text(["a red car"]), seeds=[0])  # for a generator that takes image embeddings

Ramesh et al. 2022 (unCLIP, arXiv:2204.06125, sec. 2.2). A caption says less than an image shows, and in a contrastive
space the two lie apart; the prior crosses that gap, and gives a new image's vector for every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ... import losses, noise, samplers, schedules
from ...data import Dataset
from ...denoisers import Denoiser
from ...errors import InputError
from ...guidance import cfg
from ...io import guarded
from ...io.checkpoints import fingerprint, save_tensors
from ...nets.clip import Clip, Prior
from ...nets.layers import drawn
from ...noise import Stream, generator
from ...options import fill
from ...training.batches import title
from ...training.distributed import place
from ...training.task import Part, Task
from ...training.trainer import train
from ...types import Cond
from .clip import embedded
from .options import TrainPriorOptions

FILE = "prior.safetensors"


def train_prior(clip: Clip, data: Dataset, **options: Any) -> Denoiser:
    """A denoiser of image embeddings, conditioned on the embedding of their caption.

    Args:
        clip: Whose space it is. It is moved to the device of the run.
        data: Captioned images.
        options: See :class:`TrainPriorOptions`.
    """
    chosen = fill(TrainPriorOptions, **options)
    if chosen.draws < 1:
        raise InputError(f"draws must be at least 1, got {chosen.draws}. Try 4.")
    seed, n = chosen.seed, chosen.batch_size
    image_vectors, text_vectors = embeddings(clip.to(place(chosen.device)), data, chosen.draws, seed)
    unit = clip.dim**0.5  # unit vectors have numbers of about 1 / unit
    prior: Denoiser = drawn(lambda: Denoiser(Prior(clip.dim), "edm", sigma_data=1.0), seed, 1)
    weight = partial(losses.weight, "edm", sigma_data=1.0)

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor, Cond]:
        rows = torch.randint(len(image_vectors), (n,), generator=generator(seed, Stream.PRIOR_ORDER, step))
        which = torch.randint(chosen.draws, (n,), generator=generator(seed, Stream.PRIOR_CAPTION, step))
        text = text_vectors[which, rows]
        text = text + chosen.blur * torch.randn(text.shape, generator=generator(seed, Stream.PRIOR_BLUR, step))
        source = generator(seed, Stream.PRIOR_SIGMA, step)
        sigma = schedules.lognormal(torch.rand(n, generator=source), 0.0, 1.4)
        cond = Cond(pooled=unit * text).drop(torch.rand(n, generator=source) < chosen.dropout)
        x0 = unit * image_vectors[rows]
        return x0, sigma, torch.randn(x0.shape, generator=generator(seed, Stream.PRIOR_NOISE, step)), cond

    config = {
        "prior": clip.dim, "clip": fingerprint(clip.state_dict()), "draws": chosen.draws, "dropout": chosen.dropout,
        "data": data.fingerprint, "batch_size": n, "lr": chosen.lr, "optimizer": chosen.optimizer, "blur": chosen.blur,
    }  # fmt: skip
    part = Part(prior, lambda batch: losses.denoising_loss(prior, *batch, weight=weight), chosen.optimizer, chosen.lr)
    train(Task(
        {"prior": part}, draw, config, title(data), chosen.usual_examples,
        write=lambda folder: save(prior, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return prior.requires_grad_(False).cpu()


@torch.no_grad()
def embeddings(
    clip: Clip, data: Dataset, draws: int = 1, seed: int = 0
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "k n d"]]:
    """The vectors of all images, and of ``draws`` captions of each (of one draw: the first caption), on the CPU."""
    text_vectors = torch.zeros(draws, len(data), clip.dim)
    sources = [generator(seed, Stream.PRIOR_CAPTION, k) if draws > 1 else None for k in range(draws)]
    for group in data.groups:
        for first in range(0, len(group), 256):
            rows = group[first : first + 256]
            for k, source in enumerate(sources):
                text_vectors[k, rows] = clip.encode_text(data.annotations(rows, source).captions).cpu()
    return embedded(clip, data), text_vectors


@torch.no_grad()
def imagine(
    prior: Denoiser, text_vectors: Float[Tensor, "b d"], seeds: Sequence[int], steps: int = 8, scale: float = 1.0
) -> Float[Tensor, "b d"]:
    """Image embeddings, unit vectors, for those of texts; image i depends on seeds[i] alone.

    One step gives the expected vector, which is the nearest to the truth; more steps draw one, with all its variety.
    """
    unit = text_vectors.shape[1] ** 0.5
    table = samplers.table("dpmpp_2m", schedules.exponential(steps, 0.02, 20.0))
    x = table.sigmas[0] * noise.initial(seeds, (text_vectors.shape[1],)).to(text_vectors)
    made = samplers.final(samplers.run(cfg(prior, scale), x, table, Cond(pooled=unit * text_vectors), list(seeds)))
    return F.normalize(made, dim=1)


def save(prior: Denoiser, path: str | Path) -> None:
    """Write one safetensors file in half precision, atomically."""
    assert isinstance(prior.net, Prior)
    save_tensors(path, {k: v.half() for k, v in prior.state_dict().items()}, {"kind": "prior", **prior.net.config})


def load(path: str | Path) -> Denoiser:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(path, {"prior": lambda **c: Denoiser(Prior(**c), "edm", sigma_data=1.0)}, "train_prior")
