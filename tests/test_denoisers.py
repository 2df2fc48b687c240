"""Parameterisations are one thing in different words: conversions, unit variance, and DDPM's identities (fp64)."""

import pytest
import torch

from fastdiffusion import denoisers, noise
from fastdiffusion.data import oracles
from fastdiffusion.denoisers import PARAMETERIZATIONS, Converted, Denoiser, from_x0, scaling, to_x0
from fastdiffusion.errors import InputError
from fastdiffusion.types import Cond

DTYPE = torch.float64
SIGMAS = torch.tensor([1e-3, 0.01, 0.3, 1.0, 5.0, 80.0, 1e4], dtype=DTYPE)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_round_trip(name, sigma_data):
    x0, n = torch.randn(2, len(SIGMAS), 5, dtype=DTYPE)
    x = x0 + SIGMAS[:, None] * n
    back = to_x0(name, from_x0(name, x0, x, SIGMAS, sigma_data), x, SIGMAS, sigma_data)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-5)


def test_outputs_mean_what_their_names_say():
    x0, n = torch.randn(2, len(SIGMAS), 5, dtype=DTYPE)
    s = SIGMAS[:, None]
    x = x0 + s * n

    def output(name):
        return from_x0(name, x0, x, SIGMAS, 1.0)

    torch.testing.assert_close(output("noise"), n, rtol=0, atol=1e-9)
    torch.testing.assert_close(output("score"), -n, rtol=0, atol=1e-9)
    torch.testing.assert_close(output("x0"), x0)
    torch.testing.assert_close(output("flow"), n - x0, rtol=0, atol=1e-8)
    alpha = (1 + s * s).rsqrt()  # of the VP process: x_vp = alpha x0 + s alpha n
    torch.testing.assert_close(output("v"), alpha * n - s * alpha * x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e3, 1e5, 1e7])
def test_flow_in_float32_keeps_its_input_at_any_noise(sigma):
    """Where t rounds to 1, what is left of x (1 - t) still has every digit."""
    c = scaling("flow", torch.tensor([sigma]), 0.5)
    exact = torch.tensor([sigma], dtype=DTYPE)
    torch.testing.assert_close(c.c_in.double(), 1 / (1 + exact), rtol=3e-7, atol=0)
    torch.testing.assert_close(c.c_skip.double(), 1 / (1 + exact), rtol=3e-7, atol=0)
    torch.testing.assert_close(-c.c_out.double(), exact / (1 + exact), rtol=3e-7, atol=0)


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 80.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("spread", [0.5, 1.0, "sigma"])
def test_flow_in_float32_is_the_exact_denoiser_of_a_gaussian(sigma, spread):
    """The exact velocity of a Gaussian makes its exact denoiser, up to sigma 1e7, be the data narrow or wide."""
    std, mean = sigma if spread == "sigma" else spread, 0.25
    t = sigma / (1 + sigma)
    share = std**2 / (std**2 + sigma**2)

    def net(inputs, c_noise, cond):
        """E[noise - x0 | x_t] where x_t is (1 - t) x0 + t noise."""
        xt = inputs.double()
        x0 = mean + share * ((1 + sigma) * xt - mean)
        return ((xt - x0) / t).float()

    noises = torch.randn(256, 3, dtype=DTYPE)
    x = (mean + (std**2 + sigma**2) ** 0.5 * noises).float()
    out = Denoiser(net, "flow", 0.5)(x, torch.full((256,), sigma))
    exact = mean + share * (x.double() - mean)
    torch.testing.assert_close(out.double(), exact, rtol=2e-6, atol=2e-6 * max(1.0, std))


@pytest.mark.parametrize("name", ["edm", "v"])
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_unit_variance_of_inputs_and_targets(name, sigma_data):
    # Karras et al. 2022, eq. 110 to 144. Var of c_in x and of the target over the data, in closed form.
    c = scaling(name, SIGMAS, sigma_data)
    torch.testing.assert_close(c.c_in.square() * (SIGMAS**2 + sigma_data**2), torch.ones_like(SIGMAS))
    target = ((1 - c.c_skip) * sigma_data).square() + (c.c_skip * SIGMAS).square()
    torch.testing.assert_close(target / c.c_out.square(), torch.ones_like(SIGMAS))


