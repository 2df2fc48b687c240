"""Guidance in words and pictures to start from: they do what the functions do, and recipes bring them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastdiffusion import guidance, models, nets
from fastdiffusion.data import oracles
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, FastdiffusionError, InputError
from fastdiffusion.io.images import read_image, read_recipe, save_png, to_tensor
from fastdiffusion.models import Model, save
from fastdiffusion.nets.classifier import Classifier
from fastdiffusion.tasks.classification import train as classification
from fastdiffusion.tasks.evaluation.study import study
from fastdiffusion.tasks.generation.guidance_spec import WRITTEN
from fastdiffusion.tasks.generation.recipe import reproduce, reproduce_file
from fastdiffusion.tasks.generation.sample import sample, sample_steps

CLASSES = ("cat", "dog", "7")
NET = {"width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}


def made(seed: int) -> Model:
    torch.manual_seed(seed)
    net = nets.build({"name": "unet", **NET, "in_channels": 1, "out_channels": 1, "classes": 3})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Model(Denoiser(net), (1, 8, 8), classes=CLASSES)


@pytest.fixture(scope="module")
def model() -> Model:
    return made(0)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A model, a weaker one, classifiers, a photograph and a mask."""
    where = tmp_path_factory.mktemp("files")
    save(model, where / "pets.safetensors")
    save(made(1), where / "weak.safetensors")
    torch.manual_seed(2)
    reader = Classifier.from_denoiser(models.native_denoiser(model), 3)
    for net, name in ((reader, "reader"), (Classifier({**NET, "in_channels": 1}, 3), "judge")):
        for p in net.head.parameters():
            torch.nn.init.normal_(p, std=0.3)
        classification.save(net, where / f"{name}.safetensors")
    save_png(torch.linspace(-1, 1, 64).reshape(1, 8, 8), where / "my photo.png", {"verb": "drawn"})
    save_png(torch.cat([torch.full((1, 8, 4), -1.0), torch.ones(1, 8, 4)], 2), where / "mask.png")
    return where


def words(folder) -> dict[str, str]:
    return {
        "cfg": "cfg scale=3 interval=0.3..5 rescale=0.7",
        "apg": "apg scale=4 norm=2.5",
        "cfg_zero": "cfg_zero scale=3",
        "cads": "cads noise=1",
        "negative": "negative dog scale=2",
        "autoguidance": f"autoguidance {folder}/weak.safetensors scale=2",
        "classifier": f"classifier {folder}/judge.safetensors scale=2",
        "feature_guidance": f"feature_guidance {folder}/reader.safetensors scale=2",
        "inpaint": f"inpaint '{folder}/my photo.png' {folder}/mask.png",
    }


@pytest.mark.parametrize(
    "name", sorted(WRITTEN.keys() - {"clip", "cads"})
)  # test_clip; test_guidance_words, with prompts
def test_every_guide_guides_and_comes_back(name, folder, tmp_path):
    text = words(folder)[name]
    samples = sample(folder / "pets.safetensors", n=3, classes="cat", steps=3, guidance=text)
    assert not torch.equal(samples.images, sample(folder / "pets.safetensors", n=3, classes="cat", steps=3).images)
    path = samples.save(folder, name)[1]
    recipe = read_recipe(path)["parameters"]["guidance"]
    assert str(folder) not in recipe and "/" not in recipe
    (copy,) = reproduce(path).save(tmp_path, name)
    assert copy.read_bytes() == path.read_bytes()


def test_recipes_of_the_first_version_come_back(folder, tmp_path):
    old, new = (f"{name} {folder}/reader.safetensors scale=2" for name in ("middle", "feature_guidance"))
    options = {"n": 1, "classes": "cat", "steps": 2}
    first, second = (sample(folder / "pets.safetensors", guidance=text, **options) for text in (old, new))
    assert torch.equal(first.images, second.images)
    (path,) = first.save(folder, "first")
    (copy,) = reproduce(path).save(tmp_path)
    assert copy.read_bytes() == path.read_bytes()


def test_words_are_the_functions(model, folder):
    picture = to_tensor(read_image(folder / "my photo.png"))[None]
    mask = (to_tensor(read_image(folder / "mask.png"))[None] + 1) / 2

    def by_hand(denoise):
        guided = guidance.cfg(denoise, 3.0, model.cond(["dog"]), interval=(0.3, 5.0))
        return guidance.inpaint(guided, picture, mask)

    options = {"n": 2, "classes": "cat", "steps": 4}
    text = f"negative dog scale=3 interval=.3..5 >> {words(folder)['inpaint']}"
    spoken = sample(model, guidance=text, **options)
    assert torch.equal(spoken.images, sample(model, guidance=by_hand, **options).images)
    assert torch.equal(spoken.images, sample(model, guidance=text.split(" >> "), **options).images)
    torch.testing.assert_close(spoken.images[:, :, :, :4], picture.expand(2, 1, 8, 8)[..., :4])
    short = sample(model, scale=2.0, **options).images
    assert torch.equal(short, sample(model, guidance="cfg scale=2", **options).images)


