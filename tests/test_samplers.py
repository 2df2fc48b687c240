"""Samplers against mathematics: the exact flow, the exact law, and the field's other implementations."""

import json
import math
import re
from itertools import pairwise

import pytest
import torch

from fastdiffusion import noise, samplers, schedules
from fastdiffusion.data import oracles
from fastdiffusion.errors import InputError
from fastdiffusion.samplers import solvers

ODE = [name for name, method in solvers.METHODS.items() if not method.stochastic]
SDE = [name for name in samplers.SAMPLERS if name not in ODE and name != "consistency"]
DTYPE = torch.float64


def gaussian() -> oracles.Gaussian:
    axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=noise.generator(5), dtype=DTYPE))
    return oracles.Gaussian(
        torch.tensor([1.0, -2.0, 0.5], dtype=DTYPE), axes, torch.tensor([0.3, 1.0, 2.0], dtype=DTYPE)
    )


def sample(denoise, table, n=4, shape=(3,), seed=0, x=None):
    seeds = range(seed, seed + n)
    x = table.sigmas[0] * noise.initial(seeds, shape).double() if x is None else x
    return samplers.final(samplers.run(denoise, x, table, seeds=seeds))


# ---- every sampler, every schedule -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_perfect_model_gets_its_x0_back(name):
    # Faults 1 and 2: residual noise; NaN at sigma 0; a crash at n = 1.
    x0 = torch.linspace(-1, 1, 6, dtype=DTYPE).reshape(2, 3)
    for n in range(1, 31):
        for schedule in schedules.SCHEDULES:
            if n in (1, 2, 3, 30) or schedule == "karras":
                table = samplers.table(name, schedules.schedule(schedule, n))
                out = samplers.final(
                    samplers.run(lambda x, sigma, cond=None: x0, x0 + 80 * torch.randn(2, 3), table, seeds=[0, 1])
                )
                torch.testing.assert_close(out, x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_each_call_sees_exactly_its_noise_level(name):
    # Faults 3 to 6: every sigma is called where it stands, the first at full noise, and x there has that much noise.
    x0 = torch.tensor(0.7, dtype=DTYPE)
    for schedule in ("karras", "cosine", "flow"):
        table = samplers.table(name, schedules.schedule(schedule, 12))
        levels = []

        def denoise(x, sigma, cond=None, levels=levels):
            levels.append((float(sigma[0]), float((x - x0).std())))
            return x0.expand_as(x)

        sample(denoise, table, n=1, shape=(20_000,))
        assert levels[0][0] == pytest.approx(80)
        for sigma, std in levels:
            assert std == pytest.approx(sigma, rel=0.03)
        if not table.stochastic and name not in ("heun", "dpmpp_2s", "dpm_2"):
            assert [sigma for sigma, _ in levels] == pytest.approx(list(table.sigmas[:-1]))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_calls_are_counted_and_runs_are_independent(name):
    # Fault 9: 21 calls for 20 steps; a second loop fails. Two interleaved runs equal two sequential ones.
    g, table = gaussian(), samplers.table(name, schedules.karras(20))
    x = 80 * noise.initial([3, 4], (3,)).double()
    steps = list(samplers.run(g, x, table, seeds=[3, 4]))
    assert len(steps) == table.nfe == steps[-1].of and [s.index for s in steps] == list(range(table.nfe))
    if name not in ("restart", "repaint"):
        about = samplers.about(name)
        assert table.nfe == 20 * about.nfe - (about.nfe - 1) and table.stochastic == about.stochastic
    a, b = samplers.run(g, x, table, seeds=[3, 4]), samplers.run(g, 2 * x, table, seeds=[5, 6])
    for one, _, alone in zip(a, b, steps, strict=True):
        assert torch.equal(one.x, alone.x)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_table_is_json_and_prints(name):
    table = samplers.table(name, schedules.exponential(7))
    assert samplers.Table.from_json(table.to_json()) == table
    assert str(table).count("\n") == table.nfe


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_what_is_said_of_a_sampler_is_so(name):
    """Whether it draws noise and how often it asks the model are counted; order is measured below."""
    levels, calls, seeds = schedules.karras(9), [], [0, 1]

    def denoise(x, sigma, cond=None):
        calls.append(float(sigma[0]))
        return x / (1 + sigma[:, None].square())

    about, table = samplers.about(name), samplers.table(name, levels)
    x = 80 * noise.initial([7, 7], (3,)).double()  # one start for two seeds: what differs then is drawn on the way
    first, second = samplers.final(samplers.run(denoise, x, table, seeds=seeds))
    assert about.stochastic == (not torch.equal(first, second))
    falls = sum(low < high for high, low in pairwise(table.sigmas))
    assert len(calls) == about.nfe * falls - (about.nfe - 1)  # the step to 0 needs one
    assert about.name == name
    assert re.match(r"[A-Z`].{30,}\.$", about.summary), about.summary  # a whole sentence
    assert about.use and [samplers.about(other).use for other in samplers.SAMPLERS].count(about.use) == 1


def test_about_an_unknown_sampler_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'heun'"):
        samplers.about("huen")


# ---- deterministic: the exact flow, with the stated order --------------------------------------------------------


def order_of(name, **options):
    """Slope of the error against steps on a Gaussian's closed-form flow, from sigma 200 down to 0.1.

    Multistep methods start with one step of order 1; at high sigma, where D hardly changes, it does no harm.
    """
    g = gaussian()
    x = g.mean + 200 * noise.initial(range(8), (3,)).double()
    errors = []
    for n in (128, 256):
        table = samplers.table(name, schedules.karras(n + 1, 0.1, 200.0), **options)
        calls = solvers.METHODS[name].nfe * n
        low = next(s.x for s in samplers.run(g, x, table) if s.index == calls - 1)
        errors.append(float((low - g.flow(x, 200.0, 0.1)).square().mean().sqrt()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", ODE)
def test_measured_order(name):
    assert order_of(name) == pytest.approx(samplers.about(name).order, abs=0.2)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [("lms", {"order": k}, k) for k in (1, 2, 3)]
    + [("deis", {"order": k, "basis": b}, k) for k in (1, 2, 3) for b in ("t", "rho", "log")]
    # the corrector adds an order; the last step has none, and is of order 2 at most
    + [("unipc", {"order": k, "variant": v}, min(k + 1, 3)) for k in (1, 2, 3) for v in ("bh1", "bh2")],
)
def test_measured_order_of_options(name, options, order):
    assert order_of(name, **options) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", ODE)
def test_the_flow_of_a_mixture(name):
    d = oracles.blobs(8)
    x = 80 * noise.initial(range(32), (2,)).double()
    fine = sample(d, samplers.table("heun", schedules.karras(200)), x=x)
    out = sample(d, samplers.table(name, schedules.exponential(100)), x=x)
    assert float((out - fine).square().mean().sqrt()) < (0.1 if samplers.about(name).order == 1 else 3e-3)


# ---- stochastic: the exact law -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDE)
def test_mean_and_covariance(name):
    g = gaussian()
    steps = 300 if samplers.about(name).order == 1 else 60
    out = sample(g, samplers.table(name, schedules.karras(steps, 0.01, 80)), n=1, shape=(20_000, 3))[0]
    covariance = g.axes @ torch.diag(g.stds.square()) @ g.axes.T
    torch.testing.assert_close(out.mean(0), g.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(out.T), covariance, rtol=0, atol=0.08 * float(covariance.max()))


def test_churn_keeps_the_law():
    g = gaussian()
    out = sample(g, samplers.table("heun", schedules.karras(60, 0.01, 80), churn=30), n=1, shape=(20_000, 3))[0]
    torch.testing.assert_close(out.mean(0), g.mean, rtol=0, atol=0.12)
    torch.testing.assert_close((out - g.mean).square().mean(0), g.axes.square() @ g.stds.square(), rtol=0.08, atol=0)


@pytest.mark.parametrize(
    "name", ["ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_ancestral", "ddpm"]
)
def test_more_steps_walk_the_same_path(name):
    # Fault 10: the seed's picture does not change with steps, batch or company.
    g = gaussian()
    options = {"eta": 1.0} if name == "ddim" else {}
    out = {n: sample(g, samplers.table(name, schedules.exponential(n, 0.01), **options), n=64) for n in (20, 40, 320)}

    def distance(a, b):
        return float((out[a] - out[b]).square().mean().sqrt())

    spread = float((out[320] - g.mean).square().mean().sqrt())
    assert distance(20, 40) < 0.35 * spread and distance(40, 320) < 0.8 * distance(20, 320)
    table = samplers.table(name, schedules.exponential(20, 0.01), **options)
    torch.testing.assert_close(sample(g, table, n=1, seed=7), out[20][7:8], rtol=0, atol=1e-12)


def test_eta_zero_is_the_flow():
    sigmas = schedules.karras(9)
    flows = {"ddim": "euler", "dpmpp_2m_sde": "dpmpp_2m", "dpmpp_3m_sde": "dpmpp_3m", "dpmpp_2s_ancestral": "dpmpp_2s"}
    for name, flow in flows.items():
        assert samplers.table(name, sigmas, eta=0.0).rows == samplers.table(flow, sigmas).rows
    # ddpm's posterior variance is DDIM at eta = 1; DEIS of order 1 (tAB0) is DDIM.
    for a, b in zip(samplers.table("ddpm", sigmas).rows, samplers.table("euler_ancestral", sigmas).rows, strict=True):
        assert a.ratio == pytest.approx(b.ratio) and [p[0] for p in a.noise] == pytest.approx([p[0] for p in b.noise])
    for a, b in zip(samplers.table("deis", sigmas, order=1).rows, samplers.table("euler", sigmas).rows, strict=True):
        assert a.ratio == pytest.approx(b.ratio, abs=1e-12) and not a.weights


# ---- equivalence with the peers ------------------------------------------------------------------------------------


def scheduler_run(scheduler, denoise, x, sigmas, vp, twice=False):
    """Drive one of diffusers' schedulers over our sigmas; ``vp`` says that it holds x / sqrt(1 + sigma^2).

    ``twice``: each level but the first is called twice, as Heun's are: to look ahead, and from there on.
    """
    scheduler.set_timesteps(len(sigmas) - 1)
    if twice:
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas = sigmas.clone()
    scheduler.timesteps = torch.arange(len(sigmas) - 1, dtype=DTYPE)
    states = []
    state = x / (1 + sigmas[0] ** 2).sqrt() if vp else x
    for i, t in enumerate(scheduler.timesteps):
        scale = (1 + sigmas[i] ** 2).sqrt() if vp else 1.0
        x0 = denoise(state * scale, sigmas[i].expand(len(x)))
        state = scheduler.step(x0, t, state, return_dict=False)[0]
        states.append(state * ((1 + sigmas[i + 1] ** 2).sqrt() if vp else 1.0))
    return states


VP = {"num_train_timesteps": 1000, "prediction_type": "sample"}
PEERS = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero", **VP}, {}),
    "unipc-bh1": (
        "UniPCMultistepScheduler",
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "zero", **VP},
        {"variant": "bh1"},
    ),
    "unipc-bh2": (
        "UniPCMultistepScheduler",
        {"solver_order": 3, "solver_type": "bh2", "final_sigmas_type": "zero", **VP},
        {},
    ),
    "unipc-2": ("UniPCMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero", **VP}, {"order": 2}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3, **VP}, {"basis": "log"}),
    "euler": ("EulerDiscreteScheduler", VP, {}),
    "heun": ("HeunDiscreteScheduler", VP, {}),
    "lms": ("LMSDiscreteScheduler", VP, {}),
}


