"""Engines: a network computed by OpenVINO in place of torch, several times as fast on a CPU that has bfloat16.

A network is traced and converted once, when it is first called, and kept in the cache folder under its model's id. Each
new shape of inputs is first computed in a child process, so that a crash of the engine takes nobody along, and compared
with torch; what crashes, differs or cannot be converted goes on in torch, which is said. So does every evaluation that
somebody looks into: with a gradient, a hook on a layer, or attention control.
"""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...data.cache import cache_folder
from ...errors import InputError, missing, out_of_memory, warn
from ...io import untrusted_json
from ...io.atomic import write_json
from ...models import Model
from ...nets.layers import HOOKS
from ...types import Cond
from . import converted, trial

# Greatest difference from torch in units of the output's greatest magnitude. Wrong programs are far beyond: about 1.
TOLERANCES = {"float32": 1e-3, "bf16": 0.2, "int8": 0.2}
PRECISIONS = tuple(TOLERANCES)
# Compiled programs that are kept, each with its own weights: together they weigh what the network does in float32.
KEPT = {"float32": 1, "bf16": 2, "int8": 4}


def _named(cond: Any) -> tuple[list[tuple[Any, Any]], Any]:
    return [(pytree.MappingKey(name), value) for name, value in cond.parts().items()], tuple(cond.parts())


pytree.register_pytree_node(
    Cond,
    lambda cond: (list(cond.parts().values()), tuple(cond.parts())),
    lambda values, names: Cond.of(dict(zip(names, values, strict=True))),
    flatten_with_keys_fn=_named,
    serialized_type_name="fastdiffusion.Cond",
)


def attach(modules: Mapping[str, nn.Module], model_id: str, precision: str = "float32") -> None:
    """Let OpenVINO compute these networks from now on: ``module(...)`` is the same call with the same result.

    Args:
        modules: By the names under which the converted ones are kept.
        model_id: Covers the weights: another model, or one with a LoRA, is converted anew.
        precision: "float32", "bf16", or "int8": products in whole numbers of 8 bits, and the rest as fast as it goes.

    Raises:
        MissingExtra: OpenVINO is not installed.
        InputError: An unknown precision, or bf16 on a CPU without it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"The engine openvino computes in {', '.join(PRECISIONS)}, not {precision!r}.")
    if not (here := available()):
        raise missing("The engine openvino", "openvino", "fast")
    if precision not in here:
        raise InputError("This CPU does not compute in bf16. Leave --precision out: float32 is used.")
    for name, module in modules.items():
        place = cache_folder() / "engines" / model_id[:32] / name
        module.forward = Engine(module.float(), place, precision)


def with_engine(model: Model, precision: str | None = None) -> Model:
    """A model whose network, autoencoder and text encoders OpenVINO computes; see :func:`attach`.

    The model is changed in place, and with it every other that has the same modules. What a recipe keeps of it, and
    for a checkpoint of another program its ``id``, say so.
    """
    if model.device.type != "cpu":
        raise InputError(f"--engine openvino computes on a CPU, and this model is on {model.device}. Add --device cpu.")
    parts = {name: module for name, module in model.modules.items() if name.startswith("text_encoder")}
    parts |= {
        name: part
        for name in ("encoder", "decoder")
        if isinstance(part := getattr(model.modules.get("autoencoder"), name, None), nn.Module)
    }
    adapted = hasattr(model.denoise, "checkpoint")
    if model.info.get("loras"):
        warn("OpenVINO keeps another converted network for each LoRA and strength; the first run takes that time.")
    chosen = {"engine": "openvino", "precision": precision or "float32"}
    attach({"net": model.modules["net"], **parts}, model.id, chosen["precision"])
    if adapted:
        model.denoise.settings = getattr(model.denoise, "settings", {}) | chosen  # type: ignore[attr-defined]
    return replace(model, info={**model.info, "loaded": {**model.info.get("loaded", {}), **chosen}})


def detach(modules: Mapping[str, nn.Module]) -> None:
    """Let torch compute again."""
    for module in modules.values():
        vars(module).pop("forward", None)


def available() -> tuple[str, ...]:
    """The precisions that are computed in here; none without OpenVINO."""
    try:
        able = trial.hint("int8") == "bf16"
    except ImportError:
        return ()
    return tuple(precision for precision in PRECISIONS if able or precision != "bf16")


def refused(model: Model) -> str:
    """Why torch computes a model's network although OpenVINO was asked to; "" where it does not."""
    reasons: dict[str, str] = getattr(vars(model.modules["net"]).get("forward"), "refusals", {})
    return next(iter(reasons.values()), "")


