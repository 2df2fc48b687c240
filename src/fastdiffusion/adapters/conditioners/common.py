"""What all conditioners share: the new model, and a network from a folder of its own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, InputError
from ...io.guarded import BUDGET
from ...models import Model
from ..family import Family
from ..sources.folders import Network, read_json


def family_of(model: Model, what: str) -> Family:
    """The family of a checkpoint of another program, computed by torch; raises InputError for any other model."""
    if not isinstance(model.denoise, Family):
        raise InputError(f"{what} is for checkpoints of other programs, and this model is none. Leave it out.")
    if any("forward" in vars(module) for module in model.modules.values()):
        raise InputError(f"{what} computes in torch, and this model was loaded for another engine. Leave --engine out.")
    return model.denoise


def changed(
    model: Model, family: Family, modules: Mapping[str, nn.Module], settings: list[Any], base: Model | None = None
) -> Model:
    """The model with another family object of its networks, and more modules; ``id`` covers ``settings``.

    ``info["base_id"]`` is the id of the model without conditions: of ``base``, or this one.
    """
    vars(family).pop("negative", None)  # it is cached, and may be another one now
    before: dict[str, Any] = getattr(family, "settings", {})
    family.settings = {**before, "conditions": [*before.get("conditions", ()), settings]}  # type: ignore[attr-defined]
    taken = dict(model.modules)
    for name, module in modules.items():
        number = next(n for n in range(1, len(taken) + 2) if (f"{name}_{n}" if n > 1 else name) not in taken)
        taken[f"{name}_{number}" if number > 1 else name] = module
    info = {"base_id": (base or model).id, **model.info}
    return replace(model, denoise=family, conditioner=family, modules=taken, tables={}, info=info)


def copied_family(family: Family) -> Family:
    """The same networks in another object, which can be given other conditions."""
    return copy.copy(family)


def of_image(image: Tensor) -> str:
    """sha256 of an image's numbers."""
    return hashlib.sha256(image.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def checked_scale(scale: float, what: str) -> float:
    """A finite number, or an InputError."""
    if not abs(scale) <= BUDGET.number:
        raise InputError(f"The scale of {what} must be a finite number, got {scale!r}. 1 is usual, 0 is off.")
    return float(scale)


def weights_of(place: Path) -> Path:
    """The file of a network's weights, in its folder; ``place`` may be that file."""
    folder = place if place.is_dir() else place.parent
    if not place.exists() or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{place} is no network: a folder with its config.json and its weights is needed, as a hub serves it."
        )
    return Network(folder).weights if place.is_dir() else place


def open_network(place: Path, kinds: Mapping[str, Any], what: str, dtype: torch.dtype) -> tuple[Any, Path]:
    """A network of one of the classes ``kinds``, by the names in config.json, and its weights' file.

    ``place`` is its folder, or the file of its weights in it.
    """
    weights = weights_of(place)
    name = str(read_json(weights.parent / "config.json").get("_class_name", "network without a class"))
    if name not in kinds:
        raise InputError(f"{place} holds a {name}, which is no {what} that is supported.")
    return Network(weights.parent).module("", kinds[name], dtype), weights
