"""Restoring images: every way, any size, held to the input; and what is refused."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np
import pytest
import torch
from pictures import encoded, photo, png
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from fastdiffusion import Learner, models, nets, restore, sample, save
from fastdiffusion.cli import main
from fastdiffusion.corruptions import jpeg, mask, parse
from fastdiffusion.data import Crops, Pairs
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.io.images import jpeg_tables, read_image, read_recipe, to_pil, to_tensor, to_uint8
from fastdiffusion.io.outputs import gather
from fastdiffusion.models import Model, load
from fastdiffusion.tasks.restoration import tiles
from fastdiffusion.tasks.restoration.blind_deblurring import estimate_kernel
from fastdiffusion.tasks.restoration.colorization import in_gamut, luminance
from fastdiffusion.tasks.restoration.inputs import _asked
from fastdiffusion.tasks.restoration.measurement import Measurement
from fastdiffusion.tasks.restoration.method import parse_task, weakened
from fastdiffusion.tasks.restoration.options import RestoreOptions
from fastdiffusion.tasks.restoration.restore import bundled
from fastdiffusion.tasks.restoration.result import NOTE
from fastdiffusion.tasks.restoration.tiled import TiledRestoration
from fastdiffusion.tasks.restoration.watermarks import remove_watermark, written

SMALL = {"name": "unet", "patch": 2, "refine": 4, "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [],
         "updown": False, "local": True}  # fmt: skip
ALL = "downscale 2 | downscale 4 | jpeg 5..95 | blur 0.5..3 | noise 0.02..0.3 | gray | mask 0.05..0.4 | mask 1"


@pytest.fixture(scope="module")
def restorer():
    """Untrained: its one-call answer is the degraded image itself, so that all else can be told apart."""
    torch.manual_seed(0)
    net = nets.build({**SMALL, "in_channels": 6, "out_channels": 3})
    return Model(Denoiser(net, sigma_data=0.1, cond_channels=3).eval(), (3, 64, 64), corruption=ALL)


@pytest.fixture(scope="module")
def trembling(restorer):
    """The same with random weights in its last layer: an answer that hangs on every pixel around."""
    torch.manual_seed(0)
    net = nets.build({**SMALL, "in_channels": 6, "out_channels": 3})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return Model(Denoiser(net, sigma_data=0.1, cond_channels=3).eval(), (3, 64, 64), corruption=ALL)


def degraded(image, text):
    """An image file's content after a corruption."""
    x = to_tensor(image)[None]
    return to_pil(parse_task(text).on(x.shape[1:], [0]).forward(x)[0])


def error(a, b):
    return float((to_tensor(a) - to_tensor(b)).square().mean())


# ---- tiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "step", "scale", "halo"),
    [
        ((100, 130), 64, 16, 1, 1, 0),
        ((97, 33), 48, 16, 16, 2, 4),
        ((40, 40), 64, 8, 8, 1, 2),
        ((200, 65), 64, 16, 16, 3, 5),
    ],
)
def test_tiles_put_the_image_together_again(size, tile, overlap, step, scale, halo):
    whole = torch.randn(2, 3, size[0] * scale, size[1] * scale)
    out, rows = torch.zeros_like(whole), 0

    def work(t):
        return whole[:, :, t.top * scale : (t.top + t.height) * scale, t.left * scale : (t.left + t.width) * scale]

    for top, strip in tiles.tiled(work, *size, tile, overlap, step, scale, halo):
        assert top == rows
        out[:, :, top : top + strip.shape[2]], rows = strip, top + strip.shape[2]
    assert rows == len(whole[0, 0])
    assert torch.allclose(out, whole, atol=1e-5)


def test_a_noise_field_hangs_on_the_place():
    whole = tiles.field(3, 2, tiles.Tile(0, 0, 200, 200))
    assert torch.equal(whole[:, 80:150, 70:160], tiles.field(3, 2, tiles.Tile(80, 70, 70, 90)))
    assert not torch.equal(whole, tiles.field(4, 2, tiles.Tile(0, 0, 200, 200)))
    assert float(whole.std()) == pytest.approx(1, abs=0.02)


def test_tiles_leave_no_seams(trembling):
    """A local net in tiles is the same net on the whole image, to a step of rounding."""
    image = photo(300, 210, seed=2)
    whole = restore(image, "jpeg 5..95", trembling, tile=512)
    parts = restore(image, "jpeg 5..95", trembling, tile=128, overlap=64)
    apart = (whole.pixels.float() - parts.pixels.float()).abs()
    assert float(whole.pixels.float().std()) > 1 and float(apart.mean()) < 0.1 and float(apart.max()) <= 2


