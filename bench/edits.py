"""Editing by words: is the target recognised, and how much else changes? On the edits of bench/edits.txt.

python bench/edits.py [--methods diffedit flowedit ...] [--seeds 0 1 2] [--steps 12] [--model emoji] [--edits 64]
    [--options '{"strength": 0.8}'] [--quick] [--out out/bench]

"again", the baseline, draws the target from the same noise, and "drawn" draws it beside the source, with its attention
(prompt-to-prompt). All others start from the drawn source as an image, of 8
bits a color, whose noise they do not know; "all" ones may change every pixel (--no-keep). "direct all" is the
further baseline: direct (PnP) inversion with prompt-to-prompt (Ju et al. 2023, arXiv:2310.01506).

A result is recognised if the evaluator ranks its name first among the source's and 99 others (a color: if the
background has it). Background is what is flat in the source: within 10 % of the color of its rim; edits of it are left
out there.
"change" is the mean absolute difference there, of 255. The seven measures of PIE-Bench, in this package's own nets:
structure (distance of the self-similarities of the perceptual net's coarsest map, for DINO's), of the background PSNR,
perceptual distance (for LPIPS), squared error and SSIM, and the evaluator's similarity of the name to the whole image
and to what is not background (for CLIP's).

Every edit is written down as it is done (edits.json), and a second run goes on there; --force begins anew.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fastdiffusion
from fastdiffusion import metrics
from fastdiffusion.data.emoji.holdout import COLORS
from fastdiffusion.io.images import grid, to_pil
from fastdiffusion.nets import perceptual
from fastdiffusion.tasks.editing.edit import edit
from fastdiffusion.tasks.evaluation import evaluator

EDITS = Path(__file__).with_name("edits.txt")
METHODS = tuple(
    f"{name}{which}"
    for name in ("drawn", "diffedit", "flowedit", "null-text", "direct", "edit-friendly", "sdedit", "magicmix")
    for which in ("", " all")
)
MEASURES = ("structure", "psnr", "perceptual", "mse", "ssim", "whole", "edited")


def edits() -> list[tuple[str, str, str]]:
    lines = [line for line in EDITS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [(*line.split(" | ")[0].split(" -> "), line.split(" | ")[1]) for line in lines]


def recognised(net: evaluator.Evaluator, image: Tensor, name: str, source: str) -> bool:
    if name in COLORS:
        return evaluator.background_color(image) == [name]
    pool = random.Random(name).sample([n for n in net.names if n != name and "skin tone" not in n], 99)
    old = " ".join(word for word in source.split(" on ")[0].split() if word not in ("a", "an"))
    return evaluator.best_names(net, image, 1, [name, old, *pool])[0][0] == name


def background(image: Tensor) -> Tensor:
    return (image[0] - rim(image)[:, None, None]).abs().amax(0) < 0.2


def rim(image: Tensor) -> Tensor:
    edges = [image[0, :, 0], image[0, :, -1], image[0, :, :, 0], image[0, :, :, -1]]
    return torch.cat(edges, 1).median(1).values


def structure(image: Tensor) -> Tensor:
    """Cosines between all places of the perceptual net's coarsest map."""
    coarse = functional.normalize(perceptual.features()(image)[-1][0].flatten(1), dim=0)
    return coarse.T @ coarse


def ssim(a: Tensor, b: Tensor, inside: Tensor) -> float:
    """Of 7 x 7 windows whose middle is inside."""

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 7, 1, 3, count_include_pad=False)

    a, b = (a + 1) / 2, (b + 1) / 2
    va, vb, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    value = (
        (2 * mean(a) * mean(b) + 1e-4) * (2 * cov + 9e-4) / ((mean(a) ** 2 + mean(b) ** 2 + 1e-4) * (va + vb + 9e-4))
    )
    return float(value[0][:, inside].mean())