class Engine:
    """A module's ``forward``, computed by OpenVINO.

    Args:
        module: In float32.
        place: A folder for its converted forms, one for each way in which it is called.
        precision: One of ``PRECISIONS``.

    Attributes:
        refusals: Why torch goes on, by the call; empty while the engine runs.
    """

    def __init__(self, module: nn.Module, place: Path, precision: str):
        self.module, self.place, self.precision = module, place, precision
        self.torch_forward: Callable[..., Any] = type(module).forward.__get__(module)
        self.refusals: dict[str, str] = {}
        self._programs: dict[str, tuple[Any, Any]] = {}  # by the call, the least recently used first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(args, kwargs)
        if call.key in self.refusals or self._watched(call.tensors):
            return self.torch_forward(*args, **kwargs)
        if (compiled := self._programs.pop(call.key, None)) is None:
            while len(self._programs) >= KEPT[self.precision]:
                del self._programs[next(iter(self._programs))]
            try:
                compiled = self._program(call)
            except Refused as reason:
                self.refusals[call.key] = str(reason)
                warn(f"OpenVINO does not compute the {self.place.name}, torch does: {reason}.")
                return self.torch_forward(*args, **kwargs)
        self._programs[call.key] = compiled
        program, structure = compiled
        results = [torch.from_numpy(result.copy()) for result in program(call.arrays()).values()]
        return pytree.tree_unflatten(results, structure)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """Of a copied network torch computes: the copy may get other weights (a LoRA, a control)."""
        return type(self.module).forward.__get__(copy.deepcopy(self.module, memo))

    def _watched(self, tensors: Sequence[Tensor]) -> bool:
        """Whether only torch can do this evaluation: training, a gradient, a hook on a layer, another device."""
        if self.module.training or HOOKS.stack or any(t.device.type != "cpu" for t in tensors):
            return True
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *self.module.parameters())):
            return True
        inner = (m for m in self.module.modules() if m is not self.module)
        return any(m._forward_hooks or m._forward_pre_hooks for m in inner)

    def _program(self, call: Call) -> tuple[Any, Any]:
        """The compiled network for this call, after a trial; and how its outputs lie in what the module returns.

        What was traced for one shape holds for most others. Where it does not, this shape gets a network of its own.
        """
        difference = 0.0
        for name in (call.signature, f"{call.signature} {hashlib.sha256(call.key.encode()).hexdigest()[:8]}"):
            path, notes = self._ready(call, self.place / name)
            if (difference := notes["differences"][self._trial(call)]) <= TOLERANCES[self.precision]:
                shapes, threads = [t.shape for t in call.tensors], torch.get_num_threads()
                program = trial.compiled(path, shapes, trial.hint(self.precision), threads)
                return program, pytree.treespec_loads(notes["outputs"])
        raise Refused(f"it differs from torch by {difference:.2g} of the greatest number, at {call.shapes}")

    def _ready(self, call: Call, folder: Path) -> tuple[Path, dict[str, Any]]:
        """The converted network in a folder, and notes on it, among them this call's trial."""
        try:
            if not (folder / converted.NOTES).is_file():
                self._convert(call, folder)
            if self.precision == "int8" and not (folder / converted.INT8).is_file():
                converted.compress(folder)
        except Exception as error:
            if out_of_memory(error):
                raise
            unknown = " ".join(line for line in str(error).splitlines() if line.startswith("-- ") or "No space" in line)
            raise Refused(f"it cannot be converted ({unknown or str(error)[:200]})") from None
        converted.share(self.module, folder)
        path = folder / (converted.INT8 if self.precision == "int8" else converted.NET)
        notes = untrusted_json.parsed_file(folder / converted.NOTES)
        if (tried := self._trial(call)) not in notes["differences"]:
            notes["differences"][tried] = difference(self.torch_forward, call, path, self.precision)
            write_json(folder / converted.NOTES, notes)
        return path, notes

    def _trial(self, call: Call) -> str:
        how = Path(converted.INT8).stem if self.precision == "int8" else self.precision
        return f"{call.shapes} {how}"

    def _convert(self, call: Call, folder: Path) -> None:
        converted.convert(Flat(self.torch_forward, call, self.module), call.tensors, folder)