# ---- ways ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["downscale 2", "downscale 4", "upscale x2", "downscale 2 area"])
def test_upscaling_is_held_to_the_input(restorer, text):
    clean = photo(96, 64, seed=5)
    small = degraded(clean, text)
    method = "zero-shot" if "area" in text else "auto"
    done = restore(small, text, restorer, method=method, steps=3)
    assert done.images.shape[1:] == (3, 64, 96)
    again = parse_task(text).on((3, 64, 96), [0]).mean(done.images)
    assert float((again - to_tensor(small)).abs().max()) <= 2.02 / 255  # a step of 255, in [-1, 1]
    assert done.error is not None and done.error[1] <= 1.01


@pytest.mark.parametrize("text", ["blur 1.5", "jpeg 10"])
def test_what_is_known_helps_even_an_untrained_model(restorer, text):
    clean = photo(96, 64, seed=5)
    sharp = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(60, 190, (8, 12, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    )
    for image in (clean, sharp):
        given = degraded(image, text)
        done = restore(given, text, restorer)
        assert error(to_pil(done.images[0]), image) <= error(given, image) * 1.01


@pytest.fixture(scope="module")
def plain():
    """An untrained generative model: a white normal prior."""
    net = nets.build({**SMALL, "in_channels": 3, "out_channels": 3})
    return Model(Denoiser(net).eval(), (3, 32, 32))


def test_zero_shot_undoes_what_nobody_trained(plain):
    clean = photo(64, 64, seed=6)
    for text in ("fade 0.5", "watermark 'AB' 0.5 0.6 0.5 0.5"):
        given = degraded(clean, text)
        done = restore(given, text, plain, steps=8)
        assert done.method == "zero-shot"
        assert error(to_pil(done.images[0]), clean) < 0.5 * error(given, clean), text


@pytest.mark.parametrize("text", ["motion 9 30", "defocus 4", "blur 2", "motion 25 80"])
def test_a_scene_goes_on_beyond_the_border(text):
    """What is cut out of a blurred scene gets better, also at its borders and where the tiles meet."""
    blocks = np.random.default_rng(3).integers(60, 190, (26, 30, 3), np.uint8)
    scene = Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8)))
    inner = (32, 32, 208, 176)
    given, clean = degraded(scene, text).crop(inner), scene.crop(inner)
    done = restore(given, text, tile=64)
    assert error(to_pil(done.images[0]), clean) < 0.7 * error(given, clean)
    whole = restore(given, text, tile=1024)
    assert error(to_pil(done.images[0]), clean) < 1.15 * error(to_pil(whole.images[0]), clean)


def test_a_blind_kernel_needs_edges(restorer):
    for image in (Image.new("RGB", (100, 80), (90, 90, 90)), photo(24, 24)):
        with pytest.raises(InputError, match="No kernel can be found"):
            restore(image, "deblur blind", restorer)
    with pytest.raises(InputError, match="Say what is missing of motion: angle"):
        restore(photo(64, 64), "deblur motion 9")


def test_any_factor_and_any_overlap(restorer):
    done = restore(degraded(photo(96, 96, seed=5), "downscale 3"), "upscale x3", restorer, method="zero-shot", steps=2)
    assert done.images.shape[1:] == (3, 96, 96)
    tiled = restore(photo(96, 128, seed=5), "jpeg 30", restorer, tile=64, overlap=0)
    assert tiled.images.shape[1:] == (3, 128, 96) and tiled.error is not None
    with pytest.raises(InputError, match="no strength"):
        restore(photo(64, 64), "jpeg", restorer, method="cold", steps=2)


def test_cold_goes_a_little_at_a_time(restorer):
    done = restore(degraded(photo(48, 48), "blur 1"), "blur 1", restorer, method="cold", steps=3)
    assert done.method == "cold"
    assert str(weakened(parse("blur 2"), 0.25)) == "blur 0.5"
    with pytest.raises(InputError, match="no strength"):
        weakened(parse("gray"), 0.5)


def test_several_answers_differ_and_say_where(trembling):
    small = degraded(photo(64, 48, seed=1), "downscale 2")
    done = restore(small, "downscale 2", trembling, n=3, steps=3, seed=4)
    assert len(done) == 3 and not torch.equal(done.images[0], done.images[1])
    assert float(done.uncertainty.max()) > 0
    one = restore(small, "downscale 2", trembling, n=1, answer="sample", steps=3, seed=5)
    assert float((one.pixels[0].float() - done.pixels[1].float()).abs().max()) <= 1


def test_holes_are_painted_and_nothing_else_is_touched(restorer, tmp_path):
    clean = photo(80, 64, seed=9)
    hole = np.zeros((64, 80), np.uint8)
    hole[20:30, 30:50] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    given = to_tensor(clean).clone()
    given[:, 20:30, 30:50] = 1
    done = restore(to_pil(given), f"inpaint '{tmp_path / 'hole.png'}'", restorer)
    outside = torch.from_numpy(hole == 0)
    assert torch.equal(done.pixels[0][:, outside], to_uint8(given)[:, outside])
    assert error(to_pil(done.images[0]), clean) < 0.1 * error(to_pil(given), clean)


