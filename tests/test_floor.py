"""No restoration makes an image worse: files that say what they are, blurs that are said wrongly, chains, marks."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image

from fastdiffusion import restore
from fastdiffusion.cli import main
from fastdiffusion.corruptions import Step, jpeg, parse
from fastdiffusion.io.images import jpeg_tables, read_image, to_pil, to_tensor, to_uint8
from fastdiffusion.tasks.restoration.blind_deblurring import plausible, refined
from fastdiffusion.tasks.restoration.jpeg_files import file_step, rounded_away
from fastdiffusion.tasks.restoration.restore import drawn
from fastdiffusion.tasks.restoration.trials import mixture
from fastdiffusion.tasks.restoration.watermarks import WatermarkResult, remaining, remove_watermark

BENCH = Path(__file__).parents[1] / "bench"


def scene(width: int = 192, height: int = 160) -> torch.Tensor:
    """Overlapping disks of all sizes and colors, whose spectrum falls as a photograph's does (dead leaves)."""
    rng = np.random.default_rng(5)
    pixels = np.zeros((height, width, 3), np.float32)
    down, across = np.mgrid[:height, :width]
    for _ in range(700):
        radius = 3 / (1 - rng.random() * 0.94)
        at = (down - rng.integers(height)) ** 2 + (across - rng.integers(width)) ** 2 < radius**2
        pixels[at] = rng.integers(30, 225, 3) + rng.normal(0, 4, (int(at.sum()), 1))
    return to_tensor(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))[None]


def after(text: str, x: torch.Tensor) -> Image.Image:
    return to_pil(to_uint8(parse(text).on(x.shape[1:], [0]).forward(x))[0])


def decibels(image: Image.Image | torch.Tensor, x: torch.Tensor) -> float:
    y = image if isinstance(image, torch.Tensor) and image.is_floating_point() else to_tensor(image)
    return 10 * math.log10(4 / float((y - x[0]).square().mean()))


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import restoration_floor

    return restoration_floor


# ---- JPEG files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "colors"), [("4:2:0", "420"), ("4:2:2", "422"), ("4:4:0", "440"), ("4:4:4", "444"),
                                             ("turned", "422"), ("CMYK", "rgb420")])  # fmt: skip
def test_a_file_says_how_its_colors_are_kept(bench, tmp_path, way, colors):
    """And the operator of these steps makes of the image what Pillow reads."""
    image = Image.fromarray(np.asarray(photo(96, 64)))
    path = bench.stored(image, tmp_path / "a.jpg", 40, way)
    steps, kept, orientation = jpeg_tables(path)
    assert kept == colors and orientation == (6 if way == "turned" else 1)
    if way != "turned":
        again = jpeg(steps, kept).on((3, 64, 96), [0]).mean(to_tensor(image)[None])[0]
        assert float((again - to_tensor(read_image(path))).abs().mean()) * 127.5 < 1.6


@pytest.mark.parametrize("way", ["4:2:0", "4:4:0", "4:4:4", "turned", "CMYK"])
def test_no_jpeg_file_loses_and_its_colors_come_nearer(bench, tmp_path, way):
    x = scene(96, 96)
    image = to_pil(x[0])
    for quality in (10, 75, 90):
        path = bench.stored(image, tmp_path / "a.jpg", quality, way)
        before = to_tensor(read_image(path))
        done = restore(path, "dejpeg").images[0]
        assert decibels(done, x) >= decibels(before, x) - 0.005
        if quality == 10:
            assert bench.chroma(done, x[0]) < 0.97 * bench.chroma(before, x[0])


def test_gray_stays_gray(tmp_path):
    photo(64, 64).convert("L").convert("RGB").save(tmp_path / "a.jpg", quality=10)
    done = restore(tmp_path / "a.jpg", "dejpeg").images[0]
    assert bool((done == done[:1]).all())


