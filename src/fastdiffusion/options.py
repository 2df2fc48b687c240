"""Options: the settings of a verb as one frozen dataclass.

Python's keywords, the command line's flags and the app's controls are all made from its fields, so that none of them is
written twice:

    @dataclass(frozen=True)
    class SampleOptions:
        steps: int = option(12, "Solver steps.")

    def sample(model, prompt=None, **options):
        chosen = fill(SampleOptions, prompt=prompt, **options)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from .errors import unknown

Options = TypeVar("Options")


@dataclass(frozen=True)
class Flag:
    """How the command line shows an option.

    Attributes:
        help: One short sentence.
        names: Spellings, such as ("-n", "--n"); by default ``--`` and the field's name with hyphens. One without a
            hyphen, such as "PROMPT", makes it a positional argument that is shown so.
        hidden: Old spellings that are still understood.
        kind: Its type there, where that differs from Python's: a ``Path`` for what may also be an image.
        metavar: What stands for the value in the help.
        python_only: Whether it cannot be typed, such as a function.
    """

    help: str
    names: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    kind: Any = None
    metavar: str | None = None
    python_only: bool = False


def option(
    default: Any,
    help: str,
    *names: str,
    hidden: Sequence[str] = (),
    kind: Any = None,
    metavar: str | None = None,
    python_only: bool = False,
) -> Any:
    """A field of an options dataclass; see :class:`Flag`. A default that can change is given as a function."""
    flag = Flag(help, names, tuple(hidden), kind, metavar, python_only)
    if isinstance(default, Callable):
        return field(default_factory=default, metadata={"flag": flag})
    return field(default=default, metadata={"flag": flag})


def fill(options: type[Options], **values: Any) -> Options:
    """``options(**values)``; raises InputError with the nearest name for one that there is not."""
    known = [f.name for f in fields(options)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            kind = options.__name__.removesuffix("Options").removesuffix("Config").lower()
            raise unknown(f"option of {kind}", name, known)
    return options(**values)
