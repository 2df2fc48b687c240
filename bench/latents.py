"""A model of latents against a model of pixels: the same pictures and words, the same lessons, the same CPU minutes.

    python bench/latents.py --minutes 10 --draft 900

Both learn a draft first (what the words alone say), for as many steps, and then the denoiser, for as many CPU minutes:
the number of steps is set by timing both in turns. Both nets are U-Nets over 16x16 places, one over latents, one over
patches of 4x4 pixels, whose step costs nearly the same. The codec is the one in the package; it was trained before, and
its time is not counted. Both are drawn and measured alike: the judge's recall of the name that was asked for, among
100, and the distance to real pictures of the same names in its features.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from text_to_image import evaluator_names, images_of, known

from fastdiffusion import data, sample
from fastdiffusion.io.images import grid
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import load_autoencoder
from fastdiffusion.models.registry import shipped
from fastdiffusion.nets.presets import PRESETS
from fastdiffusion.tasks.evaluation import evaluator as judging_evaluator
from fastdiffusion.tasks.text_image import caption_mean
from fastdiffusion.training.learner import Learner

WORDS = {"words": {"width": 128, "depth": 3, "head": 32}}
NETS = {
    "latents": {**PRESETS["unet-latent"], **WORDS},
    "pixels": {**PRESETS["unet-latent"], **WORDS, "patch": 4, "refine": 16},
}


def denoiser(space: str, out: Path, folder: Path | None = None) -> Learner:
    """The run of a denoiser that begins with its draft."""
    return Learner(
        "emoji-scenes",
        init_from=out / space / "draft" / caption_mean.FILE, captions=True, autoencoder=autoencoder_of(space),
        batch_size=64, holdout=0.01, decay=0.6, sigma_distribution_options={"mean": -0.4, "std": 1.4},
        precision="float32",
        lr=6e-3, folder=folder, save_every=60, verbose=False,
    )  # fmt: skip


def autoencoder_of(space: str) -> Any:
    """Of this way."""
    place = shipped("emoji")
    assert place is not None
    return load_autoencoder(place) if space == "latents" else None


def seconds_a_step(out: Path, rounds: int = 4, each: int = 3) -> dict[str, float]:
    """CPU seconds of a training step of both, measured in turns (medians)."""
    runs = {space: denoiser(space, out).steps(steps=10_000) for space in NETS}
    results: dict[str, list[float]] = {space: [] for space in NETS}
    for run in runs.values():
        next(run)
    for _ in range(rounds):
        for space, run in runs.items():
            start = time.process_time()
            for _ in range(each):
                next(run)
            results[space].append((time.process_time() - start) / each)
    return {space: sorted(times)[len(times) // 2] for space, times in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="CPU minutes of each denoiser")
    parser.add_argument("--draft", type=int, default=900, help="steps of each draft")
    parser.add_argument("--n", type=int, default=96, help="names to draw")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("out/latents"))
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for space, net in NETS.items():
        begun = time.process_time()
        caption_mean.train_caption_mean(
            "emoji-scenes",
            steps=args.draft,
            net=net,
            autoencoder=autoencoder_of(space),
            folder=args.out / space / "draft",
            holdout=0.01,
            precision="float32",
        )
        results[space] = {"draft seconds": round(time.process_time() - begun)}
    timing = args.out / "seconds.json"  # once: a run that goes on must keep its number of steps
    if not timing.exists():
        timing.write_text(json.dumps(seconds_a_step(args.out)))
    seconds = json.loads(timing.read_text())
    train, evaluator = data.load("emoji-scenes"), judging_evaluator.load()
    _, named = known(train)
    names = list(named)[-args.n :]
    real = images_of(train, [named[name] for name in names])
    for space in NETS:
        steps = round(60 * args.minutes / seconds[space])
        learn = denoiser(space, args.out, args.out / space / "model").fit(steps=steps)
        made = sample(learn.model, names, n=len(names), steps=12, scale=args.scale, batch_size=32).images
        grid(made[:48], 12).save(args.out / f"{space}.png")
        results[space] |= {
            "seconds a step": round(seconds[space], 3), "steps": steps,
            "recall": str(retrieval.r_precision(evaluator, made, evaluator_names(names))),
            "fd_judge": round(judging_evaluator.fd_evaluator(evaluator, real, made), 2),
        }  # fmt: skip
        print(space, results[space], flush=True)
    (args.out / "latents.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
