"""What a GPU gains, and whether everything works there: at most four minutes on a machine that has one.

    python bench/gpu.py                    # prints a table, writes out/gpu.json
    python bench/gpu.py --device cpu       # a smoke run without a GPU

Every test marked ``gpu``; then images per second of training and of sampling, and seconds of fitting a sampler and of
restoring an image, on the GPU and on the CPU of the same machine. Random images serve: speed does not depend on them.
A section that cannot run says why in one line, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdiffusion import Learner, restore, sample
from fastdiffusion.data import Images
from fastdiffusion.fitting import fit_sampler
from fastdiffusion.models import Model

ROOT = Path(__file__).resolve().parents[1]
TESTS = 90  # seconds for the tests; the measurements below take about as long again
SECONDS = 8.0  # of each measurement, after its first pass
LIMIT = 210  # seconds after which no further measurement is begun


def wait(device: str) -> None:
    """Let the device finish what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def per_second(amount: int, work: Callable[[], Any], device: str, seconds: float) -> float:
    """``amount`` for each pass of ``work``, per second; a first pass warms up."""
    work()
    wait(device)
    started, passes = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        wait(device)
        passes += 1
    return amount * passes / (time.perf_counter() - started)


def images(size: int, channels: int) -> Images:
    """Random images of ten classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (2048, channels, size, size), dtype=np.uint8)
    return Images("random", [pixels], labels=[i % 10 for i in range(len(pixels))], classes=[str(i) for i in range(10)])


def learner(device: str, args: argparse.Namespace, **options: Any) -> Learner:
    """A training of the usual net."""
    settings = {"batch_size": args.batch, "holdout": 0.0, "device": device, "verbose": False, **options}
    return Learner(images(args.size, 3), net=args.net, **settings)


def training(device: str, args: argparse.Namespace, **options: Any) -> float:
    """Images per second of whole training steps: data, augmentation, optimizer and averages included."""
    steps = learner(device, args, **options).steps(steps=1_000_000)
    for _ in range(3):
        next(steps)
    return per_second(args.batch, lambda: next(steps), device, args.seconds)


def sampling(device: str, args: argparse.Namespace) -> float:
    """Images per second of twelve solver steps."""
    model = untrained(device, args)
    draw = lambda: sample(model, n=args.batch, steps=12, batch_size=args.batch)  # noqa: E731
    return per_second(args.batch, draw, device, args.seconds)


def fitting(device: str, args: argparse.Namespace) -> float:
    """Seconds until a table of five steps is fitted, without the polish that uses up the time it is given."""
    model = untrained(device, args)
    started = time.perf_counter()
    fit_sampler(model, 5, cond=model.cond(range(10)), noises=16, evaluations=10_000, polish=False)
    return time.perf_counter() - started


def restoring(device: str, args: argparse.Namespace) -> float:
    """Seconds for one image of 256 by 256, by the restorer of the package."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    restore(picture, "blur 1.5", device=device)
    started = time.perf_counter()
    restore(picture, "blur 1.5", device=device)
    wait(device)
    return time.perf_counter() - started


def peer(device: str, args: argparse.Namespace) -> float:
    """diffusers' net of bench/throughput.py in a plain training step, images per second."""
    sys.path.insert(0, str(Path(__file__).parent))
    from throughput import diffusers  # the package itself is imported within

    net, call = diffusers()
    net.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    x, noise = torch.randn(args.batch, 1, 32, 32, device=device), torch.rand(args.batch, device=device)
    labels = torch.arange(args.batch, device=device) % 10

    def step() -> None:
        torch.nn.functional.mse_loss(call(x, noise, labels), x).backward()
        optimizer.step()
        optimizer.zero_grad()

    return per_second(args.batch, step, device, args.seconds)


def untrained(device: str, args: argparse.Namespace) -> Model:
    """A model that makes noise as fast as a trained one makes images."""
    return learner(device, args).model


SECTIONS: dict[str, tuple[str, Callable[[str, argparse.Namespace], float]]] = {
    "training": ("images/s", training),
    "training, float32": ("images/s", lambda *where: training(*where, precision="float32")),
    "sampling, 12 steps": ("images/s", sampling),
    "fit, 5 steps": ("s", fitting),
    "restore, 256x256": ("s", restoring),
    "peer: training of diffusers' UNet2DModel at 32x32": ("images/s", peer),
}


def tests(seconds: float) -> str:
    """The last line of ``pytest -m gpu``."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=seconds, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"pytest -m gpu was not done after {seconds:.0f} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "\n".join(
        [*failed[:20], done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]]
    )


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each section on each device; a sentence instead of a number where it could not run."""
    results: dict[str, dict[str, Any]] = {}
    on_cpu = argparse.Namespace(**{**vars(args), "batch": min(args.batch, 16)})  # as fast an image, in shorter passes
    for name, (unit, section) in SECTIONS.items():
        row: dict[str, Any] = {"unit": unit}
        for device in dict.fromkeys((args.device, "cpu")):
            try:
                if time.perf_counter() - args.started > LIMIT:
                    raise TimeoutError("the four minutes are over")
                row[device] = round(section(device, on_cpu if device == "cpu" else args), 3)
            except Exception as error:  # one section is not worth the others
                row[device] = (
                    f"skipped: {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
                )
            print(f"{name}, {device}: {row[device]} {unit if isinstance(row[device], float) else ''}", flush=True)
        results[name] = row
    return results


def table(results: dict[str, dict[str, Any]], device: str) -> str:
    """The measurements as markdown."""
    rows = [f"| | unit | {device} | cpu | gain |", "|---|---|---|---|---|"]
    for name, row in results.items():
        here, there = row[device], row["cpu"]
        gain = ""
        if isinstance(here, float) and isinstance(there, float) and device != "cpu":
            gain = f"{there / here if row['unit'] == 's' else here / there:.1f}x"
        rows.append(f"| {name} | {row['unit']} | {here} | {there} | {gain} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a smoke run")
    parser.add_argument("--net", default="unet-small")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--tests", type=float, default=TESTS, help="seconds for the tests; 0 leaves them out")
    parser.add_argument("--out", type=Path, default=Path("out/gpu.json"))
    args = parser.parse_args()
    args.started = time.perf_counter()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here: nothing to measure. --device cpu makes a smoke run.")
        return
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else "none"
    about = {"gpu": gpu, "torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    about |= {key: getattr(args, key) for key in ("net", "size", "batch", "seconds")}
    about["tests"] = tests(args.tests) if args.tests > 0 else "left out"
    print(f"{gpu}\n{about['tests']}", flush=True)
    results = measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    print(f"\n{table(results, args.device)}\n\n{json.dumps({'about': about, 'results': results})}")


if __name__ == "__main__":
    main()
