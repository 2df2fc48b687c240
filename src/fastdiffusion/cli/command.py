"""A command, made from the options of the verb that it calls."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import ArgumentInfo

from ..errors import InputError
from ..io.config import running
from ..options import Flag
from .app import Command, app

KINDS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
OTHER = "_as_option"  # ends the name of a parameter that is a second way to give another one
CONFIG = "Read settings from this run.toml; what is typed here wins."

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and what the command was asked for.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and all else to stderr.")]
WriteConfig = Annotated[
    Path | None, typer.Option("--write-config", metavar="PATH", help="Also write the settings, for --config.")
]


def flags(field: Field[Any], kind: Any) -> list[inspect.Parameter]:
    """What typer makes a field's flag of, or its argument; ``kind`` is its type on the command line."""
    known: Flag = field.metadata["flag"]
    dashed = field.name.replace("_", "-")
    switch = kind is bool and field.default is False
    names = known.names or ((f"--{dashed}",) if switch or kind is not bool else (f"--{dashed}/--no-{dashed}",))
    default = field.default if field.default_factory is MISSING else field.default_factory()
    shown = {"help": known.sentence, "autocompletion": offer(known.choices) if known.choices else None}
    if names[0].startswith("-"):
        made: Any = typer.Option(*names, metavar=known.metavar or kind_name(kind, bool(known.choices)), **shown)
        return [parameter(field.name, kind, made, default)]
    made = [parameter(field.name, kind, typer.Argument(metavar=names[0], **shown), default)]
    if len(names) > 1:
        made.append(
            parameter(
                field.name + OTHER, kind, typer.Option(*names[1:], hidden=True, help=f"The same as {names[0]}."), None
            )
        )
    return made


def parameter(name: str, kind: Any, shown: Any, default: Any) -> inspect.Parameter:
    """A keyword that typer reads."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


def kind_name(kind: Any, choices: bool) -> str | None:
    """What stands for a value in the help: N for a whole number, X for another, NAME for one of several names."""
    if kind in KINDS:
        return "NAME" if choices else KINDS[kind]
    return next((shown for inner in getattr(kind, "__args__", ()) if (shown := kind_name(inner, choices))), None)


def offer(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """The shell's completion from a list; of names with commas between them, of the last one."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{choice}" for choice in choices if choice.startswith(last)]

    return complete


def kind_of(options: type, field: Field[Any]) -> Any:
    """A field's type on the command line. Only there it is resolved: Python's may name what needs torch."""
    if field.metadata["flag"].kind is not None or not isinstance(field.type, str):
        return field.metadata["flag"].kind or field.type
    owner = next(kind for kind in options.__mro__ if field.name in inspect.get_annotations(kind))
    return eval(field.type, vars(sys.modules[owner.__module__]))


def command(
    name: str,
    *options: Callable[..., Any],
    panel: str,
    examples: Sequence[str],
    answers: bool = False,
    document: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command that takes the flags of each options dataclass, and its own parameters.

    The decorated function gets one filled dataclass for each of ``options``, then its own parameters by name:

        @command("sample", SampleOptions, panel="Create", examples=['fastdiffusion sample "a red heart"'])
        def sample(chosen: SampleOptions, model: ModelName = "emoji", out: Out = Path("out")) -> None: ...

    Args:
        name: What is typed.
        options: Dataclasses of :func:`fastdiffusion.options.option`.
        panel: Where the help lists it, one of ``app.PANELS``.
        examples: Two or three lines for the end of its help.
        answers: Whether what it prints is its result: ``--quiet`` leaves that, and there is no run to write down.
        document: Whether it takes ``--json``: the function returns what is then printed.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        known = [[f for f in fields(kind) if not f.metadata["flag"].python_only] for kind in options]  # type: ignore[arg-type]

        def run(**typed: Any) -> None:
            quiet, as_json = typed.pop("quiet"), typed.pop("json", False)
            place = typed.pop("write_config", None)
            typed.pop("config", None)  # has been read
            for second in [key for key in typed if key.endswith(OTHER)]:
                value = typed.pop(second)
                typed[second.removesuffix(OTHER)] = typed[second.removesuffix(OTHER)] if value is None else value
            settings = dict(typed)
            filled = [
                kind(**{f.name: typed.pop(f.name) for f in own}) for kind, own in zip(options, known, strict=True)
            ]
            drawn = {key: value for chosen in filled for key, value in vars(chosen).items() if isinstance(value, int)}
            running.set((name, settings | {key: drawn[key] for key in settings if settings[key] == "random"}))
            if place is not None:
                if place.exists():
                    raise InputError(f"{str(place)!r} is there already. Choose another name for --write-config.")
                keep_config(place)
            launch_processes(max(getattr(chosen, "procs", 1) for chosen in (*filled, None)))
            quiet = quiet or os.environ.get("RANK", "0") != "0"  # of several processes, one speaks
            with printing(quiet and not answers, quiet, as_json):
                result = function(*filled, **typed)
            if as_json:
                print(json.dumps(result, indent=2, ensure_ascii=False))

        hints = get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in list(inspect.signature(function).parameters.values())]
        made = [
            p for kind, fs in zip(options, known, strict=True) for f in fs for p in flags(f, kind_of(kind, f))  # type: ignore[arg-type]
        ]  # fmt: skip
        added = [with_metavar(p.replace(kind=p.KEYWORD_ONLY)) for p in own[len(options) :]]
        places = [
            p for p in added if any(isinstance(m, ArgumentInfo) for m in getattr(p.annotation, "__metadata__", ()))
        ]
        ordered = [*places, *made, *(p for p in added if p not in places), *shared(name, answers, document)]
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined] # what typer reads
        run.__name__ = function.__name__
        run.__doc__ = inspect.cleandoc(function.__doc__ or "")
        old = {old: f"--{f.name.replace('_', '-')}" for fs in known for f in fs for old in f.metadata["flag"].hidden}
        run.old_flags, run.examples = old, tuple(examples)  # type: ignore[attr-defined] # read by app.Command
        app.command(name, cls=Command, rich_help_panel=panel)(run)
        return function

    return register


