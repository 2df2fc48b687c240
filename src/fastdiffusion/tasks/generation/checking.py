"""A checker of finished images: somebody's own function, which says of each whether it is to be withheld."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError

Checker = Callable[[Tensor], Sequence[bool]]  # images (n, c, h, w) in [-1, 1], on the CPU; True withholds one


def load_checker(checker: Checker | str | None) -> Checker | None:
    """A function itself, or the one that "package.module:function" names, also of a module in this folder.

    Raises InputError where there is none. It is only ever named by who runs the command, and never by a recipe.
    """
    if not isinstance(checker, str):
        return checker
    module, _, name = checker.partition(":")
    if not module or not name.isidentifier():
        raise InputError(f"A checker is module:function, got {checker!r}. Example: my_checks:has_faces")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # somebody else's code
        raise InputError(f"The checker {checker!r} cannot be loaded: {error}.") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found):
        raise InputError(f"The checker {checker!r} is no function but a {type(found).__name__}.")
    answering: Any = found
    return answering


def flagged(images: Float[Tensor, "n *d"], checker: Checker | None) -> tuple[bool, ...]:
    """Which images are to be withheld. Raises InputError for a checker that fails, or does not answer for each."""
    if checker is None:
        return (False,) * len(images)
    try:
        answers = [bool(answer) for answer in checker(images.clone())]
    except Exception as error:  # somebody else's code; nothing is shown unchecked
        raise InputError(f"The checker failed, and no image is given out: {error or type(error).__name__}.") from error
    if len(answers) != len(images):
        raise InputError(f"The checker answered {len(answers)} times for {len(images)} images. It must for each.")
    return tuple(answers)


def withheld(images: Float[Tensor, "n *d"], flags: Sequence[bool]) -> Float[Tensor, "n *d"]:
    """The images, those that are flagged grey."""
    chosen = torch.tensor(flags, device=images.device).reshape(-1, *[1] * (images.ndim - 1))
    return torch.where(chosen, torch.zeros_like(images), images)
