"""Published solvers whose numbers are learned, fitted to the bundled model, beside its own tables and textbook ones.

    python bench/learned_solvers.py [--steps 4,8] [--iterations 150] [--scale S] [-n 192] [--out out/learned_solvers]

Each is a method like those of ``samplers.solvers``, so that what was learned is a table like any other:

- LD3 (Tong et al. 2024, arXiv:2405.15506): DPM-Solver++(2M) on learned levels, and the levels that the network is told
  at them; the loss is at the end, its gradient goes through the whole run. Without the paper's relaxed start.
- AMED (Zhou et al. 2024, arXiv:2312.00094): one learned level between the ends of each step, and a factor of the step.
  Constants for each step, where the paper has a small network see the image.
- EPD (Zhu et al. 2025, arXiv:2507.14797): the same with two levels between, weighted. The paper counts evaluations that
  could run side by side as one; here each counts, and "side by side" is a table of its own with half more of them.

AMED and EPD are taught step by step: each step from where the last one ended, towards the states of a run of 48 steps.
All learn from 32 names and noises; images are measured as by table_quality.py, on other names and noises.
An evaluation with its gradient counts as three.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from fitted_tables import FIRST, opponents
from table_quality import Drawn, known
from torch import Tensor, nn

from fastdiffusion import data, load, noise, schedules
from fastdiffusion.models import Model
from fastdiffusion.samplers import Table
from fastdiffusion.samplers.trace import trace

LEARNED_FROM, BATCH, TEACHER = 32, 8, 48
Numbers = Sequence[Any]  # floats, or tensors of one number that are learned


def ld3(D: Any, noise: Any, x: Any, sigmas: Numbers, told: Numbers) -> Any:
    """DPM-Solver++(2M), whose network is told ``told`` times the level."""
    old: Any = None
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x0 = D(x, s * told[i])
        ahead = x0
        if old is not None and i + 2 < len(sigmas):  # steps in log sigma, half of this one over the last one
            ahead = x0 + _log(s / t) / (2 * _log(sigmas[i - 1] / s)) * (x0 - old)
        x, old = ahead + (t / s) * (x - ahead), x0
    return x


def between(D: Any, noise: Any, x: Any, sigmas: Numbers, places: Any, shares: Any, factors: Numbers, low: float) -> Any:
    """AMED and EPD: the slopes at levels inside each step, reached by Euler, weighted by ``shares``."""
    for i in range(len(sigmas) - 1):
        x = inside(D, x, sigmas, i, places, shares, factors, low)
    return x


def inside(D: Any, x: Any, sigmas: Numbers, i: int, places: Any, shares: Any, factors: Numbers, low: float) -> Any:
    """One step of :func:`between`."""
    s, t = sigmas[i], sigmas[i + 1]
    slope = (1 / s) * (x - D(x, s))
    whole: Any = None
    for place, share in zip(places[i], shares[i], strict=True):
        level = s ** (1 - place) * (t or low) ** place
        reached = x + (level - s) * slope
        there = (share / level) * (reached - D(reached, level))
        whole = there if whole is None else whole + there
    return x + ((t - s) * (factors[i] if t else 1.0)) * whole


def _log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


class Lessons:
    """Names and noises to learn from, and the states of a long run at any levels."""

    def __init__(self, model: Model, n: int, scale: float | None):
        scenes = data.load("emoji-scenes")
        rows = list(known(scenes)[1].values())[n:]
        rows = rows[:: len(rows) // LEARNED_FROM][:LEARNED_FROM]
        self.cond = model.encode_prompt([scenes.caption(row) for row in rows])
        self.denoise = model.guide(model.denoise, model.scale if scale is None else scale, model.null())
        self.x = noise.initial(list(range(FIRST - LEARNED_FROM, FIRST)), model.shape) * model.sigma_max
        self.model, self.spent = model, 0

    def batches(self, iterations: int) -> Iterator[list[int]]:
        source = torch.Generator().manual_seed(0)
        for _ in range(iterations):
            yield torch.randperm(LEARNED_FROM, generator=source)[:BATCH].tolist()

    def D(self, rows: list[int]) -> Callable[[Tensor, Any], Tensor]:
        def evaluated(x: Tensor, sigma: Any) -> Tensor:
            self.spent += len(x) * (3 if torch.is_grad_enabled() else 1)
            return self.denoise(x, torch.as_tensor(sigma, dtype=torch.float32).expand(len(x)), self.cond[rows])

        return evaluated

    @torch.no_grad()
    def states(self, levels: Sequence[float]) -> list[Tensor]:
        """Where a run of ``TEACHER`` steps of Heun's method is at these levels."""
        x, found, D = self.x, [self.x], self.D(list(range(LEARNED_FROM)))
        for start, end in pairwise(levels):
            many = TEACHER // (len(levels) - 1) + 1
            fine = schedules.exponential(many, end or self.model.sigma_min, start)[:-1].tolist()
            for s, t in pairwise([*fine, 0.0] if not end else fine):
                slope = (x - D(x, s)) / s
                ahead = x + (t - s) * slope
                x = x + (t - s) / 2 * (slope + (ahead - D(ahead, t)) / t) if t else ahead
            found.append(x)
        return found


