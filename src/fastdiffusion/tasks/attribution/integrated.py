"""Integrated gradients through a whole sampling run, from the image back to the rows of the prompt's condition.

Sundararajan et al. 2017 (arXiv:1703.01365, eq. 1): along the straight path from a baseline to the input, what each part
of the input adds is its share of the line integral of the gradient. All shares together are the difference of the two
ends, exactly; what a quadrature lacks of that is stated (``Attribution.missing``).

Here the input is the condition: the states of every token at every evaluation of the denoiser, the pooled vector, the
negative prompt's, and image to image the pixels of the image. From states to words lead Shapley values (``by_term``).
The baseline is what the model takes for "no prompt", and gray. Every evaluation of the network is checkpointed (Chen et
al. 2016, arXiv:1604.06174): the backward pass makes it once more, and holds the activations of one at a time. Guidance
stacks the prompt and "no prompt" in one evaluation; here they are two, or it would hold both. One row at a time is for
large images: then the blocks of a network are checkpointed too, and the pass holds the activations of one block.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ... import samplers
from ...guidance import Guided
from ...models import Model
from ...prompts.conditions import Compiled, Stage
from ...types import Cond, Denoise, Step
from ..generation.plan import Plan

Target = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, " n"]]  # one number of each image
FIRST = 8  # panels of the path before any is halved
EXACT = 0.02  # of the target's whole change, what the panels may miss together
ROUGH = 0.2  # the same of the first ones, beyond which halving some of them is no use
ONE_PASS = threading.RLock()  # a pass changes the network's blocks meanwhile, which other threads may hold too
FEW, ORDERS = 4, 12  # words whose orders are all taken; of more, pairs of an order and its reverse


@dataclass(frozen=True)
class Attribution:
    """What each part of the condition adds to the target, in the target's units; of either sign.

    The prompt's share is split in two ways: by words, and by where in the condition it is held.

    Attributes:
        terms: Of the prompt's words, by evaluation.
        rows: Of its token states, by evaluation.
        pooled: Of its pooled vector, by evaluation, unless that is the mean of the token states: then it is in theirs.
        other: Of what else the condition has, by evaluation.
        negative: Of the negative prompt, over the whole run.
        pixels: Image to image, of the pixels of the image that was started from.
        low, high: The target without the prompt, and with it.
        points: Of the quadrature.
        exact: Shares by :func:`secants`, where the integral misses too much of the difference.
    """

    terms: Float[Tensor, "k t"]
    rows: Float[Tensor, "k n"]
    pooled: Float[Tensor, " k"]
    other: Float[Tensor, " k"]
    negative: Float[Tensor, ""]
    pixels: Float[Tensor, "c h w"] | None
    low: float
    high: float
    points: int
    exact: Float[Tensor, " p"] | None = None

    @property
    def missing(self) -> float:
        """What the sum of all shares lacks of the target's difference, as a part of that."""
        parts = [self.terms, self.negative, *([] if self.pixels is None else [self.pixels])]
        total = sum(float(part.double().sum()) for part in parts)
        return abs(total - (self.high - self.low)) / max(abs(self.high - self.low), 1e-12)


