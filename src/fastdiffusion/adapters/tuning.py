"""Which settings suit a checkpoint on this machine: measured once, when somebody asks for it.

Nothing in a run is decided by a clock. This is the one place that looks at one, and its answer is written down.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ..models import Model
from . import engines

WORTH = 0.9  # of the time, that a setting must get down to
ALIKE = 5e-2  # of the largest value: as far as an estimate may move by less precision
RUNS = 3  # the least time of which counts


class Tuned(NamedTuple):
    """A setting: its name and value for ``load``, or for the person, and what speaks for it."""

    name: str
    value: Any
    why: str


@torch.no_grad()
def tune(load: Callable[..., Model], device: torch.device) -> Iterator[Tuned]:
    """Settings one after the other, each measured with those before it.

    ``load(**options)`` loads the checkpoint anew, with options of ``tasks.loading.LoadOptions``.
    """
    model = load()
    seconds, estimate = timed(model, 1)
    why = ""
    if device.type == "cpu":
        threads, before = torch.get_num_threads(), torch.get_num_threads()
        for n in sorted({1, max((os.cpu_count() or 1) // 2, 1), os.cpu_count() or 1} - {before}):
            torch.set_num_threads(n)
            faster = timed(model, 1)[0]
            if faster < WORTH * seconds:
                seconds, threads = faster, n
        torch.set_num_threads(threads)
        yield Tuned("threads", threads, f"{seconds:.2g} s an evaluation of one image")
    own, chosen = next(model.modules["net"].parameters()).dtype, {}
    for precision, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
        if dtype == own or (precision == "fp16" and device.type == "cpu"):  # slow and narrow there
            continue
        del model
        model = load(precision=precision)
        faster, other = timed(model, 1)
        moved = float((other - estimate).abs().max() / estimate.abs().max())
        if faster < WORTH * seconds and moved <= ALIKE:
            chosen = {"precision": precision}
            why, seconds = f"{faster:.2g} s for {seconds:.2g} s; an estimate moves by {moved:.1e}", faster
            break
    for precision in engines.available() if device.type == "cpu" else ():
        del model
        model = load(engine="openvino", precision=precision)
        faster, other = timed(model, 1)
        moved = float((other - estimate).abs().max() / estimate.abs().max())
        if not engines.refused(model) and faster < WORTH * seconds and moved <= ALIKE:
            chosen = {"engine": "openvino", "precision": precision}
            why, seconds = f"{faster:.2g} s for {seconds:.2g} s; an estimate moves by {moved:.1e}", faster
    model = load(**chosen)
    if chosen:
        for name, value in chosen.items():
            yield Tuned(name, value, why)
    else:
        yield Tuned("precision", None, f"the file's own, {str(own).removeprefix('torch.')}: nothing else gains")
    rows, each = 1, timed(model, 1)[0]
    for n in (2, 4, 8):
        faster = timed(model, n)[0] / n
        if faster > WORTH * each:
            break
        rows, each = n, faster
    yield Tuned("batch_size", rows, f"{each:.2g} s an image")
    free = available(device)
    weights = sum(p.nbytes for module in model.modules.values() for p in module.parameters())
    if 2 * weights < free:
        yield Tuned("mem", None, f"{free / 1e9:.1f} GB are free for {weights / 1e9:.2f} GB of weights")
    else:
        yield Tuned("mem", f"{max(free / 1e6, 1):.0f}M", "is free: tiles and offload follow from it, as few as fit")


def timed(model: Model, rows: int) -> tuple[float, torch.Tensor]:
    """Seconds of one evaluation of so many images, the least of several; and the estimate of the first."""
    x = torch.randn(rows, *model.shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    sigma, cond = x.new_full((rows,), 1.0), model.encode_prompt(["a cat"] * rows)
    least, estimate = float("inf"), x
    for _ in range(RUNS):
        began = time.perf_counter()
        estimate = model.denoise(x, sigma, cond)
        float(estimate.sum())  # a GPU is waited for
        least = min(least, time.perf_counter() - began)
    return least, estimate[:1].float()


def available(device: torch.device) -> float:
    """Bytes of memory that are free for a run."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
