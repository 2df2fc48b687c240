"""The loader of untrusted files: build on the meta device, compare names and shapes, bound, and only then load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, InputError, UnavailableError, out_of_memory
from .checkpoints import load_tensors, save_tensors, stored

Made = TypeVar("Made")
LONGEST = 1000  # characters of a text in a configuration


@dataclass(frozen=True)
class Budget:
    """What a file, a recipe or a text of an untrusted source may ask for; far above all honest use.

    Attributes:
        values: Numbers that a batch of a run may hold.
        images: Images of a run.
        rows: Evaluations in a sampler's table, of a batch.
        tables: Sampler tables in a model file.
        history: Older estimates that a table weighs, each as large as a batch.
        guidance: Guidance functions around one denoiser; each may double its evaluations.
        characters: Of a corruption, a guidance or a prompt.
        depth: Brackets within brackets.
        token: Bytes that one token of a tokenizer stands for.
        tokens: Bytes that all of them stand for.
        number: Magnitude that float32 still computes with.
        size: A whole number in the configuration of another program's network.
        entries: Entries of a list there.
    """

    values: int = 1 << 28
    images: int = 100_000
    rows: int = 10_000
    tables: int = 256
    history: int = 64
    guidance: int = 8
    characters: int = 10_000
    depth: int = 50
    token: int = 1 << 12
    tokens: int = 1 << 24
    number: float = 1e30
    size: int = 1 << 24
    entries: int = 4096

    def check(self, **asked: float) -> None:
        """Raise InputError for the first amount that is above its limit, or not a number."""
        for name, amount in asked.items():
            if not amount <= getattr(self, name):
                raise InputError(f"It asks for {amount:.6g} {name}; at most {getattr(self, name):.6g} are allowed.")


BUDGET = Budget()


def check_config(value: Any, depth: int = 0) -> None:
    """Refuse keywords that are not small JSON: they size loops and tensors in the constructors."""
    most = 64
    if isinstance(value, Mapping) and depth < 4:  # keywords, which are known by name; or rows of added tokens
        value, most = list(value.values()), 256
    texts = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)  # names: any number
    if isinstance(value, (list, tuple)) and (texts or len(value) <= most) and depth < 6:
        for item in value:
            check_config(item, depth + 1)
    elif not (
        value is None
        or (isinstance(value, str) and len(value) <= LONGEST)
        or (isinstance(value, (int, float)) and abs(value) <= 1 << 20)  # not for NaN
    ):
        raise InputError(f"The configuration has a value that no network takes: {str(value)[:40]}.")


def check_network_config(value: Mapping[str, Any] | list[Any], depth: int = 0) -> None:
    """Refuse numbers and lists in another program's configuration that would size a network beyond all that there are.

    Raises InputError. Names and other texts are that program's own.
    """
    if len(value) > BUDGET.entries:
        raise InputError(f"it has a list of {len(value):,} entries")
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        whole = isinstance(item, int) and "theta" not in str(key)  # the base of rotary positions: a number as others
        if item == -math.inf:  # ``lambda_min_clipped`` of the DPM-Solver schedulers: it sizes nothing
            continue
        if isinstance(item, int | float) and not abs(item) <= (BUDGET.size if whole else BUDGET.number):
            raise InputError(f"{str(key)[:40]} is {str(item)[:40]}")
        if isinstance(item, Mapping | list):
            if depth > BUDGET.depth:
                raise InputError("it is nested too deep")
            check_network_config(item, depth + 1)


@contextmanager
def at_most(count: int, numbers: float = math.inf) -> Iterator[None]:
    """Refuse to build networks of more than ``count`` parameters and buffers, or ``numbers`` in them, as they come up.

    That is before a constructor draws them: until then memory has only been promised.
    """
    met = numel = 0

    def meet(module: nn.Module, name: str, value: Any) -> None:
        nonlocal met, numel
        met, numel = met + 1, numel + (0 if value is None else value.numel())
        if met > count or numel > numbers:
            raise InputError("The configuration asks for more layers than the file has tensors for, or larger ones.")

    hooks = [
        torch_module.register_module_parameter_registration_hook(meet),
        torch_module.register_module_buffer_registration_hook(meet),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def at_most_those_of(tensors: int, numbers: int) -> AbstractContextManager[None]:
    """The same for another program's network whose file has so many tensors and numbers: tied weights are not in it."""
    return at_most(4 * tensors + 1000, 3 * numbers + (1 << 22))


