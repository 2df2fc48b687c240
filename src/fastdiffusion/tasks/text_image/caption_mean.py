"""What words alone say of a picture, learned before the denoiser: its text encoder and its draft, by regression.

    model = train_draft("photos/", codec="codec.safetensors", folder="runs/draft")
    Learner("photos/", begin="runs/draft/draft.safetensors", text=True, codec="codec.safetensors").fit(minutes=60)

A step here costs a hundredth of a denoiser's, and all of it goes where words decide (see docs/lab-notes.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import data as datasets
from ...data import Dataset
from ...errors import InputError, unknown
from ...io.images import as_input
from ...models import Model, save
from ...nets import TextConditioned
from ...nets.presets import PRESETS
from ...noise import generator
from ...training.learner import Learner
from ...training.trainer import Part, train

FILE = "draft.safetensors"
ROWS, CAPTIONS = 96, 97  # what a generator is for


def train_caption_mean(
    data: Dataset | str,
    steps: int = 3000,
    net: str | dict[str, Any] = "unet-latent",
    autoencoder: str | Path | nn.Module | None = None,
    folder: str | Path | None = None,
    init_from: str | Path | None = None,
    side: int = 16,
    batch_size: int = 256,
    lr: float = 1e-2,
    holdout: float = 0.05,
    precision: str = "auto",
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Model:
    """A model whose text encoder and draft have learned E[x0 | words], and whose denoiser is still to be trained.

    Args:
        data: Captioned pictures of one size.
        steps: Of training; the same call goes on where it stopped.
        net: Of the denoiser, as ``Learner`` takes it.
        codec: An autoencoder, or the file of one: draft its latents.
        folder: Where checkpoints and ``draft.safetensors`` go.
        begin: The file of a model with a draft to go on from.
        side: Of the draft; larger pictures are drafted this small.
        batch_size: Captions a step.
        lr: Highest learning rate, of the usual optimizer.
        holdout: Part of the data that the denoiser keeps for validation: give the same there.
        precision: "float32", "bfloat16", or "auto": the faster one, measured.
        minutes: End this session after so long.
        fresh: Forget what the folder holds.
        seed: Of everything.

    Raises:
        InputError: A model to begin with that has no draft.
        DataError: No captions.
    """
    if isinstance(net, str) and net not in PRESETS:
        raise unknown("net", net, PRESETS)
    spec = dict(PRESETS[net] if isinstance(net, str) else net)
    learner = Learner(
        datasets.load(data) if isinstance(data, str) else data, net={**spec, "draft": {"side": side}}, captions=True,
        autoencoder=autoencoder, init_from=init_from, holdout=holdout, seed=seed, verbose=False,
    )  # fmt: skip
    conditioned = learner.objective.denoiser.net
    if not isinstance(conditioned, TextConditioned) or conditioned.caption_mean is None:
        raise InputError(f"{Path(init_from or '').name} has no draft to go on from. Leave begin out.")
    text_encoder, caption_mean = conditioned.text_encoder, conditioned.caption_mean
    rows, scale = learner.train, learner.measured_sigma_data
    if len(rows.groups) != 1:
        raise InputError("A draft needs pictures of one size. Load the folder with aspect='crop'.")

    def loss(step: int) -> Tensor:
        some = torch.randint(len(rows), (batch_size,), generator=generator(seed, ROWS, step)).tolist()
        batch = rows.batch(some, generator(seed, CAPTIONS, step))
        mean = caption_mean(text_encoder(text_encoder.tokens(batch.captions))[2])
        target = as_input(batch.images) / scale
        return (mean - F.adaptive_avg_pool2d(target, mean.shape[2:])).square().mean()

    config = {
        "data": rows.fingerprint, "words": text_encoder.config, "draft": caption_mean.config,
        "batch_size": batch_size, "lr": lr,
        "begin": None if learner.base is None else learner.base.id[:16],
    }  # fmt: skip
    both = nn.ModuleDict({"text_encoder": text_encoder, "caption_mean": caption_mean})
    part = Part(both, loss, optimizer=learner.optimizer, lr=lr)
    for _ in train({"caption_mean": part}, steps, config, folder, seed, 50, 0.5, minutes, fresh, precision):
        pass
    model = learner.averaged(None)
    if folder is not None:
        save(model, Path(folder) / FILE)
    return model
