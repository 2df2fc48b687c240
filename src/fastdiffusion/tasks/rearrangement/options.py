"""The options of rearrangement, without torch: Python's keywords and the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass

from ... import choices
from ...errors import InputError
from ...options import DEVICE, SEED, option
from ..generation.options import plain_size

LEAST = 16  # pixels of a side
SAME, OTHER = 0.75, 0.3  # strengths by default: of the image's own size, and of another one


@dataclass(frozen=True)
class RearrangeOptions:
    """Options of :func:`fastdiffusion.rearrange`.

    Attributes:
        n: Number of images; image i has seed + i.
        strength: How freely the patches are laid out: up to a half they stay about where they are, at 1 they can be
            anywhere. By default 0.75, and 0.3 for another size, where the layout is kept as far as it goes.
        size: (height, width), "WIDTHxHEIGHT" or the side of a square; by default the image's. Things keep their own
            size: there is more or less of them.
        seed: Of image 0.
        device: Where to compute; by default the best there is.

    Raises:
        InputError: A number out of range.
    """

    n: int = option(4, "Number of images.", "-n", "--n")
    strength: float | None = option(
        None, "How freely: up to 0.5 all stays in place, 1 puts it anywhere. By default 0.75, with --size 0.3."
    )
    size: int | str | tuple[int, int] | None = option(
        None, "WIDTHxHEIGHT, to be filled with more or less of the image.", kind=str | None
    )
    seed: int = option(0, SEED)
    device: str | None = option(None, DEVICE, choices=choices.DEVICES)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", plain_size(self.size))
        strength = (SAME if self.size is None else OTHER) if self.strength is None else self.strength
        object.__setattr__(self, "strength", strength)
        if type(self.n) is not int or self.n < 1:
            raise InputError(f"n must be a whole number of at least 1, got {self.n!r}.")
        if not 0 <= strength <= 1:
            raise InputError(f"strength must be from 0 to 1, got {strength:g}. Try 0.75.")
