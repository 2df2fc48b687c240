"""Diffusion along any process: blur and noise together, blur alone, or any corruption at all without noise.

    restorer = train_cold("digits", "pixelate 8", steps=1500).model
    for step in restore_steps(restorer, damaged, steps=16): ...

A network learns the clean image from the degraded one at all levels; it is then evaluated at one level after another,
each time on a slightly better image (Bansal et al. 2022, "Cold diffusion", arXiv:2208.09392).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import data as datasets
from ... import samplers
from ...data import Dataset
from ...denoisers import edm
from ...errors import InputError
from ...io import guarded
from ...io.images import to_tensor
from ...nets import layers, presets
from ...nets.unet import UNet
from ...noise import Stream, generator, initial
from ...options import fill
from ...samplers import processes
from ...samplers.processes import BlurNoise, Process
from ...training.batches import title
from ...training.report import TrainingResult
from ...training.task import Part, Task
from ...training.trainer import train
from ...types import Cond, Step
from .options import TrainColdOptions

LEVELS = 8  # different ones in a batch
FILE = "cold.safetensors"


class Restorer(nn.Module):
    """The clean image of one that was degraded to a level of its process; an untrained one returns its input.

    Args:
        process: As ``processes.process`` reads it: "blur_noise", "heat", "pixelate 8", ...
        net: Keywords of ``UNet``, without channels.
        shape: (channels, height, width) of the images.
        sigma_data: Their standard deviation.
    """

    def __init__(self, process: str, net: Mapping[str, Any], shape: Sequence[int], sigma_data: float = 0.5):
        super().__init__()
        self.config = {"process": process, "net": dict(net), "shape": list(shape), "sigma_data": sigma_data}
        self.process: Process = processes.process(process, max(shape[1:]))
        self.shape, self.sigma_data = (shape[0], shape[1], shape[2]), sigma_data
        self.net = UNet(**{**net, "in_channels": shape[0], "out_channels": shape[0]})

    @property
    def noisy(self) -> bool:
        """Whether new images can begin with nothing but noise."""
        return isinstance(self.process, BlurNoise)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The estimate of x0. Against the noise at this level stands EDM's preconditioning; without noise it adds."""
        std = [self.process.std(t) if isinstance(self.process, BlurNoise) else 0.0 for t in level.tolist()]
        sigma = torch.tensor(std, dtype=x.dtype, device=x.device)[:, None, None, None]
        c = edm(sigma.clamp(min=0.1), self.sigma_data)
        return c.c_skip * x + c.c_out.clamp(min=0.1) * self.net(c.c_in * x, level.clamp(min=1e-3).log() / 4, None)


