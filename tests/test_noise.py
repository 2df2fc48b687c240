"""Random numbers: one picture per seed, and the exact law of Brownian motion."""

from itertools import pairwise

import pytest
import torch

from fastdiffusion import noise


def test_a_seed_is_a_picture_in_any_batch():
    alone = noise.initial([7], (3, 4, 4))
    assert torch.equal(noise.initial([5, 7, 9], (3, 4, 4))[1:2], alone)
    assert not torch.equal(noise.initial([8], (3, 4, 4)), alone)


def test_streams_are_independent():
    draws = torch.stack(
        [torch.randn(4000, generator=noise.generator(s, *k)) for s in (0, 1) for k in ((), (0,), (1,), (0, 1))]
    )
    assert float((torch.corrcoef(draws) - torch.eye(8)).abs().max()) < 0.07


SIGMAS = [40.0, 21.0, 20.5, 20.1, 3.0, 2.9, 2.8, 1.0, 0.9, 0.05, 0.0499]


def increments(n=20_000, sigmas=SIGMAS, key=0):
    path = noise.Brownian([0], torch.zeros(1, n), key)
    return torch.cat([path.between(a, b) for a, b in pairwise(sigmas)])


def test_increments_are_independent_unit_normals():
    z = increments()
    assert float((z @ z.T / z.shape[1] - torch.eye(len(z))).abs().max()) < 0.04
    assert float(z.mean(1).abs().max()) < 0.04
    assert float((z.pow(4).mean(1) - 3).abs().max()) < 0.3


def test_coarse_and_fine_walk_the_same_path():
    # B's increments add up: a coarse step sees nearly what two fine ones see together.
    coarse = increments(sigmas=[80.0, 20.0, 5.0, 1.25, 0.3])
    fine = increments(sigmas=[80.0, 40.0, 20.0, 10.0, 5.0, 2.5, 1.25, 0.6, 0.3])
    u = torch.tensor([80.0, 40.0, 20.0, 10.0, 5.0, 2.5, 1.25, 0.6, 0.3]) ** -2
    steps = fine * u.diff().sqrt()[:, None]
    joined = steps.reshape(4, 2, -1).sum(1) / (u[2::2] - u[:-1:2]).sqrt()[:, None]
    assert float((coarse * joined).mean(1).min()) > 0.95


def test_batch_device_and_company_do_not_matter():
    like = torch.zeros(3, 2, 5)
    batch, alone = noise.Brownian([4, 5, 6], like), noise.Brownian([5], like[:1])
    for a, b in pairwise(SIGMAS):
        torch.testing.assert_close(batch.between(a, b)[1:2], alone.between(a, b), rtol=0, atol=1e-6)


def test_a_second_way_down_is_independent():
    paths = noise.Paths([0], torch.zeros(1, 20_000))
    first, up, second = paths.draw(10.0, 5.0), paths.draw(5.0, 10.0), paths.draw(10.0, 5.0)
    z = torch.cat([first, up, second])
    assert float((z @ z.T / z.shape[1] - torch.eye(3)).abs().max()) < 0.03


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_keeps_the_variance(t):
    a, b = noise.initial([0], (20_000,)), noise.initial([1], (20_000,))
    assert float(noise.slerp(a, b, t).std()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(noise.slerp(a, b, 0.0), a)
    torch.testing.assert_close(noise.slerp(a, b, 1.0), b)


def test_vary():
    a = noise.initial([0, 1], (100,))
    assert noise.toward_seeds(a, [5, 6], 0.0) is a
    torch.testing.assert_close(noise.toward_seeds(a, [5, 6], 1.0), noise.initial([5, 6], (100,)))


def test_dct_is_orthonormal_and_resizing_keeps_the_layout():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(noise.idct2(noise.dct2(x)), x)
    assert float(noise.dct2(x).norm()) == pytest.approx(float(x.norm()))
    small, large = noise.initial([3], (1, 16, 16)), noise.resized([3], (1, 32, 48), (1, 16, 16))
    torch.testing.assert_close(noise.dct2(large)[..., :16, :16], noise.dct2(small), rtol=0, atol=1e-4)
    assert float(noise.resized(range(20), (1, 32, 32), (1, 16, 16)).std()) == pytest.approx(1, abs=0.02)


def test_seeds_beyond_32_bits_are_seeds_of_their_own():
    rows = noise.initial([0, 2**32, 2**33, 1, 2**32 + 1, 2**63], (4,))
    assert len({tuple(row.tolist()) for row in rows}) == 6
