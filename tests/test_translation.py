"""Translation: what is learned from, resuming bit for bit, answers by seed, oracles for the ways without training."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fastdiffusion import cli, data, models, nets
from fastdiffusion.data import Images
from fastdiffusion.data.pairs import Pairs
from fastdiffusion.denoisers import Denoiser, expand
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.io.checkpoints import save_tensors
from fastdiffusion.io.images import to_array, to_pil, to_tensor
from fastdiffusion.models import Model
from fastdiffusion.models.registry import loaded
from fastdiffusion.nets.translators import PAIRED, Cycle, Translator, edges
from fastdiffusion.noise import generator
from fastdiffusion.samplers import probability_flow, processes
from fastdiffusion.tasks.translation import paired
from fastdiffusion.tasks.translation.domains import domains
from fastdiffusion.tasks.translation.paired import answer, train_translation, translate
from fastdiffusion.tasks.translation.training_free import ddib, sdedit
from fastdiffusion.training import trainer
from fastdiffusion.types import Cond

pytestmark = pytest.mark.filterwarnings("ignore:.*without a partner")
TINY = {"width": 8, "multiples": [1], "blocks": [1], "attention": []}


@pytest.fixture
def folders(tmp_path):
    """Twelve gray squares and their inverses, one name without a counterpart on each side."""
    for i in range(13):
        shade = 255 * i // 13
        for side, value in (("a", shade), ("b", 255 - shade)):
            (tmp_path / side).mkdir(exist_ok=True)
            name = f"{i:02d}" if i < 12 else f"only-{side}"
            Image.new("RGB", (20, 16), (value, value // 2, 30)).save(tmp_path / side / f"{name}.png")
    return str(tmp_path / "a"), str(tmp_path / "b")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A net that trains in a moment."""
    monkeypatch.setattr(paired.presets, "unet", lambda name: TINY)


# ---- what is learned from -----------------------------------------------------------------------------------------


def test_pairs_are_files_of_one_name(folders):
    found = domains(*folders, size=16, holdout=0.2)
    assert found.a is not None and len(found.a) == len(found.b) == 12 and found.held == 2
    a, b = found.draw(40, seed=0, step=3, mirror=True)
    red = ((a[:, 0] + b[:, 0]) / 2).abs()
    assert red.max() < 0.02  # each with its own inverse
    again = found.draw(40, seed=0, step=3, mirror=True)
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    kept = {float(x) for x in found.kept()[0].mean((1, 2, 3))}
    assert not kept & {float(x) for step in range(20) for x in found.draw(9, 0, step, False)[0].mean((1, 2, 3))}


def test_a_pair_has_one_shape(folders, tmp_path):
    with pytest.warns(UserWarning, match="Left out: 2 images without a partner, 'only-a' first"):
        domains(*folders, size=16)
    Image.new("RGB", (40, 32)).save(tmp_path / "b" / "03.png")  # twice the size does not matter
    assert len(Pairs(*folders, size=16)) == 12
    Image.new("RGB", (16, 20)).save(tmp_path / "b" / "03.png")
    with pytest.raises(DataError, match=r"'03' is 20x16 pixels in 'a' and 16x20 in 'b'.*must have one shape"):
        domains(*folders, size=16)
    found = Pairs(*folders, size=16)
    assert len(found) == 11 and "is 16x20 pixels, its partner 20x16" in str(found.report.skipped)


def test_pairs_in_subfolders_keep_their_folders_name(folders, tmp_path):
    for side, value in (("a", 10), ("b", 200)):
        for i in range(2):
            (tmp_path / side / f"{i}").mkdir()
            Image.new("RGB", (20, 16), (value + 40 * i, 0, 0)).save(tmp_path / side / f"{i}" / "00.png")
    assert sum(domains(*folders, size=16).sizes) + 2 * domains(*folders, size=16).held == 2 * 14


def test_edges_on_the_fly_have_the_targets_channels(folders):
    found = domains(folders[0], size=16)
    a, b = found.draw(4, 0, 0, False)
    assert a.shape == b.shape and torch.equal(a[:, :1].expand_as(a), a)