def test_a_file_of_unknown_colors_is_changed_by_its_quality(tmp_path):
    """Ink in the black plane: no layout is known, the steps are; at quality 97 nothing is changed."""
    cmyk = Image.merge("CMYK", [*photo(64, 64).split(), photo(64, 64, seed=2).convert("L")])
    cmyk.save(tmp_path / "a.jpg", quality=97)
    assert jpeg_tables(tmp_path / "a.jpg")[1] is None
    assert torch.equal(restore(tmp_path / "a.jpg", "dejpeg").images[0], to_tensor(read_image(tmp_path / "a.jpg")))


def test_a_jpeg_needs_no_description_and_others_do(tmp_path, capsys):
    photo(64, 48).save(tmp_path / "a.jpg", quality=20)
    photo(64, 48).save(tmp_path / "a.png")
    assert main(["restore", str(tmp_path / "a.jpg")]) == 0 and "jpeg undone" in capsys.readouterr().out
    assert main(["restore", str(tmp_path / "a.png")]) == 2 and "Say what happened" in capsys.readouterr().err


# ---- blurs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("true", "said"), [
    ("motion 9 30", "motion 9 30"), ("motion 9 30", "motion 10 30"), ("motion 9 30", "motion 9 20"),
    ("defocus 3", "defocus 3"), ("defocus 3", "defocus 4"), ("blur 2", "blur 2"), ("blur 2", "blur 3"),
])  # fmt: skip
def test_the_image_corrects_a_blur(true, said):
    y = to_tensor(after(true, scene()))[None]
    found, right = refined(Step(*_parts(said)), y), Step(*_parts(true))
    assert found.name == right.name and (said != true or found == right)
    apart = [abs(a - b) for a, b in zip(found.values, right.values, strict=True)]
    assert apart[0] <= 0.5 and all(a <= 5 for a in apart[1:])


@pytest.mark.parametrize("width", [1.0, 1.5, 2.0, 3.0])
def test_a_width_follows_the_image_by_probability(width):
    """What is wrong is corrected, far off it is out altogether; and what is right stays in."""
    named = Step("blur", (width,))
    likely = plausible(named, to_tensor(after("blur 2", scene()))[None])
    assert sum(likely.values()) == pytest.approx(1)
    expected = sum(share * step.values[0] for step, share in likely.items())
    assert abs(expected - 2) <= max(0.65 * abs(width - 2), 0.2)
    assert likely.get(named, 0) > 0.4 if width == 2 else likely.get(named, 0) < (0.5 if width == 1.5 else 1e-9)


def _parts(text: str) -> tuple[str, tuple[float, ...]]:
    name, *values = text.split()
    return name, tuple(map(float, values))


def test_a_kernel_that_is_off_makes_no_ripples():
    x = scene()
    y = after("motion 9 30", x)
    exact, off = (restore(y, text) for text in ("motion 9 30", "motion 10 40"))
    assert not exact.notes and "The image fits motion" in off.notes[0]
    assert decibels(off.images[0], x) > decibels(exact.images[0], x) - 0.5 > decibels(y, x) + 3
    kept = restore(y, "motion 10 40", refine=False)
    assert not kept.notes and decibels(kept.images[0], x) < decibels(off.images[0], x) - 1


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_a_width_that_is_known_is_of_use(width):
    """A restorer that was trained on blurs does not know which: undone by the kernel itself, it is nearer."""
    x = scene()
    y = after(f"blur {width:g}", x)
    done, trained = (restore(y, f"blur {width:g}", method=how, refine=False) for how in ("auto", "supervised"))
    assert (done.method, trained.method) == ("zero-shot", "supervised")
    assert decibels(done.images[0], x) > decibels(trained.images[0], x) + 0.2
    assert decibels(done.images[0], x) > decibels(restore(y, "deblur blind").images[0], x) - 0.5
    assert restore(y, f"blur {width:g}", n=2, steps=1, refine=False).method == "supervised"  # samples


