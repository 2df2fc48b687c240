"""Style transfer: exact at strength 0, monotone in between, the same in tiles as in one piece."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from fastdiffusion import cli, nets
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.guidance.attention import shared_attention
from fastdiffusion.io.images import to_pil
from fastdiffusion.io.inputs import as_tensor
from fastdiffusion.models import Model
from fastdiffusion.nets.autoencoders import KL
from fastdiffusion.nets.perceptual import style_distance
from fastdiffusion.noise import generator
from fastdiffusion.tasks.stylization import network, statistics
from fastdiffusion.tasks.stylization import stylize as stylization_stylize
from fastdiffusion.tasks.stylization.network import Stylizer
from fastdiffusion.tasks.stylization.stylize import stylize, stylize_inside, stylize_steps


def waves(h, w, across, color):
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    wave = torch.sin(6.283 * across * (x + 0.5 * y)) * 0.5
    return (wave * torch.tensor(color)[:, None, None]).clamp(-1, 1)


CONTENT, STYLE = waves(48, 64, 2, (0.6, 0.4, 0.2)), waves(56, 56, 9, (-0.9, 0.8, 0.9))


def small_net(x):
    """A fixed random net: the machinery does not depend on the features being good."""
    torch.manual_seed(0)
    return [torch.relu(nn.functional.conv2d(x, torch.randn(6, 3, 3, 3), padding=1))]


WAYS = ({"method": "patches"}, {"method": "features", "net": small_net})
each_way = pytest.mark.parametrize("way", WAYS, ids=[way["method"] for way in WAYS])


@each_way
def test_strength_0_is_the_input_and_the_rest_is_monotone(way):
    picture = to_pil(CONTENT)
    (same,) = stylize(picture, STYLE, strength=0.0, steps=2, **way).to_pil()
    assert same.tobytes() == picture.tobytes()
    away = []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        *_, last = stylize_steps(CONTENT, STYLE, strength=strength, steps=12, **way)
        away.append(float(style_distance(last.image[None], STYLE[None], small_net)))
    assert all(b < a for a, b in itertools.pairwise(away))
    assert away[-1] < 0.5 * away[0]


@each_way
def test_steps_count_and_sizes(way):
    steps = list(stylize_steps(CONTENT, STYLE, size=64, steps=3, **way))
    assert [s.done for s in steps] == list(range(1, 4)) and {s.of for s in steps} == {3}
    levels = stylization_stylize.pyramid(torch.zeros(1, 3, 300, 640), 512)
    assert [tuple(x.shape[-2:]) for x in levels] == [(60, 128), (120, 256), (240, 512)]
    assert stylize(to_pil(CONTENT), STYLE, size=32, steps=1, **way).images.shape == (1, 3, 48, 64)


@each_way
def test_alpha_and_grays_pass(way):
    cutout = to_pil(CONTENT).convert("RGBA")
    cutout.putalpha(Image.linear_gradient("L").resize(cutout.size))
    (made,) = stylize(cutout, STYLE, steps=1, **way).to_pil()
    assert made.mode == "RGBA" and made.getchannel("A").tobytes() == cutout.getchannel("A").tobytes()
    assert stylize(to_pil(CONTENT).convert("L"), STYLE, steps=1, **way).images.shape[1] == 3


@each_way
def test_what_is_said_of_transparency_is_true(way, tmp_path):
    cutout = to_pil(CONTENT).convert("RGBA")
    cutout.putalpha(Image.linear_gradient("L").resize(cutout.size))
    cutout.save(tmp_path / "cutout.png")
    made = stylize(tmp_path / "cutout.png", STYLE, steps=1, **way)
    assert made.images.shape[1] == 4 and not made.notes
    with pytest.warns(UserWarning, match="A JPEG keeps no transparency"):
        made.save(tmp_path / "out.jpg")


@each_way
def test_what_is_transparent_is_no_white(way):
    """A dark disc cut out: neither its rim nor its colors have any of a paper that is not there, or of what rounding
    left of colors that nobody sees."""
    disc = Image.new("RGBA", (256, 256), (40, 20, 60, 0))
    ImageDraw.Draw(disc).ellipse((40, 40, 215, 215), fill=(40, 20, 60, 255))
    disc = disc.resize((64, 64), Image.Resampling.LANCZOS)
    made = np.array(stylize(disc, Image.new("RGB", (32, 32), (40, 20, 60)), steps=1, **way).to_pil()[0])
    assert made[..., 3].tobytes() == disc.getchannel("A").tobytes() and int(made[..., :3].max()) < 90


@each_way
def test_an_image_is_seen_as_its_camera_was_held(way, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    to_pil(CONTENT).save(tmp_path / "turned.png", exif=exif)
    options = {"steps": 1, **way}
    given = Image.open(tmp_path / "turned.png")
    file, image = (stylize(one, STYLE, **options).images for one in (tmp_path / "turned.png", given))
    assert file.shape[2:] == (64, 48) and torch.equal(file, image)


def test_plain_places_take_the_texture():
    """The nearest patch of a plain one would be a plain one, however little of the style is plain."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    hatched = (((x + y) % 8 < 2).float() * -1.2 + 0.6).masked_fill(x < 24, 0.3).expand(1, 3, -1, -1)
    *_, last = stylize_steps(torch.full((3, 96, 96), 0.3), hatched[0], strength=1.0, size=96)
    assert last.image.std() > 0.4 * hatched.std()


