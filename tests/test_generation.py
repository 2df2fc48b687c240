"""Sampling: every image depends on its own seed, carries its recipe, and can be reproduced to the byte."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from fastdiffusion import models, nets
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.io.images import read_recipe, save_png
from fastdiffusion.models import Model, save
from fastdiffusion.tasks.generation.recipe import reproduce
from fastdiffusion.tasks.generation.sample import sample, sample_steps
from fastdiffusion.types import Cond


@pytest.fixture(scope="module")
def model() -> Model:
    """A net of random weights: its images depend on everything that it is given."""
    torch.manual_seed(0)
    spec = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}
    net = nets.build({**spec, "in_channels": 1, "out_channels": 1, "classes": 3, "dropout": 0.5})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Model(Denoiser(net), (1, 8, 8), classes=("cat", "dog", "7"), info={"name": "pets"})


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A saved model, and images beside it."""
    where = tmp_path_factory.mktemp("run")
    save(model, where / "pets.safetensors")
    return where


def test_an_image_depends_on_its_own_seed(model):
    """A batch of 8 equals 8 of 1, and a part of a longer run."""
    together = sample(model, n=8, classes="dog", steps=4, seed=10)
    for i in range(8):
        alone = sample(model, n=1, classes="dog", steps=4, seed=10 + i)
        torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-5, rtol=0)
    assert together.seeds == tuple(range(10, 18))
    assert together.images.std() > 0.1
    assert not torch.equal(together.images[0], together.images[1])