def train_cold(data: Dataset | str, process: str = "blur 4", **options: Any) -> TrainingResult[Restorer]:
    """Train along a process.

    Args:
        data: Images, or what ``data.load`` takes.
        process: A name in ``processes.PROCESSES``, or a corruption at its full strength: "blur 4", "pixelate 8, gray".
        options: See :class:`TrainColdOptions`.
    """
    chosen = fill(TrainColdOptions, process=process, **options)
    data = datasets.load(data, chosen.size)
    spec, sigma_data = presets.unet(chosen.net), round(datasets.measure_sigma_data(data), 4)
    made: Restorer = layers.drawn(lambda: Restorer(process, spec, data.shape, sigma_data), chosen.seed)
    learned, held = data.split(chosen.holdout, chosen.seed)
    config = {**made.config, "data": learned.fingerprint, "lr": chosen.lr, "batch_size": chosen.batch_size}

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, level, x0 = batch
        return (made(x, level) - x0).square().flatten(1).mean(1)

    draws = [partial(_draw, made.process, some, chosen.batch_size) for some in (learned, held)]
    train(Task(
        {"net": Part(made, loss, chosen.optimizer, chosen.lr)}, partial(draws[0], chosen.seed), config, title(learned),
        chosen.usual_examples, "train-cold", {"data": data.name},
        held_out=[draws[1](-1, i) for i in range(4)] if len(held) else (),
        preview=partial(_preview, made, held if len(held) else learned),
        write=lambda folder: save(made, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return TrainingResult.of(made.cpu().requires_grad_(False), chosen.folder)


def _draw(process: Process, data: Dataset, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """A step's images, degraded to several levels, the levels, and the images as they were."""
    draw = generator(seed, Stream.COLD_ROWS, step)
    group = data.groups[int(torch.randint(len(data.groups), (), generator=draw))]
    rows = torch.randint(len(group), (batch_size,), generator=draw)
    x0 = to_tensor(data.batch([group[i] for i in rows.tolist()]).images)
    noise = torch.randn(x0.shape, generator=generator(seed, Stream.COLD_NOISE, step))
    n = min(LEVELS, batch_size)  # each part of the range has its images
    levels = ((torch.arange(n) + torch.rand(n, generator=draw)) / n).tolist()
    chunks = list(zip(x0.tensor_split(n), noise.tensor_split(n), levels, strict=True))
    x = torch.cat([process.degrade(a, t, n) for a, n, t in chunks])
    return x, torch.cat([x.new_full((len(a),), t) for a, _, t in chunks]), x0


def restore_steps(
    restorer: Restorer,
    x: Float[Tensor, "b c h w"],
    steps: int = 16,
    level: float = 1.0,
    eta: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Images degraded to ``level``, restored in ``steps`` evaluations; the last step's ``x`` is the result.

    Args:
        restorer: Of their process.
        x: In [-1, 1].
        steps: One evaluation each, at even levels; with 1, the network's first estimate.
        level: How far they are degraded, above 0 to 1.
        eta: How much of the noise is renewed at each step, where the process has noise.
        seeds: One per image, for that.
    """
    if steps < 1 or not 0 < level <= 1:
        raise InputError(f"steps must be at least 1 and level above 0 to 1, got {steps} and {level:g}.")
    sigmas = torch.linspace(level, 0, steps + 1, dtype=torch.float64)
    yield from processes.run(
        restorer, x.to(restorer.device), samplers.table("euler", sigmas), restorer.process, eta=eta, seeds=seeds
    )


@torch.no_grad()
def restore(restorer: Restorer, x: Float[Tensor, "b c h w"], steps: int = 16, **options: Any) -> Tensor:
    """The result of :func:`restore_steps`, in [-1, 1], on the device of ``x``."""
    return samplers.final(restore_steps(restorer, x, steps, **options)).clamp(-1, 1).to(x.device)


def sample(restorer: Restorer, seeds: Sequence[int], steps: int = 50, eta: float = 1.0) -> Tensor:
    """New images from noise, where the highest level of the process leaves nothing else."""
    if not restorer.noisy or restorer.process.std(1.0) < 2:  # type: ignore[attr-defined]
        raise InputError(
            f"{restorer.config['process']!r} leaves something of the image even at its highest level: there is "
            "nothing to start from. Give a degraded image, or train with process='blur_noise'."
        )
    start = restorer.process.std(1.0) * initial(seeds, restorer.shape)  # type: ignore[attr-defined]
    return restore(restorer, start, steps, eta=eta, seeds=seeds)


def _preview(made: Restorer, held: Dataset) -> tuple[Tensor, int]:
    """Images degraded, restored in one evaluation, restored in sixteen; and how many to a row."""
    x0 = to_tensor(held.batch(held.groups[0][:8]).images)
    x = made.process.degrade(x0, 1.0, initial(range(len(x0)), x0.shape[1:]))
    return torch.cat([x0, x.clamp(-1, 1), restore(made, x, 1), restore(made, x, 16)]), len(x0)


def save(restorer: Restorer, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    guarded.save("cold", restorer, path)


def load(path: str | Path) -> Restorer:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(path, {"cold": Restorer}, "train-cold")