class Run:
    """One image's run as a function of its condition: ``at(alpha)`` is the image part of the way to the prompt.

    ``rows`` is how many a backward pass holds activations of at once.
    """

    def __init__(self, plan: Plan, index: int, rows: int = 1):
        self.batch = range(index, index + 1)
        self.plan = replace(plan, model=checkpointed(plan.model, rows))
        self.by_block = rows == 1
        assert plan.prompts is not None and plan.table is not None and plan.model.conditioner is not None
        compiled = plan.compiled(plan.prompts, self.batch)
        self.compiled, self.table = compiled, plan.table
        self.noise, _ = plan.noise(self.batch)
        null = plan.model.conditioner.null(1, plan.size)
        self.cond = compiled.stages[0].conds[0]
        self.base = _baseline(self.cond, null)
        self.negative = compiled.negative if plan.options.negative_prompt.strip() else None
        self.no_negative = {} if self.negative is None else _baseline(self.negative, null)
        started = plan.canvas is not None and plan.options.strength != 1
        self.pixels = plan.canvas.image[None].to(plan.model.device) if started and plan.canvas is not None else None

    @property
    def first(self) -> Tensor:
        """The state that the image's run starts from."""
        noise = (self.table.sigmas[0] * self.noise).to(self.plan.model.device)
        return noise if self.pixels is None else _encode(self.plan.model, self.pixels) + noise

    def steps(
        self,
        conds: list[Cond] | None = None,
        negative: Cond | None = None,
        pixels: Tensor | None = None,
        grad: bool = False,
    ) -> Iterator[Step]:
        """The run, evaluation by evaluation; by default the one that made the image. Conditions may have many rows."""
        plan, weights = self.plan, self.compiled.stages[0].weights
        conds = [self.cond] if conds is None else conds
        stages = tuple(Stage(k, (cond,), weights) for k, cond in enumerate(conds))
        away = self.compiled.negative if negative is None else negative
        denoise, cond = plan.conditioned(self.batch, Compiled(stages, away, self.table.nfe))
        x, rows = self.first, len(conds[0])
        if pixels is not None:
            x = _encode(plan.model, pixels) + (self.table.sigmas[0] * self.noise).to(plan.model.device)
        x = x.expand(rows, *x.shape[1:]) if len(x) == 1 else x
        seeds = [plan.options.seed + i for i in self.batch] * rows
        _, fresh = plan.noise(self.batch)  # anew for each run: it draws in order
        return samplers.run(denoise, x, self.table, cond, seeds, fresh, grad)

    def decode(self, latents: Tensor) -> Float[Tensor, "n c h w"]:
        """The images of states, with their graph."""
        model = self.plan.model
        if model.autoencoder is None:
            return latents
        if not torch.is_grad_enabled():
            return model.autoencoder.decode(latents)
        with set_checkpoint_early_stop(False):  # an autoencoder that carries states forgets them at the end of a pass
            made = checkpoint(model.autoencoder.decode, latents, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(made, Tensor)
        return made

    @torch.no_grad()
    def image(self, cond: Cond | None = None) -> Float[Tensor, "n c h w"]:
        """The images under a condition; by default the one under its own."""
        return self.decode(samplers.final(self.steps(None if cond is None else [cond])))

    @torch.no_grad()
    def at(self, alphas: Sequence[float]) -> Float[Tensor, "n c h w"]:
        """The images on the way from the baseline (0) to the prompt (1)."""
        cond, away, pixels = self._points(alphas)
        return self.decode(samplers.final(self.steps([cond], away, pixels)))

    @torch.no_grad()
    def mixed(self, amounts: Float[Tensor, "n p"], terms: Mapping[str, Tensor]) -> Float[Tensor, "n c h w"]:
        """The images with an amount, 0 to 1, of each word, then of the negative prompt and the pixels if there are any.

        ``terms`` is of :func:`by_term`.
        """
        amounts = amounts.to(self.plan.model.device)
        count, rows = len(next(iter(terms.values()))), len(amounts)
        rest = list(amounts[:, count:].unbind(1))
        parts = {name: v.expand(rows, *v.shape[1:]) for name, v in self.cond.parts().items()}
        for name, base in self.base.items():
            parts[name] = base + torch.einsum("bt,t...->b...", amounts[:, :count].to(base), terms[name].to(base))
        away = self._points(rest.pop(0).tolist())[1] if self.negative is not None else None
        pixels = self.pixels * _column(rest.pop(0), self.pixels) if self.pixels is not None else None
        return self.decode(samplers.final(self.steps([Cond.of(parts)], away, pixels)))

    def _points(self, alphas: Sequence[float]) -> tuple[Cond, Cond | None, Tensor | None]:
        """Condition, negative prompt and pixels at points of the path."""
        along = torch.tensor(list(alphas), device=self.plan.model.device)

        def between(cond: Cond, base: Mapping[str, Tensor]) -> Cond:
            parts = {name: v.expand(len(along), *v.shape[1:]) for name, v in cond.parts().items()}
            return Cond.of({k: torch.lerp(base[k], v, _column(along, v)) if k in base else v for k, v in parts.items()})

        away = None if self.negative is None else between(self.negative, self.no_negative)
        pixels = None if self.pixels is None else self.pixels * _column(along, self.pixels)
        return between(self.cond, self.base), away, pixels

    def gradients(
        self, alphas: Sequence[float], target: Target
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], Tensor | None, list[float]]:
        """Of the target at points of the path: by evaluation and part, by the negative prompt's parts, of pixels.

        The last are the target's values there.
        """

        def leaves(cond: Cond, base: Mapping[str, Tensor]) -> tuple[Cond, dict[str, Tensor]]:
            own = {k: v.detach().clone().requires_grad_() for k, v in cond.parts().items() if k in base}
            return Cond.of(cond.parts() | own), own

        cond, away, pixels = self._points(alphas)
        made = [leaves(cond, self.base) for _ in range(self.table.nfe)]
        away, its = (None, {}) if away is None else leaves(away, self.no_negative)
        pixels = None if pixels is None else pixels.requires_grad_()
        parts = [self.plan.model.modules[name] for name in ("net", "autoencoder") if name in self.plan.model.modules]
        with torch.enable_grad(), fixed(self.plan.model), by_block(*(parts if self.by_block else ())):
            latents = samplers.final(self.steps([c for c, _ in made], away, pixels, grad=True))
            values = target(self.decode(latents))
            inputs = [*(t for _, own in made for t in own.values()), *its.values()]
            inputs += [] if pixels is None else [pixels]
            found = list(torch.autograd.grad(values.sum(), inputs, allow_unused=True, materialize_grads=True))
        by_step = [{name: found.pop(0) for name in own} for _, own in made]
        negative = {name: found.pop(0) for name in its}
        return by_step, negative, found[0] if found else None, values.tolist()


