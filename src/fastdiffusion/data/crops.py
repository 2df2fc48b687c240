"""Squares cut from photographs, not shrunk from them: what a restorer learns from.

A photograph made 64 pixels small is sharper than any photograph is; who learned from thumbnails restores nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, counted, unknown
from ..io import images
from ..progress import Progress
from .cache import decode_once
from .dataset import Images, digest
from .folders import CHANNELS, checked_folder, checked_size
from .scan import FORM, Fact, File, Scan, Skipped, find, inspect, twins

_VERSION = 1  # of the cutting below: a change of what it makes must not meet an old cache
COVER = 2  # how often a pixel is cut out, in the mean
PIXELS = 1_500_000  # larger photographs are first reduced: a camera's own pixels are soft


class Crops(Images):
    """Random squares of all photographs under a folder, cut once and kept in the cache folder.

    Args:
        path: The folder; subfolders and links are followed, hidden files left out.
        size: Side of a square in pixels.
        most: At most about so many squares, dealt out evenly; of three places the one with most detail is taken.
        mode: "auto" is grey if all photographs are, else RGB; or "L", "RGB".

    Raises:
        DataError: no folder, or no photograph in it that is large enough; single bad files are skipped, see ``report``.
    """

    def __init__(self, path: str | os.PathLike[str], size: int = 64, most: int = 20_000, mode: str = "auto"):
        if mode not in CHANNELS or mode == "RGBA":
            raise unknown("mode option", mode, ["auto", "L", "RGB"])
        root, size = checked_folder(path), checked_size(size)
        files, skipped, others = find(root)
        if not files:
            raise DataError(f"No images in {str(path)!r}. Put PNG, JPEG or WebP files there.")
        options = [_VERSION, size, most, CHANNELS[mode]]
        family, key = digest("crops", str(root.resolve()), options), digest(FORM, files)
        decoded = decode_once(family, key, _cut(root, files, size, max(most // len(files), 1), CHANNELS[mode]))
        rows = [row for rows in decoded.facts for row in rows]
        skipped = sorted([*skipped, *(Skipped(**skip) for skip in decoded.skipped)])
        facts = {row["name"]: Fact(**{k: row[k] for k in Fact._fields}) for row in rows}
        report = Scan(root.resolve().name, tuple(facts.values()), tuple(skipped), len(others))
        if not rows:
            raise DataError(f"None of {counted(len(skipped), 'image')} in {str(path)!r} can be used:\n{report}")
        first_alike = dict(zip(facts, twins(list(facts.values())), strict=True))
        first = [fact.sha256 for fact in facts.values()]
        gray = mode == "auto" and all(fact.gray for fact in facts.values())
        super().__init__(
            report.name,
            [array[:, :1] if gray else array for array in decoded.arrays],
            names=[f"{row['name']} at {row['left']},{row['top']}" for row in rows],
            keys=[first[first_alike[row["name"]]] for row in rows],  # a photograph is on one side of a split
            fingerprint=digest(options, first),
            report=report,
        )


def _cut(root: Path, files: list[File], size: int, most: int, mode: str) -> Iterator[tuple[np.ndarray | None, dict]]:
    """Every square with its photograph's facts and its place; or None and the reason."""
    for file in Progress(files, "cutting", unit="", delay=1):
        try:
            image, fact = inspect(root, file)
            image = reduced(images.flatten(image).convert(mode), PIXELS)
            pixels = images.to_array(image)
            if min(pixels.shape[1:]) < size:
                raise DataError(f"{image.width}x{image.height} pixels is smaller than {size}")
        except DataError as error:
            yield None, Skipped(file.name, str(error))._asdict()
            continue
        height, width = (n - size for n in pixels.shape[1:])
        count = min(math.ceil(COVER * image.width * image.height / size**2), most)
        places = np.random.default_rng(int(fact.sha256[:16], 16)).integers(0, [height + 1, width + 1], (count, 3, 2))
        for three in places.tolist():
            top, left = max(three, key=lambda place: _detail(pixels, place[0], place[1], size))
            yield pixels[:, top : top + size, left : left + size], {**fact._asdict(), "top": top, "left": left}


def reduced(image: Image.Image, pixels: int) -> Image.Image:
    """An image of at most about so many pixels."""
    scale = math.sqrt(pixels / (image.width * image.height))
    if scale >= 1:
        return image
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.LANCZOS)


def _detail(pixels: np.ndarray, top: int, left: int, size: int) -> float:
    patch = pixels[:, top : top + size, left : left + size].astype(np.float32).mean(0)
    return float(np.abs(np.diff(patch, axis=0)).mean() + np.abs(np.diff(patch, axis=1)).mean())
