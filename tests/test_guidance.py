"""Guidance against closed forms: a labelled mixture of Gaussians, whose denoisers and label probabilities are exact."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdiffusion import guidance, noise, samplers, schedules
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import (
    apg,
    autoguidance,
    blind,
    cfg,
    cfg_zero,
    classifier,
    compose,
    inpaint,
    loss_guidance,
    self_conditioned,
    self_ensemble,
)
from fastdiffusion.samplers import adaptive, optimization, probability_flow, processes, reference, search
from fastdiffusion.types import Cond, Run

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 1.0], [0.2, -0.9]], dtype=torch.float64)
STD, B = 0.3, 6
LABELS = torch.arange(B) % 3


def log_joint(x: Tensor, sigma: Tensor) -> Tensor:
    """log p(x, label; sigma) for every label, up to a constant; differentiable as often as one likes."""
    return -(x[:, None] - MEANS).square().sum(2) / (2 * (STD**2 + sigma**2)[:, None])


def log_prob(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
    """Exact log p(label | x; sigma); 0 where there is no label."""
    assert cond is not None and cond.label is not None
    chosen = log_joint(x, sigma).log_softmax(1).gather(1, cond.label.clamp(min=0)[:, None])[:, 0]
    return torch.where(cond.label < 0, 0.0, chosen)


class Mixture:
    """The exact denoiser, keeping the size of each batch that it was called on."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        self.batches.append(len(x))
        logits = log_joint(x, sigma)
        if cond is not None and cond.label is not None:
            other = torch.arange(3) != cond.label[:, None]
            logits = logits.masked_fill(other & (cond.label >= 0)[:, None], float("-inf"))
        shrink = (STD**2 / (STD**2 + sigma**2))[:, None, None]
        return (logits.softmax(1)[..., None] * (MEANS + shrink * (x[:, None] - MEANS))).sum(1)


@pytest.fixture
def at() -> tuple[Tensor, Tensor, Cond]:
    x = torch.randn(B, 2, dtype=torch.float64, generator=noise.generator(1)) * 1.5
    return x, torch.full((B,), 0.7, dtype=torch.float64), Cond(label=LABELS)


SIGMAS = schedules.exponential(8)
SEEDS = list(range(B))
START = SIGMAS[0] * noise.initial(SEEDS, (2,)).double()
TABLE = samplers.table("dpmpp_2m", SIGMAS)


def result(denoise: guidance.Denoise, cond: Cond | None = None, table: samplers.Table = TABLE) -> Tensor:
    return samplers.final(samplers.run(denoise, START, table, cond, SEEDS))


# Guidance by name, at a strength that does something and (if it has one) at the strength that is off.
IMAGE = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
HALF = torch.tensor([[0.0, 1.0]])


def energy(x0: Tensor) -> Tensor:
    return (x0 - 1).square().mean(1)


