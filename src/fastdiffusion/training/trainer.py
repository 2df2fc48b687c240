"""The loop for everything that is not a denoiser: autoencoders, dual encoders, classifiers, translators.

    for step in train(Run(folder, config), {"autoencoder": Part(autoencoder, loss)}, steps=2000): ...

A loss is a function of the step's number alone (and of the weights), so that a run which was cut goes on from its
folder's last checkpoint bit for bit. Several parts with a loss each are trained in turns, as a generator and its
discriminator are.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import CheckpointError, FastdiffusionError, InputError, unknown
from ..io.checkpoints import on_disk
from ..io.run_folder import Folder
from ..noise import generator
from . import optimizers
from .batches import DROPOUT
from .distributed import like, stop_signals

SAVE_EVERY = 60.0  # seconds between checkpoints
LOG_EVERY = 50  # steps between lines of metrics.jsonl
BAD_IN_A_ROW = 3
PRECISIONS = ("auto", "float32", "bfloat16")


class Part(NamedTuple):
    """What is trained, and by which loss: ``loss(step)``, one number."""

    module: nn.Module
    loss: Callable[[int], Tensor]
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0


class Done(NamedTuple):
    """A step that was done: its number from 1, of how many, and each part's loss."""

    step: int
    of: int
    losses: dict[str, float]


def train(
    parts: Mapping[str, Part],
    steps: int,
    config: Mapping[str, Any],
    folder: str | Path | None = None,
    seed: int = 0,
    warmup: int = 50,
    decay: float = 0.5,
    minutes: float | None = None,
    fresh: bool = False,
    precision: str = "auto",
) -> Iterator[Done]:
    """Train ``parts`` in place, in their order within each step; they are in eval mode at the end.

    Args:
        parts: By name; each part's optimizer takes those of its parameters that ask for gradients.
        steps: Of the whole run, those already done included.
        config: What two runs must share to be one; JSON.
        folder: Where checkpoints and metrics.jsonl go; None keeps all in memory.
        seed: Of dropout, beside what ``config`` says.
        warmup: Steps in which the learning rate rises.
        decay: Last part of the run in which it falls to 0.
        minutes: End this session after so long; the same call goes on.
        fresh: Forget what the folder holds.
        precision: "float32", "bfloat16", or "auto": the faster one, measured.

    Raises:
        CheckpointError: The folder holds another run.
        FastdiffusionError: Three losses in a row that are not numbers.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}. Try steps=1000.")
    if config.get("batch_size", 1) < 1:
        raise InputError(f"batch_size must be at least 1, got {config['batch_size']}. Try 64.")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    for part in parts.values():
        if not 0 < part.lr < math.inf:
            raise InputError(f"lr must be a positive number, got {part.lr}. Try 1e-3.")
    config = json.loads(json.dumps({**config, "steps": steps, "seed": seed}))
    optimize = {
        name: optimizers.build(p.optimizer, _learned(p.module), p.lr, p.weight_decay) for name, p in parts.items()
    }
    run = None if folder is None else Folder(folder)
    first, state = 0, {"precision": None if precision == "auto" else precision}
    bad = 0
    with ExitStack() as held, torch.random.fork_rng(devices=[]):
        stopped = held.enter_context(stop_signals())
        if run is not None:
            held.enter_context(run.lock())
            if fresh:
                run.clear()
            if (checkpoint := run.latest()) is not None:
                first = checkpoint[0]
                state = _resume(parts, optimize, checkpoint, config, run)
        for p in parts.values():
            p.module.train()
        if state["precision"] is None:
            state["precision"] = _faster(parts, first)
        autocast = torch.autocast("cpu", torch.bfloat16) if state["precision"] == "bfloat16" else nullcontext()
        saved, done = (started := time.perf_counter()), first
        bar = held.enter_context(tqdm(total=steps, initial=first, desc="training", disable=None, leave=False))
        for step in range(first, steps):
            torch.manual_seed(generator(seed, DROPOUT, step).initial_seed() % 2**63)
            factor = optimizers.rate(step, 0, warmup, int(steps * (1 - decay)), steps)
            losses, all_finite = {}, True
            for name, p in parts.items():
                for optimizer in optimize[name]:
                    optimizer.zero_grad(set_to_none=True)
                with autocast:
                    loss = p.loss(step)
                loss.backward()
                losses[name] = float(loss.detach())
                norm = nn.utils.clip_grad_norm_(p.module.parameters(), 1.0)
                finite = math.isfinite(losses[name]) and math.isfinite(float(norm))
                all_finite &= finite
                if finite:
                    for optimizer in optimize[name]:
                        for group in optimizer.param_groups:
                            group["lr"] = p.lr * factor
                        optimizer.step()
            bad = 0 if all_finite else bad + 1
            if bad >= BAD_IN_A_ROW:
                raise FastdiffusionError(
                    f"{bad} losses or gradients in a row were not numbers, at step {step + 1}. Try a lower lr."
                )
            bar.update()
            bar.set_postfix({k: f"{v:.4g}" for k, v in losses.items()}, refresh=False)
            last = step + 1 == steps
            if run is not None and ((step + 1) % LOG_EVERY == 0 or last):
                seconds = round(time.perf_counter() - started, 1)
                run.append({"step": step + 1, "seconds": seconds, **{k: round(v, 6) for k, v in losses.items()}})
            done = step + 1
            yield Done(done, steps, losses)
            now = time.perf_counter()
            over = bool(stopped) or (minutes is not None and now - started > 60 * minutes)
            if run is not None and (last or over or now - saved > SAVE_EVERY) and not bad:
                run.save(step + 1, _tensors(parts, optimize), {"run": config, **state, **_settings(optimize)})
                saved = now
            if over:
                break
        for p in parts.values():
            p.module.eval()
    if stopped:
        if run is not None:
            print(f"Stopped at step {done:,}. The same command goes on from here.", file=sys.stderr)
        raise KeyboardInterrupt


def _learned(module: nn.Module) -> nn.Module:
    """What of a module asks for gradients; the module itself if that is all, so that optimizers can tell its layers."""
    learned = [p for p in module.parameters() if p.requires_grad]
    return module if len(learned) == len(list(module.parameters())) else nn.ParameterList(learned)


def _tensors(parts: Mapping[str, Part], optimize: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """Weights and the optimizers' states, by name."""
    weights = {f"{name}.{k}": v for name, p in parts.items() for k, v in p.module.state_dict().items()}
    moments = {f"optimizer.{n}.{k}": v for n, o in optimize.items() for k, v in optimizers.pack(o)[0].items()}
    return weights | moments


