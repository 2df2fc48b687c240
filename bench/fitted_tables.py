"""Fitted tables of the bundled emoji model under guidance against everything else with as many evaluations.

All start from the same noises and prompts (bench/prompts.txt, to which no table was fitted): RMS distance of the
latents from those of 100 evaluations (DPM-Solver++(3M) on exponential levels), and R-precision, among all names, of the
evaluator. Opponents: every textbook sampler of the registry on three schedules, with two ends; the published
"Align Your Steps" lists (Sabour et al. 2024, arXiv:2404.14507), stretched in log sigma onto this model's levels; a step
cache, which evaluates some of many small steps and forecasts the others linearly from the two newest estimates.

    python bench/fitted_tables.py [--steps 5,8] [--scale 3] [--budget 20000] [--images 80] [--out out/fitted_tables]
    python bench/fitted_tables.py --wall        # the ideal denoiser of the digits, which nobody should fit: falls back?
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from fastdiffusion import load, noise, samplers, schedules
from fastdiffusion.data import oracles
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model
from fastdiffusion.samplers import Table, fitting, planning, reference
from fastdiffusion.samplers.trace import trace
from fastdiffusion.tasks.evaluation import evaluator as evaluators
from fastdiffusion.tasks.fitting import prepare

FIRST = 5_000_000  # seeds from here on: no table was fitted to them


def cached(D, noise, x, sigmas, evaluations=5):
    """Euler on all sigmas; D is evaluated at so many of them, evenly, and a line through the two newest elsewhere."""
    n = len(sigmas) - 1
    chosen = {round(k * (n - 1) / (evaluations - 1)) for k in range(evaluations)}
    past: list = []
    for i in range(n):
        s, t = sigmas[i], sigmas[i + 1]
        if i in chosen:
            past = [(i, D(x, s)), *past][:2]
        x0 = past[0][1]
        if i not in chosen and len(past) == 2:
            (k, new), (j, old) = past
            x0 = new + (i - k) / (k - j) * (new - old)
        x = x0 + (t / s) * (x - x0)
    return x


def opponents(model: Model, n: int, full: bool = True) -> Iterator[tuple[str, Table]]:
    """Every table of n evaluations that anybody could take without fitting."""
    low, high = model.sigma_min, model.sigma_max
    for name in samplers.SAMPLERS:
        each = samplers.about(name).nfe
        steps = (n + each - 1) // each
        for kind in ("exponential", "karras", "flow") if full else ("exponential", "flow"):
            for floor in (low, 10 * low) if full else (low,):
                try:
                    table = samplers.table(name, schedules.schedule(kind, steps, sigma_min=floor, sigma_max=high))
                except (ValueError, ZeroDivisionError):
                    continue  # restart, repaint: no such few steps
                if table.nfe == n:
                    yield f"{name} {kind}{'' if floor == low else ', 10 sigma_min'}", table
    for listed in schedules.AYS:
        for name in ("euler", "dpmpp_2m", "deis") if full else ("euler", "dpmpp_2m"):
            yield f"{name} {listed}", samplers.table(name, schedules.schedule(listed, n, sigma_min=low, sigma_max=high))
    for factor in (2, 3):
        for kind in ("exponential", "flow"):
            sigmas = schedules.schedule(kind, factor * n, sigma_min=low, sigma_max=high)
            yield f"step cache, {factor} steps an evaluation, {kind}", trace(cached, sigmas, "cache", evaluations=n)


class Judged:
    """Prompts, noises and the reference of a model under guidance."""

    def __init__(self, model: Model, scale: float, images: int, batch: int = 16):
        lines = [line.split("\t") for line in Path("bench/prompts.txt").read_text().splitlines() if line[:1] not in "#"]
        rows = [lines[i % len(lines)] for i in range(images)]
        self.model, self.names, self.seeds = model, [row[1] for row in rows], list(range(FIRST, FIRST + images))
        self.x = model.sigma_max * noise.initial(self.seeds, model.shape)
        self.cond, self.batch = model.encode_prompt([row[0] for row in rows]), batch
        self.denoise = model.guide(model.denoise, scale, model.null())
        self.evaluator = evaluators.load()
        levels = schedules.exponential(100, model.sigma_min, model.sigma_max)
        self.wanted = self.run(samplers.table("dpmpp_3m", levels))

    def run(self, table: Table, rows: int | None = None) -> Tensor:
        parts = []
        for first in range(0, rows or len(self.x), self.batch):
            some = list(range(first, min(first + self.batch, rows or len(self.x))))
            x = self.x[some] * (table.sigmas[0] / self.model.sigma_max)
            seeds = [self.seeds[i] for i in some]
            parts.append(samplers.final(samplers.run(self.denoise, x, table, self.cond[some], seeds)))
        return torch.cat(parts)

    def rms(self, latents: Tensor) -> float:
        return float((latents - self.wanted[: len(latents)]).square().mean().sqrt())

    def precision(self, latents: Tensor) -> str:
        images = self.model.decode(latents).clamp(-1, 1)
        return str(retrieval.r_precision(self.evaluator, images, self.names, len(self.evaluator.names)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="5,8")
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--budget", type=int, default=20_000, help="evaluations of the fit, for all tables")
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--shown", type=int, default=6, help="opponents whose R-precision is measured")
    parser.add_argument("--ranked", type=int, default=16, help="images that all opponents are ranked by")
    parser.add_argument("--quick", action="store_true", help="fewer schedules of the textbook samplers")
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/fitted_tables"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.wall:
        return wall()
    model = load("emoji", device="cpu")
    judged, began = Judged(model, args.scale, args.images), time.process_time()
    others = [name for name in judged.evaluator.names if name not in judged.names]
    ready = prepare(model, steps=args.steps, prompts=others[:: len(others) // 64][:64], scale=args.scale,
                    evaluations=args.budget)  # fmt: skip
    print(ready.plan, flush=True)
    fitted = ready.run()
    print(*fitted.notes, f"{time.process_time() - began:.0f} CPU s", sep="\n", flush=True)
    results = {"100 evaluations": {"rms": 0.0, "r_precision": judged.precision(judged.wanted)}}
    print(results, flush=True)
    for n, table in fitted.tables.items():
        (args.out / f"fitted-{n}.json").write_text(table.to_json())
        known = dict(opponents(model, n, not args.quick))
        found = {name: judged.rms(judged.run(other, args.ranked)) for name, other in known.items()}
        ranked = sorted(found, key=lambda name: found[name])
        kinds = ("ays", "step cache", "dpmpp_2m exponential", "euler exponential", "ddpm")
        chosen = [*ranked[: args.shown], *(next(name for name in ranked if kind in name) for kind in kinds)]
        for name in dict.fromkeys(["fitted", *chosen]):
            latents = judged.run(table if name == "fitted" else known[name])
            row = {"rms": judged.rms(latents), "r_precision": judged.precision(latents)}
            results[f"{n}: {name}"] = row
            print(f"| {n} | {name} | {row['rms']:.4f} | {row['r_precision']} |", flush=True)
        results[f"{n}: all"] = {name: found[name] for name in ranked}
        (args.out / "fitted_tables.json").write_text(json.dumps(results, indent=1) + "\n")


def wall() -> None:
    """Fits of the digits' ideal denoiser, for several seeds, on 256 noises that none of them saw."""
    ideal, shape = oracles.dataset(torch.tensor(load_digits().data / 8 - 1).float(), 0.1), (64,)
    x = 80 * noise.initial(range(FIRST, FIRST + 256), shape)
    flow = reference.Flow.solve(ideal, x, schedules.exponential(300), None)
    for n in (5, 8, 12):
        for seed in range(4):
            problem = fitting.Problem(ideal, shape, 80.0, 0.002, seed=1000 * seed)
            table = fitting.fit_tables(problem, planning.plan([n], 20_000, shape))[n]
            name, kind, low = table.info["textbook"].split(", ")
            sigmas = schedules.schedule(kind, n, sigma_min=float(low.split()[1]), sigma_max=80.0)
            textbook = samplers.table(name, sigmas)
            print(f"{n} steps, seed {seed}: fitted {table.info['fitted']}, {flow.error_of(table):.4f} against "
                  f"{flow.error_of(textbook):.4f} of {table.info['textbook']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    with torch.no_grad():
        main()
