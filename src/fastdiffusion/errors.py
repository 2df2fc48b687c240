"""The errors a person can meet. Each message says what was wrong, what came, and what to type."""

from __future__ import annotations

import errno
import re
import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches

_INSIDE = {__name__.partition(".")[0], "torch", "jaxtyping", "contextlib"}  # this package, and what wraps its functions


class FastdiffusionError(Exception):
    """Base of every error that this library raises on purpose. The command line prints it and exits 2."""


class InputError(FastdiffusionError, ValueError):
    """A value, name or option that cannot be used."""


class DataError(FastdiffusionError):
    """A folder, image, caption file or data set that cannot be used."""


class CheckpointError(FastdiffusionError):
    """A model file or run folder that cannot be read or written."""


class UnavailableError(CheckpointError):
    """A file that may well be whole, but cannot be read here and now: no memory, no permission, a failing disk."""


class MissingExtra(FastdiffusionError, ImportError):
    """An optional package, font or data file that is not installed."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python, torch or the system, says that there was no memory left."""
    texts = ("out of memory", "not enough memory", "allocate memory", "os error 12", "allocation failed")
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, OSError | RuntimeError) and any(text in str(error).lower() for text in texts))
    )


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a registry, with the nearest names that are.

    >>> str(unknown("sampler", "dpmpp2m", ["euler", "dpmpp_2m"]))
    "No sampler named 'dpmpp2m'. Did you mean 'dpmpp_2m'?"
    """
    known = sorted(known)
    near = nearest(name, known)
    hint = f"Did you mean {near!r}?" if near else f"Known: {', '.join(known)}."
    return InputError(f"No {kind} named {str(name)!r}. {hint}")


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The name that was probably meant; None if none is near."""
    plain = {_plain(entry): entry for entry in sorted(known, reverse=True)}
    near = get_close_matches(_plain(str(name)), plain, n=1, cutoff=0.5 if len(str(name)) < 5 else 0.6)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    """A name without what is often written differently: capitals, signs between words, British spelling."""
    name = re.sub(r"[^\w+]|_", "", name.casefold()).replace("++", "pp")
    return re.sub(r"is(e[ds]?|ing|ation)$", r"iz\1", name).replace("colour", "color").replace("grey", "gray")


def counted(n: int, thing: str) -> str:
    """A number of things, in words: "1 image", "2 images", "3 classes"."""
    ends = "" if n == 1 else "es" if thing.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{n:,} {thing}{ends}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line outside this package which asked for what it is about."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def missing(thing: str, package: str, extra: str) -> MissingExtra:
    """The error for a feature whose optional package is not installed."""
    return MissingExtra(f"{thing} needs {package}. Install it with: pip install 'fastdiffusion[{extra}]'")