def _settings(optimize: Mapping[str, list[Any]]) -> dict[str, Any]:
    return {"optimizer": {on_disk(name): optimizers.pack(o)[1] for name, o in optimize.items()}}


def _resume(
    parts: Mapping[str, Part],
    optimize: Mapping[str, list[Any]],
    checkpoint: tuple[int, dict[str, Any], dict[str, Tensor]],
    config: Mapping[str, Any],
    run: Folder,
) -> dict[str, Any]:
    """Put a checkpoint back in place."""
    _, old, tensors = checkpoint
    then = old.get("run", {})
    changed = sorted(k for k in config.keys() | then.keys() if config.get(k) != then.get(k))
    if changed:
        what = ", ".join(f"{k}={str(then.get(k))[:40]} (now {str(config.get(k))[:40]})" for k in changed)
        raise CheckpointError(f"{run.path} holds a run with {what}. Choose another folder, or start anew with --fresh.")
    for name, p in parts.items():
        own = p.module.state_dict()
        p.module.load_state_dict({k: like(own[k], tensors[f"{name}.{k}"]) for k in own})
        prefix = f"optimizer.{name}."
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizers.unpack(optimize[name], inner, old["optimizer"][on_disk(name)])
    return {"precision": old["precision"]}


def _faster(parts: Mapping[str, Part], step: int) -> str:
    """ "bfloat16" where that is clearly faster, measured in turns; see ``examples.faster_precision``.

    What the steps change in passing, such as a codebook that follows, is put back.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "float32"
    losses = [p.loss for p in parts.values()]
    kept = [(buffer, buffer.clone()) for p in parts.values() for buffer in p.module.buffers()]
    times = [math.inf, math.inf]
    for _ in range(3):
        for i in range(2):
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(i)):
                total = sum((loss(step) for loss in losses), torch.zeros(()))
            total.backward()
            times[i] = min(times[i], time.perf_counter() - started)
    for p in parts.values():
        p.module.zero_grad(set_to_none=True)
    for buffer, before in kept:
        buffer.copy_(before)
    return "bfloat16" if times[1] < 0.9 * times[0] else "float32"
