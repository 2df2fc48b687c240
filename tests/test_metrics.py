"""The metrics against closed forms, known sets and pictures that were spoiled on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiffusion import metrics
from fastdiffusion.data import Images, digits, selection
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.io.images import to_tensor
from fastdiffusion.metrics import distances
from fastdiffusion.noise import generator
from fastdiffusion.tasks.evaluation import feature_net
from fastdiffusion.tasks.evaluation.feature_net import train_feature_net


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed))


def test_frechet_of_gaussians():
    """Two samples made to have exactly given moments: the closed form, here with covariances that do not commute."""
    white = normal(50, 3, 0).double()
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    a, b = torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0.5, 3]]).double(), torch.diag(torch.tensor([1.0, 2, 3])).double()
    mean = torch.tensor([1.0, -2, 0.5]).double()
    product = (a @ a.T @ b @ b.T).numpy()
    expected = mean.square().sum() + (a @ a.T).trace() + (b @ b.T).trace()
    expected -= 2 * sum(math.sqrt(v) for v in np.linalg.eigvals(product).real)
    assert metrics.frechet(white @ a.T, white @ b.T + mean) == pytest.approx(float(expected), rel=1e-9)
    assert metrics.frechet(white, white) == pytest.approx(0, abs=1e-9)


def test_frechet_with_fewer_pictures_than_features():
    assert math.isfinite(metrics.frechet(normal(5, 20, 0), normal(5, 20, 1)))


def test_kernel_distance_is_unbiased():
    """Its mean over many pairs from one distribution is 0 within four standard errors; apart, it is far from 0."""
    values = torch.tensor([metrics.kernel_distance(normal(40, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(300)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert values.min() < 0
    assert metrics.kernel_distance(normal(40, 4, 0), normal(40, 4, 1) + 2) > 10 * values.std()


def test_kernel_distance_in_blocks_keeps_its_mean():
    a, b = normal(400, 4, 0), normal(400, 4, 1) + 0.5
    assert metrics.kernel_distance(a, b, block=100) == pytest.approx(metrics.kernel_distance(a, b), rel=0.2)


def test_nearest_against_brute_force(monkeypatch):
    monkeypatch.setattr(distances, "ROWS", 7)
    points = normal(40, 3, 0).double()
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    values, indices = metrics.nearest(points, points, 3, exclude_self=True)
    torch.testing.assert_close(values, distance.sort(1).values[:, :3])
    assert torch.equal(indices, distance.sort(1).indices[:, :3])
    with pytest.raises(InputError, match="40 images do not have 40 neighbors"):
        metrics.nearest(points, points, 40, exclude_self=True)


def test_nearest_knows_copies():
    points = torch.zeros(4, 2)
    assert metrics.nearest(points, points, 3, exclude_self=True)[0].max() == 0


def test_precision_and_recall_on_known_sets():
    """Two clusters; the model makes one of them, and rubbish far from both: half precision, half recall."""
    left, right = normal(200, 2, 0), normal(200, 2, 1) + 50
    real = torch.cat([left, right])
    fake = torch.cat([normal(200, 2, 2), normal(200, 2, 3) * 0.1 - 200])
    for found in (metrics.precision_recall(real, fake), metrics.density_coverage(real, fake)):
        precise, recalled = (float(part.mean()) for part in found)
        assert 0.4 < precise < 0.6
        assert 0.35 < recalled < 0.51
    assert metrics.precision_recall(real, real)[0].mean() == 1


def test_density_is_not_fooled_by_an_outlier():
    """One real outlier blesses all that is near it in precision, and little in density (Naeem et al. 2020, fig. 1)."""
    real = torch.cat([normal(300, 2, 0), torch.tensor([[30.0, 30.0]])])
    fake = normal(300, 2, 1) + 25
    assert metrics.precision_recall(real, fake)[0].mean() > 0.9
    assert metrics.density_coverage(real, fake)[0].mean() < 0.3


def test_interval_covers():
    """The interval of a mean: about mean +- 1.96 s / sqrt(n)."""
    values = normal(400, 1, 0)[:, 0]
    low, high = metrics.interval(lambda v: float(v.mean()), values, rounds=1000)
    half = 1.96 * float(values.std()) / 20
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), abs=0.02)


# ---- gradients --------------------------------------------------------------------------------------------------


def blobs(n: int, seed: int, size: int = 32) -> torch.Tensor:
    """Soft discs with sharp edges, at any place: no comb, clean contours."""
    source = generator(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    cx, cy, r = (torch.rand(n, 1, 1, generator=source) * span + low for span, low in ((16, 8), (16, 8), (8, 4)))
    return ((r - ((x - cx) ** 2 + (y - cy) ** 2).sqrt()).clamp(-1, 1) * 0.8)[:, None]


@pytest.fixture(scope="module")
def real():
    return metrics.gradient_statistics(blobs(400, 0))


def gap(real, images):
    return metrics.gradient_distance(real, metrics.gradient_statistics(images))


def test_gradients_of_equal_data_are_near(real):
    assert gap(real, blobs(400, 1))["all"] < 0.1


def test_gradients_see_a_seam(real):
    """2x2 and 4x4 patches, each a little brighter or darker than it should be."""
    for patch in (2, 4):
        offsets = torch.randn(400, 1, 32 // patch, 32 // patch, generator=generator(5)) * 0.05
        seamed = blobs(400, 1) + offsets.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        assert gap(real, seamed)["seams"] > 10 * gap(real, blobs(400, 1))["seams"]


def test_gradients_see_broken_edges_blur_and_grain(real):
    clean = gap(real, blobs(400, 1))
    images = blobs(400, 1)
    where = (torch.rand(images.shape, generator=generator(3)) < 0.3) & (images.abs() < 0.79)  # only on the contour
    broken = torch.where(where, -images, images)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    grainy = images + 0.05 * torch.randn(images.shape, generator=generator(4))
    assert gap(real, broken)["coherence"] > 10 * clean["coherence"]
    assert gap(real, blurred)["edges"] > 10 * clean["edges"]
    assert gap(real, grainy)["texture"] > 10 * clean["texture"]


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 17), (1, 8, 8), (3, 33, 20)])
def test_gradients_of_any_shape(shape):
    images = torch.randn(6, *shape, generator=generator(0)).clamp(-1, 1)
    assert all(v.isfinite().all() and len(v) == 6 for v in metrics.gradient_statistics(images).values())
    blank = metrics.gradient_statistics(torch.zeros(6, *shape))
    assert all(math.isfinite(v) for v in metrics.gradient_distance(blank, blank).values())


def test_pictures_too_small_for_gradients():
    with pytest.raises(InputError, match="at least 4x4"):
        metrics.gradient_statistics(torch.zeros(1, 1, 3, 8))


# ---- the classifier -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge():
    return train_feature_net(digits(), steps=152)


def test_classifier_of_the_digits(judge):
    assert judge.info["name"] == "digits"
    assert judge.info["of"] == "labels"
    assert judge.info["accuracy"] >= 0.93


def test_features_have_unit_variance(judge):
    images, _ = selection.load_images(digits(), range(500))
    seen = metrics.features(judge, images)
    assert seen.shape == (500, 64)
    assert 0.8 < seen.var(0).mean() < 1.2


def test_classifier_is_deterministic():
    data = digits()
    one, two = (train_feature_net(data, steps=6) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_classifier_is_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    train = train_feature_net
    monkeypatch.setattr(feature_net, "train_feature_net", lambda data, **_: made.append(1) or train(data, steps=6))
    data = digits()
    one, two = feature_net.feature_net(data), feature_net.feature_net(data)
    x = to_tensor(selection.load_images(data, [3, 1])[0])
    assert len(made) == 1
    assert torch.equal(one(x), two(x))
    assert one.info == two.info
    (file,) = tmp_path.glob("fastdiffusion/fd_digits-*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    feature_net.feature_net(data)
    assert len(made) == 2
    with pytest.raises(CheckpointError):
        metrics.load_classifier(tmp_path / "none.safetensors")


def test_classifier_without_labels_learns_quarter_turns():
    images = np.zeros((60, 3, 12, 12), np.uint8)
    images[:, :, :4] = 255
    net = train_feature_net(Images("bars", [images]), steps=38)
    assert net.info["of"] == "quarter turns"
    assert net(torch.zeros(2, 3, 12, 12)).shape == (2, 4)
    with pytest.raises(DataError, match="at least 20"):
        train_feature_net(Images("few", [images[:10]]))


def test_pictures_keep_their_order_and_come_to_one_size():
    a, b = np.full((3, 1, 8, 8), 10, np.uint8), np.full((2, 1, 8, 16), 200, np.uint8)
    data = Images("two sizes", [a, b], labels=[0, 1, 0, 1, 1], classes=["x", "y"])
    images, labels = selection.load_images(data, [4, 0, 3, 1])
    assert images.shape == (4, 1, 8, 8)
    assert images[:, 0, 0, 0].tolist() == [200, 10, 200, 10]
    assert labels.tolist() == [1, 0, 1, 1]


def test_features_of_any_module():
    net = torch.nn.Conv2d(1, 5, 3)
    assert metrics.features(net, torch.zeros(7, 1, 8, 8)).shape == (7, 5)
    with pytest.raises(InputError, match="at least 2 feature rows"):
        metrics.frechet(torch.zeros(1, 5), torch.zeros(4, 5))


def test_shrunk_covariances_compare_features_one_by_one():
    a, b = torch.randn(50, 6, generator=generator(0)), 1 + 2 * torch.randn(40, 6, generator=generator(1))
    alone = sum(metrics.frechet(x[:, None], y[:, None]) for x, y in zip(a.T, b.T, strict=True))
    assert metrics.frechet(a, b, shrunk=1) == pytest.approx(alone)
    assert metrics.frechet(a, b, shrunk=0.5) not in (metrics.frechet(a, b), pytest.approx(alone))
