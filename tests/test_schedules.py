"""Noise levels: every schedule is usable at every length; bad ones are refused in a sentence."""

import math

import pytest
import torch

from fastdiffusion import schedules
from fastdiffusion.errors import InputError


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedules_fall_from_sigma_max_to_zero(name):
    # Faults 3 and 6: duplicate times; the first step not at full noise.
    for n in (1, 2, 5, 30, 1000):
        s = schedules.check_sigmas(schedules.schedule(name, n, sigma_min=0.01, sigma_max=50.0))
        assert len(s) == n + 1 and s.dtype == torch.float64
        assert float(s[0]) == pytest.approx(50, rel=1e-9)
        if n > 1 and name not in schedules.AYS:  # a published list ends at sigma_min, which 0 replaces
            assert float(s[-2]) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_more_steps_refine(name):
    # Fault 4: a schedule of 2n - 1 steps contains that of n, so steps go where they say. (A published list: of 2n.)
    more = 16 if name in schedules.AYS else 15
    a, b = (schedules.schedule(name, n, sigma_min=0.01, sigma_max=50.0) for n in (8, more))
    torch.testing.assert_close(b[:-1:2], a[:-1], rtol=1e-6, atol=0)


def test_shift_only_multiplies_sigma():
    # Fault 5: a shift applied twice.
    for n in (4, 9):
        plain = schedules.flow(n, 0.01 / 3, 50 / 3)
        torch.testing.assert_close(schedules.flow(n, 0.01, 50, shift=3.0), 3 * plain, rtol=1e-6, atol=0)


def test_known_values():
    torch.testing.assert_close(schedules.karras(3, 1.0, 16.0, rho=2.0), torch.tensor([16, 6.25, 1, 0]).double())
    torch.testing.assert_close(schedules.exponential(3, 0.5, 8.0), torch.tensor([8, 2, 0.5, 0]).double())
    # DDPM's discrete betas, 1e-4 to 0.02 over 1,000 steps, end at sigma 157; Stable Diffusion's at 14.6.
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    sigma = (1 / (1 - beta).cumprod(0) - 1).sqrt()
    assert float(schedules.sigma_linear(torch.tensor(1.0).double())) == pytest.approx(float(sigma[-1]), rel=0.06)
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    sigma = (1 / (1 - beta).cumprod(0) - 1).sqrt()
    assert float(schedules.sigma_scaled_linear(torch.tensor(1.0).double())) == pytest.approx(float(sigma[-1]), rel=0.02)
    for sigma in (0.002, 1.0, 80.0):
        t = torch.tensor(schedules.time_linear(sigma), dtype=torch.float64)
        assert float(schedules.sigma_linear(t)) == pytest.approx(sigma)
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    torch.testing.assert_close(schedules.sigma_flow(t), t / (1 - t))
    alpha_bar = (math.pi / 2 * t).cos().square()  # Nichol & Dhariwal, s = 0
    torch.testing.assert_close(schedules.sigma_cosine(t), ((1 - alpha_bar) / alpha_bar).sqrt())


def test_published_lists_are_themselves_at_their_own_length():
    for name, levels in schedules.AYS.items():
        ten = schedules.schedule(name, 10, sigma_min=levels[-1], sigma_max=levels[0])
        torch.testing.assert_close(ten, torch.tensor([*levels[:-1], 0.0]).double())
        twice = schedules.schedule(name, 20, sigma_min=levels[-1], sigma_max=levels[0])
        torch.testing.assert_close(twice[1], torch.tensor(levels[0] * levels[1]).double().sqrt())
        further = schedules.schedule(name, 10, sigma_min=2 * levels[-1], sigma_max=2 * levels[0])
        torch.testing.assert_close(further, 2 * ten)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([1.0, 0.002], "end at 0, got 2 values ending at 0.002"),
        ([1.0, 2.0, 0.0], "must decrease, got 1 then 2"),
        ([2.0, 2.0, 0.0], "must decrease"),
        ([math.nan, 1.0, 0.0], "finite"),
        ([math.inf, 1.0, 0.0], "finite"),
        ([1.0, -1.0, 0.0], "finite"),
        ([0.0], "at least two"),
        ([], "at least two"),
        ([1.0, 0.0, 0.0], "only the last"),
    ],
)
def test_bad_sigmas(sigmas, words):
    with pytest.raises(InputError, match=words) as error:
        schedules.check_sigmas(sigmas)
    assert "schedules.karras(" in str(error.value)


def test_bad_ranges_and_names():
    with pytest.raises(InputError, match=r"steps must be at least 1, got 0"):
        schedules.karras(0)
    with pytest.raises(InputError, match="sigma_min < sigma_max"):
        schedules.karras(5, 2.0, 1.0)
    with pytest.raises(InputError, match=r"never reaches the noise level 1e\+07"):  # its noise ends at 1e6
        schedules.sigmoid(5, sigma_max=1e7)
    with pytest.raises(InputError, match="Did you mean 'karras'"):
        schedules.schedule("karas", 5)


def test_rising_lists():
    s = schedules.karras(10)
    again = schedules.restart(s, 0.05, 0.3, steps=4, times=2)
    rises = (again.diff() > 0).nonzero().flatten()
    assert len(again) == len(s) + 2 * 5 and len(rises) == 2 and torch.all(again[rises + 1] == 0.3)
    assert len(set(again[rises].tolist())) == 1
    twice = schedules.repaint(s, segment=3, times=2)
    assert int((twice.diff() > 0).sum()) == 3 and float(twice[-1]) == 0
    schedules.check_sigmas(twice, rising=True)
    torch.testing.assert_close(schedules.repaint(s, 3, 1), s)
    assert torch.equal(schedules.restart(schedules.karras(1), 0.05, 0.3, 4, 2), schedules.karras(1))
    with pytest.raises(InputError, match="low < high"):
        schedules.restart(s, 0.3, 0.05, 4, 2)


@pytest.mark.parametrize("name", schedules.SIGMA_DISTRIBUTIONS)
def test_densities_rise_with_u(name):
    u = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    sigma = schedules.SIGMA_DISTRIBUTIONS[name](u)
    assert bool((sigma.diff() >= -1e-9).all()) and bool((sigma > 0).all()) and bool(sigma.isfinite().all())


def test_densities_known_values():
    u = torch.rand(200_000, dtype=torch.float64)
    log = schedules.lognormal(u).log()
    assert float(log.mean()) == pytest.approx(-1.2, abs=0.02) and float(log.std()) == pytest.approx(1.2, abs=0.02)
    t = torch.sigmoid(torch.randn(200_000, dtype=torch.float64))  # logit-normal time
    direct, ours = (t / (1 - t)).log(), schedules.logit_normal(u).log()
    assert float(direct.std()) == pytest.approx(float(ours.std()), abs=0.02)


def test_stratified_is_one_in_each_part():
    u = schedules.stratified(64)
    assert torch.equal((u * 64).floor().sort().values, torch.arange(64.0))
