"""The loss is measured in x0, so that a weight means the same whatever the network predicts."""

import math

import pytest
import torch

from fastdiffusion import losses
from fastdiffusion.denoisers import PARAMETERIZATIONS, from_x0, to_x0
from fastdiffusion.errors import InputError

DTYPE = torch.float64


@pytest.mark.parametrize("weight", losses.LOSS_WEIGHTINGS)
def test_losses_are_equal_across_parameterizations_and_finite_at_snr_zero(weight):
    # Fault 7: division by zero at SNR 0.
    sigma = torch.tensor([0.002, 0.5, 80.0, 1e4, math.inf], dtype=DTYPE)
    x0, n, miss = torch.randn(3, 5, 6, dtype=DTYPE)
    values = []
    for name in PARAMETERIZATIONS:

        def denoise(x, sigma, cond=None, name=name):
            output = from_x0(name, x0 + 0.1 * miss, x, sigma)  # a network that is off by the same x0 error
            return to_x0(name, output, x, sigma)

        values.append(losses.denoising_loss(denoise, x0, sigma, n, weight=losses.LOSS_WEIGHTINGS[weight]))
        assert bool(values[-1].isfinite().all())
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["noise", "v", "flow", "x0"])
def test_weights_are_the_mean_squared_error_of_their_name(name):
    sigma = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=DTYPE)
    x0, n, miss = torch.randn(3, 4, 6, dtype=DTYPE)
    x = x0 + sigma[:, None] * n
    found = losses.denoising_loss(
        lambda x, s, c=None: x0 + miss, x0, sigma, n, weight=lambda s: losses.weight(name, s, 1.0)
    )
    plain = (from_x0(name, x0 + miss, x, sigma, 1.0) - from_x0(name, x0, x, sigma, 1.0)).square().mean(1)
    torch.testing.assert_close(found, plain.float().to(found.dtype), rtol=1e-4, atol=1e-8)


def test_edm_starts_at_one():
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=DTYPE)
    spread = 0.5
    c_out = sigma * spread / (sigma**2 + spread**2).sqrt()
    torch.testing.assert_close(losses.edm(sigma, spread), c_out**-2)


def test_p2():
    sigma = torch.logspace(-3, 4, 50, dtype=DTYPE)
    assert torch.equal(losses.p2(sigma, gamma=0.0), losses.noise(sigma))
    snr = sigma**-2
    torch.testing.assert_close(losses.p2(sigma, gamma=0.5, k=2.0), snr / (2 + snr) ** 0.5)


def test_min_snr():
    sigma = torch.tensor([0.01, 1.0, 80.0, math.inf], dtype=DTYPE)
    found = losses.min_snr(sigma, gamma=5.0)
    assert found[0] == 5 and found[1] == 1 and bool(found.isfinite().all())


def test_uncertainty_learns_the_log_of_the_loss():
    u = losses.Uncertainty()
    sigma = torch.full((64,), 0.5)
    assert float(u(sigma).abs().max()) == 0
    optimizer = torch.optim.Adam(u.parameters(), 0.05)
    for _ in range(200):
        loss = losses.denoising_loss(
            lambda x, s, c=None: torch.full_like(x, 3.0),
            torch.zeros(64, 4),
            sigma,
            torch.zeros(64, 4),
            None,
            losses.x0,
            u,
        )
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert float(u(sigma).mean()) == pytest.approx(math.log(9), abs=0.05)  # u = log loss is the minimum


def test_unknown_weight():
    with pytest.raises(InputError, match="Did you mean 'min_snr'"):
        losses.weight("minsnr", torch.ones(1))
