"""A table of numbers, and the one loop that performs any."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..guidance import start
from ..io import untrusted_json
from ..io.guarded import BUDGET
from ..noise import Fresh, Paths
from ..schedules import check_sigmas
from ..types import Cond, Denoise, Run, Step


@dataclass(frozen=True)
class Row:
    """One evaluation of the denoiser and the move after it (the formula above).

    Attributes:
        sigma: Noise level of the evaluation.
        ratio: How much of x - D0 is kept; to/sigma for a deterministic step.
        weights: w_j of the older estimates, the most recent first.
        noise: Parts (b, from, to) of fresh noise: amplitude, and the noise levels that it belongs between.
    """

    sigma: float
    ratio: float
    weights: tuple[float, ...] = ()
    noise: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Table:
    """A sampler with its numbers filled in. ``sigmas`` is what it was made for; ``info`` is free (errors, source)."""

    name: str
    sigmas: tuple[float, ...]
    rows: tuple[Row, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Number of function evaluations of a run."""
        return len(self.rows)

    @property
    def depth(self) -> int:
        """How many older estimates the loop must keep."""
        return max((len(row.weights) for row in self.rows), default=0)

    @property
    def stochastic(self) -> bool:
        """Whether a run draws noise after the start."""
        return any(row.noise for row in self.rows)

    def to_json(self) -> str:
        """Plain JSON; :meth:`from_json` gives the same table back, bit for bit."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | Mapping[str, Any]) -> Table:
        """Read a table; raises InputError where the text is not one."""
        try:
            raw = untrusted_json.parsed(text) if isinstance(text, str) else text
            BUDGET.check(rows=len(raw["rows"]), history=max((len(r["weights"]) for r in raw["rows"]), default=0))
            rows = tuple(
                Row(
                    float(r["sigma"]),
                    float(r["ratio"]),
                    tuple(float(w) for w in r["weights"]),
                    tuple((float(b), float(s), float(t)) for b, s, t in r["noise"]),
                )
                for r in raw["rows"]
            )
            table = Table(str(raw["name"]), tuple(float(s) for s in raw["sigmas"]), rows, dict(raw.get("info", {})))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            raise InputError(f"This is not a sampler table ({error}). Save one with table.to_json().") from None
        numbers = [n for r in rows for n in (r.sigma, r.ratio, *r.weights, *(v for part in r.noise for v in part))]
        if not rows or not all(abs(n) <= BUDGET.number for n in numbers) or any(r.sigma <= 0 for r in rows):
            raise InputError("This sampler table has no rows, or a sigma or weight that is not a finite number.")
        reached = math.inf  # noise is drawn towards falling sigma; a rise begins anew
        for _, s, t in (part for row in rows for part in row.noise):
            falls = t < s
            if min(s, t) < 1 / BUDGET.number or (falls and not (s <= reached and s**-2 < t**-2)):
                raise InputError(f"This sampler table has noise from sigma {s:g} to {t:g}, which cannot be drawn.")
            reached = t if falls else math.inf
        if any(len(row.weights) > i for i, row in enumerate(rows)):
            raise InputError("This sampler table weighs estimates that do not exist yet.")
        check_sigmas(list(table.sigmas), rising=True)
        return table

    def __str__(self) -> str:
        printed = [f"{self.name}: {self.nfe} evaluations from sigma {self.sigmas[0]:g}"]
        for i, row in enumerate(self.rows):
            weights = " ".join(f"{w:+.4f}" for w in row.weights)
            noise = " ".join(f"+{b:.4f}n" for b, _, _ in row.noise)
            printed.append(f"{i:3d}  sigma {row.sigma:10.5f}  keep {row.ratio:.5f}  {weights}  {noise}".rstrip())
        return "\n".join(printed)


def move(row: Row, x: Tensor, x0: Tensor, history: Iterable[Tensor]) -> Tensor:
    """The state after an evaluation, without its fresh noise. ``history``: older estimates, the most recent first."""
    x = torch.lerp(x0, x, row.ratio) if row.ratio != 0 else x0.clone()
    if row.weights:
        x.add_(x0, alpha=-sum(row.weights))
        for w, older in zip(row.weights, history, strict=False):
            x.add_(older, alpha=w)
    return x


def run(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    table: Table,
    cond: Cond | None = None,
    seeds: Sequence[int] | None = None,
    paths: Fresh | None = None,
    grad: bool = False,
) -> Iterator[Step]:
    """Perform a table. The last step's ``x`` is the result; to stop early is to stop iterating.

    Args:
        denoise: A model, or a model under guidance.
        x: The start, already at noise level ``table.sigmas[0]``: usually ``sigmas[0] * noise.initial(seeds, shape)``.
        table: What to perform.
        cond: Passed on to the denoiser.
        seeds: One per image; needed by stochastic tables only.
        paths: Where their noise comes from instead: by default Brownian paths of the seeds.
        grad: Keep the graph, to differentiate the run; it holds the activations of every evaluation.
    """
    if table.stochastic and paths is None and (seeds is None or len(seeds) != len(x)):
        got = "none" if seeds is None else f"{len(seeds)} for {len(x)} images"
        raise InputError(
            f"Sampler {table.name!r} draws noise and needs one seed per image, got {got}. Pass seeds=range({len(x)})."
        )
    now = Run(tuple(row.sigma for row in table.rows), len(table.sigmas) - 1)
    denoise = start(denoise, now)
    if paths is None and table.stochastic and seeds is not None:
        paths = Paths(seeds, x)
    sigmas = torch.tensor(now.sigmas, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x)).unbind()
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    for i, (row, sigma) in enumerate(zip(table.rows, sigmas, strict=True)):
        now.index, now.sigma = i, row.sigma
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            x0 = denoise(x, sigma, cond)
            x = move(row, x, x0, history)
            for b, level, to in row.noise:
                assert paths is not None
                x.add_(paths.draw(level, to), alpha=b)
        history.appendleft(x0)
        yield Step(i, table.nfe, row.sigma, x0, x)


def final(steps: Iterator[Step]) -> Tensor:
    """Run to the end and return the result."""
    return deque(steps, maxlen=1)[0].x