class Undrawn(TorchFunctionMode):
    """Modules are built without drawing weights that are about to be replaced.

    On the meta device drawing, and ``empty_like``, would even import torch's compiler: two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty_like:
            return args[0].new_empty(args[0].shape)
        return func(*args, **kwargs or {})


def build(
    make: Callable[[], Made],
    tensors: Mapping[str, Tensor],
    modules: Callable[[Made], Mapping[str, nn.Module]] = lambda made: {"": cast("nn.Module", made)},
) -> Made:
    """What ``make`` builds, in float32 on the CPU and in eval mode, with these tensors in it.

    Both may come from an untrusted source. It is first built on the meta device, where that costs nothing, and compared
    with the tensors; only what matches is built for real. No random number is drawn.

    Args:
        make: Builds it; called twice.
        tensors: By name.
        modules: The modules of what was made, by what their tensors' names begin with.

    Raises:
        InputError: Anything that does not fit, in a sentence.
    """
    try:
        with torch.device("meta"), Undrawn(), at_most(2 * len(tensors) + 100):
            _compare(modules(make()), tensors)
        with torch.random.fork_rng(devices=[]), Undrawn():  # random buffers leave no trace in the user's stream
            made = make()
        for prefix, module in modules(made).items():
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.eval().load_state_dict(own)
    except InputError:
        raise
    except Exception as error:  # a constructor may fail in any way on hostile keywords
        if out_of_memory(error):
            raise UnavailableError("There is not enough memory for this model. Close other programs.") from None
        raise InputError(f"It cannot be built ({type(error).__name__}: {str(error)[:200]}).") from None
    return made


def _compare(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Compare names and shapes, and bound the buffers that are computed rather than stored."""
    wanted = {prefix + name: t for prefix, module in modules.items() for name, t in module.state_dict().items()}
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())[0]
        raise InputError(f"The configuration and the tensors do not belong together: {odd[:100]!r} is in one only.")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(
                f"{name} should have shape {tuple(tensor.shape)}, the file has {tuple(tensors[name].shape)}."
            )
    computed = sum(b.numel() for module in modules.values() for b in module.buffers())
    if computed > (1 << 22) + sum(t.numel() for t in tensors.values()):
        raise InputError("The configuration asks for buffers far larger than the model.")


def save(kind: str, module: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically. ``module.config`` holds the keywords that it was made with.

    ``dtype`` torch.float16 halves the file, torch.int8 quarters it.
    """
    save_tensors(path, stored(module.state_dict(), dtype), {"kind": kind, **cast("dict[str, Any]", module.config)})


def load(path: str | Path, kinds: Mapping[str, Callable[..., nn.Module]], made_by: str) -> Any:
    """Read a file of :func:`save`, of one of ``kinds``, frozen; raises CheckpointError for any other."""
    config, tensors = load_tensors(path)
    kind = config.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(f"{path} is not a file that {made_by} wrote.")
    return module(path, config, kinds[kind], tensors)


def module(path: str | Path, config: Any, make: Callable[..., Made], tensors: Mapping[str, Tensor]) -> Made:
    """The module that a file's keywords and tensors describe, frozen; raises CheckpointError if they do not fit."""
    try:
        check_config(config)
        made = build(lambda: make(**config), tensors)
    except InputError as error:
        raise CheckpointError(f"{path} does not fit its configuration. {error}") from None
    return cast("nn.Module", made).requires_grad_(False)  # type: ignore[return-value]
