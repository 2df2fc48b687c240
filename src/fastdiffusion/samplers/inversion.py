"""Inversion: the noise from which a sampler makes given data again, and the states on its way.

    found = euler(model.denoise, x0, sigmas, cond, iterations=8)         # fixed point; iterations=0 is DDIM inversion
    found = null_text(guide, found, uncond, cond)                       # holds at any guidance scale
    made = final(run(denoise, found.x, found.table, cond, paths=found.paths()))

In data units a DDIM step and an Euler step of a rectified flow are one formula, x' = D + (s'/s) (x - D), so that each
of these serves noise, v and flow models alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..guidance import start
from ..guidance.core import guidance
from ..noise import Stream, generator
from ..types import Cond, Denoise, Run
from .registry import table as named
from .tables import Table, final, move, run

MEMORY = 5  # points that a fixed point is extrapolated from


def drawn(seeds: Sequence[int], like: Tensor, key: int) -> Tensor:
    """Unit noise, of each image its own, another for each key."""
    draws = [torch.randn(like.shape[1:], generator=generator(s, Stream.EDIT_NOISE, key)) for s in seeds]
    return torch.stack(draws).to(like)


@dataclass(frozen=True)
class Inversion:
    """Data as a start, and what else a run needs to come back to them.

    Attributes:
        table: The run that leads back.
        states: Before each row of the table; the first one is the start.
        noises: For each row of a stochastic table the noise that it adds.
        uncond: For each row the condition that "nothing" is replaced by, of a null-text inversion.
        rest: What the run's end lacks of the data where that is added to results; None where nothing is.
        evaluations: Of the denoiser, that finding it took.
    """

    table: Table
    states: tuple[Float[Tensor, "b *d"], ...]
    noises: tuple[Float[Tensor, "b *d"] | None, ...] = ()
    uncond: tuple[Cond, ...] = ()
    rest: Float[Tensor, "b *d"] | None = None
    evaluations: int = 0

    @property
    def x(self) -> Float[Tensor, "b *d"]:
        """The state at ``table.sigmas[0]``."""
        return self.states[0]

    def paths(self, rows: int = 1) -> Recorded | None:
        """The noise for ``run(paths=...)``, the same for each of ``rows`` copies; None of a deterministic table."""
        found = [n.repeat(rows, *[1] * (n.ndim - 1)) for n in self.noises if n is not None]
        return Recorded(found) if found else None

    def estimates(self, x0: Float[Tensor, "b *d"]) -> list[Float[Tensor, "b *d"]]:
        """The estimates by which the run passes these states and ends at ``x0``, of a method without history."""
        goals, made = [*self.states[1:], x0], []
        noises = self.noises or (None,) * len(self.states)
        for i, (row, x, goal) in enumerate(zip(self.table.rows, self.states, goals, strict=True)):
            if i < len(noises) and (noise := noises[i]) is not None:
                goal = goal - row.noise[0][0] * noise
            made.append((goal - row.ratio * x) / (1 - row.ratio))
        return made

    def reconstruction(self, denoise: Denoise, cond: Cond | None) -> Float[Tensor, "b *d"]:
        """What the run makes of it."""
        made = final(run(denoise, self.x, self.table, cond, paths=self.paths()))
        return made if self.rest is None else made + self.rest


class Recorded:
    """Noise that was written down, in order."""

    def __init__(self, noises: Sequence[Tensor]):
        self._rest = deque(noises)

    def draw(self, sigma: float, to: float) -> Tensor:
        """The next one."""
        return self._rest.popleft()


@torch.no_grad()
def euler(
    denoise: Denoise,
    x0: Float[Tensor, "b *d"],
    sigmas: Sequence[float] | Tensor,
    cond: Cond | None = None,
    iterations: int = 0,
    sigma_data: float = 1.0,
    tolerance: float = 1e-6,
) -> Inversion:
    """The states that Euler's method, which DDIM is, passes on its way to the data.

    Each step up looks for the x at the higher level s that a step down takes to the known x' at s':
    f(x) = D(x) + r (x - D(x)) - x' = 0 with r = s'/s. DDIM inversion (Song et al. 2021a, arXiv:2010.02502) takes D at
    the lower end for D(x), which is off by the length of the step. The fixed point is found by
    x <- x - f(x) / (r + (1 - r) c), with the slope c = sigma_data^2 / (sigma_data^2 + s^2) that D has for normal data,
    and mixed with the steps before (Anderson's method, as in Pan et al. 2023, "AIDI", arXiv:2309.04907, where c = 0).

    Args:
        denoise: A model, or a model under guidance: the one that is to lead back.
        x0: The data; for plain DDIM inversion also the state at the lowest level above 0.
        sigmas: Falling, the last one 0.
        cond: What the data show.
        iterations: At most so many for each step; 0 is plain DDIM inversion.
        sigma_data: Standard deviation of the data.
        tolerance: Stop where the largest residual is this part of the largest value.

    Raises:
        InputError: Fewer than two levels above 0.
    """
    levels = [float(s) for s in sigmas]
    if len(levels) < 3:
        raise InputError(f"An inversion needs at least 2 steps, got {len(levels) - 1}. Try steps=20.")
    now, evaluations = Run(tuple(levels[:-1]), len(levels) - 1), 0
    denoise = start(denoise, now)

    def estimate(x: Tensor, i: int) -> Tensor:
        nonlocal evaluations
        now.index, now.sigma, evaluations = i, levels[i], evaluations + 1
        return denoise(x, x.new_full((len(x),), levels[i]), cond)

    x, states = x0, []
    for i in range(len(levels) - 1, 0, -1):
        low, sigma, r = x, levels[i - 1], levels[i] / levels[i - 1]
        slope = r + (1 - r) * sigma_data**2 / (sigma_data**2 + sigma**2)
        if r > 0:
            d = estimate(x, i)
            x = d + (x - d) / r
        best, least = x, low.new_full((len(low),), torch.inf)
        passed: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
        for _ in range(iterations):
            d = estimate(x, i - 1)
            residual = d + r * (x - d) - low
            size = residual.flatten(1).abs().amax(1)
            best = torch.where(_like(size < least, x), x, best)  # each image keeps its own: it may diverge
            least = torch.minimum(size, least)
            if bool((least <= tolerance * low.flatten(1).abs().amax(1)).all()):
                break
            passed.append((x, residual / slope))
            x = _mixed(passed)
        x = best
        states.append(x)
    return Inversion(named("euler", levels), tuple(reversed(states)), evaluations=evaluations)


def _mixed(passed: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The next point of a fixed point x = x - f(x), from the last few x and f: Anderson's mixing, image by image.

    f is taken as linear between those points (Walker & Ni 2011, eq. 2.2, in differences).
    """
    x, f = passed[-1]
    if len(passed) == 1:
        return x - f
    moves, changes = (torch.stack([(b[k] - a[k]).flatten(1) for a, b in pairwise(passed)], -1).double() for k in (0, 1))
    square = changes.mT @ changes
    square = square + 1e-8 * square.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * torch.eye(
        square.shape[-1], dtype=square.dtype, device=square.device
    )
    found = torch.linalg.lstsq(square, changes.mT @ f.flatten(1)[..., None].double()).solution
    step = f.flatten(1).double() + ((moves - changes) @ found)[..., 0]
    return x - step.to(x).reshape(x.shape)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def edit_friendly(
    denoise: Denoise, x0: Float[Tensor, "b *d"], table: Table, cond: Cond | None, seeds: Sequence[int]
) -> Inversion:
    """The noise with which a stochastic sampler makes exactly these data (Huberman-Spiegelglas et al. 2024).

    Edit-friendly DDPM inversion (arXiv:2304.06140): states are drawn from the forward process, each with noise of its
    own (eq. 6), and the noise of each step is what is missing from one to the next. It has more variance than a
    sampler's, and holds the structure of the data: under another prompt it stays.

    Args:
        denoise: A model, or a model under guidance.
        x0: The data.
        table: Of a sampler that adds noise once in each step but the last, such as "euler_ancestral".
        cond: What the data show.
        seeds: One for each.
    """
    if not all(len(row.noise) == (i < len(table.rows) - 1) for i, row in enumerate(table.rows)):
        raise InputError(f"Sampler {table.name!r} does not add noise once in each step. Take euler_ancestral.")
    now = Run(tuple(row.sigma for row in table.rows), len(table.sigmas) - 1)
    denoise = start(denoise, now)
    states = [x0 + table.sigmas[0] * drawn(seeds, x0, 0)]
    history: deque[Tensor] = deque(maxlen=table.depth + 1)
    noises: list[Tensor | None] = []
    for i, row in enumerate(table.rows):
        now.index, now.sigma = i, row.sigma
        estimate = denoise(states[-1], x0.new_full((len(x0),), row.sigma), cond)
        mean = move(row, states[-1], estimate, history)
        history.appendleft(estimate)
        if not row.noise:
            return Inversion(table, tuple(states), tuple(noises), rest=x0 - mean, evaluations=i + 1)
        ((b, _, _),) = row.noise
        noise = (x0 + table.rows[i + 1].sigma * drawn(seeds, x0, i + 1) - mean) / b
        noises.append(noise)
        states.append(mean + b * noise)
    raise AssertionError("a table without rows")


# ---- null-text ----------------------------------------------------------------------------------------------------


def opened(uncond: Cond, cond: Cond) -> Cond:
    """``uncond`` with all its tokens visible and at least as many as ``cond`` has, so that they can be optimized.

    Rows whose tokens are all hidden, this package's own "nothing", have states of zeros: visible, they add as little.
    """
    if uncond.emb is None or uncond.mask is None or bool(uncond.mask.any(1).all()):
        return uncond
    assert cond.emb is not None
    emb = uncond.emb.new_zeros(len(uncond.emb), max(uncond.emb.shape[1], cond.emb.shape[1]), uncond.emb.shape[2])
    emb[:, : uncond.emb.shape[1]] = uncond.emb * uncond.mask[..., None]
    return replace(uncond, emb=emb, mask=torch.ones(emb.shape[:2], dtype=torch.bool, device=emb.device))


def null_text(
    guide: Callable[[Cond], Denoise],
    found: Inversion,
    x0: Float[Tensor, "1 *d"],
    uncond: Cond,
    cond: Cond,
    iterations: int = 10,
    tolerance: float = 1e-5,
) -> Inversion:
    """What "nothing" must be at each step, so that a guided run stays on the states of an unguided inversion.

    Null-text inversion (Mokady et al. 2023, arXiv:2211.09794, algorithm 1) of any denoiser and any guidance that
    compares with a condition: the float parts of ``uncond`` (token states and pooled vector) are optimized step by
    step, each from the one before, for the mean squared distance to the next state; here by L-BFGS, which needs no
    learning rate.
    Where that ends further off than ``cond`` itself in the place of "nothing", which leaves nothing to be guided away
    from (negative-prompt inversion, Miyake et al. 2023, arXiv:2305.16807), it starts from there. Parts are float32,
    whatever the network computes in, and nothing is drawn: the same again is the same.

    Args:
        guide: From an unconditional condition to the guided denoiser, such as ``lambda u: cfg(model.denoise, 7.5, u)``.
        found: An inversion without guidance (:func:`euler`) under ``cond``.
        x0: The data: what the last step is to reach.
        uncond: Where the optimization starts, one row.
        cond: What the data show, one row.
        iterations: Of L-BFGS for each step.
        tolerance: Stop a step at this mean squared distance, as a part of the data's mean square.
    """
    uncond = opened(uncond, cond)
    names = [name for name in ("emb", "pooled") if getattr(uncond, name) is not None]
    values = [getattr(uncond, name).detach().float().clone() for name in names]
    itself = [_rows_of(getattr(cond, name).detach().float(), v) for name, v in zip(names, values, strict=True)]
    now = Run(tuple(row.sigma for row in found.table.rows), len(found.table.rows))
    enough, evaluations, x = tolerance * float(x0.square().mean()), found.evaluations, found.x
    kept: list[Cond] = []
    for i, row in enumerate(found.table.rows):
        now.index, now.sigma = i, row.sigma
        goal = found.states[i + 1] if i + 1 < len(found.states) else x0
        level = x.new_full((len(x),), row.sigma)

        def stepped(parts: Sequence[Tensor], x: Tensor = x, row: object = row, level: Tensor = level) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            denoise = start(guide(replace(uncond, **dict(zip(names, parts, strict=True)))), now)
            return move(row, x, denoise(x, level, cond), ())  # type: ignore[arg-type]

        def loss(parts: Sequence[Tensor], stepped=stepped, goal: Tensor = goal) -> Tensor:
            return (stepped(parts) - goal).square().mean()

        values, least = _least(loss, values, iterations, enough)
        if least > enough and _value(loss, itself) < least:
            values, least = _least(loss, itself, iterations, enough)
        kept.append(replace(uncond, **{n: v.clone() for n, v in zip(names, values, strict=True)}))
        with torch.no_grad():
            x = stepped(values)
    return replace(found, uncond=tuple(kept), evaluations=evaluations)


@torch.no_grad()
def _value(loss: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[Tensor]) -> float:
    return loss(parts).item()


def _rows_of(part: Tensor, like: Tensor) -> Tensor:
    """A condition's part with as many tokens as another one's."""
    if part.shape == like.shape:
        return part.clone()
    made = torch.zeros_like(like)
    n = min(part.shape[1], like.shape[1])
    made[:, :n] = part[:, :n]
    return made


def _least(
    loss: Callable[[Sequence[Tensor]], Tensor], values: Sequence[Tensor], iterations: int, enough: float
) -> tuple[list[Tensor], float]:
    """The values of least loss that L-BFGS meets, and that loss; the first ones if these do already."""
    parts = [v.detach().clone().requires_grad_() for v in values]
    best, least = list(values), torch.inf
    search = torch.optim.LBFGS(parts, max_iter=iterations, max_eval=iterations + 2, line_search_fn="strong_wolfe")

    class Enough(Exception):
        pass

    def closure() -> Tensor:
        nonlocal best, least
        with torch.enable_grad():
            value = loss(parts)
            if value.item() < least:
                best, least = [p.detach().clone() for p in parts], value.item()
            if least <= enough:
                raise Enough
            for part, slope in zip(parts, torch.autograd.grad(value, parts, allow_unused=True), strict=True):
                part.grad = torch.zeros_like(part) if slope is None else slope
        return value.detach()

    with suppress(Enough):
        search.step(closure)  # type: ignore[arg-type]
    return best, least


@guidance
def by_step(denoise: Denoise, others: Sequence[Denoise], *, run: Run) -> Denoise:
    """At each evaluation of a run a denoiser of its own, ``others[run.index]``; ``denoise`` names them all."""
    ready = [start(each, run) for each in others]

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return ready[min(run.index, len(ready) - 1)](x, sigma, cond)

    return guided
