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

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from .errors import InputError, unknown

Options = TypeVar("Options")

# The help of options that many verbs have.
DEVICE = "Where to compute: cpu, cuda, mps; by default the best there is."
FRESH = "Start anew and forget what the folder holds, or go on with it."
PRECISION = "In what to compute: float32, bfloat16, or auto: bfloat16 on a GPU that has it."
SEED = "Seed of everything random."


@dataclass(frozen=True)
class Flag:
    """How the command line shows an option.

    Attributes:
        help: One sentence, with its full stop.
        names: Spellings, such as ("-n", "--n"); by default ``--`` and the field's name with hyphens. A first one
            without a hyphen, such as "PROMPT", makes it a positional argument that is shown so; the others are then
            understood as options, too.
        hidden: Old spellings that are still understood.
        kind: Its type there, where that differs from Python's: a ``Path`` for what may also be an image.
        metavar: What stands for the value in the help.
        choices: Values that are offered, in the help and by the shell's completion. The verb itself refuses others.
        python_only: Whether it cannot be typed, such as a function.
    """

    help: str
    names: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    kind: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    python_only: bool = False

    @property
    def sentence(self) -> str:
        """The help, with the choices that it does not name."""
        named = all(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", self.help) for name in self.choices)
        return self.help if named else f"{self.help} One of: {', '.join(self.choices)}."


def option(
    default: Any,
    help: str,
    *names: str,
    hidden: Sequence[str] = (),
    kind: Any = None,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    python_only: bool = False,
) -> Any:
    """A field of an options dataclass; see :class:`Flag`. A default that can change is given as a function."""
    flag = Flag(help, names, tuple(hidden), kind, metavar, tuple(choices), python_only)
    if isinstance(default, Callable):
        return field(default_factory=default, metadata={"flag": flag})
    return field(default=default, metadata={"flag": flag})


def fill(options: type[Options], **values: Any) -> Options:
    """``options(**values)``; None for what cannot be None is its default.

    Raises InputError for a name that there is not, with the nearest, and for a text or a number that is none.
    """
    known = {f.name: str(f.type) for f in fields(options)}  # type: ignore[arg-type]
    flags = {f.name: f.metadata.get("flag") for f in fields(options)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            kind = options.__name__.removesuffix("Options").removesuffix("Config").lower()
            raise unknown(f"option of {kind}", name, list(known))
        as_text = isinstance(value, str) and getattr(flags[name], "kind", None) is str  # such as seed="random"
        if value is not None and not as_text and not _fits(known[name].removesuffix(" | None"), value):
            what = {"str": "a text", "int": "a whole number"}.get(known[name].removesuffix(" | None"), "a number")
            raise InputError(f"{name} must be {what}, got {value!r}.")
    absent = [
        name for name, value in values.items() if value is None and known[name] in ("str", "int", "float", "bool")
    ]
    return options(**{name: value for name, value in values.items() if name not in absent})


def changed(options: Any, names: Iterable[str]) -> list[str]:
    """Those of the names whose option is not what it is by default."""
    usual = type(options)()
    return [name for name in names if getattr(options, name) != getattr(usual, name)]


def refuse(options: Any, names: Iterable[str], where: str) -> None:
    """Raise InputError if one of the options that do nothing ``where``, "with a net of a style", was given."""
    if idle := changed(options, names):
        many = len(idle) > 1
        raise InputError(
            f"{' and '.join([', '.join(idle[:-1])] * many + idle[-1:])} {'do' if many else 'does'} nothing {where}. "
            f"Leave {'them' if many else 'it'} out."
        )


def _fits(kind: str, value: Any) -> bool:
    """Whether a value may be of a type, where that is a text or a number; options check all others themselves."""
    if kind == "str":
        return isinstance(value, str | os.PathLike)
    if kind not in ("int", "float"):
        return True
    return hasattr(value, "__float__") and (kind == "float" or value % 1 == 0)