def learned(lessons: Lessons, name: str, calls: int, iterations: int) -> Table:
    """The table of a method, with its numbers learned."""
    low, high = lessons.model.sigma_min, lessons.model.sigma_max
    if name == "LD3":
        return _learned_levels(lessons, calls, iterations, low, high)
    inner = 1 if name == "AMED" else 2
    steps = calls // 2 if "side by side" in name else calls // (1 + inner)
    levels = [*schedules.schedule("flow", steps + 1, sigma_min=low, sigma_max=high)[:-2].tolist(), 0.0]
    targets = lessons.states(levels)
    with torch.enable_grad():
        places = nn.Parameter(torch.logit(torch.linspace(0, 1, inner + 2)[1:-1]).expand(steps, inner).clone())
        shares = nn.Parameter(torch.full((steps, inner), 1 / inner))
        factors = nn.Parameter(torch.ones(steps))
        optimizer = torch.optim.Adam([places, shares, factors], 0.02)

        def normalized() -> Tensor:
            return shares / shares.sum(1, keepdim=True)

        for rows in lessons.batches(iterations):
            x, D, loss = lessons.x[rows], lessons.D(rows), torch.zeros(())
            for i in range(steps):
                x = inside(D, x.detach(), levels, i, places.sigmoid(), normalized(), factors, low)
                loss = loss + (x - targets[i + 1][rows]).square().mean() / (levels[i] ** 2 + 0.25)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    numbers = {"places": places.sigmoid().tolist(), "shares": normalized().tolist(), "factors": factors.tolist()}
    return trace(between, levels, name, low=low, **numbers)


def _learned_levels(lessons: Lessons, calls: int, iterations: int, low: float, high: float) -> Table:
    start = schedules.schedule("flow", calls, sigma_min=low, sigma_max=high)[:-1].log()
    (*_, target) = lessons.states([high, 0.0])
    with torch.enable_grad():
        gaps, told = nn.Parameter((start[:-1] - start[1:]).log()), nn.Parameter(torch.zeros(calls))
        optimizer = torch.optim.Adam([gaps, told], 0.02)

        def levels() -> Tensor:
            return torch.cat([start[:1], start[0] - gaps.exp().cumsum(0)]).exp()

        for rows in lessons.batches(iterations):
            x = ld3(lessons.D(rows), None, lessons.x[rows], [*levels(), 0.0], list(told.exp()))
            loss = (x - target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return trace(ld3, [*levels().tolist(), 0.0], "LD3", told=told.exp().tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", default="4,8")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--scale", type=float, help="of guidance, to learn with; by default the model's")
    parser.add_argument(
        "--unseen", type=float, default=3.0, help="another scale, that all tables are measured with too"
    )
    parser.add_argument("-n", type=int, default=192)
    parser.add_argument("--out", type=Path, default=Path("out/learned_solvers"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load(args.model, device="cpu")
    judges = {scale: Drawn(model, args.n, scale) for scale in (args.scale, args.unseen)}
    results: dict[str, dict[str, Any]] = {}
    for calls in map(int, args.steps.split(",")):
        textbook = dict(opponents(model, calls, full=False))
        names = [
            name for name in ("dpmpp_2m exponential", "dpmpp_2m flow", "euler flow", "lms flow") if name in textbook
        ]
        tables = {"fitted": model.table(calls, scale=args.scale), **{name: textbook[name] for name in names}}
        for name in ("LD3", "AMED", "EPD", "EPD, side by side"):
            path = args.out / f"{name}-{calls}.json"
            if not path.exists():
                if name == "EPD" and calls % 3:
                    continue
                lessons, began = Lessons(model, args.n, args.scale), time.process_time()
                table = learned(lessons, name, calls, args.iterations)
                path.write_text(table.to_json())
                print(
                    f"{name}, {calls}: {lessons.spent:,} evaluations, {time.process_time() - began:.0f} CPU s",
                    flush=True,
                )
            tables[name] = Table.from_json(path.read_text())
        for name, table in tables.items():
            rows = {scale: judge.row(table)[1] for scale, judge in judges.items()}
            results[f"{calls}: {name}"] = {"calls": table.nfe, **{str(scale): row for scale, row in rows.items()}}
            shown = " | ".join(f"{row['fd']:.2f} | {row['R']:.3f}" for row in rows.values())
            print(f"| {calls} | {name} | {table.nfe} | {shown} |", flush=True)
        (args.out / "learned_solvers.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