def test_two_classes_are_two_piles():
    found = domains("digits", classes="3, 8", paired=False)
    assert found.names == ("3", "8") and found.sizes[0] + found.held == 183
    with pytest.raises(InputError, match="two of 'digits', got 3, 11"):
        domains("digits", classes="3,11", paired=False)
    with pytest.raises(InputError, match="method='cyclegan'"):
        domains("digits", classes="3,8")
    with pytest.raises(InputError, match="needs a second domain"):
        domains("digits", paired=False)


def test_no_pairs(folders, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "zz.png")
    other = tmp_path / "c"
    other.mkdir()
    for name in ("x", "y"):
        Image.new("RGB", (16, 16)).save(other / f"{name}.png")
    with pytest.raises(DataError, match="0 names in common"):
        domains(folders[0], str(other), size=16)


def test_edges_are_thin_lines_where_something_changes():
    x = -torch.ones(1, 3, 24, 24)
    x[:, :, 6:18, 8:16] = torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    line = edges(x)[0, 0] == -1
    assert 30 < line.sum() < 60  # a box of 2 * (12 + 8) pixels
    assert line[4:8, 10:14].any() and line[10:14, 6:10].any()
    assert not line[9:15, 11:13].any() and not line[:4].any()
    assert (edges(torch.full((1, 1, 9, 9), 0.3)) == 1).all()


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", paired.METHODS)
def test_a_cut_run_goes_on_bit_for_bit(method, folders, tmp_path, monkeypatch, cut):
    call, shown, sheet = (
        {"method": method, "steps": 4, "size": 16, "batch_size": 2, "mirror": True},
        [],
        paired._preview,
    )
    whole = train_translation(*folders, **call).model
    monkeypatch.setattr(trainer, "LOOK", 0)  # a preview after every step
    monkeypatch.setattr(paired, "_preview", lambda *arguments: shown.append(sheet(*arguments)) or shown[-1])
    with cut(2):
        train_translation(*folders, **call, folder=tmp_path / "run")
    made = train_translation(*folders, **call, folder=tmp_path / "run").model
    assert len(shown) > 2 and shown[-1][0].isfinite().all()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, made.state_dict()[name]), name
    read = paired.load(tmp_path / "run")
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_regression_learns_the_mean():
    x = to_tensor(data.load("digits").batch(range(64)).images)
    images = data.Images("t", [data.load("digits").batch(range(64)).images.numpy()])
    net = train_translation(images, images, method="regression", steps=60, batch_size=16, lr=5e-3).model
    assert isinstance(net, Translator)
    assert (answer(net, x) - x).square().mean() < 0.01


# ---- use ----------------------------------------------------------------------------------------------------------


