"""LoRA files, merged into a new ``Model``: small changes of weights, ``W + scale * alpha / rank * up @ down``.

Hu et al. 2021 (arXiv:2106.09685), sec. 4.1. The keys of diffusers, peft, kohya's trainers (convolutions and LyCORIS'
LoCon, LoHa and LoKr too), of SDXL's and FLUX's original code and of ComfyUI are understood; nothing here needs peft.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, InputError, counted, warn
from ...io import untrusted_json
from ...io.checkpoints import read_safetensors
from ...io.guarded import BUDGET
from ...models import Model, folder, native
from ...nets.student import StudentEncoder
from .. import tokens
from ..conditioners import student as students
from ..copies import carried, copied
from ..sources import hub
from . import lycoris
from .names import Place, family_of, find, places

# What a key ends in, by what its tensor is.
ENDS = {
    "down": r"(?:\.lora_(?:A(?:\.[^.]+)?|down)|[._]lora\.down|(?<=_lora[12])\.down|\.lora_linear_layer\.down)\.weight",
    "up": r"(?:\.lora_(?:B(?:\.[^.]+)?|up)|[._]lora\.up|(?<=_lora[12])\.up|\.lora_linear_layer\.up)\.weight",
    "up_bias": r"\.lora_B(?:\.[^.]+)?\.bias",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "diff": r"\.(?:diff|w_norm)",
    "diff_bias": r"\.(?:diff_b|b_norm)",
    **{name: rf"\.{name}" for name in lycoris.NAMES},
}
# What a key begins with, and the module that it is about, as ``Model.modules`` calls it.
PARTS = {
    "lora_unet_": "net", "lora_transformer_": "net", "unet.": "net", "transformer.": "net", "diffusion_model.": "net",
    "model.diffusion_model.": "net", "transformer_2.": "net_2", "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3",
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3", "lycoris_": "net",
}  # fmt: skip
PEFT = "base_model.model."  # what peft puts before the name of a layer
REFUSED = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "oft_": "OFT", "on_input": "(IA)^3",
}  # fmt: skip
NATIVE = "a model of fastdiffusion"
Target = tuple[str, str, str]  # a parameter of a model: the module, the layer within it, "weight" or "bias"


def with_loras(model: Model, loras: Sequence[str | Path]) -> Model:
    """A new model with LoRAs merged into its weights; the given one is not changed.

    Weights that no file touches are shared by both. Where several touch one, their updates are added up in float32 and
    rounded once, to the precision of the weight. ``id`` covers the files' contents and scales. Fitted tables go with a
    model of this package, where they were measured to be better than a textbook's; of another family they stay behind,
    since some of its LoRAs are for fewer steps. Keys without a place in the model are left out, with a warning.

    Args:
        model: Its networks are in ``modules``.
        loras: Files, each "FILE" or "FILE:scale", such as "style.safetensors:0.8". A scale of 1 is what was trained,
            0 changes no bit, and one below 0 does the opposite. Tokens that a file brings come with it; it may also
            have nothing but a token (``tokens``), or be a language (``students``).

    Raises:
        CheckpointError: A file that is missing, damaged or a pickle.
        InputError: No LoRA, one of another kind (DoRA, OFT, ...), or one for another family of models.
    """
    updates: dict[Target, list[tuple[Update, Place]]] = {}
    notes: list[dict[str, Any]] = []
    added: list[tokens.Token] = []
    languages: list[StudentEncoder] = []
    for path, scale in map(split_scale, loras):
        file = _file(model, path, scale)
        placed = placed_updates(model, file) if file.updates else []
        if scale != 0:
            notes.append({"name": path.name, "sha256": folder.digest(path), "scale": scale})
            added += file.tokens
            languages += [] if file.student is None else [file.student]
            for target, update, place in placed:
                updates.setdefault(target, []).append((update, place))
    parameters = {target: _parameter(model, target) for target in updates}
    changed = {id(parameters[target]): _sum(parameters[target], added) for target, added in updates.items()}
    if not notes:
        return model
    made = copied(model, changed, {"loras": notes})
    if not hasattr(model.denoise, "id"):  # a native file is known by its content, which recipes look for
        info = {**made.info, "base": model.info.get("base", model.id)}
        made = replace(made, info=info, tables=carried(model))
    made = tokens.with_tokens(made, added) if added else made
    return reduce(students.with_student, languages, made)


def _file(model: Model, path: Path, scale: float) -> File:
    """What is in a file: a token alone, a language, or a LoRA."""
    metadata, tensors = read_safetensors(path)
    if (token := tokens.of_file(model, path, metadata, tensors)) is not None:
        return File(path.name, tokens=[token])
    if (student := students.of_file(model, path, metadata, tensors)) is not None:
        if scale not in (0, 1):
            raise InputError(f"{path.name} is a language, which counts wholly or not at all. Leave :{scale:g} out.")
        return File(path.name, student=student)
    return opened_file(path, scale, metadata, tensors)


def split_scale(lora: str | Path) -> tuple[Path, float]:
    """The file and the scale of "FILE:scale"; without one it is 1."""
    name, _, number = str(lora).rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        name, scale = str(lora), 1.0
    if not name or not abs(scale) <= BUDGET.number:
        raise InputError(f"{str(lora)!r} is no file with a scale. Example: style.safetensors:0.8")
    return Path(os.path.expanduser(name)), scale  # unlike Path's, no error where there is no such user


def fetched(lora: str, download: bool) -> str:
    """The same "FILE:scale" of a file on this machine; one of the hub (hf:owner/name) is taken from its cache."""
    path, scale = split_scale(lora)
    return f"{hub.fetch_lora(str(path), download)}:{scale!r}" if str(path).startswith(hub.PREFIX) else lora


# ---- files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """What a file adds to one layer's weight or bias: ``factor * up @ down``, or ``factor * up`` alone.

    With ``mid`` it is a convolution in Tucker form, 1 x 1, k x k and 1 x 1 one after the other (LyCORIS' LoCon).
    """

    part: str
    layer: str  # as the file calls it
    name: str  # "weight" or "bias"
    factor: float
    up: Tensor
    down: Tensor | None = None
    mid: Tensor | None = None

    @property
    def columns(self) -> int | None:
        """Numbers in a row of what is added; None where the matrices do not fit each other."""
        left, right = self.up.shape[1:].numel(), 0 if self.down is None else len(self.down)
        if self.down is None or right == 0:
            return left if self.down is None else None
        if self.mid is None:
            return self.down.shape[1:].numel() if left == right else None
        return self.mid.shape[2:].numel() * self.down.shape[1:].numel() if self.mid.shape[:2] == (left, right) else None

    def rows(self, rows: slice, device: torch.device) -> Tensor:
        """These rows of what is added, in float32, as a matrix."""
        up = self.up[rows].to(device, torch.float32)
        up = up.reshape(len(up), -1)
        if self.down is None:
            return self.factor * up
        down = self.down.to(device, torch.float32).flatten(1)
        if self.mid is None:
            return self.factor * (up @ down)
        mid = self.mid.to(device, torch.float32)
        if len(mid) * down.shape[1] < len(up) * mid.shape[1]:  # whichever has fewer numbers in between
            return self.factor * (up @ torch.einsum("ab...,bi->ai...", mid, down).flatten(1))
        inner = (up @ mid.flatten(1)).unflatten(1, mid.shape[1:])
        return self.factor * torch.einsum("ob...,bi->oi...", inner, down).flatten(1)


@dataclass(frozen=True)
class Product(Update):
    """One of LyCORIS' products of small matrices, ``entry``; ``up`` has the shape of what is added, and no numbers."""

    entry: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: slice, device: torch.device) -> Tensor:
        return self.factor * lycoris.change({name: t.to(device) for name, t in self.entry.items()})[rows]