def test_a_sample_has_one_width():
    """Where the image leaves two widths open, a sample is of one of them, and its seed says which."""
    y = after("blur 2", scene())
    likely = plausible(Step("blur", (1.7,)), to_tensor(y)[None])
    assert len(likely) == 2
    done = restore(y, "blur 1.7", n=3, steps=2, seed=1)
    assert "each result is of one of them" in done.notes[0]
    steps = [drawn(likely, seed) for seed in (1, 2, 3)]
    assert len(set(steps)) == 2
    for step, pixels, seed in zip(steps, done.pixels, (1, 2, 3), strict=True):
        alone = restore(y, str(step), answer="sample", steps=2, seed=seed, refine=False)
        assert int((alone.pixels[0].int() - pixels.int()).abs().max()) <= 1


def test_seeds_draw_each_as_often_as_it_is_likely():
    a, b = (Step("blur", (width,)) for width in (1.0, 2.0))
    for first in (0, 1000):
        assert sum(drawn({a: 0.3, b: 0.7}, first + i) == a for i in range(20)) in (5, 6, 7)


@pytest.mark.parametrize("text", ["motion 9 30, jpeg 90", "blur 2, noise 5, jpeg 80", "defocus 3, jpeg 80"])
def test_what_happened_last_is_undone_first(text):
    x = scene()
    y = after(text.replace("noise 5", "noise 0.0392"), x)
    done = restore(y, text)
    assert decibels(done.images[0], x) > decibels(y, x) and done.corruption.startswith(text.split()[0])
    assert done.method == "zero-shot"  # the blur by its kernel, of whichever kind
    assert ("5 of 255" in str(done)) == ("noise 5" in text)


@pytest.mark.parametrize("happened", ["blur 2, jpeg 80", "motion 9 30, jpeg 75"])
def test_jpegs_rounding_is_no_sharpness(happened):
    """Rounding fills a blurred spectrum up: unless that is known, it looks like one that was hardly blurred."""
    y = to_tensor(after(happened, scene()))[None]
    named = parse(happened).steps[0]
    assert refined(named, y, rounded_away(y, parse(happened))) == named
    assert refined(named, y) != named