@pytest.mark.parametrize("shape", [(16, 16), (16, 300), (64, 17)])
def test_images_of_few_rows(shape):
    few = waves(shape[0], shape[1], 2, (0.6, 0.4, 0.2))
    for content, style in ((few, STYLE), (CONTENT, few)):
        made = stylize(content, style, strength=1.0, steps=1).images
        assert made.shape[2:] == content.shape[1:] and bool(made.isfinite().all())


def test_tiles_have_the_gradient_of_the_whole(monkeypatch):
    x = torch.rand(1, 3, 40, 56, dtype=torch.float64, generator=generator(0)) * 2 - 1
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=generator(2))

    def net(v):
        return [torch.relu(nn.functional.conv2d(v, kernel, padding=1))]

    along = statistics.directions(x, net, 1)
    goal = statistics.statistics(x.flip(-1) * 0.5, along, net)
    values, gradients = [], []
    for tile in (64, 16):
        monkeypatch.setattr(statistics, "TILE", tile)
        monkeypatch.setattr(statistics, "HALO", 4)
        monkeypatch.setattr(statistics, "PLACES", 1 << 20)
        at = x.clone().requires_grad_()
        now = statistics.statistics(at, along, net, x * 0.9)
        value = now.distance(goal) + now.away
        value.backward()
        values.append(value.detach())
        gradients.append(at.grad)
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-9)


def test_colors_are_moved_exactly_and_least():
    x, y = CONTENT[None] + 0.1 * torch.randn(1, 3, 48, 64), 0.3 * torch.randn(1, 3, 56, 56) - 0.1
    moved = statistics.recolored(0.2 * x, statistics.colors(0.2 * y), 1.0)
    mine, wanted = statistics.colors(moved), statistics.colors(0.2 * y)
    torch.testing.assert_close(mine.mean, wanted.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.covariance, wanted.covariance, rtol=0, atol=1e-4)
    torch.testing.assert_close(statistics.recolored(x, statistics.colors(x), 1.0), x.clamp(-1, 1), rtol=0, atol=1e-5)
    assert torch.equal(statistics.recolored(CONTENT[None], wanted, 0.0), CONTENT[None])


def test_edges_are_blind_to_contrast_and_not_to_places():
    x = CONTENT[None]
    assert statistics.edge_similarity(x, 0.4 * x + 0.1) > 0.99
    assert statistics.edge_similarity(x, x.roll(9, -1)) < 0.7


