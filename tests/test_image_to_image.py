"""Image to image, inpainting and outpainting: what is kept is kept to the pixel, and one strength means one level."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from fastdiffusion import nets, samplers, schedules
from fastdiffusion.cli import main
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import inpaint
from fastdiffusion.io.images import read_image, read_recipe, to_tensor
from fastdiffusion.models import Model, save
from fastdiffusion.nets.autoencoders import KL
from fastdiffusion.tasks.generation.canvas import canvas
from fastdiffusion.tasks.generation.recipe import reproduce
from fastdiffusion.tasks.generation.sample import sample

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

NET = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}
SIDE = 64


def stirred(net: torch.nn.Module) -> torch.nn.Module:
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def pixel_model() -> Model:
    torch.manual_seed(0)
    return Model(Denoiser(stirred(nets.build({**NET, "in_channels": 3, "out_channels": 3}))), (3, SIDE, SIDE))


def latent_model() -> Model:
    torch.manual_seed(0)
    autoencoder = stirred(KL(channels=3, latent=4, width=8, multiples=[1, 1], blocks=1))
    net = nets.build({**NET, "in_channels": 4, "out_channels": 4})
    side = SIDE // autoencoder.factor
    return Model(Denoiser(stirred(net)), (4, side, side), autoencoder=autoencoder)


OWN = {"pixels": pixel_model, "latents": latent_model}
FILMS = {"wan"}  # families of films, which start from no single image


@pytest.fixture(scope="module", params=[*OWN, *sorted(FAMILIES.keys() - FILMS)])
def model(request) -> Model:
    return OWN[request.param]() if request.param in OWN else get(request.param).model


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """An image, masks of it, and what is no mask of it."""
    where = tmp_path_factory.mktemp("files")
    pictures.photo(SIDE, SIDE).save(where / "in.png")
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((10, 20, 37, 51), fill=255)
    mask.save(where / "mask.png")
    mask.filter(ImageFilter.GaussianBlur(3)).save(where / "soft.png")
    Image.new("L", (SIDE, SIDE)).save(where / "empty.png")
    mask.resize((32, 32)).save(where / "small.png")
    return where


def images(model: Model, **options) -> torch.Tensor:
    prompt = None if model.conditioner is None else "a cat"
    size = None if "outpaint" in options else SIDE
    return sample(model, prompt, **{"n": 1, "steps": 2, "scale": 1.0, "size": size, **options}).images


def pixels(images: torch.Tensor) -> np.ndarray:
    return ((images + 1) * 127.5).round().numpy()


def test_strength_0_is_the_limit_of_small_ones(model, files):
    """An autoencoder's copy of the image would be another image, and of six in a row the colors are off."""
    given = to_tensor(read_image(files / "in.png"))
    made = images(model, image=files / "in.png", strength=1e-4)[0]
    assert float((made - given).abs().mean()) < 0.01


def test_strength_0_is_the_input_and_1_is_sampling_from_noise(model, files):
    given = to_tensor(read_image(files / "in.png"))
    assert torch.equal(images(model, image=files / "in.png", strength=0)[0], given)
    assert torch.equal(images(model, image=files / "in.png", strength=1), images(model))
    half = images(model, image=files / "in.png", strength=0.5)
    assert torch.equal(half, images(model, image=files / "in.png")), "0.5 is the default, and runs repeat to the byte"
    assert not torch.equal(half, images(model)) and half.isfinite().all()


def test_inpainting_keeps_pixels_exactly(model, files):
    given, mask = (np.asarray(Image.open(files / name)).astype(float) for name in ("in.png", "mask.png"))
    made = images(model, image=files / "in.png", mask=files / "mask.png")
    change = np.abs(pixels(made)[0].transpose(1, 2, 0) - given).max(-1)
    assert change[mask == 0].max() == 0 and np.mean(change[mask == 255] > 0) > 0.9
    assert torch.equal(made, images(model, image=files / "in.png", mask=files / "mask.png", strength=1))
    spec = f"inpaint {files / 'in.png'} {files / 'mask.png'}"
    assert torch.equal(made, images(model, guidance=spec)), "two spellings of one thing"
    weaker = images(model, image=files / "in.png", mask=files / "mask.png", strength=0.3)
    assert np.abs(pixels(weaker)[0].transpose(1, 2, 0) - given).max(-1)[mask == 0].max() == 0
    assert not torch.equal(weaker, made)


def test_outpainting_keeps_the_image_exactly(model, files):
    given = to_tensor(read_image(files / "in.png"))
    made = images(model, image=files / "in.png", outpaint="16,0,32,16")[0]
    assert made.shape == (3, SIDE + 16, SIDE + 48)
    assert np.array_equal(pixels(made[:, :SIDE, 16 : 16 + SIDE]), pixels(given))
    assert not torch.equal(made[:, :SIDE, :16], made[:, :SIDE, :1].expand(3, SIDE, 16)), "drawn, not repeated"


