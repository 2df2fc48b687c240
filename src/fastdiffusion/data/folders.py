"""A folder of images as a data set: any formats, sizes and shapes; labels from subfolders or tables; captions."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError, InputError, counted, unknown
from ..io import images
from ..progress import Progress
from .cache import decode_once
from .captions import Notes, read_notes
from .dataset import Images, digest
from .scan import FORM, CaptionCounts, Fact, File, Scan, Skipped, find, inspect, twins

ASPECTS = ("bucket", "crop", "pad")
CHANNELS = {"auto": "RGB", "L": "L", "RGB": "RGB", "RGBA": "RGBA"}
LABELS = ("auto", "folders", "table", "none")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
MAX_RATIO = 4.0  # of the longer to the shorter side
DIGITS = 1000  # of a number in a class's name: Python reads none of more than 4,300
_VERSION = 1  # of the decoding below: a change of what it makes must not meet an old cache
_CHUNK = 256  # files in flight: bounds the memory of decoded images


class ImageFolder(Images):
    """All images under a folder. They are decoded once and kept in the cache folder until a file changes.

    Args:
        path: The folder; subfolders and links are followed, hidden files left out.
        size: Side of a square image; other shapes have about as many pixels.
        aspect: "bucket" keeps shapes: each image goes to the nearest of up to 17 shapes and loses at most 10 % at
            its edges (from size 28 on); batches come from one of ``groups``. "crop" cuts squares, "pad" adds white.
        mode: "auto" is grey if all images are, else RGB; or "L", "RGB", "RGBA". Alpha is laid on white unless kept.
        labels: "folders" makes a class of each first-level subfolder, "table" of the label column of metadata.jsonl
            or a CSV; "auto" takes the table's, else the folders' where no image lies outside one, those below where
            the first level is a split (train, val, test); "none".

    Raises:
        InputError: an option that is not one of these.
        DataError: no folder, no images, or labels that some images lack; single bad files are only skipped, see
            ``report``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int = 64,
        aspect: str = "bucket",
        mode: str = "auto",
        labels: str = "auto",
    ):
        self.options = {"aspect": aspect, "mode": mode, "labels": labels}
        for kind, value, known in (("aspect", aspect, ASPECTS), ("mode", mode, CHANNELS), ("labels", labels, LABELS)):
            if value not in known:
                raise unknown(f"{kind} option", value, known)
        root = checked_folder(path)
        size = checked_size(size)
        files, skipped, others = find(root)
        if not files and not skipped:
            raise DataError(
                f"No images in {str(path)!r} ({len(others)} other files). Put PNG, JPEG or WebP files there."
            )
        options = [_VERSION, size, aspect, CHANNELS[mode]]
        family, key = digest(str(root.resolve()), options), digest(FORM, files)
        decoded = decode_once(family, key, _decode(root, files, size, aspect, CHANNELS[mode]))
        facts = [Fact(**fact) for rows in decoded.facts for fact in rows]
        skipped = [*skipped, *(Skipped(**skip) for skip in decoded.skipped)]
        private = root.resolve() == Path(os.path.expanduser("~")).resolve()  # its name is the user's
        report = Scan("images" if private else root.resolve().name, tuple(facts), tuple(sorted(skipped)), len(others))
        if not facts:
            raise DataError(f"None of {counted(len(skipped), 'image')} in {str(path)!r} can be used:\n{report}")

        notes = read_notes(root, [file.name for file in files], others)
        chosen = _labels(labels, facts, notes)
        classes = sorted(set(chosen) - {""}, key=natural)
        counts = Counter(chosen)
        number = {name: i for i, name in enumerate(classes)} | {"": -1}
        captions = [notes.captions.get(fact.name, ()) for fact in facts]
        small = sum(min(fact.width, fact.height) < size for fact in facts)
        remarks = [*notes.remarks] + [f"smaller than {size} and enlarged: {counted(small, 'image')}"] * (small > 0)
        deep, part = ([f for f in facts if "16" in f.mode and ("used" in f.mode) == few] for few in (0, 1))
        remarks += [f"of 16 bits a channel, 8 are used: {counted(len(deep), 'image')}"] * bool(deep)
        remarks += [f"files of 16 bits that use fewer, brightened to match: {counted(len(part), 'image')}"] * bool(part)
        if labels == "auto" and not any(notes.labels.values()) and (parts := _parts(facts)):
            remarks.append(
                f"{' and '.join(parts)} are parts of a split, not classes; all are used. For one part, name its folder"
            )
        gray = mode == "auto" and all(fact.gray for fact in facts)
        arrays = [array[:, :1] if gray else array for array in decoded.arrays]
        first_alike = twins(facts)
        super().__init__(
            report.name,
            arrays,
            labels=[number[name] for name in chosen],
            captions=captions,
            names=[fact.name for fact in facts],
            classes=classes,
            keys=[facts[first].sha256 for first in first_alike],  # copies must not lie on both sides of a split
            shape=(arrays[0].shape[1], size, size),
            fingerprint=digest(options, [fact.sha256 for fact in facts], chosen, captions),
            report=replace(
                report,
                sizes={array.shape[2:]: len(array) for array in arrays},
                classes={name: counts[name] for name in classes},
                captions=_count(captions),
                remarks=tuple(remarks),
            ),
        )


