"""Look at a folder before training: which images, of what sizes, which are copies, which cannot be read and why."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import DataError
from ..io import images

_CHECKPOINT = re.compile(r"step-[0-9]{9}\.safetensors")  # as a run's folder holds
SUFFIXES = {
    *(
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
    ),
    *(".pnm", ".avif", ".jp2", ".j2k", ".qoi", ".tga", ".ico", ".pcx"),
}
MAX_BYTES = 1 << 28  # of one file
DEEPEST = 100  # folders in folders
_BITS = np.array([i.bit_count() for i in range(1 << 16)], np.uint8)
NEAR = 6  # of 128 bits: recompressed and resized copies differ in 0 to 4, other photographs in 30 or more


FORM = 3  # of the facts in a cache, which also follow how files are read: part of the cache's key, not of fingerprints


class File(NamedTuple):
    """A file of the folder: its name relative to it, and what tells that it was changed."""

    name: str
    size: int
    mtime: int
    mode: int
    ctime: int  # changes with the content, where a program sets the other time back


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    name: str
    reason: str


class Fact(NamedTuple):
    """What is known of an image: upright size, mode as stored, and hashes: of the file, of what it looks like, of what
    its mirror image looks like, and of its grey levels, which a mirror image shares.
    """

    name: str
    width: int
    height: int
    mode: str
    gray: bool
    sha256: str
    dhash: str
    mirrored: str
    levels: str


class CaptionCounts(NamedTuple):
    """Images that have captions, captions in all, and the median of their words."""

    images: int = 0
    captions: int = 0
    length: int = 0


@dataclass(frozen=True)
class Scan:
    """The report on a folder. ``str(scan)`` is for people, ``scan.to_dict()`` for programs.

    Attributes:
        name: The folder's name.
        images: What can be used.
        skipped: What cannot, with the reason.
        others: How many files are no images (captions, hidden files, ...).
        sizes: How many images were brought to which (height, width).
        classes: How many images each class has.
        captions: How many images have some, how many there are, and of how many words.
        remarks: What was odd: caption files that name nothing, images that were enlarged.
    """

    name: str
    images: tuple[Fact, ...]
    skipped: tuple[Skipped, ...] = ()
    others: int = 0
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    captions: CaptionCounts = field(default_factory=CaptionCounts)
    remarks: tuple[str, ...] = ()

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of images whose files are equal, byte for byte."""
        groups: dict[str, list[str]] = {}
        for fact in self.images:
            groups.setdefault(fact.sha256, []).append(fact.name)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def near_duplicates(self) -> list[list[str]]:
        """Names of images that look the same (resized, recompressed), exact copies not counted."""
        groups: dict[int, dict[str, str]] = {}
        for fact, root in zip(self.images, alike([f.dhash for f in self.images]), strict=True):
            groups.setdefault(root, {}).setdefault(fact.sha256, fact.name)
        return [list(group.values()) for group in groups.values() if len(group) > 1]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "name": self.name,
            "images": [fact._asdict() for fact in self.images],
            "skipped": [skip._asdict() for skip in self.skipped],
            "others": self.others,
            "sizes": {f"{w}x{h}": n for (h, w), n in self.sizes.items()},
            "classes": dict(self.classes),
            "captions": self.captions._asdict(),
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "remarks": list(self.remarks),
        }

    def text(self, width: int | None = None, most: int = 20) -> str:
        """The report in lines of at most ``width`` columns (the terminal's), with ``most`` names in each list."""
        width = max(min(width or shutil.get_terminal_size().columns, 100), 30)
        n = len(self.images)
        report = [f"{printable(self.name)}: {n:,} images, {len(self.skipped):,} skipped"]

        def row(title: str, text: str) -> None:
            report.extend(textwrap.wrap(f"{title:<9}{text}", width, subsequent_indent=" " * 9) if text else [])

        def names(title: str, groups: list[list[str]]) -> None:
            row(title, f"{len(groups):,} groups" if groups else "none")
            for group in groups[:most]:
                report.extend(
                    textwrap.wrap(
                        " = ".join(map(printable, group)), width, initial_indent="  ", subsequent_indent="    "
                    )
                )

        if self.images:
            areas = sorted((f.width * f.height, f"{f.width}x{f.height}") for f in self.images)
            row("sizes", f"{areas[0][1]} to {areas[-1][1]}, median {areas[len(areas) // 2][1]}")
            row("modes", _counts(Counter(f.mode for f in self.images)))
            row("used as", _counts({f"{w}x{h}": n for (h, w), n in self.sizes.items()}))
            row("classes", _counts(self.classes) if self.classes else "none")
            n, captions, length = self.captions
            row("captions", f"{captions:,} for {n:,} images, median {length} words" if captions else "none")
            names("copies", self.duplicates)
            names("alike", self.near_duplicates)
        row("others", f"{self.others:,} files that are no images" if self.others else "")
        for remark in self.remarks[:most]:
            row("note", printable(remark))
        for skip in self.skipped[:most]:
            row("skipped", f"{printable(skip.name)}: {skip.reason}")
        row("", f"... and {len(self.skipped) - most:,} more" if len(self.skipped) > most else "")
        return "\n".join(report)

    def __str__(self) -> str:
        return self.text()