def _product(part: str, layer: str, entry: Mapping[str, Tensor], scale: float) -> Product:
    """A layer of LoHa or LoKr; ValueError where its matrices are incomplete, or do not fit each other."""
    alpha, rank = entry.get("alpha"), lycoris.rank(entry)
    matrices = {name: tensor for name, tensor in entry.items() if name in lycoris.NAMES}
    try:
        factor = 1.0 if alpha is None or rank is None else float(alpha.float().mean()) / rank
        shape = lycoris.change({name: tensor.to("meta") for name, tensor in matrices.items()})
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(layer) from error
    return Product(part, layer, "weight", scale * factor, shape, entry=matrices)


@dataclass(frozen=True)
class File:
    """A LoRA file: its name, its updates, and the keys of tensors that are none."""

    name: str
    updates: list[Update] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    tokens: list[tokens.Token] = field(default_factory=list)
    base: str = ""  # the family that it is for
    trained_on: str = ""  # the id of the very model
    student: StudentEncoder | None = None


def opened_file(path: Path, scale: float, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> File:
    """What a file adds to which layers, by its own names, times ``scale``."""
    for sign, kind in REFUSED.items():
        if any(sign in key for key in tensors):
            raise InputError(f"{path.name} is a {kind}, which is not supported. Take a plain LoRA.")
    file, settings = _noted(path.name, metadata), _settings(path, metadata)
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        what, part, layer = _parse(key)
        if what is None or (tensor.ndim == 0 and what != "alpha"):
            file.odd.append(key)
        else:
            layers.setdefault((part, layer), {})[what] = tensor
    for (part, layer), entry in layers.items():
        times = {"diff": scale, "diff_bias": scale}  # these are whole
        if "up" in entry and "down" in entry:
            times["up_bias"] = scale * _scaling(settings.get(part, {}), layer, len(entry["down"]), entry.get("alpha"))
            matrices = (entry["up"], entry["down"], entry.get("mid"))
            file.updates.append(Update(part, layer, "weight", times["up_bias"], *matrices))
        if lycoris.has(entry):
            try:
                file.updates.append(_product(part, layer, entry, scale))
            except ValueError:
                raise InputError(f"The matrices of {layer} in {path.name} do not fit. Download it anew.") from None
            continue
        whole = [what for what in times if what in entry]
        file.updates.extend(
            Update(part, layer, "bias" if what.endswith("bias") else "weight", times[what], entry[what])
            for what in whole
        )
        if not whole and "up_bias" not in times:
            file.odd.append(layer)
    if not file.updates:
        raise InputError(f"{path.name} is no LoRA: it has no layers with lora_up and lora_down, or lora_A and lora_B.")
    return file


def _noted(name: str, metadata: Mapping[str, str]) -> File:
    """What a file of this program says in its metadata: its tokens, and the family that it is for."""
    try:
        note = dict(untrusted_json.parsed(metadata.get(tokens.NOTE, "{}")))
    except (ValueError, TypeError):
        raise CheckpointError(f"The settings of {name} cannot be read. Take another copy.") from None
    added, trained_on = tokens.unpacked(note.get("tokens", ())), str(note.get("base", ""))
    return File(name, tokens=added, base=str(note.get("family", "")), trained_on=trained_on)


def _parse(key: str) -> tuple[str | None, str, str]:
    """What the tensor of a key is, the part of the model that it is about, and the layer, as the file calls it."""
    ends = ((what, re.search(f"{pattern}$", key)) for what, pattern in ENDS.items())
    what, end = next(((what, end) for what, end in ends if end), (None, None))
    layer = key[: end.start() if end else None].removeprefix(PEFT)
    prefix = max((prefix for prefix in PARTS if layer.startswith(prefix)), key=len, default="")
    return what, PARTS.get(prefix, "net"), layer.removeprefix(prefix).removeprefix(PEFT)


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """peft's settings for each part: in the header, as diffusers writes them, or in the file beside, as peft does."""
    settings: dict[str, dict[str, Any]] = {}
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            for key, value in untrusted_json.parsed(metadata["lora_adapter_metadata"]).items():
                prefix = next((prefix for prefix in PARTS if key.startswith(prefix)), "")
                settings.setdefault(PARTS.get(prefix, "net"), {})[key.removeprefix(prefix)] = value
        elif path.stem == "adapter_model" and beside.is_file():
            settings["net"] = dict(untrusted_json.parsed_file(beside))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The settings of {path} cannot be read ({error}). Download it anew.") from None
    if any(isinstance(one, Mapping) and one.get("use_dora") for one in settings.values()):
        raise InputError(f"{path.name} is a DoRA, which is not supported. Take a plain LoRA.")
    try:
        return {part: _checked(one) for part, one in settings.items()}
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"The settings of {path} cannot be read ({error}). Download it anew.") from None


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is used of peft's settings, in its types; raises TypeError, ValueError or AttributeError for other ones."""
    alpha, by_layer = settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
    return {
        "lora_alpha": None if alpha is None else float(alpha),
        "alpha_pattern": {str(name): float(value) for name, value in by_layer.items()},
        "use_rslora": bool(settings.get("use_rslora")),
    }


