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
from .attention import register
from .levels import TrainedLevels
from .stable_diffusion import StableDiffusion, StableDiffusionXl, Vae

FAMILIES: dict[str, type[StableDiffusion]] = {f.pipeline: f for f in (StableDiffusion, StableDiffusionXl)}
# the parts of these families: what diffusers' index may call them
CLASSES: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
NAMES = {"unet": "net", "vae": "autoencoder"}  # what a Model calls them
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
    encoders = family.conditioner_class.encoders
    parts = ("unet", "vae", *encoders)
    tokenizers = tuple(name.replace("text_encoder", "tokenizer") for name in encoders)
    for part in (*parts, *tokenizers):
        _check_part(path, index, part)
    levels = TrainedLevels(read_json(path / "scheduler" / "scheduler_config.json"))
    weights = {part: _weights(path / part) for part in parts}  # all of them, before the first is loaded
    try:
        import diffusers
        import transformers
    except ImportError:
        raise missing("A folder in diffusers' layout", "diffusers and transformers", "sd") from None
    modules: dict[str, nn.Module] = {}
    for part, (dtype, variant) in weights.items():
        if part == "vae" and read_json(path / part / "config.json").get("force_upcast", True):
            dtype = torch.float32
        library: Any = transformers if part in encoders else diffusers
        modules[NAMES.get(part, part)] = _module(getattr(library, CLASSES[part][0]), path / part, dtype, variant)
    net, vae = modules["net"], Vae(modules["autoencoder"])
    _check_net(path, net, vae, [modules[name] for name in encoders])
    side = int(getattr(net.config, "sample_size", None) or 64)
    texts = [_tokenizer(transformers.CLIPTokenizer, path / name) for name in tokenizers]
    conditioner = family.conditioner_class(modules, texts, (side * vae.factor, side * vae.factor), index)
    register(net)
    return Model(
        family(net, levels, conditioner, vae.factor, path.resolve()),
        (vae.latent_channels, side, side),
        sigma_min=levels.sigma_min,
        sigma_max=levels.sigma_max,
        sigma_data=1.0,
        tables=folder.read_tables(path),
        info={"name": path.resolve().name, "family": family.name},
        modules=modules,
        schedule=levels.schedule,
        scale=family.scale,
        guidance="cfg",
        autoencoder=vae,
        conditioner=conditioner,
    )


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


def _check_part(path: Path, index: Mapping[str, Any], part: str) -> None:
    named = index.get(part) or [None, None]
    if not (path / part).is_dir() or not isinstance(named, list) or named[-1] is None:
        raise CheckpointError(f"{path} has no {part}. Download the whole folder of the model, {part}/ too.")
    if named[-1] not in CLASSES[part]:
        raise InputError(f"The {part} of {path} is a {named[-1]}; {CLASSES[part][0]} is supported.")


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


def _check_net(path: Path, net: Any, vae: Vae, encoders: list[Any]) -> None:
    if getattr(net.config, "time_cond_proj_dim", None) is not None:
        raise InputError(f"{path} has guidance embedded in its network (LCM), which is not supported yet.")
    if net.config.in_channels != vae.latent_channels:
        raise InputError(
            f"The unet of {path} takes {net.config.in_channels} channels, its VAE makes {vae.latent_channels}: models "
            "for inpainting or depth are not supported. --guidance 'inpaint IMAGE MASK' inpaints with a plain one."
        )
    width = sum(int(encoder.config.hidden_size) for encoder in encoders)
    if net.config.cross_attention_dim != width:
        raise CheckpointError(
            f"The unet of {path} takes texts of width {net.config.cross_attention_dim}, and its text encoders make "
            f"{width}: they belong to different models. Download the whole folder of one."
        )
