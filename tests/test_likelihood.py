"""The probability flow against closed forms: density, inversion, and error control."""

import math

import pytest
import torch

from fastdiffusion import noise, samplers, schedules
from fastdiffusion.data import oracles
from fastdiffusion.errors import InputError
from fastdiffusion.samplers import adaptive, probability_flow, solvers

DTYPE = torch.float64


def gaussian() -> oracles.Gaussian:
    axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=noise.generator(5), dtype=DTYPE))
    return oracles.Gaussian(
        torch.tensor([1.0, -2.0, 0.5], dtype=DTYPE), axes, torch.tensor([0.3, 1.0, 2.0], dtype=DTYPE)
    )


@pytest.mark.parametrize(("solver", "tolerance"), [("rk45", 1e-3), ("rk45", 1e-6), ("dpm_23", 1e-3), ("dpm_23", 1e-5)])
def test_adaptive_solvers_keep_their_tolerance(solver, tolerance):
    g = gaussian()
    x = 80 * noise.initial(range(8), (3,)).double()
    *_, last = getattr(adaptive, solver)(g, x, 80.0, 0.01, rtol=tolerance, atol=tolerance)
    assert float((last.x - g.flow(x, 80.0, 0.01)).abs().max()) < 30 * tolerance
    assert last.sigma == pytest.approx(0.01) and 10 < last.index < 3000


def test_tighter_costs_more_and_errors_fall():
    g, x = gaussian(), 80 * noise.initial(range(8), (3,)).double()
    for solver in (adaptive.rk45, adaptive.dpm_23):
        runs = [list(solver(g, x, 80.0, 0.01, rtol=tol, atol=tol))[-1] for tol in (1e-2, 1e-4, 1e-6)]
        errors = [float((run.x - g.flow(x, 80.0, 0.01)).square().mean().sqrt()) for run in runs]
        assert errors[0] > 5 * errors[1] > 25 * errors[2]
        assert runs[0].index < runs[1].index < runs[2].index


def test_adaptive_solvers_refuse_zero():
    for solver in (adaptive.rk45, adaptive.dpm_23):
        with pytest.raises(InputError, match="above 0"):
            next(solver(gaussian(), torch.zeros(1, 3), 80.0, 0.0))
    with pytest.raises(InputError, match="rk45"):
        next(adaptive.dpm_23(gaussian(), torch.zeros(1, 3), 1.0, 2.0))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m", "heun"])
def test_there_and_back_is_the_same_place(sampler):
    d, sigmas = oracles.blobs(8), schedules.exponential(320)
    x0 = d.sample(16, noise.generator(1))
    noisy = probability_flow.invert(d, x0, sigmas, sampler=sampler)
    back = samplers.final(samplers.run(d, noisy, samplers.table(sampler, sigmas)))
    torch.testing.assert_close(back, x0, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", [name for name, method in solvers.METHODS.items() if not method.stochastic])
def test_an_inversion_follows_the_flow_with_the_order_of_its_method(name):
    """On a Gaussian's closed-form flow; at most 2, since multistep methods begin with a step of order 1."""
    g, order, errors = gaussian(), min(samplers.about(name).order, 2), []
    x0 = g.mean + 0.5 * noise.initial(range(8), (3,)).double()
    for n in (64, 128):
        noisy = probability_flow.invert(g, x0, schedules.karras(n + 1, 0.1, 5.0), sampler=name)
        errors.append(float((noisy - g.flow(x0, 0.1, 5.0)).square().mean().sqrt()))
    assert order - 0.2 < math.log2(errors[0] / errors[1]) < order + 0.5


def test_an_inversion_takes_one_evaluation_a_step_and_no_random_numbers():
    calls = []

    def denoise(x, sigma, cond=None):
        calls.append(float(sigma[0]))
        return 0.5 * x

    probability_flow.invert(denoise, torch.ones(1, 2), [8.0, 4.0, 2.0, 1.0, 0.0])
    assert calls == [1.0, 2.0, 4.0]
    with pytest.raises(InputError, match="No deterministic sampler named 'ddpm'"):
        probability_flow.invert(denoise, torch.ones(1, 2), [2.0, 1.0, 0.0], sampler="ddpm")
    with pytest.raises(InputError, match="at least 2 steps, got 1"):
        probability_flow.invert(denoise, torch.ones(1, 2), [2.0, 0.0])


def test_interpolation_ends_at_its_ends():
    d = oracles.blobs(8)
    a, b = d.means[:1], d.means[3:4] + 0.05
    path = probability_flow.interpolate(d, a, b, schedules.exponential(160), n=5, sampler="dpmpp_3m")
    assert path.shape == (5, 2)
    torch.testing.assert_close(path[[0, -1]], torch.cat([a, b]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_likelihood_of_a_gaussian(trace):
    g = gaussian()
    x0 = g.sample(16, noise.generator(2))
    seeds = range(20) if trace == "hutchinson" else (0,)
    found = probability_flow.log_likelihood(g, x0, 0.002, 80.0, trace=trace, seeds=seeds)
    exact = g.log_prob(x0, 0.002)
    per_dim = (found - exact).abs() / 3
    assert float((found - exact).mean().abs()) / 3 < (0.005 if trace == "exact" else 0.3)
    assert trace == "hutchinson" or float(per_dim.max()) < 0.02  # the prior forgets the mean


def test_likelihood_of_a_mixture():
    d = oracles.blobs(8)
    x0 = d.sample(64, noise.generator(3))
    found = probability_flow.log_likelihood(d, x0, trace="exact")
    exact = d.log_prob(x0, 0.002)
    assert float((found.mean() - exact.mean()).abs()) / 2 < 0.02  # nats a dimension
    assert float((found - exact).abs().max()) < 0.05


def test_hutchinson_is_unbiased():
    d = oracles.blobs(8)
    x0 = d.sample(1, noise.generator(3)).expand(200, 2)
    found = probability_flow.log_likelihood(d, x0.contiguous(), seeds=(0, 1), tolerance=1e-3)
    exact = probability_flow.log_likelihood(d, x0[:1], trace="exact", tolerance=1e-3)
    assert float((found - exact).mean()) == pytest.approx(0, abs=4 * float(found.std()) / math.sqrt(200) + 0.02)


def test_bits_per_dim_of_noise():
    # Uniformly random 8-bit pictures need 8 bits; a Gaussian of standard deviation 0.2 needs its entropy.
    std = 0.2
    flat = oracles.Gaussian(torch.zeros(4, dtype=DTYPE), torch.eye(4, dtype=DTYPE), torch.full((4,), std, dtype=DTYPE))
    levels = (flat.sample(400, noise.generator(4)).clamp(-1, 1) * 127.5).round() / 127.5
    bits = probability_flow.bits_per_dim(flat, levels, trace="exact", tolerance=1e-3)
    entropy = (0.5 * math.log(2 * math.pi * math.e * std**2) - math.log(2 / 255)) / math.log(2)
    assert float(bits.mean()) == pytest.approx(entropy, abs=0.05)


@pytest.mark.parametrize(("solver", "levels"), [(adaptive.rk45, (0.002, 80.0)), (adaptive.dpm_23, (80.0, 0.002))])
def test_estimates_that_are_not_numbers_end_with_a_sentence(solver, levels):
    with pytest.raises(InputError, match="not finite"):
        list(solver(lambda x, sigma, cond=None: x * math.nan, torch.ones(1, 2), *levels))
    with pytest.raises(InputError, match="no way"):
        list(solver(lambda x, sigma, cond=None: x, torch.ones(1, 2), 1.0, 1.0))
