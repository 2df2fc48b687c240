"""Images from the model in training, at the same seeds each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import samplers
from ..guidance import cfg
from ..io.images import grid, save_png
from ..noise import initial
from .batches import Batches
from .budget import TrainStep

if TYPE_CHECKING:
    from .learner import Learner
from .callback import Callback, is_due, report

PREVIEWS, STEPS = 16, 12  # images in a preview, and solver steps for each


TEXT_SCALE = 3.0  # guidance of previews that are made from words


class Preview(Callback):
    """previews/<step>.png: the same noises and classes each time. Whatever goes wrong, training goes on."""

    def step(self, learner: Learner, step: TrainStep) -> None:
        """Sample a sheet, seldom."""
        if not is_due(step, learner.batch_size, PREVIEWS * STEPS):
            return
        try:
            images = preview(learner)
            if learner.main:
                zoom = max(1, 32 // images.shape[-1])
                save_png(grid(images, 4, zoom), learner.run.path / "previews" / f"{step.step:07d}.png")  # pyright: ignore
        except Exception as error:  # a full disk, a sampler that diverges: not worth a run
            report(learner, f"\nNo preview at step {step.step:,}: {error}")


@torch.no_grad()
def preview(learner: Learner, n: int = PREVIEWS, steps: int = STEPS) -> torch.Tensor:
    """Pictures of the averaged model from the seeds 0, 1, ... and its classes in turn."""
    model = learner.model
    table = model.table(steps)
    cond, denoise = None, model.denoise
    if model.corruption is not None:
        return restoration_preview(learner, n)
    if model.conditioner is not None:  # captions of training pictures, with the guidance that words need
        rows = [i * len(learner.train) // n for i in range(n)]
        cond, denoise = model.encode_prompt(learner.train.annotations(rows).captions), cfg(denoise, TEXT_SCALE)
    elif model.classes:
        cond = model.cond([i % len(model.classes) for i in range(n)])
    x = table.sigmas[0] * initial(range(n), model.shape).to(model.device)
    return model.decode(samplers.final(samplers.run(denoise, x, table, cond, range(n))))


@torch.no_grad()
def restoration_preview(learner: Learner, n: int) -> torch.Tensor:
    """Held-out pictures as they are given, and the one-call answers: two of each a row."""
    data = learner.held_out if len(learner.held_out) else learner.train
    stream = Batches(data, n // 2, -1, corruption=learner.batches.corruption)
    batch, model = stream.draw(0).split(1, learner.device)[0], learner.model
    assert batch.cond is not None and batch.cond.image is not None
    inputs = batch.cond.image[:, : model.shape[0]]
    answer = model.denoise(inputs, inputs.new_full((len(inputs),), model.sigma_max), batch.cond)
    return torch.stack([inputs, answer], 1).flatten(0, 1)
