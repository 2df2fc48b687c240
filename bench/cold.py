"""Diffusion along blur and other corruptions: is it worth evaluating the net more than once?

Held-out images are degraded to a process's highest level and restored, in one evaluation and in several. ``fd`` is the
Frechet distance from other real images in the features of a classifier of the data, which no net here was trained
against; beside it stand the degraded images themselves, and the floor: real images of the same number. ``psnr`` is
nearness to the very image that was degraded, which favors the blurred mean of all answers, and so one evaluation.

    python bench/cold.py [--data digits] [--size 8] [--steps 200] [--processes heat "pixelate 4"] [--out out/bench]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from fastdiffusion import data as datasets
from fastdiffusion import metrics, noise
from fastdiffusion.data import selection
from fastdiffusion.io.images import grid, safe_name, to_tensor
from fastdiffusion.tasks.evaluation.feature_net import feature_net
from fastdiffusion.tasks.restoration import cold_diffusion

PROCESSES = ("gaussian", "blur_noise", "heat", "soft", "pixelate 4", "blur 2")
HELD = 0.3


def mean(values: Tensor) -> str:
    low, high = metrics.interval(lambda v: float(v.mean()), values)
    return f"{float(values.mean()):.2f} [{low:.2f}, {high:.2f}]"


def psnr(x: Tensor, y: Tensor) -> Tensor:
    return -10 * (((x.clamp(-1, 1) - y) / 2) ** 2).flatten(1).mean(1).clamp(min=1e-8).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int)
    parser.add_argument("--net", default="unet-tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES))
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--runs", type=Path, default=Path("runs/cold"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    data = datasets.load(args.data, args.size)
    learned, held = data.split(HELD, 0)
    x0 = to_tensor(selection.load_images(held, selection.choose(held, min(args.n, len(held))))[0])
    classifier = feature_net(data)
    other = selection.load_images(learned, selection.choose(learned, len(x0)))[0]
    real = metrics.features(classifier, other)

    def fd(x: Tensor) -> float:
        return metrics.frechet(real, metrics.features(classifier, x.clamp(-1, 1)))

    def gain(real: Tensor, one: Tensor, many: Tensor) -> float:
        return metrics.frechet(real, one) - metrics.frechet(real, many)

    result: dict = {"floor": round(fd(x0), 3)}
    print(f"{len(x0)} held-out images of {data.name}; fd of as many real ones: {result['floor']}")
    sheet = [x0[:12]]
    for name in args.processes:
        folder = args.runs / f"{safe_name(args.data)}-{safe_name(name)}"
        begun = time.process_time()
        net = cold_diffusion.train_cold(
            data, name, steps=args.steps, net=args.net, holdout=HELD, folder=folder, device="cpu"
        ).model
        seconds = time.process_time() - begun
        start = net.process.degrade(x0, 1.0, noise.initial(range(len(x0)), x0.shape[1:]))
        row: dict = {"training": round(seconds), "input": {"fd": round(fd(start), 2), "psnr": mean(psnr(start, x0))}}
        sheet.append(start[:12].clamp(-1, 1))
        features_of: dict[int, Tensor] = {}
        for nfe in args.evaluations:
            eta = 1.0 if name in ("gaussian", "blur_noise") else 0.0
            made = cold_diffusion.restore(net, start, nfe, eta=eta, seeds=range(len(x0)))
            features_of[nfe] = metrics.features(classifier, made.clamp(-1, 1))
            row[f"{nfe} evaluations"] = {
                "fd": round(metrics.frechet(real, features_of[nfe]), 2),
                "psnr": mean(psnr(made, x0)),
            }
            if nfe in (1, max(args.evaluations)):
                sheet.append(made[:12])
        low, high = metrics.interval(gain, real, features_of[1], features_of[max(args.evaluations)], rounds=100)
        row["fd gained by many evaluations"] = (
            f"{gain(real, features_of[1], features_of[max(args.evaluations)]):.2f} [{low:.2f}, {high:.2f}]"
        )
        print(f"{name:12}", json.dumps(row), flush=True)
        result[name] = row
    args.out.mkdir(parents=True, exist_ok=True)
    zoom = max(1, 40 // x0.shape[-1])
    grid(torch.cat(sheet), 12, zoom).save(args.out / f"cold-{safe_name(args.data)}.png")
    (args.out / f"cold-{safe_name(args.data)}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
