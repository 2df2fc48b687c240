"""A command's flags, made from the options of the verb that it calls."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import ArgumentInfo

from ..options import Flag
from .options import app


def flag(field: Field[Any], kind: Any) -> inspect.Parameter:
    """The parameter that typer makes a flag of, or an argument; ``kind`` is its type on the command line."""
    known: Flag = field.metadata["flag"]
    dashed = field.name.replace("_", "-")
    switch = kind is bool and field.default is False
    names = known.names or ((f"--{dashed}",) if switch or kind is not bool else (f"--{dashed}/--no-{dashed}",))
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if names[0].startswith("-"):
        shown: Any = typer.Option(*names, help=known.help, metavar=known.metavar)
    else:
        shown = typer.Argument(help=known.help, metavar=names[0])
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
    )


def kind_of(options: type, field: Field[Any]) -> Any:
    """A field's type on the command line. Only there it is resolved: Python's may name what needs torch."""
    if field.metadata["flag"].kind is not None or not isinstance(field.type, str):
        return field.metadata["flag"].kind or field.type
    owner = next(kind for kind in options.__mro__ if field.name in inspect.get_annotations(kind))
    return eval(field.type, vars(sys.modules[owner.__module__]))


def command(name: str, *options: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that takes the flags of each options dataclass, and its own parameters.

    The decorated function gets one filled dataclass for each of ``options``, then its own parameters by name:

        @command("sample", SampleOptions)
        def sample(chosen: SampleOptions, model: ModelName = "emoji", out: Out = Path("out")) -> None: ...
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        known = [[f for f in fields(kind) if not f.metadata["flag"].python_only] for kind in options]  # type: ignore[arg-type]

        def run(**flags: Any) -> None:
            filled = [
                kind(**{f.name: flags.pop(f.name) for f in own}) for kind, own in zip(options, known, strict=True)
            ]
            function(*filled, **flags)

        hints = get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in list(inspect.signature(function).parameters.values())]
        made = [flag(f, kind_of(kind, f)) for kind, fs in zip(options, known, strict=True) for f in fs]  # type: ignore[arg-type]
        added = [p.replace(kind=p.KEYWORD_ONLY) for p in own[len(options) :]]
        places = [
            p for p in added if any(isinstance(m, ArgumentInfo) for m in getattr(p.annotation, "__metadata__", ()))
        ]
        ordered = [*places, *made, *(p for p in added if p not in places)]
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined] # what typer reads
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        old = {old: f"--{f.name.replace('_', '-')}" for fs in known for f in fs for old in f.metadata["flag"].hidden}
        run.old_flags = old  # type: ignore[attr-defined] # understood by cli.options.Command
        app.command(name)(run)
        return function

    return register
