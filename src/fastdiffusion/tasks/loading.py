"""``load``: a model by its name, file or folder, ready to use."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import choices
from ..errors import InputError, unknown, warn
from ..options import DEVICE, fill, option

if TYPE_CHECKING:
    from ..models import Model

PRECISIONS = {name: name for name in choices.LOAD_PRECISIONS} | {"bfloat16": "bf16", "float16": "fp16"}
HUB = "hf:"


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded: what every command that takes a model accepts.

    All but ``device`` and ``lora`` are for checkpoints of other programs (docs/checkpoints.md).

    Attributes:
        device: Where to compute, such as "cuda", "mps" or "cpu"; by default where the model is, and for a file the best
            that there is.
        lora: LoRA files, each with how strongly it counts: "style.safetensors:0.8"; of several, all. "hf:owner/name"
            or "hf:owner/name/file.safetensors" is one of the hub. Tokens that they
            bring can be used in prompts; a file may also have nothing but a token.
        prediction: What the network predicts, "eps" (the noise) or "v"; "auto" is what the file says.
        clip_skip: From which layer of CLIP a prompt's states are taken, counted from the last as in AUTOMATIC1111 and
            ComfyUI: 1 is the last, the usual one of Stable Diffusion 1, and 2 the one before it, the usual one of
            Stable Diffusion 2, XL and 3 (docs/checkpoints.md).
        precision: "float32", "bf16" or "fp16"; by default that of the file, and float32 in place of fp16 on a CPU,
            which is slow in it. The engine openvino has "int8" in place of "fp16": large products in
            whole numbers of 8 bits.
        engine: "openvino" computes the networks on a CPU, in float32 unless ``precision`` says otherwise, where nothing
            looks into their layers: faster (docs/checkpoints.md).
        offload: Keep one network at a time on the GPU: slower, for models larger than its memory.
        vae_tiling: Decode large images in tiles: less memory, slightly other pixels.
        mem: Memory that a run may take, such as "6G"; chooses among the last three as few as fit, and says so.
        tokenizer: For a single file: a folder with the tokenizers, and other parts, that the file lacks.
        download: Fetch what is of the hub (hf:owner/name): checkpoint, LoRAs, control networks. Without it the
            network is never asked.
        tuned: Take the settings that ``doctor MODEL --tune`` wrote down here, where nothing else is asked for.
    """

    device: str | None = option(None, DEVICE, choices=choices.DEVICES)
    lora: str | Sequence[str] = option(
        (), "A LoRA, FILE or FILE:scale, or hf:owner/name; may be repeated.", kind=list[str] | None
    )
    prediction: str = option(
        "auto", "What the network predicts: eps, v, or auto: what the file says.", choices=choices.PREDICTIONS
    )
    clip_skip: int | None = option(
        None, "Layer of CLIP a prompt is read from: 1 the last, 2 the one before, and so on."
    )
    precision: str | None = option(
        None,
        "In what to compute: float32, bf16, fp16, int8; by default the file's own.",
        choices=choices.LOAD_PRECISIONS,
    )
    engine: str = option("torch", "What computes on a CPU: torch or openvino.", choices=choices.ENGINES)
    offload: bool = option(False, "Keep one network at a time on the GPU: slower, less memory.")
    vae_tiling: bool = option(False, "Decode images in tiles: less memory, slightly other pixels.")
    mem: str | None = option(None, "Memory a run may take, e.g. 6G: chooses settings that fit, and says so.")
    tokenizer: str | Path | None = option(
        None, "A folder with the tokenizers, and other parts, that a single file lacks.", kind=Path | None
    )
    download: bool = option(False, "Fetch what is named hf:owner/name; without it the network is never asked.")
    tuned: bool = option(True, "Take the settings that doctor MODEL --tune wrote down here.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora", (self.lora,) if isinstance(self.lora, str) else tuple(self.lora or ()))
        if self.prediction not in choices.PREDICTIONS:
            raise unknown("prediction", self.prediction, choices.PREDICTIONS)
        if self.engine not in choices.ENGINES:
            raise unknown("engine", self.engine, choices.ENGINES)
        if self.precision is not None:
            if self.precision not in PRECISIONS:
                raise unknown("precision", self.precision, PRECISIONS)
            object.__setattr__(self, "precision", PRECISIONS[self.precision])
        if self.precision == "int8" and self.engine == "torch":
            raise InputError("Only the engine openvino computes in int8. Add: --engine openvino")
        if self.clip_skip is not None and self.clip_skip < 1:
            raise InputError(f"clip_skip counts layers from the last, which is 1, got {self.clip_skip}. Try 2.")
        _bytes(self.mem)

    @property
    def changed(self) -> dict[str, Any]:
        """Those that are not at their defaults, but for ``device``."""
        default = LoadOptions()
        names = [f.name for f in fields(LoadOptions) if f.name not in ("device", "tuned")]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}