# ---- colors -------------------------------------------------------------------------------------------------------


def test_luminance_is_kept_with_hints_and_palette(trembling, tmp_path):
    gray = photo(64, 48, seed=3).convert("L")
    hints = Image.new("RGBA", gray.size, (0, 0, 0, 0))
    light = np.asarray(gray)[10, 12]
    hints.paste((min(int(light) + 20, 255), int(light), max(int(light) - 20, 0), 255), (10, 8, 14, 12))
    hints.save(tmp_path / "hints.png")
    for options in ({}, {"hints": tmp_path / "hints.png"}, {"palette": "#a03020,#203040"}, {"n": 2, "steps": 2}):
        done = restore(gray, "colorize", trembling, **options)
        kept = luminance(done.images)[:, 0] - to_tensor(gray)
        assert float(kept.abs().max()) * 127.5 <= 1.01, options
        if "hints" in options:
            asked = to_tensor(hints.convert("RGB"))[:, 8:12, 10:14]
            told = done.images[0][:, 8:12, 10:14]
            chroma = (told - luminance(told[None])[0]) - (asked - luminance(asked[None])[0])
            assert float(chroma.abs().max()) * 127.5 <= 4


def test_it_says_when_no_color_came(restorer):
    gray = photo(64, 48, seed=3).convert("L")
    assert "--palette" in str(restore(gray, "colorize", restorer))
    assert "--palette" not in str(restore(gray, "colorize", restorer, palette="#a03020,#203040"))
    assert "--palette" not in str(restore(gray.convert("RGB"), "jpeg 10", restorer))


def test_colors_stay_in_gamut_at_their_luminance():
    x, gray = 3 * torch.randn(1, 3, 8, 8), torch.rand(1, 1, 8, 8) * 2 - 1
    y = in_gamut(x, gray)
    assert float(y.abs().max()) <= 1 + 1e-5
    assert torch.allclose(luminance(y), gray, atol=1e-5)


@pytest.mark.parametrize("palette", ["red", "#12", "", "#zzzzzz"])
def test_a_bad_palette_is_told(restorer, palette):
    with pytest.raises(InputError, match="hexadecimal"):
        restore(photo(32, 32).convert("L"), "gray", restorer, palette=palette)


# ---- blind --------------------------------------------------------------------------------------------------------


def test_a_mark_on_several_images_is_found_and_removed(restorer):
    g = torch.Generator().manual_seed(0)
    clean = torch.stack([to_tensor(photo(160, 96, seed=20 + i)) for i in range(8)])
    clean = (0.8 * clean + 0.02 * torch.randn(clean.shape, generator=g)).clamp(-1, 1)
    operator = parse("watermark 'AB' 0.5 0.5 0.5 0.5").on(clean.shape[1:], [0] * 8)
    marked = [to_pil(image) for image in operator.forward(clean)]
    done = remove_watermark(marked, restorer)
    mark = (operator.mean(torch.full_like(clean, -1.0)) > -0.98)[:1]
    before, after = (((x - clean).square() * mark).sum() / mark.sum() for x in (operator.forward(clean), done.images))
    assert float(after) < 0.3 * float(before)
    outside = done.opacity == 0
    assert torch.equal(done.images[0][:, outside], to_tensor(marked[0])[:, outside])
    assert NOTE in str(done)
    with pytest.raises(InputError, match="three or more"):
        remove_watermark(marked[:2], restorer)
    with pytest.raises(InputError, match="one size"):
        remove_watermark([*marked[:3], photo(20, 20)], restorer)


