"""Images from the model in training, at the same seeds each time."""

from __future__ import annotations

import torch

from .. import samplers
from ..guidance import cfg
from ..models import Model
from ..noise import initial
from .batches import Batches
from .setup import Setup
from .task import rows

PREVIEWS, STEPS = 16, 12  # images in a preview, and solver steps for each
TEXT_SCALE = 3.0  # guidance of previews that are made from captions


@torch.no_grad()
def preview(model: Model, setup: Setup, n: int = PREVIEWS, steps: int = STEPS) -> torch.Tensor:
    """Images of a model in training from the seeds 0, 1, ... and its classes in turn."""
    table = model.table(steps)
    cond, denoise = None, model.denoise
    if model.corruption is not None:
        return restoration_preview(model, setup, n)
    if model.conditioner is not None:  # captions of training images, with the guidance that they need
        some = [i * len(setup.train) // n for i in range(n)]
        cond, denoise = model.encode_prompt(setup.train.annotations(some).captions), cfg(denoise, TEXT_SCALE)
    elif model.classes:
        cond = model.cond([i % len(model.classes) for i in range(n)])
    x = table.sigmas[0] * initial(range(n), model.shape).to(model.device)
    return model.decode(samplers.final(samplers.run(denoise, x, table, cond, range(n))))


@torch.no_grad()
def restoration_preview(model: Model, setup: Setup, n: int) -> torch.Tensor:
    """Held-out inputs, and the answers of one evaluation: two of each a row."""
    data = setup.held_out if len(setup.held_out) else setup.train
    stream = Batches(data, n // 2, -1, corruption=setup.corruption)
    batch = rows(stream.draw(0), slice(None), model.device)
    assert batch.cond is not None and batch.cond.image is not None
    inputs = batch.cond.image[:, : model.shape[0]]
    answer = model.denoise(inputs, inputs.new_full((len(inputs),), model.sigma_max), batch.cond)
    return torch.stack([inputs, answer], 1).flatten(0, 1)
