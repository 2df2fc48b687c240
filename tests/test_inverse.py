"""Zero-shot guidance against posteriors that are known in closed form."""

from __future__ import annotations

import pytest
import torch

from fastdiffusion import samplers, schedules
from fastdiffusion.corruptions import parse
from fastdiffusion.data.oracles import Gaussian, Mixture
from fastdiffusion.errors import InputError
from fastdiffusion.guidance.posterior import INVERSE, ddnm, dps, laplacian, pigdm, smoothly, tmpd

N = 36
SHAPE = (1, 6, 6)


def prior(kind):
    """A normal prior on 6x6 pictures and its denoiser."""
    g = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(N, N, generator=g, dtype=torch.double))
    stds = torch.full((N,), 0.5) if kind == "round" else torch.linspace(0.1, 0.9, N)
    oracle = Gaussian(0.2 * torch.randn(N, generator=g, dtype=torch.double), axes, stds.double())

    def denoise(x, sigma, cond=None):
        return oracle(x.flatten(1), sigma).view_as(x)

    return oracle, denoise


def measured(oracle, text, n=2):
    """Clean pictures, what came of them, and the matrix of the corruption."""
    operator = parse(text).on(SHAPE, [3] * n)
    x0 = oracle.sample(n, torch.Generator().manual_seed(1)).view(n, *SHAPE)
    offset = operator.mean(torch.zeros(1, *SHAPE, dtype=torch.double).expand(n, -1, -1, -1))
    columns = [operator.mean(e.view(1, *SHAPE).expand(n, -1, -1, -1)) - offset for e in torch.eye(N).double()]
    return x0, operator, operator.forward(x0), torch.stack([c[0].flatten() for c in columns], 1), offset


def exact(oracle, matrix, y, offset, std, x=None, sigma=None):
    """Mean and covariance of x0 given y, and given x too."""
    covariance = oracle.axes @ torch.diag(oracle.stds**2) @ oracle.axes.T
    mean = oracle.mean
    if x is not None:
        mean = oracle(x.flatten(1), x.new_full((len(x),), sigma))
        covariance = covariance - covariance @ torch.linalg.solve(
            covariance + sigma**2 * torch.eye(N).double(), covariance
        )
    middle = matrix @ covariance @ matrix.T + (std**2 + 1e-12) * torch.eye(len(matrix)).double()
    gain = torch.linalg.solve(middle, matrix @ covariance)
    residual = (y - offset).flatten(1) - (mean @ matrix.T if mean.ndim == 2 else matrix @ mean)
    return mean + residual @ gain, covariance - covariance @ matrix.T @ gain


CASES = [
    ("blur 1, noise 0.1", 0.1),
    ("downscale 2, noise 0.2", 0.2),
    ("downscale 2", 0.0),
    ("fade 0.5, noise 0.1", 0.1),
]


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("text", "std"), CASES)
def test_one_call_is_the_posterior_mean(text, std, sigma):
    """ddnm and pigdm where the prior is round, tmpd for any normal prior."""
    for kind, methods in (("round", (ddnm, pigdm, tmpd)), ("any", (tmpd,))):
        oracle, denoise = prior(kind)
        x0, operator, y, matrix, offset = measured(oracle, text)
        x = x0 + sigma * torch.randn_like(x0)
        wanted, _ = exact(oracle, matrix, y, offset, std, x, sigma)
        for method in methods:
            options = {} if method is tmpd else {"sigma_data": 0.5}
            got = method(denoise, operator, y, **options)(x, x.new_full((2,), sigma)).flatten(1)
            moved = (wanted - oracle(x.flatten(1), x.new_full((2,), sigma))).norm()
            assert float((got - wanted).norm() / moved) < 5e-3, (method.__name__, kind)