def secants(
    run: Run, target: Target, terms: Mapping[str, Tensor], panels: int = 8, batch_size: int = 1
) -> Float[Tensor, " p"]:
    """Shares from finite steps in place of gradients: of each word, then the negative prompt and the pixels if any.

    The way from the baseline to the prompt is gone in panels, in each of which the parts come one after the other, in
    turn from the first and from the last, and each is given what the target changes by (Aumann and Shapley's value in
    finite steps). All shares add up to the target's difference exactly, however rough the run is in between.
    """
    count = len(next(iter(terms.values()))) + (run.negative is not None) + (run.pixels is not None)
    amounts, order = [torch.zeros(count)], []
    for panel in range(panels):
        for part in range(count) if panel % 2 == 0 else reversed(range(count)):
            order.append(part)
            amounts.append(amounts[-1].clone())
            amounts[-1][part] = (panel + 1) / panels
    values: list[float] = []
    for i in range(0, len(amounts), batch_size):
        values += target(run.mixed(torch.stack(amounts[i : i + batch_size]), terms)).tolist()
    shares = torch.zeros(count)
    for part, (before, after) in zip(order, pairwise(values), strict=True):
        shares[part] += after - before
    return shares


class Panel(NamedTuple):
    """A part of the path from ``a`` to ``b``: the target there, and what the gradient at its middle makes of it."""

    a: float
    b: float
    low: float
    high: float
    center: float
    parts: dict[str, Tensor]

    @property
    def wrong(self) -> float:
        """How far the shares miss the target's change over the panel, which is known."""
        names = [name for name in ("terms", "negative", "pixels") if name in self.parts]
        return abs(sum(float(self.parts[name].double().sum()) for name in names) - (self.high - self.low))


