"""The file of a model: one safetensors file with a JSON configuration.

The configuration names every part by a closed table (``nets.NETS``, ``denoisers.PARAMETERIZATIONS``) and JSON keywords:
no class paths, no pickle. Only models of this package's networks are one file; others raise InputError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import nets
from ..denoisers import Denoiser
from ..errors import CheckpointError, InputError, unknown
from ..io import guarded
from ..io.atomic import write_bytes, write_json, write_text
from ..io.checkpoints import load_tensors, save_tensors, stored
from ..io.metadata import without_paths
from ..samplers import Table
from ..version import __version__
from . import folder
from .model import Model, checked_key, configuration, native_denoiser, tensors
from .protocols import Autoencoder

FILE = "model.safetensors"  # the model's name in a run folder and in an exported one
# the denoiser's own settings, by their names in files
_DENOISER = {name: name for name in ("parameterization", "sigma_data", "self_condition")} | {"picture": "cond_channels"}
_MODEL = {"shape", "classes", "sigma_min", "sigma_max", "tables", "info", "corruption"}
_KEYS = {"net", "codec", *_DENOISER, *_MODEL}


def spec(model: Model) -> dict[str, Any]:
    """The model as plain JSON, without its tensors; :func:`from_spec` reads it."""
    native_denoiser(model, "Saving as one file")
    if other := [type(m).__name__ for m in model.modules.values() if not nets.is_listed(m)]:
        raise InputError(f"A {other[0]} cannot be saved: only these nets can, {', '.join(nets.NETS)}.")
    return json.loads(json.dumps(configuration(model) | notes(model)))


def notes(model: Model) -> dict[str, Any]:
    """What a model's file says besides what decides its samples: its ``tables`` and, without any path, its ``info``."""
    info = {"fastdiffusion": __version__, **model.info} | ({} if model.scale == 1 else {"scale": model.scale})
    tables = {steps: asdict(table) for steps, table in model.tables.items()}
    return json.loads(json.dumps({"tables": tables, "info": without_paths(info)}))


def from_spec(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    """The model that ``spec`` and ``tensors`` (of :func:`tensors`) describe, in float32 on the CPU.

    Both may come from an untrusted source: raises InputError for anything that is not of this form, or whose parts are
    not exactly of the tensors' names and shapes, before memory is allocated for it.
    """
    made = guarded.build(lambda: _build(spec), tensors, lambda model: {f"{k}.": m for k, m in model.modules.items()})
    native_denoiser(made).eval()
    return made


def _build(spec: Mapping[str, Any]) -> Model:
    """A model with fresh weights, on the default device."""
    spec = dict(spec)
    for key in spec:
        if key not in _KEYS:
            raise unknown("model setting", key, _KEYS)
    net, autoencoder = spec.pop("net"), spec.pop("codec", None)
    head = {name: spec.pop(key) for key, name in _DENOISER.items() if key in spec}
    kinds = ((head.get("self_condition", False), bool), (spec.get("corruption") or "", str))
    if wrong := [value for value, kind in kinds if not isinstance(value, kind)]:
        raise InputError(f"A setting of the model is of the wrong kind: {str(wrong[0])[:40]}.")
    guarded.check_config(net)
    guarded.check_config(autoencoder)
    spec["shape"] = tuple(spec["shape"])
    guarded.check_config(spec.get("classes", ()))
    spec["classes"] = tuple(str(name) for name in spec.get("classes", ()))
    guarded.BUDGET.check(tables=len(spec.get("tables", {})))
    spec["tables"] = {checked_key(key): Table.from_json(raw) for key, raw in spec.get("tables", {}).items()}
    spec["info"] = dict(spec.get("info", {}))
    spec["scale"] = float(spec["info"].pop("scale", 1.0))
    guarded.BUDGET.check(number=abs(spec["scale"]), characters=len(spec.get("corruption") or ""))
    built = None if autoencoder is None else cast("Autoencoder", nets.build(autoencoder))
    return Model(Denoiser(nets.build(net), **head), autoencoder=built, **spec)


# ---- files ------------------------------------------------------------------------------------------------------


def save(model: Model, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model as one safetensors file, atomically.

    Args:
        model: What to save.
        path: Must end in ``.safetensors``.
        dtype: Store the parameters in this type; loaded they are float32 again. torch.float16 halves the file,
            torch.int8 quarters it (a scale for each row of a matrix).

    Raises:
        InputError: Another ending, or a model whose network is not of this package.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"A model file ends in .safetensors, got {str(path)!r}. Try {Path(path).with_suffix('.safetensors')}."
        )
    save_tensors(path, stored(tensors(model), dtype), spec(model))


def load(path: str | Path, device: torch.device | str | None = None) -> Model:
    """Read a model file, or the one in a run folder; bit-equal to what was saved.

    Raises CheckpointError for a missing, damaged or unknown file, or one of a newer fastdiffusion.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / FILE).is_file():
            hint = folder.near(path) or "Give a model file, or a folder that training wrote."
            raise CheckpointError(f"{path} is a folder without {FILE}. {hint}")
        path = path / FILE
    config, tensors = load_tensors(path)
    try:
        model = from_spec(config, tensors)
    except InputError as error:
        raise CheckpointError(f"{path} is not a model file. {error}") from None
    return model if device is None else model.to(device)


def load_autoencoder(path: str | Path) -> nn.Module:
    """Read an autoencoder's file, or take that of a latent model; raises CheckpointError for any other."""
    config, tensors = load_tensors(path)
    if "net" in config:
        autoencoder = load(path).modules.get("autoencoder")
        if autoencoder is None:
            raise CheckpointError(f"{path} is a model of pixels: it has no autoencoder.")
        return autoencoder
    if "codec" not in config:
        raise CheckpointError(f"{path} is not an autoencoder that was trained here.")
    return guarded.module(path, {"spec": config["codec"]}, nets.build, tensors).requires_grad_(True)


def export_folder(model: Model, path: str | Path, card: str, preview: bytes | None = None) -> Path:
    """Write a folder that can be pushed to a hub as it is: model, card, configuration and preview image.

    Args:
        model: What to share.
        path: The folder; it is made if need be.
        card: Markdown, usually ``fastdiffusion.models.card.card(model)``.
        preview: A PNG file's bytes.
    """
    path = Path(path)
    save(model, path / FILE)
    write_json(path / "config.json", spec(model))
    write_text(path / "README.md", card)
    if preview is not None:
        write_bytes(path / "preview.png", preview)
    return path
