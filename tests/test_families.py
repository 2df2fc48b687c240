"""Checkpoints of other families: equal to their pipelines, and a Model like any other."""

import json
import os
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pretended_device import pretended

import fastdiffusion
from fastdiffusion import samplers
from fastdiffusion.adapters.examine import pipeline, pipeline_class
from fastdiffusion.adapters.families import FAMILIES, family_of
from fastdiffusion.cli import main
from fastdiffusion.errors import CheckpointError, InputError, MissingExtra
from fastdiffusion.guidance import cfg
from fastdiffusion.guidance.attention import Controller, Replace, Store, attention_layers, control
from fastdiffusion.io.inputs import fit_image
from fastdiffusion.models import Autoencoder, Conditioner, folder
from fastdiffusion.samplers.fitting import fit_sampler
from fastdiffusion.tasks.generation.guidance_spec import Setting, parse_guidance
from fastdiffusion.tasks.generation.recipe import reproduce
from fastdiffusion.types import Cond

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import build

SD = ("sd15", "sd2v", "zero_snr", "sdxl")
PROMPTS = ["a cat, on a mat", "a dog"]
LONG = "a very long text about a cat that sleeps on a mat in the sun " * 3


@pytest.fixture
def loaded():
    return get


@pytest.fixture
def sd(loaded):
    return loaded("sd15").model


SCHEDULERS = {  # of diffusers, with options that make them the textbook's, and what they are called here
    "EulerDiscreteScheduler": ({}, "euler"),
    "DDIMScheduler": ({"set_alpha_to_one": True, "clip_sample": False}, "euler"),
    "DPMSolverMultistepScheduler": ({"final_sigmas_type": "zero", "use_karras_sigmas": False}, "dpmpp_2m"),
    "HeunDiscreteScheduler": ({}, "heun"),
}


def theirs(pipe, kind, scale):
    """The pipeline's own latents after 6 steps of a scheduler, with the start and the levels for a table."""
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **SCHEDULERS[kind][0])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = pipe(
        prompt=list(PROMPTS), latents=noise.clone(), num_inference_steps=6, guidance_scale=scale, height=64, width=64,
        output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    if kind == "DDIMScheduler":
        alpha_bar = pipe.scheduler.alphas_cumprod.double()[pipe.scheduler.timesteps]
        levels = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), alpha_bar.new_zeros(1)])
    else:
        levels = pipe.scheduler.sigmas.double().unique_consecutive()
    if kind in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        return latents, noise * float(pipe.scheduler.init_noise_sigma), levels
    return latents, noise * float((1 + levels[0] ** 2).sqrt()), levels


PEERS = [(name, kind) for name in SD for kind in SCHEDULERS]
PEERS.remove(("zero_snr", "DDIMScheduler"))  # it starts at sigma = infinity, which a table cannot
PEERS.remove(("zero_snr", "HeunDiscreteScheduler"))  # which does not know zero-terminal SNR


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("name", "kind"), PEERS)
def test_equals_the_pipeline(loaded, name, kind, scale):
    """Its own scheduler, with and without guidance: the final latents differ by 1e-4 of the greatest at most."""
    one = loaded(name)
    wanted, start, levels = theirs(one.pipe, kind, scale)
    denoise = cfg(one.model.denoise, scale, one.model.null(1, (64, 64)))
    with torch.no_grad():
        cond = one.model.encode_prompt(PROMPTS, (64, 64))
        got = samplers.final(samplers.run(denoise, start, samplers.table(SCHEDULERS[kind][1], levels), cond))
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", SD)
def test_what_a_model_has(loaded, name):
    model = loaded(name).model
    assert isinstance(model.conditioner, Conditioner) and isinstance(model.autoencoder, Autoencoder)
    assert (model.shape, model.image_shape, model.sigma_data, model.guidance) == ((4, 8, 8), (3, 64, 64), 1.0, "cfg")
    assert model.sigma_min == pytest.approx(0.0292, rel=1e-2)
    assert model.sigma_max == pytest.approx(4096 if name == "zero_snr" else 14.61, rel=1e-3)
    for steps in (1, 2, 7):
        sigmas = model.schedule(steps, None)
        assert len(sigmas) == steps + 1 and float(sigmas[0]) == pytest.approx(model.sigma_max, rel=1e-6)
        assert bool((sigmas.diff() < 0).all()) and float(sigmas[-1]) == 0
    levels = model.denoise.levels
    t = torch.tensor([0.0, 0.25, 400.5, 998.9, 999.0], dtype=torch.float64)
    torch.testing.assert_close(levels.t(levels.sigma(t)).double(), t, atol=1e-4, rtol=1e-6)


