"""What says that a program made an image: a tag in its file, a mark in its pixels; and a checker before it is shown."""

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiffusion
from fastdiffusion import data, sample
from fastdiffusion.cli import main
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.io import mark, provenance
from fastdiffusion.io.images import read_image, read_recipe, save_png, to_pil, to_tensor, to_uint8
from fastdiffusion.io.metadata import COMPOSITE, ENHANCED, MADE, MIXED, source_type

ENDS = ("png", "webp", "jpg")


@pytest.fixture(scope="module")
def emoji():
    scenes = data.load("emoji-scenes")
    return to_tensor(scenes.batch(list(range(0, 6000, 500))).images)


@pytest.fixture(scope="module")
def made():
    return sample("a red heart", n=3, steps=4, seed=1)


def photograph(side):
    """Texture whose spectrum falls as photographs' do, with an edge."""
    f = torch.fft.rfftfreq(side)[None] ** 2 + torch.fft.fftfreq(side)[:, None] ** 2
    waves = torch.fft.rfft2(torch.randn(3, side, side, generator=torch.Generator().manual_seed(side)))
    x = torch.fft.irfft2(waves / (f.sqrt() + 1 / side), s=(side, side))
    x[:, :, side // 2 :] += 2 * x.std()
    return (x / x.abs().max())[None]


def jpeg(image, quality):
    buffer = io.BytesIO()
    to_pil(image).convert("RGB").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def scaled(image, factor):
    pil = to_pil(image)
    return pil.resize((round(pil.width * factor), round(pil.height * factor)), Image.Resampling.BICUBIC)


# ---- the mark ---------------------------------------------------------------------------------------------------


def test_marked_images_are_found_after_jpeg_and_scaling_and_others_are_not(emoji):
    marked = mark.mark(emoji)
    assert not any(mark.is_marked(image) for image in emoji)
    for image in marked:
        for seen in (image, jpeg(image, 75), jpeg(image, 90), scaled(image, 2 / 3), scaled(image, 1.5)):
            assert mark.is_marked(seen)
        assert not mark.is_marked(image, key="another")
    assert torch.equal(marked, mark.mark(emoji)) and marked.shape == emoji.shape
    assert torch.equal(marked, to_tensor(to_uint8(marked)))  # a file keeps it as it is


@pytest.mark.parametrize("side", [128, 256, 512])
def test_the_larger_an_image_the_less_it_is_changed(side):
    image = photograph(side)
    (marked,) = mark.mark(image)
    for seen in (jpeg(marked, 75), scaled(marked, 2 / 3), scaled(marked, 1.3)):
        assert mark.is_marked(seen)
    assert not mark.is_marked(image[0])
    before, after = (torch.from_numpy(np.array(to_pil(x))) for x in (image[0], marked))
    assert mark.psnr(before, after) > 40


def test_alpha_and_gray_and_images_without_room(emoji):
    rgba = torch.cat([emoji[:1], torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)], 1)
    assert torch.equal(mark.mark(rgba)[:, 3], torch.from_numpy(np.array(to_pil(rgba[0])))[None, ..., 3] / 127.5 - 1)
    gray = mark.mark(photograph(128)[:, :1])
    assert gray.shape[1] == 1 and mark.is_marked(gray[0])
    small = torch.zeros(1, 3, 16, 16)
    assert torch.equal(mark.mark(small), small)


def test_what_is_not_marked_stands_out_no_more_than_chance(emoji):
    """Of keys that were not used: the standard deviation is that of a unit normal, or less."""
    values = torch.tensor([mark.found(image, f"key {k}") for image in emoji for k in range(8)])
    assert values.abs().max() < 4.5 and values.std() < 1.2


# ---- the tag ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_the_tag_is_in_every_kind_of_file(made, end, tmp_path):
    path = tmp_path / f"heart.{end}"
    save_png(made.images[0], path, made.recipe_of(0))
    assert provenance.read_provenance(path) == {"digital_source_type": "trainedAlgorithmicMedia"}
    assert b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia" in path.read_bytes()
    info = Image.open(path).info
    packet = ElementTree.fromstring(info.get("xmp") or info["XML:com.adobe.xmp"])
    (said,) = packet.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert said.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert read_recipe(path)["verb"] == "sample"
    save_png(made.images[0], path, None)
    with pytest.raises(DataError, match="carries no recipe"):
        provenance.read_all(path)


