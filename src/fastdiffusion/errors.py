"""The errors a person can meet. Each message says what was wrong, what came, and what to type."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class FastdiffusionError(Exception):
    """Base of every error that this library raises on purpose. The command line prints it and exits 2."""


class InputError(FastdiffusionError, ValueError):
    """A value, name or option that cannot be used."""


class DataError(FastdiffusionError):
    """A folder, picture, caption file or data set that cannot be used."""


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
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return InputError(f"No {kind} named {str(name)!r}. {hint}")


def missing(thing: str, package: str, extra: str) -> MissingExtra:
    """The error for a feature whose optional package is not installed."""
    return MissingExtra(f"{thing} needs {package}. Install it with: pip install 'fastdiffusion[{extra}]'")