def test_the_autoencoder_is_the_pipelines(loaded):
    one = loaded("sdxl")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        z = one.model.encode(images)
        torch.testing.assert_close(z, one.pipe.vae.encode(images).latent_dist.mode() * 0.13025)
        torch.testing.assert_close(one.model.decode(z), one.pipe.vae.decode(z / 0.13025).sample)


def test_a_vae_may_be_normalized_by_channel(loaded, tmp_path):
    """As fine-tunes of SDXL are: what the pipeline shows of its latents, and back."""
    shutil.copytree(loaded("sdxl").path, place := tmp_path / "sdxl")
    _config(place, "vae", latents_mean=[0.1, 0.2, -0.3, 0.4], latents_std=[2.0, 1.0, 3.0, 4.0])
    model = fastdiffusion.load(place, device="cpu")
    pipe = pipeline(model)
    options = {"prompt": "a cat", "num_inference_steps": 2, "height": 64, "width": 64, "return_dict": False}
    latents, shown = (
        pipe(**options, output_type=kind, generator=torch.Generator().manual_seed(0))[0] for kind in ("latent", "pt")
    )
    torch.testing.assert_close((model.decode(latents) / 2 + 0.5).clamp(0, 1), shown, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.autoencoder.normalize(model.autoencoder.denormalize(latents)), latents)


@pytest.mark.parametrize("kind", ["trailing", "LCMScheduler"])
def test_distilled_networks_start_evenly_from_the_last_time(loaded, tmp_path, kind):
    """Turbo, Lightning and latent consistency models: the levels of diffusers' own scheduler, to a time's rounding."""
    shutil.copytree(loaded("sd15").path, place := tmp_path / "turbo")
    file = place / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    config |= {"timestep_spacing": "trailing"} if kind == "trailing" else {"_class_name": kind}
    file.write_text(json.dumps(config))
    model = fastdiffusion.load(place, device="cpu")
    theirs = diffusers.EulerDiscreteScheduler.from_config({**config, "timestep_spacing": "trailing"})
    for steps in (1, 2, 4, 8):
        theirs.set_timesteps(steps)
        torch.testing.assert_close(model.schedule(steps), theirs.sigmas.double(), rtol=1e-5, atol=1e-6)
    assert float(loaded("sd15").model.schedule(4)[3]) < 0.1 < float(model.schedule(4)[3])


def test_a_network_of_images_that_are_not_square(loaded, tmp_path):
    shutil.copytree(loaded("sd15").path, place := tmp_path / "wide")
    _config(place, "unet", sample_size=[8, 12])
    model = fastdiffusion.load(place, device="cpu", mem="100G")
    assert model.shape == (4, 8, 12) and model.image_shape == (3, 64, 96)


def test_files_that_a_prompt_names_are_remarked(sd, capsys):
    """As AUTOMATIC1111 and ComfyUI write them; "<dog>" is a word."""
    options = {"n": 1, "steps": 1, "negative_prompt": "embedding:EasyNegative, bad"}
    with pytest.warns(UserWarning, match="is text here"):
        made = fastdiffusion.sample(sd, "a <dog> <lora:style_v1.2:0.8>", **options)
    assert made.notes == (
        "<lora:style_v1.2:0.8> is text here: for that LoRA add --lora style_v1.2.safetensors:0.8, and leave it out.",
        "embedding:EasyNegative is text here: for that embedding add --lora EasyNegative.safetensors.",
    )


def test_half_precision_that_overflows_is_said(loaded):
    """Not to train on: another precision helps."""
    model = fastdiffusion.load(loaded("sd15").path, device="cpu", precision="fp16")
    next(iter(model.modules["net"].parameters())).data.fill_(float("inf"))
    with pytest.raises(CheckpointError, match=r"not finite\. Guide it less, or try --precision bf16"):
        fastdiffusion.sample(model, "a cat", n=1, steps=1)


