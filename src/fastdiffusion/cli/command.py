"""A command's flags, made from the options of the verb that it calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_type_hints

import typer

from ..options import Flag
from .options import app


def flag(field: Field[Any], kind: Any) -> inspect.Parameter:
    """The parameter that typer makes a flag of."""
    known: Flag = field.metadata["flag"]
    dashed = field.name.replace("_", "-")
    switch = kind is bool and field.default is False
    names = known.names or ((f"--{dashed}",) if switch or kind is not bool else (f"--{dashed}/--no-{dashed}",))
    default = field.default if field.default_factory is MISSING else field.default_factory()
    typed = Annotated[known.kind or kind, typer.Option(*names, *known.hidden, help=known.help, metavar=known.metavar)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=typed)


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
        made = [flag(f, get_type_hints(kind)[f.name]) for kind, fs in zip(options, known, strict=True) for f in fs]
        arguments = [p.replace(kind=p.KEYWORD_ONLY) for p in own[len(options) :]]
        run.__signature__ = inspect.Signature([*arguments, *made])  # type: ignore[attr-defined] # what typer reads
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        app.command(name)(run)
        return function

    return register
