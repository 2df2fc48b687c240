"""Where results go: a file that is there is never overwritten by another result, and many files are found at once."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import DataError, InputError
from . import metadata, untrusted_json
from .images import encoded, read_image, read_recipe, save_sidecar, to_array, to_pil, write_bytes

BATCHING = ("n", "batch_size")  # parameters that say what else was made, and not what this image is
_NEAR = 2  # of 255: what floating-point kernels may round otherwise in another batch


def numbered(path: Path) -> Iterator[Path]:
    """``path``, then the same with -2, -3, ... before its suffix."""
    return chain([path], (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in count(2)))


def free_folder(folder: str | os.PathLike[str], name: str, content: Mapping[str, Any]) -> Path:
    """``folder``, or FOLDER-2 and so on: the first without a JSON file ``name``, or where that says the same."""
    folder = Path(folder)
    for place in chain([folder], (folder.with_name(f"{folder.name}-{i}") for i in count(2))):
        try:
            if untrusted_json.parsed_file(place / name) == json.loads(json.dumps(content)):
                return place
        except FileNotFoundError:
            return place
        except ValueError:
            continue
    raise AssertionError("there are more numbers than folders")


def essence(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what says how many other images were made with this one."""
    parameters = recipe.get("parameters")
    own = {k: v for k, v in parameters.items() if k not in BATCHING} if isinstance(parameters, dict) else {}
    return {**recipe, "parameters": own}


def _is_of(written: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether what is written with an image is its recipe, which is written without the places of files."""
    return essence(written) == essence(metadata.without_paths(dict(recipe), existing=True))


def same_recipe(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether an image, or the JSON file beside it, says that it was made by this recipe, in whatever batch."""
    try:
        return _is_of(read_recipe(path), recipe)
    except DataError:
        return False


def made_before(path: Path, recipe: Mapping[str, Any]) -> Path | None:
    """Where :func:`save_image` left the image of this recipe; None where it has not been made."""
    there = (place for place in numbered(path) if same_recipe(place, recipe) or not os.path.lexists(place))
    place = next(there)
    return place if place.exists() else None


def save_image(
    image: Tensor | np.ndarray | Image.Image,
    path: str | os.PathLike[str],
    recipe: Mapping[str, Any] | None = None,
    sidecar: Mapping[str, Any] | None = None,
) -> Path:
    """Write an image like ``images.save_png``; where another lies under its name, as NAME-2, NAME-3 and so on.

    The same image with the same recipe is not written twice.

    Args:
        image: Float in [-1, 1], uint8, or PIL; (c, h, w).
        path: Its suffix is one of ``images.ENDS``.
        recipe: Kept in the file.
        sidecar: A recipe to write as JSON beside it.

    Returns: where the image is.
    """
    content, shown = encoded(image, path, recipe), to_pil(image)
    for place in numbered(Path(path)):
        if sidecar is not None and not _free_for(place.with_suffix(".json"), sidecar):
            continue
        if os.path.lexists(place):
            if not place.is_file() or not (place.read_bytes() == content or _like(place, shown, recipe)):
                continue
        else:
            write_bytes(place, content)
        if sidecar is not None:
            save_sidecar(place, sidecar)
        return place
    raise AssertionError("there are more numbers than files")


def _free_for(path: Path, sidecar: Mapping[str, Any]) -> bool:
    """Whether a recipe may be written here: nothing is there, or the recipe of the same image."""
    if not os.path.lexists(path):
        return True
    try:
        return _is_of(untrusted_json.parsed_file(path), sidecar)
    except (OSError, ValueError, AttributeError):  # no recipe, but somebody's file
        return False


def write_numbered(path: Path, content: bytes) -> Path:
    """Write a file; where another lies under its name, as NAME-2, NAME-3 and so on. Returns where it is."""
    for place in numbered(path):
        if not os.path.lexists(place):
            write_bytes(place, content)
        elif not place.is_file() or place.read_bytes() != content:
            continue
        return place
    raise AssertionError("there are more numbers than files")


def _like(path: Path, image: Image.Image, recipe: Mapping[str, Any] | None) -> bool:
    """Whether a file holds this image, but for rounding, and the same recipe."""
    if recipe is None or not same_recipe(path, recipe):
        return False
    before, after = to_array(read_image(path)).astype(int), to_array(image).astype(int)
    return before.shape == after.shape and int(np.abs(before - after).max(initial=0)) <= _NEAR


def gather(paths: Sequence[str | os.PathLike[str]], suffixes: set[str]) -> list[tuple[Path, Path]]:
    """The image files that are meant: (file, its path below the folder that was named).

    Args:
        paths: Files; folders, all of whose images are taken, with those in subfolders; or patterns such as "*.jpg".
        suffixes: What image files end in.

    Raises:
        InputError: A folder or a pattern without any.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            inside = {p: p.relative_to(path) for p in files if not any(s[:1] == "." for s in p.relative_to(path).parts)}
        elif not path.exists() and glob.has_magic(str(path)):
            inside = {Path(p): Path(Path(p).name) for p in sorted(glob.glob(str(path), recursive=True))}
        else:
            inside = {path: Path(path.name)}
        if not inside:
            raise InputError(f"No images in {str(path)!r}. Give image files, or a folder of them.")
        found |= {file: below for file, below in inside.items() if file not in found}
    return list(found.items())