@pytest.mark.parametrize("source", PARAMETERIZATIONS)
@pytest.mark.parametrize("target", PARAMETERIZATIONS)
def test_converted_networks_are_the_same_denoiser(source, target):
    weight = torch.randn(6, 6, dtype=DTYPE) / 3

    def net(x, c_noise, cond):
        return (x @ weight).tanh() + c_noise[:, None].tanh()

    sigma = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=DTYPE)
    x = torch.randn(4, 6, dtype=DTYPE) * (1 + sigma[:, None])
    old = Denoiser(net, source, 0.7)(x, sigma)
    torch.testing.assert_close(
        Denoiser(Converted(net, source, target, 0.7), target, 0.7)(x, sigma), old, rtol=0, atol=1e-8
    )


def test_ddpm_identities():
    # The posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7), against Bayes' rule for Gaussians.
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=DTYPE)
    alpha, bar = 1 - beta, (1 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=DTYPE), bar[:-1]])
    x0, xt = torch.randn(2, 1000, dtype=DTYPE)
    mean = before.sqrt() * beta / (1 - bar) * x0 + alpha.sqrt() * (1 - before) / (1 - bar) * xt
    variance = (1 - before) / (1 - bar) * beta
    precision = alpha / beta + 1 / (1 - before).clamp(min=1e-300)
    torch.testing.assert_close(1 / precision, variance, rtol=1e-6, atol=1e-12)
    bayes = (alpha.sqrt() * xt / beta + before.sqrt() * x0 / (1 - before).clamp(min=1e-300)) / precision
    torch.testing.assert_close(bayes, mean, rtol=0, atol=1e-8)
    # In sigma: x = x_vp / sqrt(bar); down to t^2/s with t^2 (s^2 - t^2)/s^2 of variance.
    s2, t2 = 1 / bar - 1, 1 / before - 1
    ours = x0 + t2 / s2 * (xt / bar.sqrt() - x0)
    torch.testing.assert_close(ours, mean / before.sqrt(), rtol=0, atol=1e-8)
    torch.testing.assert_close(t2 * (s2 - t2) / s2, variance / before, rtol=1e-8, atol=1e-12)


def test_score_is_tweedie():
    d = oracles.blobs(8)
    x = torch.randn(16, 2, dtype=DTYPE).requires_grad_()
    sigma = torch.full((16,), 0.4, dtype=DTYPE)
    (exact,) = torch.autograd.grad(d.log_prob(x, 0.4).sum(), x)
    torch.testing.assert_close(denoisers.score_of(d)(x, sigma), exact, rtol=1e-8, atol=1e-8)


def test_oracles():
    g = noise.generator(0)
    data = torch.randn(50, 3, 2, generator=g, dtype=DTYPE)
    d = oracles.dataset(data)
    x, sigma = data[:4] + 0.01, torch.full((4,), 1e-3, dtype=DTYPE)
    torch.testing.assert_close(d(x, sigma), data[:4])
    torch.testing.assert_close(d(x, 1e4 * sigma / 1e-3)[0], data.mean(0), rtol=0, atol=1e-6)
    ring = oracles.blobs(8)
    told = ring(torch.zeros(2, 2, dtype=DTYPE), torch.full((2,), 5.0, dtype=DTYPE), Cond(label=torch.tensor([3, -1])))
    torch.testing.assert_close(told[1], torch.zeros(2, dtype=DTYPE))
    assert torch.nn.functional.cosine_similarity(told[0], ring.means[3], 0) > 0.999
    x = 0.3 * torch.randn(200_000, 2, generator=g, dtype=DTYPE)  # the density integrates to 1: importance sampling
    normal = torch.distributions.Normal(0, 0.3)
    total = (ring.log_prob(x * 4, 0.3) - (normal.log_prob(x).sum(1) - 2 * torch.tensor(4.0).log())).exp().mean()
    assert float(total) == pytest.approx(1, abs=0.02)


def test_self_condition_and_bad_input():
    seen = []

    def net(x, c_noise, cond):
        seen.append(x.shape[1])
        return x[:, :3]

    d = Denoiser(net, "edm", 0.5, self_condition=True)
    assert d(torch.randn(2, 3, 4, 4), torch.ones(2)).shape == (2, 3, 4, 4) and seen == [6]
    with pytest.raises(InputError, match="Did you mean 'noise'"):
        Denoiser(net, "nois")
    with pytest.raises(InputError, match="sigma_data must be above 0"):
        Denoiser(net, "edm", 0.0)
