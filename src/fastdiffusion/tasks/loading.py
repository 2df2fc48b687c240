"""``load``: a model by its name, file or folder, ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..options import fill, option

if TYPE_CHECKING:
    from ..models import Model


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded: what every command that takes a model accepts.

    Attributes:
        device: Where to compute, such as "cuda", "mps" or "cpu"; by default the best there is.
    """

    device: str | None = option(None, "Where to compute; by default the best there is.")


def load(what: Model | str | Path = "emoji", **options: Any) -> Model:
    """A model, in evaluation mode and on its device.

    Args:
        what: The name of one that ships ("emoji"), a model file, the folder of a training run, or a folder in the
            layout of diffusers (docs/checkpoints.md).
        **options: See :class:`LoadOptions`.

    Raises:
        CheckpointError: A missing, damaged or unknown file, or one of a newer fastdiffusion.
        InputError: An unknown option, or a device that is not here.
    """
    return loaded(what, fill(LoadOptions, **options).device)


def loaded(model: Model | str | Path, device: str | None = None) -> Model:
    """The model itself, or the one that a name, file or folder means, ready to sample from; see :func:`load`."""
    from ..models import folder, registry  # need torch, and the options must not

    if folder.is_folder(model):
        from ..adapters import load_folder
        from ..device import best_device

        model, device = load_folder(Path(str(model))), device or best_device()
    return registry.loaded(model, device)
