"""What the signs of a prompt do to pictures: the color judge counts, so no model of words is asked about words.

python bench/prompts.py MODEL [-n 16] [--steps 12] [--scale 3] [--out out/bench]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fastdiffusion import metrics, sample
from fastdiffusion.io.images import grid
from fastdiffusion.models import load
from fastdiffusion.tasks.evaluation import evaluator

THINGS = ("cat face", "red heart", "rocket", "tree", "crown", "fish", "pizza", "sunflower", "dog face", "bear", "ghost",
          "key", "apple", "house", "star", "mushroom")  # fmt: skip
FORMS = {
    "on (blue:0)": "{} on (blue:0)",
    "on (blue:0.5)": "{} on (blue:0.5)",
    "on blue": "{} on blue",
    "on (blue:1.5)": "{} on (blue:1.5)",
    "on [blue:yellow:0.2]": "{} on [blue:yellow:0.2]",
    "on [yellow:blue:0.2]": "{} on [yellow:blue:0.2]",
    "AND on blue": "{} AND {} on blue",
    "BREAK on blue": "{} BREAK on blue",
    "without": "{}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, rows, sheets = load(args.model), {}, []
    for name, form in FORMS.items():
        asked = [form.format(*[THINGS[i % len(THINGS)]] * form.count("{}")) for i in range(args.n)]
        made = sample(model, n=args.n, prompt=asked, steps=args.steps, scale=args.scale).images
        backgrounds = evaluator.background_color(made)
        blue = torch.tensor([float(color == "blue") for color in backgrounds])
        low, high = metrics.interval(lambda v: float(v.mean()), blue)
        rows[name] = {"blue": f"{float(blue.mean()):.0%} [{max(low, 0):.0%}, {min(high, 1):.0%}]",
                      "yellow": f"{backgrounds.count('yellow') / len(backgrounds):.0%}", "n": args.n}  # fmt: skip
        print(f"{name:24}", rows[name], flush=True)
        sheets.append(made[:16])
    grid(torch.cat(sheets), min(args.n, 16)).save(args.out / "prompts.png")
    (args.out / "prompts.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
