"""A model's networks as files of other programs: ONNX, OpenVINO's form, or a folder of diffusers.

Each is compared with torch before it is there to be used, and what differs is not left behind.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, missing
from ..io.atomic import write_json
from ..models import Model
from ..models.native import own_denoiser
from ..types import Cond
from . import engines, tokens
from .conditioners.student import students_of
from .engines import converted
from .examine import pipeline

ALIKE = 1e-3  # of the largest number: as far as an exported network may be from torch
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
_NAMES = {2: ("rows", "n"), 3: ("rows", "n", "width"), 4: ("rows", "channels", "height", "width")}


class Part(NamedTuple):
    """A network of a model, and a call of it that was seen at work."""

    module: nn.Module
    forward: Callable[..., Any]
    call: engines.Call


@torch.no_grad()
def export_networks(model: Model, folder: Path, format: str) -> dict[str, float]:
    """Write each network of a model, and ``networks.json``, which says how they are called.

    Own networks take ``x`` (scaled), ``c_noise`` and the parts of a condition; those of diffusers what they take there.

    Args:
        model: On the CPU.
        folder: It is made if need be.
        format: "onnx" or "openvino".

    Returns:
        The greatest difference of each network from torch, relative to the greatest number of its output.

    Raises:
        MissingExtra: A package is not installed.
        InputError: A network with an operator that the format does not have, or that answers differently there.
    """
    for package in ("openvino", *(["onnx"] if format == "onnx" else [])):
        if find_spec(package) is None:
            raise missing(f"Export to {format}", package, "onnx" if format == "onnx" else "fast")
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as partial:
        for name, part in recorded(model).items():
            place = Path(partial, name, name).with_suffix(SUFFIXES[format])
            try:
                (_onnx if format == "onnx" else _openvino)(part, place)
                moved = engines.difference(part.forward, part.call, place)
            except Exception as error:
                if isinstance(error, OSError):
                    raise
                raise InputError(f"The {name} cannot be exported to {format}: {str(error)[:300]}.") from None
            if not moved <= ALIKE:
                raise InputError(f"The {name} answers differently in {format}: by {moved:.1g} of its largest number.")
            inputs = zip(part.call.names, part.call.tensors, strict=True)
            described[name] = {
                "inputs": {n: {"example": list(t.shape), "type": str(t.dtype)[6:]} for n, t in inputs},
                "difference": moved,
            }
        for name in described:
            for file in Path(partial, name).iterdir():
                os.replace(file, folder / file.name)
    write_json(folder / "networks.json", {"format": format, "model": model.id, **_usage(model), "networks": described})
    return {name: part["difference"] for name, part in described.items()}


@torch.no_grad()
def export_pipeline(model: Model, folder: Path, load: Callable[[Path], Model]) -> float:
    """Write a folder in the layout of diffusers, LoRA merged; returns the difference of an estimate by what it holds.

    ``load`` opens it again. Raises InputError for a model whose network is no class of diffusers.
    """
    if not hasattr(model.denoise, "checkpoint"):
        raise InputError("This network is no class of diffusers. Export it with --format onnx or --format openvino.")
    if students_of(model):
        raise InputError(
            "A folder of diffusers has no place for a language. Load the model without it, and export that."
        )
    if getattr(model.denoise, "clip_skip", 0):
        raise InputError("A folder of diffusers does not say which layer of CLIP is taken. Leave --clip-skip out.")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} has files in it already. Name a new folder with --out.")
    import diffusers

    pipe, scheduler = pipeline(model), dict(model.denoise.checkpoint.scheduler)  # type: ignore[attr-defined]
    kind = getattr(diffusers, str(scheduler.get("_class_name")), type(pipe.scheduler))
    pipe.register_modules(scheduler=kind.from_config(scheduler))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with tokens.as_embeddings(model):
            pipe.save_pretrained(partial, safe_serialization=True)
        x, sigma, cond = _example(model)
        before, after = (m.denoise(x, sigma, cond).float() for m in (model, load(partial)))
        moved = float((after - before).abs().max() / before.abs().max())
        if not moved <= ALIKE:
            raise InputError(f"The folder answers differently: by {moved:.1g} of the largest number.")
        if folder.exists():
            folder.rmdir()
        os.rename(partial, folder)
        os.chmod(folder, 0o755)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return moved


def recorded(model: Model) -> dict[str, Part]:
    """The networks by name, each with the call that one evaluation and its decoding made of it."""
    modules = {n: m for n, m in model.modules.items() if n == "net" or n.startswith("text_encoder")}
    examples: dict[str, Part] = {}

    def recorder(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
            named = dict(list(bound.arguments.items())[1:])
            named |= named.pop("kwargs", {})
            examples[name] = Part(module, type(module).forward.__get__(module), engines.Call((), named))

        return hook

    handles = [m.register_forward_pre_hook(recorder(name), with_kwargs=True) for name, m in modules.items()]
    try:
        x0 = model.denoise(*_example(model))
    finally:
        for handle in handles:
            handle.remove()
    autoencoder = model.modules.get("autoencoder")
    if model.autoencoder is not None and autoencoder is not None:
        examples["decoder"] = Part(autoencoder, model.autoencoder.decode, engines.Call((), {"z": x0}))
    return {name: examples[name] for name in ("net", *modules, "decoder") if name in examples}


def _example(model: Model) -> tuple[Tensor, Tensor, Cond | None]:
    """Two rows of noise at two levels, and whatever conditions this model."""
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 0.2]) * min(model.sigma_max, 20.0)
    denoiser = own_denoiser(model.denoise)
    if denoiser is not None and denoiser.cond_channels:
        return x, sigma, Cond(image=torch.randn(2, denoiser.cond_channels, *model.shape[1:]).tanh())
    if model.conditioner is not None:
        return x, sigma, model.encode_prompt(["a cat", "a red heart"])
    return x, sigma, model.cond([0, len(model.classes) - 1]) if model.classes else None


def _usage(model: Model) -> Mapping[str, Any]:
    """What somebody must know to sample with the networks."""
    denoiser = own_denoiser(model.denoise)
    levels = getattr(model.denoise, "levels", None)
    prediction = getattr(levels, "prediction", None) if denoiser is None else denoiser.parameterization
    return {
        "prediction": prediction,
        "sigma_data": model.sigma_data,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "shape": list(model.shape),
        "classes": list(model.classes),
    }


def _openvino(part: Part, path: Path) -> None:
    flat = engines.Flat(part.forward, part.call, part.module)
    converted.convert(flat, part.call.tensors, path.parent, part.call.names)
    for suffix in (".xml", ".bin"):
        os.rename(path.with_name("net" + suffix), path.with_suffix(suffix))
    (path.parent / converted.NOTES).unlink()


def _onnx(part: Part, path: Path) -> None:
    """Sides, rows and tokens may be others than in the example."""
    flat, names = engines.Flat(part.forward, part.call, part.module), part.call.names
    path.parent.mkdir()
    axes = {
        name: {i: f"{name} {axis}" for i, axis in enumerate(_NAMES.get(t.ndim, ("rows",))) if axis != "channels"}
        for name, t in zip(names, part.call.tensors, strict=True)
    }
    with converted.constant(flat.network_weights):
        torch.onnx.export(
            flat, tuple(part.call.tensors), str(path), input_names=_distinct(names), dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )  # fmt: skip


def _distinct(names: Sequence[str]) -> list[str]:
    return list(names) if len(set(names)) == len(names) else [f"{name}_{i}" for i, name in enumerate(names)]
