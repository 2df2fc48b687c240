"""Classifier guidance in latents: a noisy classifier of the bundled model's latents, told by the evaluator (row B19).

    python bench/latent_classifier.py [--steps 400] [-n 60] [--scales 2 4 8] [--seeds 3]

Classes are groups of glyphs whose names share a word. The model draws without a prompt, so that the classifier alone
says what; the evaluator, which it never met, gives each image the name that fits best, and the group of that name
counts. Unguided images at the same seeds and steps are the baseline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import seeds
import torch

from fastdiffusion import data, sample
from fastdiffusion.data import Images
from fastdiffusion.data.emoji import holdout
from fastdiffusion.io.images import grid, save_png
from fastdiffusion.tasks.classification.train import FILE, accuracy, of_latents, train_classifier
from fastdiffusion.tasks.classification.train import TrainClassifierOptions as Options
from fastdiffusion.tasks.evaluation import evaluator as judging

GROUPS = {
    "face": ("face",), "heart": ("heart",), "flag": ("flag",), "hand": ("hand", "finger", "fist", "thumbs"),
    "animal": ("dog", "cat", "bird", "fish", "horse", "cow", "pig", "monkey", "bear", "lion", "fox", "frog", "whale"),
    "vehicle": ("car", "bus", "train", "truck", "tram", "railway", "locomotive", "taxi", "airplane", "ship", "boat"),
}  # fmt: skip


def group(name: str) -> str | None:
    """The group of a name; None of none or several."""
    own = {key for key, words in GROUPS.items() if set(words) & set(name.lower().replace(":", " ").split())}
    return own.pop() if len(own) == 1 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("-n", type=int, default=60)
    parser.add_argument("--sample-steps", type=int, default=8)
    parser.add_argument("--scales", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    emoji, evaluator = data.load("emoji", alpha=True), judging.load()
    rows = [i for i, name in enumerate(emoji.names) if not holdout.skins(name) and group(emoji.captions[i][0])]
    images = ((judging.on_background(emoji.batch(rows).images) + 1) * 127.5).round().to(torch.uint8).numpy()
    labels = [list(GROUPS).index(str(group(emoji.captions[i][0]))) for i in rows]
    print({name: labels.count(k) for k, name in enumerate(GROUPS)}, flush=True)
    folder = args.out / "latent-classifier"
    drawings = Images("groups of emoji", [np.ascontiguousarray(images)], labels, classes=tuple(GROUPS))
    options = {"latents": "emoji", "steps": args.steps, "batch_size": 64, "holdout": 0.2, "folder": folder}
    made = train_classifier(drawings, **options).model
    held = of_latents(drawings, Options(latents="emoji"))[0].split(0.2, 0)[1]
    print("held-out latents correct:", {k: round(v, 3) for k, v in accuracy(made, held).items()}, flush=True)
    wanted = [list(GROUPS)[i % len(GROUPS)] for i in range(args.n)]
    sheet = []
    for scale in (0.0, *args.scales):
        right = []
        for seed in range(args.seeds):
            drawn = torch.empty(args.n, 3, 64, 64)
            for k, name in enumerate(GROUPS):
                mine = list(range(k, args.n, len(GROUPS)))
                guide = f"classifier {folder / FILE} scale={scale} label={name}"
                drawn[mine] = sample(
                    "emoji", n=len(mine), steps=args.sample_steps, seed=1000 * seed + 100 * k, guidance=guide,
                    sampler="dpmpp_2m",
                ).images  # fmt: skip
            best = [group(names[0]) for names in judging.best_names(evaluator, drawn)]
            right.append(100 * sum(a == b for a, b in zip(best, wanted, strict=True)) / args.n)
        mean, half = seeds.mean(right)
        print(f"| {scale:g} | {mean:.0f} ± {half:.0f} % |", flush=True)
        sheet.append(drawn[:12])
    save_png(grid(torch.cat(sheet), 12, 1), args.out / "latent-classifier.png")


if __name__ == "__main__":
    main()
