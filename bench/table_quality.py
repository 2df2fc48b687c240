"""Fitted tables as images: how far from real images, and how often recognized, beside every textbook table.

    python bench/table_quality.py [--model emoji] [--steps 4,8,12] [-n 192] [--scale S] [--out out/table_quality]

Names that the model was taught, one image each, from the same noises (to which no table was fitted), under its own
guidance. "fd" is the Frechet distance to the font's images in the evaluator's features, "R" the share recognized among
100 names. The best textbook table is chosen after the fact, by the fd that is reported, which flatters it; the fitted
table's fd less its fd comes with a 95 % interval of the bootstrap over images, paired. A model that comes with no
table for these steps is fitted first, and the table kept that comes nearest to the font's images of other names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from fitted_tables import FIRST, opponents
from text_to_image import evaluator_names, images_of, known
from torch import Tensor

from fastdiffusion import data, load, metrics, noise, samplers, schedules
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model
from fastdiffusion.samplers import Table
from fastdiffusion.tasks.evaluation import evaluator as evaluators
from fastdiffusion.tasks.fitting import fit


class Drawn:
    """Names, noises and what they should look like."""

    def __init__(self, model: Model, n: int, scale: float | None):
        scenes = data.load("emoji-scenes")
        rows = list(known(scenes)[1].values())[:n]
        prompts = [scenes.caption(row) for row in rows]
        self.names = evaluator_names([scenes.phrases[scenes.rows[row].image].name for row in rows])
        self.model, self.evaluator = model, evaluators.load()
        self.real = self.features(images_of(scenes, rows))
        self.seeds = list(range(FIRST, FIRST + len(rows)))
        self.cond = model.encode_prompt(prompts)
        self.denoise = model.guide(model.denoise, model.scale if scale is None else scale, model.null())

    def features(self, images: Tensor) -> Tensor:
        return metrics.features(self.evaluator, images)

    def images(self, table: Table, batch: int = 32) -> Tensor:
        parts = []
        for first in range(0, len(self.seeds), batch):
            some = list(range(first, min(first + batch, len(self.seeds))))
            seeds = [self.seeds[i] for i in some]
            x = float(table.sigmas[0]) * noise.initial(seeds, self.model.shape)
            latents = samplers.final(samplers.run(self.denoise, x, table, self.cond[some], seeds))
            parts.append(self.model.decode(latents).clamp(-1, 1))
        return torch.cat(parts)

    def row(self, table: Table) -> tuple[Tensor, dict[str, float]]:
        images = self.images(table)
        fake = self.features(images)
        found = retrieval.r_precision(self.evaluator, images, self.names)
        return fake, {"fd": metrics.frechet(self.real, fake), "R": found[0]}

    def more(self, fake: Tensor, other: Tensor) -> tuple[float, float, float]:
        """How much farther from the real images ``fake`` is than ``other``, with its interval."""
        width = fake.shape[1]

        def difference(rows: Tensor) -> float:
            real, a, b = rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width :]
            return metrics.frechet(real, a) - metrics.frechet(real, b)

        both = torch.cat([self.real, fake, other], 1)
        return difference(both), *metrics.interval(difference, both, rounds=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", default="4,8,12")
    parser.add_argument("-n", type=int, default=192)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--evaluations", type=int, help="what a fit may spend")
    parser.add_argument("--out", type=Path, default=Path("out/table_quality"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load(args.model, device="cpu")
    drawn = Drawn(model, args.n, args.scale)
    results: dict[str, object] = {}
    levels = schedules.exponential(50, model.sigma_min, model.sigma_max)
    results["dpmpp_3m, 50"] = drawn.row(samplers.table("dpmpp_3m", levels))[1]
    print(results, flush=True)
    for steps in map(int, args.steps.split(",")):
        tables = {"fitted": _fitted(model, steps, args), **dict(opponents(model, steps, full=False))}
        rows = {}
        for name, table in tables.items():
            rows[name] = drawn.row(table)
            print(f"| {steps} | {name} | {rows[name][1]['fd']:.2f} | {rows[name][1]['R']:.3f} |", flush=True)
        ranked = sorted((name for name in tables if name != "fitted"), key=lambda name: rows[name][1]["fd"])
        for name in (ranked[0], "dpmpp_2m exponential"):
            mean, low, high = drawn.more(rows["fitted"][0], rows[name][0])
            print(f"{steps}: fitted less {name}: fd {mean:+.2f} [{low:+.2f}, {high:+.2f}]", flush=True)
            results[f"{steps}: fitted less {name}"] = (mean, low, high)
        results[f"{steps}"] = {name: row for name, (_, row) in rows.items()}
        (args.out / "table_quality.json").write_text(json.dumps(results, indent=1) + "\n")


def _fitted(model: Model, steps: int, args: argparse.Namespace) -> Table:
    """The table that a model comes with, or one fitted for names that are not asked for here."""
    path = args.out / f"fitted-{steps}.json"
    own = model.table(steps, scale=args.scale)
    if own in model.tables.values():
        return own
    if not path.exists():
        scenes = data.load("emoji-scenes")
        others = data.Subset(scenes, list(known(scenes)[1].values())[args.n :])
        result = fit(model, steps=steps, reference=others, scale=args.scale, evaluations=args.evaluations)
        print(*result.notes, flush=True)
        path.write_text(result.tables[steps].to_json())
    return Table.from_json(path.read_text())


if __name__ == "__main__":
    with torch.no_grad():
        main()
