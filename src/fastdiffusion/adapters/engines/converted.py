"""Networks in OpenVINO's form, as files: converted whole or not at all, in 32 or 8 bits, and shared with torch."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from ...io.atomic import write_json
from . import quantized, rewriting, trial

NET, INT8, NOTES = "net.xml", "products8.xml", "notes.json"
LARGE, SHARED = 1 << 26, 1 << 16  # bytes from which a network, and a weight of it, are worth sharing


def convert(flat: Any, inputs: Sequence[Tensor], folder: Path, names: Sequence[str] = ()) -> None:
    """Write ``flat(*inputs)``, a module whose ``network_weights`` are its parameters, into a new folder.

    ``names`` are those of the inputs, for other programs.

    Raises OSError for a disk that is full, and whatever OpenVINO raises.
    """
    ov, weights = trial.openvino(), list(flat.network_weights)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = 1.01 * sum(p.nbytes for p in weights), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(f"No space: it takes {needed / 1e9:.1f} GB of {folder.parent}, and {free / 1e9:.1f} GB are free")
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as partial:
        with constant(weights):
            net = ov.convert_model(_traced(flat, inputs))
        rewriting.spare_group_norms(net)
        rewriting.convolve_before_upsampling(net)
        for port, name in zip(net.inputs, names, strict=False):
            port.get_tensor().set_names({name})
        _write(net, Path(partial, NET))
        write_json(Path(partial, NOTES), {"outputs": flat.outputs, "differences": {}})
        os.rename(partial, folder)


def _traced(flat: Any, inputs: Sequence[Tensor]) -> Any:
    """A trace without the tracer's own check, which would compare every weight of two traces: the trial compares."""
    trial.openvino()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    return TorchScriptPythonDecoder(flat, example_input=tuple(inputs), trace_kwargs={"check_trace": False})


@contextmanager
def constant(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Tracing: a traced constant must not want a gradient, and a tracer's warnings are of what is compared later."""
    trained = [p for p in weights if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for p in trained:
            p.requires_grad_()


def compress(folder: Path) -> None:
    """Write the network once more beside itself, its products in whole numbers of 8 bits."""
    net = trial.openvino().Core().read_model(folder / NET)
    quantized.quantize(net)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as partial:
        _write(net, Path(partial, INT8))
        for suffix in (".bin", ".xml"):  # the one that is looked for comes last
            os.rename(Path(partial, INT8).with_suffix(suffix), folder / Path(INT8).with_suffix(suffix))


def share(module: nn.Module, folder: Path) -> None:
    """Let torch's large weights be views of the converted file: memory that is empty until torch computes.

    The file is mapped privately: nothing that is done to a weight reaches it. Numbers in it lie at other addresses than
    torch would choose, which its kernels may round by; small networks stay as they are.
    """
    if sum(p.nbytes for p in module.parameters()) < LARGE:
        return
    path = (folder / NET).with_suffix(".bin")
    file = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    places: dict[tuple[int, bytes], list[Tensor]] = {}
    for start, end in _constants(folder / NET):
        if end - start >= SHARED and start % 4 == 0:
            places.setdefault(_key(part := file[start:end]), []).append(part)
    for p in module.parameters():
        if p.nbytes < SHARED or not p.is_contiguous() or p.dtype != torch.float32 or _from_file(p):
            continue
        own = p.detach().reshape(-1).view(torch.uint8)
        if (same := next((part for part in places.get(_key(own), ()) if torch.equal(part, own)), None)) is not None:
            p.data = same.view(torch.float32).as_strided(p.shape, p.stride())
    del file


def _from_file(p: Tensor) -> bool:
    """Whether a weight is such a view already: the only ones whose storage is larger than they are."""
    return p.untyped_storage().nbytes() > p.nbytes


def _key(raw: Tensor) -> tuple[int, bytes]:
    return len(raw), raw[:256].numpy().tobytes()


def _constants(path: Path) -> Iterator[tuple[int, int]]:
    """Where the constants are in the file beside a network: first byte, and the byte after the last."""
    for layer in ElementTree.parse(path).iter("layer"):
        if layer.get("type") == "Const" and (data := layer.find("data")) is not None:
            start = int(data.get("offset", 0))
            yield start, start + int(data.get("size", 0))


def _write(net: Any, path: Path) -> None:
    """Both files of a network; OpenVINO itself does not always say that a disk is full."""
    trial.openvino().save_model(net, path, compress_to_fp16=False)
    if path.with_suffix(".bin").stat().st_size < max((end for _, end in _constants(path)), default=0):
        raise OSError("No space was left while it was written")
