"""Pictures in and out: exact round trips, every mode, hostile files, recipes."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from fastdiffusion.errors import DataError, InputError
from fastdiffusion.io import images, metadata

PNG_TEXT = (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"tIME", b"pHYs")


def test_bytes_to_floats_and_back():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(images.to_uint8(images.to_tensor(x)), x)
    assert images.to_tensor(x).aminmax() == (-1, 1)
    assert images.to_uint8(torch.tensor([-3.0, 3.0, float("nan"), float("inf")])).tolist() == [0, 255, 0, 255]
    with pytest.raises(InputError, match="uint8"):
        images.to_tensor(torch.zeros(1, 2, 2))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pil_and_back(mode):
    picture = pictures.photo(7, 5, mode=mode)
    tensor = images.to_tensor(picture)
    assert tensor.shape == (len(mode), 5, 7)
    back = images.to_pil(tensor)
    assert back.mode == mode and back.tobytes() == picture.tobytes()
    assert images.to_pil(images.to_uint8(tensor)).tobytes() == picture.tobytes()


def test_pil_wants_one_image():
    with pytest.raises(InputError, match=r"\(2, 3, 8, 8\)"):
        images.to_pil(torch.zeros(2, 3, 8, 8))


def test_grid_places_each_pixel():
    x = torch.stack([torch.full((1, 2, 3), i, dtype=torch.uint8) for i in range(5)])
    sheet = np.asarray(images.grid(x, columns=2, zoom=2, gap=1))
    assert sheet.shape == (3 * 5 + 1, 2 * 7 + 1)
    assert (sheet[1:5, 1:7] == 0).all() and (sheet[6:10, 8:14] == 3).all() and (sheet[11:15, 1:7] == 4).all()
    assert (sheet[11:15, 8:14] == 255).all() and (sheet[0] == 255).all()
    mixed = images.grid([pictures.photo(4, 4), pictures.photo(8, 2, mode="L")])
    assert mixed.mode == "RGB" and mixed.size == (2 * 10 + 2, 6 + 2)
    with pytest.raises(InputError, match="at least one"):
        images.grid([])


# ---- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pictures.good())
def test_every_kind_is_read(name):
    picture = images.read_image(pictures.good()[name])
    assert picture.mode in ("L", "LA", "RGB", "RGBA") and picture.info == {} and not picture.getexif()
    assert picture.size == ((30, 40) if name == "turned.jpg" else (40, 30))


@pytest.mark.parametrize("name", ["rgb.png", "palette.png", "moving.gif"])
def test_colors_are_kept(name):
    content = pictures.good()[name]
    assert images.read_image(content).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_sixteen_bits_keep_their_range():
    expected = np.linspace(0, 65535, 1200).reshape(30, 40) / 257
    for content in (pictures.deep(), pictures.deep("tiff")):
        assert np.abs(np.asarray(images.read_image(content)) - expected).max() <= 1
    assert np.abs(np.asarray(images.read_image(pictures.good()["float.tif"])) - expected).max() <= 1
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert np.asarray(images.plain(wide)).tolist() == [[0, 255]]


def test_transparency_is_kept_or_laid_on_white():
    picture = images.read_image(pictures.encoded(pictures.transparent()))
    assert picture.mode == "RGBA"
    flat = images.flatten(picture)
    assert flat.mode == "RGB" and flat.getpixel((0, 0)) == (255, 0, 0) and flat.getpixel((39, 0)) == (255, 255, 255)
    assert images.read_image(pictures.good()["palette-alpha.png"]).mode == "RGBA"
    assert images.flatten(pictures.photo(mode="LA")).mode == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_and_goes(orientation):
    content = pictures.rotated(orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    picture = images.read_image(content)
    assert picture.tobytes() == upright.tobytes() and picture.info == {} and not picture.getexif()


def test_a_jpeg_may_be_decoded_small():
    content = pictures.encoded(pictures.photo(800, 600), "JPEG", quality=95)
    with images.opened(content) as raw:
        small = images.decode(raw, near=100)
    assert min(small.size) >= 100 and small.size == (200, 150)
    full = images.read_image(content).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(float) - np.asarray(full)).mean() < 2


@pytest.mark.parametrize(
    "name", ["empty.png", "half.jpg", "half.png", "text.jpg", "program.png", "bomb.png", "large.png"]
)
def test_unusable_files_say_why(name):
    content, reason = pictures.bad()[name]
    with pytest.raises(DataError) as error:
        images.read_image(content)
    assert str(error.value) == ("not an image, or of a kind that is not read" if name == "empty.png" else reason)


def test_missing_file_says_why(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        images.read_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="is a directory"):
        images.read_image(tmp_path)


def test_bombs_cost_nothing():
    """Memory is measured, so that a bomb that is only caught after it went off fails the test."""
    pixels = (b"IDAT", zlib.compress(bytes(9 * 8)))
    text = pictures.png(8, 8, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))), pixels)
    assert images.read_image(pictures.png(8, 8, pixels)).size == (8, 8)
    many = pictures.gif(60_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in (pictures.png(30_000, 30_000, bits=1), pictures.png(13_000, 13_000), text):
        with pytest.raises(DataError):
            images.read_image(bomb)
    assert images.read_image(many).size == (16, 16)  # the first frame is a picture; the others are never touched
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd EXIF data
@pytest.mark.parametrize(
    "name", ["photo.jpg", "rgb.png", "photo.webp", "moving.gif", "palette.png", "float.tif", "cmyk.jpg"]
)
def test_damaged_files_are_read_as_pillow_reads_them_or_refused_with_a_reason(name):
    """The decoder itself is the oracle: what it refuses raises DataError and nothing else."""
    content = pictures.good()[name]
    rng, refused = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file = bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            expected = Image.open(io.BytesIO(file))
            expected.load()
        except Exception:
            refused += 1
            with pytest.raises(
                DataError, match=r"^(broken \(.+\)|cut short \(truncated\)|not an image, or .+ not read)$"
            ):
                images.read_image(file)
            continue
        if expected.mode == "F" and not (
            np.min(np.asarray(expected)) >= -0.01 and np.max(np.asarray(expected)) <= 65535
        ):
            with pytest.raises(DataError, match="no brightness"):
                images.read_image(file)
            continue
        image = images.read_image(file)
        assert image.mode in ("L", "LA", "RGB", "RGBA") and image.size == expected.size
        if expected.mode != "F":  # whose range is scaled
            assert image.convert("RGB").tobytes() == expected.convert("RGB").tobytes()
    assert refused > 10
    assert images.read_image(content).size == (40, 30)


# ---- writing ----------------------------------------------------------------------------------------------------


def chunks(path: Path) -> list[bytes]:
    content, kinds, at = path.read_bytes(), [], 8
    while at < len(content):
        kinds.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return kinds


def test_recipe_comes_back_and_bytes_repeat(tmp_path):
    recipe = {"prompt": 'a cat,\n猫 — "é"', "seed": 2**63, "steps": 12, "list": [1, 2.5, None]}
    x = torch.rand(3, 8, 8) * 2 - 1
    for name in ("a.png", "deep/er/b.png"):
        images.save_png(x, tmp_path / name, recipe)
    assert images.read_recipe(tmp_path / "a.png") == recipe
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "deep/er/b.png").read_bytes()
    assert images.to_array(images.read_image(tmp_path / "a.png")).tolist() == images.to_uint8(x).tolist()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "b.png", "deep", "er"]  # nothing temporary


def test_no_metadata_on_request(tmp_path):
    source = Image.open(io.BytesIO(pictures.rotated(6)))
    source.info["icc_profile"], source.info["comment"] = b"profile", b"made by Jane Doe"
    for image in (source, images.read_image(pictures.rotated(6)), torch.zeros(1, 8, 8)):
        images.save_png(image, tmp_path / "x.png")
        assert set(chunks(tmp_path / "x.png")) == {b"IHDR", b"IDAT", b"IEND"}
        assert b"Jane" not in (tmp_path / "x.png").read_bytes()
    with pytest.raises(DataError, match="carries no recipe"):
        images.read_recipe(tmp_path / "x.png")


def test_recipe_tells_no_folders(tmp_path):
    model = tmp_path / "jane" / "model.safetensors"
    model.parent.mkdir()
    model.touch()
    recipe = {"model": str(model), "inputs": [model, "not/a/place"], "prompt": "/imagine a cat"}
    images.save_png(torch.zeros(1, 8, 8), tmp_path / "x.png", recipe)
    expected = {"model": model.name, "inputs": [model.name, "not/a/place"], "prompt": "/imagine a cat"}
    assert images.read_recipe(tmp_path / "x.png") == expected
    assert b"jane" not in (tmp_path / "x.png").read_bytes()


def test_recipes_of_other_programs(tmp_path):
    text = "a cat, <lora:x:1>\nsecond line\nNegative prompt: dog, bad\nSteps: 20, Sampler: DPM++ 2M Karras, "
    text += 'CFG scale: 7.5, Seed: 4242, Size: 512x768, Model hash: 6ce0161689, Lora hashes: "x: 1, y: 2"'
    (tmp_path / "a.png").write_bytes(pictures.encoded(pictures.photo(), pnginfo=_text("parameters", text)))
    recipe = images.read_recipe(tmp_path / "a.png")
    assert recipe["prompt"] == "a cat, <lora:x:1>\nsecond line" and recipe["negative_prompt"] == "dog, bad"
    assert (recipe["steps"], recipe["cfg_scale"], recipe["seed"]) == (20, 7.5, 4242)
    assert (recipe["sampler"], recipe["size"], recipe["lora_hashes"]) == ("DPM++ 2M Karras", "512x768", '"x: 1, y: 2"')
    graph = '{"3": {"class_type": "KSampler", "inputs": {"seed": 7}}}'
    (tmp_path / "b.png").write_bytes(pictures.encoded(pictures.photo(), pnginfo=_text("prompt", graph)))
    assert images.read_recipe(tmp_path / "b.png")["comfyui"]["3"]["inputs"]["seed"] == 7


GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 7, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["4", 0], "clip": ["4", 1]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a castle", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["10", 1]}},
}  # fmt: skip


def test_a_graph_is_told_in_our_words():
    recipe = metadata.parse({"prompt": json.dumps(GRAPH), "workflow": "{}"})
    assert recipe == {
        "made_by": "ComfyUI", "prompt": "a castle", "negative_prompt": "text, watermark", "model": "sd15.safetensors",
        "sampler": "euler", "schedule": "normal", "steps": 20, "cfg_scale": 8.0, "strength": 1.0, "seed": 7,
        "size": "512x768", "comfyui": GRAPH,
    }  # fmt: skip
    assert "model 'sd15.safetensors', prompt 'a castle'" in metadata.summarize(recipe)


def test_a_hostile_graph_ends(tmp_path):
    """Links go round and far: what lies near is found, what lies behind thousands of nodes is not looked for."""
    loop = {str(i): {"inputs": {"seed": 1, "steps": 2, "positive": [str(i + 1), 0], "model": [str(i), 0]}}
            for i in range(5000)}  # fmt: skip
    bare = {"made_by": "ComfyUI", "seed": 1, "steps": 2, "comfyui": loop}
    loop["4000"]["inputs"]["text"] = "far"
    assert metadata.comfyui(loop) == bare
    loop["20"]["inputs"]["text"] = "near"
    assert metadata.comfyui(loop) == bare | {"prompt": "near"}
    for nothing in ([], {}, {"1": 3}, {"1": {"inputs": [1]}}, "text", None):
        assert metadata.comfyui(nothing) is None
    odd = {"1": {"inputs": {"seed": [[1]], "positive": [[]]}}}
    assert metadata.comfyui(odd) == {"made_by": "ComfyUI", "comfyui": odd}


def test_other_programs_write_into_exif_too(tmp_path):
    text = "a cat\nSteps: 20, Seed: 3"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    pictures.photo().save(tmp_path / "a.webp", exif=exif.tobytes())
    assert images.read_recipe(tmp_path / "a.webp")["seed"] == 3
    pictures.photo().convert("RGB").save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert images.read_recipe(tmp_path / "a.jpg")["prompt"] == "a cat"
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    pictures.photo().save(tmp_path / "b.webp", exif=exif.tobytes())
    assert images.read_recipe(tmp_path / "b.webp")["seed"] == 7


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_webp_keeps_pixels_and_recipe(tmp_path, channels):
    x = torch.randint(0, 256, (channels, 9, 7), dtype=torch.uint8)
    recipe = {"prompt": "猫 — ü", "seed": 2**63}
    for name in ("a.webp", "b.webp"):
        images.save_png(x, tmp_path / name, recipe)
    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()
    assert images.read_recipe(tmp_path / "a.webp") == recipe
    back = torch.as_tensor(images.to_array(images.read_image(tmp_path / "a.webp")))
    assert torch.equal(back, x.expand(max(channels, 3), 9, 7) if channels == 1 else x)
    images.save_png(x, tmp_path / "bare.webp")
    assert images.inner_recipe(tmp_path / "bare.webp") is None
    images.save_sidecar(tmp_path / "bare.webp", recipe)
    assert images.read_recipe(tmp_path / "bare.webp") == recipe


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_end_of_a_name_says_what_is_written(tmp_path, channels):
    x, recipe = torch.linspace(-1, 1, channels * 256).reshape(channels, 16, 16), {"prompt": "猫", "seed": 3}
    for name, form in (("a.PNG", "PNG"), ("a.webp", "WEBP"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")):
        images.save_png(x, tmp_path / name, recipe)
        assert Image.open(tmp_path / name).format == form
        assert images.inner_recipe(tmp_path / name) == recipe
    images.save_png(x, tmp_path / "bare.jpg")
    assert images.inner_recipe(tmp_path / "bare.jpg") is None
    shown = images.to_tensor(images.flatten(images.to_pil(x)))
    assert (images.to_tensor(Image.open(tmp_path / "bare.jpg")) - shown).abs().mean() < 0.05
    for name, why in (("a.gif", "not '.gif'. Try a.png"), ("a", "as .png"), ("long.jpg", "too long for a JPEG")):
        with pytest.raises(InputError, match=why):
            images.save_png(x, tmp_path / name, {"prompt": "a" * 70_000})
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("text", ["[1, 2]", "{", "[" * 100_000, "NaN"])
def test_recipe_that_is_none(tmp_path, text):
    (tmp_path / "x.png").write_bytes(pictures.encoded(pictures.photo(), pnginfo=_text("fastdiffusion", text)))
    with pytest.raises(DataError, match="carries no recipe"):
        images.read_recipe(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"Cannot read 'y\.png'"):
        images.read_recipe(tmp_path / "y.png")


def _text(key: str, value: str):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(key, value)
    return info


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    images.save_png(torch.zeros(1, 8, 8), tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"Cannot write .*x.png: No space left on device"):
        images.save_png(torch.ones(1, 8, 8), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == before and os.listdir(tmp_path) == ["x.png"]


HOSTILE = [
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "",
        " ",
        "a\0b",
        "C:\\Windows\\x",
        "\\\\server\\share",
        "~root",
        "CON",
    ),
    *("nul.txt", "a" * 300, "猫" * 300, ".hidden", "-rf", "a\nb", "\u202egnp.exe", "%2e%2e%2f", "x/../../y", "\ud800"),
    "..\uff0f..\uff0fetc",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_stay_inside(text, tmp_path):
    name = images.safe_name(text)
    path = tmp_path / f"{name}.png"
    assert path.resolve().parent == tmp_path.resolve() and 0 < len(name.encode()) <= 80
    assert name[0] not in ".-" and name.isprintable() and name.lower() not in ("con", "nul", "nul.txt")
    path.touch()
    assert os.listdir(tmp_path) == [f"{name}.png"]


def test_names_stay_readable():
    assert images.safe_name("A cat, on a mat?") == "A-cat-on-a-mat"
    assert images.safe_name("猫の絵 v1.5") == "猫の絵-v1.5"


def test_colors_of_another_profile_are_brought_to_srgb(tmp_path):
    """A profile whose red is sRGB's green, and the other way round; sRGB's own, and a broken one, change nothing."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    picture = Image.new("RGB", (4, 4), (255, 0, 0))
    for name, profile in (("srgb", srgb), ("broken", b"no profile"), ("swapped", swapped)):
        picture.save(tmp_path / f"{name}.png", icc_profile=profile)
    assert images.read_image(tmp_path / "srgb.png").getpixel((0, 0)) == (255, 0, 0)
    assert images.read_image(tmp_path / "broken.png").getpixel((0, 0)) == (255, 0, 0)
    red, green, blue = images.read_image(tmp_path / "swapped.png").getpixel((0, 0))  # pyright: ignore
    assert green > 250 and red < 5 and blue < 5