@pytest.mark.parametrize("size", [(61, 43), (33, 64)])
def test_sizes_that_do_not_divide_are_those_of_the_image(model, tmp_path, size):
    """Padded for the run and cropped again: what is kept is kept to the pixel, up to the edges."""
    height, width = size
    given = pictures.photo(width, height)
    mask = Image.new("L", given.size)
    ImageDraw.Draw(mask).rectangle((width - 20, 5, width, height - 9), fill=255)
    for name, image in (("in.png", given), ("mask.png", mask)):
        image.save(tmp_path / name)
    wanted = {"image": tmp_path / "in.png", "size": size}
    assert torch.equal(images(model, **wanted, strength=0)[0], to_tensor(given))
    assert images(model, **wanted).shape[-2:] == size
    made = images(model, **wanted, mask=tmp_path / "mask.png")
    assert made.shape[-2:] == size
    change, kept = np.abs(pixels(made)[0].transpose(1, 2, 0) - np.asarray(given)).max(-1), np.asarray(mask) == 0
    assert change[kept].max() == 0 and np.mean(change[~kept] > 0) > 0.9
    spec = f"inpaint {tmp_path / 'in.png'} {tmp_path / 'mask.png'}"
    assert torch.equal(images(model, **wanted, guidance=spec, strength=1)[0][:, kept], made[0][:, kept])
    grown = images(model, image=tmp_path / "in.png", outpaint="5,0,3,1")[0]
    assert grown.shape == (3, height + 1, width + 8)
    assert np.array_equal(pixels(grown[:, :height, 5 : 5 + width]), pixels(to_tensor(given)))


def test_what_is_added_for_a_run_is_mirrored_with_its_mask():
    """An object at the edge that is drawn anew would else be known from its mirror image."""
    given, mask = Image.new("RGB", (5, 3), "white"), Image.new("L", (5, 3))
    given.paste("red", (4, 0, 5, 3)), mask.paste(255, (3, 0, 5, 3))
    made = canvas(given, (3, 3, 5), mask, step=8)
    assert made.image.shape == (3, 8, 8) and made.crop(made.image).shape == (3, 3, 5)
    known = made.image[:, made.mask[0] == 0]
    assert made.mask[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0] and float(known.min()) == 1, "no red is known"
    assert canvas(Image.new("L", (1, 9)), (1, 9, 1), step=4).image.shape == (1, 12, 4)


# ---- what holds whatever the model ------------------------------------------------------------------------------


def gaussian(x, sigma, cond=None):
    """The exact denoiser of data that are unit normal."""
    return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_gray_mask_is_a_strength(k):
    """A pixel of mask m comes out as from image to image of strength m, if a level of the table is m's."""
    table = samplers.table("euler", schedules.karras(6, 0.02, 20.0))
    level = table.sigmas[k]
    image, noise = torch.randn(1, 1, 4, 4), torch.randn(2, 1, 4, 4)
    mask = torch.full((1, 1, 4, 4), level / (1 + level) + 1e-7)
    guided = inpaint(gaussian, image, mask, sigma_data=1.0)
    whole = samplers.final(samplers.run(guided, image + table.sigmas[0] * noise, table))
    shorter = samplers.table("euler", table.sigmas[k:])
    torch.testing.assert_close(
        whole, samplers.final(samplers.run(gaussian, image + level * noise, shorter)), atol=1e-5, rtol=1e-5
    )


def test_soft_edges_leave_the_image_little_by_little():
    """The grayer a pixel of the mask, the farther it goes from the image; black does not move."""
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    image, noise = torch.full((1, 1, 8, 8), 0.8), torch.randn(512, 1, 8, 8)
    table = samplers.table("dpmpp_2m", schedules.karras(30, 0.002, 80.0))
    made = samplers.final(samplers.run(inpaint(gaussian, image, ramp, 1.0), image + 80.0 * noise, table))
    distance = (made - image).square().mean((0, 1, 2))
    assert distance[0] == 0 and bool((distance.diff() > 0).all())


def test_the_canvas_continues_the_edges():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    made = canvas(image, (1, 6, 7), None, (1, 2, 2, 1))
    values = ((made.image[0] + 1) * 127.5).round().int()
    assert values[2:5, 1:5].tolist() == [[0, 20, 40, 60], [80, 100, 120, 140], [160, 180, 200, 220]]
    assert values[0].tolist() == [0, 0, 20, 40, 60, 60, 60] and values[5].tolist() == [
        160,
        160,
        180,
        200,
        220,
        220,
        220,
    ]
    assert made.mask is not None and made.mask.sum() == 6 * 7 - 12 and not made.mask[0, 2:5, 1:5].any()
    assert made.latent_mask(1).shape == (1, 1, 6, 7) and made.notes == ()


