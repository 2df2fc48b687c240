"""A GPU that is not there: tensors on the CPU that say they are on ``cuda`` and refuse what CUDA would refuse.

    with pretended() as device:
        sample("model.safetensors", device="cuda")  # RuntimeError where two devices meet, with real values elsewhere
    device.waits  # how often, and for what, the program waited for the device

A device is a property of memory. So no tensor is wrapped: a table knows which *storages* are on the pretended device,
and parameters, views, in-place steps, optimizers and autograd stay what they are. A dispatch mode sees every operation,
those of a backward pass too: it refuses mixtures and puts what is new beside what it was made from. ``.to``, ``.cuda``,
``.cpu`` and ``device=`` copy between the two sides, and gradients travel back across. Outside the block all tensors
are on the CPU again, so results can be compared.

As on CUDA, these are allowed: a 0-dimensional CPU tensor among elementwise operands, CPU indices of type int64 or bool
in ``x[...]``, and ``copy_``. What C++ makes inside a compound operation (the zeros of a one-hot code) has C++'s idea of
the device, which is the CPU here; such tensors join whichever side they first meet.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.utils._foreach_utils
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda:0")
COPIES = {"copy_", "copy", "_foreach_copy_"}  # from anywhere to anywhere
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
SCALARS = {"fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "_fused_adamw_"} | INDEXED
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
# what has to know values to go on, so that the processor waits until the device has computed them
WAITS = {"_local_scalar_dense": "item", "equal": "equal", "is_nonzero": "item", "nonzero": "nonzero"} | {
    name: name for name in ("masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave")
}


class PretendedDevice:
    """Which memory is on the device.

    Attributes:
        waits: How often the program waited for the device, by reason ("item", "cpu", "tolist", "nonzero", ...).
        places: The same, by the line that waited ("tasks/generation/sample.py:12 item").
        operations: How many operations there were on the device.
    """

    def __init__(self) -> None:
        self.table: dict[int, tuple[StorageWeakRef, bool | None]] = {}  # True: on the device; None: on either side
        self.limit, self.active, self.operations = 4096, True, 0
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()

    def side(self, x: Tensor) -> bool | None:
        """True for the device, False for the CPU, None for what is not decided."""
        entry = self.table.get(memory(x)) if self.active else None
        return False if entry is None else entry[1]

    def put(self, x: Tensor, side: bool | None) -> Tensor:
        """Say where the memory of a tensor is."""
        if len(self.table) > self.limit:
            self.table = {key: entry for key, entry in self.table.items() if not entry[0].expired()}
            self.limit = 4096 + 2 * len(self.table)
        key = memory(x)
        if side is False:
            self.table.pop(key, None)
        else:  # while there is a weak reference, no other storage can have this number
            self.table[key] = (StorageWeakRef(storage(x)), side)
        return x

    def wait(self, reason: str) -> None:
        """Note that the program waited, and where."""
        self.waits[reason] += 1
        frame = sys._getframe(1)
        while frame is not None and ("torch" in frame.f_code.co_filename or __file__ == frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            self.places["/".join((*Path(frame.f_code.co_filename).parts[-3:],)) + f":{frame.f_lineno} {reason}"] += 1

    def move(self, x: Tensor, side: bool) -> Tensor:
        """A copy on the other side, differentiable."""
        if x.requires_grad and torch.is_grad_enabled():
            return Move.apply(x, side, self)  # type: ignore[return-value]
        return self._copied(x, side)

    def _copied(self, x: Tensor, side: bool) -> Tensor:
        if not side:
            self.wait("cpu")
        return self.put(x.clone(), side)


class Move(torch.autograd.Function):
    """A copy from one side to the other, whose gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, side: bool, device: PretendedDevice) -> Tensor:
        ctx.side, ctx.device = side, device
        return device._copied(x, side)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.device.move(gradients[0], not ctx.side), None, None


