"""The loop for everything that is not a denoiser: autoencoders, dual encoders, classifiers, translators.

    for step in train({"autoencoder": Part(autoencoder, loss)}, 2000, config, folder): ...

A loss is a function of the step's number alone (and of the weights), so that a run that was cut is resumed from its
folder's last checkpoint bit for bit. Several parts with a loss each are trained in turns, as a generator and its
discriminator are.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..device import autocast, check_precision, choose_precision, device_of
from ..errors import CheckpointError, FastdiffusionError, InputError
from ..io.checkpoints import in_code, on_disk
from ..io.run_folder import Folder
from ..noise import Stream, generator
from . import optimizers
from .distributed import like, stop_signals

SAVE_EVERY = 60.0  # seconds between checkpoints
LOG_EVERY = 50  # steps between lines of metrics.jsonl
BAD_IN_A_ROW = 3


class Part(NamedTuple):
    """What is trained, and by which loss: ``loss(step)``, one number, on the device of the run."""

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
    device: str | torch.device | None = None,
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
        minutes: End this session after so long; the same call continues it.
        fresh: Forget what the folder holds.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it, else float32.
        device: Where the parts are moved before the first step, and stay; by default they are trained where they are.
            A loss puts what it draws there. What is random is drawn on the CPU, so that a device changes no batch.

    Raises:
        CheckpointError: The folder holds another run.
        FastdiffusionError: Three losses in a row that are not numbers.
    """
    _check(parts, steps, config, precision)
    config = json.loads(json.dumps({**config, "steps": steps, "seed": seed}))
    place = _moved(parts, device)
    optimize = {n: optimizers.build(p.optimizer, _learned(p.module), p.lr, p.weight_decay) for n, p in parts.items()}
    run = None if folder is None else Folder(folder)
    first, bad, state = 0, 0, {"precision": choose_precision(precision, place)}
    with ExitStack() as held, torch.random.fork_rng([place] if place.type == "cuda" else []):
        stopped = held.enter_context(stop_signals())
        if run is not None:
            held.enter_context(run.lock())
            if fresh:
                run.clear()
            if (checkpoint := run.latest()) is not None:
                first, state = checkpoint[0], _resume(parts, optimize, checkpoint, config, run)
        for p in parts.values():
            p.module.train()
        context = autocast(state["precision"], place)
        saved, done = (started := time.perf_counter()), first
        bar = held.enter_context(tqdm(total=steps, initial=first, desc="training", disable=None, leave=False))
        for step in range(first, steps):
            torch.manual_seed(generator(seed, Stream.DROPOUT, step).initial_seed() % 2**63)
            factor = optimizers.rate(step, 0, warmup, int(steps * (1 - decay)), steps)
            updates = {n: _update(p, optimize[n], step, p.lr * factor, context) for n, p in parts.items()}
            losses = {name: loss for name, (loss, _) in updates.items()}
            bad = 0 if all(finite for _, finite in updates.values()) else bad + 1
            if bad >= BAD_IN_A_ROW:
                raise FastdiffusionError(
                    f"{bad} losses or gradients in a row were not numbers, at step {step + 1}. Try a lower lr."
                )
            bar.update()
            bar.set_postfix({k: f"{v:.4g}" for k, v in losses.items()}, refresh=False)
            last, done = step + 1 == steps, step + 1
            if run is not None and (done % LOG_EVERY == 0 or last):
                seconds = round(time.perf_counter() - started, 1)
                run.append({"step": done, "seconds": seconds, **{k: round(v, 6) for k, v in losses.items()}})
            yield Done(done, steps, losses)
            now = time.perf_counter()
            over = bool(stopped) or (minutes is not None and now - started > 60 * minutes)
            if run is not None and (last or over or now - saved > SAVE_EVERY) and not bad:
                run.save(done, _tensors(parts, optimize), {"run": config, **state, **_settings(optimize)})
                saved = now
            if over:
                break
        for p in parts.values():
            p.module.eval()
    if stopped:
        if run is not None:
            print(f"Stopped at step {done:,}. The same command continues from here.", file=sys.stderr)
        raise KeyboardInterrupt


def _check(parts: Mapping[str, Part], steps: int, config: Mapping[str, Any], precision: str) -> None:
    """Refuse what cannot be trained."""
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}. Try steps=1000.")
    if config.get("batch_size", 1) < 1:
        raise InputError(f"batch_size must be at least 1, got {config['batch_size']}. Try 64.")
    check_precision(precision)
    for part in parts.values():
        if not 0 < part.lr < math.inf:
            raise InputError(f"lr must be a positive number, got {part.lr}. Try 1e-3.")


def _moved(parts: Mapping[str, Part], device: str | torch.device | None) -> torch.device:
    """Put the parts on the device; where they are."""
    if device is not None:
        place = device_of(device) if isinstance(device, str) else device
        for part in parts.values():
            part.module.to(place)
    return next(p.device for part in parts.values() for p in part.module.parameters())


def _update(part: Part, optimize: list[Any], step: int, lr: float, context: torch.autocast) -> tuple[float, bool]:
    """Learn from one loss, if it and its gradient are finite: (loss, whether they are)."""
    for optimizer in optimize:
        optimizer.zero_grad(set_to_none=True)
    with context:
        loss = part.loss(step)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(part.module.parameters(), 1.0)
    value, length = torch.stack([loss.detach().float(), norm.float()]).tolist()  # the processor waits here alone
    finite = math.isfinite(value) and math.isfinite(length)
    if finite:
        for optimizer in optimize:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
    return value, finite


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
    settings = {in_code(name): kept for name, kept in old["optimizer"].items()}  # the first files have other names
    for name, p in parts.items():
        own = p.module.state_dict()
        p.module.load_state_dict({k: like(own[k], tensors[f"{name}.{k}"]) for k in own})
        prefix = f"optimizer.{name}."
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizers.unpack(optimize[name], inner, settings[name])
    return {"precision": old["precision"]}
