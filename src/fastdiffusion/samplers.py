"""Every sampler is a table.

A sampler moves noise to data by calling the denoiser D at falling noise levels. All that it does in between is linear:

    x' = D0 + ratio * (x - D0) + sum_j w_j * (D_j - D0) + b * noise

where D0 is the newest estimate, D_j are older ones. Euler (= DDIM), Heun, Adams, DPM-Solver++, DEIS, UniPC with its
corrector, and every ancestral or SDE variant differ only in the numbers ratio, w and b. So a sampler is written in
``solvers`` as its paper writes it, in terms of ``D``, ``x`` and ``sigmas``; it is run once on symbols (:func:`trace`),
and the numbers that come out are its :class:`Table`. One loop (:func:`run`) performs any table, and a table can be
saved, printed, compared, and fitted to a model (``fastdiffusion.fitting``).

Because D0 itself appears with weight one, a model that always knows x0 returns it exactly, from every table.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from . import langevin, schedules, solvers
from .errors import InputError, unknown
from .guidance import start
from .noise import Fresh, Paths
from .schedules import check_sigmas
from .types import Cond, Denoise, Step


@dataclass(frozen=True)
class Row:
    """One denoiser call and the move after it (the formula above).

    Attributes:
        sigma: Noise level of the call.
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
        """Number of denoiser calls of a run."""
        return len(self.rows)

    @property
    def depth(self) -> int:
        """How many older estimates the loop must remember."""
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
            raw = json.loads(text) if isinstance(text, str) else text
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
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is not a sampler table ({error}). Save one with table.to_json().") from None
        numbers = [n for r in rows for n in (r.sigma, r.ratio, *r.weights, *(v for part in r.noise for v in part))]
        if not rows or not all(map(math.isfinite, numbers)) or any(r.sigma <= 0 for r in rows):
            raise InputError("This sampler table has no rows, or a sigma or weight that is not a finite number.")
        if any(len(row.weights) > i for i, row in enumerate(rows)):
            raise InputError("This sampler table weighs estimates that do not exist yet.")
        check_sigmas(list(table.sigmas), rising=True)
        return table

    def __str__(self) -> str:
        printed = [f"{self.name}: {self.nfe} calls from sigma {self.sigmas[0]:g}"]
        for i, row in enumerate(self.rows):
            weights = " ".join(f"{w:+.4f}" for w in row.weights)
            noise = " ".join(f"+{b:.4f}n" for b, _, _ in row.noise)
            printed.append(f"{i:3d}  sigma {row.sigma:10.5f}  keep {row.ratio:.5f}  {weights}  {noise}".rstrip())
        return "\n".join(printed)


# ---- the loop ---------------------------------------------------------------------------------------------------


def move(row: Row, x: Tensor, x0: Tensor, history: Iterable[Tensor]) -> Tensor:
    """The state after a call, its fresh noise still to come. ``history``: older estimates, the most recent first."""
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
) -> Iterator[Step]:
    """Perform a table. The last step's ``x`` is the result; to stop early is to stop iterating.

    Args:
        denoise: A model, or a model under guidance.
        x: The start, already at noise level ``table.sigmas[0]``: usually ``sigmas[0] * noise.initial(seeds, shape)``.
        table: What to perform.
        cond: Passed on to the denoiser.
        seeds: One per image; needed by stochastic tables only.
        paths: Where their noise comes from instead: by default Brownian paths of the seeds.
    """
    if table.stochastic and paths is None and (seeds is None or len(seeds) != len(x)):
        got = "none" if seeds is None else f"{len(seeds)} for {len(x)} images"
        raise InputError(
            f"Sampler {table.name!r} draws noise and needs one seed per image, got {got}. Pass seeds=range({len(x)})."
        )
    denoise = start(denoise)
    if paths is None and table.stochastic and seeds is not None:
        paths = Paths(seeds, x)
    sigmas = torch.tensor([[row.sigma] for row in table.rows], dtype=x.dtype, device=x.device).expand(-1, len(x))
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    for i, row in enumerate(table.rows):
        x0 = denoise(x, sigmas[i], cond)
        x = move(row, x, x0, history)
        for b, sigma, to in row.noise:
            assert paths is not None
            x.add_(paths.draw(sigma, to), alpha=b)
        history.appendleft(x0)
        yield Step(i, table.nfe, row.sigma, x0, x)