@pytest.mark.parametrize("sampler", ["dpmpp_3m", "euler_ancestral"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batches_do_not_matter(model, sampler, batch_size):
    one = sample(model, n=7, steps=3, sampler=sampler, batch_size=7)
    other = sample(model, n=7, steps=3, sampler=sampler, batch_size=batch_size)
    torch.testing.assert_close(one.images, other.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [
    {"scale": 2.5}, {"sampler": "euler_ancestral", "schedule": "karras"}, {"size": 12}, {"size": "16x8"},
    {"classes": [2, "cat"]}, {"variation_seed": 5, "variation_strength": 0.3}, {"classes": "none"}, {"seed": -3},
])  # fmt: skip
def test_reproduce_makes_the_same_bytes(folder, tmp_path, options):
    made = sample(folder / "pets.safetensors", n=7, steps=3, batch_size=3, **options)
    for i, path in enumerate(made.save(folder / tmp_path.name)):
        remade = reproduce(path)
        assert torch.equal(remade.images, made.images[i : i + 1])
        (copy,) = remade.save(tmp_path)
        assert copy.read_bytes() == path.read_bytes()
        assert copy.name == path.name


def test_a_recipe_of_the_first_names_is_followed(model, tmp_path):
    made = sample(model, n=2, steps=2, classes="dog", guidance="cfg scale=2 >> apg scale=3")
    recipe = made.recipe_of(1)
    parameters = dict(recipe["parameters"])
    parameters |= {"guide": parameters.pop("guidance"), "negative": parameters.pop("negative_prompt")}
    save_png(made.images[1], tmp_path / "old.png", {**recipe, "parameters": parameters})
    assert torch.equal(reproduce(tmp_path / "old.png", model).images[0], made.images[1])
    assert not torch.equal(made.images, sample(model, n=2, steps=2, classes="dog").images)


def test_reproduce_a_grid(folder, tmp_path):
    made = sample(folder / "pets.safetensors", n=5, steps=2, batch_size=2)
    path = made.save_grid(folder / "grid.png", columns=2, labels=True)
    remade = reproduce(path, folder / "pets.safetensors")
    assert remade.save_grid(tmp_path / "copy.png", columns=2, labels=True).read_bytes() == path.read_bytes()


def test_in_memory_and_from_the_file_are_bit_equal(model, folder):
    one, other = (sample(m, n=4, steps=3) for m in (model, folder / "pets.safetensors"))
    assert torch.equal(one.images, other.images)
    assert one.recipe["model"]["sha256"] == other.recipe["model"]["sha256"]


def test_the_recipe_names_no_place(folder):
    (path,) = sample(folder / "pets.safetensors", n=1, classes="dog", steps=2, seed=4).save(folder)
    recipe = read_recipe(path)
    assert path.name == "0004-dog.png"
    assert recipe["model"]["name"] == "pets.safetensors"
    assert (recipe["seed"], recipe["index"], recipe["class"]) == (4, 0, "dog")
    assert recipe["parameters"]["steps"] == 2
    assert "/" not in json.dumps(recipe)


def test_without_metadata(folder, model):
    samples = sample(model, n=2, steps=2)
    for path in [
        *samples.save(folder / "bare", metadata=False),
        samples.save_grid(folder / "bare.png", metadata=False),
    ]:
        assert not Image.open(path).info
        with pytest.raises(DataError, match="carries no recipe"):
            reproduce(path)


def test_classes(model):
    assert sample(model, n=5, steps=1).labels == ("cat", "dog", "7", "cat", "dog")
    assert sample(model, n=3, classes="7, cat", steps=1).labels == ("7", "cat", "7")
    assert sample(model, n=2, classes=1, steps=1).labels == ("dog", "dog")
    assert sample(model, n=2, classes="none", steps=1).labels == ("", "")
    with pytest.raises(InputError, match="Did you mean 'dog'"):
        sample(model, classes="dogs")


def test_guidance_of_1_is_off_and_more_is_not(model):
    plain, guided = sample(model, n=2, steps=2), sample(model, n=2, steps=2, scale=3)
    assert torch.equal(plain.images, sample(model, n=2, steps=2, scale=1).images)
    assert not torch.equal(plain.images, guided.images)


def test_variations_turn_towards_the_other_seed(model):
    base, other = sample(model, n=2, steps=2), sample(model, n=2, steps=2, seed=50)
    full = sample(model, n=2, steps=2, variation_seed=50, variation_strength=1)
    torch.testing.assert_close(full.images, other.images, atol=1e-4, rtol=0)
    little = sample(model, n=2, steps=2, variation_seed=50, variation_strength=0.01)
    assert 0 < (little.images - base.images).abs().mean() < (other.images - base.images).abs().mean() / 3


def test_steps_show_the_way(model):
    steps = [(s.done, s.of, s.images) for s in sample_steps(model, n=5, steps=3, batch_size=2)]
    assert [done for done, _, _ in steps] == list(range(1, 10))
    assert all(of == 9 for _, of, _ in steps)
    assert steps[0][2][2:].abs().max() == 0
    assert torch.equal(steps[-1][2].clamp(-1, 1), sample(model, n=5, steps=3, batch_size=2).images)


def test_two_interleaved_runs_equal_two_in_turn(model):
    runs = [sample_steps(model, n=2, steps=4, seed=seed, sampler="euler_ancestral") for seed in (0, 9)]
    for one, other in zip(*runs, strict=True):
        pair = one.images, other.images
    for images, seed in zip(pair, (0, 9), strict=True):
        assert torch.equal(
            images.clamp(-1, 1), sample(model, n=2, steps=4, seed=seed, sampler="euler_ancestral").images
        )
    assert torch.is_grad_enabled()


def test_two_runs_in_two_threads_equal_two_in_turn(model):
    """On one model, each with its own guidance, which holds state while a run lasts."""
    options = [
        {"seed": seed, "guidance": "apg scale=2", "sampler": "euler_ancestral", "classes": "cat"} for seed in (0, 9)
    ]
    alone = [sample(model, n=2, steps=6, **o).images for o in options]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda o: sample(model, n=2, steps=6, **o).images, options * 4))
    assert all(torch.equal(images, alone[i % 2]) for i, images in enumerate(together))


