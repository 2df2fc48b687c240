"""Guidance by words that the generator is not told: the noisy encoder on latents against the clean one on the estimate.

    python bench/clip_guidance.py MODEL --noisy FILE [--clip FILE] [-n 48] [--steps 12] [--out out/bench]

The generator is told nothing. The noisy encoder reads the latents as they are (guidance.classifier); the clean one has
the denoiser's estimate, decoded (guidance.steer, without and with the denoiser's own gradient). The judge, which
guided nothing, says how often the right name wins among 100, and the Frechet distance; seconds are per call and
picture, in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastdiffusion import guidance, noise, samplers
from fastdiffusion.data.emoji.scenes import scenes
from fastdiffusion.io.images import grid
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model, load
from fastdiffusion.nets.clip import Clip, matches
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.tasks.text_image import clip as clips
from fastdiffusion.types import Cond, Denoise


class Bench:
    """The generator without words, the names to guide to, and the judge."""

    def __init__(self, model: Model, n: int, steps: int, batch: int = 16):
        self.model, self.batch, self.evaluator = model, batch, evaluator.load()
        self.table = model.table(steps)
        train = scenes()
        plain = [i for i, row in enumerate(train.rows) if row.color == "white"]
        chosen = sorted({train.rows[i].image: i for i in plain}.values())
        self.rows = [chosen[i * len(chosen) // n] for i in range(n)]
        self.names = [train.phrases[train.rows[i].image].name for i in self.rows]
        self.own = [name.removeprefix("flag of ") for name in self.names]  # as the judge was taught them
        self.real = train.batch(self.rows).images

    @torch.no_grad()
    def sample(self, make: Callable[[list[str]], Denoise]) -> tuple[Tensor, float]:
        made, seconds = [], 0.0
        for first in range(0, len(self.names), self.batch):
            names = self.names[first : first + self.batch]
            seeds = range(first, first + len(names))
            x = self.table.sigmas[0] * noise.initial(seeds, self.model.shape)
            begun = time.perf_counter()
            x = samplers.final(samplers.run(make(names), x, self.table, self.nothing(len(names)), list(seeds)))
            seconds += time.perf_counter() - begun
            made.append(self.model.decode(x).clamp(-1, 1))
        return torch.cat(made), seconds / self.table.nfe / len(self.names)

    def nothing(self, n: int) -> Cond | None:
        return self.model.encode_prompt([""] * n) if self.model.conditioner is not None else None

    def ways(self, clip: Clip, noisy: Clip) -> dict[str, tuple[Callable[..., Callable], tuple[float, ...]]]:
        """From a scale to (names -> denoiser), and the scales to try."""
        bare, decode = self.model.denoise, self.model.autoencoder.decode if self.model.autoencoder is not None else None

        def clean(names: list[str]) -> Callable[[Tensor], Tensor]:
            verdict = matches(clip, names)
            return lambda x0: -verdict(x0 if decode is None else decode(x0))

        return {
            "noisy": (lambda s: lambda names: guidance.classifier(bare, matches(noisy, names), s), (1.0, 3.0, 10.0)),
            "clean on x0": (lambda s: lambda names: guidance.loss_guidance(bare, clean(names), s, through=False),
                            (1.0, 3.0, 10.0)),
            "clean on x0, through the denoiser": (lambda s: lambda names: guidance.loss_guidance(bare, clean(names), s),
                                                  (0.3, 1.0, 3.0)),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--noisy", type=Path, required=True)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("-n", type=int, default=48)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(load(args.model), args.n, args.steps)
    clip, noisy = clips.load(args.clip), clips.load(args.noisy)
    table, sheets = [], []

    def note(method: str, scale: float, made: Tensor, seconds: float) -> float:
        recall = retrieval.r_precision(bench.evaluator, made, bench.own)
        distance = evaluator.fd_evaluator(bench.evaluator, bench.real, made)
        table.append({"way": method, "scale": scale, "recall": str(recall), "fd_judge": round(distance, 1),
                      "ms per call and picture": round(1000 * seconds, 1)})  # fmt: skip
        print(table[-1], flush=True)
        sheets.append(made[:16])
        return recall.value

    note("nothing", 0.0, *bench.sample(lambda names: bench.model.denoise))
    for method, (make, scales) in bench.methods(clip, noisy).items():
        for scale in scales:
            note(method, scale, *bench.sample(make(scale)))
    if bench.model.conditioner is not None:
        cfg = guidance.cfg

        def cond_on(names: list[str]) -> Denoise:
            cond = bench.model.encode_prompt(names)
            return lambda x, sigma, _=None: cfg(bench.model.denoise, 3.0)(x, sigma, cond)

        note("told its words, cfg", 3.0, *bench.sample(cond_on))
    grid(torch.cat(sheets), 16, 1).save(args.out / "clip-guidance.png")
    (args.out / "clip-guidance.json").write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
