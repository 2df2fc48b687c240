"""The tensors of a file by name, read one by one and dequantized as they are: safetensors, scaled fp8 too, and GGUF.

What a file holds is known from its header alone, so that nothing is read of a file that cannot be used.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CheckpointError, InputError, missing
from ...io import untrusted_json

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
QUANTIZED = torch.bfloat16  # what 8 bits and fewer become unless somebody says otherwise: it holds every scale
# ComfyUI's scaled fp8: for NAME.weight one of these factors; the others are of its own kernels
_SCALES = (".scale_weight", ".weight_scale")
_REST = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor: its type as the file calls it ("F16", "Q4_0"), and its shape."""

    kind: str
    shape: tuple[int, ...]


class WeightFile(Mapping[str, Tensor]):
    """The tensors of one file, without those that only say how others are stored.

    Attributes:
        path: The file.
        entries: What its header says, by tensor.
        metadata: Texts of the header.
    """

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]

    def __contains__(self, name: object) -> bool:  # of the header: nothing is read
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; () for one that is not there."""
        return self.entries[name].shape if name in self.entries else ()

    def numbers(self, names: Iterable[str] | None = None) -> int:
        """How many numbers these tensors have."""
        return sum(math.prod(self.entries[name].shape) for name in (self.entries if names is None else names))

    def precision(self, names: Iterable[str] | None = None) -> torch.dtype:
        """The type that most numbers of these tensors have, ``QUANTIZED`` for those in 8 bits and fewer."""
        counts: Counter[torch.dtype] = Counter()
        for entry in (self.entries[name] for name in (self.entries if names is None else names)):
            if not re.fullmatch(r"[IU]\d+|BOOL", entry.kind):
                counts[DTYPES.get(entry.kind, QUANTIZED)] += math.prod(entry.shape)
        if not counts:
            raise CheckpointError(f"{self.path} holds no weights. Download it anew.")
        return counts.most_common(1)[0][0]


def open_weights(path: str | Path) -> WeightFile:
    """A file of weights, by its name's ending and its header; its tensors are read when they are asked for.

    Raises:
        CheckpointError: Missing, damaged, half downloaded, or a pickle.
        InputError: Another format, or a quantization that cannot be read.
        MissingExtra: A GGUF file without the package gguf.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run any program when it is opened. Download the .safetensors file of it."
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Give the path of a .safetensors or .gguf file.")
    return Gguf(path) if path.suffix.lower() == ".gguf" else Safetensors(path)


class Safetensors(WeightFile):
    """A safetensors file; numbers in fp8 are multiplied by their scale, where there is one."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
            self.metadata = dict(self._file.metadata() or {})
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (not a dict)
            every = {name: Entry(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        except (OSError, SafetensorError) as error:
            raise damaged(path, error) from None
        self._scales = {scaled: name for name in every if (scaled := _scaled_by(name)) in every}
        own = {*self._scales.values(), *(name for name in every if name.endswith((*_REST, _MARK)))}
        for name in own:
            if name.endswith(".comfy_quant"):
                self._check_quantization(name)
        self.entries = {name: entry for name, entry in every.items() if name not in own}

    def _check_quantization(self, name: str) -> None:
        kind = "unknown"
        with suppress(ValueError, AttributeError):
            kind = str(untrusted_json.parsed(bytes(self._file.get_tensor(name).tolist())).get("format"))
        if not kind.startswith("float8"):
            raise InputError(
                f"{self.path} is quantized as {kind}; scaled fp8 and GGUF can be read. Take one of those, or fp16."
            )

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._file.get_tensor(name)
        if (scale_name := self._scales.get(name)) is None:
            return tensor
        scale = self._file.get_tensor(scale_name).float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise InputError(
                f"{scale_name} of {self.path} has shape {tuple(scale.shape)}: one scale for a tensor or for each row "
                "can be read. Take a file with those, or GGUF."
            )
        return tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))


def _scaled_by(name: str) -> str:
    """The tensor that a scale belongs to; "" for what is no scale's name."""
    return next((name.removesuffix(end) + ".weight" for end in _SCALES if name.endswith(end)), "")


class Gguf(WeightFile):
    """A GGUF file, as programs of the llama.cpp family and ComfyUI's nodes write it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            import gguf
        except ImportError:
            raise missing("A GGUF file", "gguf", "gguf") from None
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:  # ValueError, IndexError, ...: whatever a cut file provokes
            raise damaged(path, error) from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        original = "comfy.gguf.orig_shape."  # of tensors that were reshaped to be quantized
        shapes = {
            name.removeprefix(original): tuple(int(n) for n in field.contents())
            for name, field in reader.fields.items()
            if name.startswith(original)
        }
        self.entries = {
            name: Entry(tensor.tensor_type.name, shapes.get(name, tuple(int(n) for n in reversed(tensor.shape))))
            for name, tensor in self._tensors.items()
        }
        self.metadata = {}

    def __getitem__(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            numbers = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"{self.path} is quantized as {tensor.tensor_type.name}, which the package gguf cannot read. "
                "Take another quantization of it, such as Q4_K or Q8_0."
            ) from None
        return torch.from_numpy(numbers.copy()).reshape(self.entries[name].shape)


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that is not whole."""
    return CheckpointError(
        f"{path} is damaged or only half downloaded ({str(error).splitlines()[0][:80]}). Download it anew."
    )
