"""A sampler fitted to a model: the table that follows this model's own flow most closely in so many evaluations.

A table's free numbers are the noise levels of its evaluations and the weights of the older estimates (``samplers``).
A fine solve of the probability flow from a few dozen noises shows where each row should lead; given the levels, a row's
weights are then a small least-squares problem, solved row by row as the table rolls out. The levels are searched first
on what the reference alone says (``Flow.cheap``: no evaluations), then on the model, one by one; ``polish`` at last
turns all numbers together. All of it takes forward passes only, so it works for any denoiser, guided or not.

What may be spent is a number of evaluations (:func:`plan`), never a time: the result is a function of its inputs, and a
fit that was killed ends, when it is repeated, in the table in which it would have ended (``ledger``). What is kept is
chosen on noises that were not fitted to, and a textbook table is kept unless a fitted one is clearly better there.

References: BNS (Shaul et al. 2024, arXiv:2403.01329), LD3 (Tong et al. 2024, arXiv:2405.15506), S4S (Frankel et al.
2025, arXiv:2502.17423), GITS (Chen et al. 2024, arXiv:2405.11326) fit some of these numbers by other means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .. import noise, schedules
from ..errors import InputError, counted
from ..guidance import Guided, cfg
from ..types import Cond, Denoise
from .ledger import Ledger, Progress, silent
from .planning import Plan, default_evaluations, plan
from .reference import Flow
from .search import Search
from .tables import Table


@runtime_checkable
class Fittable(Protocol):
    """What is read from a ``Model``."""

    @property
    def denoise(self) -> Denoise: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    def null(self, n: int = 1) -> Cond | None: ...


@dataclass(frozen=True)
class Problem:
    """What a table is fitted to.

    Attributes:
        denoise: The model, or the model under guidance.
        shape: Of one sample.
        sigma_max: Noise level to start at.
        sigma_min: Lowest noise level of the reference.
        cond: The denoiser's condition; its rows are used in turn.
        seed: Of the noises.
        batch_size: Images that are evaluated together.
        device: Of the noises and the linear algebra.
        schedule: The levels that the model comes with; its textbook table is a candidate too.
        info: What the tables will say that they were fitted for.
    """

    denoise: Denoise
    shape: tuple[int, ...]
    sigma_max: float
    sigma_min: float
    cond: Cond | None = None
    seed: int = 0
    batch_size: int = 64
    device: torch.device | str = "cpu"
    schedule: Callable[[int], Tensor] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, first: int, n: int) -> tuple[Tensor, Cond | None]:
        """n starts at ``sigma_max`` and their conditions."""
        seeds = range(self.seed + first, self.seed + first + n)
        x = self.sigma_max * noise.initial(seeds, self.shape).to(self.device)
        return x, None if self.cond is None else self.cond[[(first + i) % len(self.cond) for i in range(n)]]


def fit_sampler(
    model: Fittable | Denoise,
    steps: int,
    shape: Sequence[int] | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    cond: Cond | None = None,
    noises: int = 64,
    evaluations: int | None = None,
    polish: bool = True,
    scale: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int = 64,
) -> Table:
    """The best table of ``steps`` evaluations for this model, by the RMS distance from its own probability flow.

    Args:
        model: A ``Model``, or any denoiser (then ``shape``, ``sigma_max`` and ``sigma_min`` are needed).
        steps: Function evaluations of the table.
        shape: Shape of one sample.
        sigma_max: Noise level to start at.
        sigma_min: Lowest noise level of the reference.
        cond: The denoiser's condition; its rows are used in turn.
        noises: How many noises to fit to, at most; others choose between candidates.
        evaluations: What may be spent: evaluations of one image (under guidance a guided one is one). By default what
            a model of this size deserves, see :func:`~fastdiffusion.samplers.planning.default_evaluations`.
        polish: Turn all numbers together at the end, where evaluations are left for it.
        scale: Guidance scale to fit for (needs ``cond``).
        seed: Of the noises.
        device: Of the noises and the linear algebra; by default where the model is.
        batch_size: Images that are evaluated together.

    Returns:
        A table whose ``info`` holds ``error`` and ``textbook_error``, both on noises that were not fitted to, and what
        it was fitted for.
    """
    denoise: Denoise = model if not isinstance(model, Fittable) else model.denoise
    if isinstance(model, Fittable):
        shape, sigma_max, sigma_min = shape or model.shape, sigma_max or model.sigma_max, sigma_min or model.sigma_min
    if shape is None or sigma_max is None or sigma_min is None:
        raise InputError("A bare denoiser needs shape, sigma_max and sigma_min, e.g. shape=(3, 64, 64), 80, 0.002.")
    where = device_of(model, cond) if device is None else torch.device(device)
    if evaluations is None:
        evaluations = default_evaluations(int(getattr(model, "parameters_count", 0)), shape)
    planned = plan([steps], evaluations, shape, noises, polish)
    if scale != 1:  # a model says itself what it was trained to take for "no condition"
        guide = getattr(model, "guide", cfg)
        denoise = guide(denoise, scale, model.null() if isinstance(model, Fittable) else None)
    problem = Problem(
        denoise, tuple(shape), sigma_max, sigma_min, None if cond is None else cond.to(where), seed, batch_size, where,
        info={"scale": scale},
    )  # fmt: skip
    return fit_tables(problem, planned)[steps]


def device_of(model: Any, cond: Cond | None) -> torch.device:
    """Where a model computes: its own ``device``, or its parameters', or the condition's."""
    while isinstance(model, Guided):
        model = model.denoise
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    known = (v for v in vars(cond or Cond()).values() if isinstance(v, Tensor))
    return getattr(model, "device", None) or next((v.device for v in (*parameters, *known)), torch.device("cpu"))


@torch.no_grad()
def fit_tables(
    problem: Problem,
    planned: Plan,
    sampler: str | None = None,
    keep: Path | None = None,
    purpose: str = "",
    progress: Progress | None = None,
) -> dict[int, Table]:
    """The tables of a plan, by their steps.

    Args:
        problem: The model and what it is asked for.
        planned: Of :func:`~fastdiffusion.samplers.planning.plan`.
        sampler: Fit the levels alone, for this textbook sampler: its table with the sigmas that suit the model best.
        keep: A folder for the work in progress. If a fit is killed and repeated with the same folder, it goes on where
            it was, and ends in the same tables, bit for bit.
        purpose: Whatever else decides the result (the model's id, the prompts); other work in the folder is not used.
        progress: Called with the evaluations that are done, how many there will be at most, and what for.
    """
    keep = None if keep is None else keep / hashlib.sha256(purpose.encode()).hexdigest()[:16]
    ledger = Ledger(planned.evaluations, None if keep is None else keep / "measured.jsonl", progress or silent)
    levels = schedules.exponential(planned.reference, problem.sigma_min, problem.sigma_max)
    ledger.what = f"reference of {counted(planned.reference, 'evaluation')}"
    flows: list[Flow] = []
    for part, first, n in (("fit", 0, planned.noises), ("held-out", planned.noises, planned.held_out)):
        x, cond = problem.draw(first, n)
        place = None if keep is None else keep / part
        flows.append(Flow.solve(problem.denoise, x, levels, cond, problem.batch_size, ledger.tick, place))
        ledger.spend(n * planned.reference)
    tables = {}
    for i, steps in enumerate(planned.steps):
        ledger.what = f"table of {counted(steps, 'step')}"
        ledger.limit = planned.evaluations - (len(planned.steps) - 1 - i) * planned.each
        search = Search(flows[0], flows[1], ledger, steps, problem.sigma_min, problem.schedule)
        best = search.best_levels(sampler) if sampler else search.best_table(planned.polish)
        facts = {"shape": list(problem.shape), "sigma_min": problem.sigma_min, "noises": planned.noises}
        tables[steps] = replace(best, info={**best.info, **facts, **problem.info})
    return tables