def scan(path: str | os.PathLike[str], size: int = 64, **options: Any) -> Scan:
    """The report on a folder of images, see :class:`ImageFolder` for the options."""
    report = ImageFolder(path, size, **options).report
    assert report is not None
    return report


def checked_folder(path: str | os.PathLike[str]) -> Path:
    """The folder; raises DataError where there is none."""
    root = Path(path)
    try:
        if root.is_dir():
            return root
        actual = "a file" if root.exists() else "nothing"
    except (OSError, ValueError) as error:  # names that no file system can hold
        actual = str(error)
    raise DataError(f"{str(path)!r} is not a folder: there is {actual}. Give a folder with PNG, JPEG or WebP files.")


def checked_size(size: object, least: int = 8, most: int = 4096) -> int:
    """A usable image size; raises InputError."""
    if not isinstance(size, int) or isinstance(size, bool) or not least <= size <= most:
        raise InputError(f"size must be a whole number from {least} to {most}, got {size!r}. Try size=64.")
    return size


# ---- shapes -----------------------------------------------------------------------------------------------------


@cache
def buckets(size: int) -> tuple[tuple[int, int], ...]:
    """Shapes (height, width) of about size^2 pixels, from 1:4 to 4:1, sides as round as the 10 % rule allows.

    Cropping an image to the nearest shape costs at most 1 - sqrt(1/q) where q is the largest ratio of neighbouring
    aspect ratios: q <= 1/0.81 keeps it at 10 %. The shapes are a geometric grid of ratios, its sides rounded to
    multiples of the largest power of two that keeps this (networks halve sides several times). Below size 28 whole
    pixels are too coarse for the rule: up to 17 % is lost at 8.
    """
    shapes: list[tuple[int, int]] = []
    for step in (2**k for k in range(6, -1, -1)):
        if size % step:
            continue
        roots = [MAX_RATIO ** (k / 16) for k in range(-8, 9)]
        shapes = sorted({(round(size / r / step) * step, round(size * r / step) * step) for r in roots}, reverse=True)
        ratios = [1 / MAX_RATIO * 0.9, *(w / h for h, w in shapes if h), MAX_RATIO / 0.9]
        if all(h for h, _ in shapes) and all(b / a <= 1 / 0.81 for a, b in pairwise(ratios)):
            break
    return tuple(shapes)


def crop_loss(width: int, height: int, shape: tuple[int, int]) -> float:
    """Share of an image that is cut off to give it the aspect ratio of ``shape`` (height, width)."""
    ratio = (width / height) / (shape[1] / shape[0])
    return 1 - min(ratio, 1 / ratio)