def test_the_tag_says_no_more_than_is_true():
    def kind(verb, **rest):
        return source_type({"verb": verb, **rest})

    assert kind("sample", parameters={"prompt": "a"}) == MADE
    assert kind("sample", parameters={"image": "photo.png@1"}) == MIXED
    assert kind("sample", parameters={"guidance": "inpaint a b"}) == MIXED
    assert kind("edit", parameters={"image": "photo.png"}) == MIXED != kind("edit", parameters={"image": None})
    assert kind("restore", corruption="blur 2 + noise 5") == ENHANCED
    assert kind("restore", corruption="mask hole.png") == MIXED
    assert kind("stylize", parameters={"method": "patches"}) == kind("rearrange") == COMPOSITE
    assert {kind("stylize", parameters={"method": m}) for m in ("features", "net", "model")} == {MIXED}
    assert kind("evaluate") is None and source_type({"made_by": "ComfyUI"}) is None


# ---- sample, recipe, reproduce ------------------------------------------------------------------------------------


def test_a_marked_sample_is_read_and_reproduced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "a red heart", "-n", "1", "--steps", "4", "--mark", "-o", "heart.png"]) == 0
    capsys.readouterr()
    assert main(["recipe", "heart.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["mark"] is True
    assert found["provenance"]["digital_source_type"] == "trainedAlgorithmicMedia"
    assert found["provenance"]["mark"] > mark.FOUND
    assert main(["reproduce", "heart.png"]) == 0 and "the same bytes" in capsys.readouterr().out
    jpeg(to_tensor(read_image("heart.png")), 75).save("bare.jpg", quality=75)  # another program's copy
    assert main(["recipe", "bare.jpg"]) == 0
    assert set(json.loads(capsys.readouterr().out)["provenance"]) == {"mark"}


def test_what_has_no_room_for_a_mark_says_so():
    with pytest.raises(InputError, match="at least 32 pixels"):
        fastdiffusion.sample("a red heart", n=1, steps=4, size=16, mark=True)


# ---- a checker --------------------------------------------------------------------------------------------------


def reddest(images):
    """Stands for somebody's checker: flags the image with the most red."""
    red = images[:, 0].mean((1, 2))
    return [bool(value == red.max()) for value in red]


def test_a_checker_withholds_images(made, tmp_path):
    seen = sample("a red heart", n=3, steps=4, seed=1, checker=reddest)
    gone = seen.withheld.index(True)
    assert sum(seen.withheld) == 1 and not seen.images[gone].any()
    for i in {0, 1, 2} - {gone}:
        assert torch.equal(seen.images[i], made.images[i])
    assert seen.notes[-1] == "1 of 3 images withheld by the checker."
    assert len(seen.save(tmp_path)) == 2 and len(list(tmp_path.iterdir())) == 2
    assert "checker" not in json.dumps(seen.recipe)  # a recipe never names code
    assert seen[gone : gone + 1].save(tmp_path / "none") == []


def test_the_command_says_what_was_withheld_and_exits_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_checks.py").write_text(
        "def first(images):\n    return [i == 0 for i in range(len(images))]\n\n"
        "def every(images):\n    return [True] * len(images)\n\n"
        "def few(images):\n    return []\n\n"
        "def broken(images):\n    raise RuntimeError('no weights')\n"
    )  # fmt: skip
    command = ["sample", "a red heart", "-n", "2", "--steps", "4", "--checker"]
    for _ in range(2):  # the second time what is finished is read, and checked again
        assert main([*command, "my_checks:first"]) == 1
        assert "1 of 2 images withheld by the checker." in capsys.readouterr().err
        assert not list(Path("out").glob("0000*")) and len(list(Path("out").glob("0001*"))) == 1
    assert main([*command, "my_checks:every", "-o", "none"]) == 1
    assert "nothing was written" in capsys.readouterr().err and not Path("none").exists()
    for wrong, message in {
        "my_checks:few": "answered 0 times for 2", "my_checks:broken": "no image is given out: no weights",
        "my_checks:nothing": "cannot be loaded", "my_checks": "is module:function", "my_checks:__doc__": "no function",
    }.items():  # fmt: skip
        assert main([*command, wrong, "-o", "none"]) == 2
        assert re.search(message, capsys.readouterr().err) and not Path("none").exists()
    assert main([*command, "my_checks:first", "--film", "steps.gif"]) == 2
