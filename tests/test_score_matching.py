"""Score matching: both losses point at the true score, and small nets learn it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from test_langevin import sliced_w2
from torch import Tensor

from fastdiffusion import losses, noise, samplers, schedules, score_matching
from fastdiffusion.data import oracles
from fastdiffusion.denoisers import Denoiser, score_of
from fastdiffusion.nets import mlp
from fastdiffusion.samplers import langevin

BLOBS = oracles.blobs(3, std=0.3)
TRUTH = score_of(BLOBS)


def noisy(n: int, sigma: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    x0 = BLOBS.sample(n, noise.generator(seed))
    return (
        x0,
        torch.full((n,), sigma, dtype=x0.dtype),
        torch.randn(x0.shape, generator=noise.generator(seed, 1)).double(),
    )


def signs(n: int, seed: int) -> Tensor:
    return torch.randint(0, 2, (n, 2), generator=noise.generator(seed, 2)).double() * 2 - 1


@cache
def learned(loss: str, batch: int) -> Denoiser:
    """A small net trained for seconds at noise levels from 0.07 to 4."""
    torch.manual_seed(0)
    net = Denoiser(mlp.PointNet(2, 64), sigma_data=0.75)
    score, optimizer, steps = score_of(net), torch.optim.Adam(net.parameters()), 1600
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for step in range(steps):
        g = noise.generator(3, step)
        x0, sigma = BLOBS.sample(batch, g).float(), torch.empty(batch).uniform_(-2.6, 1.4, generator=g).exp()
        n = torch.randn(x0.shape, generator=g)
        if loss == "denoising":
            values = score_matching.denoising(score, x0, sigma, n)
        else:
            values = score_matching.sliced(score, x0 + sigma[:, None] * n, sigma, signs(batch, step).float())
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
        schedule.step()
    return net.double().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 2.0])
@pytest.mark.parametrize(("loss", "batch"), [("denoising", 1024), ("sliced", 2048)])  # sliced has more variance
def test_a_learned_score_is_within_a_tenth_of_the_true_one(loss: str, batch: int, sigma: float) -> None:
    x0, level, n = noisy(4000, sigma, 7)
    x = x0 + sigma * n
    assert score_matching.relative_error(score_of(learned(loss, batch)), TRUTH, x, level) < 0.1
    assert score_matching.relative_error(lambda x, s: torch.zeros_like(x), TRUTH, x, level) == 1


@pytest.mark.slow
def test_the_corrector_beats_its_predictor_at_equal_calls() -> None:
    """Reverse diffusion on a learned score, as in the paper. With "ancestral" the predictor alone is better."""
    n, net = 10_000, learned("denoising", 1024)

    def crowd(x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:  # one image of n points: one generator
        return net(x[0], sigma.expand(n))[None]

    def distance(steps: int, corrections: int) -> float:
        sigmas = schedules.exponential(steps, 0.1, 4.0)
        table = samplers.trace(
            langevin.predictor_corrector, sigmas, corrections=corrections, predictor="reverse_diffusion"
        )
        x = 4 * noise.initial([0], (n, 2)).double()
        return sliced_w2(samplers.final(samplers.run(crowd, x, table, seeds=[0]))[0], truth)

    truth = BLOBS.sample(10 * n, noise.generator(9))
    assert distance(20, 1) < 0.85 * distance(40, 0)


def test_both_losses_rank_scores_alike() -> None:
    """Their difference is a constant: E[denoising] = E[sliced] + E|noise|^2 / 2, whatever the score."""
    x0, sigma, n = noisy(200_000, 0.5, 1)
    for score in (TRUTH, lambda x, s: -x, lambda x, s: TRUTH(x, s) + x.sin()):
        a = score_matching.denoising(score, x0, sigma, n).mean()
        b = score_matching.sliced(score, x0 + 0.5 * n, sigma, signs(len(x0), 1)).mean()
        torch.testing.assert_close(a - b, n.square().sum(1).mean() / 2, rtol=0, atol=0.02)


def test_denoising_score_matching_is_the_denoising_loss() -> None:
    x0, sigma, n = noisy(100, 0.5, 1)
    loss = losses.denoising_loss(BLOBS, x0, sigma, n, weight=losses.noise)  # a mean over numbers, without the half
    torch.testing.assert_close(score_matching.denoising(TRUTH, x0, sigma, n), loss, check_dtype=False)


def test_sliced_score_matching_trains_on_clean_data_too() -> None:
    """At no noise, the least loss of scores -a x on N(0, 1/4) is at a = 4."""
    x = 0.5 * torch.randn(20_000, 2, generator=noise.generator(0))
    one, v = torch.ones(len(x)), signs(len(x), 0).float()
    values = [
        float(score_matching.sliced(lambda x, s, a=a: -a * x, x, one, v).mean().detach()) for a in (2, 3, 4, 5, 6)
    ]
    assert values.index(min(values)) == 2
