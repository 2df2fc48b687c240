"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747) from its IDX files: nothing is downloaded."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError, InputError, MissingExtra
from .dataset import Images

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
_PARTS = {"train": "train", "test": "t10k"}
_LIMIT = 1 << 28  # bytes of an unpacked file; the real ones have 47 million


def fashion_mnist(size: int | None = None, part: str = "train", folder: str | os.PathLike[str] | None = None) -> Images:
    """60,000 training or 10,000 test images of clothes, grey, white on black.

    Args:
        size: 28, or 32 to pad with black.
        part: "train" or "test".
        folder: Where the four IDX files lie (.gz or not); by default where Debian's package puts them.
    """
    if size not in (None, 28, 32):
        raise InputError(f"Fashion-MNIST is 28 by 28 pixels, got size={size}. Use size=28, or size=32 to pad it.")
    if part not in _PARTS:
        raise InputError(f"Fashion-MNIST has the parts 'train' and 'test', got {part!r}.")
    where = Path(folder) if folder is not None else FOLDER
    images = read_idx(where, f"{_PARTS[part]}-images-idx3-ubyte")[:, None]
    labels = read_idx(where, f"{_PARTS[part]}-labels-idx1-ubyte")
    if images.shape[1:] != (1, 28, 28) or len(images) != len(labels) or labels.max(initial=0) > 9:
        raise DataError(
            f"{where.name!r} does not hold Fashion-MNIST: got {images.shape} images, {labels.shape} labels."
        )
    if size == 32:
        images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    captions = [(CLASSES[label],) for label in labels]
    names = [f"{part}-{i:05d}" for i in range(len(labels))]
    name = "fashion-mnist" if part == "train" else "fashion-mnist-test"
    return Images(name, [images], labels.tolist(), captions, names, CLASSES)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The uint8 array of an IDX file: 0, 0, type 8, number of axes, then big-endian sizes, then the bytes."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise MissingExtra(
            f"No file {name}.gz in {str(folder)!r}. Install it with: apt install dataset-fashion-mnist, "
            "or give the folder of the four IDX files: folder='...'."
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LIMIT)
        zero, kind, axes = struct.unpack_from(">HBB", content)
        sizes = struct.unpack_from(f">{axes}I", content, 4)
        if zero or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"Cannot read {path.name!r}: {error}. Install dataset-fashion-mnist anew.") from None
