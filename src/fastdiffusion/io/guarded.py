"""The loader of untrusted files: build on the meta device, compare, bound, and only then load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, InputError
from .checkpoints import load_tensors, save_tensors


def _check_numbers(value: Any, depth: int = 0) -> None:
    """Refuse keywords that are not small JSON: they size loops and tensors in the constructors."""
    if isinstance(value, Mapping) and depth < 2:
        value = list(value.values())
    if isinstance(value, (list, tuple)) and len(value) <= 64 and depth < 4:
        for item in value:
            _check_numbers(item, depth + 1)
    elif not (
        value is None
        or (isinstance(value, str) and len(value) <= 100)
        or (isinstance(value, (int, float)) and abs(value) <= 1 << 20)
    ):
        raise InputError(f"The configuration has a value that no network takes: {str(value)[:40]}.")


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Refuse to build networks of more than ``count`` parameters and buffers, as soon as they are met."""
    met = 0

    def meet(module: nn.Module, name: str, value: Any) -> None:
        nonlocal met
        met += 1
        if met > count:
            raise InputError("The configuration asks for more layers than the file has tensors for.")

    hooks = [
        torch_module.register_module_parameter_registration_hook(meet),
        torch_module.register_module_buffer_registration_hook(meet),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Undrawn(TorchFunctionMode):
    """Modules are built without drawing weights that are about to be replaced.

    On the meta device drawing, and ``empty_like``, would even import torch's compiler: two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty_like:
            return args[0].new_empty(args[0].shape)
        return func(*args, **kwargs or {})


def save(kind: str, module: nn.Module, path: str | Path) -> None:
    """Write one safetensors file, atomically. ``module.config`` holds the keywords that it was made with."""
    save_tensors(path, module.state_dict(), {"kind": kind, **module.config})  # type: ignore[dict-item]


def load(path: str | Path, kinds: Mapping[str, Callable[..., nn.Module]], made_by: str) -> Any:
    """Read a file of :func:`save`, of one of ``kinds``, frozen; raises CheckpointError for any other.

    The file may be a stranger's: the module is built where that costs nothing, and compared with the tensors first.
    """
    config, tensors = load_tensors(path)
    kind = config.pop("kind", None)
    if kind not in kinds:
        raise CheckpointError(f"{path} is not a file that {made_by} wrote.")
    try:
        with torch.device("meta"):
            made = kinds[kind](**config)
        if {name: t.shape for name, t in made.state_dict().items()} != {name: t.shape for name, t in tensors.items()}:
            raise ValueError("its tensors have other names or shapes")
        made.to_empty(device="cpu").load_state_dict(tensors)
    except (TypeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} does not fit its configuration ({str(error)[:200]}).") from None
    return made.eval().requires_grad_(False)
