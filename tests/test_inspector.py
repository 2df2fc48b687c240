"""Looking into a run: films, previews without the decoder, what a step costs, and losses on decoded images."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiffusion
from fastdiffusion import nets, sample, sample_steps
from fastdiffusion.cli import main
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import ALWAYS, cfg, loss_guidance
from fastdiffusion.models import Model
from fastdiffusion.tasks.generation import preview
from fastdiffusion.tasks.generation.film import Film
from fastdiffusion.tasks.generation.preview import fit, linear_preview

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

NET = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    net = nets.build({**NET, "in_channels": 1, "out_channels": 1, "classes": 3})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Model(Denoiser(net), (1, 8, 8), classes=("cat", "dog", "7"))


# ---- previews ---------------------------------------------------------------------------------------------------


class Colors:
    """An autoencoder whose latents are the mean colors of 4x4 squares in other coordinates, and one idle channel."""

    factor, image_channels, latent_channels = 4, 3, 4
    mixing = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.9, 0.0], [0.0, 0.4, -0.7], [0.0, 0.0, 0.0]])
    offset = torch.tensor([0.3, 0.0, -0.1, 2.0])
    decoded = 0

    def encode(self, x):
        means = torch.nn.functional.avg_pool2d(x, 4)
        return torch.einsum("dc,bcij->bdij", self.mixing, means) + self.offset[:, None, None]

    def decode(self, z):
        self.decoded += len(z)
        colors = torch.einsum("cd,bdij->bcij", torch.linalg.pinv(self.mixing), z - self.offset[:, None, None])
        return colors.repeat_interleave(4, -1).repeat_interleave(4, -2)


def gaussian(x, sigma, cond=None):
    return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def colored() -> Model:
    return Model(gaussian, (4, 4, 4), autoencoder=Colors(), sigma_data=1.0)


def test_a_linear_autoencoder_is_seen_as_it_is():
    """Least squares find the inverse; a run's previews are then its decoded estimates, with nothing decoded."""
    model = colored()
    seen = linear_preview(model)
    z = torch.randn(2, 4, 5, 6) * 0.2 + model.autoencoder.offset[:, None, None]
    colors = model.autoencoder.decode(z)[..., ::4, ::4]
    torch.testing.assert_close(seen(z), colors.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    model.autoencoder.decoded = 0
    steps = list(sample_steps(model, n=2, steps=3))
    previews = [step.preview for step in steps[:-1]]
    assert model.autoencoder.decoded == 2, "the finished images alone"
    for step, seen in zip(steps, previews, strict=False):
        torch.testing.assert_close(seen, step.images.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    assert torch.equal(steps[-1].preview, steps[-1].images)


def test_a_preview_is_fitted_once_for_a_model(monkeypatch):
    model, fitted = colored(), []
    monkeypatch.setattr(preview, "fit", lambda m: fitted.append(m) or fit(m))
    first = linear_preview(Model(gaussian, (4, 4, 4), autoencoder=Colors(), sigma_data=1.25))
    preview._kept.cache_clear()  # as in the next process
    again = linear_preview(Model(gaussian, (4, 4, 4), autoencoder=Colors(), sigma_data=1.25))
    assert len(fitted) == 1 and torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    linear_preview(model)
    assert len(fitted) <= 2 and model.autoencoder is not None


def test_a_model_of_pixels_needs_no_map(model):
    for step in sample_steps(model, n=2, steps=2):
        assert torch.equal(step.preview, step.images.clamp(-1, 1)) or step.estimate is None


def short(name, monkeypatch) -> Model:
    """A family's model; one of films makes short ones."""
    model = get(name).model
    if name == "wan":
        monkeypatch.setattr(type(model.denoise), "frames", 2)
    return replace(model, shape=model.denoise.shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_previews(name, monkeypatch):
    """Of the shape of what comes out; those of a film, too, show each frame."""
    model = short(name, monkeypatch)
    first = next(iter(sample_steps(model, "a cat", n=1, steps=2, scale=1.0, size=64)))
    assert first.preview.shape == first.images.shape and first.preview.isfinite().all()
    assert first.preview.shape[-2:] == (64, 64)


@pytest.mark.filterwarnings("ignore")
def test_previews_of_the_bundled_model_show_what_is_drawn():
    """Correlation of half-way previews with the finished image: .8 at least."""
    steps = list(sample_steps("emoji", "a red heart", n=2, steps=8, device="cpu"))
    halfway, finished = steps[3].preview.flatten(1), steps[-1].images.flatten(1)
    for seen, image in zip(halfway, finished, strict=True):
        assert torch.corrcoef(torch.stack([seen, image]))[0, 1] > 0.8


# ---- films ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["steps.gif", "steps.webp", "steps.png"])
def test_a_film_shows_each_estimate(model, tmp_path, name):
    film = Film()
    steps = list(sample_steps(model, n=3, steps=4, batch_size=2))
    for step in steps:
        film.add(step)
    path = film.save(tmp_path / name)
    with Image.open(path) as shown:
        assert shown.n_frames == 4, "of the first batch"
        assert shown.size == (2 * 66 + 2, 2 * 66 + 2)
        shown.seek(3)
        last = np.asarray(shown.convert("L")).astype(int)
    wanted = np.asarray(film.frames[-1].convert("L")).astype(int)
    assert np.abs(last - wanted).max() <= (8 if name.endswith("gif") else 0)  # a GIF has 256 colors
    assert film.save(tmp_path / name) == path, "the same film is not written twice"
    film.frames.pop()
    assert film.save(tmp_path / name).stem == "steps-2"


def test_a_film_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "a red heart", "-n", "2", "--steps", "3", "--device", "cpu"]
    assert main([*words, "--film", "steps.gif", "--verbose"]) == 0
    told = capsys.readouterr()
    assert "steps.gif: how they emerged" in told.out
    assert told.err.count("2 evaluations for each image") == 3 and "step 3 of 3: sigma " in told.err
    with Image.open("steps.gif") as film:
        assert film.n_frames == 3
    assert main([*words, "--film", "steps.mp4", "-o", "never"]) == 2
    assert "Try steps.gif" in capsys.readouterr().err and not (tmp_path / "never").exists()
    with pytest.raises(InputError, match="no frames"):
        Film().save(tmp_path / "none.gif")


# ---- what a step costs ------------------------------------------------------------------------------------------

COSTS = {
    "plain": ({}, 1),
    "scale": ({"scale": 3.0}, 2),
    "an interval": ({"guidance": "cfg scale=3 interval=..0.0001"}, 1),
    "negative": ({"guidance": "negative dog scale=2"}, 2),
    "twice": ({"guidance": "cfg scale=2 >> cfg scale=2"}, 4),
    "a loss": ({"guidance": lambda d: loss_guidance(d, lambda x0: x0.flatten(1).mean(1))}, 1),
}


@pytest.mark.parametrize("case", COSTS)
def test_evaluations_are_counted(model, case):
    options, wanted = COSTS[case]
    steps = list(sample_steps(model, n=3, steps=2, batch_size=2, **options))
    assert [step.evaluations for step in steps] == [wanted] * 4 and all(step.seconds > 0 for step in steps)
    assert not model.modules["net"]._forward_pre_hooks


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluations_of_every_family_are_counted(name, monkeypatch):
    model = short(name, monkeypatch)
    options = {"n": 2, "steps": 1, "size": 64}
    for scale, wanted in ((1.0, 1), (3.0, 1 if model.guidance == "embedded" else 2)):
        (step,) = sample_steps(model, "a cat", scale=scale, **options)
        assert step.evaluations == wanted


def test_two_threads_count_their_own(model):
    barrier = threading.Barrier(2)

    def count(scale):
        barrier.wait()
        return {step.evaluations for step in sample_steps(model, n=2, steps=8, scale=scale)}

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(count, (1.0, 3.0))) == [{1.0}, {2.0}]


# ---- losses on images -------------------------------------------------------------------------------------------


def brightness(images):
    """Per image: the distance of its mean from a bright gray."""
    return (images.flatten(1).mean(1) - 0.3).square()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loss_reaches_through_the_autoencoder_of_every_family(name, monkeypatch):
    """The estimate moves by sigma^2 times the loss's gradient, through decoder and network."""
    model, sigma = short(name, monkeypatch), torch.tensor([1.5, 0.4])
    x, cond = torch.randn(2, *model.shape[:-2], 8, 8), model.encode_prompt(["a cat", "a dog"], (64, 64))
    guided = loss_guidance(model.denoise, brightness, scale=2.0, decode=model.autoencoder.decode)
    leaf = x.clone().requires_grad_()
    x0 = model.denoise(leaf, sigma, cond)
    loss = brightness(model.autoencoder.decode(x0))
    (push,) = torch.autograd.grad(loss.sum(), leaf)
    moved = guided(x, sigma, cond)
    variance = sigma.square().reshape(-1, *[1] * (x.ndim - 1))
    torch.testing.assert_close(moved, x0.detach() - 2.0 * variance * push)
    assert push.abs().max() > 0 and not moved.requires_grad
    options = {"n": 1, "steps": 4, "size": 64}
    made = sample(model, "a cat", **options, guidance=lambda d: guided_by(model, d)).images
    assert made.isfinite().all() and not torch.equal(made, sample(model, "a cat", **options).images)


def guided_by(model, denoise):
    """In the middle of the run: a flow starts at nearly infinite noise, where a random net's gradients explode."""
    return loss_guidance(denoise, brightness, 10.0, interval=(0.0, 10.0), decode=model.autoencoder.decode)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("through", [True, False])
def test_a_loss_on_images_is_lowered_by_half(through):
    """Of the bundled model, at fixed seeds: hearts that are to be dark."""
    model = fastdiffusion.load("emoji", device="cpu")

    def darkness(images):
        return (images.flatten(1).mean(1) + 0.2).square()

    def guided(denoise):
        return loss_guidance(denoise, darkness, 1000.0, ALWAYS, through, model.sigma_data, model.autoencoder.decode)

    options = {"n": 2, "steps": 12, "sampler": "dpmpp_2m"}
    before, after = (darkness(sample(model, "a red heart", **options, guidance=g).images) for g in (None, guided))
    assert bool((after < before / 2).all())


def test_decoding_is_part_of_the_loss(model):
    halved = lambda d: loss_guidance(d, lambda x: x.flatten(1).sum(1), decode=lambda z: z / 2)  # noqa: E731
    direct = lambda d: loss_guidance(d, lambda x: x.flatten(1).sum(1) / 2)  # noqa: E731
    for way in (lambda g: g, lambda g: lambda d: cfg(g(d), 2.0)):
        one, other = (sample(model, n=2, steps=3, classes="cat", guidance=way(g)).images for g in (halved, direct))
        torch.testing.assert_close(one, other)
