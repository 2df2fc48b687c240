"""Bounds on the likelihood of variational autoencoders, latents that are alive, and words with a prior of their own."""

import math

import pytest
import torch
from torch import nn

from fastdiffusion.nets.autoencoders import KL
from fastdiffusion.tasks.autoencoding.analysis import (
    ACTIVE,
    activity,
    elbo,
    imagine,
    iwae,
    log_weights,
    most_active,
    spread,
    traverse,
)

S = 0.5  # standard deviation of a pixel about the decoder's answer


class Linear(KL):
    """Four pixels that are W z + b and noise: factor analysis, whose likelihood and posterior are known."""

    def __init__(self, wider: float = 0.0):
        super().__init__(1, 2, 8, (1,))
        w = torch.linalg.qr(torch.randn(4, 2)).Q * torch.tensor([0.8, 0.3])  # orthogonal: the posterior is diagonal
        self.w, self.b, self.wider = w, 0.1 * torch.randn(4), wider
        self.decoder = nn.Identity()  # type: ignore[assignment]
        self.decoder.forward = lambda z: (z[..., 0, 0] @ self.w.T + self.b).unflatten(1, (1, 2, 2))  # type: ignore

    def posterior(self, x):
        precision = 1 + self.w.square().sum(0) / S**2
        mean = (x.flatten(1) - self.b) @ self.w / S**2 / precision
        return mean[..., None, None], (self.wider - precision.log()).expand_as(mean)[..., None, None]

    def log_prob(self, x):
        p = torch.distributions.MultivariateNormal(self.b, self.w @ self.w.T + S**2 * torch.eye(4))
        return p.log_prob(x.flatten(1))

    def sample(self, n):
        return self.decoder(torch.randn(n, 2, 1, 1)) + S * torch.randn(n, 1, 2, 2)


def test_with_the_true_posterior_every_draw_is_the_exact_likelihood():
    autoencoder = Linear()
    x = autoencoder.sample(16)
    exact = autoencoder.log_prob(x).expand(5, 16)
    torch.testing.assert_close(log_weights(autoencoder, x, S, 5), exact, atol=1e-4, rtol=0)


def test_a_wrong_posterior_costs_its_divergence_and_samples_win_it_back():
    autoencoder = Linear(wider=1.0)  # variances e times too large: KL = (e - 1 - 1) / 2 for each of two latents
    x = autoencoder.sample(64)
    exact = autoencoder.log_prob(x).mean()
    assert float(elbo(autoencoder, x, S, 2000).mean() - exact) == pytest.approx(-(math.e - 2), abs=0.02)
    bounds = [float(iwae(autoencoder, x, S, k).mean()) for k in (1, 4, 64)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[1] - 0.1 < bounds[2] - 0.2
    assert float(iwae(autoencoder, x, S, 2000).mean() - exact) == pytest.approx(0, abs=0.02)
    assert (
        iwae(autoencoder, x, S, 64) >= elbo(autoencoder, x, S, 64)
    ).all()  # of the same draws: Jensen, picture by picture


def test_the_spread_is_the_likeliest_one():
    autoencoder = Linear()
    x = autoencoder.sample(500)
    s = spread(autoencoder, x)
    best = elbo(autoencoder, x, s, 4).mean()
    assert best > elbo(autoencoder, x, 0.9 * s, 4).mean() and best > elbo(autoencoder, x, 1.1 * s, 4).mean()


def test_a_latent_that_says_nothing_is_not_active():
    autoencoder = Linear()
    x = autoencoder.sample(2000)
    precision = 1 + autoencoder.w.square().sum(0) / S**2
    torch.testing.assert_close(
        activity(autoencoder, x)[:, 0, 0], 1 - 1 / precision, atol=0.05, rtol=0
    )  # total variance is 1
    assert most_active(autoencoder, x) == [0, 1]
    autoencoder.w[:, 1] = 0
    assert (activity(autoencoder, x).flatten() > ACTIVE).tolist() == [True, False]
    assert most_active(autoencoder, x, 1) == [0]


def test_a_traversal_moves_one_channel_and_leaves_the_others():
    autoencoder = Linear()
    x = torch.zeros(1, 1, 2, 2)
    autoencoder.std[1] = 2
    made = traverse(autoencoder, x, [1, 0], 0.5, 3)
    assert made.shape == (2, 3, 1, 2, 2)
    for row, unit in zip(made, [1, 0], strict=True):
        torch.testing.assert_close((row[2] - row[0]).flatten(), autoencoder.std[unit] * autoencoder.w[:, unit])
        torch.testing.assert_close(row[1], (row[0] + row[2]) / 2)


def test_imagined_pictures_depend_on_their_seed_alone():
    autoencoder = KL(3, 4, 8).eval()
    several = imagine(autoencoder, [3, 4, 5], (10, 12))
    assert several.shape == (3, 3, 10, 12)
    torch.testing.assert_close(imagine(autoencoder, [4], (10, 12))[0], several[1])
