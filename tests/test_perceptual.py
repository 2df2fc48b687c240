"""What the feature net sees: distances with the properties of distances, and features that see what they should."""

import pytest
import torch
import torch.nn.functional as F

from fastdiffusion import data
from fastdiffusion.io.images import to_tensor
from fastdiffusion.nets import perceptual
from fastdiffusion.nets.perceptual import Features, directions, gram, gram_distance, perceptual_distance, profile
from fastdiffusion.noise import generator


@pytest.fixture(scope="module")
def clothes():
    return to_tensor(data.load("fashion-mnist", 32).batch(range(64)).images)


def blurred(x, width):
    at = torch.arange(-6, 7.0)
    taps = (-at.square() / (2 * width**2)).softmax(0)
    return F.conv2d(
        F.conv2d(F.pad(x, (6, 6, 6, 6), mode="replicate"), taps[None, None, :, None]), taps[None, None, None]
    )


def test_the_bundled_net():
    net = perceptual.features()
    assert perceptual.WEIGHTS.stat().st_size <= 1_500_000
    seen = net(torch.randn(2, 3, 40, 56))
    assert [f.shape[2:] for f in seen] == [(40, 56), (20, 28), (10, 14), (5, 7)]
    assert not any(p.requires_grad for p in net.parameters())
    assert [f.shape[-1] for f in net(torch.randn(1, 3, 1, 3))] == [3]  # no halving of a single row


def test_the_distance_is_one(clothes):
    x, y = clothes[:4], clothes[4:8]
    torch.testing.assert_close(perceptual_distance(x, x), torch.zeros(4), rtol=0, atol=1e-7)
    d = perceptual_distance(x, y)
    assert d.shape == (4,) and (d > 0.05).all()
    torch.testing.assert_close(perceptual_distance(y, x), d)
    torch.testing.assert_close(perceptual_distance(x[1:2], y[1:2]), d[1:2], rtol=1e-3, atol=1e-5)
    color = perceptual_distance(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1))
    torch.testing.assert_close(color, d)


@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_more_damage_is_further_away(clothes, damage):
    noise = torch.randn(clothes.shape, generator=generator(0))
    ways = {"blur": lambda s: blurred(clothes, 2 * s), "noise": lambda s: clothes + 0.4 * s * noise}
    distances = [float(perceptual_distance(clothes, ways[damage](s)).mean()) for s in (0.25, 0.5, 1.0)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_it_forgives_a_shift_and_not_a_blur_as_pixels_do(clothes):
    """The reason to have it: mean squared error prefers a blurred picture to one that has moved by a pixel."""
    moved, soft = clothes.roll(1, -1), blurred(clothes, 1.2)
    error = [(clothes - other).square().mean() for other in (moved, soft)]
    seen = [perceptual_distance(clothes, other).mean() for other in (moved, soft)]
    assert error[0] / error[1] > 1.5 * seen[0] / seen[1]


def test_gradients_are_finite_where_both_agree(clothes):
    x = clothes[:2].clone().requires_grad_()
    perceptual_distance(x, clothes[:2]).sum().backward()
    assert x.grad.isfinite().all()  # type: ignore[union-attr]
    blank = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (perceptual_distance(blank, blank.detach()) + perceptual.style_distance(blank, blank.detach())).sum().backward()
    assert blank.grad.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: [f, f], lambda f: {"a": f}])
def test_any_module_instead(wrap):
    x, y = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    d = perceptual_distance(x, y, lambda v: wrap(F.avg_pool2d(v, 2)))
    a, b = (F.normalize(F.avg_pool2d(v, 2), dim=1) for v in (x, y))
    torch.testing.assert_close(d, (a - b).square().sum(1).mean((1, 2)), rtol=1e-3, atol=1e-4)


def test_tiles_are_seen_as_parts_of_the_whole():
    x = torch.randn(1, 3, 128, 128)
    whole, tile = perceptual.features()(x)[3], perceptual.features()(x[..., :96])[3]
    torch.testing.assert_close(tile[..., :6], whole[..., :6], rtol=1e-3, atol=1e-3)


# ---- style ------------------------------------------------------------------------------------------------------


def test_style_forgets_places():
    f = torch.randn(1, 5, 6, 8)
    shuffled = f.flatten(2)[..., torch.randperm(48)].reshape(1, 5, 8, 6)
    torch.testing.assert_close(gram(f), gram(shuffled))
    along = directions(5, 7, generator(0))
    torch.testing.assert_close(profile(f, along), profile(shuffled, along))
    torch.testing.assert_close(along.norm(dim=1), torch.ones(7))


def test_gram_distance_is_free_of_the_unit():
    a, b = gram(torch.randn(2, 5, 6, 8)), gram(torch.randn(2, 5, 6, 8))
    torch.testing.assert_close(gram_distance(9 * a, 9 * b), gram_distance(a, b))
    assert (gram_distance(a, a) == 0).all()


def test_sliced_transport_between_gaussians_is_exact():
    """Between N(0, 1) and N(m, s^2) on a line the squared 2-Wasserstein distance is m^2 + (s - 1)^2."""
    z = torch.randn(1, 1, 200, 200, generator=generator(0))
    along = torch.ones(1, 1)
    a, b = profile(0.5 + 2 * z, along, 4096), profile(z[..., :150], along, 4096)  # of different sizes
    assert float((a - b).square().mean()) == pytest.approx(0.25 + 1, rel=0.05)
    assert float(perceptual.sliced_distance(a, a)) == 0


def test_style_tells_textures_apart_and_not_their_parts():
    x = torch.randn(1, 3, 64, 128, generator=generator(0)).mul(0.5)
    stripes = torch.linspace(0, 60, 128).sin().expand(1, 3, 64, 128)
    left, right = x[..., :64], x[..., 64:]
    near = perceptual.style_distance(left, right)
    assert near < 0.3 * perceptual.style_distance(left, stripes[..., :64])


def test_a_written_net_reads_back(tmp_path):
    from fastdiffusion.io.checkpoints import save_tensors

    torch.manual_seed(0)
    net = Features([4, 6])
    save_tensors(tmp_path / "f.safetensors", net.state_dict(), {"net": net.config})
    again = perceptual.load(tmp_path / "f.safetensors")
    x = torch.randn(1, 3, 8, 8)
    for a, b in zip(net(x), again(x), strict=True):
        torch.testing.assert_close(a, b)