def translator(method):
    torch.manual_seed(0)
    net = Translator(method, TINY, (3, 16, 16)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return net


@pytest.mark.parametrize("method", PAIRED)
def test_an_answer_depends_on_its_seed_alone(method):
    net, x = translator(method), torch.rand(3, 3, 16, 16, generator=generator(0)) * 2 - 1
    made = answer(net, x, steps=4, seeds=[5, 6, 7])
    torch.testing.assert_close(answer(net, x[1:2], steps=4, seeds=[6]), made[1:2], rtol=0, atol=1e-4)
    other = answer(net, x, steps=4, seeds=[5, 9, 7])
    assert torch.equal(other[1], made[1]) == (method in ("regression", "gan"))
    assert made.shape == x.shape and made.abs().max() <= 1


@pytest.mark.parametrize("method", PAIRED)
def test_an_untrained_net_answers_with_the_source(method):
    net, x = Translator(method, TINY, (1, 8, 8)), torch.rand(2, 1, 8, 8) * 2 - 1
    made = answer(net, x, steps=1)  # a diffusion knows no better than that the difference is Gaussian: its mean is 0
    assert (made - x).abs().max() < (0.15 if method == "diffusion" else 1e-5)


def test_a_bridge_to_an_image_that_is_shown_is_a_diffusion_of_the_difference():
    """Its end seen from level t is what the same weights see through noise of sqrt(t / (1 - t))."""
    bridge, diffusion = translator("bridge"), translator("diffusion")
    a, b, noise = torch.rand(3, 2, 3, 16, 16, generator=generator(0)) * 2 - 1
    t = torch.tensor([0.2, 0.9])
    place = processes.Bridge(a).degrade(b, t[:, None, None, None], noise)
    sigma = torch.tensor([0.5, 3.0])
    seen = diffusion(b + sigma[:, None, None, None] * noise, sigma, Cond(image=a))
    torch.testing.assert_close(bridge(place, t, Cond(image=a)), seen, rtol=0, atol=1e-4)


def test_the_mean_is_one_call():
    """Of an exact posterior: what is learned at the highest level does not hang on the noise."""
    for method in ("diffusion", "bridge"):
        net, x = translator(method), torch.rand(2, 3, 16, 16, generator=generator(0)) * 2 - 1
        first, other = (answer(net, x, steps=1, seeds=seeds) for seeds in ([0, 1], [2, 3]))
        assert (first - other).abs().max() < 0.2
        assert sum(1 for _ in paired.answer_steps(net, x, steps=1)) == 1


def test_translate_on_the_command_line(tmp_path, capsys):
    paired.save(translator("bridge"), tmp_path / "translation.safetensors")
    to_pil(torch.rand(3, 20, 40) * 2 - 1).save(tmp_path / "in.png")
    words = ["translate", str(tmp_path / "in.png"), str(tmp_path), "--steps", "2"]
    assert cli.main([*words, "-n", "2", "--lines", "-o", str(tmp_path / "out.png")]) == 0
    images = [Image.open(tmp_path / f"out-{i}.png") for i in range(2)]
    assert images[0].size == (32, 16) and images[0].tobytes() != images[1].tobytes()
    assert (
        cli.main(["translate", str(tmp_path / "in.png"), str(tmp_path), "--back", "-o", str(tmp_path / "no.png")]) == 2
    )
    assert "one way only" in capsys.readouterr().err and not (tmp_path / "no.png").exists()


def test_a_diffusion_model_translates_between_its_classes(tmp_path, capsys):
    torch.manual_seed(0)
    spec = {"name": "unet", **TINY, "in_channels": 1, "out_channels": 1, "classes": 2}
    model = Model(Denoiser(nets.build(spec)).eval(), (1, 8, 8), ("shoe", "boot"))
    models.save(model, tmp_path / "m.safetensors")
    to_pil(torch.rand(1, 12, 12) * 2 - 1).save(tmp_path / "in.png")
    words = ["translate", str(tmp_path / "in.png"), str(tmp_path / "m.safetensors"), "--steps", "2"]
    for more in (["--strength", "0.7", "-n", "2"], ["--origin", "shoe"]):
        assert cli.main([*words, "--to", "boot", *more, "-o", str(tmp_path / "out.png")]) == 0
    assert Image.open(tmp_path / "out.png").size == Image.open(tmp_path / "out-1.png").size == (8, 8)
    assert cli.main([*words, "--to", "boat", "-o", str(tmp_path / "no.png")]) == 2
    assert "Did you mean 'boot'" in capsys.readouterr().err and not (tmp_path / "no.png").exists()
    assert cli.main([*words, "--to", "boot", "--origin", "shoe", "-n", "2", "-o", str(tmp_path / "no.png")]) == 2
    assert "With a source prompt there is one answer" in capsys.readouterr().err and not (tmp_path / "no.png").exists()
    with pytest.raises(InputError, match="needs a class or prompt to turn into, such as prompt='shoe'"):
        translate(tmp_path / "in.png", model)


def test_words_and_latents_translate_too():
    """The bundled model: what is on white comes back on blue, by flow and by noise."""
    model = loaded("emoji")
    drawn = model.decode(model.encode(to_tensor(to_array(heart()))[None])).clamp(-1, 1)
    said = {"prompt": "red heart on blue", "source_prompt": "red heart", "steps": 8}
    (pixels,) = translate(drawn[0], model, **said).images
    assert pixels.shape[1:] == (64, 64) and pixels[2, :3, :3].mean() > pixels[0, :3, :3].mean() + 0.5
    again = ddib(model, model, drawn, *2 * [model.encode_prompt(["red heart"])], steps=16)
    assert -10 * ((again - drawn) / 2).square().mean().log10() > 25
    with pytest.raises(InputError, match="at least 4x4"):
        translate(Image.new("RGB", (1, 1)), model, prompt="heart")
    with pytest.raises(InputError, match="such as prompt='a cat'"):
        translate(drawn[0], "emoji")


def heart():
    """Drawn here, so that no font is needed: a heart is two discs and a triangle."""
    sheet = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(sheet)
    for box in ((6, 10, 34, 38), (30, 10, 58, 38)):
        draw.ellipse(box, fill=(244, 50, 50))
    draw.polygon([(9, 32), (55, 32), (32, 58)], fill=(244, 50, 50))
    return sheet


def test_the_way_back_is_the_other_net():
    torch.manual_seed(0)
    net = Cycle(TINY, (1, 8, 8), ("x", "y"))
    with torch.no_grad():
        net.there.tail.out.bias.fill_(0.1) if hasattr(net.there.tail, "out") else net.there.tail.up.conv.bias.fill_(0.1)
    x = torch.rand(1, 1, 8, 8) * 0.5
    assert not torch.equal(net(x), x) and torch.equal(net(x, reverse=True), x)
    assert translate(to_pil(x[0]), net, reverse=True, size=16).images.shape == (1, 1, 16, 16)


def test_a_result_has_the_size_that_was_trained_or_asked_for():
    net = Translator("gan", TINY, (3, 8, 8))
    assert translate(Image.new("RGB", (20, 24)), net).images.shape == (1, 3, 10, 8)
    assert translate(Image.new("RGB", (20, 24)), net, size=6).images.shape == (1, 3, 7, 6)


def test_gray_is_what_data_of_it_are():
    """Not the mean of the channels: blue is dark."""
    asked, net = [], Translator("gan", TINY, (1, 8, 8))
    net.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    for image in (Image.new("RGB", (8, 8), (0, 0, 255)), Image.new("RGBA", (8, 8), (0, 0, 255, 128))):
        translate(image, net)
        white = Image.new("RGB", (8, 8), "white")
        white.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
        torch.testing.assert_close(asked.pop(), to_tensor(white.convert("L"))[None], rtol=0, atol=0.01)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"source_prompt": "cat"}, "source_prompt does nothing without a prompt"),
    ({"strength": 0.5, "scale": 3}, "strength and scale do nothing without a prompt"),
    ({"from_edges": True}, "from_edges does nothing with a net of two kinds"),
    ({"prompt": "cat", "size": 9, "reverse": True, "from_edges": True}, "size, reverse and from_edges do"),
])  # fmt: skip
def test_what_does_nothing_is_refused(options, sentence):
    net = normal(0.2) if "prompt" in options else Cycle(TINY, (1, 8, 8), ("x", "y"))
    with pytest.raises(InputError, match=sentence):
        translate(Image.new("RGB", (20, 20)), net, **options)


