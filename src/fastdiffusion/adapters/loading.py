"""From a checkpoint of another program, whatever kind of file it is, to a ``Model``.

Every part is looked at before the first is loaded, so that what is missing is known at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import CheckpointError, FastdiffusionError, InputError, missing, out_of_memory
from ..models import Model, folder
from . import clip_layers, low_memory
from .engines import with_engine
from .families import FAMILIES, family_of
from .family import Checkpoint, Family, model, sides
from .levels import is_flow
from .lora import with_loras
from .sources import hub
from .sources.folders import Folder
from .sources.single_file import open_file

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Source(Protocol):
    """Where the parts of a checkpoint come from: a folder, or one file."""

    path: Path
    index: dict[str, Any]

    @property
    def scheduler(self) -> dict[str, Any]: ...
    def has(self, part: str) -> bool: ...
    def check(self, part: str, kinds: Sequence[str]) -> None: ...
    def config(self, part: str) -> Mapping[str, Any]: ...
    def numbers(self, part: str) -> int: ...
    def precision(self, part: str) -> torch.dtype: ...
    def module(self, part: str, kind: Any, dtype: torch.dtype) -> nn.Module: ...
    def tokenizer(self, part: str, kind: Any) -> Any: ...
    @property
    def added(self) -> Mapping[str, str]: ...


def load(
    what: str | Path,
    device: torch.device | None = None,
    *,
    lora: Sequence[str] = (),
    prediction: str = "auto",
    clip_skip: int | None = None,
    precision: str | None = None,
    engine: str = "torch",
    offload: bool = False,
    vae_tiling: bool = False,
    mem: float | None = None,
    tokenizer: str | Path | None = None,
    download: bool = False,
) -> Model:
    """The model in a folder in diffusers' layout, in one file, or of the hub; see ``tasks.loading.LoadOptions``.

    Networks keep the precision of their files unless ``precision`` is given, but for fp16 on a CPU, where torch's
    convolutions are some eighty times as slow as in float32: that becomes float32. x, sigma and images are float32. The
    VAE computes in float32 where its configuration says ``force_upcast``, from its first use on.

    Raises:
        CheckpointError: A file that is missing, damaged, half downloaded, or a pickle.
        InputError: A family, or a variant of one, that is not supported; an option that does not fit it.
        MissingExtra: diffusers, transformers or gguf is not installed.
    """
    what = located(what, download, precision)
    source = _opened(what, None if tokenizer is None else Path(tokenizer))
    family = _family(source.index, source.path)
    if clip_skip is not None:
        clip_layers.check(family, source.path)
    parts = _parts(source, family)
    for part, kinds in parts.items():
        source.check(part, kinds)
    family = family.variant(source.config("unet" if "unet" in parts else "transformer"))
    scheduler = _scheduler(source, prediction)
    own = {part: source.precision(part) for part in parts if not part.startswith("tokenizer")}
    upcast = source.config("vae").get("force_upcast", True)
    gpu = device is not None and device.type != "cpu"
    info: dict[str, Any] = {}
    if mem is not None:
        numbers = {part: (source.numbers(part), dtype) for part, dtype in own.items()}
        numbers["vae"] = (numbers["vae"][0], torch.float32) if upcast else numbers["vae"]
        choice, note = low_memory.choose(mem, numbers, _pixels(source, family), gpu, precision is None)
        offload, vae_tiling, info["notes"] = offload or choice.offload, vae_tiling or choice.tiling, [note]
        precision = "bf16" if choice.half else precision
    if offload and not gpu:
        raise InputError("--offload moves networks between memory and a GPU, and this runs on a CPU. Leave it out.")
    rounded = precision if engine == "torch" else "float32"  # another engine rounds as it computes
    dtypes = {part: dtype if rounded is None else PRECISIONS[rounded] for part, dtype in own.items()}
    if rounded != "float32" and upcast:
        dtypes["vae"] = own["vae"]  # it computes in float32, and shall not be rounded before
    changes: dict[str, Any] = {"precision": precision} if dtypes != own and engine == "torch" else {}
    if rounded is None and not gpu:
        dtypes = {part: torch.float32 if dtype == torch.float16 else dtype for part, dtype in dtypes.items()}
    changes |= {"prediction": prediction} if scheduler != source.scheduler else {}
    changes |= {"vae_tiling": True} if vae_tiling else {}
    changes |= source.added
    denoiser: Any = _built(source, family, dtypes, scheduler)
    changes |= {"clip_skip": clip_skip} if clip_skip and clip_layers.choose(denoiser, clip_skip) else {}
    if changes:
        denoiser.settings = info["loaded"] = changes
    made = model(denoiser, {})
    made = with_loras(replace(made, info={**made.info, **info}), lora)
    made = with_engine(made, precision) if engine == "openvino" else made
    if vae_tiling:
        low_memory.tile(made.modules["autoencoder"])
    if offload and device is not None:
        denoiser = made.denoise
        denoiser.offload = low_memory.Offload(made.modules, device)
    return replace(made, tables=folder.read_tables(source.path, made))


def _parts(source: Source, family: type[Family]) -> dict[str, tuple[str, ...]]:
    """The parts that the checkpoint has, and the classes that each may have: all but optional ones that it lacks."""
    named = family.parts()
    return {part: kinds for part, kinds in named.items() if part not in family.optional or source.has(part)}


def _built(
    source: Source, family: type[Family], dtypes: Mapping[str, torch.dtype], scheduler: Mapping[str, Any]
) -> Family:
    """The denoiser of all parts, its noise levels tried; CheckpointError where what configures them does not fit."""
    checkpoint = _checkpoint(source, family, dtypes, scheduler)
    try:
        made = family(checkpoint)
        levels = made.levels.schedule(2)
    except FastdiffusionError:
        raise
    except Exception as error:  # whatever values of any type provoke
        if out_of_memory(error):
            raise
        raise CheckpointError(
            f"The configurations of {source.path} do not fit together ({type(error).__name__}: {str(error)[:200]}). "
            "Download it anew."
        ) from error
    if not bool(levels.isfinite().all()):
        raise CheckpointError(f"The scheduler of {source.path} gives no finite noise levels. Download it anew.")
    return made


def _checkpoint(
    source: Source, family: type[Family], dtypes: Mapping[str, torch.dtype], scheduler: Mapping[str, Any]
) -> Checkpoint:
    """All parts, loaded."""
    try:
        import diffusers
        import transformers
    except ImportError:
        raise missing("A checkpoint of another program", "diffusers and transformers", "sd") from None
    parts = _parts(source, family)

    def kind(part: str) -> Any:
        library: Any = transformers if part.startswith(("text_encoder", "tokenizer", "image_encoder")) else diffusers
        library = diffusers.pipelines.stable_diffusion if part == "image_normalizer" else library
        return getattr(library, parts[part][0])

    modules = {part: source.module(part, kind(part), dtype) for part, dtype in dtypes.items()}
    tokenizers = {part: source.tokenizer(part, kind(part)) for part in parts if part not in modules}
    return Checkpoint(source.path.absolute(), modules, tokenizers, scheduler, source.index)  # a link of the hub's cache


def located(what: str | Path, download: bool = False, precision: str | None = None) -> str | Path:
    """Where a checkpoint is here: one of the hub in its cache, after a ``download`` if that is asked for."""
    if str(what).startswith(hub.PREFIX):
        half = precision in ("bf16", "fp16")
        return hub.fetch(str(what), lambda index: _family(index, what).parts(), download, half)
    if download:
        raise InputError(f"--download is for a name such as hf:owner/name, and {what} is here already. Leave it out.")
    return folder.whole(what)


def _opened(what: str | Path, rest: Path | None) -> Source:
    path = Path(what)
    if not folder.is_folder(path):
        return open_file(path, rest)
    if rest is not None:
        raise InputError(f"{path} is a folder, which has its own tokenizers. Leave --tokenizer out.")
    return Folder(path)


def _family(index: Mapping[str, Any], path: str | Path) -> type[Family]:
    if index.get("requires_aesthetics_score"):
        raise InputError(f"{path} is the refiner of Stable Diffusion XL, which is not supported. Give the base model.")
    family = family_of(str(index.get("_class_name")))
    if family is None:
        raise InputError(
            f"{path} is a {index.get('_class_name', 'folder without a class')}, which is not supported. "
            f"Supported: {', '.join(FAMILIES)}."
        )
    return family


def _scheduler(source: Source, prediction: str) -> dict[str, Any]:
    """Of the noise levels; what the network predicts is the file's word unless somebody knows better."""
    scheduler = source.scheduler
    if prediction == "auto":
        return scheduler
    if is_flow(scheduler):
        raise InputError(f"{source.path} predicts the velocity of a flow, always. Leave --prediction out.")
    return {**scheduler, "prediction_type": PREDICTIONS[prediction]}


def _pixels(source: Source, family: type[Family]) -> int:
    """Of an image of the usual size."""
    net = source.config("unet" if "unet" in family.parts() else "transformer")
    factor = 2 ** (len(source.config("vae").get("block_out_channels", [0] * 4)) - 1)
    height, width = sides(net.get("sample_size") or family.side)
    return height * width * factor**2
