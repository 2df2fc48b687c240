"""A classifier of a model's noisy latents: trained by one option, guides a model without classes by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiffusion import guidance, load, sample, samplers, schedules
from fastdiffusion.data import Images, oracles
from fastdiffusion.errors import InputError
from fastdiffusion.io.images import as_input
from fastdiffusion.nets.classifier import LatentClassifier
from fastdiffusion.noise import initial
from fastdiffusion.tasks.classification.options import TrainClassifierOptions
from fastdiffusion.tasks.classification.train import FILE, of_latents, save, train_classifier
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
    assert isinstance(net, LatentClassifier) and net.takes((4, 16, 16)) and not net.takes((4, 16, 8))
    assert list(net.config["names"]) == ["dark", "light"]
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


def test_learned_it_leads_into_its_class_and_no_further_than_the_exact_one():
    """Three classes of Gaussian latents, whose denoiser and posterior are known: at scale 1 runs end in the class."""
    torch.manual_seed(0)
    labels = torch.arange(3)
    latents = oracles.Mixture(torch.randn(3, 4, 4, 4), torch.full((3,), 0.5), torch.full((3,), 1 / 3), labels)
    which = labels.repeat(128)
    noise = torch.randn(384, 4, 4, 4)
    rows = Images("latents", [(latents.means[which] + 0.5 * noise).numpy()], which.tolist(), classes=("a", "b", "c"))
    net = train_classifier(rows, net="mlp", steps=150, batch_size=96, lr=3e-3, dropout=0.0, holdout=0.0).model
    n, seen = 96, torch.arange(3).repeat(32)

    def push(log_prob, x, sigma):
        at = torch.full((n,), sigma)
        guided = guidance.classifier(lambda x, sigma, cond=None: torch.zeros_like(x), log_prob, 1.0)
        return guided(x, at, Cond(label=seen))

    def exact(x, sigma, cond):
        return latents.posterior(x, sigma).log().gather(1, cond.label[:, None])[:, 0]

    for sigma in (2.0, 5.0, 40.0):
        x = latents.means[seen] + sigma * torch.randn(n, 4, 4, 4)
        learned, right = push(net, x, sigma), push(exact, x, sigma)
        assert torch.cosine_similarity(learned.flatten(1), right.flatten(1)).mean() > 0.7
        assert 0.5 < learned.norm() / right.norm() < 2
    table = samplers.table("euler", schedules.karras(12, 0.02, 80.0))
    start = 80.0 * initial(range(n), (4, 4, 4))
    landed = []
    for scale in (0.0, 1.0):
        guided = guidance.classifier(lambda x, sigma, cond=None: latents(x, sigma), net, scale)
        run = samplers.run(guided, start, table, Cond(label=seen), range(n))
        x0 = samplers.final(run)
        nearest = torch.cdist(x0.flatten(1), latents.means.flatten(1)).argmin(1)
        landed.append(float((nearest == seen).float().mean()))
    assert landed[0] < 0.6 and landed[1] > 0.95


def test_it_reads_latents_of_other_libraries_checkpoints(tmp_path):
    """Those of Stable Diffusion's VAE, at the scale that its network takes."""
    pytest.importorskip("diffusers")
    place = Path(__file__).parent / "checkpoints" / "sd-small"
    pixels = np.random.default_rng(0).integers(0, 255, (8, 3, 64, 64), dtype=np.uint8)
    images = Images("few", [pixels], [0, 1] * 4, classes=("a", "b"))
    latents, levels = of_latents(images, TrainClassifierOptions(latents=place))
    model = load(place, device="cpu", precision="float32")
    torch.testing.assert_close(latents.batch([3]).images, model.encode(as_input(images.batch([3]).images)).detach())
    assert levels["sigma_max"] == model.sigma_max
    made = train_classifier(images, latents=place, steps=2, batch_size=4, folder=tmp_path)
    made.model.requires_grad_(False)
    torch.nn.init.normal_(made.model.out.weight)
    save(made.model, tmp_path / FILE)
    drawn = [sample(model, n=1, steps=2, scale=1.0, guidance=f"classifier {tmp_path / FILE} scale={s} label=a").images
             for s in (0, 3)]  # fmt: skip
    assert not torch.equal(*drawn)
    with pytest.raises(InputError, match="reads other images than this model denoises"):
        sample(model, n=1, steps=2, size=(64, 128), guidance=f"classifier {tmp_path / FILE} scale=1 label=a")


def test_features_and_latents_are_two_ways():
    images = Images("few", [np.zeros((4, 3, 64, 64), np.uint8)], [0, 1, 0, 1], classes=("a", "b"))
    with pytest.raises(InputError, match="two ways"):
        train_classifier(images, latents="emoji", model="emoji", steps=1)


def test_its_classes_and_names_are_in_its_file(trained):
    from fastdiffusion.tasks.classification.train import load as read

    net = read(trained[1])
    assert isinstance(net, LatentClassifier) and list(net.config["names"]) == ["dark", "light"]