def final(steps: Iterator[Step]) -> Tensor:
    """Run to the end and return the result."""
    return deque(steps, maxlen=1)[0].x


# ---- from a paper's formula to a table --------------------------------------------------------------------------

Symbol = tuple[str, int]  # ("x", k): the state at call k; ("D", k): its estimate; ("n", k): the k-th fresh noise


class Linear:
    """A sum of symbols with numbers before them: what a sampler's state is, when it is run on symbols."""

    def __init__(self, terms: dict[Symbol, float]):
        self.terms = terms

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms.get(key, 0.0) + value
        return Linear({key: value for key, value in terms.items() if value})

    def __mul__(self, factor: float) -> Linear:
        return Linear({key: factor * value for key, value in self.terms.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __truediv__(self, factor: float) -> Linear:
        return self * (1 / factor)


def trace(
    formula: Callable[..., Any],
    sigmas: Tensor | Sequence[float],
    name: str = "custom",
    rising: bool = False,
    **options: Any,
) -> Table:
    """Run a method (``solvers``) on symbols and read off its table.

    Between two calls the state is linear in the last state, the estimates so far and fresh noise; the numbers before
    the symbols are the row. Where sigmas rise (allowed by ``rising``), noise is added and the method starts afresh.
    Raises InputError where a method is not of that form, or a perfect model would not get its x0 back.
    """
    levels = check_sigmas(sigmas, rising).tolist()
    evaluations: list[float] = []  # sigma of each call
    states: list[Linear] = []  # the state that each call saw, in terms of the state that the call before saw
    drawn: list[tuple[int, float, float]] = []  # the call that each noise follows, and the levels it goes between

    def D(x: Linear, sigma: float) -> Linear:
        k = len(evaluations)
        evaluations.append(sigma)
        states.append(Linear(x.terms))
        x.terms = {("x", k): 1.0}  # from here on the state is a symbol of its own, so that terms never pile up
        return Linear({("D", k): 1.0})

    def noise(sigma: float, to: float) -> Linear:
        drawn.append((len(evaluations) - 1, sigma, to))
        return Linear({("n", len(drawn) - 1): 1.0})

    x = Linear({("x", -1): 1.0})
    segment = 0
    for i in range(1, len(levels) + 1):
        if i == len(levels) or levels[i] > levels[i - 1]:
            x = formula(D, noise, x, levels[segment:i], **options)
            segment = i
            if i < len(levels):
                x = x + math.sqrt(levels[i] ** 2 - levels[i - 1] ** 2) * noise(levels[i - 1], levels[i])

    rows: list[Row] = []
    moves: list[tuple[float, Linear]] = []  # the state that call k + 1 saw = ratio * the state that call k saw + rest
    for k, after in enumerate([*states[1:], x]):
        terms = dict(after.terms)
        for j in range(k):  # a method may still hold an earlier state: the move after it, read backwards, replaces it
            if held := terms.pop(("x", j), 0.0):
                ratio, rest = moves[j]
                terms = (Linear(terms) + held / ratio * (Linear({("x", j + 1): 1.0}) - rest)).terms
        ratio = terms.pop(("x", k), 0.0)
        ratio = ratio if abs(ratio) > 1e-13 else 0.0
        moves.append((ratio, Linear(dict(terms))))
        newest = terms.pop(("D", k), 0.0)
        weights = [terms.pop(("D", j), 0.0) for j in range(k - 1, -1, -1)]
        while weights and abs(weights[-1]) < 1e-13:
            weights.pop()
        parts = {drawn[i]: b for (_, i), b in terms.items() if abs(b) > 1e-13}
        if abs(ratio + newest + sum(weights) - 1) > 1e-8 or any(evaluation != k for evaluation, _, _ in parts):
            raise InputError(f"Sampler {name!r} is not a table: a perfect model would not get its x0 back at call {k}.")
        rows.append(Row(evaluations[k], ratio, tuple(weights), tuple((b, s, t) for (_, s, t), b in parts.items())))
    return Table(name, tuple(levels), tuple(rows), {"options": options} if options else {})


# ---- the registry -----------------------------------------------------------------------------------------------

METHODS = solvers.METHODS | langevin.METHODS


class About(NamedTuple):
    """What to know of a sampler: see ``solvers.Method``."""

    name: str
    summary: str
    order: int
    nfe: int
    stochastic: bool
    use: str


def restart(
    sigmas: Tensor | Sequence[float],
    low: float = 0.05,
    high: float = 0.3,
    steps: int = 4,
    times: int = 2,
    sampler: str = "heun",
) -> Table:
    """Restart (Xu et al. 2023, arXiv:2306.14878, algorithm 2): go back from ``low`` to ``high`` with fresh noise."""
    return replace(table(sampler, schedules.restart(sigmas, low, high, steps, times), rising=True), name="restart")


def repaint(sigmas: Tensor | Sequence[float], segment: int = 10, times: int = 2, sampler: str = "ddpm") -> Table:
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865, app. B): each ``segment`` of steps is done ``times``."""
    return replace(table(sampler, schedules.repaint(sigmas, segment, times), rising=True), name="repaint")


def _builder(name: str) -> Callable[..., Table]:
    def build(sigmas: Tensor | Sequence[float], rising: bool = False, **options: Any) -> Table:
        return trace(METHODS[name].formula, sigmas, name, rising, **options)

    build.__doc__, build.__name__ = METHODS[name].formula.__doc__, name
    build.__signature__ = _signature(METHODS[name].formula)  # type: ignore[attr-defined]
    return build


def _signature(formula: Callable[..., Any]) -> inspect.Signature:
    """(sigmas, rising, **options) of a method: what its builder takes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = [inspect.Parameter("sigmas", kind), inspect.Parameter("rising", kind, default=False)]
    return inspect.Signature([*first, *list(inspect.signature(formula).parameters.values())[4:]])


SAMPLERS: dict[str, Callable[..., Table]] = {name: _builder(name) for name in METHODS} | {
    "restart": restart,
    "repaint": repaint,
}
_NOW = {"jump": "consistency"}  # names of the first version, in saved recipes
_COMPOSED = {  # samplers that are another one's table on rising sigmas: order, calls a step, use
    "restart": (2, 2, "better pictures from a good model at 30 calls and more"),
    "repaint": (1, 1, "inpainting: harmonizes the filling with its surroundings, at a price"),
}


def about(name: str) -> About:
    """What a sampler is and when to use it; raises InputError for an unknown name."""
    build, name = _known(name), _NOW.get(name, name)
    summary = (build.__doc__ or "").split("\n")[0]
    if name in METHODS:
        return About(name, summary, *METHODS[name][1:])
    order, nfe, use = _COMPOSED[name]
    return About(name, summary, order, nfe, True, use)


def _known(name: str) -> Callable[..., Table]:
    name = _NOW.get(name, name)
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def table(name: str, sigmas: Tensor | Sequence[float], **options: Any) -> Table:
    """The named sampler's table for ``sigmas``; raises InputError for an unknown name or option."""
    build = _known(name)
    known = list(inspect.signature(build).parameters)[1:]
    for option in options:
        if option not in known:
            raise unknown(f"option of sampler {name!r}", option, known)
    return build(sigmas, **options)
