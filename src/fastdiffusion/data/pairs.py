"""Pairs of images: what is given, and what shall come of it. Two folders with the same names, or one cut in half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import DataError, unknown
from ..io import images
from ..progress import Progress
from .cache import decode_once
from .dataset import Batch, Images, digest
from .folders import CHANNELS, checked_folder, checked_size, fit
from .scan import FORM, Fact, File, Scan, Skipped, find, inspect, twins

_VERSION = 2  # of the decoding below: a change of what it makes must not meet an old cache


class Pairs(Images):
    """Images with, for each, the image that it is to be made from (``Batch.inputs``).

    A :class:`~fastdiffusion.Learner` on pairs trains a model that works from the given image: any restoration or
    translation of which there are examples.

    Args:
        inputs: The folder of inputs; or of images that hold input and answer side by side, input on the left.
        answers: The folder of answers, under the same names (the endings may differ).
        size: Both are brought to squares of this side.
        mode: "RGB" or "L".

    Raises:
        DataError: no folder, or no pair in it; what has no partner of its shape is skipped, see ``report``.
    """

    def __init__(
        self,
        inputs: str | os.PathLike[str],
        answers: str | os.PathLike[str] | None = None,
        size: int = 64,
        mode: str = "RGB",
    ):
        if mode not in ("L", "RGB"):
            raise unknown("mode option", mode, ["L", "RGB"])
        size = checked_size(size)
        roots = [checked_folder(folder) for folder in (inputs, answers) if folder is not None]
        listings = [find(root) for root in roots]
        options = [_VERSION, size, CHANNELS[mode], len(roots)]
        key = digest(FORM, *(files for files, _, _ in listings))
        family = digest("pairs", *(str(root.resolve()) for root in roots), options)
        decoded = decode_once(family, key, _decode(roots, [files for files, _, _ in listings], size, mode))
        rows = [row for rows in decoded.facts for row in rows]
        facts = tuple(Fact(**row) for row in rows)
        skipped = sorted(
            [*(skip for _, some, _ in listings for skip in some), *(Skipped(**s) for s in decoded.skipped)]
        )
        report = Scan(roots[-1].resolve().name, facts, tuple(skipped), sum(len(others) for *_, others in listings))
        if not facts:
            raise DataError(f"No pairs in {', '.join(str(root) for root in roots)!r}:\n{report}")
        both = decoded.arrays[0]
        channels = both.shape[1] // 2
        super().__init__(
            report.name,
            [both[:, channels:]],
            names=[fact.name for fact in facts],
            keys=[facts[first].sha256 for first in twins(facts)],  # copies are on one side of a split
            fingerprint=digest(options, [fact.sha256 for fact in facts]),
            report=report,
        )
        self.inputs, self.cond_channels = both[:, :channels], channels

    def batch(self, indices, generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`."""
        rows = np.asarray(indices, dtype=np.int64)
        return super().batch(indices, generator)._replace(inputs=torch.from_numpy(self.inputs[rows]))


def _decode(
    roots: list[Path], files: list[list[File]], size: int, mode: str
) -> Iterator[tuple[np.ndarray | None, dict]]:
    """Input and answer stacked as channels, with the answer's facts; or None and the reason."""
    stems: list[dict[str, File]] = [{} for _ in files]
    for by_stem, some in zip(stems, files, strict=True):
        for file in some:
            if by_stem.setdefault(str(Path(file.name).with_suffix("")), file) is not file:
                yield None, Skipped(file.name, "has the name of another image, but for its end")._asdict()
    for stem, file in Progress(stems[-1].items(), "reading", unit="", delay=1):
        try:
            after, fact = inspect(roots[-1], file)
            if len(roots) == 1:
                half = after.width // 2
                before = after.crop((0, 0, half, after.height))
                after = after.crop((half, 0, 2 * half, after.height))
            elif stem in stems[0]:
                before, other = inspect(roots[0], stems[0][stem])
                fact = fact._replace(sha256=digest(other.sha256, fact.sha256))
            else:
                raise DataError("has no partner in the folder of inputs")
            if not same_shape(before.size, after.size):
                raise DataError(f"is {after.width}x{after.height} pixels, its partner {before.width}x{before.height}")
            yield np.concatenate([_square(before, size, mode), _square(after, size, mode)]), fact._asdict()
        except DataError as error:
            yield None, Skipped(file.name, str(error))._asdict()
    for stem in sorted(stems[0].keys() - stems[-1].keys()):
        yield None, Skipped(stems[0][stem].name, "has no partner in the folder of answers")._asdict()


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one ratio, to a pixel of either: only then do the images lie on each other."""
    (w, h), (v, g) = one, other
    return abs(w * g - v * h) < max(w, h, v, g)


def _square(image: Image.Image, size: int, mode: str) -> np.ndarray:
    return fit(images.flatten(image), size, "crop", mode)