def test_a_blur_kernel_is_found():
    g = torch.Generator().manual_seed(0)
    blocks = torch.nn.functional.interpolate(torch.rand(1, 1, 24, 24, generator=g) * 2 - 1, (240, 240))
    y = parse("blur 2").on((1, 240, 240), [0]).forward(blocks)
    kernel = estimate_kernel(y, size=17, rounds=3)
    at = torch.arange(17.0) - 8
    true = torch.exp(-(at[:, None] ** 2 + at**2) / 8)
    assert float((kernel * true).sum() / (kernel.norm() * true.norm())) > 0.8
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-4)


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photographs and the same, inverted."""
    folder = tmp_path_factory.mktemp("photos")
    for sub in ("a", "b"):
        (folder / sub).mkdir()
    for i in range(6):
        image = photo(120, 90, seed=i)
        image.save(folder / "b" / f"{i}.png")
        Image.fromarray(255 - np.asarray(image)).save(folder / "a" / f"{i}.png")
    (folder / "a" / "lonely.png").write_bytes(encoded(photo(seed=9)))
    return folder


def test_crops_hold_whole_photographs_out(photos):
    data = Crops(photos / "b", 32)
    assert data.shape == (3, 32, 32) and len(data) > 6
    train, held = data.split(0.2)
    names = [{name.split(" at ")[0] for name in part.batch(range(len(part))).names} for part in (train, held)]
    assert not names[0] & names[1]


def test_pairs_go_together_and_what_is_alone_is_told(photos):
    data = Pairs(photos / "a", photos / "b", 32)
    batch = data.batch([0, 3])
    assert data.cond_channels == 3 and batch.inputs is not None
    assert float((batch.inputs.float() + batch.images.float() - 255).abs().mean()) < 2
    assert "lonely" in str(data.report)
    assert data.split(0.3)[1].cond_channels == 3


@pytest.mark.slow
def test_a_restorer_learns_resumes_and_says_what_it_undoes(photos, tmp_path):
    options = {"net": SMALL, "batch_size": 16, "verbose": False, "precision": "float32", "ema": (0.1,), "lr": 3e-3}
    data = Crops(photos / "b", 32)
    whole = Learner(data, restore="fade 0.3..0.7", **options).fit(steps=60)
    first = Learner(data, restore="fade 0.3..0.7", folder=tmp_path / "run", **options)
    for step in first.steps(steps=60):
        if step.step == 25:
            first.save()
            break
    Learner(data, restore="fade 0.3..0.7", folder=tmp_path / "run", **options).fit(steps=60)
    model = load(tmp_path / "run")
    assert model.corruption == "fade 0.3..0.7" and models.native_denoiser(model).cond_channels == 3
    for name, tensor in models.tensors(whole.model).items():
        assert torch.equal(tensor, models.tensors(model)[name]), name
    clean = photo(64, 64, seed=40)
    given = degraded(clean, "fade 0.5")
    blind = restore(given, "fade 0.3..0.7", model)
    assert error(to_pil(blind.images[0]), clean) < 0.6 * error(given, clean)
    with pytest.raises(InputError, match="restores an image, and none was given"):
        sample(model, n=1)


def test_pairs_train_a_model_that_is_given_pictures(photos):
    data = Pairs(photos / "a", photos / "b", 32)
    model = Learner(data, net=SMALL, batch_size=4, verbose=False, precision="float32").fit(steps=2).model
    assert model.corruption == "pairs"
    assert restore(photo(40, 40), "pairs", model).images.shape == (1, 3, 40, 40)
    with pytest.raises(InputError, match="made of pairs"):
        Learner(data, net=SMALL, restore="blur 1", verbose=False)


# ---- the command line and bad input -------------------------------------------------------------------------------


def test_the_bundled_restorer_or_its_absence():
    """Small, of known origin, and better than enlarging; or a sentence that says what to do."""
    weights = files("fastdiffusion") / "weights" / "restorer.safetensors"
    clean = photo(96, 64, seed=5)
    if not weights.is_file():
        with pytest.raises(CheckpointError, match="no restorer of its own"):
            restore(clean, "jpeg 10")
        return
    model = bundled()
    assert len(weights.read_bytes()) <= 5e6 and len(model.info["photographs"]) == 27
    noisy = degraded(clean, "noise 0.1")
    assert error(to_pil(restore(noisy, "noise 0.1").images[0]), clean) < 0.5 * error(noisy, clean)


def test_the_command_writes_all_it_promises(trembling, tmp_path, capsys):
    save(trembling, tmp_path / "model.safetensors")
    degraded(photo(64, 48, seed=1), "downscale 2").save(tmp_path / "small.png")
    given = [str(tmp_path / "small.png"), "--by", "upscale x2", "--model", str(tmp_path / "model.safetensors")]
    assert main(["restore", *given, "-n", "2", "--steps", "2", "-o", str(tmp_path / "out.png"), "--compare"]) == 0
    for name in ("out-1.png", "out-2.png", "out-uncertainty.png", "out-compare.png"):
        assert (tmp_path / name).exists(), name
    assert "degraded again" in capsys.readouterr().out
    assert read_recipe(tmp_path / "out-1.png")["corruption"] == "downscale 2"
    assert main(["restore", *given]) == 0 and (tmp_path / "small-restored.png").exists()


def test_a_folder_twice_restores_no_result(restorer, tmp_path):
    """Images that share a name but for its end have results with numbers, which are no images of the next run."""
    save(restorer, tmp_path / "model.safetensors")
    (images := tmp_path / "images").mkdir()
    for name in ("a.png", "a.jpg", "b-2.png"):
        photo(40, 32).convert("RGB").save(images / name)
    for _ in range(2):
        assert main(["restore", str(images), "--by", "jpeg 10", "--model", str(tmp_path / "model.safetensors")]) == 0
        names = {path.name for path in images.iterdir()} - {"a.png", "a.jpg", "b-2.png"}
        assert names == {"a-restored.png", "a-restored-2.png", "b-2-restored.png"}


@pytest.mark.parametrize(
    ("file", "by", "options", "told"),
    [
        ("a.png", "blurr 2", [], "Did you mean 'blur'"),
        ("a.png", "inpaint small.png", [], "The mask has 20x20 pixels and the image 40x30"),
        ("a.png", "inpaint", [], "Where is the hole"),
        ("a.png", "defocus 3..5", [], "Or train one"),
        ("a.png", "motion 9 30", [], "Use method='zero-shot'"),
        ("a.png", "watermark", [], "fastdiffusion train photos/ --restore"),
        ("dot.png", "jpeg 10", [], "1x1 pixels is too small"),
        ("bomb.png", "jpeg 10", [], "megapixels"),
        ("text.png", "jpeg 10", [], "not a"),
        ("missing.png", "jpeg 10", [], "missing.png"),
        ("a.png", "jpeg 10", ["--way", "warm"], "No method named"),
        ("a.png", "jpeg 10", ["-n", "0"], "n must be"),
        ("a.png", "jpeg 10", ["--palette", "#aabbcc"], "for colorizing"),
        ("a.png", "jpeg 10", ["-o", "x.bmp"], "Try x.png"),
        ("a.png", "gray", ["--way", "cold"], "no strength"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(restorer, tmp_path, capsys, file, by, options, told):
    save(restorer, tmp_path / "model.safetensors")
    files = {
        "a.png": encoded(photo(40, 30)), "small.png": encoded(photo(20, 20)), "dot.png": encoded(photo(1, 1)),
        "bomb.png": png(30_000, 30_000, bits=1), "text.png": b"<html>",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    by = by.replace("small.png", f"'{tmp_path / 'small.png'}'")
    code = main(["restore", str(tmp_path / file), "--by", by, "--model", str(tmp_path / "model.safetensors"), *options])
    said = capsys.readouterr().err
    assert code == 2 and told in said and len(said.strip().splitlines()) == 1, said
    assert sorted(tmp_path.iterdir()) == before


def test_a_jpeg_file_says_itself_how_it_was_rounded(trembling, tmp_path):
    """The answer lies in the cells that the file leaves open; in a PNG of the same pixels nobody knows of them."""
    photo(64, 48, seed=4).save(tmp_path / "a.jpg", quality=15)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    held, free = (restore(tmp_path / name, "dejpeg", trembling) for name in ("a.jpg", "a.png"))
    assert held.corruption == free.corruption == "jpeg" and free.error is None and held.error is not None
    steps, colors, _ = jpeg_tables(tmp_path / "a.jpg")
    again = jpeg(steps, colors).on((3, 48, 64), [0]).mean(held.images)
    assert float((again - to_tensor(Image.open(tmp_path / "a.jpg"))).abs().mean()) * 127.5 < 3


@pytest.mark.parametrize("way", ["4:2:0", "4:2:2", "4:4:4", "CMYK", *range(2, 9)])
def test_dejpeg_gives_no_less_than_the_file(tmp_path, way):
    """Fine texture, which a restorer takes for noise; and in whatever way the file keeps its colors and lies."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(photo(96, 64)) + rng.normal(0, 20, (64, 96, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    mode, colors = ("CMYK", "4:4:4") if way == "CMYK" else ("RGB", way if isinstance(way, str) else "4:2:0")
    exif = Image.Exif()
    if isinstance(way, int):
        exif[0x0112] = way
    for quality in (75, 90):
        stored = image.convert(mode)
        stored.save(tmp_path / "a.jpg", quality=quality, subsampling=colors, exif=exif)
        upright = to_tensor(read_image(tmp_path / "a.jpg"))
        original = to_tensor(ImageOps.exif_transpose(_with_orientation(image, exif)))
        done = restore(tmp_path / "a.jpg", "dejpeg")
        assert done.error is not None and done.images.shape[1:] == upright.shape
        before, after = ((x - original).square().mean() for x in (upright, done.images[0]))
        assert float(after) <= float(before) + 1e-6