def test_another_part_that_is_held_out_is_another_run(folders, tmp_path):
    call = {"method": "regression", "size": 16, "batch_size": 2, "folder": tmp_path / "run"}
    train_translation(*folders, **call, steps=1)
    with pytest.raises(CheckpointError, match="holdout="):
        train_translation(*folders, **call, steps=2, holdout=0.5)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"No option of translate named 'steips'. Did you mean 'steps'"):
        translate(Image.new("RGB", (20, 20)), translator("gan"), steips=2)
    with pytest.raises(InputError, match="No device 'nonsense'"):
        translate(Image.new("RGB", (20, 20)), translator("gan"), device="nonsense")
    with pytest.raises(InputError, match="No method named 'pix2pix'"):
        train_translation("digits", method="pix2pix")
    with pytest.raises(InputError, match="one answer"):
        translate(Image.new("RGB", (20, 20)), translator("gan"), n=2)
    with pytest.raises(InputError, match="n and steps must be at least 1, got 1 and -3"):
        translate(Image.new("RGB", (20, 20)), translator("bridge"), steps=-3)
    with pytest.raises(InputError, match="size must be at least 4, got -5"):
        translate(Image.new("RGB", (20, 20)), translator("gan"), size=-5)
    with pytest.raises(InputError, match=r"at least 0 and below 1, got 1\.0"):
        domains("digits", classes="1,2", paired=False, holdout=1.0)
    with pytest.raises(InputError, match="digits and few have images of 8x8 and 16x16 pixels"):
        domains("digits", Images("few", [np.zeros((4, 1, 16, 16), np.uint8)]), paired=False)
    with pytest.raises(InputError, match="at least 4x4"):
        translate(Image.new("RGB", (1, 1)), translator("gan"))
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"kind": "cold"})
    with pytest.raises(CheckpointError, match="not a file that train-translation wrote"):
        paired.load(tmp_path / "x.safetensors")


