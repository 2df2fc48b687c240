"""Does a guidance beat plain classifier-free guidance on a text-to-image model? Told by the evaluator, over seeds.

    python bench/guidance_words.py [--model emoji] [-n 64] [--steps 8] [--seeds 4] [--rows "cfg scale=2" "cads noise=1"]

R-precision (among 100 names), Frechet distance to real images in the evaluator's features, and spread: the mean
distance of two images of one prompt in those features over that of any two (CADS wants more of it). Each row's
difference from "plain", which is the model's own scale, has its 95 % interval over the seeds (paired, Student's t).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import seeds
import torch
from text_to_image import images_of, known
from torch import Tensor

from fastdiffusion import data, metrics, sample
from fastdiffusion.metrics import retrieval
from fastdiffusion.tasks.evaluation import evaluator as judging
from fastdiffusion.tasks.loading import load

ROWS = (
    "cfg scale=2", "cfg_zero scale=2 zero=0", "cads noise=1",
    "cfg_zero scale=2", "apg scale=2", "cfg scale=3", "cads noise=0.5",
)  # fmt: skip
COLUMNS = ("recall", "fd", "spread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("-n", type=int, default=64, help="prompts, each drawn twice")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--scale", type=float, help="of the rows without one of their own; by default the model's")
    parser.add_argument("--sampler", help="by default the table that was fitted to the model under plain guidance")
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, evaluator, train = load(args.model), judging.load(), data.load("emoji-scenes")
    plain, named = known(train)
    names = list(named)[: args.n]
    real = metrics.features(evaluator, images_of(train, plain[:2000]))
    found: dict[str, list[dict[str, float]]] = {}
    for name in ("plain", *args.rows):
        guide = None if name == "plain" else name
        own = args.scale if name == "plain" or name.split()[0] == "cads" else None
        for seed in range(args.seeds):
            drawn = [
                sample(
                    model, names, n=len(names), steps=args.steps, seed=10_000 * seed + 5000 * k, guidance=guide,
                    scale=own, batch_size=32, sampler=args.sampler,
                ).images
                for k in (0, 1)
            ]  # fmt: skip
            images = torch.cat(drawn)
            found.setdefault(name, []).append(judged(evaluator, images, names, real))
        print(line(name, found), flush=True)
    (args.out / f"guidance-words-{Path(args.model).name}.json").write_text(json.dumps(found, indent=1) + "\n")


def judged(evaluator: judging.Evaluator, images: Tensor, names: list[str], real: Tensor) -> dict[str, float]:
    features = metrics.features(evaluator, images)
    first, second = features.chunk(2)
    return {
        "recall": 100 * float(retrieval.r_precision(evaluator, images, names * 2).value),
        "fd": metrics.frechet(real, features),
        "spread": 100 * float((first - second).norm(dim=1).mean() / torch.pdist(first).mean()),
    }


def line(name: str, found: dict[str, list[dict[str, float]]]) -> str:
    cells = []
    for column in COLUMNS:
        own, plain = ([row[column] for row in found[key]] for key in (name, "plain"))
        mean, half = seeds.mean([a - b for a, b in zip(own, plain, strict=True)])
        cells.append(
            f"{sum(own) / len(own):.1f} ({mean:+.1f} ± {half:.1f})" if name != "plain" else f"{sum(own) / len(own):.1f}"
        )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
