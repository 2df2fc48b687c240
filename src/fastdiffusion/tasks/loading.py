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
        what: The name of one that ships ("emoji"), a model file, or the folder of a training run.
        **options: See :class:`LoadOptions`.

    Raises:
        CheckpointError: A missing, damaged or unknown file, or one of a newer fastdiffusion.
        InputError: An unknown option, or a device that is not here.
    """
    from ..models.registry import loaded  # needs torch, and the options must not

    return loaded(what, fill(LoadOptions, **options).device)