def test_what_is_near_a_checkpoint_is_said(loaded, tmp_path, monkeypatch):
    """The hub's cache, a part of a folder, a network's file in it, and a home that Python must look up itself."""
    cache = tmp_path / "models--owner--name"
    shutil.copytree(loaded("sd15").path, place := cache / "snapshots" / "0123abcd")
    for path in (cache, cache / "snapshots"):
        with pytest.raises(CheckpointError, match=r"hub's cache\. Give the name: hf:owner/name$"):
            fastdiffusion.load(path)
    for part in ("unet", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        with pytest.raises((CheckpointError, InputError), match=f"part of a checkpoint. Give the whole: {place}$"):
            fastdiffusion.load(place / part)
    monkeypatch.setenv("HOME", str(cache))
    assert fastdiffusion.load("~/snapshots/0123abcd", device="cpu").shape == (4, 8, 8)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_rows_do_not_depend_on_each_other(loaded, name):
    """Levels and lengths that differ within a batch give what single evaluations give; a mask is no change."""
    model = loaded(name).model
    x, sigma = torch.randn(3, *model.shape), torch.tensor([14.0, 0.7, 0.05])
    conds = [model.encode_prompt([text]) for text in ("a cat", "", "a dog")]
    conds[1] = replace(conds[1], emb=torch.cat([conds[0].emb, conds[2].emb], 1))  # 154 tokens
    with torch.no_grad():
        together = model.denoise(x, sigma, Cond.cat(conds))
        for i in range(3):
            alone = model.denoise(x[i : i + 1], sigma[i : i + 1], conds[i])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-5)
        assert (together[1] - model.denoise(x, sigma, conds[0])[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_nothing_is_its_own(loaded, name):
    """Rows without text are the embedding of "" (for SDXL zeros), also where a core function hid all tokens."""
    model = loaded(name).model
    x, sigma = torch.randn(2, *model.shape), torch.full((2,), 2.0)
    cond, null = model.encode_prompt(["a cat", LONG[:90]]), model.null(2)
    if name == "sdxl":
        assert not null.emb.any() and not null.pooled.any()
        assert null.extra["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 2
        assert model.null(1, (48, 96)).extra["time_ids"].tolist() == [[48, 96, 0, 0, 48, 96]]
    else:
        torch.testing.assert_close(null.emb, model.encode_prompt(["", ""]).emb)
    with torch.no_grad():
        wanted = model.denoise(x, sigma, null)
        assert torch.equal(model.denoise(x, sigma), wanted)
        torch.testing.assert_close(model.denoise(x, sigma, cond.null()), wanted)
        half = model.denoise(x, sigma, cond.drop(torch.tensor([False, True])))
        torch.testing.assert_close(half[1], wanted[1], atol=1e-5, rtol=1e-5)
        assert (half[0] - wanted[0]).abs().max() > 1e-3


def images(model, prompt, **options):
    return fastdiffusion.sample(model, prompt, **{"n": 2, "steps": 3, **options}).images


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_language_of_prompts(loaded, name):
    model = loaded(name).model
    plain = images(model, "a cat")
    assert torch.equal(images(model, "a (cat:1.0)"), plain)
    assert torch.equal(images(model, "a cat", guidance=f"cfg scale={model.scale}"), plain)
    changed = {
        text: (images(model, text) - plain).abs().max()
        for text in ("a (cat:1.5)", "a cat AND a dog", "a [cat:dog:0.5]", "a cat BREAK a dog", "a {dog|dog}")
    }
    assert min(changed.values()) > 1e-5, changed
    assert (images(model, "a cat", negative_prompt="blurry") - plain).abs().max() > 1e-3
    assert (images(model, LONG + "blue") - images(model, LONG + "red")).abs().max() > 1e-5, "the tail of a long prompt"
    pair = images(model, ["a cat", LONG])
    torch.testing.assert_close(pair[:1], images(model, "a cat", n=1), atol=1e-4, rtol=1e-4)


def test_tokens_and_their_letters(sd):
    text = "A  cat, on"
    spans = sd.conditioner.token_spans(text)
    assert spans[0] == spans[-1] == (0, 0)
    assert [text[a:b] for a, b in spans[1:-1]] == ["A", "cat", ",", "o", "n"]
    assert sd.conditioner.max_tokens == 77 and sd.conditioner.unknown_words("a zebra") == []
    with pytest.warns(UserWarning, match="Only the first 77 of"):
        sd.encode_prompt([LONG])


def test_a_batch_of_two_is_two_of_one(sd):
    both = images(sd, "a cat", seed=3)
    torch.testing.assert_close(both[1:], images(sd, "a cat", n=1, seed=4), atol=1e-4, rtol=1e-4)


@pytest.fixture
def photo(tmp_path):
    photo = Image.new("RGB", (64, 64), (200, 40, 30))
    photo.paste((20, 90, 200), (10, 10, 40, 50))
    photo.save(tmp_path / "in.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    mask.save(tmp_path / "mask.png")
    return photo


def test_image_to_image_and_inpainting(sd, photo, tmp_path):
    given = fit_image(photo, (3, 64, 64))
    kept = images(sd, "a cat", n=1, image=photo, strength=0.0)[0]
    torch.testing.assert_close(kept, given, atol=1e-6, rtol=0)
    distances = [
        float((images(sd, "a cat", n=1, image=photo, strength=strength) - given).square().mean())
        for strength in (0.02, 0.3, 0.9)
    ]
    assert distances[0] < distances[1] < distances[2]
    spec = f"inpaint '{tmp_path / 'in.png'}' '{tmp_path / 'mask.png'}'"
    guided, _ = parse_guidance(spec, Setting(sd, sd.shape))
    start = sd.sigma_max * torch.randn(1, *sd.shape)
    with torch.no_grad():
        difference = samplers.final(samplers.run(guided(sd.denoise), start, sd.table(4))) - sd.encode(given[None])
    assert difference[..., 2:6, 2:6].abs().mean() > 0.1, "white is drawn anew"
    difference[..., 2:6, 2:6] = 0
    assert difference.abs().max() < 1e-4, "the rest is kept"
    assert images(sd, "a cat", n=1, guidance=spec).isfinite().all()


def test_half_precision_is_kept(loaded, tmp_path):
    """An fp16 folder stays fp16 where that is asked; x and images are float32, the estimate is the full one's, rounded.

    By default it computes in float32 on a CPU, whose convolutions in fp16 take some eighty times as long.
    """
    one = loaded("sd15")
    other = build("sd15").to(torch.float16)
    other.save_pretrained(tmp_path / "half", variant="fp16")
    plain = fastdiffusion.load(tmp_path / "half", device="cpu")
    assert {module.dtype for module in plain.modules.values()} == {torch.float32}
    half = fastdiffusion.load(tmp_path / "half", device="cpu", precision="fp16")
    assert half.modules["net"].dtype == half.modules["text_encoder"].dtype == torch.float16 and half.id == plain.id
    x, sigma = torch.randn(2, *half.shape), torch.tensor([3.0, 0.3])
    with torch.no_grad():
        rounded = half.denoise(x, sigma, half.encode_prompt(PROMPTS))
        exact = one.model.denoise(x, sigma, one.model.encode_prompt(PROMPTS))
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 2e-2 * exact.abs().max()
    assert half.id != one.model.id


# ---- fitted tables, recipes, commands ---------------------------------------------------------------------------


def test_a_fitted_table_holds_for_scale_and_size(loaded, tmp_path):
    one = loaded("sd15")
    place = tmp_path / "sd15"
    shutil.copytree(one.path, place)
    model = fastdiffusion.load(place, device="cpu")
    cond = model.encode_prompt(PROMPTS)
    fitted = fit_sampler(model, 3, cond=cond, noises=4, evaluations=700, scale=2.0, polish=False)
    assert fitted.info["error"] <= fitted.info["textbook_error"]
    assert folder.write_table(place, model, 3, 2.0, (64, 64), fitted) == tmp_path / "sd15.tables.json"
    ready = fastdiffusion.load(place, device="cpu")
    assert ready.id == model.id == one.model.id, "the hash is of the files, wherever they are"
    assert ready.table(3, scale=2.0) == ready.table(3, scale=2.0, size=(64, 64)) == fitted
    for other in ({"scale": 7.5}, {"scale": 2.0, "size": (64, 72)}, {"scale": 2.0, "sampler": "euler"}):
        assert ready.table(3, **other) != fitted
    assert fastdiffusion.sample(ready, "a cat", steps=3, scale=2.0, n=1).recipe["table"]["name"] == fitted.name
    (tmp_path / "sd15.tables.json").write_text(json.dumps({"checkpoint": "another", "tables": {"3": {}}}))
    assert fastdiffusion.load(place, device="cpu").tables == {}, "fitted to another checkpoint"
    (tmp_path / "sd15.tables.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no file of sampler tables"):
        fastdiffusion.load(place, device="cpu")


def test_commands(loaded, photo, tmp_path, monkeypatch, capsys):
    """sample, reproduce, image to image, inpainting and fit, as they are typed."""
    one = loaded("sd15")
    shutil.copytree(one.path, tmp_path / "sd15")
    monkeypatch.chdir(tmp_path)
    run = ["sample", "sd15/", "a lighthouse", "--steps", "3", "--negative", "blurry", "--device", "cpu"]
    assert main([*run, "--out", "out"]) == 0
    first = tmp_path / "out" / "0000-a-lighthouse.png"
    assert main(["reproduce", str(first), "--device", "cpu"]) == 0
    assert "the same bytes" in capsys.readouterr().out
    moved = tmp_path / "elsewhere" / "deep" / "down"
    moved.mkdir(parents=True)
    shutil.move(first, moved / first.name)
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(moved)  # far from the folder, which is found by its hash where it was last used
        again = reproduce(first.name, device="cpu")
    wanted = fastdiffusion.sample(one.model, "a lighthouse", steps=3, negative_prompt="blurry", n=len(again.seeds))
    torch.testing.assert_close(again.images, wanted.images, atol=1e-4, rtol=1e-4)
    assert main([*run[:2], "a cat", "--steps", "2", "-n", "1", "--image", "in.png", "--strength", "0.6"]) == 0
    assert main([*run[:2], "a cat", "--steps", "2", "-n", "1", "--guidance", "inpaint in.png mask.png"]) == 0
    (tmp_path / "prompts.txt").write_text("a cat\n")
    run = ["fit", "sd15/", "--steps", "2", "--prompts", "prompts.txt", "--evaluations", "700", "--noises", "4"]
    assert main([*run, "--device", "cpu"]) == 0
    tables = json.loads((tmp_path / "sd15.tables.json").read_text())
    assert list(tables["tables"]) == ["2 steps, scale 7.5, 64x64"] and tables["checkpoint"] == one.model.id


def test_the_page_about_checkpoints_runs(loaded, tmp_path, monkeypatch, capsys):
    shutil.copytree(loaded("sd15").path, tmp_path / "sd15")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    blocks = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "checkpoints.md", "exec"), names)
    assert len(blocks) == 2 and "attn2': (1, 64, 77)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_doctor(loaded, name, monkeypatch, capsys):
    """It compares with the pipeline on the user's own weights, and would notice a difference."""
    assert main(["doctor", str(loaded(name).path)]) == 0
    report = capsys.readouterr().out
    layers = len(attention_layers(loaded(name).model.modules["net"]))
    assert report.count(": equal") == 2 and f"{layers} of {layers} layers" in report and "BREAK work" in report
    monkeypatch.setattr("fastdiffusion.adapters.levels.TrainedLevels.t", lambda self, sigma: 500 + 0 * sigma)
    assert main(["doctor", str(loaded(name).path)]) == 0
    assert capsys.readouterr().out.count("NOT EQUAL") == 2
    assert main(["doctor", "emoji"]) == 2
    assert "examines a folder" in capsys.readouterr().err


# ---- attention --------------------------------------------------------------------------------------------------


class Count(Controller):
    def __init__(self):
        super().__init__()
        self.names = []

    def __call__(self, call):
        self.names.append((call.name, call.tokens is not None))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_attention_is_seen_and_changed(loaded, name):
    """A reader changes no bit, every layer is seen once, an edit does what it says, and nothing is left behind."""
    model = loaded(name).model
    net, x, sigma = model.modules["net"], torch.randn(2, *model.shape), torch.tensor([3.0, 0.5])
    cond = model.encode_prompt(PROMPTS)
    count, cross, own = Count(), Store(kind="cross"), Store(kind="self")
    with torch.no_grad():
        plain = model.denoise(x, sigma, cond)
        with control(net, count), control(net, cross, own):
            assert torch.equal(model.denoise(x, sigma, cond), plain)
        assert sorted(name for name, _ in count.names) == sorted(attention_layers(net)), "each once, nested or not"
        assert all(seen == name.endswith("attn2") for name, seen in count.names)
        assert len(cross.probabilities) == len(own.probabilities) == len(attention_layers(net)) // 2
        for probabilities in (*cross.probabilities.values(), *own.probabilities.values()):
            torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
        assert {p.shape[-1] for p in cross.probabilities.values()} == {77}
        twice = x[[0, 0]]
        wanted = model.denoise(twice, sigma[[0, 0]], cond)
        with control(net, Replace(source=0, target=1), Store(kind="cross")):
            replaced = model.denoise(twice, sigma[[0, 0]], cond)
        torch.testing.assert_close(replaced[0], wanted[0], atol=1e-4, rtol=1e-4)
        assert (replaced[1] - wanted[1]).abs().max() > 1e-5
        assert torch.equal(model.denoise(x, sigma, cond), plain), "nothing is left behind"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_two_threads_on_one_net(loaded):
    """One replaces attention, the other reads it: neither meets the other's layers or edits."""
    model = loaded("sd15").model
    x, sigma, cond = torch.randn(2, *model.shape), torch.full((2,), 2.0), model.encode_prompt(PROMPTS)
    with torch.no_grad():
        plain = model.denoise(x, sigma, cond)
        with control(model.modules["net"], Replace()):
            edited = model.denoise(x, sigma, cond)
    barrier = threading.Barrier(2)

    def evaluate(controller):
        results = []
        for _ in range(6):
            barrier.wait()
            with torch.no_grad(), control(model.modules["net"], controller):
                results.append(model.denoise(x, sigma, cond))
        return results

    with ThreadPoolExecutor(2) as pool:
        reading, replacing = (pool.submit(evaluate, controller) for controller in (Count(), Replace()))
    assert all(torch.equal(result, plain) for result in reading.result())
    assert all(torch.equal(result, edited) for result in replacing.result())
    assert not torch.equal(plain, edited)


def test_attention_that_cannot_be_seen_is_refused(loaded):
    processor = diffusers.models.attention_processor.AttnProcessor()  # an explicit softmax
    net = loaded("sd2v").model.modules["net"]
    before = net.attn_processors
    net.set_attn_processor(processor)
    try:
        with pytest.raises(InputError, match=r"attn1 does not use scaled_dot_product"), control(net, Count()):
            loaded("sd2v").model.denoise(torch.randn(1, 4, 8, 8), torch.ones(1))
    finally:
        net.set_attn_processor(before)


# ---- devices, extras, hashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_another_device(loaded, name, photo):
    """Tensors of two devices never meet: in prompts with weights, guidance, image to image and attention."""
    options = {"n": 2, "steps": 2, "negative_prompt": "blurry"}
    wanted = fastdiffusion.sample(loaded(name).path, "a (cat:1.5) AND a dog", **options, device="cpu").images
    with pretended():
        model = fastdiffusion.load(loaded(name).path, device="cuda")
        got = fastdiffusion.sample(model, "a (cat:1.5) AND a dog", **options)
        fastdiffusion.sample(model, ["a cat", LONG], image=photo, strength=0.5, n=2, steps=2)
        fastdiffusion.sample(model, steps=2, n=1, scale=2.0)
        store = Store()
        with torch.no_grad(), control(model.modules["net"], store):
            model.denoise(torch.randn(1, *model.shape).to("cuda"), torch.ones(1).to("cuda"), model.null().null())
    assert store.probabilities
    torch.testing.assert_close(got.images, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(loaded):
    wanted = fastdiffusion.sample(loaded("sd15").path, "a (cat:1.5)", n=1, steps=2, device="cpu").images
    got = fastdiffusion.sample(loaded("sd15").path, "a (cat:1.5)", n=1, steps=2, device="cuda").images
    torch.testing.assert_close(got, wanted, atol=1e-2, rtol=1e-2)


def test_without_the_extra(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fastdiffusion\[sd\]'"):
        fastdiffusion.load(loaded("sd15").path)


def test_a_hash_is_kept_until_a_file_changes(loaded, tmp_path, monkeypatch):
    place = tmp_path / "sd15"
    shutil.copytree(loaded("sd15").path, place)
    first, own = folder.digest(place), loaded("sd15").model.id
    with monkeypatch.context() as patch:
        patch.setattr(folder.hashlib, "file_digest", None)  # reading a file again would raise
        assert folder.digest(place) == first == own
    file = place / "text_encoder" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))
    assert folder.digest(place) != first
    (place / "README.md").write_text("notes decide nothing")
    changed = folder.digest(place)
    (place / "scheduler" / "scheduler_config.json").write_text("{}")
    assert folder.digest(place) != changed
    shutil.rmtree(place)
    with pytest.raises(CheckpointError, match="still there"):
        folder.digest(place)


# ---- bad input --------------------------------------------------------------------------------------------------


def _index(path, **changes):
    file = path / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _cut(path):
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _config(path, part, **changes):
    file = path / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_pipelines_of_the_same_networks_are_one_family():
    """Whatever diffusers itself opens the networks of a family with, for another task."""
    from diffusers.pipelines import auto_pipeline as known

    tables = [getattr(known, f"AUTO_{task}_PIPELINES_MAPPING") for task in ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT")]
    variants = [
        (re.sub("-(controlnet|union|pag|inpaint)", "", key), kind) for each in tables for key, kind in each.items()
    ]
    plain = {key: kind.__name__ for key, kind in tables[0].items() if kind.__name__ in FAMILIES}
    pairs = [(kind.__name__, plain[key]) for key, kind in variants if key in plain]
    assert len(pairs) > 50
    for variant, name in pairs:
        assert family_of(variant).variant({}) is FAMILIES[name], variant
    for other in ("FluxFillPipeline", "FluxControlInpaintPipeline", "SanaSprintImg2ImgPipeline", "ControlNetPipeline"):
        assert family_of(other) is None


VARIANTS = {
    "sd15": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionControlNetPipeline"),
    "sdxl": ("StableDiffusionXLControlNetPAGImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd3": ("StableDiffusion3ControlNetInpaintingPipeline",),
    "flux": ("FluxControlNetImg2ImgPipeline",),
}


def test_the_index_of_a_folder_means_the_folder(loaded, tmp_path, monkeypatch, capsys):
    """For every command: it is called by its folder, and made again to the byte."""
    shutil.copytree(loaded("sd15").path, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    index = "folder/model_index.json"
    assert fastdiffusion.load(index, device="cpu").id == loaded("sd15").model.id
    run = ["-n", "1", "--steps", "1", "--device", "cpu"]
    assert main(["sample", index, "a cat", *run, "-o", "out.png"]) == 0, capsys.readouterr().err
    assert main(["recipe", "out.png"]) == 0 and "model_index" not in capsys.readouterr().out
    assert main(["reproduce", "out.png", "--device", "cpu"]) == 0
    assert main(["doctor", index]) == 0
    monkeypatch.chdir("folder")
    assert main(["sample", "model_index.json", "a cat", *run, "-o", "../here.png"]) == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_of_another_pipeline_is_the_same_model(loaded, tmp_path, name, capsys):
    """Its images are equal, and doctor takes its own pipeline; the control network is left alone."""
    base = loaded(name)
    for kind in VARIANTS[name]:
        place = tmp_path / kind
        shutil.copytree(base.path, place)
        _index(place, _class_name=kind, controlnet=["diffusers", "ControlNetModel"])
        model = fastdiffusion.load(place, device="cpu")
        assert type(model.denoise) is type(base.model.denoise)
        options = {"n": 1, "steps": 2, "size": 64}
        images = [fastdiffusion.sample(m, "a cat", **options).images for m in (model, base.model)]
        assert torch.equal(*images)
        assert pipeline_class(model) == type(base.pipe).__name__
    assert main(["doctor", str(place)]) == 0, capsys.readouterr()


def test_the_width_of_texts_may_be_given_by_level(loaded, tmp_path):
    """As diffusers takes it: levels without cross-attention ignore theirs, and the images are the same."""
    base = loaded("sdxl")
    shutil.copytree(base.path, tmp_path / "x")
    _config(tmp_path / "x", "unet", cross_attention_dim=[8, 40])
    model = fastdiffusion.load(tmp_path / "x", device="cpu")
    images = [fastdiffusion.sample(m, "a cat", n=1, steps=1, size=64).images for m in (model, base.model)]
    assert torch.equal(*images)
    shutil.copytree(loaded("sd15").path, tmp_path / "y")
    net = loaded("sd15").pipe.unet
    other = type(net).from_config({**net.config, "cross_attention_dim": [8, net.config.cross_attention_dim]})
    other.save_pretrained(tmp_path / "y" / "unet")
    with pytest.raises(InputError, match="texts of other widths at other levels, 8, "):
        fastdiffusion.load(tmp_path / "y", device="cpu")


@pytest.mark.parametrize("kind", ["lcm", "LCMScheduler"])
def test_a_latent_consistency_model_is_sampled_as_one(loaded, tmp_path, kind):
    """By its network or its scheduler; an explicit sampler or a fitted table wins, and the recipe has what was used."""
    shutil.copytree(loaded("lcm" if kind == "lcm" else "sd15").path, place := tmp_path / "x")
    file = place / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "_class_name": "PNDMScheduler" if kind == "lcm" else kind}))
    model = fastdiffusion.load(place, device="cpu")

    def used(model, **options):
        return fastdiffusion.sample(model, "a cat", n=1, steps=2, size=64, **options).recipe["table"]["name"]

    assert used(model) == "consistency" and used(model, sampler="euler") == "euler"
    assert used(model, image=Image.new("RGB", (64, 64)), strength=0.5) == "consistency"
    assert used(model.with_table(2, samplers.table("heun", model.schedule(2)))) == "heun"
    assert used(loaded("sd15").model) == "dpmpp_2m"
    model = fastdiffusion.load(place, device="cpu")
    fastdiffusion.sample(model, "a cat", n=1, steps=2, size=64).save(tmp_path / "out.png")
    assert (reproduce(tmp_path / "out.png", device="cpu", model=model)).recipe["table"]["name"] == "consistency"


def test_the_refiner_is_called_what_it_is(loaded, tmp_path):
    shutil.copytree(loaded("sdxl").path, tmp_path / "x")
    changes = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}
    _index(tmp_path / "x", **changes, requires_aesthetics_score=True)
    with pytest.raises(InputError, match="is the refiner of Stable Diffusion XL"):
        fastdiffusion.load(tmp_path / "x", device="cpu")


def _pickled(path):
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(path / "unet" / "diffusion_pytorch_model.bin")


def _scheduler(path, **values):
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))


EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
BAD = {
    "levels of EDM": (lambda p: _scheduler(p, **EDM), "EDMDPMSolverMultistepScheduler: noise levels of EDM"),
    "a flow": (lambda p: _scheduler(p, **FLOW), "FlowMatchEulerDiscreteScheduler: .* rectified flows, are not"),
    "another family": (lambda p: _index(p, _class_name="DogPipeline"), "DogPipeline, which is not supported"),
    "no text encoder": (lambda p: shutil.rmtree(p / "text_encoder"), "has no text_encoder"),
    "not even named": (lambda p: _index(p, text_encoder=[None, None]), "has no text_encoder"),
    "another class": (lambda p: _index(p, unet=["own_code", "MyUnet"]), "is a MyUnet"),
    "a pickle": (_pickled, "a pickle, which can run any program"),
    "half downloaded": (_cut, "half downloaded"),
    "empty": (lambda p: (p / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b""), "half downloaded"),
    "no weights": (lambda p: (p / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "has no diffusion_pytorch"),
    "no scheduler": (lambda p: shutil.rmtree(p / "scheduler"), "is missing"),
    "no JSON": (lambda p: (p / "model_index.json").write_text("{"), "cannot be read"),
    "other weights": (lambda p: _config(p, "unet", block_out_channels=[8, 24]), "unet"),
    "missing weights": (lambda p: _config(p, "unet", layers_per_block=2), "do not fit|cannot be loaded"),
    "nine channels": (lambda p: _config(p, "unet", in_channels=9), "unet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(loaded, tmp_path, case, capsys):
    spoil, sentence = BAD[case]
    shutil.copytree(loaded("sd15").path, tmp_path / "sd15")
    spoil(tmp_path / "sd15")
    with pytest.raises((CheckpointError, InputError), match=sentence):
        fastdiffusion.load(tmp_path / "sd15", device="cpu")
    assert main(["sample", str(tmp_path / "sd15"), "a cat", "--out", str(tmp_path / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err