class Halves:
    """An autoencoder that keeps every other pixel, and counts what it decodes."""

    factor, image_channels, latent_channels = 2, 1, 1

    def __init__(self) -> None:
        self.decoded = 0

    def encode(self, x):
        return x[..., ::2, ::2]

    def decode(self, z):
        self.decoded += len(z)
        return z.repeat_interleave(2, -1).repeat_interleave(2, -2)


def gaussian(x, sigma, cond=None):
    """The exact denoiser of data that are unit normal."""
    return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def test_only_what_is_looked_at_is_decoded():
    autoencoder = Halves()
    model = Model(gaussian, (1, 4, 4), autoencoder=autoencoder)
    made = sample(model, n=5, steps=3, batch_size=2)
    assert made.images.shape == (5, 1, 8, 8) and autoencoder.decoded == 5  # each once, at its end
    autoencoder.decoded = 0
    steps = list(sample_steps(model, n=5, steps=3, batch_size=2))
    assert autoencoder.decoded == 5
    assert steps[3].images.shape == (5, 1, 8, 8) and autoencoder.decoded == 7  # two estimates of the second batch
    assert steps[3].images is steps[3].images and autoencoder.decoded == 7
    assert torch.equal(steps[3].images[:2], steps[-1].images[:2]) and not steps[3].images[4:].any()
    assert torch.equal(steps[-1].images.clamp(-1, 1), made.images) and autoencoder.decoded == 7


@pytest.mark.parametrize("size", ["24x16", (16, 24), "24X16 "])
def test_sizes_are_width_times_height_in_text_and_height_first_in_python(size):
    model = Model(gaussian, (1, 4, 4), autoencoder=Halves())
    made = sample(model, n=1, steps=2, size=size)
    assert made.images.shape == (1, 1, 16, 24) and made.recipe["parameters"]["size"] == "24x16"
    assert sample(model, n=1, steps=2, size="16").recipe["parameters"]["size"] == 16
    assert torch.equal(sample(model, n=1, steps=2, size=(8, 8)).images, sample(model, n=1, steps=2).images)


@pytest.mark.parametrize("size", ["", "x", "8x", "0x8", (8,), (8, 8, 8), (8.0, 8), "8x8x8", -8, [0, 8]])
def test_sizes_that_are_none(model, size):
    with pytest.raises(InputError, match='size must be a whole number of at least 1, "WIDTHxHEIGHT" or'):
        sample(model, size=size)
    with pytest.raises(InputError, match="divide by 2, got 9x8"):
        sample(Model(gaussian, (1, 4, 4), autoencoder=Halves()), size="9x8")


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 4)])
def test_samples_of_any_number_of_axes(shape):
    images = sample(Model(gaussian, shape, sigma_data=1.0), n=8, steps=20).images
    assert images.shape == (8, *shape) and images.std() > 0.3
    assert (images.abs().max() > 1) == (len(shape) < 3)  # images end at 1, other samples where they are


class Texts:
    """A conditioner that says by numbers what it was asked for, the images' size included."""

    max_tokens = None

    def encode(self, prompts, size=None):
        return Cond(pooled=torch.tensor([[float(len(text)), *map(float, size)] for text in prompts]))

    def null(self, n, size=None):
        return Cond(pooled=torch.tensor([[-1.0, *map(float, size)]] * n))

    def token_spans(self, text):
        return []

    def unknown_words(self, text):
        return ["blue"] if "blue" in text else []