class Watch(TorchDispatchMode):
    """Sees each operation: refuses what CUDA refuses, and puts the results where their operands are."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, self.device
        operands = list(tensors((*args, *kwargs.values())))
        if not device.active or any(x.is_meta or x.layout != torch.strided for x in operands):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        sides = [device.side(x) for x in operands]
        on = True in sides
        if on:
            device.operations += 1
            check(device, func, name, args, kwargs, operands, sides)
            if name in WAITS or (name in INDEXED and any(x.dtype == torch.bool for x in tensors(args[1]))):
                device.wait(WAITS.get(name, "nonzero"))
        elif False not in sides and not (operands and None not in sides):  # a factory within C++
            on = None  # type: ignore[assignment]
        out = func(*args, **kwargs)
        if on is not False:
            known = {memory(x) for x in operands}
            for x in tensors((out,)):
                if memory(x) not in known and x.layout == torch.strided and not x.is_meta:
                    device.put(x, on)
            for x, side in zip(operands, sides, strict=True):
                if on and side is None:
                    device.put(x, True)
        return out


def check(
    device: PretendedDevice,
    func: Any,
    name: str,
    args: Any,
    kwargs: Any,
    operands: list[Tensor],
    sides: list[bool | None],
) -> None:
    """Raise RuntimeError if operands on the device and on the CPU must not meet in an operation."""
    generator = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Generator)), None)
    if generator is not None:
        raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found '{generator.device}'.")
    if name in COPIES:
        if sides[0] is False:
            device.wait("cpu")
        return
    allowed = set()
    if name in INDEXED and device.side(args[0]):
        allowed = {id(x) for x in tensors(args[1]) if x.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8)}
    scalars = name in SCALARS or torch.Tag.pointwise in func.tags or name.startswith("_foreach_")
    written = {i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write}
    for x, side in zip(operands, sides, strict=True):
        if side is not False or id(x) in allowed or (x.numel() == 0 and name == "cat"):
            continue
        target = any(x is a for i, a in enumerate(args) if i in written)
        if x.dim() or not scalars or target or not any(y.dim() or s for y, s in zip(operands, sides, strict=True)):
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu: "
                f"a CPU tensor of shape {tuple(x.shape)} and type {x.dtype}."
            )


def storage(x: Tensor) -> torch.UntypedStorage:
    """The memory of a tensor, under any of functorch's wrappers."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage()


def memory(x: Tensor) -> int:
    """A number for the memory of a tensor."""
    return storage(x)._cdata


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results, in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def is_cuda(device: Any) -> bool:
    """Whether a ``device=`` means the pretended one."""
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


# ---- what torch is asked, answered for the device ---------------------------------------------------------------


def _moving(device: PretendedDevice) -> dict[str, Any]:
    """Methods and properties of Tensor."""
    base, old = torch._C.TensorBase, torch.Tensor

    def where(self: Tensor) -> torch.device:
        real = base.device.__get__(self)
        return CUDA if real.type == "cpu" and self.layout == torch.strided and device.side(self) else real

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        other = kwargs.pop("other", None)
        if other is None and args and isinstance(args[0], Tensor):
            other, args = args[0], args[1:]
        if other is not None:
            kwargs = {"device": other.device, "dtype": other.dtype, **kwargs}
        copy = kwargs.pop("copy", len(args) > 3 and args[3])
        wanted, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        rest = {"dtype": dtype or self.dtype} | ({} if memory_format is None else {"memory_format": memory_format})
        if wanted is not None and wanted.type not in ("cpu", "cuda"):
            return base.to(self, wanted, **rest)
        side = bool(device.side(self)) if self.layout == torch.strided and not self.is_meta else False
        if wanted is None or (wanted.type == "cuda") == side:
            return base.to(self, copy=copy, **rest)
        return base.to(device.move(self, not side), **rest)

    def cuda(self: Tensor, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        return self.to("cuda", **kwargs)

    def cpu(self: Tensor, **kwargs: Any) -> Tensor:
        return self.to("cpu", **kwargs)

    def numpy(self: Tensor, *, force: bool = False) -> Any:
        if not device.side(self):
            return base.numpy(self, force=force)
        if force:
            return base.numpy(self.detach().cpu())
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self: Tensor) -> Any:
        if device.side(self):
            device.wait("tolist")
        return base.tolist(self)

    def deepcopy(self: Tensor, memo: Any) -> Tensor:
        copied = kept["__deepcopy__"](self, memo)
        return copied if self.is_meta or self.layout != torch.strided else device.put(copied, device.side(self))

    def set_grad(self: Tensor, grad: Tensor | None) -> None:
        if grad is not None and grad.device != self.device:
            raise RuntimeError(f"assigned grad is on {grad.device}, but its tensor on {self.device}.")
        base.grad.__set__(self, grad)

    kept = {"__deepcopy__": old.__deepcopy__}
    return {
        "device": property(where), "to": to, "cuda": cuda, "cpu": cpu, "numpy": numpy, "tolist": tolist,
        "is_cuda": property(lambda self: self.device.type == "cuda"),
        "is_cpu": property(lambda self: self.device.type == "cpu"),
        "get_device": lambda self: 0 if self.device.type == "cuda" else base.get_device(self),
        "grad": property(base.grad.__get__, set_grad, base.grad.__delete__),
        "__deepcopy__": deepcopy,
    }  # fmt: skip