def _scaling(settings: Mapping[str, Any], layer: str, rank: int, alpha: Tensor | None) -> float:
    """alpha / rank (for "rslora" its root); where a file has no alpha, it is the rank."""
    value = settings.get("lora_alpha") or rank
    own, parts = settings.get("alpha_pattern") or {}, layer.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))  # of the layer's name, the longest first
    value = float(next((own[end] for end in ends if end in own), value) if alpha is None else alpha.float().mean())
    return value / (math.sqrt(rank or 1) if settings.get("use_rslora") else rank or 1)


# ---- into a model -----------------------------------------------------------------------------------------------


def placed_updates(model: Model, file: File) -> list[tuple[Target, Update, Place]]:
    """Every update with its places in the model; what has none is reported."""
    tables = {part: places(module) for part, module in model.modules.items()}
    family = family_of({update.layer: update.columns for update in file.updates if update.part == "net"})
    if file.base and file.base != model.info.get("family", NATIVE):
        raise InputError(
            f"{file.name} is a LoRA for {file.base}, and this model is {model.info.get('family', NATIVE)}. "
            "Take the base that it was trained on."
        )
    if native.own_denoiser(model.denoise) is not None and file.trained_on not in ("", model.id, model.info.get("base")):
        warn(f"{file.name} was trained on another model of this package, and may spoil what this one draws.")
    is_for = f"{file.name} is a LoRA for {family.name if family else 'another model'}."
    remedy = f"Take one for {model.info.get('family', 'this model')}."
    if family is not None and not family.has(model.modules.get("net")):
        raise InputError(f"{is_for} {remedy}")
    placed: list[tuple[Target, Update, Place]] = []
    odd = list(file.odd)
    for update in file.updates:
        if update.columns is None:
            raise InputError(f"The matrices of {update.layer} in {file.name} do not fit each other. Download it anew.")
        part = _part(model, update.part)
        found = find(tables.get(part, {}), update.layer)
        targets = [(part, place.module, update.name) for place in found]
        parameters = [_parameter(model, target) for target in targets]
        if not found or any(p is None for p in parameters):
            odd.append(update.layer)
            continue
        rows = sum(len(p[place.put]) for p, place in zip(parameters, found, strict=True))
        if (len(update.up), update.columns) != (rows, parameters[0][0].numel()):
            raise InputError(
                f"{is_for} Its {update.layer} changes {len(update.up)} x {update.columns} numbers, and this model has "
                f"{rows} x {parameters[0][0].numel()} there. {remedy}"
            )
        placed += zip(targets, [update] * len(found), found, strict=True)
    if not placed:
        raise InputError(f"{is_for} No layer of it is in this model, {odd[0]} for one. {remedy}")
    if odd:
        some = ", ".join(odd[:3])
        warn(f"This model has no place for {counted(len(odd), 'key')} of {file.name}, which are left out: {some}.")
    return placed


def _part(model: Model, part: str) -> str:
    """The network that a file means: its third text encoder is T5, which other families have as their last one."""
    if part != "text_encoder_3" or part in model.modules:
        return part
    return next((name for name, module in model.modules.items() if type(module).__name__ == "T5EncoderModel"), part)


def _parameter(model: Model, target: Target) -> Any:
    part, layer, name = target
    return getattr(model.modules[part].get_submodule(layer), name, None)


def _sum(parameter: Tensor, added: Sequence[tuple[Update, Place]]) -> Tensor:
    """A parameter with updates, of its own type."""
    value = parameter.detach().to(torch.float32, copy=True)
    for update, place in added:
        part = value[place.put]
        part += update.rows(place.take, value.device).reshape(part.shape)
    if not bool(value.isfinite().all()):
        raise InputError(f"{added[-1][0].layer} of a LoRA is not finite. Take another copy of the file.")
    return value.to(parameter.dtype)