def launch_processes(procs: int) -> None:
    """Run the command in so many processes instead, unless this is one of them."""
    if procs < 1:
        raise InputError(f"--procs must be at least 1, got {procs}. Leave it out to train in one process.")
    if procs > 1 and os.environ.get("WORLD_SIZE", "1") == "1":
        from ..training.distributed import launch

        raise typer.Exit(launch(procs, ["-m", "fastdiffusion", *sys.argv[1:]]))


def say_experimental(why: str) -> None:
    """The label of a result that is not to be relied on yet, beside the result."""
    print(f"Experimental: {why}", file=sys.stderr)


def with_metavar(own: inspect.Parameter) -> inspect.Parameter:
    """A command's own parameter, its value named as those of options dataclasses are."""
    kind, *metadata = getattr(own.annotation, "__origin__", None), *getattr(own.annotation, "__metadata__", ())
    for shown in metadata:
        if shown.metavar is None:
            shown.metavar = kind_name(kind, shown.autocompletion is not None)
    return own


def shared(name: str, answers: bool, document: bool) -> Iterator[inspect.Parameter]:
    """The flags of every command."""
    if document:
        yield parameter("json", *Json.__args__, *Json.__metadata__, False)  # type: ignore[attr-defined]
    yield parameter("quiet", *Quiet.__args__, *Quiet.__metadata__, False)  # type: ignore[attr-defined]
    if not answers:

        def read_settings(ctx: typer.Context, value: Path | None) -> Path | None:
            if value is not None and not ctx.resilient_parsing:
                from ..io.config import read_config

                own = [p for p in ctx.command.params if p.name not in ("help", "config", "write_config")]
                settings = read_config(value, name, [str(p.name) for p in own])
                lists = {p.name for p in own if p.multiple or p.nargs == -1}  # type: ignore[attr-defined]
                ctx.default_map = {k: [v] if k in lists and isinstance(v, str) else v for k, v in settings.items()}
            return value

        option = typer.Option(
            "--config", metavar="PATH", help=CONFIG, is_eager=True, callback=read_settings, expose_value=False
        )
        yield parameter("config", Path | None, option, None)
        yield parameter("write_config", *WriteConfig.__args__, *WriteConfig.__metadata__, None)  # type: ignore[attr-defined]


def keep_config(path: Path) -> None:
    """Write the settings of the running command, so that ``--config`` does it again."""
    from ..io.config import write_config

    write_config(path, *running.get())


@contextmanager
def printing(silent: bool, quiet: bool, as_json: bool) -> Iterator[None]:
    """Where a command's sentences go: with --quiet nowhere, with --json to stderr. Errors are printed elsewhere."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if quiet else sys.stderr
        if silent or as_json:
            stack.enter_context(redirect_stdout(nowhere))
        if quiet:
            stack.enter_context(redirect_stderr(nowhere))
        yield
