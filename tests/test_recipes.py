"""Recipes across programs: AUTOMATIC1111's text and noise, ComfyUI's, models found again, and what a run leaves."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import fastdiffusion
from fastdiffusion import nets, sample, samplers, schedules
from fastdiffusion.cli import main
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.guidance import cfg
from fastdiffusion.io import metadata
from fastdiffusion.io.images import inner_recipe, read_image, read_recipe, to_pil, to_tensor
from fastdiffusion.models import Model, save
from fastdiffusion.samplers.registry import sampler_name
from fastdiffusion.tasks.generation import samples as generation
from fastdiffusion.tasks.generation.recipe import reproduce
from fastdiffusion.tasks.generation.sample import sample_to
from fastdiffusion.tasks.restoration.restore import restore

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get

NET = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}
LAION = """masterpiece, a cat on a mat, (cute:1.2)
[in the rain:0.5]
Negative prompt: blurry, "low" quality
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.7, RNG: CPU, Lora hashes: "x: aaaa, y: bbb", Version: v1.10.1"""  # noqa: E501
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 5, "steps": 9, "cfg": 6.5, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": 1.0,
        "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 72, "batch_size": 2}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "it's bad", "clip": ["4", 1]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    net = nets.build({**NET, "in_channels": 3, "out_channels": 3})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return Model(Denoiser(net), (3, 16, 16), info={"name": "noise"})


@pytest.fixture
def sd() -> Model:
    return get("sd15").model


# ---- the text of AUTOMATIC1111 ----------------------------------------------------------------------------------


def test_a_recorded_text_is_read():
    known = metadata.automatic1111(LAION)
    assert known["prompt"] == "masterpiece, a cat on a mat, (cute:1.2)\n[in the rain:0.5]"
    assert known["negative_prompt"] == 'blurry, "low" quality'
    wanted = {"steps": 20, "sampler": "DPM++ 2M", "schedule_type": "Karras", "cfg_scale": 7.5, "seed": 1234567890,
              "size": "512x768", "model": "v1-5-pruned-emaonly", "rng": "CPU"}  # fmt: skip
    assert wanted.items() <= known.items()


def test_ours_is_written_beside_the_recipe_and_read_back(sd, tmp_path, capsys):
    made = sample(sd, "a cat, on a mat", negative_prompt="blurry", n=2, steps=3, seed=7, size="64x72",
                  sampler="dpmpp_2m", schedule="karras", rng="a1111")  # fmt: skip
    path = made.save(tmp_path)[1]
    text = Image.open(path).text["parameters"]
    assert text == (
        "a cat, on a mat\nNegative prompt: blurry\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, "
        "Seed: 8, Size: 64x72, Model: sd15, RNG: CPU, Version: fastdiffusion " + fastdiffusion.__version__
    )
    known = metadata.automatic1111(text)
    assert (known["prompt"], known["negative_prompt"], known["seed"]) == ("a cat, on a mat", "blurry", 8)
    assert read_recipe(path)["verb"] == "sample", "our own goes first"
    assert main(["recipe", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["rng"] == "a1111"


def test_what_has_no_prompt_has_no_such_text(model, tmp_path):
    (path,) = sample(model, n=1, steps=1).save(tmp_path)
    assert list(Image.open(path).text) == ["fastdiffusion", "XML:com.adobe.xmp"]
    (path,) = sample(model, n=1, steps=1).save(tmp_path / "bare", metadata=False)
    assert Image.open(path).text == {}


@pytest.mark.parametrize(("ours", "theirs"), metadata.SAMPLERS.items())
def test_samplers_names_go_there_and_back(ours, theirs):
    assert sampler_name(theirs) == ours


FIELDS = {
    "a comma": {"model": {"name": "a, b"}},
    "letters": {"class": "猫 in the ☔"},
    "quotes": {"model": {"name": 'a "b": c'}},
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_odd_texts_go_there_and_back(case):
    recipe = {"verb": "sample", "fastdiffusion": "1", "model": {"name": "m"}, "class": "a", "seed": 3, "table": None,
              "parameters": {"steps": 4, "scale": 2.0, "size": 64, "prompt": "a"}} | FIELDS[case]  # fmt: skip
    text = metadata.as_automatic1111(recipe)
    assert text is not None
    known = metadata.automatic1111(text)
    name = known["model"] if known["model"][0] != '"' else json.loads(known["model"])
    assert (known["prompt"], name, known["seed"]) == (recipe["class"], recipe["model"]["name"], 3)
    assert known["size"] == "64x64"


@pytest.mark.parametrize("program", ["a1111", "comfy"])
def test_another_programs_image_says_what_to_type(program, tmp_path, monkeypatch, capsys):
    """The command in the message runs, with the model in place of MODEL, and its recipe says the same."""
    texts = PngImagePlugin.PngInfo()
    if program == "a1111":
        texts.add_text("parameters", LAION.replace("Steps: 20", "Steps: 2").replace("512x768", "64x72"))
    else:
        texts.add_text("prompt", json.dumps(GRAPH))
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=texts)
    with pytest.raises(DataError, match="this comes near: fastdiffusion sample MODEL") as caught:
        reproduce(tmp_path / "theirs.png")
    words = shlex.split(str(caught.value).partition("this comes near: fastdiffusion ")[2])
    monkeypatch.chdir(tmp_path)
    words[words.index("MODEL")] = str(get("sd15").path)
    assert main([*words, "--device", "cpu"]) == 0, capsys.readouterr().err
    path = next(path for path in (tmp_path / "out").iterdir() if path.name != "grid.png")
    parameters = read_recipe(path)["parameters"]
    assert parameters["rng"] == program and parameters["size"] == "64x72" and parameters["schedule"] == "karras"
    wanted = {"a1111": ("blurry, \"low\" quality", "DPM++ 2M", 1234567890, 7.5),
              "comfy": ("it's bad", "euler_ancestral", 5, 6.5)}[program]  # fmt: skip
    assert tuple(parameters[name] for name in ("negative_prompt", "sampler", "seed", "scale")) == wanted


# ---- their noise ------------------------------------------------------------------------------------------------


def by_hand(model, prompt, noise, later=None):
    """Euler, or with later noise Euler ancestral, on Karras et al.'s levels: as k-diffusion writes them."""
    size = (noise.shape[-2] * model.factor, noise.shape[-1] * model.factor)
    sigmas = schedules.karras(4, model.sigma_min, model.sigma_max).tolist()
    denoise, cond = cfg(model.denoise, 7.5, model.null(1, size)), model.encode_prompt([prompt] * len(noise), size)
    x = noise * sigmas[0]
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, torch.full((len(x),), sigma), cond)
        up = 0.0 if later is None else min(to, (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5)
        down = (to**2 - up**2) ** 0.5
        x = x + (x - x0) / sigma * (down - sigma)
        if up > 0 and to > 0:
            x = x + up * later()
    return model.decode(x).clamp(-1, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("ancestral", [False, True])
def test_automatic1111_draws_each_image_from_its_own_generator(sd, ancestral, batch_size):
    generators = [torch.Generator().manual_seed(100 + i) for i in range(3)]

    def draw():
        return torch.stack([torch.randn(4, 8, 9, generator=one) for one in generators])

    with torch.no_grad():
        wanted = by_hand(sd, "a cat", draw(), draw if ancestral else None)
    made = sample(sd, "a cat", n=3, steps=4, seed=100, size="72x64", rng="a1111", schedule="karras",
                  batch_size=batch_size, sampler="Euler a" if ancestral else "Euler")  # fmt: skip
    torch.testing.assert_close(made.images, wanted, atol=1e-3, rtol=0)
    assert made.seeds == (100, 101, 102) and made.notes == ()
    own = sample(sd, "a cat", n=3, steps=4, seed=100, size="72x64", schedule="karras", sampler="euler").images
    assert (own - wanted).abs().max() > 0.02


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("ancestral", [False, True])
@pytest.mark.filterwarnings("ignore:ComfyUI draws")
def test_comfyui_draws_a_batch_at_once(sd, ancestral, batch_size):
    later = torch.Generator().manual_seed(101)
    noise = torch.randn(3, 4, 8, 9, generator=torch.manual_seed(100))
    with torch.no_grad():
        wanted = by_hand(sd, "a cat", noise, lambda: torch.randn(3, 4, 8, 9, generator=later)) if ancestral else (
            by_hand(sd, "a cat", noise))  # fmt: skip
    made = sample(sd, "a cat", n=3, steps=4, seed=100, size="72x64", rng="comfy", schedule="karras",
                  batch_size=batch_size, sampler="euler_ancestral" if ancestral else "euler")  # fmt: skip
    torch.testing.assert_close(made.images, wanted, atol=1e-3, rtol=0)
    assert made.seeds == (100,) * 3 and bool(made.notes) == ancestral


def test_their_noise_is_reproduced_and_files_do_not_collide(model, tmp_path):
    save(model, tmp_path / "m.safetensors")
    made = sample(tmp_path / "m.safetensors", n=3, steps=2, rng="comfy", batch_size=2)
    paths = made.save(tmp_path / "out")
    assert (
        [path.name for path in paths]
        == ["0000.png", "0000-2.png", "0000-3.png"]
        == [path.name for path in made.save(tmp_path / "out")]
    )
    for i, path in enumerate(paths):
        assert torch.equal(reproduce(path, tmp_path / "m.safetensors").images[0], made.images[i])


def test_where_an_image_will_not_be_alike_it_is_said(model):
    with pytest.warns(UserWarning, match="only the start is as elsewhere"):
        made = sample(model, n=1, steps=2, rng="a1111", sampler="DPM++ 2M SDE")
    assert len(made.notes) == 1
    with pytest.raises(InputError, match="Did you mean 'a1111'"):
        sample(model, n=1, steps=1, rng="a111")


# ---- a model found again ----------------------------------------------------------------------------------------


def test_a_foreign_checkpoint_is_found_by_its_content(tmp_path, monkeypatch, capsys):
    """Where it was, in the working directory whatever its name, or by --model; another one is refused."""
    first = tmp_path / "first"
    first.mkdir()
    shutil.copytree(get("sd15").path, first / "sd15")
    monkeypatch.chdir(first)
    assert main(["sample", "sd15", "a cat", "-n", "1", "--steps", "1", "-o", "cat.png", "--device", "cpu"]) == 0
    far = tmp_path / "far" / "away" / "from"
    far.mkdir(parents=True)
    shutil.move(first / "cat.png", far / "cat.png")
    monkeypatch.chdir(far)
    assert main(["reproduce", "cat.png", "--device", "cpu"]) == 0, "where it was when it was used"
    shutil.move(first / "sd15", far / "sd15")
    assert main(["reproduce", "cat.png", "-o", "two.png", "--device", "cpu"]) == 0, "in the working directory"
    shutil.move(far / "sd15", tmp_path / "renamed")
    words = ["reproduce", "cat.png", "-o", "three.png", "--device", "cpu"]
    assert main([*words, "--model", str(tmp_path / "renamed")]) == 0
    assert capsys.readouterr().out.count("the same bytes") == 3
    assert main([*words, "--model", str(get("sd2v").path)]) == 2
    assert "made by another model, 'sd15'" in capsys.readouterr().err
    config = tmp_path / "renamed" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert main([*words, "--model", str(tmp_path / "renamed")]) == 2, "a setting counts as much as a weight"


# ---- what a run leaves ------------------------------------------------------------------------------------------


def test_upscaled_images_are_the_restorers(model, tmp_path):
    """Each as if restored alone; the recipe says so, and makes it again."""
    save(model, tmp_path / "m.safetensors")
    plain = sample(tmp_path / "m.safetensors", n=2, steps=1, device="cpu")
    made = sample(tmp_path / "m.safetensors", n=2, steps=1, device="cpu", upscale="x2")
    assert made.images.shape == (2, 3, 32, 32) and made.recipe["parameters"]["upscale"] == "x2"
    for small, large in zip(plain.images, made.images, strict=True):
        assert torch.equal(large, restore(to_pil(small), "upscale x2", device="cpu").images[0])
    path = made.save(tmp_path / "large")[1]
    remade = reproduce(path, tmp_path / "m.safetensors", device="cpu")
    assert torch.equal(remade.images[0], made.images[1])
    assert made.grid(labels=True).size[0] > plain.grid(zoom=1).size[0]
    assert sample(model, n=1, steps=1, upscale="x4", device="cpu").images.shape == (1, 3, 64, 64)
    with pytest.raises(InputError, match="upscale"):
        sample(model, n=1, upscale="x3")


def test_gray_images_are_upscaled_too():
    gray = Model(lambda x, sigma, cond=None: x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2), (1, 16, 16))
    assert sample(gray, n=1, steps=1, upscale="x2").images.shape[-2:] == (32, 32)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    """Ctrl-C in the second of three batches of a foreign model: the first is kept, and the rest equals a whole run."""
    sd, options = get("sd15").path, {"n": 40, "steps": 1, "scale": 1.0, "size": 16, "device": "cpu"}

    def stop(step):
        if step.done == step.of:
            stop.batches += 1
        if stop.batches == 2:
            raise KeyboardInterrupt

    stop.batches = 0
    with pytest.raises(KeyboardInterrupt):
        sample_to(tmp_path / "cut", sd, "a cat", watch=stop, **options)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").iterdir()}
    assert len(kept) == 16
    _, paths = sample_to(tmp_path / "cut", sd, "a cat", **options)
    _, whole = sample_to(tmp_path / "whole", sd, "a cat", **options)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in whole] and len(paths) == 40
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items()), "not made again"