def test_a_study_takes_guides(model):
    result = study(model, {"guidance": ["cfg scale=2", "apg scale=2"]}, n=2, steps=2, classes="cat")
    for text in ("cfg scale=2", "apg scale=2"):
        alone = sample(model, n=2, classes="cat", steps=2, guidance=text)
        assert torch.equal(result[{"guidance": text}].images, alone.images)


@pytest.mark.parametrize(("guidance", "match"), [
    ("cgf scale=3", "No guidance named 'cgf'. Did you mean 'cfg'"),
    ("cfg", "cfg needs its scale. Example: cfg scale=3"),
    ("cfg scale=x", "scale of cfg cannot be 'x'"), ("cfg scale=nan", "cannot be 'nan'"),
    ("cfg scale=2 scale=3", "given twice"), ("cfg scale=3 resale=1", "Did you mean 'rescale'"),
    ("cfg scale=3 interval=5..0.3", "interval of cfg cannot be '5..0.3'"),
    ("cfg scale=3 interval=2", "interval of cfg cannot be '2'"), ("cfg 3", "No option of cfg named '3'"),
    ("cfg scale=3 >>", "A guidance is missing"), ("", "A guidance is missing"),
    ("inpaint a.png", "There is no file 'a.png'"),
    ("inpaint", "inpaint needs its image and mask"), ("negative dgo scale=2", "No class named 'dgo'. Did you mean"),
    ("negative 'dog", "without its other half"), ("autoguidance nowhere scale=2", "There is no file 'nowhere'"),
])  # fmt: skip
def test_wrong_words_are_told(model, guidance, match):
    with pytest.raises(FastdiffusionError, match=match):
        sample(model, n=1, steps=1, guidance=guidance)


def test_wrong_files_are_told(model, folder, tmp_path):
    for name in ("weak", "reader"):
        with pytest.raises(FastdiffusionError):
            sample(model, n=1, steps=1, guidance=f"inpaint {folder}/{name}.safetensors {folder}/mask.png")
    with pytest.raises(InputError, match="does not read the middle"):
        sample(model, n=1, classes="cat", steps=1, guidance=f"middle {folder}/judge.safetensors")
    small = Model(Denoiser(nets.build({"name": "unet", **NET, "in_channels": 1, "out_channels": 1})), (1, 8, 8))
    save(small, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match="other images or has other classes"):
        sample(model, n=1, steps=1, guidance=f"autoguidance {tmp_path}/small.safetensors scale=2")
    with pytest.raises(InputError, match="would both guide by the label"):
        sample(model, n=1, steps=1, scale=2, guidance="cfg scale=3")


def test_a_recipe_names_files_by_content(model, folder, tmp_path):
    """A file of the same name is not enough, a path in a recipe is never followed, a function cannot be kept."""
    (path,) = sample(model, n=1, classes="cat", steps=1, image=folder / "my photo.png", strength=0.3).save(tmp_path)
    with pytest.raises(DataError, match="which is not near it"):
        reproduce(path, model)
    save_png(torch.zeros(1, 8, 8), tmp_path / "my photo.png")
    with pytest.raises(CheckpointError, match="other contents"):
        reproduce(path, model)
    recipe = read_recipe(path)
    for word in (str(folder / "my photo.png"), "/etc/passwd", f"../{folder.name}/my photo.png@{'0' * 64}"):
        changed = {**recipe, "parameters": {**recipe["parameters"], "image": word}}
        save_png(torch.zeros(1, 8, 8), tmp_path / "other.png", json.loads(json.dumps(changed)))
        with pytest.raises(FastdiffusionError):
            reproduce(tmp_path / "other.png", model)
    (path,) = sample(model, n=1, steps=1, guidance=lambda denoise: denoise).save(tmp_path)
    with pytest.raises(DataError, match="a Python function, which no recipe can hold"):
        reproduce(path, model)


# ---- a picture to start from (fault 8 of the peers: int(n * strength), noise added at t + 1 and removed from t) ---


