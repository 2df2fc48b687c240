"""Classifier guidance in latents: a noisy classifier of kinds of emoji guides a model that is given no prompt.

    python bench/latent_classifier.py [emoji | CHECKPOINT] [--steps 1200] [-n 8] [--scales 1 3 8] [--sheet kinds.png]

Kinds are blocks of Unicode: faces, hearts, flags, clocks, ... The evaluator, which is no classifier of kinds and reads
images, names what was drawn; right is a name of the kind that was guided to. The same noise without guidance is the
baseline. Half of the images of the classifier's training are on white, half on colors.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch

from fastdiffusion import load, sample
from fastdiffusion.data import Images
from fastdiffusion.data.emoji import holdout, scenes
from fastdiffusion.io.images import as_input, grid, save_png
from fastdiffusion.tasks.classification.options import TrainClassifierOptions
from fastdiffusion.tasks.classification.train import FILE, accuracy, of_latents, train_classifier
from fastdiffusion.tasks.evaluation import evaluator as judging

KINDS = {
    "face": [(0x1F600, 0x1F637), (0x1F641, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F97A)],
    "heart": [(0x1F493, 0x1F49F), (0x2764, 0x2764), (0x1F90D, 0x1F90E), (0x1F5A4, 0x1F5A4), (0x1F9E1, 0x1F9E1)],
    "hand": [(0x1F446, 0x1F450), (0x270A, 0x270D), (0x1F590, 0x1F596), (0x1F918, 0x1F91F), (0x1FAF0, 0x1FAF8)],
    "animal": [(0x1F400, 0x1F43C), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FAB6)],
    "food": [(0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1FAD0, 0x1FAD9)],
    "plant": [(0x1F330, 0x1F344), (0x1F490, 0x1F490), (0x1FAB4, 0x1FAB4), (0x1FAB7, 0x1FAB7), (0x1F940, 0x1F940)],
    "clock": [(0x1F550, 0x1F567)],
    "flag": [(0x1F1E6, 0x1F1FF)],
    "vehicle": [(0x1F680, 0x1F6A4), (0x1F6F4, 0x1F6FC), (0x1F6E5, 0x1F6E9), (0x2708, 0x2708), (0x26F5, 0x26F5)],
    "sign": [(0x1F170, 0x1F19A), (0x1F201, 0x1F251), (0x2648, 0x2653), (0x1F519, 0x1F51D), (0x1F500, 0x1F50A)],
    "person": [(0x1F466, 0x1F469), (0x1F46E, 0x1F478), (0x1F9D1, 0x1F9D9), (0x1F481, 0x1F487), (0x1F645, 0x1F647)],
    "clothing": [(0x1F451, 0x1F462), (0x1F97B, 0x1F97F), (0x1F9E2, 0x1F9E6), (0x1FA70, 0x1FA74)],
}
NAMES = tuple(KINDS)


def kind(name: str) -> str | None:
    """Of an emoji, by its first code point."""
    code = int(name.split("-")[0], 16)
    return next((kind for kind, blocks in KINDS.items() if any(a <= code <= b for a, b in blocks)), None)


def drawings(most: int) -> Images:
    """At most ``most`` glyphs of a kind, on white and on two colors each; without skin tones and what is held out."""
    glyphs, draw = scenes.emoji(alpha=True), random.Random(0)
    colors = [color for color in holdout.COLORS if color != "white"]
    plain: dict[str, dict[str, int]] = {name: {} for name in NAMES}
    for i, name in enumerate(glyphs.names):
        if (of := kind(name)) is not None and not holdout.reserved(name):
            plain[of].setdefault(holdout.skinless(name), i)
    images, labels, keys = [], [], []
    for of, rows in plain.items():
        for key in draw.sample(list(rows), min(most, len(rows))):
            shown = ["white", "white", *draw.sample(colors, 2)]
            four = glyphs.batch([rows[key]] * len(shown)).images
            images.append(scenes.composite(four, torch.tensor([holdout.COLORS[c] for c in shown], dtype=torch.uint8)))
            labels += [NAMES.index(of)] * len(shown)
            keys += [key] * len(shown)
    return Images("kinds of emoji", [torch.cat(images).numpy()], labels, classes=NAMES, keys=keys)


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's, of 95 %."""
    z, p = 1.96, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


class Judge:
    """The evaluator, whose names are mapped to kinds."""

    def __init__(self) -> None:
        self.net, glyphs = judging.load(), scenes.emoji(alpha=True)
        self.kinds = {c: kind(n) for n, captions in zip(glyphs.names, glyphs.captions, strict=True) for c in captions}
        self.pool = [name for name in self.net.names if name in self.kinds]

    def __call__(self, images: torch.Tensor) -> list[str | None]:
        return [self.kinds[best[0]] for best in judging.best_names(self.net, images, 1, self.pool)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--most", type=int, default=120, help="glyphs of a kind to train on")
    parser.add_argument("-n", type=int, default=8, help="images of each kind")
    parser.add_argument("--sample-steps", type=int, default=12)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--net", help="of the classifier")
    parser.add_argument("--out", type=Path, default=Path("out/latent-classifier"))
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    data, judge = drawings(args.most), Judge()
    real = judge(as_input(data.batch(range(0, len(data), 4)).images))
    right = sum(a == NAMES[b] for a, b in zip(real, data.labels[::4].tolist(), strict=True)) / len(real)
    print(f"{len(data)} images; the judge is right on {right:.1%} of {len(real)} real ones on white", flush=True)
    options = {"latents": args.model, "steps": args.steps, "batch_size": 240, "lr": 2e-3, "holdout": 0.12}
    made = train_classifier(data, **options, net=args.net, folder=args.out).model
    held = of_latents(data, TrainClassifierOptions(latents=args.model))[0].split(0.12, 0)[1]
    print("held-out latents correct:", {k: round(v, 3) for k, v in accuracy(made, held).items()}, flush=True)
    model, sheet = load(args.model), []
    for scale in (0.0, *args.scales):
        drawn = [
            sample(
                model, n=args.n, steps=args.sample_steps, seed=100 * k, scale=1.0, sampler=args.sampler,
                guidance=f"classifier {args.out / FILE} scale={scale} label={name}",
            ).images
            for k, name in enumerate(NAMES)
        ]  # fmt: skip
        good = [sum(seen == name for seen in judge(images)) for name, images in zip(NAMES, drawn, strict=True)]
        low, high = interval(sum(good), n := args.n * len(NAMES))
        print(f"| {scale:g} | {sum(good) / n:.0%} [{low:.0%}, {high:.0%}] of {n} |",
              dict(zip(NAMES, good, strict=True)), flush=True)  # fmt: skip
        sheet += [images[:2] for images in drawn]
    if args.sheet is not None:
        save_png(grid(torch.cat(sheet), 2 * len(NAMES), 1), args.sheet)


if __name__ == "__main__":
    main()