@pytest.mark.parametrize("seed", [2**64 - 1, 2**63, 1 - 2**64])
def test_an_image_of_any_seed_is_made_again(model, tmp_path, seed):
    """ComfyUI and AUTOMATIC1111 draw seeds from 64 bits."""
    made = sample(model, n=1, steps=1, seed=seed, variation_seed=seed, variation_strength=0.5)
    (path,) = made.save(tmp_path / "a.png")
    assert torch.equal(reproduce(path, model).images, made.images)


def test_a_recipe_beside_an_image_replaces_no_other_file(model, tmp_path):
    (tmp_path / "heart.json").write_text('{"mine": 1}')
    first, other = (sample(model, n=1, steps=steps) for steps in (1, 2))
    saved = [
        *first.save(tmp_path / "heart.png", sidecar=True),
        *other.save(tmp_path / "heart.webp", metadata=False, sidecar=True),
        *first.save(tmp_path / "heart.png", sidecar=True),
    ]
    assert [path.name for path in saved] == ["heart-2.png", "heart-3.webp", "heart-2.png"]
    assert (tmp_path / "heart.json").read_text() == '{"mine": 1}'
    assert [read_recipe(path)["parameters"]["steps"] for path in saved] == [1, 2, 1]


def test_what_lies_there_is_as_it_is_asked_for(model, tmp_path):
    """A later run with --sidecar writes it, and one with --no-metadata beside gives no file that has some."""
    options = {"n": 2, "steps": 1}
    _, plain = sample_to(tmp_path, model, **options)
    _, beside = sample_to(tmp_path, model, sidecar=True, **options)
    assert beside == plain and all(path.with_suffix(".json").is_file() for path in plain)
    _, bare = sample_to(tmp_path, model, metadata=False, sidecar=True, **options)
    assert not set(bare) & set(plain) and all(inner_recipe(path) is None for path in bare)
    times = [path.stat().st_mtime_ns for path in bare]
    assert sample_to(tmp_path, model, metadata=False, sidecar=True, **options)[1] == bare
    assert [path.stat().st_mtime_ns for path in bare] == times, "not made again"


