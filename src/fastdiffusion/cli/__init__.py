"""The command line: the library's verbs, under the same names. A flag is the parameter of the Python function.

Nothing heavy is imported before a command runs, so that help costs no time.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from ..errors import DataError, FastdiffusionError, InputError, out_of_memory
from ..version import __version__
from .app import app, register_old_names

# Each registers its commands, in the order of the help.
from . import training, classification, autoencoding, sampling, languages, restoration, text_image  # noqa: F401 # isort: skip
from . import editing, stylization, translation, info  # noqa: F401 # isort: skip


register_old_names()
_HANDLERS: list[Any] = []
LONGEST_WAIT = 20  # seconds between two processes of a group that come to the same error, on a busy machine


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for an error that the person can mend, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):  # names may hold signs that this terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.formatwarning = lambda message, *_, **__: f"fastdiffusion: {message}\n"  # the sentence, not our source
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="fastdiffusion")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except FastdiffusionError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, InputError | DataError):
            _leave_it_to_the_first()
        _say(str(error))
        return getattr(error, "exit_code", 2)
    except Exception as error:  # a place without permission, a full disk, no memory: not worth a traceback
        known = _sentence(error)
        if debug or known is None:
            raise
        _say(known)
        return 2
    return 0


def _leave_it_to_the_first() -> None:
    """Of several processes that fail alike, wait for the first to say so: torchrun then ends this one.

    One that left sooner would have torchrun end the first before it has spoken. Whoever is still here after the wait
    is alone with its error.
    """
    rank = os.environ.get("RANK", "0")
    if rank.isdecimal() and int(rank) > 0:
        time.sleep(LONGEST_WAIT)


def _sentence(error: Exception) -> str | None:
    """What an error of the system means for the person; None for one that is a fault of this program."""
    if out_of_memory(error):
        return "There is not enough memory. Try a smaller --batch-size, -n or --size; restore also takes --tile 256."
    if isinstance(error, OSError) and error.filename is not None:
        return f"Cannot use {str(error.filename)[:200]!r}: {error.strerror}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        return f"Cannot write the output: {error.strerror}."
    return None


def _say(text: str) -> None:
    """Print to where errors go, if that can still be written."""
    with suppress(OSError, ValueError):
        print(f"fastdiffusion: {text}", file=sys.stderr, flush=True)


def open_streams() -> None:
    """Give standard streams that were closed a place: what is opened next would take their numbers, and their text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (for the whole run)


def program() -> NoReturn:
    """The command as a process.

    Its objects are kept out of the last collection of garbage: with torch loaded that takes 0.5 of 1.8 CPU
    seconds (bench/exit.py), for memory that the system takes back anyway.
    """
    open_streams()
    tune_malloc()
    explain_bus_errors()
    code = main()
    gc.freeze()
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:  # a reader that has gone, as in: fastdiffusion about | head
            _say(f"Cannot write the output: {error.strerror}.")
            code = code or 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of it has no place to go
    sys.exit(code)


def tune_malloc() -> None:
    """Have glibc keep the memory of large tensors for the next ones, instead of mapping it anew for each.

    A training step's tensors are the next one's: 12 % faster at the same peak (bench/memory.py).
    """
    if sys.platform != "linux":
        return
    import ctypes

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # musl has none
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its highest


CUT = b"fastdiffusion: A file that was being read became shorter, or its disk failed. Run the same command again.\n"


def explain_bus_errors() -> None:
    """Have a sentence instead of silence where a file that is mapped into memory is cut meanwhile, or its disk fails.

    Python cannot handle SIGBUS: its own handlers run after the instruction that failed, which fails again for ever.
    """
    if not hasattr(signal, "SIGBUS"):  # Windows
        return
    import ctypes

    def end(number: int) -> None:
        os.write(2, CUT)
        os._exit(2)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _HANDLERS.append(handler)  # C keeps only its address
    ctypes.CDLL(None).signal(signal.SIGBUS, handler)


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """What goes before any command."""
