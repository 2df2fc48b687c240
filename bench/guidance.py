"""What guidance buys and what it costs: label accuracy by a judge that never guided, and diversity beside it.

The judge (``metrics.train_classifier``) has another architecture and another seed than the classifiers that guide, and
its features give precision, recall and the Frechet distance. "spread" is the mean pairwise distance within a class over
that of real pictures: 1 is as varied as the data.

    python bench/guidance.py [--data digits] [--model FILE] [--minutes 1] [-n 250] [--steps 12] [--seeds 3] [--out DIR]

Each seed trains its own model and classifiers; means over the seeds come last, with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import seeds
import torch
from subject import Subject, arguments, subject
from torch import Tensor

from fastdiffusion import guidance, metrics, noise, samplers
from fastdiffusion.data import selection
from fastdiffusion.guidance.features import feature_guidance
from fastdiffusion.io.images import grid, to_tensor
from fastdiffusion.models import native_denoiser
from fastdiffusion.nets.classifier import Classifier
from fastdiffusion.tasks.classification.train import accuracy, train_classifier
from fastdiffusion.types import Cond, Denoise, Run

COLUMNS = ("accuracy", "fd", "precision", "recall", "spread")
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def spread(features: Tensor, labels: Tensor) -> float:
    """Mean distance of two pictures of one class."""
    return float(torch.stack([torch.pdist(features[labels == c]).mean() for c in labels.unique()]).mean())


class Bench:
    """A model, real pictures and a judge; ``row`` samples under a guidance and judges."""

    def __init__(self, of: Subject, n: int, steps: int):
        model, data = of.model, of.data
        self.model, self.classifier, self.n, self.table = model, of.classifier, n, model.table(steps)
        images, self.real_labels = selection.load_images(data, selection.choose(data, max(n, 1000)))
        self.real = metrics.features(self.classifier, images)
        self.real_pixels = to_tensor(images).flatten(1)
        self.labels = torch.arange(n) % len(model.classes)
        self.cond = model.cond(self.labels)
        self.rows: list[dict[str, float | str]] = []

    @torch.no_grad()
    def sample(self, denoise: Denoise, cond: Cond | None) -> Tensor:
        x = self.table.sigmas[0] * noise.initial(range(self.n), self.model.shape)
        return samplers.final(samplers.run(denoise, x, self.table, cond, range(self.n))).clamp(-1, 1)

    def row(self, name: str, denoise: Denoise, cond: Cond | None) -> Tensor:
        started = time.perf_counter()
        images = self.sample(denoise, cond)
        seconds = time.perf_counter() - started
        embedded = metrics.features(self.classifier, images)
        precision, recall = metrics.precision_recall(self.real[: self.n], embedded)
        with torch.no_grad():
            right = float((self.classifier(images).argmax(1) == self.labels).float().mean())
        self.rows.append({
            "guidance": name, "accuracy": right, "fd": metrics.frechet(self.real[: self.n], embedded),
            "precision": float(precision.mean()), "recall": float(recall.mean()),
            "spread": spread(images.flatten(1), self.labels) / spread(self.real_pixels, self.real_labels),
            "seconds": seconds,
        })  # fmt: skip
        print("{guidance:44s} accuracy {accuracy:6.1%}  fd {fd:6.3f}  precision {precision:.2f}  recall {recall:.2f}  "
              "spread {spread:.2f}  {seconds:5.1f} s".format(**self.rows[-1]), flush=True)  # fmt: skip
        return images


def unlabelled(denoise: Denoise) -> Denoise:
    """The model without its label: what a classifier alone can do."""
    return lambda x, sigma, cond=None: denoise(x, sigma, cond.null() if cond is not None else None)


def cost(make: Callable[[], Denoise], bench: Bench, evaluations: int = 30) -> float:
    """CPU milliseconds of a guided call on 16 pictures, the least of many."""
    x, sigma, cond = torch.randn(16, *bench.model.shape), torch.ones(16), bench.model.cond(bench.labels[:16])
    denoise, times = guidance.start(make(), Run((1.0,), 1, 0, 1.0)), []
    for _ in range(evaluations):
        started = time.process_time()
        with torch.no_grad():
            denoise(x, sigma, cond)
        times.append(time.process_time() - started)
    return 1000 * min(times)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--classifier-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [run(args, seed) for seed in range(args.seeds)]
    print(f"| guidance | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for rows in zip(*runs, strict=True):
        cells = (seeds.mean([float(row[column]) for row in rows]) for column in COLUMNS)
        print(f"| {rows[0]['guidance']} | {' | '.join(f'{value:.3f} ± {half:.3f}' for value, half in cells)} |")


def run(args: argparse.Namespace, seed: int) -> list[dict[str, float | str]]:
    """All rows of one seed."""
    of = subject(args, seed)
    model, train = of.model, of.train
    guides: dict[str, Classifier] = {
        "classifier": train_classifier(train, steps=args.classifier_steps, seed=1 + seed).model,
        "middle of the U-Net": train_classifier(train, steps=args.classifier_steps, model=model, seed=1 + seed).model,
    }
    bench = Bench(of, args.n, args.steps)
    for name, guide in guides.items():
        guide.requires_grad_(False)
        print(f"{name}: accuracy on held-out noisy pictures {accuracy(guide, of.held_out)}")
    print(f"judge: accuracy on held-out pictures {bench.classifier.info['accuracy']:.3f}")

    sheet = []
    plain = unlabelled(model.denoise)

    def by(name: str, scale: float) -> Denoise:
        guide = guides[name]
        whole = name == "classifier"
        return (
            guidance.classifier(plain, guide.log_prob, scale)
            if whole
            else feature_guidance(native_denoiser(model), guide, scale)
        )

    for name in guides:
        for scale in SCALES if name == "classifier" else SCALES[1:]:
            sheet.append(bench.row(f"{name}, scale {scale:g}, no label", by(name, scale), bench.cond)[:20])
    for scale in SCALES[1:]:
        sheet.append(bench.row(f"cfg, scale {scale:g}", guidance.cfg(model.denoise, scale), bench.cond)[:20])
    for low, high in ((0.0, 0.3), (0.3, 3.0), (3.0, 80.0)):
        guided = guidance.cfg(model.denoise, 4.0, interval=(low, high))
        bench.row(f"cfg, scale 4, only sigma {low:g} to {high:g}", guided, bench.cond)
    bench.row("cfg, scale 4, rescale 0.7", guidance.cfg(model.denoise, 4.0, rescale=0.7), bench.cond)
    bench.row("apg, scale 4", guidance.apg(model.denoise, 4.0), bench.cond)
    bench.row("classifier, scale 2, with label", guidance.classifier(model.denoise, guides["classifier"].log_prob, 2.0),
              bench.cond)  # fmt: skip

    clean = guides["classifier"]

    def through() -> Denoise:
        """The whole gradient: the classifier reads the estimate of the clean picture, through all of the U-Net."""
        low, cond = torch.full((16,), 0.05), model.cond(bench.labels[:16])
        return guidance.loss_guidance(plain, lambda x0: -clean.log_prob(x0, low, cond))

    methods = {name: lambda name=name: by(name, 1.0) for name in guides}
    methods |= {"middle, read twice": lambda: guidance.classifier(plain, guides["middle of the U-Net"].log_prob)}
    costs = {name: cost(make, bench) for name, make in {**methods, "whole": through, "none": lambda: plain}.items()}
    print("ms of a call on 16 pictures:", {name: round(value, 1) for name, value in costs.items()})
    print(f"the middle takes {costs['middle of the U-Net'] / costs['whole']:.0%} of the whole gradient's time")

    (args.out / f"guidance-{seed}.json").write_text(
        json.dumps({"rows": bench.rows, "milliseconds": costs}, indent=2) + "\n"
    )
    grid(torch.cat(sheet), 20, max(1, 32 // model.shape[1])).save(args.out / f"guidance-{seed}.png")
    return bench.rows


if __name__ == "__main__":
    main()