def test_a_result_in_one_line_and_in_one_file(model, tmp_path, monkeypatch, capsys):
    made = sample(model, n=3, steps=1, seed=4)
    assert repr(made) == "Samples(3 samples of 3x16x16, seeds 4 to 6, by noise)" and made.notes == ()
    assert repr(made[:1]) == "Samples(1 sample of 3x16x16, seed 4, by noise)"
    assert made[:1].save(tmp_path / "a.webp") == [tmp_path / "a.webp"]
    assert torch.equal(to_tensor(read_image(tmp_path / "a.webp")), ((made.images[0] + 1) * 127.5).round() / 127.5 - 1)
    with pytest.raises(InputError, match=r"3 images need a folder, and .*b.png' is a file's name"):
        made.save(tmp_path / "b.png")
    save(model, tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)
    words = ["sample", "m.safetensors", "--steps", "1", "--device", "cpu"]
    assert main([*words, "-n", "1", "-o", "one.png"]) == 0 and "one.png" in capsys.readouterr().out
    assert main([*words, "-n", "2", "-o", "two.png"]) == 2
    assert "need a folder" in capsys.readouterr().err
    assert not any(path.is_dir() for path in tmp_path.iterdir()) and not (tmp_path / "two.png").exists()


# ---- labels -----------------------------------------------------------------------------------------------------

