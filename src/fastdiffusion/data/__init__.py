"""Data sets: a folder of images, the digits, Fashion-MNIST, the emoji, and Hugging Face's.

``data.load("photos/", size=64)`` takes a name or a folder; all give a :class:`Dataset` of numbered uint8 images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown
from . import augment
from .cache import cache_folder
from .crops import Crops
from .dataset import Batch, Dataset, Images, Subset, measure_sigma_data
from .digits import digits
from .emoji.font import emoji
from .emoji.multilingual import multilingual
from .emoji.scenes import scenes
from .fashion_mnist import fashion_mnist
from .folders import ImageFolder, scan
from .hub import hub
from .pairs import Pairs
from .scan import Scan

__all__ = [
    "DATASETS",
    "Batch",
    "Crops",
    "Dataset",
    "ImageFolder",
    "Images",
    "Pairs",
    "Scan",
    "Subset",
    "augment",
    "cache_folder",
    "digits",
    "emoji",
    "fashion_mnist",
    "hub",
    "load",
    "load_folder",
    "measure_sigma_data",
    "multilingual",
    "scan",
    "scenes",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "emoji": emoji,
    "emoji-scenes": scenes,
    "emoji-multilingual": multilingual,
    "emoji-polyglot": multilingual,  # its first name
}


def load(source: str | os.PathLike[str] | Dataset, size: int | None = None, **options: Any) -> Dataset:
    """A data set by name ("digits", "fashion-mnist", "emoji", "hf:owner/name") or the folder of your own images.

    Args:
        source: The name or folder; a folder goes before a name when it holds a slash. A Dataset is returned as it is.
        size: Side of the images; by default the data set's own, 64 for folders.
        options: Of the data set, see ``DATASETS``, :class:`ImageFolder` and :func:`hub`.

    Raises:
        InputError: an unknown name or option.
        DataError: a folder that cannot be used.
    """
    if isinstance(source, Dataset):
        return source
    name = os.fspath(source)
    try:
        if name in DATASETS:
            return DATASETS[name](size, **options)
        if name.startswith("hf:"):
            return hub(name[3:], size, **options)
        if not Path(name).exists() and os.sep not in name:
            raise unknown("folder or data set", name, DATASETS)
        return ImageFolder(name, **({} if size is None else {"size": size}), **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise InputError(f"The data set {name!r} does not take these options ({error}).") from None


def load_folder(
    source: str | os.PathLike[str] | Dataset,
    size: int | None = None,
    aspect: str | None = None,
    usual: str = "bucket",
    mode: str | None = None,
    labels: str | None = None,
) -> Dataset:
    """Like :func:`load`, for options that a folder's images have and other data sets do not.

    Args:
        source, size: As of :func:`load`.
        aspect: Of :class:`ImageFolder`; by default ``usual``, where ``source`` is a folder.
        usual: The default of ``aspect``.
        mode: Of :class:`ImageFolder`, where ``source`` is a folder.
        labels: Of :class:`ImageFolder`.
    """
    folder = not isinstance(source, Dataset) and Path(source).is_dir() and str(source) not in DATASETS
    chosen = {"aspect": aspect or (usual if folder else None), "mode": mode if folder else None, "labels": labels}
    return load(source, size, **{key: value for key, value in chosen.items() if value is not None})
