"""Images a second and peak memory: our nets against diffusers' and denoising-diffusion-pytorch's, in turns, in one run.

    python bench/throughput.py                     # on an idle machine; 1x32x32, batch 16, 2 threads
    python bench/throughput.py --rounds 1 --steps 1 --threads 1 --nets diffusers unet-small    # a smoke run

A training step is forward, mean squared error, backward and fused AdamW, the same for everybody. Every round measures
each net once, so that a slow minute of the machine hits all alike; the table has medians, and ratios to diffusers are
medians of the rounds' ratios. Memory is the peak of a fresh process that trains this net alone. Speed says nothing
without the quality beside it: see time_to_quality.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import _without_torchvision
from torch import Tensor, nn

from fastdiffusion.nets import build
from fastdiffusion.nets.presets import PRESETS
from fastdiffusion.types import Cond

CLASSES = 10
REFERENCE = "diffusers"
Net = tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]  # and how to call it with (x, noise level, labels)


def diffusers() -> Net:
    """UNet2DModel of 3.9 M parameters."""
    from diffusers import UNet2DModel

    net: Any = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        num_class_embeds=CLASSES,
    )
    return net, lambda x, noise, y: net(x, noise * 500, class_labels=y).sample


def denoising_diffusion_pytorch() -> Net:
    """The Unet of its README (unconditional), as small."""
    before = set(sys.modules)
    _without_torchvision()  # a stub: the package imports torchvision for its data loader, which is not used here
    from denoising_diffusion_pytorch import Unet

    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision" and m not in before]:
        del sys.modules[name]
    net = Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    return net, lambda x, noise, y: net(x, noise * 500)


def ours(**spec: Any) -> Net:
    """One of our nets, class-conditional."""
    net = build({**spec, "in_channels": 1, "out_channels": 1, "classes": CLASSES})
    return net, lambda x, noise, y: net(x, noise, Cond(label=y))


SAME = {"name": "unet", "width": 32, "multiples": [1, 2, 4], "blocks": [2, 2, 2], "attention": [2], "updown": False}
NETS: dict[str, Callable[[], Net]] = {
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    "same topology": lambda: ours(**SAME),
    **{name: (lambda spec=spec: ours(**spec)) for name, spec in PRESETS.items()},
}


class Runner:
    """A net with its optimizer and a fixed batch, ready to be timed."""

    def __init__(self, name: str, batch: int, size: int):
        self.net, self.call = NETS[name]()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 1e-4, fused=True)
        self.x = torch.randn(batch, 1, size, size)
        self.noise, self.labels = torch.rand(batch), torch.arange(batch) % CLASSES
        self.parameters = sum(p.numel() for p in self.net.parameters())

    def train(self) -> None:
        loss = nn.functional.mse_loss(self.call(self.x, self.noise, self.labels), self.x)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def forward(self) -> None:
        self.call(self.x, self.noise, self.labels)

    def per_second(self, step: Callable[[], None], steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return len(self.x) * steps / (time.perf_counter() - start)


def high_water_mark() -> float:
    """Peak resident MB of this process. On Linux from /proc, since getrusage there begins with the parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_mb(name: str, args: argparse.Namespace) -> float:
    """Peak resident MB of a fresh process that trains ``name`` for a few steps."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        name,
        *(f"--{k}={getattr(args, k)}" for k in ("batch", "size", "threads")),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of images a second, training and forward, and the peak memory of each net."""
    runners = {name: Runner(name, args.batch, args.size) for name in args.nets}
    rounds: dict[str, dict[str, list[float]]] = {name: {"train": [], "forward": []} for name in runners}
    for r in runners.values():  # warm up: memory is allocated, kernels are chosen
        r.train()
        r.forward()
    for _ in range(args.rounds):
        for name, r in runners.items():
            rounds[name]["train"].append(r.per_second(r.train, args.steps))
            rounds[name]["forward"].append(r.per_second(r.forward, 2 * args.steps))
    return {
        name: {"parameters": r.parameters, **rounds[name], "peak_mb": peak_mb(name, args)}
        for name, r in runners.items()
    }


def table(results: dict[str, Any]) -> str:
    """The measurements as markdown."""
    rows = [
        "| net | parameters | training images/s | against diffusers | forward images/s | against diffusers | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        cells = [name, f"{row['parameters'] / 1e6:.2f} M"]
        for kind in ("train", "forward"):
            reference = results.get(REFERENCE, row)[kind]
            ratio = median(a / b for a, b in zip(row[kind], reference, strict=True))
            cells += [f"{median(row[kind]):.0f} ({min(row[kind]):.0f}-{max(row[kind]):.0f})", f"{ratio:.2f}"]
        rows.append(f"| {' | '.join([*cells, format(row['peak_mb'], '.0f')])} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), metavar="NET", help=", ".join(NETS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="training steps a round")
    parser.add_argument("--out", type=Path, default=Path("out/throughput.json"))
    parser.add_argument("--peak", choices=NETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        runner = Runner(args.peak, args.batch, args.size)
        for _ in range(3):
            runner.train()
        print(high_water_mark())
        return
    results = measure(args)
    about = {k: getattr(args, k) for k in ("batch", "size", "threads", "rounds", "steps")}
    about |= {"torch": torch.__version__, "machine": platform.machine(), "avx": torch.backends.cpu.get_cpu_capability()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"about": about, "nets": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