def _factory(device: PretendedDevice, make: Callable[..., Any], follows: bool = False) -> Callable[..., Any]:
    """A function that makes a tensor, with a ``device`` that may be the pretended one.

    Args:
        device: The pretended one.
        make: The function, such as ``torch.zeros``.
        follows: Whether by default it makes a tensor beside its first argument, as ``zeros_like`` does.
    """

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("device")
        if wanted is None and not follows:
            contexts = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
            wanted = contexts[-1].device if contexts else None
        side = is_cuda(wanted)
        if side:
            generator = kwargs.get("generator")
            if generator is not None:
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device}'.")
            kwargs["device"] = "cpu"
        elif wanted is None and follows and isinstance(args[0], Tensor) and args[0].layout == torch.strided:
            side = None if args[0].is_meta else device.side(args[0])  # type: ignore[assignment]
        out = make(*args, **kwargs)
        strided = isinstance(out, Tensor) and out.layout == torch.strided and not out.is_meta
        return device.put(out, side) if strided else out

    return made


def _taking(device: PretendedDevice, make: Callable[..., Any]) -> Callable[..., Any]:
    """``as_tensor`` and ``asarray``, which may give back the very tensor that they got."""

    @functools.wraps(make)
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if isinstance(data, Tensor):
            out = make(data, *args, **kwargs)
            return out if device is None else out.to(device)
        return factory(data, *args, device=device, **kwargs)

    factory = _factory(device, make)
    return made


def _cuda() -> dict[str, Any]:
    """What of ``torch.cuda`` programs ask."""
    properties = SimpleNamespace(name="pretended", major=9, minor=0, total_memory=80 << 30, multi_processor_count=1)
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "pretended",
        "get_device_capability": (9, 0), "get_device_properties": properties, "mem_get_info": (80 << 30, 80 << 30),
        "is_bf16_supported": False, "device": nullcontext(), "is_initialized": True,
    }  # fmt: skip
    answers |= dict.fromkeys(("max_memory_allocated", "memory_allocated", "memory_reserved", "max_memory_reserved"), 0)
    for name in (
        "synchronize",
        "empty_cache",
        "reset_peak_memory_stats",
        "set_device",
        "manual_seed",
        "manual_seed_all",
    ):
        answers[name] = None
    functions = {name: functools.partial(lambda value, *_, **__: value, value) for name, value in answers.items()}
    # its random numbers are those of the CPU's generator
    return functions | {"get_rng_state": lambda *_: torch.get_rng_state(), "set_rng_state": _set_rng_state}


def _set_rng_state(state: Tensor, *_: Any) -> None:
    torch.set_rng_state(state)


class Autocast(torch.amp.autocast_mode.autocast):
    """Autocast whose "cuda" is the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _patches(device: PretendedDevice) -> Iterator[Any]:
    """Everything in torch that has to be answered otherwise."""
    for name, value in _moving(device).items():
        yield mock.patch.object(torch.Tensor, name, value, create=True)
    for make in _device_constructors.__wrapped__():  # torch keeps its first list: of a moment of patches, maybe
        name = getattr(make, "__name__", "")
        for room in (torch, torch.fft):
            if getattr(room, name, None) is make:
                wrapped = _taking if name in ("as_tensor", "asarray") else _factory
                yield mock.patch.object(room, name, wrapped(device, make))
    for name in LIKE:
        yield mock.patch.object(torch, name, _factory(device, getattr(torch, name), follows=True))
    for name in (*NEW, "new_tensor"):
        method = _factory(device, getattr(torch._C.TensorBase, name), follows=True)
        yield mock.patch.object(torch.Tensor, name, method, create=True)
    for name, function in _cuda().items():
        yield mock.patch.object(torch.cuda, name, function)
    yield mock.patch.object(torch.accelerator, "is_available", return_value=True)
    yield mock.patch.object(torch.accelerator, "current_accelerator", return_value=torch.device("cuda"))
    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: None)  # what optimizers ask
    yield mock.patch.object(torch.accelerator, "current_stream", return_value=stream)
    for room in (torch, torch.amp, torch.amp.autocast_mode):
        yield mock.patch.object(room, "autocast", Autocast)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        ask = getattr(torch, name)
        yield mock.patch.object(torch, name, lambda kind="cuda", ask=ask: ask("cpu" if kind == "cuda" else kind))
    for room in (
        torch.utils._foreach_utils,
        sys.modules["torch.optim.optimizer"],
    ):  # many tensors at once round otherwise
        yield mock.patch.object(room, "_get_foreach_kernels_supported_devices", list)
    run = threading.Thread.run

    def watched(thread: threading.Thread) -> None:
        with Watch(device):
            run(thread)

    yield mock.patch.object(threading.Thread, "run", watched)


@contextmanager
def pretended() -> Iterator[PretendedDevice]:
    """A block in which there is a device ``cuda``; see above."""
    device = PretendedDevice()
    patches = list(_patches(device))
    forget_accelerator()
    for patch in patches:
        patch.start()
    try:
        with Watch(device):
            yield device
    finally:
        device.active = False
        for patch in reversed(patches):
            patch.stop()
        forget_accelerator()


def forget_accelerator() -> None:
    """Accelerate keeps the first device that it saw for the rest of the process."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(True)
