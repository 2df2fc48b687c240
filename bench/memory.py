"""Memory of a long training, which must be flat, and what glibc's malloc costs a training on the CPU.

    python bench/memory.py flat [--steps 2000]        # resident memory every 200 steps
    python bench/memory.py malloc [--rounds 5]        # images/s and page faults with malloc as it is and keeping memory

malloc gives large tensors back to the system when they are freed, and each new one is then mapped and zeroed page by
page. The command line has it keep them (``cli.tune_malloc``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def flat(steps: int) -> None:
    """Train a tiny net, with checkpoints, previews and validation as usual, and look every 200 steps."""
    import tempfile

    from fastdiffusion.training.callback import Callback
    from fastdiffusion.training.learner import Learner

    resident_mb: list[float] = []

    class Look(Callback):
        def step(self, learner, step) -> None:
            if step.step % 200 == 0:
                resident_mb.append(resident())
                print(f"step {step.step}: {resident_mb[-1]:.0f} MB", flush=True)

    net = {"name": "dit", "patch": 4, "width": 32, "depth": 1, "head": 16}
    with tempfile.TemporaryDirectory() as folder:
        Learner("digits", net, folder=folder, precision="float32", verbose=False).fit(steps=steps, callbacks=[Look()])
    half = resident_mb[len(resident_mb) // 2 :]
    growth = half[-1] - half[0]
    print(f"second half: {min(half):.0f} to {max(half):.0f} MB, {growth:+.1f} MB in {200 * (len(half) - 1)} steps")


def one(seconds: float, keep: bool) -> None:
    """Train for some seconds; print images/s and what the kernel was asked for."""
    from fastdiffusion.cli import tune_malloc
    from fastdiffusion.training.learner import Learner

    if keep:
        tune_malloc()
    learner = Learner("fashion-mnist", "unet-small", precision="float32", batch_size=32, verbose=False)
    loop = learner.steps(steps=100_000)
    for _ in range(3):
        next(loop)
    before, begun, done = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), 0
    while time.process_time() - begun < seconds:
        next(loop)
        done += 32
    used, spent = resource.getrusage(resource.RUSAGE_SELF), time.process_time() - begun
    print(json.dumps({
        "images a CPU second": round(done / spent, 1),
        "page faults an image": round((used.ru_minflt - before.ru_minflt) / done, 1),
        "system share": round((used.ru_stime - before.ru_stime) / spent, 3),
        "peak MB": round(used.ru_maxrss / 1024),
    }))  # fmt: skip


def malloc(rounds: int, seconds: float) -> None:
    """Both ways in turns, each in a process of its own."""
    for k in range(rounds):
        for name, more in {"as it is": [], "keeping": ["--keep"]}.items():
            command = [sys.executable, __file__, "one", "--seconds", str(seconds), *more]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            print(k, name, run.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("flat", "malloc", "one"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if args.what == "flat":
        flat(args.steps)
    elif args.what == "one":
        one(args.seconds, args.keep)
    else:
        malloc(args.rounds, args.seconds)