def _linear(space: str) -> bytes:
    """An ICC profile (v2) of sRGB's primaries, or of grays, whose values are light itself."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"  # gamma 1
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"even\0" + b"\0" * 79
    white, *primaries = (
        b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in xyz))
        for xyz in ((0.9642, 1, 0.8249), (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
    )
    tags = [(b"desc", text), (b"wtpt", white)]
    tags += [(b"kTRC", curve)] if space == "GRAY" else []
    tags += [] if space == "GRAY" else [(c + b"XYZ", v) for c, v in zip((b"r", b"g", b"b"), primaries, strict=True)]
    tags += [] if space == "GRAY" else [(c + b"TRC", curve) for c in (b"r", b"g", b"b")]
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s28x3i", 128 + len(table + body), b"lcms", 0x02400000, b"mntr", space.encode(),
                       b"XYZ ", b"acsp", 63190, 65536, 54061)  # fmt: skip
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_profiles_are_honored_in_every_mode(tmp_path, mode):
    """Half the light is shown as 188 of 255 (IEC 61966-2-1), in colors and in grays, and transparency stays."""
    image = Image.new("RGB", (4, 4), (128, 128, 128))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    if "A" in mode:
        image.putalpha(77)
    image.save(tmp_path / "a.png", icc_profile=_linear("GRAY" if mode[0] == "L" else "RGB "))
    read = images.read_image(tmp_path / "a.png")
    assert read.convert("L").getpixel((0, 0)) == pytest.approx(188, abs=1)
    assert ("A" in mode) == ("A" in read.mode) and ("A" not in mode or read.getchannel("A").getpixel((0, 0)) == 77)


def test_lab_is_read(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(Image.new("RGB", (4, 4), (200, 100, 50)), srgb, lab, outputMode="LAB")
    assert made is not None
    made.save(tmp_path / "a.tif")
    assert images.read_image(tmp_path / "a.tif").getpixel((0, 0)) == pytest.approx((200, 100, 50), abs=3)


def test_pictures_from_python_are_read_like_files(tmp_path):
    """Upright, 16 bits scaled to 8, a palette's transparency kept."""
    sixteen = Image.open(io.BytesIO(pictures.deep()))
    assert images.open_image(sixteen).tobytes() == images.read_image(pictures.deep()).tobytes()
    turned = Image.open(io.BytesIO(pictures.rotated(6)))
    assert images.open_image(turned).tobytes() == images.read_image(pictures.rotated(6)).tobytes()
    palette = pictures.photo(seed=4).quantize(16)
    palette.info["transparency"] = 3
    assert images.open_image(palette).mode == "RGBA"