# ---- without training: two Gaussians, whose flow is known ------------------------------------------------------


def normal(mean, std=0.4):
    """A model of independent normal pixels, in closed form."""

    class Exact(torch.nn.Module):
        def forward(self, x, sigma, cond=None):
            s = expand(sigma, x).square()
            return (std**2 * x + s * mean) / (std**2 + s)

    return Model(Exact(), (1, 4, 4), sigma_data=std)


def test_dual_moves_one_gaussian_onto_the_other():
    here, there = normal(-0.3), normal(0.4, 0.1)
    x = -0.3 + 0.4 * torch.randn(64, 1, 4, 4, generator=generator(0)).clamp(-1.5, 1.5)
    made = ddib(here, there, x, steps=60)
    torch.testing.assert_close(made, 0.4 + 0.25 * (x + 0.3), rtol=0, atol=0.01)
    torch.testing.assert_close(ddib(there, here, made, steps=60), x, rtol=0, atol=0.03)


def test_the_way_up_ends_where_the_flow_says():
    x, sigmas = torch.tensor([[[[0.7]]]]), torch.linspace(2.0, 0.01, 80, dtype=torch.float64)
    up = probability_flow.invert(normal(-0.3).denoise, x, torch.cat([sigmas, torch.zeros(1)]))
    exact = -0.3 + 1.0 * ((0.4**2 + 4) / (0.4**2 + 1e-4)) ** 0.5
    assert float(up) == pytest.approx(exact, rel=0.01)


def test_sdedit_goes_from_the_source_to_the_model():
    model, x = normal(0.4, 0.1), torch.full((200, 1, 4, 4), -0.5)
    assert torch.equal(sdedit(model, x, 0.0), x)
    means = [float(sdedit(model, x, s).mean()) for s in (0.2, 0.5, 0.8, 1.0)]
    assert -0.5 < means[0] < means[1] < means[2] <= means[3] + 0.01
    assert means[3] == pytest.approx(0.4, abs=0.02)
    assert torch.equal(sdedit(model, x, 1.0), sdedit(model, -x, 1.0))  # nothing is left of the source
    with pytest.raises(InputError, match="from 0 to 1"):
        sdedit(model, x, 1.1)


@pytest.mark.parametrize("translated", [sdedit, lambda model, x, s: ddib(model, model, x, strength=s)])
def test_one_strength_is_one_noise_level(translated, monkeypatch):
    """The part of noise in the mix, as everywhere: the highest level that is evaluated, whatever the method."""
    model, levels = normal(0.4), []
    exact = model.denoise.forward
    monkeypatch.setattr(model.denoise, "forward", lambda x, s, c=None: levels.append(float(s[0])) or exact(x, s, c))
    for strength in (0.3, 0.6, 0.9):
        levels.clear()
        translated(model, torch.zeros(1, 1, 4, 4), strength)
        assert max(levels) == pytest.approx(0.4 * strength / (1 - strength), rel=1e-6)
