"""Blur noise and cold diffusion: exact posteriors, and the same table loop."""

import pytest
import torch

from fastdiffusion import noise, samplers, schedules
from fastdiffusion.errors import InputError
from fastdiffusion.samplers import processes
from fastdiffusion.samplers.processes import BlurNoise, Cold

DTYPE = torch.float64
BLUR = BlurNoise(width=lambda level: 0.5 * level**0.5)
HEAT = BlurNoise(width=float, std=lambda level: 0.01)


def picture(n=2):
    return torch.randn(n, 1, 6, 8, dtype=DTYPE)


@pytest.mark.parametrize("process", [BLUR, HEAT, Cold(lambda x0, level: x0 / (1 + level))])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "unipc", "lms"])
def test_a_perfect_model_gets_its_x0_back(process, sampler):
    x0 = picture()
    x = process.degrade(x0, 20.0, torch.randn_like(x0))
    table = samplers.table(sampler, schedules.karras(7, 0.05, 20.0))
    levels = []

    def denoise(x, level, cond=None):
        levels.append(float(level[0]))
        return x0

    out = samplers.final(processes.run(denoise, x, table, process))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-8 if process is not HEAT else 0.05)
    assert levels == pytest.approx(list(table.sigmas[:-1]))


def test_no_blur_is_plain_diffusion():
    x, table = 20 * torch.randn(2, 1, 6, 8, dtype=DTYPE), samplers.table("dpmpp_2m", schedules.karras(9, 0.05, 20.0))

    def denoise(x, sigma, cond=None):
        return x / (1 + sigma[:, None, None, None] ** 2)

    plain = samplers.final(samplers.run(denoise, x, table))
    none = samplers.final(processes.run(denoise, x, table, BlurNoise(width=lambda level: 0.0)))
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-10)


def test_the_posterior_in_the_dct_basis():
    # q(x_t | x_s, x0) of eta = 1 against Bayes' rule for each frequency's Gaussian (Hoogeboom & Salimans 2023, eq. 19).
    s, t, x0, x = 5.0, 2.0, picture(1), picture(1)
    zero = torch.zeros_like(x)
    mean = noise.dct2(BLUR.step(x, x0, s, t, zero, eta=1.0))
    d_s, d_t = BLUR.transfer(s, x), BLUR.transfer(t, x)
    passed = d_s / d_t  # x_s = passed * x_t + noise of variance s^2 - passed^2 t^2
    added = s**2 - passed**2 * t**2
    precision = 1 / t**2 + passed**2 / added
    bayes = (d_t * noise.dct2(x0) / t**2 + passed * noise.dct2(x) / added) / precision
    torch.testing.assert_close(mean, bayes, rtol=0, atol=1e-5)
    fresh = torch.randn(20_000, 1, 6, 8, dtype=DTYPE, generator=noise.generator(0))
    many = noise.dct2(BLUR.step(x.expand_as(fresh), x0.expand_as(fresh), s, t, fresh, eta=1.0))
    torch.testing.assert_close(many.var(0)[0], 1 / precision, rtol=0.06, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_law_of_gaussian_pictures(eta):
    # Pictures whose frequencies are independent normals: the exact denoiser is linear in the DCT basis.
    std = 1 / (1 + torch.arange(48, dtype=DTYPE).reshape(6, 8) / 4)

    def denoise(x, level, cond=None):
        d, sigma = BLUR.transfer(float(level[0]), x), float(level[0])
        return noise.idct2(noise.dct2(x) * d * std**2 / (d**2 * std**2 + sigma**2))

    n = 3000
    x0 = noise.idct2(std * torch.randn(n, 1, 6, 8, dtype=DTYPE))
    x = BLUR.degrade(x0, 20.0, torch.randn_like(x0))
    table = samplers.table("euler", schedules.karras(60, 0.01, 20.0))
    out = samplers.final(processes.run(denoise, x, table, BLUR, eta=eta, seeds=range(n)))
    torch.testing.assert_close(noise.dct2(out).std(0)[0], std, rtol=0.15, atol=0.02)


def test_cold_diffusion_cancels_the_estimates_error():
    # An estimate that is off by a constant: algorithm 2 is exact under an affine degradation, algorithm 1 is not.
    x0, direction = picture(), picture(1)
    cold = Cold(lambda image, level: image - level * direction)
    table = samplers.table("euler", [3.0, 2.0, 1.0, 0.0])
    out = samplers.final(processes.run(lambda x, s, c=None: x0 + 0.5, cold.degrade(x0, 3.0), table, cold))
    torch.testing.assert_close(out, x0)


def test_what_cannot_follow_a_process_is_refused():
    x = picture()
    for name in ("euler_ancestral", "heun"):
        with pytest.raises(InputError, match="cannot follow a process"):
            next(processes.run(lambda x, s, c=None: x, x, samplers.table(name, schedules.karras(5)), BLUR))
    with pytest.raises(InputError, match="one seed per image"):
        next(processes.run(lambda x, s, c=None: x, x, samplers.table("euler", schedules.karras(5)), BLUR, eta=1.0))
    with pytest.raises(InputError, match="no noise to renew"):
        Cold(lambda x, level: x).step(x, x, 2.0, 1.0, eta=1.0)


def test_a_bridge_without_noise_is_a_straight_line():
    bridge = processes.Bridge(torch.ones(1, 3), std=0.0)
    x, x0 = torch.full((1, 3), 0.5), torch.zeros(1, 3)
    torch.testing.assert_close(bridge.step(x, x0, 0.5, 0.25), torch.full((1, 3), 0.25))
