"""Every sampler is a table.

A sampler moves noise to data by calling the denoiser D at falling noise levels. All that it does in between is linear:

    x' = D0 + ratio * (x - D0) + sum_j w_j * (D_j - D0) + b * noise

where D0 is the newest estimate, D_j are older ones. Euler (= DDIM), Heun, Adams, DPM-Solver++, DEIS, UniPC with its
corrector, and every ancestral or SDE variant differ only in the numbers ratio, w and b. So a sampler is written below
as its paper writes it, in terms of ``D``, ``x`` and ``sigmas``; it is run once on symbols (:func:`trace`), and the
numbers that come out are its :class:`Table`. One loop (:func:`run`) performs any table, and a table can be saved,
printed, compared, and fitted to a model (``fastdiffusion.fitting``).

Because D0 itself appears with weight one, a model that always knows x0 returns it exactly, from every table.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import InputError, unknown
from .guidance import start
from .noise import Paths
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
    """A sampler with its numbers filled in. ``sigmas`` is what it was made for; ``info`` is free (fit errors, source)."""

    name: str
    sigmas: tuple[float, ...]
    rows: tuple[Row, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> int:
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
        check_sigmas(list(table.sigmas), rising=True)
        return table

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.calls} calls from sigma {self.sigmas[0]:g}"]
        for i, row in enumerate(self.rows):
            weights = " ".join(f"{w:+.4f}" for w in row.weights)
            noise = " ".join(f"+{b:.4f}n" for b, _, _ in row.noise)
            lines.append(f"{i:3d}  sigma {row.sigma:10.5f}  keep {row.ratio:.5f}  {weights}  {noise}".rstrip())
        return "\n".join(lines)


# ---- the loop ---------------------------------------------------------------------------------------------------


def run(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    table: Table,
    cond: Cond | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Perform a table. The last step's ``x`` is the result; to stop early is to stop iterating.

    Args:
        denoise: A model, or a model under guidance.
        x: The start, already at noise level ``table.sigmas[0]``: usually ``sigmas[0] * noise.initial(seeds, shape)``.
        table: What to perform.
        cond: Passed on to the denoiser.
        seeds: One per image; needed by stochastic tables only.
    """
    if table.stochastic and seeds is None:
        raise InputError(f"Sampler {table.name!r} draws noise. Pass seeds, one per image: seeds=range({len(x)}).")
    denoise = start(denoise)
    paths = Paths(seeds, x) if table.stochastic and seeds is not None else None
    sigmas = torch.tensor([[row.sigma] for row in table.rows], dtype=x.dtype, device=x.device).expand(-1, len(x))
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    for i, row in enumerate(table.rows):
        x0 = denoise(x, sigmas[i], cond)
        x = torch.lerp(x0, x, row.ratio) if row.ratio != 0 else x0.clone()
        for w, older in zip(row.weights, history, strict=False):
            x = x.add(older - x0, alpha=w)
        for part, (b, sigma, to) in enumerate(row.noise):
            assert paths is not None
            x = x.add(paths.draw(i, part, sigma, to), alpha=b)
        history.appendleft(x0)
        yield Step(i, table.calls, row.sigma, x0, x)


def final(steps: Iterator[Step]) -> Tensor:
    """Run to the end and return the result."""
    return deque(steps, maxlen=1)[0].x


# ---- from a paper's formula to a table --------------------------------------------------------------------------


