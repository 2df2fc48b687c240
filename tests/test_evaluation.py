"""The report: what real pictures score, what copies and spoiled ones do, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiffusion import metrics, models, nets
from fastdiffusion.data import Images, cache_folder, digits, selection
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.io.checkpoints import load_tensors
from fastdiffusion.io.images import to_tensor
from fastdiffusion.models import Model, load, save
from fastdiffusion.models.card import card
from fastdiffusion.nets import presets
from fastdiffusion.nets.mlp import PointNet
from fastdiffusion.tasks.evaluation import evaluate as evaluation
from fastdiffusion.tasks.evaluation.evaluate import evaluate, measure
from fastdiffusion.tasks.evaluation.feature_net import train_feature_net


@pytest.fixture(scope="module")
def half():
    """Half of the digits as data, and a classifier of them."""
    train, test = digits().split(0.5)
    return train, test, train_feature_net(train, steps=189)


def report(half, images, labels=None):
    return measure(images, half[0], labels, half[2], rounds=10)


def test_real_pictures_score_as_real_pictures(half):
    images, labels = selection.load_images(half[1], range(400))
    found = report(half, to_tensor(images), labels.tolist())
    for name, number in found.numbers.items():
        assert number.low <= number.value <= number.high, name
        # the classifier knows the data's pictures and has not seen these: a little farther than the floor
        assert number.value == pytest.approx(number.floor, rel=0.3, abs=1.0), name
    assert found.numbers["label accuracy"].value > 0.9


def test_copies_are_told_by_their_nearness(half):
    images, _ = selection.load_images(half[0], selection.choose(half[0], 300, 5))
    assert report(half, to_tensor(images)).numbers["nearness"].value == 0


def test_spoiled_pictures_are_farther(half):
    images, labels = selection.load_images(half[1], range(400))
    clean, wrong = to_tensor(images), torch.roll(labels, 1).tolist()
    found = report(half, (clean + 0.5 * torch.randn(clean.shape)).clamp(-1, 1), wrong)
    for name in ("fd_digits", "kd_digits", "gradients", "nearness"):
        assert found.numbers[name].low > 1.05 * found.numbers[name].floor, name
    assert found.numbers["precision"].high < found.numbers["precision"].floor
    assert found.numbers["label accuracy"].value < 0.3


def test_one_kind_only_is_precise_and_covers_little(half):
    images, labels = selection.load_images(half[1], range(len(half[1])))
    found = report(half, to_tensor(images[labels == 3]))
    assert found.numbers["precision"].value > 0.6
    assert found.numbers["coverage"].value < 0.4
    assert found.numbers["recall"].value < 0.4


def test_features_of_any_net_and_their_cache(half, monkeypatch):
    images, _ = selection.load_images(half[1], range(60))
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU())
    found = measure(to_tensor(images), half[0], features=net, rounds=3)
    assert "fd_sequential" in found.numbers
    assert "label accuracy" not in found.numbers
    assert list((cache_folder() / "features").iterdir())
    looked = []
    features = metrics.features
    monkeypatch.setattr(metrics, "features", lambda n, x: looked.append(len(x)) or features(n, x))
    again = measure(to_tensor(images), half[0], features=net, rounds=3)
    assert again.to_dict() == found.to_dict()
    assert looked == [60]  # the generated ones only


def test_the_sheet_and_the_files(half, tmp_path):
    images, _ = selection.load_images(half[1], range(50))
    found = report(half, to_tensor(images))
    assert found.neighbors.size == (6 * 66 + 2, evaluation.SHOWN * 66 + 2)
    assert {path.name for path in found.save(tmp_path / "e").iterdir()} == {"report.json", "neighbors.png"}


def test_few_labels_are_no_ground_to_measure_on(half):
    """A table that names two of forty images: there is nothing to learn of labels, and no accuracy to tell."""
    pixels = half[0].batch(range(40)).images.numpy()
    few = Images("few", [pixels], [0, 1, *[-1] * 38], classes=("a", "b"))
    assert train_feature_net(few, steps=2, verbose=False).info["of"] == "quarter turns"
    found = measure(to_tensor(half[1].batch(range(12)).images), few, [-1] * 12, half[2], rounds=2)
    assert "label accuracy" not in found.numbers


def test_a_wrong_shape_is_refused_before_anything_is_drawn(half, monkeypatch):
    monkeypatch.setattr(evaluation, "sample", None)
    spec = {**presets.PRESETS["unet-tiny"], "in_channels": 3, "out_channels": 3, "classes": 10}
    with pytest.raises(InputError, match="The model makes 3x8x8 images, the data has 1x8x8"):
        evaluate(Model(Denoiser(nets.build(spec)), (3, 8, 8), half[0].classes), half[0], n=20)


def test_data_whose_images_are_all_alike_can_be_measured():
    flat = Images("flat", [np.zeros((40, 1, 8, 8), np.uint8)])
    found = measure(-torch.ones(12, 1, 8, 8), flat, features=train_feature_net(flat, steps=2, verbose=False), rounds=2)
    assert found.numbers["fd_flat"].value == found.numbers["fd_flat"].floor == 0


def test_what_cannot_be_measured(half):
    with pytest.raises(InputError, match="The model makes 1x4x4 images, the data has 1x8x8"):
        report(half, torch.zeros(50, 1, 4, 4))
    with pytest.raises(InputError, match="at least 10"):
        report(half, torch.zeros(5, 1, 8, 8))
    with pytest.raises(InputError, match=r"samples of shape \(2,\), and images alone are measured"):
        evaluate(Model(Denoiser(PointNet(2)), (2,)), half[0])
    few = Images("few", [np.zeros((12, 1, 8, 8), np.uint8)])
    with pytest.raises(InputError, match="twice as many"):
        measure(torch.zeros(12, 1, 8, 8), few)


def test_the_numbers_are_noted_in_the_model(half, tmp_path):
    """They come into the card, they change no picture and no tensor, and a file that is not ours to write is left."""
    torch.manual_seed(0)
    net = nets.build({**presets.PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1, "classes": 10})
    model = Model(Denoiser(net), (1, 8, 8), half[0].classes)
    save(model, tmp_path / "model.safetensors", dtype=torch.bfloat16)
    before = load_tensors(tmp_path / "model.safetensors")
    options = {"n": 20, "steps": 1, "features": half[2], "rounds": 3}
    evaluate(tmp_path, half[0], **options)  # by default it only reads
    assert load_tensors(tmp_path / "model.safetensors")[0] == before[0]
    found = evaluate(tmp_path, half[0], note=True, **options)
    config, tensors = load_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before[1].items())
    noted, number = config["info"].pop("metrics"), found.numbers["fd_digits"]
    assert noted["fd_digits (n=20, 1 steps, scale 1)"] == [number.low, number.value, number.high]
    assert config == before[0]
    ready = load(tmp_path)
    assert "fd\\_digits (n=20, 1 steps, scale 1)" in card(ready)
    assert ready.id == models.from_spec(*before).id
    assert evaluate(ready, half[0], **options).numbers == found.numbers
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    with pytest.warns(UserWarning, match="were not noted"):
        evaluation.record_metrics(found, tmp_path / "broken.safetensors")