def test_what_a_model_takes_for_no_prompt_is_its_conditioners_business():
    """Without a prompt every row is the null condition. Guidance compares with it, or with a negative prompt."""
    conds = []

    def denoise(x, sigma, cond=None):
        conds.append(cond.pooled.tolist())
        return torch.zeros_like(x) + cond.pooled[:, :1, None, None]

    model = Model(denoise, (1, 4, 4), conditioner=Texts(), scale=3.0)
    sample(model, n=2, steps=1)
    assert conds.pop() == [[-1.0, 4.0, 4.0]] * 2
    made = sample(model, "abc", n=2, steps=1, size="8x4")
    assert sorted(conds.pop()) == [[-1.0, 4.0, 8.0]] * 2 + [[3.0, 4.0, 8.0]] * 2
    assert made.recipe["parameters"]["scale"] == 3.0  # the model's own
    sample(model, "abc", n=1, steps=1, negative_prompt="ab")
    assert sorted(conds.pop()) == [[2.0, 4.0, 4.0], [3.0, 4.0, 4.0]]
    with pytest.warns(UserWarning, match="not trained on blue"):
        sample(model, "a blue cat", n=1, steps=1)


def test_images_show_themselves(model):
    samples = sample(model, n=3, steps=1)
    assert samples._repr_png_().startswith(b"\x89PNG")
    assert samples.grid(columns=3).size == (3 * 66 + 2, 66 + 2)
    assert samples.grid(columns=3, labels=True).height > samples.grid(columns=3).height
    assert len(samples[1:]) == 2
    assert samples[1:].seeds == (1, 2)


@pytest.mark.parametrize(("options", "match"), [
    ({"n": 0}, "n must be"), ({"steps": 0}, "steps must be"), ({"steps": 2.5}, "steps must be"), ({"size": 0}, "size"),
    ({"batch_size": 0}, "batch_size"), ({"sampler": "eulr"}, "Did you mean 'euler'"), ({"seed": 1.5}, "seed must"),
    ({"schedule": "kerras"}, "Did you mean 'karras'"), ({"scale": float("nan")}, "scale must be finite"),
    ({"variation_strength": 2}, "from 0 to 1"), ({"classes": 3}, "0 to 2"), ({"n": 10**12}, "too many"),
])  # fmt: skip
def test_bad_input(model, options, match):
    with pytest.raises(InputError, match=match):
        sample(model, **options)


def test_a_model_that_makes_nan(model):
    broken = Model(Denoiser(nets.build(nets_spec(model))), (1, 8, 8))
    with torch.no_grad():
        next(models.native_denoiser(broken).parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        sample(broken, n=1, steps=1)


def nets_spec(model: Model) -> dict:
    return {**models.spec(model)["net"], "classes": 0}


def test_reproduce_refuses_what_it_cannot_follow(folder, model, tmp_path):
    samples = sample(model, n=1, steps=1)
    recipe = samples.recipe_of(0)

    def refused(match: str, error: type[Exception] = DataError, **changes):
        save_png(samples.images[0], tmp_path / "x.png", {**recipe, **changes})
        with pytest.raises(error, match=match):
            reproduce(tmp_path / "x.png", model)

    refused("newer fastdiffusion", recipe=99)
    refused("was made by 'paint'", verb="paint")
    refused("cannot be followed", index="x")
    refused("cannot be followed", index=5)
    refused("cannot be followed", table={"rows": []})
    refused("cannot be followed", parameters={"n": 1, "stops": 3})
    refused("cannot be followed", parameters=[])
    refused("cannot be followed", parameters={"n": -1})
    refused("another model", CheckpointError, model={"name": "pets", "sha256": "0" * 64})
    save_png(samples.images[0], tmp_path / "y.png", {**recipe, "model": {"name": "../../etc/passwd", "sha256": "0"}})
    with pytest.raises(CheckpointError, match="--model"):
        reproduce(tmp_path / "y.png")
    save_png(samples.images[0], tmp_path / "z.png", None)
    with pytest.raises(DataError, match="no recipe"):
        reproduce(tmp_path / "z.png")


def test_the_hash_is_of_what_decides_the_images(model):
    assert model.id == model.with_table(5, model.table(5)).id
    assert model.id != Model(models.native_denoiser(model), (1, 8, 8), ("cat", "dog", "8")).id
