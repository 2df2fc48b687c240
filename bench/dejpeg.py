"""``restore --corruption dejpeg`` on photographs that it never saw: is any result below its own file?

    python bench/dejpeg.py FOLDER

FOLDER holds the files of bench/photographs.txt. Every quality and way of subsampling colors, upright, turned, and CMYK;
a crop of 192 pixels of each, where it has most detail. Decibels are of the pixels, before and after. About 90 s on one
core.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastdiffusion.io.images import read_image
from fastdiffusion.tasks.restoration.restore import restore

SIDE = 192
QUALITIES = (10, 30, 50, 75, 90)
WAYS = ("4:2:0", "4:2:2", "4:4:4", "turned", "CMYK")


def listed() -> list[str]:
    """The file names in bench/photographs.txt."""
    rows = Path(__file__).with_name("photographs.txt").read_text(encoding="utf-8").splitlines()
    return [row.partition(": ")[2].partition(";")[0] for row in rows if not row.startswith("#")]


def crop(path: Path) -> Image.Image:
    """The square of most detail, of the photograph reduced to at most 640 pixels a side."""
    image = read_image(path).convert("RGB")
    scale = min(640 / max(image.size), 0.75)  # below 1: some have been JPEG files before, whose blocks must not show
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    gray = np.asarray(image.convert("L")).astype(float)
    detail = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    places = [(y, x) for y in range(0, image.height - SIDE, 32) for x in range(0, image.width - SIDE, 32)]
    y, x = max(places, key=lambda at: detail[at[0] : at[0] + SIDE, at[1] : at[1] + SIDE].mean())
    return image.crop((x, y, x + SIDE, y + SIDE))


def psnr(a: Image.Image, b: Image.Image) -> float:
    difference = np.asarray(a.convert("RGB")).astype(float) - np.asarray(b.convert("RGB"))
    return 10 * math.log10(255**2 / max(float((difference**2).mean()), 1e-6))


def compressed(image: Image.Image, path: Path, quality: int, way: str) -> None:
    exif = Image.Exif()
    if way == "turned":
        exif[0x0112], image = 6, image.transpose(Image.Transpose.ROTATE_90)
    if way == "CMYK":
        image = image.convert("CMYK")
    image.save(path, quality=quality, subsampling=way if ":" in way else "4:2:0", exif=exif)


def main(folder: Path) -> None:
    below = count = 0
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x.jpg"
        crops = {name: crop(folder / name) for name in listed()}
        for way in WAYS:
            for quality in QUALITIES:
                gains = {}
                for name, image in crops.items():
                    compressed(image, path, quality, way)
                    before = psnr(read_image(path), image)
                    done = restore(path, "dejpeg").images[0]
                    after = psnr(Image.fromarray(done.permute(1, 2, 0).numpy()), image)
                    gains[name] = after - before
                worst = min(gains, key=lambda name: gains[name])
                below += sum(gain < 0 for gain in gains.values())
                count += len(gains)
                mean = sum(gains.values()) / len(gains)
                print(f"{way:6} quality {quality}: {mean:+.2f} dB, worst {gains[worst]:+.2f} ({worst})", flush=True)
    print(f"{below} of {count} results are below their file.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