def _counts(counts: Mapping[str, int], most: int = 12) -> str:
    """'cat 12, dog 7' with the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(ranked) - most:,} more" if len(ranked) > most else ""
    return ", ".join(f"{printable(name)} {n:,}" for name, n in ranked[:most]) + more


def printable(text: str) -> str:
    """Any file name on one line: control characters and undecodable bytes are escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


def find(root: Path) -> tuple[list[File], list[Skipped], list[str]]:
    """Walk a folder: files that may be images, entries that cannot be opened, and names of all other files.

    Links are followed, each real folder once; hidden files and folders are left out.
    """
    files: list[File] = []
    skipped: list[Skipped] = []
    others: list[str] = []
    visited: set[tuple[int, int]] = set()

    def walk(folder: Path, prefix: str) -> None:
        if prefix.count("/") > DEEPEST:
            skipped.append(Skipped(prefix, f"more than {DEEPEST} folders deep"))
            return
        try:
            here = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(prefix or ".", (error.strerror or "unreadable").lower()))
            return
        if (here.st_dev, here.st_ino) in visited:
            return
        visited.add((here.st_dev, here.st_ino))
        if prefix and any(_CHECKPOINT.fullmatch(entry.name) for entry in entries):
            others.append(f"{prefix.rstrip('/')} (a training run)")  # its previews are no data
            return
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                others.append(name)
                continue
            suffix = PurePosixPath(entry.name).suffix.lower()
            usable = suffix in SUFFIXES or not suffix
            try:
                info = entry.stat()
            except OSError as error:
                if usable:
                    reason = (
                        "link to nothing"
                        if isinstance(error, FileNotFoundError)
                        else (error.strerror or "unreadable").lower()
                    )
                    skipped.append(Skipped(name, reason))
                continue
            if stat.S_ISDIR(info.st_mode):
                walk(folder / entry.name, f"{name}/")
            elif not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                skipped.append(Skipped(name, "not a regular file"))
            elif usable:
                files.append(File(name, info.st_size, info.st_mtime_ns, info.st_mode, info.st_ctime_ns))
            elif suffix in images.UNREAD:
                skipped.append(Skipped(name, images.not_read(suffix)))
            else:
                others.append(name)

    walk(root, "")
    return files, skipped, others


def inspect(root: Path, file: File, near: int | None = None) -> tuple[Image.Image, Fact]:
    """Decode one file: the image and its facts; raises DataError with the reason.

    ``near`` lets a JPEG be decoded at a fraction of its size, its shorter side at least that long.
    """
    if file.size == 0:
        raise DataError("empty file")
    if file.size > MAX_BYTES:
        raise DataError(f"file of {file.size / 2**20:.0f} MB (limit {MAX_BYTES >> 20})")
    try:
        content = (root / file.name).read_bytes()
    except OSError as error:
        raise DataError((error.strerror or "unreadable").lower()) from None
    with images.opened(content) as raw:
        mode, (width, height) = raw.mode, raw.size
        mode += " (16 bits)" * (images.is_deep(raw) and not mode.startswith("I;16"))
        image = images.decode(raw, near)
        if mode.startswith("I;16") and (bits := images.used_bits(raw)) < 16:
            mode += f" ({bits} bits used)"
    if (image.width > image.height) != (width > height) and width != height:
        width, height = height, width  # turned upright
    flat = images.flatten(image)
    gray = flat.mode == "L" or _is_gray(flat)
    look = dhash(flat), dhash(flat, mirror=True), _levels(flat)
    return image, Fact(file.name, width, height, mode, gray, hashlib.sha256(content).hexdigest(), *look)


