"""What a data set is: numbered images, each with a label, captions and a name; and the one kind that holds them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..errors import DataError, InputError, counted
from ..io.images import to_tensor

if TYPE_CHECKING:
    from .scan import Scan


class Batch(NamedTuple):
    """Images of one size.

    Attributes:
        images: 0..255; ``images.to_tensor`` makes them [-1, 1].
        labels: Index into ``Dataset.classes``; -1 where there is none.
        captions: One per image, "" where there is none.
        names: File names (or numbers), to say which image it was.
        inputs: What each image is to be made from, in data sets of pairs.
    """

    images: UInt8[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]
    captions: list[str]
    names: list[str]
    inputs: UInt8[Tensor, "b k h w"] | None = None


class Annotations(NamedTuple):
    """What is known of images besides the images; see :class:`Batch`."""

    labels: Int64[Tensor, " b"]
    captions: list[str]
    names: list[str]


class Dataset(ABC):
    """Numbered images. ``batch`` must depend on its arguments alone, so that a run can be resumed bit for bit.

    Attributes:
        name: What the person called it, without folders.
        shape: (channels, height, width) that a model of this data makes.
        classes: Names of the labels; empty when there are none.
        fingerprint: A hash of the content: the same images, labels and captions give the same string.
        report: What a scan of the folder found, if there was one.
        cond_channels: Channels of ``Batch.inputs`` in a data set of pairs, else 0.
    """

    cond_channels: int = 0
    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    fingerprint: str
    report: Scan | None = None
    options: Mapping[str, Any] = MappingProxyType({})  # that a folder was read with, to read it so again

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """The images at ``indices``, which must be of one group.

        With a ``generator``, one of each image's captions is drawn; without, it is the first.
        """

    def annotations(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Annotations:
        """What :meth:`batch` says of these images, where it can be had without them."""
        return Annotations(*self.batch(indices, generator)[1:4])

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """All that captions of some images, or of all, may say: what a tokenizer learns from. Empty without any."""
        return [text for text in self.annotations(range(len(self)) if indices is None else indices).captions if text]

    def source(self, index: int) -> int:
        """The first row with the same image: itself, unless a data set lists images several times."""
        return index

    @property
    def groups(self) -> list[list[int]]:
        """Indices of images of equal size: what may be batched together."""
        return [list(range(len(self)))]

    def key(self, index: int) -> str:
        """What decides on which side of a split an image falls; equal for copies of one image."""
        return str(index)

    def split(self, holdout: float = 0.05, seed: int = 0) -> tuple[Subset, Subset]:
        """(training, validation) parts. Stable: more images move few others; copies stay on one side.

        Args:
            holdout: The validation part, 0 to below 1; at least one image when above 0 and there are two, unless a
                class would lose all of its own.
            seed: Another split.
        """
        if not 0 <= holdout < 1:
            raise InputError(f"holdout must be at least 0 and below 1, got {holdout}. Try 0.05.")
        members: dict[str, list[int]] = {}
        for i in range(len(self)):
            members.setdefault(self.key(i), []).append(i)
        order = sorted(members, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode(errors="replace")).digest())
        wanted = max(round(holdout * len(self)), 1) if holdout > 0 else 0
        held: set[int] = set()
        for key in order[:-1]:  # one group of copies is always left to train on
            if len(held) >= wanted:
                break
            if len(held) + len(members[key]) <= wanted or len(members[key]) <= max(wanted // 5, 1):
                held.update(members[key])
        if wanted and not held and len(order) > 1:  # all groups of copies are large
            held.update(members[min(order[:-1], key=lambda key: len(members[key]))])
        if held and self.classes:  # a class that is held out whole could be asked for, and never learned
            labels = self.annotations(range(len(self))).labels.tolist()
            remaining = {labels[i] for i in range(len(self)) if i not in held}
            returned = {self.key(i) for i in held if labels[i] not in remaining}
            held = {i for i in held if self.key(i) not in returned}
        rows = [i for i in range(len(self)) if i not in held], sorted(held)
        return Subset(self, rows[0]), Subset(self, rows[1])

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        classes = f", {counted(len(self.classes), 'class')}" if self.classes else ""
        return f"{type(self).__name__}({self.name!r}: {counted(len(self), 'image')} of {size}{classes})"


class Subset(Dataset):
    """Some images of another data set."""

    def __init__(self, parent: Dataset, indices: Sequence[int]):
        self.parent, self.indices = parent, list(indices)
        self.name, self.shape, self.classes, self.report = parent.name, parent.shape, parent.classes, parent.report
        self.cond_channels, self.options = parent.cond_channels, parent.options

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`."""
        return self.parent.batch([self.indices[i] for i in indices], generator)

    def annotations(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Annotations:
        """See :meth:`Dataset.annotations`."""
        return self.parent.annotations([self.indices[i] for i in indices], generator)

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """See :meth:`Dataset.texts`: nothing of the parent's other images."""
        return self.parent.texts(self.indices if indices is None else [self.indices[i] for i in indices])

    @cached_property
    def groups(self) -> list[list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :attr:`Dataset.groups`."""
        position = {index: i for i, index in enumerate(self.indices)}
        groups = ([position[i] for i in group if i in position] for group in self.parent.groups)
        return [group for group in groups if group]

    def source(self, index: int) -> int:
        """See :meth:`Dataset.source`."""
        return self._first[self.parent.source(self.indices[index])]

    @cached_property
    def _first(self) -> dict[int, int]:
        return {self.parent.source(i): at for at, i in reversed(list(enumerate(self.indices)))}

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See :class:`Dataset`."""
        return digest(self.parent.fingerprint, self.indices)

    def key(self, index: int) -> str:
        """See :meth:`Dataset.key`."""
        return self.parent.key(self.indices[index])


class Images(Dataset):
    """Images held in memory or in a memory map, one uint8 array (n, c, h, w) for each size.

    Args:
        name: See :class:`Dataset`.
        arrays: The images; item i is the i-th row of all arrays in turn.
        labels: One per image, -1 for none.
        captions: All captions of each image.
        names: One per image.
        classes: Names of the labels.
        keys: See :meth:`Dataset.key`; by default the names.
        shape: By default that of the first array.
        fingerprint: By default a hash of everything given.
        report: See :class:`Dataset`.
    """

    def __init__(
        self,
        name: str,
        arrays: Sequence[np.ndarray],
        labels: Sequence[int] | None = None,
        captions: Sequence[Sequence[str]] | None = None,
        names: Sequence[str] | None = None,
        classes: Sequence[str] = (),
        keys: Sequence[str] | None = None,
        shape: tuple[int, int, int] | None = None,
        fingerprint: str | None = None,
        report: Scan | None = None,
    ):
        n = sum(map(len, arrays))
        if n == 0:
            raise DataError(f"{name!r} holds no images. Give a folder with PNG, JPEG or WebP files.")
        self.name, self.classes, self.report = name, tuple(classes), report
        self.shape = shape or tuple(arrays[0].shape[1:])
        self.arrays = list(arrays)
        self.labels = torch.full((n,), -1) if labels is None else torch.as_tensor(labels, dtype=torch.long)
        self.captions: list[tuple[str, ...]] = [()] * n if captions is None else [tuple(c) for c in captions]
        self.names = list(names) if names is not None else [str(i) for i in range(n)]
        self.keys = list(keys) if keys is not None else self.names
        self._starts = np.cumsum([0, *map(len, arrays)])
        self._fingerprint = fingerprint
        if not len(self.labels) == len(self.captions) == len(self.names) == len(self.keys) == n:
            raise InputError(
                f"{n} images need as many labels, captions and names, got {len(self.labels)}, "
                f"{len(self.captions)} and {len(self.names)}."
            )
        if n and int(self.labels.max()) >= max(len(self.classes), 1):
            raise InputError(f"Label {int(self.labels.max())} has no name: of names there are {len(self.classes)}.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def groups(self) -> list[list[int]]:
        """See :attr:`Dataset.groups`."""
        return [list(range(a, b)) for a, b in zip(self._starts, self._starts[1:], strict=False) if b > a]

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See :class:`Dataset`."""
        return self._fingerprint or digest(
            *(np.ascontiguousarray(a) for a in self.arrays), self.labels.tolist(), self.captions, self.classes
        )

    def key(self, index: int) -> str:
        """See :meth:`Dataset.key`."""
        return self.keys[index]

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`."""
        rows = self._rows(indices)
        group = np.searchsorted(self._starts, rows, side="right") - 1
        if (group != group[0]).any():
            raise InputError("These images differ in size. Take the indices of a batch from one of dataset.groups.")
        images = torch.from_numpy(self.arrays[group[0]][rows - self._starts[group[0]]])
        return Batch(images, *self.annotations(indices, generator))

    def annotations(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Annotations:
        """See :meth:`Dataset.annotations`."""
        rows = self._rows(indices)
        choice = torch.rand(len(rows), generator=generator).tolist() if generator is not None else [0.0] * len(rows)
        captions = [
            self.captions[i][int(u * len(self.captions[i]))] if self.captions[i] else ""
            for i, u in zip(rows, choice, strict=True)
        ]
        return Annotations(self.labels[rows], captions, [self.names[i] for i in rows])

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """See :meth:`Dataset.texts`."""
        rows = self.captions if indices is None or not self.captions else [self.captions[i] for i in indices]
        return [text for captions in rows for text in captions]

    def _rows(self, indices: Sequence[int]) -> np.ndarray:
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(self):
            raise InputError(f"batch takes indices from 0 to {len(self) - 1}, got {list(indices)[:8]}.")
        return rows


def common_size(dataset: Dataset) -> tuple[int, int]:
    """Height and width of more than half of the images, where one size is so common; else those of ``shape``."""
    largest = max(dataset.groups, key=len)
    if 2 * len(largest) <= len(dataset):
        return dataset.shape[1], dataset.shape[2]
    height, width = dataset.batch(largest[:1]).images.shape[-2:]
    return height, width


def digest(*values: object) -> str:
    """A short hash of arrays and of anything that JSON can hold."""
    h = hashlib.sha256()
    for value in values:
        h.update(value.data if isinstance(value, np.ndarray) else json.dumps(value).encode())
        h.update(b"\0")
    return h.hexdigest()[:32]


def measure_sigma_data(dataset: Dataset, n: int = 512) -> float:
    """Standard deviation of the pixels in [-1, 1]: EDM's sigma_data, from ``n`` images spread over the data."""
    count, total, squares = 0, 0.0, 0.0
    chosen = (
        {round(i * (len(dataset) - 1) / max(n - 1, 1)) for i in range(min(n, len(dataset)))}
        if n < len(dataset)
        else None
    )
    for group in dataset.groups:
        rows = [i for i in group if chosen is None or i in chosen]
        for start in range(0, len(rows), 64):
            x = to_tensor(dataset.batch(rows[start : start + 64]).images).double()
            count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
    std = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
    if std < 1e-3:
        raise DataError(f"All images of {dataset.name!r} are one flat color. There is nothing to learn from them.")
    return std
