"""One command for several images: files, folders and patterns, and where each result goes."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import DataError, FastdiffusionError, InputError

STREAM = Path("-")


class SomeFailed(FastdiffusionError):
    """Some of several jobs failed, and the others are done: the command line exits 1."""

    exit_code = 1


def each(images: Sequence[Path], out: Path | None, end: str, work: Callable[[Path, Path], str]) -> None:
    """Do one thing to each of the images that are meant, and go on after one that cannot be used.

    Args:
        images: Files, folders (all images in them), or patterns such as "*.jpg"; or "-" alone, the image on stdin.
        out: The result's file, for one image, or "-" for stdout; else a folder, where results have their images' names.
        end: By default the result of stdin goes to stdout, and others stand beside their images, as NAME-end.png.
        work: Takes an image and the file to write, and returns what to print.

    Raises:
        InputError: A place that cannot be written, before any work is done; the error of a single image.
        SomeFailed: Some of several images could not be used; they are listed.
    """
    if STREAM in (*images, out):
        return _piped(images, out, work)
    from ..data.scan import SUFFIXES
    from ..io.images import ENDS, checked_name
    from ..io.outputs import gather
    from ..progress import Progress, say

    found = gather(images, SUFFIXES)
    single = len(found) == 1 and not images[0].is_dir()
    as_file = out is not None and out.suffix != "" and not out.is_dir()
    if as_file and not single:
        raise InputError(f"{len(found)} images need a folder, and {str(out)!r} is a file's name. Try --out out.")

    def place(image: Path, below: Path) -> Path:
        if out is None:
            return image.with_name(f"{image.stem}-{end}.png")
        return out if as_file else out / below.with_suffix(below.suffix if below.suffix.lower() in ENDS else ".png")

    jobs = [(image, checked_name(place(image, below))) for image, below in found]
    if out is None and not single:  # what an earlier run made is no input of this one
        results = {path for _, path in jobs}  # and where images share a name but for its end, NAME-2 and so on
        jobs = [(image, path) for image, path in jobs if image not in results and _first(image) not in results]
    originals = {os.path.realpath(image) for image, _ in jobs}  # unlike Path.resolve, no error where links go round
    for _, path in jobs:
        if os.path.realpath(path) in originals:
            raise InputError(f"{path} is one of the originals. Choose another place with --out.")
    failed: list[str] = []
    for image, path in jobs if single else Progress(jobs, "images", unit=""):
        try:
            say(work(image, path))
        except FastdiffusionError as error:
            if single:
                raise
            failed.append(f"{image}: {error}")
    if failed:
        raise SomeFailed("\n  ".join([f"{len(failed)} of {len(jobs)} images failed:", *failed]))


def _first(path: Path) -> Path:
    """The name that was asked for of a file, which has a number where that was taken."""
    return path.with_name(re.sub(r"-\d+(?=\.\w+$)", "", path.name))


def _piped(images: Sequence[Path], out: Path | None, work: Callable[[Path, Path], str]) -> None:
    """One image from stdin, or to stdout as a PNG; what is to be said then goes to stderr."""
    from ..io.images import checked_name, opened

    if len(images) != 1 or images[0].is_dir():
        raise InputError("One image at a time goes through - (stdin and stdout). Give a folder with --out for several.")
    with tempfile.TemporaryDirectory() as folder:
        source, to_stdout = images[0], out is None or out == STREAM
        result = Path(folder) / "result.png" if out is None or to_stdout else checked_name(out)
        if source == STREAM:
            content = sys.stdin.buffer.read()
            try:
                kind = (opened(content).format or "png").replace("MPO", "jpg")  # a JPEG with the camera's previews
            except DataError as error:
                raise DataError(f"Cannot read the image on stdin: {error}.") from None
            source = Path(folder) / f"stdin.{kind.lower()}"
            source.write_bytes(content)
        report = work(source, result)
        if to_stdout:
            report = report.replace(str(result), "stdout")
            sys.stdout.buffer.write(result.read_bytes())
        print(report, file=sys.stderr)
