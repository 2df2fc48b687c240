"""Several processes as one: starting them, agreeing, and stopping all at the same step."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..device import device_of
from ..errors import FastdiffusionError, InputError

ASKED = "FASTDIFFUSION_PROCS"  # how many processes `launch` was asked for
QUIETLY = """
import sys
from fastdiffusion.training.distributed import end_with_parent
end_with_parent()
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
try:
    main()
except SignalException as error:
    sys.exit(128 + error.sigval)
except ChildFailedError as error:  # the process has said what was wrong
    code = error.get_first_failure()[1].exitcode
    sys.exit(code if code >= 0 else 128 - code)
"""  # torchrun, without a page about the process that failed


def rank_and_world() -> tuple[int, int]:
    """(number of this process, how many there are), as torchrun tells them; (0, 1) without it."""
    rank, world = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise InputError(
            f"RANK={rank[:20]} and WORLD_SIZE={world[:20]} are no process of a group. Unset both, or use torchrun."
        )
    return int(rank), int(world)


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when the one that started it ends, however it ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended in between
            os.kill(os.getpid(), signal.SIGTERM)


def check_world() -> None:
    """Refuse to train alone where several processes were asked for: some launchers silently start only one."""
    asked, (_, world) = int(os.environ.get(ASKED, 0)), rank_and_world()
    if asked:
        end_with_parent()
    if asked and asked != world:
        raise InputError(f"{asked} processes were asked for, {world} runs. Start with --procs {asked} or torchrun.")


def launch(procs: int, command: Sequence[str]) -> int:
    """Run ``python <command>`` in ``procs`` processes under torchrun on this machine; the exit code.

    The processes are in a session of their own, so that Ctrl-C reaches them once, through torchrun. When one dies,
    torchrun ends the others.

    Args:
        procs: At least 2.
        command: A script and its arguments, or ``["-m", "package.module", ...]``.
    """
    if procs < 2:
        raise InputError(f"procs must be at least 2, got {procs}. Leave it out to train in one process.")
    port = _free_port()
    torchrun = [sys.executable, "-c", QUIETLY, f"--nproc-per-node={procs}"]
    torchrun += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // procs))
    environment = {"LOGLEVEL": "CRITICAL", **os.environ, ASKED: str(procs), "OMP_NUM_THREADS": threads}
    child = subprocess.Popen([*torchrun, *command], env=environment, start_new_session=True)
    got: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(signal.SIGKILL if got else number)
        got.append(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + got[0] if got else code


def _free_port() -> int:
    """A port of this machine that is free; InputError where its processes could not reach each other."""
    try:
        with socket.socket() as probe, socket.socket() as caller:
            probe.bind(("127.0.0.1", 0))
            probe.listen(1)
            caller.settimeout(2)
            caller.connect(probe.getsockname())
            return probe.getsockname()[1]
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Processes here cannot reach each other at 127.0.0.1: {reason}. Leave out --procs.") from None


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; a second one ends the process at once.

    Outside the main thread, where Python delivers no signals, the list stays empty.
    """
    got: list[int] = []
    when = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal when
        if not got:
            got.append(number)
            when = time.monotonic()
        elif time.monotonic() - when > 0.3:  # sooner, it is the same event reaching us by a second way
            os._exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums of some numbers over all processes: the one message of a training step."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    dist.all_reduce(summed)
    return summed.tolist()


def place(device: str | None) -> torch.device:
    """Where this process computes: on the device of that name, by default the best; several are joined there.

    Raises FastdiffusionError where the processes do not find each other, and would train apart.
    """
    chosen, world = device_of(device), rank_and_world()[1]
    if world == 1:
        return chosen
    from accelerate import PartialState

    # it joins processes on CPUs only where it is asked to
    joined: torch.device = PartialState(cpu=chosen.type == "cpu").device  # pyright: ignore[reportAssignmentType]
    if not dist.is_initialized() or dist.get_world_size() != world:
        raise FastdiffusionError("The processes are not joined, and would train apart. Start them by --procs.")
    return joined


def mean_gradients(module: nn.Module, loss: Tensor) -> Tensor:
    """Average a module's gradients, its statistics (of BatchNorm, of a codebook) and a loss over all processes.

    In one message, after the backward pass: unlike DDP's hooks that serves any loss, one with gradients inside too.
    Gradients of divided weights (FSDP2) are averages already. Returns the mean loss.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return loss
    mine = [p.grad for p in module.parameters() if p.grad is not None and not hasattr(p.grad, "full_tensor")]
    mine += [b for b in module.buffers() if b.is_floating_point() and not hasattr(b, "full_tensor")]
    message = torch.cat([loss.reshape(1).float(), *(t.detach().reshape(-1).float() for t in mine)])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    for tensor, mean in zip(mine, message[1:].split([t.numel() for t in mine]), strict=True):
        tensor.copy_(mean.view(tensor.shape))
    return message[0]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; gradients go back to where each row came from."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gathered.apply(rows.contiguous())  # pyright: ignore[reportReturnType]


class _Gathered(torch.autograd.Function):
    """torch.distributed.nn's ``all_gather`` mixes up gradients that do not lie row by row in memory (gloo)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def shard(module: nn.Module) -> None:
    """Divide a module's weights among the processes, in place (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for p in module.parameters():
        p.data = p.data.contiguous()  # FSDP takes no other order
    fully_shard(module)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece: the parts of a sharded one are gathered from all processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(target: Tensor, value: Tensor) -> Tensor:
    """``value`` on the device, in the memory order and sharding of ``target``."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    if target.shape != value.shape:
        raise ValueError(f"{tuple(value.shape)} is not {tuple(target.shape)}")
    return torch.empty_like(target).copy_(value)
