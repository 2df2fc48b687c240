"""The application that the commands register with: how it shows help, and what it makes of names that it does not know.

Plain text in place of typer's boxes: it is read at 40 columns and through a pipe, and costs a third of the time.
"""

from __future__ import annotations

import shlex
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

from .. import choices
from ..errors import InputError, nearest, unknown

PANELS = ("Create", "Restore", "Edit", "Train", "Measure", "Info")
FIRST = ("sample", "restore", "edit", "train", "scan", "evaluate", "demo")  # in their panels
SHARED = ("quiet", "json", "config", "write_config", "help")  # of every command, where they mean something
UsageError: Any = typer.BadParameter.__mro__[1]

# The names of 0.1, which go on working for one release without being listed.
OLD_COMMANDS = {
    "again": "reproduce",
    "vary": "variations",
    "remember": "index",
    "teach": "add-language",
    "unmark": "remove-watermark",
    "codec": "evaluate-autoencoder",
    "train-codes": "train-token-prior",
    "sample-codes": "sample-tokens",
    "train-draft": "train-caption-mean",
    "score": "clip-score",
    "samplers": "list-samplers",
}
OLD_FLAGS = {
    "--accumulate": "--grad-accumulation",
    "--back": "--reverse",
    "--begin": "--init-from",
    "--by": "--corruption",
    "--codebook": "--codebook-size",
    "--codec": "--autoencoder",
    "--density": "--sigma-distribution",
    "--ensemble": "--self-ensemble",
    "--further": "--resume-languages",
    "--given": "--inputs",
    "--guide": "--guidance",
    "--label-dropout": "--cond-dropout",
    "--lines": "--from-edges",
    "--memory": "--index",
    "--no-ensemble": "--no-self-ensemble",
    "--origin": "--source-prompt",
    "--text": "--captions",
    "--to": "--prompt",
    "--vary": "--sweep",
    "--way": "--method",
    "--weight": "--loss-weighting",
}
# What other programs call a verb, and what to type here.
ELSEWHERE = {
    "generate": "sample",
    "draw": "sample",
    "txt2img": "sample",
    "img2img": 'sample MODEL "PROMPT" --image IMAGE',
    "image-to-image": 'sample MODEL "PROMPT" --image IMAGE',
    "text-to-image": "sample",
    "outpaint": "sample",
    "fid": "evaluate",
    "metadata": "recipe",
    "inspect": "doctor MODEL",
    "style": "stylize",
    "retarget": "rearrange",
    "shuffle": "rearrange",
    "clip": "clip-score",
    "resume": "train DATA",
    "version": "--version",
}


class Commands(TyperGroup):
    """All commands, in panels."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One section for each panel, with whole sentences."""
        for panel in PANELS:
            listed = [(name, c) for name, c in self.commands.items() if not c.hidden and c.rich_help_panel == panel]  # type: ignore[attr-defined]
            listed.sort(key=lambda entry: entry[0] not in FIRST)
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(20), (c.help or "").split("\n")[0]) for name, c in listed], col_max=22)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in typer; an unknown name is answered from all that can be typed anywhere."""
        name = args[0].replace("_", "-")
        if name in self.commands:
            return super().resolve_command(ctx, [name, *args[1:]])
        if name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        raise unknown_command(args[0], [c for c in self.commands if not self.commands[c].hidden])


def unknown_command(name: str, commands: list[str]) -> InputError:
    """The error for a word that is no command: it may be another kind of name, or a prompt."""
    if " " in name.strip():
        return InputError(
            f"No command named {name!r}. To draw a prompt, type: fastdiffusion sample {shlex.quote(name)}"
        )
    meant = {command: command for command in commands} | ELSEWHERE
    meant |= {c: f"restore IMAGE --corruption {c}" for c in (*choices.CORRUPTIONS, *choices.UNDOES) if c not in meant}
    meant |= {s: f"sample MODEL --sampler {s}" for s in choices.SAMPLERS}
    meant |= {s: f"sample MODEL --schedule {s}" for s in choices.SCHEDULES}
    meant |= {net: f"train DATA --net {net}" for net in choices.NETS}
    meant |= {data: f"train {data}" for data in choices.DATASETS}
    meant |= {model: f'sample {model} "PROMPT"' for model in choices.MODELS}
    near = nearest(name, meant)
    if near is None:
        return InputError(f"No command named {name!r}. All of them: fastdiffusion --help")
    question = "" if near == name else f"Did you mean {near!r}? "
    return InputError(f"No command named {name!r}. {question}Type: fastdiffusion {meant[near]}")


class Command(TyperCommand):
    """A command with plain help, examples at its end, and the old spellings of its flags."""

    def make_parser(self, ctx: Any) -> Any:
        """The parser, which also takes the old spellings, where they are not the names of other flags."""
        parser = super().make_parser(ctx)
        known = parser._long_opt
        old_flags = {**OLD_FLAGS, **getattr(self.callback, "old_flags", {})}
        known.update({old: known[new] for old, new in old_flags.items() if new in known and old not in known})
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in typer, with the library's own sentence for a flag that is not known."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            name = getattr(error, "option_name", None)
            known = [spelling for p in self.params for spelling in (*p.opts, *p.secondary_opts) if spelling[:2] == "--"]
            if name is None or name in known:  # another error, such as a missing value
                raise
            raise unknown(f"option of {self.name}", name, known) from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then the command's own options, then those that all commands share."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Shared options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                sections["Arguments"].append((param.metavar or str(param.name), record[1]))  # type: ignore[attr-defined]
            else:
                sections["Shared options" if param.name in SHARED else "Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples, each on a line of its own that can be copied."""
        if examples := getattr(self.callback, "examples", ()):
            with formatter.section("Examples"):
                for example in examples:
                    formatter.write(f"{' ' * formatter.current_indent}{example}\n")


app = typer.Typer(
    name="fastdiffusion",
    cls=Commands,
    help="Draw, restore and edit images with diffusion models; train, measure and share models of your own.",
    epilog='Begin with: fastdiffusion sample "a grinning face". Any command with --help shows examples.',
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("_", "-"),  # --batch_size, as others write it
    },
)


def register_old_names() -> None:
    """Let every registered command answer to its old name."""
    callbacks = {info.name: info.callback for info in app.registered_commands}
    for old, new in OLD_COMMANDS.items():
        app.registered_commands.append(CommandInfo(old, cls=Command, callback=callbacks[new], hidden=True))