LABELS = [
    ("a red heart", 64, ["a red heart"]),
    ("smiling face with sunglasses", 64, ["smiling face with", "sunglasses"]),
    ("face with open eyes and hand over mouth", 64, None),
    ("a very long prompt about a lighthouse at dusk in the rain, oil on canvas, highly detailed", 64, None),
    ("Donaudampfschifffahrtsgesellschaftskapitän", 64, ["…"]),
    ("", 64, []),
]


@pytest.mark.parametrize(("text", "width", "wanted"), LABELS)
def test_labels_are_cut_at_words_ends_only(text, width, wanted):
    lines, size = generation._rows_of_text(text, width)
    assert wanted is None or lines == wanted
    assert len(lines) <= 2 and size in generation.LETTERS
    drawn = " ".join(lines).removesuffix("…").split()
    assert drawn == text.split()[: len(drawn)], "whole words, in order"
    assert (" ".join(lines).endswith("…")) == (len(drawn) < len(text.split()))


def test_a_label_is_drawn_within_its_cell():
    white = Image.new("RGB", (64, 64), "white")
    for text, *_ in LABELS:
        sheet = np.asarray(generation._captioned(white, text, 1))
        assert sheet.shape[1] == 64 and (sheet[-1] == 255).all(), "nothing touches the lower edge"
        assert (sheet[64:].min() < 128) == bool(text)


def test_samplers_run_as_their_namesakes_there():
    """What other programs call by the same name is the same table: one noise for each step of an ancestral one."""
    table = samplers.table("Euler a", schedules.karras(6, 0.03, 14.0))
    assert [len(row.noise) for row in table.rows] == [1] * 5 + [0]