def test_strength_0_is_the_picture(model, folder):
    samples = sample(model, n=2, steps=10, image=folder / "my photo.png", strength=0)
    assert all(torch.equal(image, to_tensor(read_image(folder / "my photo.png"))) for image in samples.images)
    path = samples.save(folder, "kept")[0]
    assert read_image(path).tobytes() == read_image(folder / "my photo.png").tobytes()
    assert torch.equal(reproduce(path, model).images[0], samples.images[0])


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("strength", [1e-4, 0.05, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("sampler", [None, "euler_ancestral"])
def test_n_calls_asked_are_n_calls_made(model, folder, steps, strength, sampler):
    run = sample_steps(model, n=1, steps=steps, image=folder / "my photo.png", strength=strength, sampler=sampler)
    seen = [step.sigma for step in run]
    assert len(seen) == steps
    assert seen[0] == pytest.approx(min(0.5 * strength / max(1 - strength, 1e-9), 80.0))


def test_the_noise_that_is_added_is_the_noise_that_is_removed(folder):
    """A model that knows the picture gives it back from any strength; a Gaussian's posterior is exact."""
    seen = []

    class Perfect(torch.nn.Module):
        sigma_data, self_condition, parameterization, picture = 0.5, False, "edm", 0
        net = torch.nn.Identity()

        def forward(self, x, sigma, cond=None):
            seen.append(((x - x0) / sigma.reshape(-1, 1, 1, 1)).std().item())
            return x0.expand_as(x)

    x0 = to_tensor(read_image(folder / "my photo.png"))
    perfect = Model(Perfect(), (1, 8, 8))  # type: ignore[arg-type]
    *_, last = sample_steps(perfect, n=64, steps=5, image=folder / "my photo.png", strength=0.6, batch_size=64)
    torch.testing.assert_close(last.images, x0.expand(64, 1, 8, 8), atol=1e-5, rtol=0)
    assert seen == pytest.approx([1.0] * 5, abs=0.05)


def test_pictures_leave_the_input_as_strength_grows(folder):
    """With the exact denoiser of Gaussian data, the distance from the input grows with the strength to that of data."""

    class Exact(torch.nn.Module):
        sigma_data, self_condition, parameterization, picture = 0.5, False, "edm", 0
        net = torch.nn.Identity()

        def forward(self, x, sigma, cond=None):
            return oracle(x.flatten(1), sigma).reshape(x.shape)

    oracle = oracles.Gaussian(torch.zeros(64), torch.eye(64), torch.full((64,), 0.5))
    exact, x0 = Model(Exact(), (1, 8, 8)), to_tensor(read_image(folder / "my photo.png"))  # type: ignore[arg-type]
    distances = []
    for strength in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0):
        *_, last = sample_steps(exact, n=64, steps=20, image=folder / "my photo.png", strength=strength, batch_size=64)
        distances.append(float((last.images - x0).square().mean().sqrt()))
    assert distances == sorted(distances) and distances[0] == 0
    assert distances[-1] == pytest.approx((0.25 + float(x0.square().mean())) ** 0.5, rel=0.03)


def test_any_size_and_mode_of_picture(model, folder, tmp_path):
    from PIL import Image

    large = Image.new("RGBA", (40, 20), (255, 0, 0, 128))
    large.save(tmp_path / "large.webp")
    assert len(sample(model, n=1, steps=1, image=tmp_path / "large.webp")) == 1
    assert len(sample(model, n=1, steps=1, image=large, size=12)) == 1
    with pytest.raises(DataError, match="There is no file"):
        sample(model, n=1, image=tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"Cannot read the image 'text.png': not an image"):
        sample(model, n=1, image=tmp_path / "text.png")
    with pytest.raises(InputError, match="strength must be from 0 to 1"):
        sample(model, n=1, image=large, strength=1.5)


# ---- forms of the recipe -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "webp"])
@pytest.mark.parametrize("inside", [True, False])
def test_every_form_comes_back_to_the_byte(folder, tmp_path, form, inside):
    samples = sample(folder / "pets.safetensors", n=2, classes="cat", steps=2)
    path = samples.save(folder / "forms", f"{form}-{inside}", metadata=inside, format=form, sidecar=not inside)[1]
    assert path.with_suffix(".json").exists() != inside
    reproduce_file(path, tmp_path / f"copy.{form}", folder / "pets.safetensors")
    assert (tmp_path / f"copy.{form}").read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="No format named 'gif'"):
        samples.save(tmp_path, format="gif")


def test_a_picture_of_another_program_is_told(model, tmp_path):
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, Seed: 1, Model: sd15")
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=text)
    with pytest.raises(DataError, match=r"made by AUTOMATIC1111.*model 'sd15', prompt 'a cat'.*seed '1'"):
        reproduce(tmp_path / "theirs.png", model)


def test_the_page_shows_every_guide():
    page = (Path(__file__).parents[1] / "docs" / "guidance.md").read_text()
    assert all(f"`{entry.example}`" in page for name, entry in WRITTEN.items() if name != "clip")
    assert "`clip`" in page
