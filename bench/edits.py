"""Editing by words: is the target recognised, and how much else changes? On the edits of bench/edits.txt.

python bench/edits.py [--methods p2p flowedit sdedit] [--seeds 3] [--steps 20] [--out out/bench]

The baseline draws the target's prompt from the same noise. A result is recognised if the evaluator ranks its name first
among the source's and 99 others (a color: if the background has it). Background is what is flat in the source: within
10 % of the color of its rim; its change is the mean absolute difference there, of 255. "given" methods start from the
drawn source as an image, whose noise they do not know; "all" ones may change every pixel (--no-keep).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

import fastdiffusion
from fastdiffusion import metrics
from fastdiffusion.data.emoji.holdout import COLORS
from fastdiffusion.io.images import grid, to_pil
from fastdiffusion.tasks.editing.edit import edit
from fastdiffusion.tasks.evaluation import evaluator

EDITS = Path(__file__).with_name("edits.txt")


def edits() -> list[tuple[str, str, str]]:
    lines = [line for line in EDITS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [(*line.split(" | ")[0].split(" -> "), line.split(" | ")[1]) for line in lines]


def recognised(net: evaluator.Evaluator, image: torch.Tensor, name: str, source: str) -> bool:
    if name in COLORS:
        return evaluator.background_color(image) == [name]
    pool = random.Random(name).sample([n for n in net.names if n != name and "skin tone" not in n], 99)
    old = " ".join(word for word in source.split(" on ")[0].split() if word not in ("a", "an"))
    return evaluator.best_names(net, image, 1, [name, old, *pool])[0][0] == name


def background(image: torch.Tensor) -> torch.Tensor:
    rim = torch.cat([image[0, :, 0], image[0, :, -1], image[0, :, :, 0], image[0, :, :, -1]], 1).median(1).values
    return (image[0] - rim[:, None, None]).abs().amax(0) < 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["flowedit", "flowedit all", "p2p all", "p2p given all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--options", type=json.loads, default={}, help="further options of edit, as JSON")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    net, model, rows, shown = evaluator.load(), fastdiffusion.load("emoji", device="cpu"), {}, {}
    for method in ("again", *args.methods):
        found, change, structure = [], [], []
        for seed in range(args.seeds):
            for source, target, name in edits():
                drawn = edit(prompt=target, source=source, model=model, seed=seed, steps=args.steps,
                             method="p2p", cross=0.0, self_attention=0.0, keep=False)  # fmt: skip
                image, before = drawn.images, drawn.source
                if method != "again":
                    name_of, *how = method.split()
                    given = to_pil(before[0]) if "given" in how else None
                    options = {"method": name_of, "keep": "all" not in how, "steps": args.steps, **args.options}
                    image = edit(given, target, source=source, model=model, seed=seed + 100 * (given is not None),
                                 **options).images  # fmt: skip
                flat = background(before)
                found.append(float(recognised(net, image, name, source)))
                if flat.any() and name not in COLORS:
                    change.append(float((image - before)[0][:, flat].abs().mean() * 127.5))
                structure.append(float((image - before).abs().mean() * 127.5))
                if seed == 0:
                    shown.setdefault(source + target, [before[0]]).append(image[0])
        low, high = metrics.interval(lambda v: float(v.mean()), torch.tensor(found))
        rows[method] = {
            "recognised": round(sum(found) / len(found), 3),
            "interval": [round(low, 3), round(high, 3)],
            "background": round(sum(change) / len(change), 2),
            "all": round(sum(structure) / len(structure), 2),
        }
        print(method, rows[method], flush=True)
    columns = len(args.methods) + 2
    grid([image for images in shown.values() for image in images], columns=2 * columns).save(args.out / "edits.png")
    (args.out / "edits.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
