"""Classifier guidance in latents: a noisy classifier of the bundled model's latents, told by the evaluator (row B19).

    python bench/latent_classifier.py [--steps 150] [-n 24] [--scales 4 12] [--seeds 2]

Classes are the colors that emoji stand on. The model is asked for a thing alone, so that the classifier says on which
color; the evaluator measures the color of the result by itself. The same prompts and seeds without guidance are the
baseline.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import seeds
import torch
from text_to_image import known

from fastdiffusion import data, sample
from fastdiffusion.data import Images
from fastdiffusion.io.images import grid, save_png
from fastdiffusion.tasks.classification.options import TrainClassifierOptions
from fastdiffusion.tasks.classification.train import FILE, accuracy, of_latents, train_classifier
from fastdiffusion.tasks.evaluation import evaluator as judging

CLASSES = ("black", "red", "yellow", "green", "blue", "purple")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--images", type=int, default=600, help="to train on")
    parser.add_argument("-n", type=int, default=24)
    parser.add_argument("--sample-steps", type=int, default=8)
    parser.add_argument("--scales", type=float, nargs="+", default=[4.0, 12.0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    scenes = data.load("emoji-scenes")
    rows = [i for i, row in enumerate(scenes.rows) if row.color in CLASSES]
    rows = random.Random(0).sample(rows, args.images)
    images, labels = scenes.batch(rows).images.numpy(), [CLASSES.index(scenes.rows[i].color) for i in rows]
    folder = args.out / "latent-classifier"
    drawings = Images("emoji on colors", [np.ascontiguousarray(images)], labels, classes=CLASSES)
    options = {"latents": "emoji", "steps": args.steps, "batch_size": 32, "lr": 3e-3, "holdout": 0.15, "folder": folder}
    made = train_classifier(drawings, **options).model
    held = of_latents(drawings, TrainClassifierOptions(latents="emoji"))[0].split(0.15, 0)[1]
    print("held-out latents correct:", {k: round(v, 3) for k, v in accuracy(made, held).items()}, flush=True)
    names = list(known(scenes)[1])[: args.n]
    sheet = []
    for scale in (0.0, *args.scales):
        right = []
        for seed in range(args.seeds):
            drawn, wanted = torch.empty(args.n, 3, 64, 64), [CLASSES[i % len(CLASSES)] for i in range(args.n)]
            for k, name in enumerate(CLASSES):
                mine = range(k, args.n, len(CLASSES))
                drawn[list(mine)] = sample(
                    "emoji", [names[i] for i in mine], n=len(mine), steps=args.sample_steps, seed=1000 * seed + 100 * k,
                    guidance=f"classifier {folder / FILE} scale={scale} label={name}", sampler="dpmpp_2m",
                ).images  # fmt: skip
            seen = judging.background_color(drawn)
            right.append(100 * sum(a == b for a, b in zip(seen, wanted, strict=True)) / args.n)
        mean, half = seeds.mean(right)
        print(f"| {scale:g} | {mean:.0f} ± {half:.0f} % |", flush=True)
        sheet.append(drawn[:12])
        save_png(grid(torch.cat(sheet), 12, 1), args.out / "latent-classifier.png")


if __name__ == "__main__":
    main()