def _levels(image: Image.Image) -> str:
    """A hash of the grey levels, the same for a mirror image (left and right): what a flat image is known by."""
    cells = np.asarray(image.convert("L"))
    both = (
        hashlib.blake2b(np.ascontiguousarray(a).tobytes(), digest_size=16).hexdigest() for a in (cells, cells[:, ::-1])
    )
    return min(both)


def _is_gray(image: Image.Image) -> bool:
    small = np.asarray(image.reduce(max(min(image.size) // 64, 1))).astype(np.int16)
    return int(np.ptp(small, axis=2).max()) <= 2


def dhash(image: Image.Image, mirror: bool = False) -> str:
    """128 bits of what an image looks like: is each cell of an 8x8 grid brighter than its neighbour (Krawetz 2013)?

    A margin of two grey levels keeps flat areas (sky, white paper) from answering with noise. With ``mirror``, that of
    the mirror image, left and right exchanged.
    """
    cells = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX)).astype(np.int16)
    cells = cells[:, ::-1] if mirror else cells
    right, down = cells[:8, 1:] > cells[:8, :-1] + 2, cells[1:, :8] > cells[:-1, :8] + 2
    return np.packbits([right, down]).tobytes().hex()


def twins(facts: Sequence[Fact]) -> list[int]:
    """For each image the index of the first one that looks like it, or like its mirror image, directly or by others."""
    n = len(facts)
    groups = alike([fact.dhash for fact in facts] + [fact.mirrored for fact in facts])
    parent = list(range(2 * n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, fact in enumerate(facts):
        for other in (groups[n + i], groups[first.setdefault(fact.levels, i)]):
            low, high = sorted((root(groups[i]), root(other)))
            parent[high] = low
    return [root(groups[i]) for i in range(n)]


def alike(hashes: list[str]) -> list[int]:
    """For each hash the index of its group's first member; hashes at most NEAR bits apart are of one group.

    Two hashes that differ in at most 6 of 128 bits agree in at least two of eight 16-bit blocks: these are compared.
    Bits that are nearly always the same (white margins) are dealt out evenly, or else one block would hold them all.
    """
    first: dict[str, int] = {}
    for i, h in enumerate(hashes):
        first.setdefault(h, i)
    unique = [h for h in first if int(h, 16).bit_count() >= 8]  # fewer: an image without structure is like nothing
    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    bits = np.unpackbits(np.frombuffer(bytes.fromhex("".join(unique)), np.uint8)).reshape(-1, 128)
    telling = np.argsort(np.abs(bits.mean(0) - 0.5)) if unique else np.arange(128)
    dealt = bits[:, telling].reshape(-1, 16, 8).astype(np.uint16)
    blocks = (dealt << np.arange(16, dtype=np.uint16)[:, None]).sum(1, dtype=np.uint16)
    for one, other in combinations(range(8), 2):
        key = blocks[:, one].astype(np.uint32) << 16 | blocks[:, other]
        order = np.argsort(key, kind="stable")
        edges = np.flatnonzero(np.diff(key[order], prepend=-1.0, append=-1.0))
        for start, end in ((a, b) for a, b in pairwise(edges.tolist()) if b - a > 1):
            run = order[start:end]
            for k, i in enumerate(run[:-1]):
                distance = _BITS[blocks[run[k + 1 :]] ^ blocks[i]].sum(1)
                for j in run[k + 1 :][distance <= NEAR]:
                    low, high = sorted((root(first[unique[i]]), root(first[unique[j]])))
                    parent[high] = low
    structured = set(unique)
    return [root(first[h]) if h in structured else i for i, h in enumerate(hashes)]
