"""Files that a recipe names: read ready for use, and found again by name and content.

In a recipe a file is ``name@sha256``, never a path: a recipe may travel, and may come from anyone.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..device import best_device, device_of
from ..errors import CheckpointError, DataError
from ..io.images import ENDS, safe_name
from . import folder
from .model import Model
from .serialization import FILE, load

WEIGHTS = Path(__file__).parents[1] / "weights"
SHIPPED = ("emoji",)


def loaded(model: Model | str | Path, device: str | None = None) -> Model:
    """The model itself, or the one in a file or run folder, ready to sample from; see ``sample``."""
    if not isinstance(model, Model):
        model, device = load(shipped(str(model)) or model), device or best_device()
    model.eval()  # dropout would draw from a global state, and seeds would mean nothing
    return model if device is None else model.to(device_of(device))


def shipped(name: str) -> Path | None:
    """The file of a model that comes with the package, by its name.

    A file of that name goes before it, or a folder that holds weights: one of images does not.
    """
    path = WEIGHTS / f"{name}.safetensors"
    return path if name in SHIPPED and path.is_file() and not _has_weights(Path(name)) else None


def names_a_model(text: str) -> bool:
    """Whether a word is meant as a model and not as a prompt: a file or folder, there or not, or one that ships."""
    path = Path(text)
    if not text.strip():
        return False  # and not the folder here
    place = "/" in text and (" " not in text or _exists(Path(path.parts[0])))
    return text in SHIPPED or path.suffix in (".safetensors", ".gguf", ".ckpt") or place or _exists(path)


def model_and_prompt(model: Any, prompt: Any) -> tuple[Any, Any]:
    """What is meant by a first argument that may be a prompt: ``sample("a red heart")`` is drawn by "emoji"."""
    if prompt is None and isinstance(model, str) and not names_a_model(model):
        return SHIPPED[0], model
    return model, prompt


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a prompt too long for a name
        return False


def _has_weights(path: Path) -> bool:
    return path.is_file() or folder.is_folder(path) or any(path.glob("*.safetensors"))


def digest(path: Path) -> str:
    """sha256 of a model's content, whatever was noted in the file since; of any other file, of its bytes."""
    if folder.is_other(path):
        return folder.digest(path)
    with suppress(CheckpointError):
        return load(path).id
    return hashlib.sha256(path.read_bytes()).hexdigest()


def locate(name: str, sha256: str, near: Path) -> Path | None:
    """A file of that name and content: in the package, beside the image ``near``, above it, here, or in a run here.

    A checkpoint of another program is also found where it was when it was last used, whatever its name.

    None if there is no file of that name. Raises CheckpointError if those that there are have other contents.
    """
    name = Path(name).name  # a recipe may come from anyone: never a path
    own = shipped(name)
    if own is not None and digest(own) == sha256:
        return own
    around = [near.resolve().parent, *near.resolve().parents[1:3], Path.cwd(), Path.cwd() / "runs"]
    places = [place / name for place in around]
    if Path(name).suffix.lower() not in ENDS:  # an image is not looked for among models, each of which is hashed
        places += [path for place in around for path in sorted(place.glob(f"*/{FILE}"))]
    if (before := folder.hashed_before(sha256)) is not None:
        places.append(before)
    present = [path for path in dict.fromkeys(places) if path.is_file() or folder.is_folder(path)]
    for path in present:
        if digest(path) == sha256:
            return path
    if any(path.name == name for path in present):
        raise CheckpointError(f"{name!r} was not found; files of that name and other contents were.")
    return None


def named(name_or_path: str, near: Path | None = None) -> tuple[Path, str]:
    """A file by its path or recorded name: (where it is, the word that a recipe keeps).

    Args:
        name_or_path: A path; or what a recipe kept of it, if ``near`` is given.
        near: The image that carries the recipe.
    """
    if near is None:
        path = Path(os.path.expanduser(name_or_path))  # unlike Path's, no error where there is no such user
        path = path / FILE if path.is_dir() and not folder.is_folder(path) else path
        if not path.is_file() and not folder.is_folder(path):
            raise DataError(f"There is no file {name_or_path!r}. Give the path of one.")
        return path, f"{path.name}@{digest(path)}"
    name, _, sha256 = name_or_path.rpartition("@")
    match = locate(name, sha256, near)
    if match is None:
        raise DataError(
            f"{near.name!r} was made with the file {name or name_or_path!r}, which is not near it. Put it there."
        )
    return match, name_or_path


def short_name(model: Model | str | Path) -> str:
    """How a recipe calls a model: its file's name, or the one that it was given."""
    if isinstance(model, Model):
        return safe_name(str(model.info.get("name", "model")))
    if folder.is_folder(model := folder.whole(model)):
        return safe_name(folder.title(model))
    return FILE if Path(model).is_dir() else Path(model).name
