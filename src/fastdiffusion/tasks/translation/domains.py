"""What translations are learned from: pairs of images, or two unpaired domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from ... import data as datasets
from ...data import Dataset, selection
from ...data.pairs import same_shape
from ...errors import DataError, InputError, counted, warn
from ...io.images import to_tensor
from ...nets.translators import edges
from ...noise import Stream, generator


class Domains(NamedTuple):
    """Images of two kinds, the last ``held`` of each kept for previews and measuring.

    Attributes:
        a: Sources; None where they are made on the fly, as the edges of ``b``.
        b: Targets; if ``paired``, row i belongs to row i of ``a``.
        held: How many are never drawn.
        paired: Whether rows belong together.
        fingerprint: Of the data.
        names: Of the two domains.
    """

    a: UInt8[Tensor, "n c h w"] | None
    b: UInt8[Tensor, "m c h w"]
    held: int
    paired: bool
    fingerprint: str
    names: tuple[str, str]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many there are of each, without what is held."""
        return len(self.b if self.a is None else self.a) - self.held, len(self.b) - self.held

    def batch(self, first: Tensor, second: Tensor, mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sources and targets at these rows, in [-1, 1] and of equally many channels."""
        b = to_tensor(self.b[second])
        a = edges(b) if self.a is None else to_tensor(self.a[first])
        channels = max(a.shape[1], b.shape[1])
        if {a.shape[1], b.shape[1]} - {1, channels}:
            raise DataError(f"Sources have {a.shape[1]} channels and targets {b.shape[1]}. Make both of one kind.")
        a, b = (x.expand(-1, channels, -1, -1) for x in (a, b))
        if mirrored is None:
            return a, b
        where = mirrored[:, None, None, None]
        return torch.where(where, a.flip(3), a), torch.where(where, b.flip(3), b)

    def draw(self, n: int, seed: int, step: int, mirror: bool) -> tuple[Tensor, Tensor]:
        """A step's batch, half of it mirrored if ``mirror``."""
        g, (most, other) = generator(seed, Stream.DOMAIN_ROWS, step), self.sizes
        first = torch.randint(most, (n,), generator=g)
        second = first if self.paired else torch.randint(other, (n,), generator=g)
        return self.batch(first, second, (torch.rand(n, generator=g) < 0.5) & mirror)

    def kept(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Images that are not trained on, the first ``n``."""
        rows = torch.arange(self.held)[:n]
        return self.batch(self.sizes[0] + rows, self.sizes[1] + rows)


def domains(
    source: Dataset | str,
    target: Dataset | str | None = None,
    paired: bool = True,
    classes: str | Sequence[str] | None = None,
    size: int | None = None,
    holdout: float = 0.05,
    seed: int = 0,
) -> Domains:
    """The two domains that a translation is learned between.

    Args:
        source: Images to translate from; or, without ``target``, those whose edges are the source.
        target: Images to translate to. If ``paired``, files of one name belong together.
        paired: Whether it matters which belongs to which.
        classes: Two classes of ``source``, "sneaker,bag", in place of a target.
        size: Side of the images in pixels; folders are cut to squares.
        holdout: Fraction that is kept aside.
        seed: Of that choice.

    Raises:
        DataError: No pairs, or hardly any images.
        InputError: Classes that are not there, or that a method cannot use; images of two sizes.
    """
    if not 0 <= holdout < 1:
        raise InputError(f"holdout must be at least 0 and below 1, got {holdout}. Try 0.05.")
    a = squares(source, size)
    mark = a.fingerprint
    if classes is not None:
        if paired or target is not None:
            raise InputError("Two classes are two unpaired domains: use method='cyclegan', and no second data set.")
        one, two, names = _of_classes(a, classes, seed)
    elif target is not None:
        b = squares(target, size)
        mark, names = f"{a.fingerprint} {b.fingerprint}", (a.name, b.name)
        rows = _pairs(a, b, seed) if paired else (selection.choose(a, len(a), seed), selection.choose(b, len(b), seed))
        one, two = (selection.load_images(d, r)[0] for d, r in zip((a, b), rows, strict=True))
    elif paired:
        learned, held = a.split(holdout, seed)
        if not len(held) or len(learned) < 2:
            raise DataError(
                f"{counted(len(learned), 'image')} to learn from and {len(held)} held out: give more, or holdout 0.05."
            )
        mark = learned.fingerprint
        pixels = selection.load_images(a, [*learned.indices, *held.indices])[0]
        return Domains(None, pixels, len(held), True, mark, ("edges", a.name))
    else:
        raise InputError("Unpaired translation needs a second domain: another folder, or two classes of this one.")
    if one.shape[2:] != two.shape[2:]:
        sizes = " and ".join(f"{w}x{h}" for h, w in (one.shape[2:], two.shape[2:]))
        raise InputError(f"{names[0]} and {names[1]} have images of {sizes} pixels. Give one size for both.")
    least = min(len(one), len(two))
    if least < 2:
        raise DataError(f"There are {len(one)} and {len(two)} images to learn from; at least 2 of each are needed.")
    return Domains(one, two, max(int(holdout * least), 1), paired, mark, names)


def squares(data: Dataset | str, size: int | None) -> Dataset:
    """A data set by name, or a folder whose images are cut to squares."""
    folder = isinstance(data, str) and data not in datasets.DATASETS and not data.startswith("hf:")
    return datasets.load(data, size, **({"aspect": "crop"} if folder else {}))


def _of_classes(a: Dataset, classes: str | Sequence[str], seed: int) -> tuple[Tensor, Tensor, tuple[str, str]]:
    names = [name.strip() for name in (classes.split(",") if isinstance(classes, str) else classes)]
    if len(set(names)) != 2 or not set(names) <= set(a.classes):
        known = ", ".join(a.classes) or "none"
        raise InputError(f"classes must be two of {a.name!r}, got {', '.join(names)}. Known: {known}.")
    order = selection.choose(a, len(a), seed)
    label = {i: int(v) for group in a.groups for i, v in zip(group, a.batch(group).labels.tolist(), strict=True)}
    one, two = (selection.load_images(a, [i for i in order if label[i] == a.classes.index(n)])[0] for n in names)
    return one, two, (names[0], names[1])


def _pairs(a: Dataset, b: Dataset, seed: int) -> tuple[list[int], list[int]]:
    """Rows of equal file names, whatever their endings, in an order of their own."""
    here, there = (_stems(d) for d in (a, b))
    both = sorted(here.keys() & there.keys())
    if len(both) < 2:
        raise DataError(
            f"{a.name!r} and {b.name!r} have {len(both)} names in common. A pair are two files of one name, one in "
            "each folder; for images that are no pairs use method='cyclegan'."
        )
    if alone := sorted(here.keys() ^ there.keys()):
        warn(f"Left out: {counted(len(alone), 'image')} without a partner, {alone[0]!r} first.")
    one, other = (_sides(d) for d in (a, b))
    for name in (name for name in both if name in one and name in other):
        (w, h), (v, g) = one[name], other[name]
        if not same_shape((w, h), (v, g)):
            raise DataError(
                f"{name!r} is {w}x{h} pixels in {a.name!r} and {v}x{g} in {b.name!r}. The two of a pair must have one "
                "shape (their sizes may differ), so that each place has its counterpart. Cut them alike first."
            )
    both = [both[i] for i in torch.randperm(len(both), generator=generator(seed)).tolist()]
    return [here[name] for name in both], [there[name] for name in both]


def _stems(data: Dataset) -> dict[str, int]:
    """Row by name without its ending; of two files that differ in that alone, the first."""
    rows: dict[str, int] = {}
    twice = []
    for i, name in _named(data):
        if rows.setdefault(str(Path(name).with_suffix("")), i) != i:
            twice.append(name)
    if twice:
        some = f"{len(twice)} images of {data.name!r}"
        warn(f"{some} share their name with another and are left out, {twice[0]!r} first.")
    return rows


def _sides(data: Dataset) -> dict[str, tuple[int, int]]:
    """Width and height of each file, where images come from files."""
    facts = data.report.images if data.report is not None else ()
    return {str(Path(fact.name).with_suffix("")): (fact.width, fact.height) for fact in facts}


def _named(data: Dataset) -> list[tuple[int, str]]:
    return [pair for group in data.groups for pair in zip(group, data.batch(group).names, strict=True)]