def test_a_mask_and_borders_go_together(files):
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 16, 16))
    made = canvas(Image.open(files / "in.png"), (3, SIDE, SIDE + 8), mask, (8, 0, 0, 0))
    assert made.mask is not None and made.mask.sum() == 64 + 8 * SIDE and made.mask[..., :8].all()
    latents = made.latent_mask(8)[0, 0]
    assert latents.sum() == SIDE // 8 + 1 and latents[1, 2] == 1, "touched is drawn"


def test_images_that_do_not_fit_are_scaled_together_and_it_is_said(files):
    model = pixel_model()
    pictures.photo(128, 96).save(files / "large.png")
    mask = Image.new("L", (128, 96))
    mask.paste(255, (0, 0, 64, 96))
    mask.save(files / "large-mask.png")
    with pytest.warns(UserWarning, match="scaled and cropped from 128x96 to 64x64"):
        made = sample(model, n=1, steps=1, image=files / "large.png", mask=files / "large-mask.png")
    assert made.notes == ("The image was scaled and cropped from 128x96 to 64x64 pixels.",)
    with pytest.warns(UserWarning, match="scaled from 128x160 to 64x80"):
        made = sample(model, n=1, steps=1, image=files / "large.png", outpaint=(0, 64, 0, 0), size="64x80")
    assert made.images.shape == (1, 3, 80, 64)
    old = canvas(Image.open(files / "large.png"), (3, 80, 64), None, (0, 64, 0, 0)).image
    assert torch.equal(made.images[0, :, 34:], old[:, 34:]), "a row at the soft edge aside"


def test_recipes_name_the_mask_by_content(files, tmp_path):
    save(pixel_model(), files / "model.safetensors")
    options = {"image": files / "in.png", "mask": files / "soft.png", "outpaint": "0,0,8,0"}
    made = sample(files / "model.safetensors", n=2, steps=2, strength=0.8, **options)
    path = made.save(files / "made")[1]
    recipe = read_recipe(path)["parameters"]
    assert recipe["mask"].startswith("soft.png@") and recipe["outpaint"] == "0,0,8,0" and str(files) not in str(recipe)
    (copy,) = reproduce(path).save(tmp_path)
    assert copy.read_bytes() == path.read_bytes()


BAD = {
    "an empty mask": (["--mask", "empty.png"], "marks nothing"),
    "another size": (["--mask", "small.png"], "The mask has 32x32 pixels and the image 64x64"),
    "no mask": (["--mask", "none.png"], "There is no file 'none.png'"),
    "three sides": (["--outpaint", "1,2,3"], "left, top, right and bottom, got '1,2,3'"),
    "no side": (["--outpaint", "0,0,0,0"], "Example: outpaint='0,0,64,0'"),
    "a negative side": (["--outpaint", "0,0,0,-8"], "Example: outpaint='0,0,64,0'"),
    "what does not divide, on a torus": (
        ["--outpaint", "5,0,0,0", "--seamless", "x"],
        "divide by .*, got 69x64. Nearest is ",
    ),
    "a square kilometer": (
        ["--outpaint", "0,999,999999,0", "--size", "64"],
        "With what is added the image has 1063 mega",
    ),
    "a strength": (["--strength", "1.5"], "strength must be from 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(files, case, monkeypatch, capsys):
    monkeypatch.chdir(files)
    if not Path("latent.safetensors").exists():
        save(latent_model(), Path("latent.safetensors"))
    options, sentence = BAD[case]
    assert main(["sample", "latent.safetensors", "-n", "1", "--image", "in.png", *options, "-o", "bad"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and not Path("bad").exists()
    assert re.search(sentence, told), told


@pytest.mark.parametrize("option", [{"mask": "mask.png"}, {"outpaint": "0,0,8,0"}])
def test_what_changes_an_image_needs_one(option):
    with pytest.raises(InputError, match="there is none"):
        sample(pixel_model(), n=1, steps=1, **option)


@pytest.mark.parametrize("name", sorted(FILMS))
def test_a_model_of_films_starts_from_no_image(files, name):
    with pytest.raises(InputError, match="makes no single images"):
        sample(get(name).model, "a cat", n=1, steps=1, size=64, image=files / "in.png")


FOREIGN = {
    "a size": (["--size", "64x72"], "divide by 16, got 64x72. Nearest is 64x80"),
    "a mask": (["--image", "in.png", "--mask", "none.png"], "There is no file 'none.png'"),
    "a mask alone": (["--mask", "mask.png"], "there is none. Give it"),
    "a class": (["--classes", "3"], "without classes"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_bad_input_for_a_foreign_model(files, case, monkeypatch, capsys):
    monkeypatch.chdir(files)
    options, sentence = FOREIGN[case]
    prompt = [] if case == "a class" else ["a cat"]
    assert main(["sample", str(get("flux").path), *prompt, "-n", "1", *options, "-o", "bad", "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err and not Path("bad").exists()