@pytest.mark.parametrize("peer", PEERS)
def test_equals_diffusers_step_by_step(peer):
    diffusers = pytest.importorskip("diffusers")
    cls, config, options = PEERS[peer]
    scheduler = getattr(diffusers, cls)(**config)
    vp = cls.endswith("MultistepScheduler")
    d, sigmas = oracles.blobs(8), schedules.karras(20, 0.05, 60)
    x = 60 * noise.initial(range(8), (2,)).double()
    theirs = scheduler_run(scheduler, d, x, sigmas, vp, twice=peer == "heun")
    ours = [s.x for s in samplers.run(d, x, samplers.table(peer.split("-")[0], sigmas, **options))]
    # UniPC shows the predicted state; a scheduler's own sigma table is float32.
    last = len(theirs) - (peer in ("deis", "unipc-bh1"))  # faults 1 and 2: theirs cannot step to sigma 0
    for k in range(last):
        torch.testing.assert_close(ours[k], theirs[k], rtol=2e-4, atol=2e-4)


def test_ancestral_equals_diffusers_given_the_same_noise(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    module = diffusers.schedulers.scheduling_euler_ancestral_discrete
    d, sigmas, seeds = oracles.blobs(8), schedules.karras(20, 0.05, 60), range(8)
    x = 60 * noise.initial(seeds, (2,)).double()
    paths, moves = noise.Paths(seeds, x), iter(zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False))

    def same(shape, **_):
        s, t = next(moves)
        return paths.draw(s, t) if t > 0 else torch.zeros(shape, dtype=DTYPE)

    monkeypatch.setattr(module, "randn_tensor", same)
    scheduler = diffusers.EulerAncestralDiscreteScheduler(1000, prediction_type="epsilon")

    def predicted_noise(x, sigma):
        return (x - d(x, sigma)) / sigma[:, None]

    theirs = scheduler_run(scheduler, predicted_noise, x, sigmas, vp=False)
    ours = [s.x for s in samplers.run(d, x, samplers.table("euler_ancestral", sigmas), seeds=seeds)]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-4)


def test_a_table_cannot_weigh_what_is_not_there_yet():
    raw = json.loads(samplers.table("euler", schedules.exponential(3)).to_json())
    raw["rows"][0]["weights"] = [0.5]
    with pytest.raises(InputError, match="do not exist yet"):
        samplers.Table.from_json(raw)