def test_a_net_learns_a_style_and_resumes(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        to_pil(waves(32, 32, i + 1, (0.5, 0.3, 0.1 * i))).save(tmp_path / "photos" / f"{i}.png")
    call = {"data": str(tmp_path / "photos"), "size": 32, "batch_size": 1, "folder": tmp_path / "run"}
    made = network.train_style(to_pil(STYLE), steps=3, **call).model
    again = network.load(tmp_path / "run" / "style.safetensors")
    x = CONTENT[None]
    assert torch.equal(made(x, 0.0), x)
    assert torch.equal(made(x, 0.7), again(x, 0.7)) and not torch.equal(made(x, 0.7), x)
    assert torch.allclose(made(x, 0.5), (x + made(x, 1.0)) / 2, atol=1e-6)  # a place on the straight way
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    made = stylize(to_pil(CONTENT), tmp_path / "run" / "style.safetensors", strength=0.5, size=32)
    assert made.images.shape == (1, 3, 48, 64)
    with pytest.raises(CheckpointError, match="holds a run with"):
        network.train_style(to_pil(STYLE), steps=4, **{**call, "batch_size": 2})
    with pytest.raises(InputError, match="at least 16 and keep at least 0, got 32, 8"):
        network.train_style(to_pil(STYLE), steps=1, **{**call, "crop": 8})


# ---- inside a model -----------------------------------------------------------------------------------------------


def attentive(seed=0, attention=(0,), channels=3, **given):
    torch.manual_seed(seed)
    spec = {"name": "unet", "width": 8, "head": 8, "multiples": [1], "blocks": [1], "attention": list(attention)}
    net = nets.build({**spec, "in_channels": channels, "out_channels": channels})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return Model(Denoiser(net).eval(), given.pop("shape", (channels, 16, 16)), **given)


def test_shared_attention_is_off_at_0_and_leaves_no_trace():
    model, x, sigma = attentive(), torch.randn(2, 3, 16, 16), torch.full((2,), 0.7)
    style = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        plain = model.denoise(x, sigma)
        assert torch.equal(shared_attention(model.denoise, model.modules["net"], style, 0.0)(x, sigma), plain)
        looking = shared_attention(model.denoise, model.modules["net"], style, 1.0)(x, sigma)
        assert (looking - plain).abs().max() > 1e-3
        near = shared_attention(model.denoise, model.modules["net"], style, 1e-4)(x, sigma)
        torch.testing.assert_close(near, plain, rtol=0, atol=1e-3)
        assert torch.equal(model.denoise(x, sigma), plain)


def test_inside_a_model():
    model, content = attentive(), 0.5 * torch.randn(1, 3, 16, 16).clamp(-1, 1)
    style = torch.randn(1, 3, 16, 16).clamp(-1, 1)
    assert torch.equal(stylize_inside(model, content, style, 0.0, steps=3), content)
    made = stylize_inside(model, content, style, 0.8, steps=3)
    assert made.isfinite().all() and not torch.equal(made, content)
    assert stylize(to_pil(content[0]), to_pil(style[0]), strength=0.5, steps=2, model=model).images.shape[2:] == (
        16,
        16,
    )
    with pytest.raises(InputError, match="no attention"):
        stylize_inside(attentive(attention=()), content, style, 0.5)


def test_inside_a_model_of_latents():
    """Pictures go in and pictures come out; at strength 0 the content itself."""
    model = attentive(channels=4, shape=(4, 4, 4), autoencoder=KL(3, 4, 8).eval())
    content, style = (0.5 * torch.randn(1, 3, 16, 16).clamp(-1, 1) for _ in range(2))
    torch.testing.assert_close(stylize_inside(model, content, style, 0.0, steps=2), content, atol=1e-5, rtol=0)
    made = stylize(to_pil(content[0]), to_pil(style[0]), strength=0.8, steps=2, model=model)
    assert made.images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("rest", [1, 4, 7, 12])
def test_a_rest_beyond_the_tiles_is_no_tile_of_its_own(rest, monkeypatch):
    monkeypatch.setattr(statistics, "TILE", 64)
    x = torch.rand(1, 3, 64 + rest, 32, generator=generator(0)) * 2 - 1
    along = statistics.directions(x, None, 0)
    found = statistics.statistics(x, along, None, x.flip(-1))
    assert bool(found.away.isfinite()) and all(bool(g.isfinite().all()) for g in found.grams)


# ---- what cannot be done ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "sentence"), [
    ({"strength": 1.5}, "strength must be from 0 to 1"), ({"steps": 0}, "steps at least 1"),
    ({"size": 4}, "size must be at least 16"), ({"keep": float("nan")}, "keep at least 0"),
    ({"method": "patches"}, "net is for features"), ({"method": "patches", "keep": 1.5}, "from 0 to 1 for patches"),
    ({"method": "strokes"}, "No method named"),
])  # fmt: skip
def test_bad_numbers(change, sentence):
    with pytest.raises(InputError, match=sentence):
        next(stylize_steps(CONTENT, STYLE, **{"method": "features", "net": small_net, **change}))


@pytest.mark.parametrize("option", ["method", "steps", "keep", "model", "seed"])
def test_a_net_of_a_style_takes_no_other_way(option):
    value = {"method": "features", "keep": 0.5, "model": "emoji"}.get(option, 3)
    with pytest.raises(InputError, match=f"{option} does nothing with a net that has learned its style. Leave it out"):
        stylize(CONTENT, Stylizer(), **{option: value})


@pytest.mark.parametrize(("device", "sentence"), [("cuda:99", "No device 'cuda:99' here"), ("mps", "float64")])
def test_a_device_that_there_is_not(device, sentence, tmp_path, capsys):
    to_pil(CONTENT).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=sentence):
        stylize(CONTENT, STYLE, device=device)
    for words in (["stylize", str(tmp_path / "a.png")], ["train-style", "--data", str(tmp_path)]):
        assert cli.main([*words, str(tmp_path / "a.png"), "--device", device]) == 2
        assert sentence in capsys.readouterr().err


def test_bad_pictures(tmp_path, capsys):
    with pytest.raises(InputError, match="The style is 1x1 pixels"):
        stylize(CONTENT, torch.zeros(3, 1, 1))
    (tmp_path / "no.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"Cannot read the content 'no.png'"):
        stylize(tmp_path / "no.png", STYLE)
    to_pil(STYLE).save(tmp_path / "style.png")
    out = tmp_path / "out.png"
    assert cli.main(["stylize", str(tmp_path / "no.png"), str(tmp_path / "style.png"), "-o", str(out)]) == 2
    assert "Cannot read the content" in capsys.readouterr().err and not out.exists()
    Image.new("CMYK", (20, 20), (10, 80, 20, 0)).save(tmp_path / "cmyk.jpg")
    words = ["stylize", str(tmp_path / "cmyk.jpg"), str(tmp_path / "style.png"), "--steps", "1", "-o", str(out)]
    assert cli.main(words) == 0 and as_tensor(Image.open(out)).shape == (1, 3, 20, 20)


def test_a_foreign_file_is_no_style(tmp_path):
    from fastdiffusion.io.checkpoints import save_tensors

    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"kind": "judge"})
    with pytest.raises(CheckpointError, match="not a file that train-style wrote"):
        stylize(CONTENT, tmp_path / "x.safetensors")
    net = Stylizer()
    save_tensors(tmp_path / "y.safetensors", {"mean": net.mean}, {"kind": "stylizer", **net.config})
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        network.load(tmp_path / "y.safetensors")
