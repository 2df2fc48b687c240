"""Microseconds a call that a sampler costs beside the model, against k-diffusion and diffusers in the same run.

The model is ``x -> x`` on two numbers, 20 steps; each figure is the least of several runs, interleaved.

    OMP_NUM_THREADS=1 python bench/sampler_overhead.py [--alone]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

from fastdiffusion import guidance, samplers, schedules
from fastdiffusion.types import Cond

STEPS, RUNS = 20, 30


def ours() -> dict[str, tuple[int, Callable[[], object]]]:
    x = 80 * torch.randn(1, 2)
    out = {}
    for name in samplers.SAMPLERS:
        table = samplers.table(name, schedules.exponential(STEPS))
        out[f"fastdiffusion {name}"] = (
            table.nfe,
            lambda table=table: samplers.final(samplers.run(lambda x, s, c=None: x, x, table, seeds=[0])),
        )
    return out


def guided() -> dict[str, tuple[int, Callable[[], object]]]:
    """Under guidance: the same loop, and two conditions stacked and two estimates mixed at every step."""
    x, cond, out = 80 * torch.randn(1, 2), Cond(label=torch.zeros(1, dtype=torch.long)), {}
    table = samplers.table("dpmpp_2m", schedules.exponential(STEPS))
    for name, denoise in {
        "cfg": guidance.cfg(lambda x, s, c=None: x, 3.0),
        "cfg in half of the levels": guidance.cfg(lambda x, s, c=None: x, 3.0, interval=(0.0, 1.0)),
        "cfg rescaled": guidance.cfg(lambda x, s, c=None: x, 3.0, rescale=0.7),
    }.items():
        out[f"fastdiffusion dpmpp_2m, {name}"] = (
            STEPS,
            lambda denoise=denoise: samplers.final(samplers.run(denoise, x, table, cond)),
        )
    return out


def k_diffusions() -> dict[str, tuple[int, Callable[[], object]]]:
    from sampler_accuracy import k_diffusion

    k, x, sigmas = k_diffusion(), 80 * torch.randn(1, 2), schedules.exponential(STEPS).float()
    out = {}
    for name, evaluations in {
        "euler": STEPS,
        "heun": 2 * STEPS - 1,
        "lms": STEPS,
        "dpmpp_2m": STEPS,
        "euler_ancestral": STEPS,
    }.items():
        sampler = getattr(k, f"sample_{name}")
        out[f"k-diffusion {name}"] = (
            evaluations,
            lambda sampler=sampler: sampler(lambda x, s, **_: x, x, sigmas, disable=True),
        )
    return out


def diffusers_() -> dict[str, tuple[int, Callable[[], object]]]:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    out = {}
    for name in ("DDIM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "EulerAncestralDiscrete"):
        scheduler = getattr(diffusers, f"{name}Scheduler")()

        def run(scheduler=scheduler):
            scheduler.set_timesteps(STEPS)
            x = torch.randn(1, 1, 1, 2)
            for t in scheduler.timesteps:
                inputs = scheduler.scale_model_input(x, t)
                x = scheduler.step(inputs, t, x, return_dict=False)[0]
            return x

        out[f"diffusers {name}"] = (STEPS, run)
    return out


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", action="store_true", help="without the other libraries")
    args = parser.parse_args()
    runs = {**ours(), **guided()} | ({} if args.alone else {**k_diffusions(), **diffusers_()})
    least = dict.fromkeys(runs, float("inf"))
    with torch.no_grad():
        for _ in range(RUNS):
            for name, (evaluations, run) in runs.items():
                began = time.perf_counter()
                run()
                least[name] = min(least[name], (time.perf_counter() - began) / evaluations * 1e6)
    print("| sampler | microseconds a call |\n|---|---|")
    for name, value in least.items():
        print(f"| {name} | {value:.1f} |")
    print(json.dumps(least))


if __name__ == "__main__":
    main()
