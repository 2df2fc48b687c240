"""Fitted tables: closer to the flow than any textbook's, on noises that they never saw; honest where they are not."""

import time

import pytest
import torch

from fastdiffusion import guidance, noise, samplers, schedules
from fastdiffusion.data import oracles
from fastdiffusion.errors import InputError
from fastdiffusion.samplers import fitting
from fastdiffusion.types import Cond

RING = oracles.blobs(8)


def held_out(denoise, shape=(2,), n=256, cond=None):
    x = 80 * noise.initial(range(10_000, 10_000 + n), shape)
    return fitting.Flow.solve(denoise, x, schedules.exponential(300), cond)


@pytest.fixture(scope="module")
def flow():
    return held_out(RING)


@pytest.mark.parametrize("polish", [False, True])
def test_fitted_beats_the_textbook(flow, polish):
    table = fitting.fit_sampler(RING, 6, (2,), 80.0, 0.002, noises=256, seconds=6, polish=polish)
    assert table.nfe == 6 and table.info["fitted"] and not table.stochastic
    assert table.info["error"] < table.info["textbook_error"]
    textbook = fitting.best_textbook(flow, 6, 0.002, 80.0, time.monotonic() + 60)
    assert flow.error_of(table) < 0.5 * flow.error_of(textbook)
    assert samplers.Table.from_json(table.to_json()) == table


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_perfect_model_still_gets_its_x0_back(steps):
    table = fitting.fit_sampler(RING, steps, (2,), 80.0, 0.002, noises=16, seconds=1)
    x0 = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    out = samplers.final(samplers.run(lambda x, sigma, cond=None: x0, x0 + 80 * torch.randn(1, 2), table))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-9)
    assert table.nfe == steps


def test_falls_back_to_the_textbook():
    # On one Gaussian of no width every table is exact: nothing to win, so the textbook's stays.
    point = oracles.Mixture(torch.zeros(1, 3), torch.zeros(1), torch.ones(1))
    table = fitting.fit_sampler(point, 4, (3,), 80.0, 0.002, noises=16, seconds=2)
    assert not table.info["fitted"] and table.info["error"] == table.info["textbook_error"]


def test_fits_under_guidance():
    cond = Cond(label=torch.arange(8))
    table = fitting.fit_sampler(RING, 6, (2,), 80.0, 0.002, cond=cond, noises=64, seconds=4, scale=2.0)
    told = Cond(label=torch.arange(64) % 8)
    flow = held_out(guidance.cfg(RING, 2.0), n=64, cond=told)
    textbook = samplers.table("dpmpp_3m", schedules.exponential(6))
    assert table.info["scale"] == 2 and flow.error_of(table) < flow.error_of(textbook)


def test_a_slow_model_is_searched_less():
    calls = 0

    def slow(x, sigma, cond=None):
        nonlocal calls
        calls += 1
        time.sleep(0.005)
        return RING(x, sigma)

    table = fitting.fit_sampler(slow, 4, (2,), 80.0, 0.002, noises=16, seconds=4)
    assert table.nfe == 4 and calls < 1000


def test_the_flow_between_its_points(flow):
    fine = held_out(RING, n=8)
    for sigma in (40.0, 3.3, 0.4, 0.05):
        sigmas = torch.cat([schedules.exponential(200, sigma, 80.0)])
        steps = list(samplers.run(RING, fine.start, samplers.table("dpmpp_3m", sigmas)))
        torch.testing.assert_close(fine.at(sigma), steps[-2].x, rtol=1e-3, atol=2e-3)


def test_bad_input():
    with pytest.raises(InputError, match="steps must be at least 1"):
        fitting.fit_sampler(RING, 0, (2,), 80.0, 0.002)
    with pytest.raises(InputError, match="shape, sigma_max and sigma_min"):
        fitting.fit_sampler(RING, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_fitted_there():
    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([0.5, 0.8]))

        def forward(self, x, sigma, cond=None):
            mean = 0 if cond is None else 0.1 * cond.label[:, None]
            return mean + (x - mean) * self.scale.square() / (self.scale.square() + sigma[:, None].square())

    cond = Cond(label=torch.arange(4))
    for model in (Exact().cuda(), guidance.self_conditioned(Exact().cuda())):
        table = fitting.fit_sampler(model, 5, (2,), 80.0, 0.01, cond=cond, noises=32, seconds=4, scale=2.0)
        assert table.info["error"] <= table.info["textbook_error"] and table.nfe == 5