def test_sampling_reaches_the_posterior():
    """Many noises through the guided flow: mean and covariance of x0 given y alone."""
    oracle, denoise = prior("any")
    n = 400
    _, operator, y, matrix, offset = measured(oracle, "downscale 2, noise 0.2", n)
    y, offset = y[:1].expand(n, -1, -1, -1), offset[:1]
    table = samplers.table("dpmpp_2m", schedules.exponential(40, sigma_min=0.01, sigma_max=20.0))
    x = 20 * torch.randn(n, *SHAPE, dtype=torch.double)
    got = samplers.final(samplers.run(tmpd(denoise, operator, y), x, table)).flatten(1)
    mean, covariance = exact(oracle, matrix, y[:1], offset, 0.2)
    assert float((got.mean(0) - mean[0]).norm()) < 4 * (float(covariance.trace()) / n) ** 0.5
    assert float(got.T.cov().trace()) == pytest.approx(float(covariance.trace()), rel=0.08)


@pytest.mark.parametrize("method", INVERSE)
def test_every_method_comes_nearer_to_the_truth_than_the_prior_alone(method):
    """On a mixture, whose posterior is not normal: x0 from 1/4 of the pixels."""
    g = torch.Generator().manual_seed(2)
    means = torch.randn(8, *SHAPE, generator=g, dtype=torch.double)
    oracle = Mixture(0.5 * means, torch.full((8,), 0.1).double(), torch.full((8,), 1 / 8).double())
    operator = parse("downscale 2 area, noise 0.02").on(SHAPE, [5] * 4)
    x0 = oracle.sample(4, g)
    y = operator.forward(x0)
    table = samplers.table("dpmpp_3m", schedules.exponential(20, sigma_min=0.01, sigma_max=20.0))
    x = 20 * torch.randn(4, *SHAPE, dtype=torch.double)
    got = samplers.final(samplers.run(INVERSE[method](oracle, operator, y), x, table))
    alone = samplers.final(samplers.run(oracle, x, table))
    assert float((got - x0).square().mean()) < 0.75 * float((alone - x0).square().mean())
    assert float((operator.mean(got) - y).abs().mean()) < 0.08


def test_without_noise_the_answer_gives_the_measurement():
    oracle, denoise = prior("any")
    _, operator, y, _, _ = measured(oracle, "downscale 2")
    got = ddnm(denoise, operator, y)(torch.randn(2, *SHAPE).double(), torch.ones(2).double())
    assert torch.allclose(operator.mean(got), y, atol=1e-6)


def test_dps_takes_what_is_not_linear():
    oracle, denoise = prior("any")
    operator = parse("jpeg 30").on(SHAPE, [0, 1])
    x0 = oracle.sample(2, torch.Generator().manual_seed(3)).view(2, *SHAPE).clamp(-1, 1)
    y = operator.forward(x0)
    x, sigma = x0 + 0.5 * torch.randn_like(x0), torch.full((2,), 0.5).double()
    before, after = denoise(x, sigma), dps(denoise, operator, y)(x, sigma)
    assert float((operator.mean(after) - y).square().sum()) < 0.8 * float((operator.mean(before) - y).square().sum())


def test_shapes_that_do_not_go_together_are_told():
    _, denoise = prior("round")
    operator = parse("downscale 2").on(SHAPE, [0])
    with pytest.raises(InputError, match="one measurement per image"):
        ddnm(denoise, operator, torch.zeros(1, 1, 6, 6))(torch.zeros(1, *SHAPE), torch.ones(1))


@pytest.mark.parametrize("text", ["blur 1", "motion 3 30"])
def test_an_answer_that_is_off_by_something_smooth(text):
    """Conjugate gradients against the normal equations, solved as a matrix."""
    oracle, _ = prior("round")
    x0, operator, y, a, offset = measured(oracle, text)
    basis = torch.eye(N).double().view(N, *SHAPE)
    second = laplacian(basis).flatten(1)
    assert torch.allclose(second, second.T)  # also at the borders
    noise, roughness = 0.05**2, 0.2
    begin = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    found = smoothly(begin, y, operator, y.new_full((2, 1, 1, 1), noise), roughness, 300)
    system = a.T @ a + noise / roughness**2 * second @ second
    off = (y - offset - operator.mean(begin) + operator.mean(torch.zeros_like(begin))).flatten(1)
    wanted = begin.flatten(1) + torch.linalg.solve(system, a.T @ off.T).T
    assert torch.allclose(found.flatten(1), wanted, atol=1e-3)
