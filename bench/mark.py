"""The invisible mark: what it outlasts, what it costs, and that it is not found where it is not.

    python bench/mark.py FOLDER [--unmarked 1000] [-n 200] [--out out/bench]

FOLDER has photographs (bench/photographs.py gathers some); 64 px are emoji, and images that the bundled model draws.
Sheets of images beside their marked copies, and of the difference ten times enlarged, are for looking at.
"""

from __future__ import annotations

import argparse
import io
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdiffusion import data, sample
from fastdiffusion.io import mark
from fastdiffusion.io.images import grid, read_image, save_png, to_pil, to_tensor


def saved(format: str, quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format, quality=quality)
        return Image.open(buffer)

    return change


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS
    )


def cropped(part: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.crop((round(image.width * part), round(image.height * part), image.width, image.height))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image, "JPEG 90": saved("JPEG", 90), "JPEG 75": saved("JPEG", 75),
    "JPEG 50": saved("JPEG", 50), "WebP 75": saved("WEBP", 75), "half the size": scaled(0.5), "2/3": scaled(2 / 3),
    "4/5": scaled(0.8), "3/2": scaled(1.5), "2/3, then JPEG 75": lambda image: saved("JPEG", 75)(scaled(2 / 3)(image)),
    "2 % cut off": cropped(0.02), "5 % cut off": cropped(0.05),
}  # fmt: skip


def squares(folder: Path, side: int, n: int) -> list[Tensor]:
    """Squares from photographs at several zooms, mirrored or not: no two alike."""
    draw, paths = random.Random(side), sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))
    images = [image for path in paths if min((image := read_image(path).convert("RGB")).size) >= side]
    found = []
    for i in range(n):
        image = images[i % len(images)]
        zoom = draw.uniform(side, min(image.size)) if min(image.size) > side else side
        left, top = (draw.uniform(0, length - zoom) for length in image.size)
        square = image.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + zoom, top + zoom))
        found.append(to_tensor(square).flip(-1) if draw.random() < 0.5 else to_tensor(square))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unmarked", type=int, default=1000)
    parser.add_argument("-n", type=int, default=200, help="marked images of each kind")
    parser.add_argument("--drawn", type=int, default=32, help="images that the model draws")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scenes, quarter = data.load("emoji-scenes"), args.unmarked // 4
    rows = random.Random(0).sample(range(len(scenes)), 2 * quarter)
    names = [scenes.caption(i) for i in rows[: args.drawn]]
    kinds = {
        "64 px, emoji": list(to_tensor(scenes.batch(rows).images)),
        "64 px, drawn by the model": list(sample("emoji", names, n=len(names), steps=8).images),
        "256 px, photographs": squares(args.folder, 256, quarter),
        "512 px, photographs": squares(args.folder, 512, quarter),
    }
    unmarked = [mark.found(image) for images in kinds.values() for image in images]
    false = sum(value >= mark.FOUND for value in unmarked)
    print(f"unmarked: {false} of {len(unmarked)} found; the largest {max(unmarked):.2f} of {mark.FOUND:g}", flush=True)
    print(f"| | images | PSNR, mean (least) | largest change | {' | '.join(CHANGES)} |")
    print(f"|---|---|---|---|{'---|' * len(CHANGES)}")
    for kind, images in kinds.items():
        some = images[: args.n]
        pairs = [(image, mark.mark(image[None])[0]) for image in some]
        errors = [((a.clamp(-1, 1) - b) * 127.5).flatten() for a, b in pairs]
        ratios = [10 * math.log10(255**2 / max(float(e.square().mean()), 1e-9)) for e in errors]
        found = [
            np.mean([mark.is_marked(change(to_pil(marked))) for _, marked in pairs]) for change in CHANGES.values()
        ]
        cells = " | ".join(f"{100 * part:.0f} %" for part in found)
        largest = float(np.median([float(e.abs().max()) for e in errors]))
        print(
            f"| {kind} | {len(some)} | {np.mean(ratios):.1f} ({min(ratios):.1f}) dB | {largest:.0f} | {cells} |",
            flush=True,
        )
        shown = [
            p for a, b in pairs[: 8 if len(images[0][0]) < 100 else 2] for p in (a, b, (10 * (b - a)).clamp(-1, 1))
        ]
        sheet = grid(torch.stack(shown), 6, max(1, 192 // shown[0].shape[-1]))
        save_png(sheet, args.out / f"mark-{kind[:3].strip()}-{kind[-5:]}.png")


if __name__ == "__main__":
    main()