# ---- trials -------------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_nearest_there_is():
    """Of the truth and two errors of its own; and nothing but what was given where all else is worse."""
    noise = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    truth, *answers = to_uint8(torch.stack([torch.zeros(3, 64, 64), *(0.1 * noise)]))
    assert mixture(answers, truth) == pytest.approx([1 / 3] * 3, abs=0.051)
    assert mixture([answers[0], truth, answers[1]], truth) == [0, 1, 0]
    assert mixture([answers[0], answers[0] // 2 + 127, answers[1]], truth)[1] == 0


@pytest.mark.parametrize("text", ["downscale 2, jpeg 50", "downscale 2, jpeg 80", "blur 1, noise 0.05, jpeg 50"])
def test_a_trial_takes_no_worse_than_all_in_one_go(text):
    """Fine texture, of which a restorer makes too much; undoing all in one go is one of the answers."""
    x = (scene() + 0.15 * torch.randn(1, 1, 160, 192, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    y = after(text, x)
    plain = parse(text).on(x.shape[1:], [0]).lift(to_tensor(y)[None])[0]
    weighed, joint = (decibels(restore(y, text, method=how).images[0], x) for how in ("auto", "supervised"))
    assert weighed >= decibels(plain, x) - 0.005
    assert weighed >= joint - 0.005


def test_a_blurred_jpeg_file_tells_its_rounding(tmp_path):
    """Deconvolved as if it had been exact, its rounding is magnified."""
    x = scene()
    after("motion 9 30", x).save(tmp_path / "a.jpg", quality=85)
    y = read_image(tmp_path / "a.jpg")
    y.save(tmp_path / "a.png")
    told, untold = (decibels(restore(tmp_path / name, "motion 9 30").images[0], x) for name in ("a.jpg", "a.png"))
    assert told > decibels(y, x) + 0.5 and told > untold + 0.5


def test_a_files_rounding_lies_as_the_image_is_shown(tmp_path):
    """Of a file that is turned by its EXIF, across is down."""
    image, exif = photo(64, 48), Image.Exif()
    image.save(tmp_path / "a.jpg", quality=30, subsampling="4:2:2")
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", quality=30, subsampling="4:2:2", exif=exif)
    (upright, _), (turned, colors) = (file_step(tmp_path / name).values for name in ("a.jpg", "b.jpg"))
    assert torch.equal(turned, upright.transpose(-1, -2)) and not torch.equal(turned, upright)
    assert colors == "440"


# ---- marks and colors ---------------------------------------------------------------------------------------------


def test_what_remains_of_a_mark_is_measured():
    """All of it in what was not touched, none in the originals, half in the mean of both."""
    x = torch.stack([to_tensor(photo(160, 96, seed=20 + i)) for i in range(8)])
    y = parse("watermark 'AB' 0.5 0.5 0.5 0.5").on(x.shape[1:], [0] * 8).forward(x)
    assert remaining(y, y) == 1
    assert abs(remaining(y, x)) < 0.1
    assert remaining(y, (x + y) / 2) == pytest.approx(0.5, abs=0.06)


def test_a_mark_that_is_not_gone_is_said_and_exits_with_1(tmp_path, monkeypatch, capsys):
    zero = torch.zeros(3, 3, 16, 16)
    done = WatermarkResult(zero, ("a", "b", "c"), zero[0, 0] + 0.5, zero[0], remains=0.2)
    assert not done.succeeded and "not gone: 20%" in str(done) and "8 or so" in str(done)
    monkeypatch.setattr("fastdiffusion.tasks.restoration.watermarks.remove_watermark", lambda *_, **__: done)
    names = []
    for name in "abc":
        photo(16, 16).save(tmp_path / f"{name}.png")
        names.append(str(tmp_path / f"{name}.png"))
    assert main(["remove-watermark", *names, "-o", str(tmp_path / "out")]) == 1
    assert "may still be read" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("tesseract"), reason="needs tesseract: sudo apt-get install tesseract-ocr")
def test_nothing_is_read_where_it_says_that_it_succeeded(tmp_path):
    x = 0.3 * torch.stack([to_tensor(photo(320, 160, seed=20 + i)) for i in range(10)]) - 0.4
    y = parse("watermark 'SAMPLE' 0.5 0.8 0.5 0.5").on(x.shape[1:], [0] * 10).forward(x)

    def read(image: torch.Tensor) -> str:
        to_pil(image).resize((960, 480)).save(tmp_path / "a.png")
        call = ["tesseract", str(tmp_path / "a.png"), "-", "--psm", "6"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout

    assert any("SAMPLE" in read(image) for image in y[:3])
    for n in (3, 10):
        done = remove_watermark([to_pil(image) for image in y[:n]])
        assert not done.succeeded or not any("SAMPLE" in read(image) for image in done.images[:3])
    assert done.succeeded


# ---- streams ------------------------------------------------------------------------------------------------------


def test_an_image_goes_from_stdin_to_stdout(tmp_path, monkeypatch, capsysbinary):
    buffer = io.BytesIO()
    photo(64, 48).save(buffer, "JPEG", quality=20)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(buffer.getvalue())))
    assert main(["restore", "-"]) == 0
    out, said = capsysbinary.readouterr()
    assert Image.open(io.BytesIO(out)).size == (64, 48) and b"jpeg undone" in said
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(buffer.getvalue())))
    assert main(["restore", "-", "-o", str(tmp_path / "named.png")]) == 0
    assert b"named.png" in capsysbinary.readouterr().err, "the file, and not stdout"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no image")))
    assert main(["restore", "-", "-o", str(tmp_path / "a.png")]) == 2
    assert b"Cannot read the image on stdin" in capsysbinary.readouterr().err
    assert main(["restore", "-", "other.png"]) == 2