def attribute(
    run: Run, target: Target, terms: Mapping[str, Tensor], most: int = 16, batch_size: int = 1
) -> Attribution:
    """The shares of every part of a run's condition in a target.

    A midpoint rule on panels of the path: 8 at first, and those are halved over which the shares miss the target's
    change by most. For a run may jump on the way (it decides early between two images), and an even rule misses that.
    Where the first 8 miss more than a fifth of the change, the run is too rough for gradients, and they are all.

    Args:
        run: What is explained.
        target: One number of each image, differentiable.
        terms: Of :func:`by_term`: what of each part of the condition is due to each word.
        most: Points; each costs about four runs.
        batch_size: Points at once: for speed and memory only.
    """
    cuts = [i / FIRST for i in range(FIRST + 1)]
    values = [v for i in range(0, len(cuts), batch_size) for v in target(run.at(cuts[i : i + batch_size])).tolist()]
    pending = [(a, b, low, high) for (a, b), (low, high) in zip(pairwise(cuts), pairwise(values), strict=True)]
    whole, panels, points = abs(values[-1] - values[0]), list[Panel](), 0
    while pending:
        for i in range(0, len(pending), batch_size):
            panels += _measured(run, target, terms, pending[i : i + batch_size])
        points, pending = points + len(pending), []
        panels.sort(key=lambda panel: panel.wrong, reverse=True)
        missed = sum(panel.wrong for panel in panels)
        if EXACT * whole < missed and (points > FIRST or missed <= ROUGH * whole):
            bad = [panel for panel in panels[: (most - points) // 2] if panel.wrong > 0.1 * EXACT * whole]
            panels = panels[len(bad) :]
            for panel in bad:
                m = (panel.a + panel.b) / 2
                pending += [(panel.a, m, panel.low, panel.center), (m, panel.b, panel.center, panel.high)]
    sums = {name: sum((panel.parts[name] for panel in panels), torch.zeros(())) for name in panels[0].parts}
    return Attribution(**{"pixels": None, **sums}, low=values[0], high=values[-1], points=points)


def _measured(
    run: Run, target: Target, terms: Mapping[str, Tensor], panels: Sequence[tuple[float, float, float, float]]
) -> list[Panel]:
    """Panels with their shares, all in one evaluation."""
    by_step, its, of_pixels, values = run.gradients([(a + b) / 2 for a, b, *_ in panels], target)
    steps, rows, cond = len(by_step), len(panels), run.cond
    width = torch.tensor([b - a for a, b, *_ in panels])
    delta = {name: cond.parts()[name] - base for name, base in run.base.items()}
    own = {} if run.negative is None else run.negative.parts()
    away = {name: own[name] - base for name, base in run.no_negative.items()}
    mean = _is_mean(cond, run.base)
    n = 0 if cond.emb is None else cond.emb.shape[1]
    count = len(next(iter(terms.values())))
    parts = {"terms": torch.zeros(rows, steps, count), "rows": torch.zeros(rows, steps, n)}
    parts |= {name: torch.zeros(rows, steps) for name in ("pooled", "other")} | {"negative": torch.zeros(rows)}

    def share(gradient: Tensor, change: Tensor) -> Tensor:
        shared = (gradient * change).float().cpu()
        return shared * _column(width, shared)

    for k, found in enumerate(by_step):
        for name, gradient in found.items():
            parts["terms"][:, k] += (
                torch.einsum("b...,t...->bt", gradient.float(), terms[name].float()).cpu() * width[:, None]
            )
            if name == "emb":
                parts["rows"][:, k] += share(gradient, delta["emb"]).sum(-1)
            elif name == "pooled" and mean is not None:
                parts["rows"][:, k] += share(gradient[:, None] * mean[..., None], delta["emb"]).sum(-1)
            else:
                parts["pooled" if name == "pooled" else "other"][:, k] += share(gradient, delta[name]).flatten(1).sum(1)
    for name, gradient in its.items():
        parts["negative"] += share(gradient, away[name]).flatten(1).sum(1)
    if of_pixels is not None and run.pixels is not None:
        parts["pixels"] = share(of_pixels, run.pixels)
    return [Panel(*panel, values[i], {name: v[i] for name, v in parts.items()}) for i, panel in enumerate(panels)]


def by_term(run: Run, count: int, encode: Callable[[Sequence[int]], Cond], seed: int = 0) -> dict[str, Tensor]:
    """What of each part of a run's condition is due to each word: Shapley values of the text encoder.

    A text encoder mixes words: the state of one token knows of all the others, and much of a prompt may sit in the mark
    of its end or in a pooled vector. So the condition is split by what changes in it when words come: the mean over
    orders in which they do (Shapley 1953). The parts of all words add up to the condition less the baseline, exactly.

    Args:
        run: The run.
        count: Number of words.
        encode: The condition of some of the words, by their numbers.
        seed: Of the orders, where there are too many for all of them.

    Returns: for each part of the condition (count, *shape of its one row).
    """
    known: dict[tuple[int, ...], dict[str, Tensor]] = {(): run.base, tuple(range(count)): run.cond.parts()}

    def parts(terms: Sequence[int]) -> dict[str, Tensor]:
        key = tuple(sorted(terms))
        if key not in known:
            known[key] = _baseline(run.cond, encode(key))
        return known[key]

    if count <= FEW:
        orders = list(permutations(range(count)))
    else:
        draw = random.Random(seed)
        drawn = [draw.sample(range(count), count) for _ in range(ORDERS)]
        orders = [order for one in drawn for order in (one, one[::-1])]
    found = {name: torch.zeros(count, *base.shape[1:]) for name, base in run.base.items()}
    for order in orders:
        for i, term in enumerate(order):
            before, after = parts(order[:i]), parts(order[: i + 1])
            for name, total in found.items():
                total[term] += (after[name] - before[name])[0].float().cpu() / len(orders)
    return {name: value.to(run.base[name].device) for name, value in found.items()}


# ---- parts --------------------------------------------------------------------------------------------------------


def _baseline(cond: Cond, null: Cond) -> dict[str, Tensor]:
    """For each part of a condition that is states, those of "no prompt": as many rows, zeros where it has none."""
    base = {}
    for name, value in cond.parts().items():
        if not value.is_floating_point() or name in ("image", "estimate", "extra.guidance"):
            continue
        other = null.parts().get(name)
        if other is None or other.ndim != value.ndim or other.shape[-1] != value.shape[-1]:
            other = torch.zeros_like(value)
        for axis in range(1, value.ndim - 1):
            more = value.shape[axis] - other.shape[axis]
            other = other.narrow(axis, 0, min(other.shape[axis], value.shape[axis]))
            if more > 0:
                other = torch.cat([other, other.new_zeros(*other.shape[:axis], more, *other.shape[axis + 1 :])], axis)
        base[name] = other.to(value)
    return base


def _is_mean(cond: Cond, base: Mapping[str, Tensor]) -> Tensor | None:
    """The weights (1, n) with which the pooled vector is the mean of the token states, here and at the baseline."""
    if cond.emb is None or cond.pooled is None or cond.emb.shape[-1] != cond.pooled.shape[-1]:
        return None
    mask = torch.ones(cond.emb.shape[:2]).to(cond.emb) if cond.mask is None else cond.mask.to(cond.emb)
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    pairs = ((cond.emb, cond.pooled), (base["emb"], base["pooled"]))
    same = all(torch.allclose((emb * weights[..., None]).sum(1), pooled, atol=1e-4) for emb, pooled in pairs)
    return weights if same else None


def _encode(model: Model, images: Tensor) -> Tensor:
    """The latents of images, with their graph."""
    return images if model.autoencoder is None else model.autoencoder.encode(images)


def _column(values: Float[Tensor, " n"], like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like)


class _Checkpointed:
    """A denoiser whose evaluations are made again in the backward pass, some rows at a time."""

    def __init__(self, denoise: Denoise, rows: int):
        self._denoise, self._rows = denoise, rows

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return self._denoise(x, sigma, cond)
        made = []
        for i in range(0, len(x), self._rows):
            part = slice(i, i + self._rows)
            inputs = (x[part], sigma[part], None if cond is None else cond[part])
            made.append(checkpoint(self._denoise, *inputs, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoise, name)


def checkpointed(model: Model, rows: int = 1) -> Model:
    """The same model, whose denoiser holds no activations for a backward pass, which makes those of some rows anew."""
    if isinstance(model.denoise, Guided):  # what it keeps from one evaluation to the next stays outside
        inner = _Checkpointed(model.denoise.denoise, rows)
        return replace(model, denoise=replace(model.denoise, denoise=inner))
    return replace(model, denoise=_Checkpointed(model.denoise, rows))


@contextmanager
def fixed(model: Model) -> Iterator[None]:
    """Parameters without gradients, which would only take memory; as they were afterwards."""
    parameters = [p for module in model.modules.values() for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def by_block(*nets: nn.Module) -> Iterator[None]:
    """A backward pass computes the blocks of networks again, and holds the activations of one at a time.

    Left as they are: networks of diffusers that carry states from one call to the next. What diffusers itself has for
    this is not used, since 0.42 leaves out masks in it (Chroma).
    """
    with ONE_PASS, ExitStack() as after:
        for net in nets:
            if getattr(net, "_supports_gradient_checkpointing", True):
                for block in dict.fromkeys([*_blocks(net), *_inner(net)]):
                    after.callback(_restore, block, vars(block).get("forward"))
                    block.forward = _Block(block.forward)
        yield


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The members of a network's outermost lists and sequences of modules."""
    for part in net.children():
        yield from part if isinstance(part, nn.ModuleList | nn.Sequential) else _blocks(part)


def _inner(net: nn.Module) -> Iterator[nn.Module]:
    """The layers of the blocks of diffusers' UNets and autoencoders: of a whole block, those would take too much."""
    for part in net.modules():
        for name in ("resnets", "attentions"):
            yield from cast(Iterable[nn.Module], getattr(part, name, None) or ())


def _restore(block: nn.Module, forward: Any) -> None:
    """A block's own forward pass: the one that a program had put in place of its class's, or none."""
    del block.forward
    if forward is not None:
        block.forward = forward


class _Block:
    """The forward pass of a block whose activations are not held."""

    def __init__(self, forward: Callable[..., Any]):
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