LOADING = frozenset(f.name for f in fields(LoadOptions))


def is_of_hub(what: Any) -> bool:
    """Whether a file or model is named as the hub has it, hf:owner/name."""
    return isinstance(what, str | Path) and str(what).startswith(HUB)


def _bytes(size: str | None) -> float | None:
    """Of a size such as "6G", "6.5 GB" or "800M"."""
    if size is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG])i?B?\s*", str(size), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"mem is a size such as 6G or 800M, got {size!r}.")
    return float(match[1]) * {"M": 1e6, "G": 1e9}[match[2].upper()]


def load(what: Model | str | Path = "emoji", **options: Any) -> Model:
    """A model, in evaluation mode and on its device.

    Args:
        what: The name of one that ships ("emoji"), a model file, the folder of a training run; or of other programs a
            folder in the layout of diffusers, a single file (.safetensors, .gguf), or hf:owner/name
            (docs/checkpoints.md).
        **options: See :class:`LoadOptions`.

    Raises:
        CheckpointError: A missing, damaged or unknown file, or one of a newer fastdiffusion.
        InputError: An unknown option, one that this model does not have, or a device that is not here.
    """
    return loaded(what, fill(LoadOptions, **options))


def recorded(kept: Mapping[str, Any], near: Path, device: str | None = None) -> LoadOptions:
    """How a recipe's model was loaded, from what :func:`settings` kept; files are looked for ``near`` its image."""
    from ..models import registry

    loaded_with, loras = kept.get("loaded", {}), kept.get("loras", ())
    files = {name: registry.named(value, near)[0] for name, value in loaded_with.items() if name == "tokenizer"}
    plain = {
        name: value
        for name, value in loaded_with.items()
        if name in ("clip_skip", "engine", "precision", "prediction", "vae_tiling")
    }
    found = [registry.named(f"{lora['name']}@{lora['sha256']}", near)[0] for lora in loras]
    scaled = [f"{path}:{float(lora['scale'])!r}" for path, lora in zip(found, loras, strict=True)]
    return fill(LoadOptions, device=device, lora=scaled, tuned=False, **plain, **files)


def loaded(model: Model | str | Path, options: LoadOptions | str | None = None) -> Model:
    """The model itself, or the one that a name, file or folder means, ready to sample from; see :func:`load`.

    ``options`` may be a device alone.
    """
    from ..models import Model, folder, registry, tuned  # need torch, and the options must not

    chosen = options if isinstance(options, LoadOptions) else LoadOptions(device=options)
    model = model if isinstance(model, Model) else folder.whole(os.path.expanduser(model))
    if any(map(is_of_hub, chosen.lora)):
        from ..adapters.lora import fetched

        loras = [fetched(lora, chosen.download) for lora in map(str, chosen.lora)]
        chosen = replace(chosen, lora=loras, download=chosen.download and is_of_hub(model))
    if not isinstance(model, Model) and is_of_hub(model):
        from ..adapters import located

        model, chosen = located(model, chosen.download, chosen.precision), replace(chosen, download=False)
    if not isinstance(model, Model) and folder.is_other(model):
        from ..adapters import load
        from ..device import best_device, device_of

        device = chosen.device or best_device()
        kept = tuned.options_for(model, device_of(device)) if chosen.tuned else {}
        asked = {**kept, **chosen.changed}
        asked["mem"] = _bytes(asked.get("mem"))
        ready = registry.loaded(load(model, device_of(device), **asked), device)
        for note in ready.info.get("notes", ()):
            warn(note)
        return ready
    asked = chosen.changed
    if list(asked) == ["lora"]:
        from ..adapters import with_loras

        return with_loras(registry.loaded(model, chosen.device), asked["lora"])
    if "engine" in asked and asked.keys() <= {"engine", "precision"}:
        from ..adapters import with_engine

        return with_engine(registry.loaded(model, chosen.device), chosen.precision)
    if asked:
        what = "this one is loaded already" if isinstance(model, Model) else f"{str(model)!r} is none"
        raise InputError(
            f"--{_not_for_own(asked).replace('_', '-')} is for checkpoints of other programs as they are loaded, and "
            f"{what}. Leave it out."
        )
    return registry.loaded(model, chosen.device)


def _not_for_own(asked: Mapping[str, Any]) -> str:
    """The first of some options that a model of this package has no use for, if there is one."""
    return next((name for name in asked if name not in ("lora", "engine", "precision")), next(iter(asked)))


def of_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a verb without those of loading: for a model that is loaded, and for recipes."""
    return {name: value for name, value in options.items() if name not in LOADING}


def settings(model: Model) -> dict[str, Any]:
    """What a recipe keeps of how a model was loaded, if that changes its images: it, and the checkpoint's own hash."""
    kept = {name: model.info[name] for name in ("loaded", "loras") if model.info.get(name)}
    return kept and {**kept, "file": getattr(model.denoise, "id", model.info.get("base", model.id))}