def shifted(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
    return Mixture()(x, sigma, cond) * 0.9


@guidance.guidance
def of_one_line(d, *, run: Run):
    """``self_ensemble`` of rows that are taken for images of one line."""

    def shaped(cond: Cond | None, to) -> Cond | None:
        return cond if cond is None or cond.estimate is None else replace(cond, estimate=to(cond.estimate))

    def flat(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return d(x[:, 0, 0], sigma, shaped(cond, lambda v: v[:, 0, 0]))[:, None, None]

    guided = guidance.start(self_ensemble(flat), run)
    return lambda x, sigma, cond=None: guided(x[:, None, None], sigma, shaped(cond, lambda v: v[:, None, None]))[
        :, 0, 0
    ]


CASES = {
    "cfg": lambda d: cfg(d, 3.0),
    "apg": lambda d: apg(d, 3.0, norm=1.0),
    "cfg_zero": lambda d: cfg_zero(d, 3.0, zero=1),
    "autoguidance": lambda d: autoguidance(d, shifted, 2.0),
    "compose": lambda d: compose(d, [Cond(label=torch.tensor([0])), Cond(label=torch.tensor([1]))], [1.0, 0.5]),
    "classifier": lambda d: classifier(d, log_prob, 2.0),
    "loss_guidance": lambda d: loss_guidance(d, energy, 1.0),
    "inpaint": lambda d: inpaint(d, IMAGE, HALF),
    "blind": lambda d: blind(d, lambda x: x.norm(dim=1)),
    "self_ensemble": of_one_line,
    "self_conditioned": self_conditioned,
}
OFF = {
    "cfg": lambda d: cfg(d, 1.0, rescale=0.7),
    "cfg outside its interval": lambda d: cfg(d, 3.0, interval=(100.0, 200.0)),
    "apg": lambda d: apg(d, 1),
    "cfg_zero": lambda d: cfg_zero(d, 1.0),
    "autoguidance": lambda d: autoguidance(d, d, 1.0),
    "classifier": lambda d: classifier(d, log_prob, 0.0),
    "loss_guidance": lambda d: loss_guidance(d, energy, lambda sigma: 0.0),
    "inpaint": lambda d: inpaint(d, IMAGE, torch.ones(2)),
}


def test_every_guidance_is_enrolled() -> None:
    elsewhere = {"feature_guidance", "clip_guidance", "cads"}  # test_{classifiers,clip,guidance_words}
    assert {*CASES, *elsewhere} == {entry.factory.__name__ for entry in guidance.GUIDANCE.values()}


def test_what_is_registered_is_in_the_signature() -> None:
    for name, entry in guidance.GUIDANCE.items():
        parameters = inspect.signature(entry.factory).parameters
        assert {*entry.arguments, *entry.options} <= parameters.keys(), name
        assert not entry.example or entry.example.split()[0] == name
        needed = {p.name for p in list(parameters.values())[1:] if p.default is p.empty} - {"run", "net"}
        assert not entry.example or needed <= {*entry.arguments, *entry.options}, name


@pytest.mark.parametrize("name", OFF)
def test_off_changes_no_bit_and_costs_no_call(name: str) -> None:
    plain, model = Mixture(), Mixture()
    assert torch.equal(result(OFF[name](model), Cond(label=LABELS)), result(plain, Cond(label=LABELS)))
    assert model.batches == plain.batches


@pytest.mark.parametrize("name", CASES)
def test_each_image_depends_on_itself_alone(name: str) -> None:
    guided, cond = CASES[name](Mixture()), Cond(label=LABELS)
    alone = [samplers.final(samplers.run(guided, START[i : i + 1], TABLE, cond[i : i + 1], [i])) for i in range(B)]
    assert torch.allclose(result(guided, cond), torch.cat(alone), atol=1e-12)
    assert not torch.allclose(result(guided, cond), result(Mixture(), cond)) or name == "self_conditioned"


@pytest.mark.parametrize("name", CASES)
def test_interleaved_runs_equal_sequential_runs(name: str) -> None:
    guided = CASES[name](Mixture())
    runs = [samplers.run(guided, START * k, TABLE, Cond(label=LABELS)) for k in (1, 0.5)]
    together = list(zip(*runs, strict=True))[-1]
    for k, last in zip((1, 0.5), together, strict=True):
        assert torch.equal(last.x, samplers.final(samplers.run(guided, START * k, TABLE, Cond(label=LABELS))))


# ---- nesting: the same strengths as in CASES, each written down as its formula for a run of its own ----------------


def remembering(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
    """An exact denoiser that leans a little on the estimate that it is given, and on nothing else of a run."""
    estimate = None if cond is None else cond.estimate
    return Mixture()(x, sigma, cond) + (0 if estimate is None else 0.1 * estimate)


def labelled(cond: Cond, label: Tensor | None, like: Tensor) -> Cond:
    """``cond`` with this label for every row; None: no label."""
    rows = torch.full((len(like),), -1) if label is None else label.expand(len(like))
    return replace(cond, label=rows)


def every(d, x: Tensor, sigma: Tensor, conds: list[Cond]) -> list[Tensor]:
    """The answers to several conditions, asked for together: an inner memory then has one row for each."""
    stacked = Cond(
        label=torch.cat([c.label for c in conds]),
        estimate=None if conds[0].estimate is None else torch.cat([c.estimate for c in conds]),
    )
    return list(d(torch.cat([x] * len(conds)), torch.cat([sigma] * len(conds)), stacked).split(len(x)))


def like_cfg(d):
    def guided(x, sigma, cond):
        positive, without = every(d, x, sigma, [cond, labelled(cond, None, x)])
        return without + 3 * (positive - without)

    return guided


def like_apg(d):
    memory = []

    def guided(x, sigma, cond):
        positive, without = every(d, x, sigma, [cond, labelled(cond, None, x)])
        push = positive - without - (0.5 * memory[-1] if memory else 0)
        memory.append(push)
        push = push / push.norm(dim=1, keepdim=True).clamp(min=1)
        unit = positive / positive.norm(dim=1, keepdim=True)
        return positive + 2 * (push - (push * unit).sum(1, keepdim=True) * unit)

    return guided


def like_cfg_zero(d):
    def guided(x, sigma, cond):
        t = (sigma / (1 + sigma))[:, None]
        if torch.allclose(x[:B].norm(dim=1), START.norm(dim=1)):  # the first evaluation, mirrored or not
            return x * (1 - t)
        one, without = every(d, x, sigma, [cond, labelled(cond, None, x)])
        v, u = (((x - x0) / sigma[:, None] - x0) for x0 in (one, without))
        u = u * ((v * u).sum(1) / u.square().sum(1))[:, None]
        return x * (1 - t) - t * (u + 3 * (v - u))

    return guided


def like_autoguidance(d):
    return lambda x, sigma, cond: 2 * d(x, sigma, cond) - shifted(x, sigma, cond)


def like_compose(d):
    def guided(x, sigma, cond):
        asked = [labelled(cond, label, x) for label in (torch.tensor([0]), torch.tensor([1]), None)]
        zero, one, without = every(d, x, sigma, asked)
        return zero - without + 0.5 * (one - without) + without

    return guided


def like_classifier(d):
    def guided(x, sigma, cond):
        variance = (STD**2 + sigma**2)[:, None]
        chosen = MEANS[cond.label.clamp(min=0)] - log_joint(x, sigma).softmax(1) @ MEANS
        push = torch.where((cond.label < 0)[:, None], 0.0, chosen / variance)
        return d(x, sigma, cond) + 2 * sigma[:, None] ** 2 * push

    return guided


def like_loss_guidance(d):
    def guided(x, sigma, cond):
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            x0 = d(leaf, sigma, cond)
            (push,) = torch.autograd.grad((x0 - 1).square().mean(1).sum(), leaf, create_graph=True)
        out = x0 - sigma[:, None] ** 2 * push
        return out if x.requires_grad else out.detach()

    return guided


def like_inpaint(d):
    return lambda x, sigma, cond: IMAGE * (1 - HALF) + d(x, sigma, cond) * HALF


def like_blind(d):
    return lambda x, sigma, cond: d(x, x.norm(dim=1), cond)


def like_self_ensemble(*runs):
    """Of images of one line and two pixels: as it is, mirrored, turned by half, both. Each is a run of its own."""

    def guided(x, sigma, cond):
        answers = []
        for d, mirrored in zip(runs, (False, True, True, False), strict=True):
            turned = (lambda v: v.flip(1)) if mirrored else (lambda v: v)
            estimate = None if cond.estimate is None else turned(cond.estimate)
            answers.append(turned(d(turned(x), sigma, replace(cond, estimate=estimate))))
        return sum(answers) / 4

    return guided


def like_self_conditioned(d):
    answers = []

    def guided(x, sigma, cond):
        # an outer guidance may ask for more conditions than at the call before: the images are the same, repeated
        last = answers[-1].repeat(len(x) // len(answers[-1]) or 1, 1)[: len(x)] if answers else torch.zeros_like(x)
        answers.append(d(x, sigma, replace(cond, estimate=last)))
        return answers[-1]

    return guided


FORMULAS = dict(
    zip(
        CASES,
        (
            like_cfg, like_apg, like_cfg_zero, like_autoguidance, like_compose, like_classifier, like_loss_guidance,
            like_inpaint, like_blind, like_self_ensemble, like_self_conditioned,
        ),
        strict=True,
    )
)  # fmt: skip


RUNS = {"self_ensemble": 4}  # of what is inside, where several go on side by side


def by_formula(name: str, inside):
    """The formula, with as many runs of what is inside as it needs."""
    return FORMULAS[name](*[inside() for _ in range(RUNS.get(name, 1))])


MIXED = pytest.mark.xfail(strict=True, reason="What is remembered of one orientation is given to the next one.")


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        pytest.param(a, b, marks=MIXED if a == "self_ensemble" and b in ("apg", "self_conditioned") else ())
        for a in CASES
        for b in CASES
    ],
)
def test_guidance_nests_in_any_order(outer: str, inner: str) -> None:
    """A whole run under both equals the run of one formula put into the other."""
    cond = Cond(label=LABELS)
    guided = result(CASES[outer](CASES[inner](remembering)), cond)
    expected = by_formula(outer, lambda: by_formula(inner, lambda: remembering))
    assert torch.allclose(guided, result(expected, cond), rtol=1e-7, atol=1e-9)


def test_a_guided_denoiser_runs_under_no_grad_and_leaves_no_graph() -> None:
    with torch.no_grad():
        for make in CASES.values():
            assert not result(make(Mixture()), Cond(label=LABELS)).requires_grad


# ---- where a run is -----------------------------------------------------------------------------------------------


@guidance.guidance
def probe(d, seen: list, *, run: Run):
    """Notes where the run is at each evaluation, and what the denoiser's tensor has there."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        seen.append((run, run.index, run.sigma, float(sigma[0])))
        return d(x, sigma, cond)

    return guided


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_guidance_knows_where_the_run_is(name: str) -> None:
    table, seen, outside, weak = samplers.table(name, SIGMAS), [], [], []
    nested = autoguidance(cfg(probe(Mixture(), seen), 2.0), probe(shifted, weak), 2.0)
    result(probe(nested, outside), Cond(label=LABELS), table)
    levels = tuple(row.sigma for row in table.rows)
    assert [(i, s) for _, i, s, _ in seen] == list(enumerate(levels))
    assert seen == outside == weak  # guidance in guidance, and the weak model, get the same run
    assert len({id(run) for run, *_ in seen}) == 1 and seen[0][0].sigmas == levels
    assert seen[0][0].steps == len(table.sigmas) - 1
    assert all(there == s for _, _, s, there in seen)  # in float64 the tensor is the table's number


@pytest.mark.parametrize("solver", [adaptive.rk45, adaptive.dpm_23])
def test_guidance_knows_where_an_adaptive_solver_is(solver) -> None:
    seen: list = []
    *_, last = solver(probe(Mixture(), seen), START, 80.0, 0.1, Cond(label=LABELS))
    assert [i for _, i, *_ in seen] == list(range(last.index + 1))
    assert seen[0][0].sigmas == () and seen[0][0].steps == 0
    assert [s for *_, s, _ in seen] == pytest.approx([there for *_, there in seen])


def test_guidance_knows_where_every_other_loop_is() -> None:
    seen: list = []
    probed, cond = probe(Mixture(), seen), Cond(label=LABELS)
    list(optimization.optimize(probed, START, 80.0, 5, "descent"))
    assert [i for _, i, *_ in seen] == [0, 1, 2, 3, 4] and seen[0][0].sigmas == tuple(s for *_, s, _ in seen)
    assert [s for *_, s, _ in seen] == pytest.approx([there for *_, there in seen])
    seen.clear()
    process = processes.Cold(lambda x0, level: x0 * (1 - level / 100))
    table = samplers.table("unipc", SIGMAS)
    samplers.final(processes.run(probed, START, table, process, cond))
    assert [(i, s) for _, i, s, _ in seen] == list(enumerate(table.sigmas[:-1])) and seen[0][0].sigmas == table.sigmas[
        :-1
    ]
    seen.clear()
    probability_flow.log_likelihood(probed, START, 0.1, 80.0, cond)
    assert [i for _, i, *_ in seen] == list(range(len(seen))) and len(seen) > 12
    seen.clear()
    flow = reference.Flow(probed, cond, SIGMAS[:-1].log(), START[None].expand(8, -1, -1), START[None].expand(8, -1, -1))
    search.fit_rows(flow, [3.0, 1.0, 0.0])
    assert [(i, s, run.sigmas) for run, i, s, _ in seen] == [(0, 3.0, (3.0, 1.0)), (1, 1.0, (3.0, 1.0))]


def test_a_direct_call_is_a_run_of_one_evaluation(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    seen: list = []
    guided = probe(Mixture(), seen)
    guided(x, sigma, cond), guided(x, 2 * sigma, cond)
    assert [(i, s) for _, i, s, _ in seen] == [(0, 0.7), (0, 1.4)]
    assert [(run.sigmas, run.steps) for run, *_ in seen] == [((0.7,), 1), ((1.4,), 1)]


class NothingRead(TorchFunctionMode):
    """Refuses to turn a tensor into a number: on a GPU that waits until all that was started is done."""

    READS = (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.cpu, Tensor.numpy)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in self.READS, f"{func} in the loop"
        return func(*args, **(kwargs or {}))


def of_all_kinds(d: guidance.Denoise, name: str) -> guidance.Denoise:
    return CASES[name](apg(d, 2.0, interval=(0.1, 5.0)))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("name", CASES)
def test_the_loop_reads_no_tensor(name: str, sampler: str) -> None:
    table = samplers.table(sampler, SIGMAS)
    with NothingRead():
        result(of_all_kinds(Mixture(), name), Cond(label=LABELS), table)
    with pytest.raises(AssertionError, match="in the loop"), NothingRead():
        result(lambda x, sigma, cond=None: x * float(sigma[0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["cfg", "apg", "loss_guidance", "self_conditioned", "blind"])
def test_the_loop_never_waits_for_the_gpu(name: str) -> None:
    def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and cond.label is not None
        return (x + cond.label[:, None]) / (1 + sigma[:, None].square())

    def steps(device: str):
        x, cond = START.float().to(device), Cond(label=LABELS.to(device))
        return samplers.run(of_all_kinds(denoise, name), x, TABLE, cond)

    there = steps("cuda")
    next(there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        last = samplers.final(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(last.cpu(), samplers.final(steps("cpu")), rtol=1e-4, atol=1e-5)


# ---- two estimates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, 7.5])
def test_cfg_is_the_linear_combination(at: tuple[Tensor, Tensor, Cond], scale: float) -> None:
    x, sigma, cond = at
    without, positive = Mixture()(x, sigma), Mixture()(x, sigma, cond)
    model = Mixture()
    assert torch.allclose(cfg(model, scale)(x, sigma, cond), without + scale * (positive - without), atol=1e-12)
    assert model.batches == [B if scale in (0, 1) else 2 * B]


def test_cfg_with_a_negative_label_and_a_scale_per_level(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    away = Cond(label=torch.tensor([1]))
    without, positive = Mixture()(x, sigma, Cond(label=torch.full((B,), 1))), Mixture()(x, sigma, cond)
    guided = cfg(Mixture(), lambda s: 10 * s, uncond=away)(x, sigma, cond)
    assert torch.allclose(guided, without + 7 * (positive - without), atol=1e-12)


def test_cfg_keeps_what_the_negative_does_not_say() -> None:
    seen: list[Cond] = []

    def model(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None
        seen.append(cond)
        return x

    picture = torch.rand(2, 3, 4, 4)
    cond = Cond(label=torch.tensor([1, 2]), image=picture)
    cfg(model, 2.0, uncond=Cond(label=torch.tensor([0])))(torch.zeros(2, 3, 4, 4), torch.ones(2), cond)
    assert seen[0].label is not None and seen[0].label.tolist() == [1, 2, 0, 0]
    assert seen[0].image is not None and torch.equal(seen[0].image[2:], picture)


def test_a_text_and_its_mask_are_replaced_as_one() -> None:
    """No states of one text under the mask of another: not of a text without a mask, and not of an absent one."""
    full, short = torch.tensor([[True, True, True]]), torch.tensor([[True, False, False]])
    cond = Cond(emb=torch.ones(2, 3, 4), mask=full.expand(2, 3), pooled=torch.ones(2, 5), label=torch.tensor([1, 2]))
    bare = guidance.replace_text(cond, Cond(emb=torch.zeros(1, 3, 4)), 2)
    assert bare.emb is not None and not bare.emb.any() and bare.mask is None  # no mask: every token is real
    both = Cond.cat([cond, bare])
    assert both.mask is not None and both.mask.all() and len(both) == 4
    masked = guidance.replace_text(cond, Cond(emb=torch.zeros(1, 3, 4), mask=short), 2)
    assert masked.mask is not None and torch.equal(masked.mask, short.expand(2, 3))
    absent = guidance.replace_text(cond, Cond(label=torch.tensor([0])), 2)
    assert absent.mask is not None and not absent.mask.any() and torch.equal(absent.emb, cond.emb)
    assert absent.label.tolist() == [0, 0] and not absent.pooled.any()
    assert bare.label.tolist() == [-1, -1]


def test_the_open_part_of_a_condition_is_kept_where_it_is_not_replaced() -> None:
    seen: list[Cond] = []

    def model(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None
        seen.append(cond)
        return x

    cond = Cond(pooled=torch.ones(2, 4), extra={"size": torch.tensor([[8], [9]]), "second": torch.ones(2, 1)})
    uncond = Cond(pooled=torch.zeros(1, 4), extra={"second": torch.zeros(1, 1)})
    cfg(model, 2.0, uncond)(torch.zeros(2, 3), torch.ones(2), cond)
    assert seen[0].extra["size"][:, 0].tolist() == [8, 9, 8, 9]
    assert seen[0].extra["second"][:, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("guide", [cfg, apg])
@pytest.mark.parametrize("rows", [1, B])
def test_unconditional_may_have_one_row_or_one_per_image(guide, rows: int, at: tuple[Tensor, Tensor, Cond]) -> None:
    """Also inside a guidance that stacks several conditions for each image."""
    x, sigma, cond = at
    away = Cond(label=LABELS.flip(0)[:rows])
    without, positive = Mixture()(x, sigma, Cond(label=LABELS.flip(0)[:rows].expand(B))), Mixture()(x, sigma, cond)
    guided = guide(Mixture(), 3.0, away, **({"parallel": 1.0} if guide is apg else {}))
    expected = without + 3 * (positive - without)
    assert torch.allclose(guided(x, sigma, cond), expected)
    stacked = compose(guided, [cond, cond], [0.5, 0.5], uncond=cond)
    assert torch.allclose(stacked(x, sigma, cond), expected)
    with pytest.raises(InputError, match="4 rows were given for a batch of 6"):
        guide(Mixture(), 3.0, Cond(label=LABELS[:4]))(x, sigma, cond)


def test_rescale_restores_the_spread_of_the_conditional_estimate(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    guided = cfg(Mixture(), 5.0, rescale=1.0)(x, sigma, cond)
    assert torch.allclose(guided.std(1), Mixture()(x, sigma, cond).std(1))


def test_interval_bounds_the_levels_that_are_guided() -> None:
    """The bounds are compared with the table's own numbers, whatever a float32 tensor rounds these to."""
    levels, batches = SIGMAS[:-1].tolist(), []

    def model(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        batches.append(len(x))
        return 0.5 * x

    assert any(float(torch.tensor(s)) != s for s in levels)
    for low, high in ((0.05, 1.0), *((levels[j], levels[i]) for i in range(8) for j in range(i, 8))):
        batches.clear()
        samplers.final(samplers.run(cfg(model, 3.0, interval=(low, high)), START.float(), TABLE, Cond(label=LABELS)))
        assert batches == [2 * B if low < s <= high else B for s in levels]


def test_apg_without_its_three_ideas_is_cfg() -> None:
    plain = result(apg(Mixture(), 4.0, parallel=1, momentum=0), Cond(label=LABELS))
    assert torch.allclose(plain, result(cfg(Mixture(), 4.0), Cond(label=LABELS)), atol=1e-10)


@pytest.mark.parametrize("norm", [1.0, float("inf")])
def test_apg_can_be_differentiated_where_it_pushes_nowhere(norm: float) -> None:
    """A model that was never told anything: both estimates are equal, and their difference has no direction."""

    def deaf(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return x / (1 + sigma[:, None].square())

    steered = loss_guidance(apg(deaf, 3.0, norm=norm), lambda x0: x0.square().sum(1), 0.1)
    assert steered(torch.ones(2, 3), torch.ones(2), Cond(label=torch.tensor([0, 1]))).isfinite().all()


def test_apg_projects_and_limits(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    positive = Mixture()(x, sigma, cond)
    push = apg(Mixture(), 2.0)(x, sigma, cond) - positive
    assert (push * positive).sum(1).abs().max() < 1e-12
    free = (positive - Mixture()(x, sigma)).norm(dim=1)
    push = apg(Mixture(), 2.0, parallel=1, norm=0.3)(x, sigma, cond) - positive
    assert torch.allclose(push.norm(dim=1), free.clamp(max=0.3)) and (free > 0.3).any()


def test_autoguidance_identity(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    strong, weak = Mixture()(x, sigma, cond), shifted(x, sigma, cond)
    assert torch.allclose(autoguidance(Mixture(), shifted, 2.5)(x, sigma, cond), weak + 2.5 * (strong - weak))
    assert torch.allclose(autoguidance(Mixture(), Mixture(), 2.5)(x, sigma, cond), strong)


def test_autoguidance_starts_the_weak_model_too() -> None:
    guided = autoguidance(Mixture(), apg(shifted, 3.0), 2.0)  # apg remembers: a second run must not
    assert torch.equal(result(guided, Cond(label=LABELS)), result(guided, Cond(label=LABELS)))


def test_compose_of_one_is_cfg_and_of_two_the_product_of_gaussians(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    assert torch.allclose(compose(Mixture(), [cond], [3.0])(x, sigma), cfg(Mixture(), 3.0)(x, sigma, cond))
    two = [Cond(label=torch.tensor([k])) for k in (0, 2)]
    parts = [Mixture()(x, sigma, Cond(label=torch.full((B,), k))) - Mixture()(x, sigma) for k in (0, 2)]
    expected = Mixture()(x, sigma) + parts[0] - 0.5 * parts[1]
    assert torch.allclose(compose(Mixture(), two, [1.0, -0.5])(x, sigma), expected)


# ---- gradients --------------------------------------------------------------------------------------------------


def test_the_exact_classifier_gives_the_exact_conditional_denoiser(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at

    def unconditional(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return Mixture()(x, sigma)

    guided = classifier(unconditional, log_prob)
    assert torch.allclose(guided(x, sigma, cond), Mixture()(x, sigma, cond), atol=1e-10)
    assert torch.allclose(result(guided, cond), result(Mixture(), cond), atol=1e-8)
    strong = classifier(unconditional, log_prob, 3.0)  # and the implicit classifier of cfg is the same one
    assert torch.allclose(strong(x, sigma, cond), cfg(Mixture(), 3.0)(x, sigma, cond), atol=1e-10)


def test_nesting_order_of_cfg_and_classifier(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    push = classifier(Mixture(), log_prob)(x, sigma, cond) - Mixture()(x, sigma, cond)
    mixed = cfg(Mixture(), 3.0)(x, sigma, cond)
    assert torch.allclose(classifier(cfg(Mixture(), 3.0), log_prob)(x, sigma, cond), mixed + push)
    assert torch.allclose(cfg(classifier(Mixture(), log_prob), 3.0)(x, sigma, cond), mixed + 3 * push)


def gaussian(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
    """The denoiser of N(0, STD^2)."""
    return STD**2 / (STD**2 + sigma**2)[:, None] * x


@pytest.mark.parametrize("through", [True, False])
def test_steer_is_the_posterior_mean_to_first_order(at: tuple[Tensor, Tensor, Cond], through: bool) -> None:
    x, sigma, _ = at
    target, weight = torch.tensor([0.4, -0.2], dtype=torch.float64), 1e-4
    precision = 1 / STD**2 + 1 / sigma[0] ** 2
    posterior = (x / sigma[0] ** 2 + weight * target) / (precision + weight)
    guided = loss_guidance(
        gaussian, lambda x0: (x0 - target).square().sum(1) / 2, weight, through=through, sigma_data=STD
    )
    moved = posterior - gaussian(x, sigma)
    assert ((guided(x, sigma) - posterior).norm() / moved.norm()) < 2 * weight / precision + 1e-8


@pytest.mark.parametrize("through", [True, False])
def test_a_steered_run_at_least_halves_its_loss(through: bool) -> None:
    guided = loss_guidance(Mixture(), energy, 1.0, through=through, sigma_data=0.8)
    assert energy(result(guided)).mean() < 0.5 * energy(result(Mixture())).mean()


def test_a_loss_must_be_per_image(at: tuple[Tensor, Tensor, Cond]) -> None:
    with pytest.raises(InputError, match="one number per image"):
        loss_guidance(Mixture(), lambda x0: x0.square().mean())(at[0], at[1])


def test_a_guided_run_can_itself_be_differentiated(at: tuple[Tensor, Tensor, Cond]) -> None:
    x, sigma, cond = at
    assert torch.autograd.gradcheck(lambda v: classifier(Mixture(), log_prob)(v, sigma, cond), x.requires_grad_())


# ---- what is known ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_3m", "heun", "euler_ancestral"])
def test_inpainting_keeps_known_pixels_exactly(sampler: str) -> None:
    table = samplers.table(sampler, SIGMAS)
    out = result(inpaint(Mixture(), IMAGE, HALF), table=table)
    assert torch.equal(out[:, 0], IMAGE[0, 0].expand(B))
    assert not torch.allclose(out[:, 1], IMAGE[0, 1].expand(B))


def test_inpaint_commutes_with_cfg() -> None:
    inside = result(cfg(inpaint(Mixture(), IMAGE, HALF), 2.0), Cond(label=LABELS))
    outside = result(inpaint(cfg(Mixture(), 2.0), IMAGE, HALF), Cond(label=LABELS))
    assert torch.allclose(inside, outside, atol=1e-10)


@pytest.mark.parametrize("size", [(6, 6), (4, 6)])
def test_symmetric_turns_with_its_input_and_what_it_is_told(size: tuple[int, int]) -> None:
    """Whatever the denoiser: turned and mirrored pictures get turned and mirrored answers."""
    kernel = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()

    def denoise(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and cond.image is not None
        return torch.conv2d(torch.cat([x, cond.image], 1), kernel, padding=1).sin()

    x, told = torch.randn(2, 3, 1, *size, generator=torch.Generator().manual_seed(1)).double()
    sigma, guided = torch.ones(3), self_ensemble(denoise)
    for turn in (lambda v: v.flip(3), lambda v: torch.rot90(v, 1 if size[0] == size[1] else 2, (2, 3))):
        other = guided(turn(x), sigma, Cond(image=turn(told)))
        torch.testing.assert_close(other, turn(guided(x, sigma, Cond(image=told))))
        assert not torch.allclose(other, turn(denoise(x, sigma, Cond(image=told))))


def test_symmetric_leaves_what_turns_anyway() -> None:
    def shrink(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1)

    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(self_ensemble(shrink)(x, torch.ones(2)), shrink(x, torch.ones(2)))


def test_inpaint_refuses_a_wrong_number_of_images(at: tuple[Tensor, Tensor, Cond]) -> None:
    with pytest.raises(InputError, match="4 rows were given for a batch of 6"):
        inpaint(Mixture(), torch.zeros(4, 2), HALF)(at[0], at[1])


def test_blind_of_a_perfect_eye_is_seeing() -> None:
    levels = iter(SIGMAS)
    assert torch.equal(result(blind(Mixture(), lambda x: next(levels).expand(B))), result(Mixture()))


def test_self_conditioning_under_an_interval_keeps_each_images_estimate() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and cond.estimate is not None
        seen.append(cond.estimate)
        return Mixture()(x, sigma, cond)

    steps = list(samplers.run(cfg(self_conditioned(model), 3.0, interval=(0.0, 1.0)), START, TABLE, Cond(label=LABELS)))
    first = next(i for i, s in enumerate(SIGMAS) if s <= 1)
    assert torch.equal(seen[0], torch.zeros_like(START))
    assert torch.equal(seen[first], steps[first - 1].x0.repeat(2, 1))