def fit(image: Image.Image, size: int, aspect: str, mode: str) -> np.ndarray:
    """An image brought to its shape and mode: uint8 (c, h, w); raises DataError where it does not fit."""
    width, height = image.size
    if min(width, height) < max(size // 8, 2):
        raise DataError(f"{width}x{height} pixels is too small for size {size}")
    if aspect != "pad" and max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(f"{width}x{height} pixels is longer than {MAX_RATIO:g}:1; aspect='pad' would take it")
    height, width = (
        min(buckets(size), key=lambda shape: crop_loss(width, height, shape)) if aspect == "bucket" else (size, size)
    )
    image = image.convert("RGBA") if mode == "RGBA" else images.flatten(image).convert(mode)
    if aspect == "pad":
        image = ImageOps.pad(
            image, (width, height), Image.Resampling.LANCZOS, color="#ffffff00" if mode == "RGBA" else "white"
        )
    else:
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return images.to_array(image)


# ---- decoding and labels ------------------------------------------------------------------------------------------


def _decode(
    root: Path, files: list[File], size: int, aspect: str, mode: str
) -> Iterator[tuple[np.ndarray | None, dict]]:
    """Each file's image at its shape and its facts, or None and the reason; in the order of ``files``."""

    def one(file: File) -> tuple[np.ndarray | None, dict]:
        try:
            image, fact = inspect(root, file, near=2 * size)
            return fit(image, size, aspect, mode), fact._asdict()
        except DataError as error:
            return None, Skipped(file.name, str(error))._asdict()

    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # of odd EXIF data and the like: a file is used or skipped
        bar = Progress(total=len(files), desc="reading", unit="", delay=1)
        for start in range(0, len(files), _CHUNK):
            for result in pool.map(one, files[start : start + _CHUNK]):
                bar.update()
                yield result
        bar.close()


def _labels(how: str, facts: list[Fact], notes: Notes) -> list[str]:
    """The class name of each image; "" for none."""
    table = [notes.labels.get(fact.name, "") for fact in facts]
    below = 1 if how == "auto" and _parts(facts) else 0  # the classes lie inside the parts of a split
    folders = [normalize("NFC", [*fact.name.split("/")[:-1], "", ""][below]) for fact in facts]
    if how == "auto":
        how = "table" if any(table) else "folders" if all(folders) and len(set(folders)) > 1 else "none"
        return {"table": table, "folders": folders, "none": [""] * len(facts)}[how]
    if how == "none":
        return [""] * len(facts)
    chosen = table if how == "table" else folders
    lacking = [fact.name for fact, name in zip(facts, chosen, strict=True) if not name]
    if lacking:
        need = (
            "a row with a label in metadata.jsonl or a CSV"
            if how == "table"
            else "to lie in a subfolder named for their class"
        )
        raise DataError(
            f"{len(lacking)} of {len(facts)} images have no label, e.g. {lacking[0]!r}: they need {need}. "
            "Or train without classes: labels='none'."
        )
    return chosen


def _parts(facts: list[Fact]) -> list[str]:
    """The first-level folders, where they are the parts of a split and not classes."""
    tops = sorted({fact.name.split("/")[0] if "/" in fact.name else "" for fact in facts})
    return tops if len(tops) > 1 and {top.lower() for top in tops} <= SPLITS else []


def _count(captions: list[tuple[str, ...]]) -> CaptionCounts:
    lengths = sorted(len(text.split()) for texts in captions for text in texts)
    return CaptionCounts(sum(map(bool, captions)), len(lengths), lengths[len(lengths) // 2] if lengths else 0)


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts class "9" before "10", and both before "cat"."""
    runs = [run for run in re.split(r"(\d+)", name) if run]
    return [(False, int(run[:DIGITS]), "") if run.isdecimal() else (True, 0, run) for run in runs]
