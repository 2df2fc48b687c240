"""Langevin sampling, the score SDEs, and sampling by optimizer, against exact laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastdiffusion import noise, samplers, schedules
from fastdiffusion.data import oracles
from fastdiffusion.errors import InputError
from fastdiffusion.samplers import langevin, optimization

BLOBS = oracles.blobs(8)
N = 4_000


def crowd(x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
    """The denoiser of one image that is a crowd of N points: one generator draws them all."""
    return BLOBS(x[0], sigma.expand(x.shape[1]))[None]


def points(formula, sigmas: Tensor, seed: int = 0, **options) -> Tensor:
    table = samplers.trace(formula, sigmas, rising=True, **options)
    x = table.sigmas[0] * noise.initial([seed], (N, 2)).double()
    return samplers.final(samplers.run(crowd, x, table, seeds=[seed]))[0]


def sliced_w2(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Sliced 2-Wasserstein distance (Rabin et al. 2011) of two sets of N and k * N points."""
    v = torch.nn.functional.normalize(torch.randn(2, directions, generator=noise.generator(0), dtype=a.dtype), dim=0)
    quantiles = (b @ v).sort(0).values.reshape(len(a), -1, directions).mean(1)
    return float(((a @ v).sort(0).values - quantiles).square().mean().sqrt())


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return BLOBS.sample(10 * N, noise.generator(9))


# ---- Langevin -----------------------------------------------------------------------------------------------------


def test_a_langevin_move_keeps_the_noise_level_exactly() -> None:
    def formula(D, draw, x, sigmas):
        return langevin.langevin(x, D(x, sigmas[0]), sigmas[0], 0.7, draw)

    (row,) = samplers.trace(formula, [2.0, 0.0]).rows
    ((amplitude, *_),) = row.noise
    assert (2.0 * row.ratio) ** 2 + amplitude**2 == pytest.approx(4.0)


def test_annealed_langevin_samples_the_data(truth: Tensor) -> None:
    out = points(langevin.annealed_langevin, schedules.exponential(20, 0.01, 10), each=5, delta=0.3)
    assert sliced_w2(out, truth) < 0.08


@pytest.mark.parametrize("predictor", langevin.PREDICTORS)
@pytest.mark.parametrize("sde", langevin.SDES)
def test_every_sde_and_predictor_samples_the_data(sde: str, predictor: str, truth: Tensor) -> None:
    assert sliced_w2(points(langevin.predictor_corrector, langevin.levels(sde, 40), predictor=predictor), truth) < 0.07


def test_predictors_by_themselves_are_known_samplers() -> None:
    sigmas = schedules.karras(9)
    for predictor, name in (("ancestral", "euler_ancestral"), ("flow", "euler")):
        rows = samplers.trace(langevin.predictor_corrector, sigmas, predictor=predictor, corrections=0).rows
        for row, known in zip(rows, samplers.table(name, sigmas).rows, strict=True):
            assert row.ratio == pytest.approx(known.ratio)
            assert len(row.noise) == len(known.noise)
            assert all(a == pytest.approx(b) for a, b in zip(row.noise, known.noise, strict=True))


def test_unknown_names_and_bad_numbers_are_told() -> None:
    with pytest.raises(InputError, match="Did you mean 'ancestral'"):
        samplers.trace(langevin.predictor_corrector, [1.0, 0.0], predictor="ancestor")
    with pytest.raises(InputError, match="No SDE named 'vpp'"):
        langevin.levels("vpp", 5)
    with pytest.raises(InputError, match="each"):
        samplers.trace(langevin.annealed_langevin, [1.0, 0.0], each=0)


# ---- the SDEs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", langevin.SDES)
def test_coefficients_drive_the_marginals(name: str) -> None:
    """d mean / dt = f mean and d var / dt = 2 f var + g^2, integrated by the midpoint rule, give scale and sigma."""
    sde, n = langevin.sde(name), 20_000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 0.6
    f, g2 = langevin.coefficients(name, t)
    start = torch.zeros((), dtype=torch.float64)
    mean, variance = sde.scale(start), (sde.scale(start) * sde.sigma(start)) ** 2
    for a, b in zip((f * 0.6 / n).tolist(), (g2 * 0.6 / n).tolist(), strict=True):
        mean, variance = mean * math.exp(a), variance * math.exp(2 * a) + b * math.exp(a)
    end = torch.tensor(0.6, dtype=torch.float64)
    torch.testing.assert_close(mean, sde.scale(end), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance.sqrt(), sde.scale(end) * sde.sigma(end), rtol=1e-4, atol=0)


def test_vp_preserves_variance_and_sub_vp_stays_below() -> None:
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    vp, sub = (langevin.sde(name) for name in ("vp", "sub_vp"))
    torch.testing.assert_close(vp.scale(t).square() * (1 + vp.sigma(t).square()), torch.ones_like(t))
    torch.testing.assert_close(vp.sigma(t), schedules.sigma_linear(t))
    assert (sub.sigma(t) <= vp.sigma(t) + 1e-12).all()


# ---- by optimizer -------------------------------------------------------------------------------------------------


def optimized(n: int = 12, **options) -> Tensor:
    x = 10 * noise.initial(range(64), (2,)).double()
    return samplers.final(optimization.optimize(BLOBS, x, 10.0, n, sigma_min=0.01, **options))


@pytest.mark.parametrize(("update", "sampler"), [("descent", "euler"), ("extrapolation", "gam")])
def test_descent_is_a_known_sampler(update: str, sampler: str) -> None:
    table = samplers.table(sampler, schedules.exponential(12, 0.01, 10))
    x = 10 * noise.initial(range(64), (2,)).double()
    ours = optimization.optimize(BLOBS, x, 10.0, 12, update, sigma_min=0.01)
    for mine, known in list(zip(ours, samplers.run(BLOBS, x, table), strict=True))[:-1]:  # the last takes D's word
        torch.testing.assert_close(mine.x, known.x)


@pytest.mark.parametrize("update", optimization.UPDATES)
def test_every_optimizer_reaches_the_data(update: str) -> None:
    distance = torch.cdist(optimized(60, update=update), BLOBS.means).min(1).values
    assert float(distance.median()) < 3 * 0.1


@pytest.mark.parametrize("update", optimization.UPDATES)
def test_a_perfect_model_is_returned(update: str) -> None:
    for n in (1, 2, 7):
        x = torch.randn(2, 3, dtype=torch.float64)
        out = samplers.final(optimization.optimize(lambda x, sigma, cond=None: torch.ones_like(x), x, 5.0, n, update))
        assert torch.equal(out, torch.ones_like(x))


def test_no_momentum_is_descent() -> None:
    assert torch.equal(optimized(update="momentum", beta=0.0), optimized(update="descent"))


def test_blind_descent_with_a_perfect_eye_sees_what_was_planned() -> None:
    keep = (0.01 / 10) ** (1 / 11)
    levels = iter([10 * keep**i for i in range(12)])
    seen = optimized(update="adam", level=lambda x: torch.full((64,), next(levels), dtype=torch.float64))
    torch.testing.assert_close(seen, optimized(update="adam"))
