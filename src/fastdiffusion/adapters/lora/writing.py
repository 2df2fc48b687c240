"""LoRA files in the keys of diffusers, of kohya's trainers, and of ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ...io.atomic import write_bytes
from ...models import Model
from ...version import __version__
from .. import tokens
from .names import ALL, originals
from .reading import NATIVE

FORMATS = ("diffusers", "kohya", "comfy")
Key = tuple[str, str]  # a network in ``Model.modules``, and a layer in it
Matrices = Mapping[Key, tuple[Tensor, Tensor, float]]  # down (r, in, ...), up (out, r, ...), and alpha
COMFY = {"text_encoder": "text_encoders.clip_l.transformer", "text_encoder_2": "text_encoders.clip_g.transformer"}


def write(
    path: str | Path,
    model: Model,
    matrices: Matrices,
    added: Sequence[tokens.Token] = (),
    form: str = "diffusers",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a LoRA, and the tokens that belong to it, as one safetensors file, whole or not at all.

    Args:
        path: Ends in ".safetensors".
        model: That it is for.
        matrices: Of each layer; alpha / rank is part of them in the keys of diffusers.
        added: Tokens, which other programs do not see.
        form: One of ``FORMATS``.
        notes: What else its metadata is to say.

    Raises:
        InputError: Another ending, another form, or no layer at all.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(f"A LoRA's file ends in .safetensors, got {str(path)!r}.")
    tensors = keyed(model, matrices, form)
    if not tensors:
        raise InputError("There is no layer to write. Choose other targets.")
    note = {"version": __version__, "family": model.info.get("family", NATIVE), **(notes or {})}
    note |= {"tokens": tokens.packed(added)} if added else {}
    ranks = [len(down) for down, _, _ in matrices.values()]
    metadata = {"format": "pt", tokens.NOTE: json.dumps(note)}
    if form == "kohya":
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks))}
    write_bytes(path, safetensors.torch.save({key: t.contiguous() for key, t in tensors.items()}, metadata))


def keyed(model: Model, matrices: Matrices, form: str) -> dict[str, Tensor]:
    """The tensors of a file by their keys."""
    if form not in FORMATS:
        raise unknown("form of a LoRA's keys", form, FORMATS)
    tensors: dict[str, Tensor] = {}
    for part, net in model.modules.items():
        own = {layer: triple for (owner, layer), triple in matrices.items() if owner == part}
        if form == "kohya" and _is_first(model, part):
            own = {_clip(net, layer): triple for layer, triple in own.items()}
        elif form != "diffusers":
            own = _in_original_names(net, own) if part.startswith("net") else {_clip(net, n): t for n, t in own.items()}
        elif part.startswith("text_encoder"):
            own = {_clip(net, layer): triple for layer, triple in own.items()}
        for layer, (down, up, alpha) in own.items():
            if form == "kohya":
                key = f"{_kohya(model, part)}_{layer.replace('.', '_')}"
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
            else:
                prefix = _diffusers(net, part) if form == "diffusers" else COMFY.get(part, "diffusion_model")
                factor = alpha / len(down)
                tensors[f"{prefix}.{layer}.lora_A.weight"] = down.clone()
                tensors[f"{prefix}.{layer}.lora_B.weight"] = up.clone() if factor == 1 else factor * up
    return tensors


def _is_first(model: Model, part: str) -> bool:
    """Whether kohya's trainers call a network's layers as diffusers does: Stable Diffusion 1 and 2, text encoders."""
    return not part.startswith("net") or model.info.get("family") in ("stable-diffusion", None)


def _clip(net: nn.Module, layer: str) -> str:
    """A layer of a CLIP text encoder as files have it, whether this version of transformers nests it or not."""
    nested = layer.startswith("text_model.") or not type(net).__name__.startswith("CLIP")
    return layer if nested or layer == "text_projection" else f"text_model.{layer}"


def _diffusers(net: nn.Module, part: str) -> str:
    if not part.startswith("net"):
        return part
    kind = type(net).__name__
    inner = type(getattr(net, "net", net)).__name__
    return ("unet" if "UNet" in kind + inner else "transformer") + part.removeprefix("net")


def _kohya(model: Model, part: str) -> str:
    if part.startswith("net"):
        return "lora_unet"
    several = "text_encoder_2" in model.modules
    return {"text_encoder": "lora_te1" if several else "lora_te"}.get(part, f"lora_te{part[-1]}")


def _in_original_names(
    net: nn.Module, matrices: Mapping[str, tuple[Tensor, Tensor, float]]
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """The same by the names of a family's original code, where several layers may be rows of one."""
    own = [name for name, module in net.named_modules() if getattr(module, "weight", None) is not None]
    found = [(name, places) for name, places in originals(net, own) if {p.module for p in places} & matrices.keys()]
    found.sort(key=lambda one: -len({p.module for p in one[1]}))  # of two names of a layer the larger one is meant
    done: set[str] = set()
    result: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name, places in found:
        if done & (held := {p.module for p in places}):
            continue
        done |= held
        layers = [layer for layer in dict.fromkeys(p.module for p in places) if layer in matrices]
        if places[0].take == ALL:
            result[name] = matrices[layers[0]]
            continue
        ranks = [len(matrices[layer][0]) for layer in layers]
        rows = max(p.take.stop for p in places)
        up = matrices[layers[0]][1].new_zeros(rows, sum(ranks))
        for place in (p for p in places if p.module in matrices):
            down, own_up, alpha = matrices[place.module]
            first = sum(ranks[: layers.index(place.module)])
            up[place.take, first : first + len(down)] = alpha / len(down) * own_up[place.put].flatten(1)
        result[name] = (torch.cat([matrices[layer][0] for layer in layers]), up, float(sum(ranks)))
    return result | {layer: triple for layer, triple in matrices.items() if layer not in done}
