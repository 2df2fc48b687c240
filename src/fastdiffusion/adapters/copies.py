"""A model with other weights, or with layers of its own, that shares all else with the one it comes from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..guidance.attention import EXTERNAL
from ..models import Model
from ..models.model import FITTED_TO
from ..samplers import Table


def copied(model: Model, changed: Mapping[int, Tensor], notes: Mapping[str, Sequence[Any]]) -> Model:
    """The model with other values of some parameters, by ``id``; what does not change is shared.

    ``notes`` are added to the lists in its ``info`` and its denoiser's ``settings``. Fitted tables are left behind; see
    :func:`carried`.
    """
    checkpoint = getattr(model.denoise, "checkpoint", None)
    memo: dict[int, Any] = {} if checkpoint is None else {id(t): t for t in checkpoint.tokenizers.values()}
    for module in model.modules.values():
        for tensor in (*module.parameters(), *module.buffers()):
            value = changed.get(id(tensor), tensor.detach())  # another tensor of the same memory: ``to`` moves one only
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    names = ("denoise", "modules", "schedule", "autoencoder", "conditioner")
    watched = {part: EXTERNAL[module] for part, module in model.modules.items() if module in EXTERNAL}
    parts, watched = copy.deepcopy(({name: getattr(model, name) for name in names}, watched), memo)
    denoise: Any = parts["denoise"]
    if denoise is model.denoise:
        raise InputError("This model's denoiser is a function, whose networks cannot be exchanged. Make it an object.")
    before = dict(getattr(denoise, "settings", {}))
    denoise.settings = before | {key: [*before.get(key, ()), *map(_essence, new)] for key, new in notes.items()}
    EXTERNAL.update({parts["modules"][part]: attention for part, attention in watched.items()})
    info = {key: [*model.info.get(key, ()), *new] for key, new in notes.items() if key == "loras"}
    return replace(model, **parts, tables={}, info={**model.info, **info})


def carried(model: Model) -> dict[str, Table]:
    """The tables fitted to a model, for one whose network solves nearly the same equation; each says whose it is."""
    return {
        key: table if FITTED_TO in table.info else replace(table, info={**table.info, FITTED_TO: model.id})
        for key, table in model.tables.items()
    }


def _essence(note: Any) -> Any:
    """What of a note the model's id covers: of a LoRA its content and scale, and not its name."""
    return [note["sha256"], note["scale"]] if isinstance(note, Mapping) else note
