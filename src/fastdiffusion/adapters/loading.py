"""A folder in diffusers' layout as a ``Model``: safetensors only, nothing from the network, no program of the folder.

Which classes are built is a closed table: what ``model_index.json`` says is compared with it and never imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import CheckpointError, InputError, missing
from ..models import Model, folder
from .families import FAMILIES
from .family import Checkpoint, model

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def load_folder(path: str | Path) -> Model:
    """The model in a folder that ``pipeline.save_pretrained`` wrote or that a hub serves, on the CPU.

    Networks keep the precision of their files; x, sigma and images are float32. The VAE computes in float32 where its
    configuration says ``force_upcast``.

    Raises:
        CheckpointError: A file that is missing, damaged, half downloaded, or a pickle.
        InputError: A family, or a variant of one, that is not supported.
        MissingExtra: diffusers or transformers is not installed.
    """
    path = Path(path)
    index = read_json(path / folder.INDEX)
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise InputError(
            f"{path} is a {index.get('_class_name', 'folder without a class')}, which is not supported. "
            f"Supported: {', '.join(FAMILIES)}."
        )
    parts = family.parts()
    for part, kinds in parts.items():
        _check_part(path, index, part, kinds)
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    networks = [part for part in parts if not part.startswith("tokenizer")]
    weights = {part: _weights(path / part) for part in networks}  # all of them, before the first is loaded
    try:
        import diffusers
        import transformers
    except ImportError:
        raise missing("A folder in diffusers' layout", "diffusers and transformers", "sd") from None
    modules: dict[str, nn.Module] = {}
    for part, (dtype, variant) in weights.items():
        if part == "vae" and read_json(path / part / "config.json").get("force_upcast", True):
            dtype = torch.float32
        library: Any = transformers if part.startswith("text_encoder") else diffusers
        modules[part] = _module(getattr(library, parts[part][0]), path / part, dtype, variant)
    tokenizers = {
        part: _tokenizer(getattr(transformers, parts[part][0]), path / part) for part in parts if part not in networks
    }
    made = family(Checkpoint(path.resolve(), modules, tokenizers, scheduler, index))
    return model(made, folder.read_tables(path))


def read_json(path: Path) -> dict[str, Any]:
    """A configuration of the folder; raises CheckpointError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Download the whole folder of the model.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download it anew.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no configuration. Download it anew.")
    return content


def _check_part(path: Path, index: Mapping[str, Any], part: str, kinds: tuple[str, ...]) -> None:
    named = index.get(part) or [None, None]
    if not (path / part).is_dir() or not isinstance(named, list) or named[-1] is None:
        raise CheckpointError(f"{path} has no {part}. Download the whole folder of the model, {part}/ too.")
    if named[-1] not in kinds:
        raise InputError(f"The {part} of {path} is a {named[-1]}; {kinds[0]} is supported.")


def _weights(part: Path) -> tuple[torch.dtype, str | None]:
    """The precision of a part's files and their variant ("fp16", ...), after a look into each file's header."""
    names = sorted(file.name for file in part.iterdir() if file.is_file())
    stem = "model" if part.name.startswith("text_encoder") else "diffusion_pytorch_model"
    tensors = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))
               or (name.startswith(f"{stem}.safetensors.index.") and name.endswith(".json"))]  # fmt: skip
    single, sharded = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    variant = None
    if single not in tensors and sharded not in tensors:
        chosen = [name for name in tensors if name.startswith(f"{stem}.") and "-of-" not in name]
        if not chosen:
            if pickles := [name for name in names if name.endswith(PICKLES)]:
                raise CheckpointError(
                    f"{part} has only {pickles[0]}, a pickle, which can run any program when it is opened. "
                    "Download the .safetensors files of this model."
                )
            raise CheckpointError(f"{part} has no {single}. Download the whole folder of the model.")
        rest = chosen[0].removeprefix(f"{stem}.")
        variant = rest.removeprefix("safetensors.index.").split(".")[0]
        single, sharded = f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"
    weight_map = read_json(part / sharded).get("weight_map", {}) if single not in tensors else {}
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{part / sharded} is no index of weights. Download it anew.")
    shards = sorted({Path(str(name)).name for name in weight_map.values()}) or [single]
    return next(iter([_precision(part / name) for name in shards])), variant


def _precision(file: Path) -> torch.dtype:
    """The type of a file's first matrix; raises CheckpointError for a file that is not whole."""
    try:
        with safe_open(file, framework="pt") as tensors:
            types = [tensors.get_slice(name).get_dtype() for name in tensors.keys()]  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing. Download the whole folder of the model.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is damaged or only half downloaded ({str(error)[:80]}). Download it anew."
        ) from None
    floats = [name for name in types if name in DTYPES]
    if not floats or any(name.startswith("F8") for name in types):
        raise InputError(f"{file} holds {', '.join(sorted(set(types)))}; float32, float16 and bfloat16 can be loaded.")
    return DTYPES[floats[0]]


def _module(kind: Any, part: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    """A network with the weights of its folder, all of them."""
    named = {"dtype" if kind.__module__.startswith("transformers") else "torch_dtype": dtype}
    try:
        module, report = kind.from_pretrained(
            str(part), variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **named
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{part} cannot be loaded ({str(error)[:300]}). Download it anew.") from None
    absent = [name for name in report["missing_keys"] if not name.endswith("position_ids")]
    if absent or report.get("mismatched_keys"):
        first = (absent or [str(report["mismatched_keys"])])[0]
        raise CheckpointError(f"The weights in {part} do not fit its config.json, {first} for one. Download it anew.")
    for tensor in module.parameters():
        if tensor.data_ptr() % 64:  # mapped from the file: CPU kernels round differently there (1e-5)
            tensor.data = tensor.data.clone()
    return module.eval().requires_grad_(False)


def _tokenizer(kind: Any, part: Path) -> Any:
    try:
        return kind.from_pretrained(str(part), local_files_only=True)
    except Exception as error:  # whatever its many formats provoke
        raise CheckpointError(f"The tokenizer in {part} cannot be read ({str(error)[:200]}).") from None
