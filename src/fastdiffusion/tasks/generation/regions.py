"""Prompts for parts of an image, "left: a tree; right: a house": how they are written. Pure Python."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...errors import InputError, unknown

EXAMPLE = 'Example: "left: a tree; right: a house".'
MOST = 16


class Place(NamedTuple):
    """A part of an image, each side from 0 (left, top) to 1."""

    left: float
    top: float
    right: float
    bottom: float

    def box(self, height: int, width: int, step: int = 1) -> tuple[int, int, int, int]:
        """The same in pixels at multiples of ``step``, (left, top, right, bottom); InputError if nothing is left."""
        sides = zip(self, (width, height, width, height), strict=True)
        left, top, right, bottom = (round(part * side / step) * step for part, side in sides)
        if left >= right or top >= bottom:
            raise InputError(f"The region {self.left:g},{self.top:g},{self.right:g},{self.bottom:g} is too small here.")
        return left, top, right, bottom


WORDS = {
    "left": Place(0, 0, 0.5, 1), "right": Place(0.5, 0, 1, 1), "top": Place(0, 0, 1, 0.5),
    "bottom": Place(0, 0.5, 1, 1), "top left": Place(0, 0, 0.5, 0.5), "top right": Place(0.5, 0, 1, 0.5),
    "bottom left": Place(0, 0.5, 0.5, 1), "bottom right": Place(0.5, 0.5, 1, 1),
    "center": Place(0.25, 0.25, 0.75, 0.75), "all": Place(0, 0, 1, 1),
}  # fmt: skip


def parse_regions(text: str) -> list[tuple[Place, str]]:
    """The places and their prompts, in order.

    A place is a word (left, right, top, bottom, top left, ..., center, all) or left,top,right,bottom as parts of the
    image from 0 to 1. Between two regions stands a semicolon, and ``\\;`` is the sign itself. Raises InputError.
    """
    regions = []
    for part in re.split(r"(?<!\\);", text):
        if not part.strip():
            continue
        where, colon, prompt = part.partition(":")
        if not colon or not prompt.strip():
            raise InputError(f"A region is a place and what is there, got {part.strip()!r}. {EXAMPLE}")
        regions.append((_place(where), prompt.replace("\\;", ";").strip()))
    if not 1 <= len(regions) <= MOST:
        raise InputError(f"There are from 1 to {MOST} regions, got {len(regions)}. {EXAMPLE}")
    return regions


def _place(text: str) -> Place:
    name = " ".join(text.lower().replace("-", " ").replace("centre", "center").split())
    if name in WORDS:
        return WORDS[name]
    try:
        numbers = [float(number) for number in re.split(r"[,\s]+", name.strip())]
    except ValueError:
        raise unknown("place", text.strip(), WORDS) from None
    if len(numbers) != 4 or not (0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1):
        raise InputError(
            f"A place is a word or left,top,right,bottom from 0 to 1, got {text.strip()!r}. Example: 0,0,0.5,1"
        )
    return Place(*numbers)