class Linear:
    """A sum of symbols with numbers before them: what a sampler's state is, when it is run on symbols."""

    def __init__(self, terms: dict[Any, float]):
        self.terms = terms

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms.get(key, 0.0) + value
        return Linear(terms)

    def __mul__(self, factor: float) -> Linear:
        return Linear({key: factor * value for key, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Linear:
        return self * -1.0

    def __sub__(self, other: Linear) -> Linear:
        return self + -other

    def __truediv__(self, factor: float) -> Linear:
        return self * (1 / factor)


Call = Callable[[Linear, float], Linear]
Draw = Callable[[float, float], Linear]
Method = Callable[..., Linear]


def trace(method: Method, sigmas: Tensor | Sequence[float], name: str = "", rising: bool = False, **options: Any) -> Table:
    """Run a sampler on symbols and read off its table.

    Between two calls the state is linear in the last state, the estimates so far and fresh noise; the coefficients of
    the symbols are the row. Raises InputError where a method is not of that form (it is then not a table sampler).
    """
    s = check_sigmas(torch.as_tensor(sigmas, dtype=torch.float64), rising=rising).tolist()
    points: list[tuple[Linear, float]] = []  # where the denoiser was called

    def D(x: Linear, sigma: float) -> Linear:
        points.append((x, sigma))
        return Linear({("D", len(points) - 1): 1.0})

    drawn: list[tuple[float, float]] = []

    def noise(sigma: float, to: float) -> Linear:
        drawn.append((sigma, to))
        return Linear({("n", len(drawn) - 1): 1.0})

    result = method(D, noise, Linear({"x": 1.0}), s, **options)
    rows = []
    for k, ((here, sigma), (there, _)) in enumerate(pairwise([*points, (result, 0.0)])):
        ratio = there.terms.get("x", 0.0) / here.terms["x"]
        rest = (there - ratio * here).terms
        newest = rest.pop(("D", k), 0.0)
        older = [rest.pop(("D", j), 0.0) for j in range(k - 1, -1, -1)]
        rest.pop("x", None)
        parts = tuple((b, *drawn[key[1]]) for key, b in rest.items() if abs(b) > 1e-12)
        while older and abs(older[-1]) < 1e-13:
            older.pop()
        if abs(ratio + newest + sum(older) - 1) > 1e-8:
            raise InputError(f"Sampler {name!r} is inconsistent: a perfect model would not get its x0 back at call {k}.")
        rows.append(Row(sigma, ratio, tuple(older), parts))
    return Table(name or getattr(method, "__name__", "custom"), tuple(s), tuple(rows), {"options": options} if options else {})


def step(x: Linear, x0: Linear, s: float, t: float) -> Linear:
    """Re-degrade the estimate to level t with the noise that x has at level s (DDIM, Song et al. 2021a, eq. 12)."""
    return x0 + (t / s) * (x - x0)


def ancestral_split(s: float, t: float, eta: float = 1.0) -> tuple[float, float]:
    """(down, up): step deterministically to ``down``, then add ``up`` of noise; down^2 + up^2 = t^2.

    eta = 1 is DDPM's posterior variance, t^2 (s^2 - t^2) / s^2 (Ho et al. 2020, eq. 7); eta = 0 is deterministic.
    """
    up = min(t, eta * t * math.sqrt(max(s * s - t * t, 0.0)) / s)
    return math.sqrt(t * t - up * up), up


def euler(D: Call, noise: Draw, x: Linear, sigmas: list[float]) -> Linear:
    """Euler on the probability-flow ODE, which is DDIM with eta = 0 (Karras et al. 2022; Song et al. 2021a)."""
    for s, t in pairwise(sigmas):
        x = step(x, D(x, s), s, t)
    return x


def ddim(D: Call, noise: Draw, x: Linear, sigmas: list[float], eta: float = 0.0) -> Linear:
    """DDIM with fresh noise, eta = 0 deterministic to eta = 1 ancestral (Song et al. 2021a, eq. 12 and 16)."""
    for s, t in pairwise(sigmas):
        down, up = ancestral_split(s, t, eta)
        x = step(x, D(x, s), s, down)
        if up > 0:
            x = x + up * noise(s, t)
    return x


def euler_ancestral(D: Call, noise: Draw, x: Linear, sigmas: list[float], eta: float = 1.0) -> Linear:
    """DDPM's ancestral sampling in sigma: ``ddim`` with eta = 1 (Ho et al. 2020, algorithm 2)."""
    return ddim(D, noise, x, sigmas, eta)


def heun(D: Call, noise: Draw, x: Linear, sigmas: list[float]) -> Linear:
    """Heun's second-order method (Karras et al. 2022, algorithm 1): two calls a step, one for the last."""
    for s, t in pairwise(sigmas):
        d = (x - D(x, s)) / s
        ahead = x + (t - s) * d
        if t > 0:
            d = (d + (ahead - D(ahead, t)) / t) / 2
        x = x + (t - s) * d
    return x


def dpmpp_2m(D: Call, noise: Draw, x: Linear, sigmas: list[float]) -> Linear:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): one extrapolated estimate per step, one call a step."""
    older, h_older = None, 0.0
    for s, t in pairwise(sigmas):
        newest = estimate = D(x, s)
        h = math.log(s / t) if t > 0 else math.inf
        if older is not None and t > 0:
            estimate = newest + (newest - older) * (h / (2 * h_older))
        x = step(x, estimate, s, t)
        older, h_older = newest, h
    return x


def dpmpp_3m(D: Call, noise: Draw, x: Linear, sigmas: list[float]) -> Linear:
    """Third-order multistep in log sigma: exact integration of the quadratic through the last three estimates.

    The exponential integrator of Lu et al. 2022b (data prediction) with order 3; lower orders at start and end.
    """
    past: list[tuple[float, Linear]] = []
    for s, t in pairwise(sigmas):
        past = [(s, D(x, s)), *past][:3]
        x = exponential_adams(x, past if t > 0 else past[:1], s, t)
    return x


def exponential_adams(x: Linear, past: list[tuple[float, Linear]], s: float, t: float) -> Linear:
    """x at t, integrating exactly the polynomial in log sigma through ``past`` (newest first): (sigma, estimate).

    x'/t = x/s + integral of D d(1/sigma); with lambda = log(1/sigma) that is t * integral of exp(lambda) D(lambda).
    """
    if t == 0 or len(past) == 1:
        return step(x, past[0][1], s, t)
    lambdas = [-math.log(sigma) for sigma, _ in past]
    a, b = -math.log(s), -math.log(t)
    weights = lagrange_integrals(lambdas, a, b, lambda u: math.exp(u - b))
    out = (t / s) * x
    for w, (_, estimate) in zip(weights, past, strict=True):
        out = out + w * estimate
    return out


def lagrange_integrals(nodes: list[float], a: float, b: float, kernel: Callable[[float], float]) -> list[float]:
    """Integrals over (a, b) of kernel(u) times each Lagrange basis polynomial on ``nodes`` (Gauss-Legendre, exact)."""
    u, w = _gauss(32)
    points = [(a + b) / 2 + (b - a) / 2 * v for v in u]
    out = []
    for j, node in enumerate(nodes):
        total = 0.0
        for point, weight in zip(points, w, strict=True):
            basis = math.prod((point - other) / (node - other) for i, other in enumerate(nodes) if i != j)
            total += weight * basis * kernel(point)
        out.append(total * (b - a) / 2)
    return out


def _gauss(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss-Legendre quadrature on (-1, 1) (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k * k - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return values.tolist(), (2 * vectors[0] ** 2).tolist()


METHODS: dict[str, Method] = {f.__name__: f for f in (euler, ddim, heun, dpmpp_2m, dpmpp_3m, euler_ancestral)}


def _builder(name: str, method: Method) -> Callable[..., Table]:
    def build(sigmas: Tensor | Sequence[float], **options: Any) -> Table:
        return trace(method, sigmas, name, **options)

    build.__doc__, build.__name__ = method.__doc__, name
    return build


SAMPLERS: dict[str, Callable[..., Table]] = {name: _builder(name, method) for name, method in METHODS.items()}


def table(name: str, sigmas: Tensor | Sequence[float], **options: Any) -> Table:
    """The named sampler's table for ``sigmas``; raises InputError for an unknown name or option."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    try:
        return SAMPLERS[name](sigmas, **options)
    except TypeError as error:
        raise InputError(f"Sampler {name!r} does not take these options ({error}).") from None