def difference(forward: Callable[..., Any], call: Call, path: Path, precision: str = "float32") -> float:
    """Of a converted network from torch, at most, relative to the output's greatest number; in a child process.

    Raises Refused where that process breaks down.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "inputs.npz"), *call.arrays())
        settings = (folder, trial.hint(precision), str(torch.get_num_threads()))
        done = subprocess.run([sys.executable, trial.__file__, str(path), *settings], capture_output=True, text=True)
        if done.returncode:
            how = f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip()[-200:]
            raise Refused(f"the engine broke down in its trial ({how})")
        answers = list(np.load(Path(folder, "outputs.npz")).values())
    with torch.no_grad():
        truth = pytree.tree_leaves(forward(*call.args, **call.kwargs))
    pairs = list(zip(answers, truth, strict=True))
    return max(float((torch.from_numpy(a) - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


class Refused(Exception):
    """Why the engine does not compute a network."""


class Call:
    """One call's inputs: its tensors, and all that is no tensor, which a converted network has built in."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.args, self.kwargs = args, kwargs
        self.leaves, self.structure = pytree.tree_flatten((args, kwargs))
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.shapes = " ".join("x".join(map(str, t.shape)) or "1" for t in self.tensors)

    @cached_property
    def signature(self) -> str:
        """The way of calling: what is given, its types, and every constant."""
        kinds = [(t.ndim, str(t.dtype)) if isinstance(t, Tensor) else repr(t) for t in self.leaves]
        return hashlib.sha256(repr((str(self.structure), kinds)).encode()).hexdigest()[:16]

    @property
    def names(self) -> list[str]:
        """Of the tensors: the argument's, or the key inside it."""
        places, _ = pytree.tree_flatten_with_path((self.args, self.kwargs))
        return [str(getattr(place[-1], "key", i)) for i, (place, leaf) in enumerate(places) if isinstance(leaf, Tensor)]

    @property
    def key(self) -> str:
        """The way of calling, and the shapes."""
        return f"{self.signature} {self.shapes}"

    def arrays(self) -> list[Any]:
        """The tensors for numpy."""
        return [t.detach().contiguous().numpy() for t in self.tensors]

    def rebuilt(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keywords with other tensors."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


class Flat(nn.Module):
    """A network as a function of its tensors alone, which can be traced."""

    outputs = ""  # how they lie in what the network returns, once it has

    def __init__(self, forward: Callable[..., Any], call: Call, module: nn.Module):
        super().__init__()
        self.network, self.call, self.network_weights = forward, call, list(module.parameters())

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.call.rebuilt(tensors)
        leaves, structure = pytree.tree_flatten(self.network(*args, **kwargs))
        self.outputs = pytree.treespec_dumps(structure)
        return leaves[0] if len(leaves) == 1 else tuple(leaves)
