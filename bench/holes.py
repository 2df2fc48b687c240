"""Holes in held-out photographs, filled in three ways: with patches, by the restorer's mean, and smoothly.

Three discs of a sixth of the shorter side lie in each of the held-out photographs of bench/photographs.txt, drawn by a
seed. "far" is the perceptual distance to the true image around the hole, in the maps of the shipped evaluator, which
nothing was tuned on; "detail" the energy of the gradients in the hole, as a part of the truth's; then PSNR in the hole,
which a blur wins, and CPU seconds. The biharmonic filling is scikit-image's.

    python bench/photographs.py FOLDER && python bench/holes.py FOLDER [--size 512] [--out out/holes]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import photographs
import torch
from PIL import Image, ImageDraw
from style import evaluator_maps
from torch import Tensor

from fastdiffusion import metrics, restore
from fastdiffusion.io.images import grid, read_image, to_pil, to_tensor
from fastdiffusion.nets.perceptual import map_distance
from fastdiffusion.noise import generator

HOLES, PART = 3, 6  # of each photograph; the shorter side over a hole's width


def biharmonic(image: Image.Image, mask: Image.Image) -> Image.Image:
    from skimage.restoration import inpaint_biharmonic

    filled = inpaint_biharmonic(np.asarray(image) / 255, np.asarray(mask) > 0, split_into_regions=True, channel_axis=-1)
    return Image.fromarray((filled.clip(0, 1) * 255).round().astype(np.uint8))


def by(folder: Path, **options: str) -> Callable[[Image.Image, Image.Image], Image.Image]:
    def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
        mask.save(folder / "hole.png")
        return restore(image, f"inpaint '{folder / 'hole.png'}'", **options).to_pil()[0]

    return fill


def gradients(x: Tensor, hole: Tensor) -> float:
    """Energy of the differences between neighbors inside the hole."""
    inside = hole[1:, 1:] & hole[:-1, :-1]
    down, right = x[:, 1:, 1:] - x[:, :-1, 1:], x[:, 1:, 1:] - x[:, 1:, :-1]
    return float((down.square() + right.square())[:, inside].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512, help="longest side")
    parser.add_argument("--out", type=Path, default=Path("out/holes"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    ways = {
        "patches": by(args.out),
        "restorer's mean": by(args.out, answer="mean"),
        "biharmonic (scikit-image)": biharmonic,
    }
    maps, rows, sheet = evaluator_maps(), [], []
    for i, photograph in enumerate(photographs.listed("held-out")):
        whole = read_image(args.folder / photograph.name).convert("RGB")
        whole.thumbnail((args.size, args.size), Image.Resampling.LANCZOS)
        width = min(whole.size) // PART
        places = torch.rand(HOLES, 2, generator=generator(i))
        for across, down in places.tolist():
            parts = zip((across, down), whole.size, strict=True)
            left, top = (round(width + part * (n - 3 * width)) for part, n in parts)
            mask = Image.new("L", whole.size)
            ImageDraw.Draw(mask).ellipse((left, top, left + width, top + width), fill=255)
            hole = to_tensor(mask)[0] > 0
            around = tuple(slice(first - width // 2, first + 3 * width // 2) for first in (top, left))
            truth = to_tensor(whole)
            holed = Image.composite(Image.new("RGB", whole.size, (255, 0, 255)), whole, mask)
            shown = [holed]
            for way, fill in ways.items():
                begun = time.process_time()
                image = fill(holed, mask)
                seconds, made = time.process_time() - begun, to_tensor(image)
                with torch.no_grad():
                    far = map_distance(*(maps(x[None, :, *around]) for x in (made, truth)))
                error = float((made - truth)[:, hole].square().mean())
                rows.append({
                    "way": way, "photograph": photograph.name, "far": float(far),
                    "detail": gradients(made, hole) / max(gradients(truth, hole), 1e-6),
                    "psnr": 10 * math.log10(4 / max(error, 1e-9)), "seconds": seconds,
                })  # fmt: skip
                shown.append(image)
            sheet += [to_pil(to_tensor(image)[:, *around]).resize((160, 160)) for image in [*shown, whole]]
        print(photograph.name, flush=True)
    for way in ways:
        line = [way]
        for key in ("far", "detail", "psnr", "seconds"):
            values = torch.tensor([row[key] for row in rows if row["way"] == way])
            center = values.median() if key == "detail" else values.mean()
            low, high = metrics.interval(lambda v, k=key: float(v.median() if k == "detail" else v.mean()), values)
            line.append(f"{float(center):.3g} [{low:.3g}, {high:.3g}]")
        print("| " + " | ".join(line) + " |")
    grid(sheet, len(ways) + 2).save(args.out / "holes.png")
    (args.out / "holes.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
