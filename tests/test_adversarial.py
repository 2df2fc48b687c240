"""The parts of adversarial training against their formulas."""

import pytest
import torch

from fastdiffusion.errors import InputError
from fastdiffusion.nets.adversarial import LOSSES, PatchDiscriminator, Pool, adaptive_weight, r1
from fastdiffusion.noise import generator


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_logit_sees_a_patch_and_no_more(depth):
    torch.manual_seed(0)
    critic = PatchDiscriminator(1, width=4, depth=depth).double()
    x = torch.randn(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
    for layer in critic.layers:  # group norm looks at the whole picture: without it a logit is local
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda v: v
    logits = critic(x)
    assert logits.shape == (1, 1, 96 >> depth, 96 >> depth)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    assert (gradient.abs().sum((0, 1, 2)) > 0).sum() == 9 * 2**depth - 4


def test_a_critic_judges_each_picture_alone():
    torch.manual_seed(0)
    critic = PatchDiscriminator(3, condition=1, width=8, depth=2)
    x, c = torch.randn(3, 3, 20, 24), torch.randn(3, 1, 20, 24)
    torch.testing.assert_close(critic(x, c)[1:2], critic(x[1:2], c[1:2]), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="with a condition"):
        critic(x)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_pull_the_right_way(name):
    loss = LOSSES[name]
    real, fake = torch.full((4,), -0.1, requires_grad=True), torch.full((4,), 0.1, requires_grad=True)
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # type: ignore[operator]
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()  # type: ignore[operator]


def test_losses_at_known_points():
    one = torch.ones(3)
    assert LOSSES["least_squares"].discriminator(one, 0 * one) == 0
    assert LOSSES["hinge"].discriminator(one, -one) == 0
    assert LOSSES["hinge"].discriminator(0 * one, 0 * one) == 1
    assert LOSSES["logistic"].generator(0 * one) == pytest.approx(0.6931, abs=1e-4)


def test_r1_of_a_linear_critic_is_half_its_squared_weight():
    w = torch.randn(3, 8, 8)
    penalty = r1(lambda x: (x * w).sum((1, 2, 3))[:, None, None, None], torch.randn(5, 3, 8, 8))
    torch.testing.assert_close(penalty, w.square().sum() / 2)


def test_r1_teaches_the_critic():
    torch.manual_seed(0)
    critic = PatchDiscriminator(1, width=4, depth=1)
    r1(critic, torch.randn(2, 1, 16, 16)).backward()
    assert all(p.grad is not None for name, p in critic.named_parameters() if "bias" not in name)


def test_the_adaptive_weight_evens_the_pulls():
    last, x = torch.nn.Parameter(torch.randn(4, 4)), torch.randn(7, 4)
    out = x @ last
    near, far = (out - 1).square().mean(), 100 * out.abs().mean()
    weight = adaptive_weight(near, far, last)
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (near, weight * far)]
    torch.testing.assert_close(pulls[0], pulls[1], rtol=1e-4, atol=0)
    assert not weight.requires_grad
    assert adaptive_weight(near, 0 * far, last) == 1e4


def test_the_pool_keeps_and_returns_what_it_was_shown():
    pool = Pool((1, 1, 1), size=8)
    shown, returned = set(), []
    for step in range(40):
        images = torch.arange(4 * step, 4 * step + 4).float().reshape(4, 1, 1, 1)
        shown |= set(images.flatten().tolist())
        got = pool.exchange(images, generator(0, step)).flatten().tolist()
        assert set(got) <= shown
        if step < 2:
            assert got == images.flatten().tolist()  # still filling
        else:
            returned += [g < 4 * step for g in got]
    assert 0.35 < sum(returned) / len(returned) < 0.65

    other = Pool((1, 1, 1), size=8)
    other.load_state_dict(pool.state_dict())
    images = torch.full((4, 1, 1, 1), -1.0)
    assert torch.equal(other.exchange(images, generator(1)), pool.exchange(images, generator(1)))
    assert torch.equal(other.images, pool.images)