def _with_orientation(image: Image.Image, exif: Image.Exif) -> Image.Image:
    copy = image.copy()
    copy.getexif().update(dict(exif))
    return copy


def test_odd_files_are_restored(restorer, tmp_path):
    for name, image in (("cmyk.jpg", photo(40, 30).convert("CMYK")), ("alpha.png", photo(40, 30).convert("RGBA"))):
        image.save(tmp_path / name)
        done = restore(tmp_path / name, "jpeg 10", restorer)
        assert done.images.shape == (1, 3, 30, 40) and not done.notes
        same = to_tensor(Image.open(tmp_path / name).convert("RGB"))
        assert float((done.images[0] - same).abs().mean()) < 0.1


@pytest.mark.parametrize(("corruption", "factor"), [("jpeg 10", 1), ("downscale 2", 2)])
def test_transparency_stays_and_no_edge_shows_what_was_below(restorer, tmp_path, corruption, factor):
    """Laid on white, a red figure has a pink edge; with the colors that a file keeps below it, any other."""
    opacity = Image.new("L", (40, 32))
    opacity.paste(255, (8, 8, 32, 24))
    figure = Image.composite(Image.new("RGB", (40, 32), (200, 30, 30)), Image.new("RGB", (40, 32), "lime"), opacity)
    figure.putalpha(opacity)
    figure.save(tmp_path / "figure.png")
    done = restore(tmp_path / "figure.png", corruption, restorer)
    assert not done.notes and done.opacity is not None
    (place,) = done.save(tmp_path / "done.png")
    pixels = np.asarray(Image.open(place)).astype(int)
    assert pixels.shape == (32 * factor, 40 * factor, 4)
    assert np.abs(pixels[pixels[..., 3] > 0, :3] - (200, 30, 30)).max() <= 2
    small = np.asarray(Image.fromarray(pixels[..., 3].astype(np.uint8)).resize((40, 32), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - np.asarray(opacity)).mean() <= 4


@pytest.mark.parametrize("corruption", ["jpeg 5..95", "noise 0.02..0.3", "downscale 2", "blur 0.5..3"])
def test_gray_stays_gray(trembling, corruption):
    gray = photo(64, 48).convert("L")
    for given in (gray, gray.convert("RGB")):
        pixels = restore(given, corruption, trembling).pixels
        assert torch.equal(pixels.amax(1), pixels.amin(1))
        assert float(pixels.float().std()) > 1
    colors = restore(photo(64, 48), corruption, trembling).pixels.int()
    assert int((colors.amax(1) - colors.amin(1)).max()) > 8


@pytest.mark.parametrize("corruption", ["jpeg 5..95", "noise 0.02..0.3", "blur 0.5..3"])
def test_what_is_one_color_stays_that_color(trembling, corruption):
    """White becomes 253 by nearly any network."""
    image = Image.new("RGB", (192, 96), "white")
    image.paste(photo(64, 64), (0, 16))
    given, done = (to_uint8(x) for x in (to_tensor(image), restore(image, corruption, trembling).images[0]))
    assert torch.equal(given[:, :, 90:], done[:, :, 90:])
    near = (given.int() - done.int()).abs()[:, :, :64]
    assert float(near.float().mean()) > 1


def test_a_plain_model_is_a_prior_and_no_restorer(plain):
    done = restore(degraded(photo(64, 64), "downscale 2"), "downscale 2", plain, steps=3)
    assert done.method == "zero-shot"
    with pytest.raises(InputError, match="not trained to restore"):
        restore(photo(32, 32), "jpeg 10", plain, method="supervised")


def test_unreadable_images_are_data_errors(restorer, tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(photo(80, 60))[:300])
    with pytest.raises(DataError, match=r"Cannot read the (picture|image) 'half.png'"):
        restore(tmp_path / "half.png", "jpeg 10", restorer)


def test_an_ensemble_turns_with_the_image(trembling) -> None:
    """The mean over turns and mirror images does not care which way the image lies; one answer does."""
    given = degraded(photo(48, 48), "noise 0.1")
    turned = given.transpose(Image.Transpose.ROTATE_90)
    for self_ensemble in (True, False):
        there = restore(given, "noise 0.1", trembling, self_ensemble=self_ensemble).pixels[0]
        back = torch.rot90(restore(turned, "noise 0.1", trembling, self_ensemble=self_ensemble).pixels[0], -1, (1, 2))
        assert (int((there.int() - back.int()).abs().max()) <= 1) is self_ensemble


def test_a_hole_larger_than_a_tile_is_filled_from_around_it(restorer):
    """Tiles that lie in the hole see nothing of the image by themselves."""
    plain = Image.new("RGB", (192, 192), (200, 120, 60))
    hole = np.zeros((192, 192), np.uint8)
    hole[10:182, 10:182] = 255
    done = restore(plain, mask(to_tensor(Image.fromarray(hole)) / 2 + 0.5), restorer, tile=64, overlap=32)
    off = (done.pixels[0].float() - torch.tensor([200.0, 120, 60])[:, None, None]).abs()
    assert float(off.max()) <= 2


@pytest.mark.parametrize("block", [5, 10])
def test_squares_lie_on_their_own_grid_in_every_tile(plain, block):
    given = degraded(photo(400 // block * block, 90, seed=3), f"pixelate {block}")
    done = restore(given, f"pixelate {block}", plain, steps=2, tile=64, overlap=16)
    assert done.error is not None and done.error[0] < 1.5


@torch.no_grad()
def test_samples_of_overlapping_tiles_are_one_image(plain):
    """Fresh noise hangs on the place, too: what two tiles make of the same pixels differs by what they cannot see."""
    what = parse("downscale 2")
    measurement = Measurement(photo(96, 64, seed=1), what, channels=3, exact=True)
    work = TiledRestoration(measurement, plain, "zero-shot", RestoreOptions(steps=4)).worker(lambda n: None)
    one, other = (work(tiles.Tile(0, left, 64, 64))[0] for left in (0, 32))
    shared = one[:, 32:-32, 96:112], other[:, 32:-32, 32:48]  # 16 pixels of the input from the borders
    apart = float((shared[0] - shared[1]).square().mean().sqrt())
    assert apart < 0.1 * float((shared[0] - to_tensor(photo(96, 64, seed=1)).mean()).square().mean().sqrt())


@pytest.mark.parametrize(("options", "told"), [
    ({"corruption": "noise 0.1", "answer": "mean", "n": 3}, "one answer"),
    ({"corruption": "noise 0.1", "method": "cold", "n": 2}, "cold method"),
    ({"corruption": "downscale 2", "method": "zero-shot", "answer": "mean"}, "samples"),
    ({"corruption": "logo mark.png", "method": "zero-shot"}, "Say what is missing of logo: opacity"),
])  # fmt: skip
def test_what_would_change_nothing_is_refused(restorer, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    photo(8, 8, mode="RGB").convert("RGBA").save("mark.png")
    with pytest.raises(InputError, match=told):
        restore(photo(32, 32), model=restorer, **options)


def test_a_model_of_latents_restores_nothing():
    """Corruptions are of pixels: three channels of latents are no colors."""
    autoencoder = nets.build({"name": "kl", "channels": 3, "latent": 3, "width": 8, "multiples": [1], "blocks": 1})
    net = nets.build({**SMALL, "in_channels": 3, "out_channels": 3})
    latent = Model(Denoiser(net).eval(), (3, 16, 16), autoencoder=autoencoder.eval())
    with pytest.raises(InputError, match="works in latents"):
        restore(photo(32, 32), "fade 0.5", latent)


def test_an_option_that_there_is_not(restorer):
    with pytest.raises(InputError, match=r"No option of restore named 'ensemble'. Did you mean 'self_ensemble'"):
        restore(photo(32, 32), "jpeg 30", restorer, ensemble=True)


def test_the_device_of_the_bundled_restorer():
    with pytest.raises(InputError, match="No device 'nonsense'"):
        restore(photo(32, 32), "jpeg 30", device="nonsense")


def test_marked_images_of_one_name_are_all_kept(tmp_path, capsys, monkeypatch):
    assert [p.name for p in written(["1", "1", "mark"], tmp_path)] == ["1.png", "1-2.png", "mark.png", "mark-2.png"]
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        photo(32, 32).save(f"{name}.png")
    before = (tmp_path / "a.png").read_bytes()
    assert main(["unmark", "a.png", "b.png", "c.png", "-o", "."]) == 2
    assert "one of the originals" in capsys.readouterr().err and (tmp_path / "a.png").read_bytes() == before


# ---- what the bundled restorer was not trained for ----------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["posterize 4", "posterize 12", "pixelate 2", "pixelate 7", "downscale 2 area", "downscale 3"]
)
def test_the_mean_of_what_was_rounded_or_averaged_is_nearer_than_the_input(what):
    """Samples were up to 3.5 dB farther off than a posterized photograph itself."""
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(load_sample_image(name)).crop((250, 150, 376, 246))
        given = degraded(image, what)
        done = restore(given, what)
        before = given.resize(image.size, Image.Resampling.BICUBIC)
        assert error(done.to_pil()[0], image) < 0.95 * error(before, image)
        assert done.error is not None and done.error[1] < 2  # degraded again it gives the input
    assert torch.equal(done.pixels, restore(given, what, answer="mean").pixels)


def test_tiles_of_a_posterized_image_agree():
    given = degraded(photo(192, 96, seed=2), "posterize 5")
    whole, tiled = (restore(given, "posterize 5", tile=tile, overlap=64).pixels[0].int() for tile in (192, 96))
    assert float((whole - tiled).abs().float().mean()) < 0.5


def test_a_pixelated_image_may_end_within_a_square():
    given = degraded(photo(101, 87, seed=4), "pixelate 4")
    done = restore(given, "pixelate 4")
    assert done.to_pil()[0].size == (101, 87)
    assert error(done.to_pil()[0], photo(101, 87, seed=4)) < error(given, photo(101, 87, seed=4))


def test_what_has_no_color_comes_back_to_the_bit():
    """The few colors that the bundled restorer finds are noise."""
    gray = photo(96, 64, seed=5).convert("L")
    with pytest.warns(UserWarning, match="few colors"):
        done = restore(gray, "gray")
    assert torch.equal(done.pixels[0], torch.from_numpy(np.asarray(gray)).expand(3, -1, -1))
    assert any("Hardly any color" in note for note in done.notes)


def test_colors_that_were_asked_for_stay_however_faint():
    gray, hints = photo(96, 64, seed=5).convert("L"), Image.new("RGBA", (96, 64))
    hints.paste((126, 118, 118, 255), (40, 30, 44, 34))
    done = restore(gray, "gray", hints=hints)
    assert any("Hardly any color" in note for note in done.notes)
    red, green, _ = done.pixels[0, :, 32, 42].tolist()
    assert red > green


def test_a_file_is_a_file_whatever_its_name(tmp_path, monkeypatch):
    """ "inpaint mask.png" is no "mask", and what stands in quotes is text."""
    monkeypatch.chdir(tmp_path)
    hole = Image.new("L", (96, 64))
    hole.paste(255, (30, 20, 40, 30))
    for name in ("mask.png", "noise.png", "hole (copy).png", "a, gray.png"):
        hole.save(name)
        assert str(parse_task(f"inpaint '{name}'")) == str(parse_task(f"mask '{name}'"))
        assert restore(photo(96, 64), f"inpaint {name!r}").to_pil()[0].size == (96, 64)
    assert str(parse_task("inpaint mask.png, jpeg 30")) == "mask mask.png, jpeg 30"
    assert parse_task("watermark 'upscale, x | (World)' 0.5").steps[0].values == ("upscale, x | (World)", 0.5)
    assert str(parse_task("deblur motion 9 30, inpaint mask 0.2")) == "motion 9 30, mask 0.2"


def test_a_mask_of_all_is_refused(restorer, tmp_path):
    Image.new("L", (96, 64), 255).save(tmp_path / "all.png")
    with pytest.raises(InputError, match="covers the whole image"):
        restore(photo(96, 64), f"inpaint '{tmp_path / 'all.png'}'", restorer)


@pytest.mark.parametrize("text", ["blur 0", "defocus 0"])
def test_no_blur_is_no_other_blur(text):
    done = restore(photo(128, 112), text)
    assert done.corruption == text and not done.notes


def test_noise_of_255_may_stand_anywhere():
    one_of, jpeg_after = _asked("(blur 1 | noise 5), jpeg 30")[1].parts
    assert str(one_of) == "blur 1 | noise 0.0392" and str(jpeg_after) == "jpeg 30"
    _, ranged, notes = _asked("noise 5..25")
    assert str(ranged) == "noise 0.0392..0.1961" and "5..25 of 255: noise 0.0392..0.1961" in notes[0]
    assert _asked("noise 0.02..0.3")[1:] == (parse("noise 0.02..0.3"), ())


def test_a_pipe_takes_one_image(tmp_path, monkeypatch, capfdbinary):
    first = io.BytesIO()
    photo(96, 64).save(first, "MPO", save_all=True, append_images=[photo(48, 32)])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(first.getvalue())))
    assert main(["restore", "-", "-o", str(tmp_path / "a.png")]) == 0  # a JPEG file, as cameras write it
    assert str(tmp_path / "a.png").encode() in capfdbinary.readouterr().err
    photo(96, 64).save(tmp_path / "b.jpg")
    for several in ("-n2", "--compare"):
        assert main(["restore", str(tmp_path / "b.jpg"), several, "-o", "-"]) == 2
        assert b"To stdout goes one image" in capfdbinary.readouterr().err
    photo(96, 64).save(tmp_path / "c.jfif", "JPEG")
    assert main(["restore", str(tmp_path / "c.jfif")]) == 0


def test_images_are_taken_in_the_order_that_they_were_named(tmp_path, capsys):
    for name in "cab":
        photo(40, 40, seed=ord(name)).save(tmp_path / f"{name}.png")
    named = [tmp_path / f"{name}.png" for name in "cba"]
    assert [file for file, _ in gather([*named, tmp_path], {".png"})] == named
    assert main(["remove-watermark", str(tmp_path), "-o", str(tmp_path / "out")]) == 2  # a folder of images
    assert "Cannot read" not in (told := capsys.readouterr().err) and "watermark" in told


@pytest.mark.parametrize("text", ["watermark SAMPLE 1 0.6 0.5 0.5", "logo mark.png 1"])
def test_a_mark_that_is_not_there_spoils_nothing_beside_it(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(48, 32, seed=3).save("mark.png")
    image, what = photo(96, 64), parse_task(text)
    black, white = (what.on((3, 64, 96), [0]).mean(torch.full((1, 3, 64, 96), v)) for v in (0.0, 1.0))
    beside = ((white - black) == 1).all(1)[0]
    done = restore(image, text)
    assert 1000 < int(beside.sum()) < 6000
    assert int((done.pixels[0].int() - torch.from_numpy(np.array(image)).permute(2, 0, 1))[:, beside].abs().max()) <= 1