@torch.no_grad()
def measured(
    net: evaluator.Evaluator, before: Tensor, image: Tensor, name: str, source: str, full: bool = True
) -> dict[str, Any]:
    """All numbers of one edit; those of the background are None where it is edited or there is none."""
    flat, text = background(before), net.encode_text([name])
    row: dict[str, Any] = {"recognised": float(recognised(net, image, name, source))}
    row["all"] = float((image - before).abs().mean() * 127.5)
    if flat.any() and name not in COLORS:
        row["change"] = float((image - before)[0][:, flat].abs().mean() * 127.5)
    if not full:
        return row
    row["structure"] = float((structure(image) - structure(before)).square().mean())
    alone = torch.where(flat, rim(before)[None, :, None, None], image)
    row["whole"], row["edited"] = (float((net.encode_image(x) * text).sum()) for x in (image, alone))
    if not flat.any() or name in COLORS:
        return row
    held = torch.where(flat, image, before)  # what changed in the background alone
    mse = float((image - before)[0][:, flat].square().mean() / 4)
    row |= {"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-10)), "ssim": ssim(image, before, flat)}
    row["perceptual"] = float(perceptual.perceptual_distance(held, before))
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = torch.tensor([row["recognised"] for row in rows])
    low, high = metrics.interval(lambda v: float(v.mean()), found)
    made = {"recognised": float(found.mean()), "low": low, "high": high}
    for name in ("change", "all", "seconds", *MEASURES):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            made[name] = sum(values) / len(values)
    return {name: float(f"{value:.4g}") for name, value in made.items()} | {"edits": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--edits", type=int, default=64, help="64, or 32 or 16 of them, evenly")
    parser.add_argument("--options", type=json.loads, default={}, help="further options of edit, as JSON")
    parser.add_argument("--sheet", default="diffedit", help="the method whose results are shown")
    parser.add_argument("--quick", action="store_true", help="without the seven measures, which take the most time")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "edits.json"
    done: dict[str, dict[str, Any]] = {} if args.force or not kept.is_file() else json.loads(kept.read_text())["edits"]
    foreign = {} if args.model == "emoji" else {"precision": "float32"}
    net, model = evaluator.load(), fastdiffusion.load(args.model, device="cpu", **foreign)
    chosen = edits()[:: max(1, 64 // args.edits)]
    every = ("again", *args.methods)
    for seed in args.seeds:
        cells: dict[str, list[Tensor]] = {}
        for source, target, name in chosen:
            keys = {method: f"{method} | {source} -> {target} | {seed}" for method in every}
            if all(key in done for key in keys.values()) and args.sheet not in args.methods:
                continue
            plain: dict[str, Any] = {"model": model, "steps": args.steps}
            drawn = edit(
                prompt=target, source=source, method="p2p", window="cross=0..0", keep=False, seed=seed, **plain
            )
            before = drawn.source
            assert before is not None
            for method, key in keys.items():
                if key in done and method != args.sheet:
                    continue
                image, start = drawn.images, time.monotonic()
                keep = {"keep": "all" not in method}
                if method.startswith("drawn"):
                    how = {"method": "p2p", "seed": seed}
                    image = edit(prompt=target, source=source, **plain, **keep, **how, **args.options).images
                elif method != "again":
                    how = {"method": method.split()[0], "cached": False, "seed": seed + 100}
                    image = edit(
                        to_pil(before[0]), target, source=source, **plain, **keep, **how, **args.options
                    ).images
                done[key] = {
                    **measured(net, before, image, name, source, not args.quick),
                    "seconds": time.monotonic() - start,
                }
                cells.setdefault(method, []).extend([before[0], image[0], (image - before)[0] / 2])
            kept.write_text(json.dumps({"edits": done}))
        for method in every:
            rows = [row for key, row in done.items() if key.startswith(f"{method} |") and key.endswith(f"| {seed}")]
            print(f"{method}, seed {seed}:", json.dumps(summary(rows)), flush=True)
            if method == args.sheet and cells.get(method):
                grid(cells[method], columns=24).save(args.out / f"edits-{method}-{seed}.png".replace(" ", "-"))


if __name__ == "__main__":
    main()
