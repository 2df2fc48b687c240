"""A classifier of a model's noisy latents: trained by one option, guides a model without classes by name."""

import numpy as np
import pytest
import torch

from fastdiffusion import guidance, load, sample
from fastdiffusion.data import Images
from fastdiffusion.errors import InputError
from fastdiffusion.nets.classifier import Classifier
from fastdiffusion.tasks.classification.train import FILE, train_classifier
from fastdiffusion.types import Cond


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of dark and light images, in the latents of the model that ships."""
    levels = np.random.default_rng(0).integers(0, 90, (32, 3, 1, 1)) + np.array([0, 160] * 16)[:, None, None, None]
    images = Images(
        "tones", [np.broadcast_to(levels, (32, 3, 64, 64)).astype(np.uint8)], [0, 1] * 16, classes=("dark", "light")
    )
    folder = tmp_path_factory.mktemp("classifier")
    net = train_classifier(images, latents="emoji", steps=60, batch_size=16, lr=3e-3, folder=folder).model
    return net, folder / FILE


def test_it_reads_latents_at_the_models_noise_levels(trained):
    net, _ = trained
    assert net.config["net"]["in_channels"] == 4 and list(net.config["names"]) == ["dark", "light"]
    model = load("emoji")
    with torch.no_grad():
        logits = net(
            model.encode(torch.tensor([-0.9, 0.9])[:, None, None, None].expand(2, 3, 64, 64)), torch.full((2,), 0.1)
        )
    assert logits[0, 0] > logits[0, 1] and logits[1, 1] > logits[1, 0]


def test_it_guides_a_model_without_classes_by_name(trained):
    _, file = trained
    plain = sample("emoji", n=2, steps=4, seed=3)
    dark, light = (
        sample("emoji", n=2, steps=4, seed=3, guidance=f"classifier {file} scale=6 label={name}")
        for name in ("dark", "light")
    )
    assert not any(torch.equal(a.images, b.images) for a, b in ((dark, plain), (light, plain), (dark, light)))
    off = sample("emoji", n=2, steps=4, seed=3, guidance=f"classifier {file} scale=0 label=dark")
    assert torch.equal(off.images, plain.images)
    for words, message in {"": "Say which one: label='dark'", "label=darg": "Did you mean 'dark'"}.items():
        with pytest.raises(InputError, match=message):
            sample("emoji", n=1, steps=4, guidance=f"classifier {file} scale=1 {words}")


def test_a_label_is_that_of_every_image():
    means = torch.tensor([[-1.0], [1.0]])

    def log_prob(x, sigma, cond):
        assert cond.label.tolist() == [1, 1, 1]
        return -(x - means[cond.label]).square().sum(1) / 2

    x = torch.zeros(3, 1)
    guided = guidance.classifier(lambda x, sigma, cond=None: x, log_prob, 0.5, label=1)(
        x, torch.full((3,), 2.0), Cond()
    )
    torch.testing.assert_close(guided, torch.full((3, 1), 0.5 * 4.0))


def test_features_and_latents_are_two_ways():
    images = Images("few", [np.zeros((4, 3, 64, 64), np.uint8)], [0, 1, 0, 1], classes=("a", "b"))
    with pytest.raises(InputError, match="two ways"):
        train_classifier(images, latents="emoji", model="emoji", steps=1)


def test_its_classes_and_names_are_in_its_file(trained):
    from fastdiffusion.tasks.classification.train import load as read

    net = read(trained[1])
    assert isinstance(net, Classifier) and list(net.config["names"]) == ["dark", "light"]
