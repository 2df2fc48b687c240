"""Diffusion along any process: blur and noise together, blur alone, or any corruption at all without noise.

    restorer = train_cold("digits", "pixelate 8", steps=1500)
    for step in restore_steps(restorer, damaged, steps=16): ...

A network learns the clean picture from the degraded one at all levels; along the process's own way it is asked again
and again, each time from a slightly better picture (Bansal et al. 2022, "Cold diffusion", arXiv:2208.09392).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from ...io import guarded, inputs
from ...io.images import to_tensor
from ...nets import layers, presets
from ...nets.unet import UNet
from ...noise import generator, initial
from ...samplers import processes
from ...samplers.processes import BlurNoise, Process
from ...training.trainer import Part, train
from ...types import Cond, Step

LEVELS = 8  # different ones in a batch
ROWS, NOISE, PICK = 60, 61, 62  # what a generator is for


class Restorer(nn.Module):
    """The clean picture of one that was degraded to a level of its process; an untrained one answers with its input.

    Args:
        process: As ``processes.process`` reads it: "blur_noise", "heat", "pixelate 8", ...
        net: Keywords of ``UNet``, without channels.
        shape: (channels, height, width) of the pictures.
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
        """Whether new pictures can begin with nothing but noise."""
        return isinstance(self.process, BlurNoise)

    def forward(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The estimate of x0. Against the noise at this level stands EDM's preconditioning; without noise it adds."""
        std = [self.process.std(t) if isinstance(self.process, BlurNoise) else 0.0 for t in level.tolist()]
        c = edm(x.new_tensor(std)[:, None, None, None].clamp(min=0.1), self.sigma_data)
        return c.c_skip * x + c.c_out.clamp(min=0.1) * self.net(c.c_in * x, level.clamp(min=1e-3).log() / 4, None)


def train_cold(
    data: Dataset | str,
    process: str = "blur 4",
    steps: int = 1500,
    net: str = "unet-tiny",
    size: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 64,
    lr: float = 2e-3,
    holdout: float = 0.05,
    seed: int = 0,
    fresh: bool = False,
) -> Restorer:
    """Train along a process.

    Args:
        data: Pictures, or what ``data.load`` takes.
        process: A name in ``processes.PROCESSES``, or a corruption at its full strength: "blur 4", "pixelate 8, gray".
        steps: Of training.
        net: A U-Net's name in ``nets.PRESETS``.
        size: Side of the pictures in pixels.
        folder: Where checkpoints and previews go; the same call goes on from there.
        batch_size: Pictures a step.
        lr: Highest learning rate.
        holdout: Part of the pictures that is kept to preview and to measure with.
        seed: Of everything.
        fresh: Forget what the folder holds.
    """
    data = datasets.load(data, size)
    spec, sigma_data = presets.unet(net), round(datasets.measure_sigma_data(data), 4)
    made: Restorer = layers.drawn(lambda: Restorer(process, spec, data.shape, sigma_data), seed)
    learned, held = data.split(holdout, seed)

    def loss(step: int) -> Tensor:
        draw = generator(seed, ROWS, step)
        group = learned.groups[int(torch.randint(len(learned.groups), (), generator=draw))]
        rows = torch.randint(len(group), (batch_size,), generator=draw)
        x0 = to_tensor(learned.batch([group[i] for i in rows.tolist()]).images)
        noise = torch.randn(x0.shape, generator=generator(seed, NOISE, step))
        n = min(LEVELS, batch_size)  # each part of the way has its pictures
        levels = ((torch.arange(n) + torch.rand(n, generator=draw)) / n).tolist()
        chunks = list(zip(x0.tensor_split(n), noise.tensor_split(n), levels, strict=True))
        x = torch.cat([made.process.degrade(a, t, n) for a, n, t in chunks])
        level = torch.cat([x.new_full((len(a),), t) for a, _, t in chunks])
        return (made(x, level) - x0).square().mean()

    config = {**made.config, "data": learned.fingerprint, "lr": lr, "batch_size": batch_size}
    for done in train({"net": Part(made, loss, lr=lr)}, steps, config, folder, seed, fresh=fresh):
        if folder is not None and (done.step % 250 == 0 or done.step == steps):
            _preview(made, held if len(held) else learned, Path(folder) / "preview.png")
    made.eval().requires_grad_(False)
    if folder is not None:
        save(made, Path(folder) / "cold.safetensors")
    return made


def restore_steps(
    restorer: Restorer,
    x: Float[Tensor, "b c h w"],
    steps: int = 16,
    level: float = 1.0,
    eta: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Pictures degraded to ``level``, restored in ``steps`` calls; the last step's ``x`` is the result.

    Args:
        restorer: Of their process.
        x: In [-1, 1].
        steps: One call each, at even levels; with 1, the network's first answer.
        level: How far they are degraded, above 0 to 1.
        eta: How much of the noise is renewed at each step, where the process has noise.
        seeds: One per picture, for that.
    """
    if steps < 1 or not 0 < level <= 1:
        raise InputError(f"steps must be at least 1 and level above 0 to 1, got {steps} and {level:g}.")
    sigmas = torch.linspace(level, 0, steps + 1, dtype=torch.float64)
    yield from processes.run(restorer, x, samplers.table("euler", sigmas), restorer.process, eta=eta, seeds=seeds)


@torch.no_grad()
def restore(restorer: Restorer, x: Float[Tensor, "b c h w"], steps: int = 16, **options: Any) -> Tensor:
    """The result of :func:`restore_steps`, in [-1, 1]."""
    return samplers.final(restore_steps(restorer, x, steps, **options)).clamp(-1, 1)


def sample(restorer: Restorer, seeds: Sequence[int], steps: int = 50, eta: float = 1.0) -> Tensor:
    """New pictures from noise, where the highest level of the process leaves nothing else."""
    if not restorer.noisy or restorer.process.std(1.0) < 2:  # type: ignore[attr-defined]
        raise InputError(
            f"{restorer.config['process']!r} leaves something of the picture even at its highest level: there is "
            "nothing to start from. Give a degraded picture, or train with process='blur_noise'."
        )
    start = restorer.process.std(1.0) * initial(seeds, restorer.shape)  # type: ignore[attr-defined]
    return restore(restorer, start, steps, eta=eta, seeds=seeds)


def _preview(made: Restorer, held: Dataset, path: Path) -> None:
    """Held-out pictures, if there are any, degraded, restored in one call, restored in sixteen."""
    x0 = to_tensor(held.batch(held.groups[0][:8]).images)
    x = made.process.degrade(x0, 1.0, initial(range(len(x0)), x0.shape[1:]))
    training = made.training
    made.eval()
    rows = torch.cat([x0, x.clamp(-1, 1), restore(made, x, 1), restore(made, x, 16)])
    made.train(training)
    inputs.sheet(rows, path, len(x0))


def save(restorer: Restorer, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    guarded.save("cold", restorer, path)


def load(path: str | Path) -> Restorer:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    return guarded.load(path, {"cold": Restorer}, "train-cold")
