"""What differs between kinds of nets: a small object. The loop that trains them all is ``trainer.Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..types import Cond

Batch = Any  # a tensor, a list, a ``Cond``, or a tuple of these: one row for each example


class Whole(NamedTuple):
    """A part of a batch that belongs to no single example: it is not divided among processes."""

    value: Any


class Part(NamedTuple):
    """A net and what it learns from.

    Attributes:
        module: What is trained: those of its parameters that ask for gradients.
        loss: Of a batch on the device: one number for each example, or one for all.
        optimizer: A name in ``optimizers.OPTIMIZERS``, or a function from (module, lr) to optimizers.
        lr: Highest learning rate; None is the optimizer's own.
        weight_decay: Of the optimizer.
    """

    module: nn.Module
    loss: Callable[[Any], Tensor]
    optimizer: str | Callable[[nn.Module, float], list[Any]] = "adamw"
    lr: float | None = 1e-3
    weight_decay: float = 0.0


class Updates(NamedTuple):
    """How the weights of a task's parts are updated.

    Attributes:
        averaged: The net whose weights are averaged, over each of ``ema`` (parts of the run).
        warmup: Steps in which the learning rate rises.
        decay: Last part of the run in which it falls to 0.
        grad_clip: Greatest norm of a gradient; 0 is off.
        grad_accumulation: Microbatches that a batch is computed in; of a task of one part.
        shard: Divide weights and optimizer among the processes (FSDP2).
        divided: Whether ``draw`` gives each process its own rows; otherwise it gives all, and each takes its own.
    """

    averaged: nn.Module | None = None
    ema: Sequence[float] = ()
    warmup: int = 50
    decay: float = 0.5
    grad_clip: float = 1.0
    grad_accumulation: int = 1
    shard: bool = False
    divided: bool = False


@dataclass(frozen=True)
class Task:
    """What a trainer trains.

    Attributes:
        parts: By name. Several are trained in turns within each step, as a generator and its critic are.
        draw: ``draw(step)`` is a step's batch, on the CPU, the same whenever it is asked for: so a checkpoint holds no
            state of any iterator or random generator. It is called ahead, in another thread.
        identity: What two runs must share to be one, as JSON.
        title: What it is trained on, for people: "digits: 1,797 images of 1x8x8".
        command: What the command line calls it, and ``arguments`` that stand beside the options: for run.toml.
        usual: Examples that such a run usually sees before it is trained enough; 0 is unknown.
        modules: Nets that are evaluated and not trained; they are moved to the device with the others.
        held_out: Batches that validation measures the first part's loss on.
        updates: How their weights are updated.
        before: Called with the progress (0 to 1) before each step.
        preview: Images of what the nets can do so far, in rows of so many: a sheet in previews/. Like ``write`` it is
            called in the process that writes, with ``shard`` in all.
        write: Write ``file``, the result so far, into a folder; it returns what else the report is to say.
        write_often: Whether that is done during the run too, and not at its end alone.
        file: Name of the result.
    """

    parts: Mapping[str, Part]
    draw: Callable[[int], Batch]
    identity: Mapping[str, Any]
    title: str = ""
    usual: int = 0
    command: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    modules: Sequence[nn.Module] = ()
    held_out: Sequence[Batch] = ()
    updates: Updates = field(default_factory=Updates)
    before: Callable[[float], None] | None = None
    preview: Callable[[], tuple[Tensor, int]] | None = None
    write: Callable[[Path], Mapping[str, Any] | None] | None = None
    write_often: bool = False
    file: str = ""


def length(batch: Batch) -> int:
    """Examples in a batch."""
    if isinstance(batch, tuple):
        return next(n for n in map(length, batch) if n)
    return 0 if batch is None or isinstance(batch, Whole) else len(batch)


def rows(batch: Batch, some: slice, device: torch.device) -> Batch:
    """Some rows of a batch, on a device."""
    if isinstance(batch, Whole):
        return rows(batch.value, slice(None), device)
    if isinstance(batch, tuple):
        made = [rows(part, some, device) for part in batch]
        return type(batch)(*made) if hasattr(batch, "_fields") else tuple(made)
    if isinstance(batch, Tensor):
        order = torch.channels_last if batch.ndim == 4 else torch.preserve_format
        return batch[some].to(device, non_blocking=True, memory_format=order)
    if isinstance(batch, Cond):
        return batch[some].to(device)
    return None if batch is None else batch[some]
