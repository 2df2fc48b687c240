"""Images from the model in training, at the same seeds each time."""

from __future__ import annotations

import torch

from .. import samplers
from ..guidance import cfg
from ..io.images import grid, save_png
from ..noise import initial
from .batches import Batches
from .budget import TrainStep
from .callback import Callback, TrainingView, is_due, report

PREVIEWS, STEPS = 16, 12  # images in a preview, and solver steps for each
TEXT_SCALE = 3.0  # guidance of previews that are made from captions


class Preview(Callback):
    """previews/<step>.png: the same noises and classes each time. Whatever goes wrong, training goes on."""

    def step(self, training: TrainingView, step: TrainStep) -> None:
        """Sample a sheet, rarely."""
        if not is_due(step, training.config.batch_size, PREVIEWS * STEPS):
            return
        try:
            images = preview(training)
            if training.main:
                zoom = max(1, 32 // images.shape[-1])
                save_png(grid(images, 4, zoom), training.run.path / "previews" / f"{step.step:07d}.png")  # pyright: ignore
        except Exception as error:  # a full disk, a sampler that diverges: not worth a run
            report(training, f"\nNo preview at step {step.step:,}: {error}")


@torch.no_grad()
def preview(training: TrainingView, n: int = PREVIEWS, steps: int = STEPS) -> torch.Tensor:
    """Images of the averaged model from the seeds 0, 1, ... and its classes in turn."""
    model = training.model
    table = model.table(steps)
    cond, denoise = None, model.denoise
    if model.corruption is not None:
        return restoration_preview(training, n)
    if model.conditioner is not None:  # captions of training images, with the guidance that they need
        rows = [i * len(training.setup.train) // n for i in range(n)]
        cond, denoise = model.encode_prompt(training.setup.train.annotations(rows).captions), cfg(denoise, TEXT_SCALE)
    elif model.classes:
        cond = model.cond([i % len(model.classes) for i in range(n)])
    x = table.sigmas[0] * initial(range(n), model.shape).to(model.device)
    return model.decode(samplers.final(samplers.run(denoise, x, table, cond, range(n))))


@torch.no_grad()
def restoration_preview(training: TrainingView, n: int) -> torch.Tensor:
    """Held-out inputs, and the answers of one evaluation: two of each a row."""
    data = training.setup.held_out if len(training.setup.held_out) else training.setup.train
    stream = Batches(data, n // 2, -1, corruption=training.setup.corruption)
    batch, model = stream.draw(0).split(1, training.device)[0], training.model
    assert batch.cond is not None and batch.cond.image is not None
    inputs = batch.cond.image[:, : model.shape[0]]
    answer = model.denoise(inputs, inputs.new_full((len(inputs),), model.sigma_max), batch.cond)
    return torch.stack([inputs, answer], 1).flatten(0, 1)
