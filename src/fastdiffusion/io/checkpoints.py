"""Bytes on disk that survive: kill -9, a full disk, a flipped bit, an untrusted file.

Every file is written beside its place, flushed to the disk and renamed over the old one, so that a reader finds the
old file or the new one and never half of one. Tensors travel as safetensors with a JSON configuration and a sha256
over both. Nothing here unpickles, and whatever is wrong with a file is one ``CheckpointError``.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CheckpointError, UnavailableError, out_of_memory
from .atomic import write_bytes

VERSION = 1  # of the file format; a file of a higher one is refused, one of a lower one is read
CONFIG_LIMIT = 8 << 20  # bytes of JSON: far above any real configuration, far below what could hurt
HEADER_LIMIT = 100_000_000  # bytes, as safetensors itself has it
SCALE = ":scale"  # ends the name of the scales of a tensor that is written in 8 bits
SMALL = 1024  # numbers; a tensor of fewer is not worth rounding
_OWN = ("format", "version", "config", "sha256")  # what a header holds for the loader
_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
# Files keep the names that the first of them had: files, hashes and recipes hold, whatever the code calls a part.
_DISK = {
    "text_encoder": "words", "cross_attention": "words", "cross_norm": "words_norm", "caption_mean": "draft",
    "student_encoder": "foreign", "autoencoder": "codec", "mid": "middle", "condition": "told", "reverse": "back",
}  # fmt: skip
_CODE = {disk: code for code, disk in _DISK.items() if code != "cross_attention"}
_PART = re.compile(r"[^.:]+")


# ---- tensors ----------------------------------------------------------------------------------------------------


def _digest(version: str, config: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over version, configuration, then each tensor's name, type, shape and bytes in the order of the names."""
    sha = hashlib.sha256(json.dumps([version, config]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def on_disk(name: str) -> str:
    """The name in files of what the code calls ``name``."""
    return _PART.sub(lambda part: _DISK.get(part[0], part[0]), name)


def in_code(name: str) -> str:
    """What the code calls a tensor of that name in a file: behind a layer's number, "words" is its cross-attention."""
    name = re.sub(r"(?<=\d\.)words(?=\.)", "cross_attention", name)
    return _PART.sub(lambda part: _CODE.get(part[0], part[0]), name)


def fingerprint(tensors: Mapping[str, Tensor], spec: Mapping[str, Any] | None = None) -> str:
    """sha256 of names and numbers, and of what JSON can hold: for runs that build on trained weights."""
    sha = hashlib.sha256(b"" if spec is None else json.dumps(spec, sort_keys=True).encode())
    for name, tensor in sorted((on_disk(name), tensor) for name, tensor in tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors as they are to be written: floats in ``dtype``, or as they are where it is None.

    With ``torch.int8`` matrices and kernels become whole numbers of 8 bits with one scale for each row, NAME:scale, a
    quarter of their size; vectors and small matrices, which weigh little, become float16.
    """
    if dtype is None:
        return dict(tensors)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            result[name] = tensor
        elif dtype != torch.int8:
            result[name] = tensor.to(dtype)
        elif tensor.ndim < 2 or tensor.numel() < SMALL:
            result[name] = tensor.to(torch.float16)
        else:
            rows = tensor.detach().float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            result[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
            result[name + SCALE] = scale
    return result


def _dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows with a scale as the floats that they stand for."""
    for name in [name for name in tensors if name.endswith(SCALE)]:
        scale, rows = tensors.pop(name), tensors[name.removesuffix(SCALE)]
        if scale.shape != rows.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(scale.shape)}, its tensor {tuple(rows.shape)}")
        tensors[name.removesuffix(SCALE)] = (rows.flatten(1).float() * scale[:, None]).reshape(rows.shape)
    return tensors


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    notices: Mapping[str, str] | None = None,
) -> None:
    """Write tensors and a JSON configuration as one safetensors file, atomically and with a checksum.

    ``notices`` are texts for people, such as a license, that decide nothing: see :func:`label`.
    """
    text = json.dumps(config)
    if len(text) > CONFIG_LIMIT:
        raise CheckpointError(
            f"The configuration for {path} has {len(text)} characters; at most {CONFIG_LIMIT} are allowed."
        )
    dense = {on_disk(name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    version = str(VERSION)
    own = {"format": "fastdiffusion", "version": version, "config": text, "sha256": _digest(version, text, dense)}
    write_bytes(path, safetensors.torch.save(dense, {**(notices or {}), **own}))


def notices(path: str | Path) -> dict[str, str]:
    """What :func:`label` wrote into a file's header."""
    with _opened(Path(path)) as file:
        return {key: text for key, text in (file.metadata() or {}).items() if key not in _OWN}


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a file that this package wrote, without its tensors; raises CheckpointError."""
    with _opened(Path(path)) as file:
        return _config(Path(path), file.metadata() or {})


def label(path: str | Path, **notices: str) -> None:
    """Write notices, such as ``license`` and ``attribution``, into the header of a file of :func:`save_tensors`.

    All else keeps its bytes: configuration, checksum and tensors, and so the model's ``id``.
    """
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    own = {key: text for key, text in header["__metadata__"].items() if key in _OWN}
    text = json.dumps({**header, "__metadata__": {**own, **notices}}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes, as safetensors itself has it
    write_bytes(path, len(text).to_bytes(8, "little") + text + content[8 + length :])


def annotate(path: str | Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the configuration of a file of :func:`save_tensors`; its tensors stay as they are stored."""
    config, tensors = load_tensors(path, stored=True)
    save_tensors(path, tensors, change(config), notices(path))


def load_tensors(
    path: str | Path, unsafe: bool = False, stored: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read ``(config, tensors)`` back, verified. Never allocates more than the file's own size, times five.

    Args:
        path: A file of :func:`save_tensors`.
        unsafe: Also read a pickle of tensors from a source you trust (PyTorch's restricted reader; config is then {}).
        stored: Leave whole numbers of 8 bits as they are, with their scales.

    Raises:
        CheckpointError: Missing, cut, changed, a pickle, or anything else that is not such a file.
        UnavailableError: It may be whole, but memory, a permission or the disk is missing, or it is from the future.
    """
    path = Path(path)
    if is_pickle(path):
        return {}, _load_pickle(path, unsafe)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        config = _config(path, metadata)
        tensors = _tensors(file)
        intact = _digest(metadata["version"], metadata["config"], tensors) == metadata.get("sha256")
        tensors = tensors if stored else _dequantized(tensors)
    if not intact:
        raise CheckpointError(f"{path} is damaged: its checksum does not match. Use another copy of it.")
    return config, {in_code(name): tensor for name, tensor in tensors.items()}


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of anybody's safetensors file. Never allocates more than the file's own size.

    Raises:
        CheckpointError: Missing, damaged or only half there, or a pickle.
        UnavailableError: It may be whole, but memory, a permission or the disk is missing.
    """
    path = Path(path)
    if is_pickle(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run any program when it is opened. Take its .safetensors file."
        )
    with _opened(path) as file:
        return dict(file.metadata() or {}), _tensors(file)


def is_pickle(path: Path) -> bool:
    """Whether a file's name or first bytes are those of a pickle; raises CheckpointError if it cannot be read."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise ValueError("it is a pipe or a device")
        with path.open("rb") as file:
            head = file.read(9)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(
            error, FileNotFoundError | IsADirectoryError | NotADirectoryError
        ):
            raise _unavailable(path, error) from None
        reason = getattr(error, "strerror", error)
        raise CheckpointError(f"Cannot read {path}: {reason}. Give the path of a .safetensors file.") from None
    # a safetensors file begins with a length, which may look like a pickle's mark, and then its JSON
    return path.suffix.lower() in _PICKLES or (head.startswith((b"PK\x03\x04", b"\x80")) and head[8:] != b"{")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever goes wrong with it is one of this package's errors."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except Exception as error:  # whatever a hostile header provokes in the reader
        nameless = "is not valid UTF-8" in str(error)  # the file's name, and not what is in it
        if out_of_memory(error) or isinstance(error, OSError) or "(os error " in str(error) or nameless:
            raise _unavailable(path, error) from None
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({str(error)[:200]}).") from None


def _tensors(file: Any) -> dict[str, Tensor]:
    # clone: the mapped tensors are not aligned, and CPU kernels round differently there (1e-6)
    return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


def is_own(path: str | Path) -> bool:
    """Whether a safetensors file says that it is one of :func:`save_tensors`, by its header; True if it has none."""
    try:
        with Path(path).open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT)))
        return header.get("__metadata__", {}).get("format") == "fastdiffusion"
    except (OSError, ValueError, AttributeError, RecursionError):
        return True  # its own loader says what is wrong with it


def _unavailable(path: Path, error: Exception) -> UnavailableError:
    """The error for a file about which nothing is known but that it could not be read this time."""
    reason = (
        "there is not enough memory" if out_of_memory(error) else getattr(error, "strerror", None) or str(error)[:200]
    )
    return UnavailableError(
        f"Cannot read {path}: {reason}. Nothing says that it is damaged: mend this, and run the same command again."
    )


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The configuration in a file's metadata, if the file is ours and of a version that can be read."""
    version = metadata.get("version", "")
    if metadata.get("format") != "fastdiffusion" or not re.fullmatch("[0-9]{1,9}", version, re.ASCII):
        raise CheckpointError(
            f"{path} was not written by fastdiffusion: it has no configuration to build a model from."
        )
    if int(version) > VERSION:
        raise UnavailableError(
            f"{path} has format {version}, this fastdiffusion reads up to {VERSION}. "
            "Upgrade with: pip install --upgrade fastdiffusion"
        )
    text = metadata["config"]
    config = json.loads(text) if len(text) <= CONFIG_LIMIT else None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} has no usable configuration.")
    return config


def _load_pickle(path: Path, unsafe: bool) -> dict[str, Tensor]:
    """The tensors of a PyTorch pickle, with PyTorch's restricted unpickler, only when asked for."""
    if not unsafe:
        raise CheckpointError(
            f"{path} is a pickle, which can run any program when it is opened. Use a .safetensors file; if you trust "
            "its source, fastdiffusion.io.checkpoints.load_tensors(path, unsafe=True) reads its tensors."
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # PyTorch stores uncompressed: anything else is a bomb
                if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
                    raise CheckpointError(f"{path} holds more than its own size; PyTorch does not write such files.")
        with path.open("rb") as file:  # given a name, torch.load believes its suffix
            state = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is not a file of tensors ({str(error).splitlines()[0][:200]}).") from None
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds other things than named tensors.")
    return {str(name): tensor.clone() for name, tensor in state.items()}
