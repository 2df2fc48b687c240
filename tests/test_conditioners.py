"""Further conditions of a checkpoint: equal to the pipelines that have them, and a model like any other."""

from pathlib import Path

import pictures
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import desk
import loaded_families
import tiny_conditioners as tiny
import tiny_pipelines

import fastdiffusion
from fastdiffusion import data, nets, sample, samplers
from fastdiffusion.adapters import with_loras
from fastdiffusion.adapters.conditioners import (
    Controlled,
    edge_map,
    new_control,
    with_controls,
    with_image,
    with_image_prompts,
)
from fastdiffusion.cli import main
from fastdiffusion.data import Images
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.guidance.attention import Store, attention_layers, control
from fastdiffusion.io.images import as_input, read_recipe, to_pil, to_tensor
from fastdiffusion.nets.seamless import check_seamless, seamless
from fastdiffusion.noise import generator, initial
from fastdiffusion.tasks import variations
from fastdiffusion.tasks.generation.control_training import SMALLEST, control_task, moved, train_control
from fastdiffusion.training.options import TrainingOptions
from fastdiffusion.types import Cond

PROMPTS = ["a cat, on a mat", "a dog"]
SIZE = (64, 64)
MAPS = [pictures.photo(64, 64), pictures.photo(64, 64).transpose(Image.Transpose.ROTATE_90)]


class Base:
    """A plain pipeline, its model, and what conditions both, in a folder."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.plain = tiny_pipelines.build(name)
        self.plain.scheduler = tiny.euler()
        self.path = folder / name
        self.plain.save_pretrained(self.path)
        self.model = fastdiffusion.load(self.path, device="cpu")
        self.controls = [tiny.controlnet(self.plain.unet, seed) for seed in (1, 2)]
        self.adapter = tiny.t2i_adapter(self.plain.unet)
        for i, net in enumerate([*self.controls, self.adapter]):
            net.save_pretrained(folder / ("canny", "depth", "sketch")[i])

    def pipe(self, kinds, **more):
        return as_pipe(kinds[self.name], self.plain, **more)


def as_pipe(kind, plain, **more):
    parts = {**{n: part for n, part in plain.components.items() if n != "image_encoder"}, **more}
    if "XL" not in kind.__name__:
        parts["requires_safety_checker"] = False
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request, tmp_path_factory):
    return Base(request.param, tmp_path_factory.mktemp(f"conditioned-{request.param}"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Of Stable Diffusion 1 alone."""
    return Base("sd15", tmp_path_factory.mktemp("conditioned"))


def wanted(pipe, scale, noise, **options):
    return pipe(
        latents=noise.clone(), num_inference_steps=6, guidance_scale=scale, output_type="latent", return_dict=False,
        **options,
    )[0]  # fmt: skip


@torch.no_grad()
def ours(model, pipe, scale, noise, prompts=PROMPTS, negative=None):
    """Final latents of six steps of the pipeline's Euler."""
    null = model.null(1, SIZE) if negative is None else model.conditioner.negative.encode([negative], SIZE)
    denoise = model.guide(model.denoise, scale, null)
    start, table = noise * float(pipe.scheduler.init_noise_sigma), pipe.scheduler.sigmas.double()
    return samplers.final(
        samplers.run(denoise, start, samplers.table("euler", table), model.encode_prompt(prompts, SIZE))
    )


def far(a, b):
    """The greatest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


# ---- ControlNets and T2I-Adapters -------------------------------------------------------------------------------

CONTROLNET = {
    "sd15": diffusers.StableDiffusionControlNetPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
}
T2I = {"sd15": diffusers.StableDiffusionAdapterPipeline, "sdxl": diffusers.StableDiffusionXLAdapterPipeline}


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_two_control_nets_equal_their_pipeline(base, scale):
    """Each with its scale and its part of the run; without them the result is another one."""
    pipe, noise = base.pipe(CONTROLNET, controlnet=base.controls), torch.randn(2, 4, 8, 8)
    truth = wanted(
        pipe, scale, noise, prompt=PROMPTS, image=list(MAPS), controlnet_conditioning_scale=[0.8, 0.5],
        control_guidance_start=[0.0, 0.3], control_guidance_end=[0.6, 1.0],
    )  # fmt: skip
    controls = [
        Controlled(base.folder / "canny", MAPS[0], 0.8, (0.0, 0.6)),
        Controlled(base.folder / "depth", MAPS[1], 0.5, (0.3, 1.0)),
    ]
    model = with_controls(base.model, controls, SIZE)
    assert far(ours(model, pipe, scale, noise), truth) <= 1e-4
    assert far(ours(base.model, pipe, scale, noise), truth) > 1e-2, "the pipeline is steered"


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_t2i_adapter_equals_its_pipeline(base, scale):
    pipe, noise = base.pipe(T2I, adapter=base.adapter), torch.randn(2, 4, 8, 8)
    part = {"adapter_conditioning_factor": 0.5} if base.name == "sdxl" else {}
    truth = wanted(
        pipe,
        scale,
        noise,
        prompt=PROMPTS,
        image=[MAPS[0]] * 2,
        height=64,
        width=64,
        adapter_conditioning_scale=0.7,
        **part,
    )
    window = (0.0, 0.5) if part else (0.0, 1.0)
    model = with_controls(base.model, [Controlled(base.folder / "sketch", MAPS[0], 0.7, window)], SIZE)
    assert far(ours(model, pipe, scale, noise), truth) <= 1e-4
    assert far(ours(base.model, pipe, scale, noise), truth) > 1e-2


# ---- IP-Adapters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plus", "scale"), [(False, 1.0), (True, 4.0)])
def test_an_ip_adapter_equals_its_pipeline(base, plus, scale, tmp_path):
    """Its scale, with a negative prompt, and several images at the weights 1 and 0 are the first."""
    file, encoder = tiny.ip_adapter(base.plain.unet, tmp_path / "ip.safetensors", plus), tiny.image_encoder()
    encoder.save_pretrained(tmp_path / "image_encoder")
    pipe = as_pipe(
        type(base.plain), tiny_pipelines.build(base.name), image_encoder=encoder, feature_extractor=tiny.processor(),
        scheduler=tiny.euler(),
    )  # fmt: skip
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    noise, photo = torch.randn(2, 4, 8, 8), pictures.photo(80, 50)
    options = {"prompt": PROMPTS, "negative_prompt": ["mud"] * 2, "height": 64, "width": 64}
    truth = wanted(pipe, scale, noise, ip_adapter_image=photo, **options)
    before = ours(base.model, pipe, scale, noise, negative="mud")
    model = with_image_prompts(base.model, [(photo, 1.0), (MAPS[0], 0.0)], file, 0.6)
    assert far(ours(model, pipe, scale, noise, negative="mud"), truth) <= 1e-4
    assert far(before, truth) > 1e-2, "the image counts"
    assert torch.equal(before, ours(base.model, pipe, scale, noise, negative="mud")), "the given model stays as it was"
    other = with_image_prompts(base.model, [(photo, 0.5), (MAPS[0], 0.5)], file, 0.6)
    assert far(ours(other, pipe, scale, noise, negative="mud"), truth) > 1e-4
    assert len({base.model.id, model.id, other.id}) == 3


# ---- pipelines that take an image -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each pipeline of ``tiny_conditioners``, its folder and its model."""
    made = {}
    for name, build in tiny.PIPELINES.items():
        pipe, path = build(), tmp_path_factory.mktemp("taking-images") / name
        pipe.set_progress_bar_config(disable=True)
        pipe.save_pretrained(path)
        made[name] = pipe, fastdiffusion.load(path, device="cpu"), path
    return made


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_instruct_pix2pix_equals_its_pipeline(folders, scale):
    """Both scales, with a negative prompt and without."""
    pipe, model, _ = folders["pix2pix"]
    noise, made = torch.randn(2, 4, 8, 8), with_image(model, to_tensor(MAPS[0])[None], image_scale=1.7)
    for negative in ("", "mud"):
        truth = wanted(
            pipe, scale, noise, prompt=PROMPTS, image=[MAPS[0]] * 2, image_guidance_scale=1.7,
            negative_prompt=[negative] * 2,
        )  # fmt: skip
        assert far(ours(made, pipe, scale, noise, negative=negative or None), truth) <= 1e-4
    other = with_image(model, to_tensor(MAPS[1])[None], image_scale=1.7)
    assert far(ours(other, pipe, scale, noise, negative="mud"), truth) > 1e-2


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_upscaler_equals_its_pipeline(folders, scale, monkeypatch):
    """The pipeline's noise of the image is ours."""
    pipe, model, _ = folders["upscaler"]
    small, noise = pictures.photo(8, 8), torch.randn(2, 4, 8, 8)
    made = with_image(model, to_tensor(small)[None], noise_level=40, seed=3)
    own = made.denoise.noise_of(to_tensor(small)[None], 3)
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: own.expand(shape))
    truth = wanted(pipe, scale, noise, prompt=PROMPTS, image=[small] * 2, noise_level=40)
    assert model.factor == 4 and far(ours(made, pipe, scale, noise), truth) <= 1e-4
    assert far(ours(with_image(model, to_tensor(small)[None], noise_level=900), pipe, scale, noise), truth) > 1e-2


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_an_image_variation_equals_its_pipeline(folders, scale):
    pipe, model, _ = folders["image_variation"]
    photo, noise = pictures.photo(80, 50), torch.randn(1, 4, 8, 8)
    truth = wanted(pipe, scale, noise, image=photo, height=64, width=64)
    assert far(ours(with_image_prompts(model, [(photo, 1.0)]), pipe, scale, noise, [""]), truth) <= 1e-4
    assert far(ours(with_image_prompts(model, [(MAPS[0], 1.0)]), pipe, scale, noise, [""]), truth) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_unclip_equals_its_pipeline(folders, scale, monkeypatch):
    """A noisy embedding; and between two images, their spherical interpolation."""
    pipe, model, _ = folders["unclip"]
    photo, noise = pictures.photo(80, 50), torch.randn(2, 4, 8, 8)
    # Latents that are given it takes as they are.
    monkeypatch.setattr(type(pipe.scheduler), "init_noise_sigma", 1.0)
    made = with_image_prompts(model, [(photo, 3.0), (MAPS[0], 1.0)], noise_level=30)
    own = made.denoise.noise_of()
    monkeypatch.setattr(
        diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img, "randn_tensor",
        lambda shape, **_: own.expand(shape),
    )  # fmt: skip
    encoder = model.denoise.image_encoder
    between = fastdiffusion.noise.slerp(encoder.pooled(photo), encoder.pooled(MAPS[0]), 0.25)
    options = {"prompt": PROMPTS, "height": 64, "width": 64, "noise_level": 30}
    truth = wanted(pipe, scale, noise, image_embeds=between.expand(2, -1), **options)
    assert far(ours(made, pipe, scale, noise), truth) <= 1e-4
    alone = wanted(pipe, scale, noise, image=[photo] * 2, **options)
    assert far(ours(with_image_prompts(model, [(photo, 1.0)], noise_level=30), pipe, scale, noise), alone) <= 1e-4
    assert far(alone, truth) > 1e-3


# ---- in use -----------------------------------------------------------------------------------------------------

RUN = {"n": 2, "steps": 2, "scale": 3.0, "size": 64}


@pytest.fixture
def files(one, tmp_path, monkeypatch):
    """A folder to work in, with a map, a photograph and an IP-Adapter."""
    MAPS[0].save(tmp_path / "edges.png")
    pictures.photo(80, 50).save(tmp_path / "photo.png")
    tiny.ip_adapter(one.plain.unet, tmp_path / "ip.safetensors")
    tiny.image_encoder().save_pretrained(tmp_path / "image_encoder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(one, *words):
    return ["sample", str(one.path), "a cat", *words, "-n", "1", "--steps", "2", "--size", "64", "-o", "out.png"]


def test_conditions_are_typed_and_reproduced(one, files, capsys):
    """All of them together: the same bytes again, and a recipe keeps what each file was."""
    canny, sketch = one.folder / "canny", one.folder / "sketch"
    words = ["--control", f"{canny}:edges:edges.png:0.8:0-0.5", "--control", f"{sketch}:edges.png:0.3"]
    words += ["--image-prompt", "photo.png:2", "--image-prompt", "edges.png", "--ip-adapter", "ip.safetensors:0.5"]
    assert main(typed(one, *words, "--seamless", "xy", "--device", "cpu")) == 0
    assert main(["reproduce", "out.png", "--device", "cpu"]) == 0
    assert "the same bytes" in capsys.readouterr().out
    recipe = read_recipe("out.png")
    parameters = recipe["parameters"]
    assert parameters["control"][0].startswith("diffusion_pytorch_model.safetensors@")
    assert parameters["control"][0].endswith(":0.8:0.0-0.5") and ":edges:edges.png@" in parameters["control"][0]
    assert parameters["ip_adapter"].startswith("ip.safetensors@") and parameters["image_prompt"][0].endswith(":2.0")
    assert recipe["model"]["sha256"] == one.model.id, "of the model alone, which is what a person has"
    MAPS[1].save("edges.png")
    assert main(["reproduce", "out.png", "--device", "cpu"]) == 2
    assert "edges.png" in capsys.readouterr().err


def test_each_condition_counts(one, files):
    """Scale 0 is the model itself to the bit; every condition changes images, and leaves the model as it was."""
    canny = f"{one.folder / 'canny'}:edges.png"
    plain = sample(one.model, "a cat", **RUN).images
    prompted = {"image_prompt": "photo.png", "ip_adapter": "ip.safetensors"}
    changes = [{"control": canny}, {"control": f"{canny}:0.5:0-0.5"}, prompted, {"seamless": "x"}]
    results = [sample(one.model, "a cat", **RUN, **change).images for change in changes]
    for made in results:
        assert float((made - plain).abs().max()) > 1e-4
    assert torch.equal(sample(one.model, "a cat", **RUN).images, plain)
    assert torch.equal(sample(one.model, "a cat", **RUN, control=f"{canny}:0").images, plain)
    given = Controlled(one.folder / "canny", MAPS[0])
    assert torch.equal(sample(one.model, "a cat", **RUN, control=[given]).images, results[0])


def test_conditions_go_with_masks_guidance_and_loras(one, files):
    """A control with image to image, a mask and further guidance; and with a LoRA, in either order."""
    canny = f"{one.folder / 'canny'}:edges.png"
    Image.new("L", (64, 64), 0).save("mask.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    mask.save("mask.png")
    options = {"n": 1, "steps": 2, "size": 64, "image": "edges.png", "control": canny}
    masked = sample(one.model, "a cat", mask="mask.png", scale=3.0, **options)
    kept = (masked.images[0] - to_tensor(MAPS[0])).abs().amax(0)
    assert float(kept[50:].max()) == 0 and float(kept[10:38, 10:38].max()) > 0
    half = sample(one.model, "a cat", strength=0.5, guidance="apg scale=3", **options)
    without = sample(one.model, "a cat", strength=0.5, guidance="apg scale=3", **{**options, "control": ()})
    assert float((half.images - without.images).abs().max()) > 1e-4
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ends = {"A": torch.randn(2, 16), "B": torch.randn(16, 2)}
    save_file({f"unet.{name}.lora_{end}.weight": value for end, value in ends.items()}, str(files / "lora.safetensors"))
    x, sigma, cond = torch.randn(1, 4, 8, 8), torch.ones(1), one.model.encode_prompt(["a cat"], SIZE)
    steered = [Controlled(one.folder / "canny", MAPS[0])]
    with torch.no_grad():
        first = with_controls(with_loras(one.model, ["lora.safetensors"]), steered, SIZE).denoise(x, sigma, cond)
        second = with_loras(with_controls(one.model, steered, SIZE), ["lora.safetensors"]).denoise(x, sigma, cond)
        assert torch.equal(first, second)
        assert far(first, with_controls(one.model, steered, SIZE).denoise(x, sigma, cond)) > 1e-4


def test_prompts_in_pieces_and_of_unlike_length(base):
    """A row's estimate does not depend on the padding of another, though a ControlNet takes no mask."""
    model = with_controls(base.model, [Controlled(base.folder / "canny", MAPS[0])], SIZE)
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 0.7])
    short = model.encode_prompt(["a cat"], SIZE)
    long = Cond.of(short.parts() | {"emb": torch.cat([short.emb, short.emb], 1)})
    with torch.no_grad():
        both = model.denoise(x, sigma, Cond.cat([short, long]))
        for i, cond in enumerate((short, long)):
            alone = model.denoise(x[i : i + 1], sigma[i : i + 1], cond)
            torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4 * float(alone.abs().max()), rtol=1e-5)


def test_attention_is_still_seen(one, files):
    """Under an IP-Adapter the layers' maps are those of the text, and a store that only reads changes no bit."""
    model = with_image_prompts(one.model, [("photo.png", 1.0)], "ip.safetensors")
    x, sigma, cond = torch.randn(1, 4, 8, 8), torch.tensor([1.0]), model.encode_prompt(["a cat"], SIZE)
    store = Store(kind="cross")
    with torch.no_grad():
        plain = model.denoise(x, sigma, cond)
        with control(model.modules["net"], store):
            assert torch.equal(model.denoise(x, sigma, cond), plain)
    assert {value.shape[-1] for value in store.probabilities.values()} == {77}
    assert store.probabilities.keys() == {
        name for name in attention_layers(one.model.modules["net"]) if name.endswith("attn2")
    }


WRONG = {
    "no such folder": (["--control", "nowhere:edges.png"], "nowhere is no network"),
    "a missing image": (["--control", "CANNY:nothing.png"], "There is no file 'nothing.png'"),
    "not a number": (["--control", "CANNY:edges.png:nan"], "must be a finite number"),
    "another shape": (["--control", "CANNY:photo.png"], "80x50 pixels and the images 64x64"),
    "no part of a run": (["--control", "CANNY:edges.png:1:0.5-0.2"], "no part of it"),
    "half a control": (["--control", "CANNY"], "a network and its image"),
    "another family's": (["--control", "OTHER:edges.png"], "is for another model"),
    "an image without an adapter": (["--image-prompt", "photo.png"], "needs an adapter"),
    "an adapter without an image": (["--ip-adapter", "ip.safetensors"], "needs an image"),
    "a model as an adapter": (["--image-prompt", "photo.png", "--ip-adapter", "UNET"], "is no IP-Adapter"),
    "another family's adapter": (["--image-prompt", "photo.png", "--ip-adapter", "other.safetensors"], "another model"),
    "weights of nothing": (["--image-prompt", "photo.png:0", "--ip-adapter", "ip.safetensors"], "one above it"),
    "seamless z": (["--seamless", "z"], "No pair of edges named 'z'"),
    "another model's scale": (["--image-scale", "2"], "InstructPix2Pix's"),
    "another model's level": (["--noise-level", "2"], "noise_level is for"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_conditions_are_one_sentence(one, files, name, capsys):
    words, sentence = WRONG[name]
    if "other" in str(words).lower():
        net = tiny_pipelines.build("sdxl").unet
        tiny.controlnet(net).save_pretrained(files / "other")
        tiny.ip_adapter(net, files / "other.safetensors")
    places = {"CANNY": one.folder / "canny", "OTHER": files / "other",
              "UNET": one.path / "unet" / "diffusion_pytorch_model.safetensors"}  # fmt: skip
    for key, place in places.items():
        words = [word.replace(key, str(place)) for word in words]
    assert main(typed(one, *words, "--device", "cpu")) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error and "Traceback" not in error


def test_our_own_models_take_no_networks_of_others(files, one):
    with pytest.raises(InputError, match="for checkpoints of other programs"):
        sample("emoji", "a heart", n=1, steps=1, control=f"{one.folder / 'canny'}:edges.png")


def test_pipelines_that_take_an_image_are_used_like_any_other(folders, tmp_path, monkeypatch, capsys):
    """From the command line, and made again to the byte; without an image they say what they need."""
    monkeypatch.chdir(tmp_path)
    pictures.photo(64, 64).save("in.png")
    pictures.photo(16, 8).save("small.png")
    uses = {
        "pix2pix": ["make it a cat", "--image", "in.png", "--image-scale", "1.2", "--size", "64"],
        "upscaler": ["a cat", "--image", "small.png", "--noise-level", "10"],
        "image_variation": ["--image-prompt", "in.png:1", "--image-prompt", "small.png:2", "--size", "64"],
        "unclip": ["a cat", "--image-prompt", "in.png", "--noise-level", "5", "--size", "64"],
    }
    for name, words in uses.items():
        run = [
            "sample",
            str(folders[name][2]),
            *words,
            "-n",
            "1",
            "--steps",
            "2",
            "-o",
            f"{name}.png",
            "--device",
            "cpu",
        ]
        assert main(run) == 0, name
        assert main(["reproduce", f"{name}.png", "--device", "cpu"]) == 0
        assert "the same bytes" in capsys.readouterr().out
        bare = ["sample", str(folders[name][2]), *(words[:1] if words[0][0] != "-" else []), "-o", "bare.png"]
        assert main([*bare, "-n", "1", "--device", "cpu"]) == 2
        assert "there is none. Give it" in capsys.readouterr().err
    assert Image.open("upscaler.png").size == (64, 32)


# ---- seamless ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_seamless_networks_commute_with_rolling(one, axes):
    """The noise rolled is the image rolled, on the seamless axes alone; afterwards the network is as it was."""
    model, shift = one.model, {"x": (0, 2), "y": (2, 0), "xy": (4, 2)}[axes]
    x, sigma, cond = torch.randn(1, 4, 8, 8), torch.tensor([2.0]), one.model.encode_prompt(["a cat"], SIZE)
    with torch.no_grad():
        plain = model.decode(model.denoise(x, sigma, cond))
        with seamless(axes):
            made = model.decode(model.denoise(x, sigma, cond))
            rolled = model.decode(model.denoise(x.roll(shift, (-2, -1)), sigma, cond))
        assert torch.equal(model.decode(model.denoise(x, sigma, cond)), plain)
        without = model.decode(model.denoise(x.roll(shift, (-2, -1)), sigma, cond))
    pixels = tuple(8 * n for n in shift)
    assert far(rolled, made.roll(pixels, (-2, -1))) <= 1e-4
    assert far(without, plain.roll(pixels, (-2, -1))) > 1e-3 < far(made, plain)


def test_seamless_on_our_own_networks():
    """A U-Net with attention and both ways of halving, and the bundled decoder."""
    model = fastdiffusion.load("emoji", device="cpu")
    for options in ({}, {"blur": 1.0}):
        torch.manual_seed(0)
        net = desk.stirred(nets.build({**desk.NET, "in_channels": 3, "out_channels": 3, **options}))
        x, c_noise = torch.randn(1, 3, 16, 16), torch.zeros(1)
        with torch.no_grad(), seamless("xy"):
            assert far(net(x.roll((4, 8), (-2, -1)), c_noise), net(x, c_noise).roll((4, 8), (-2, -1))) <= 1e-4
        with torch.no_grad():
            assert far(net(x.roll((4, 8), (-2, -1)), c_noise), net(x, c_noise).roll((4, 8), (-2, -1))) > 1e-3
    z = torch.randn(1, *model.shape)
    with torch.no_grad(), seamless("x"):
        assert far(model.decode(z.roll(3, -1)), model.decode(z).roll(3 * model.factor, -1)) <= 1e-4


def test_transformers_have_no_seams_to_close():
    with pytest.raises(InputError, match="a transformer"):
        sample(loaded_families.get("sd3").model, "a cat", n=1, steps=1, size=64, seamless="x")
    with pytest.raises(InputError, match="a transformer"):
        check_seamless(nets.build({**nets.presets.PRESETS["dit-tiny"], "in_channels": 3, "out_channels": 3}))


# ---- a ControlNet of one's own ----------------------------------------------------------------------------------


def test_a_control_net_is_trained_and_saved(one, tmp_path, monkeypatch):
    """It begins as nothing, learns, leaves the model as it was, and is then used from its folder, by diffusers too."""
    monkeypatch.chdir(tmp_path)
    begun = new_control(one.model)
    x, sigma, cond = torch.randn(2, 4, 8, 8), torch.ones(2), one.model.encode_prompt(PROMPTS, SIZE)
    maps = torch.stack([edge_map(to_tensor(image)[None])[0] for image in MAPS])
    with torch.no_grad():
        plain = one.model.denoise(x, sigma, cond)
        assert torch.equal(begun.denoise(x, sigma, Cond.of(cond.parts() | {"extra.control": maps})), plain)
    images = Images(
        "photos", [torch.stack([as_uint8(image) for image in MAPS]).numpy()], captions=[["a cat"], ["a dog"]]
    )
    folder = train_control(one.model, images, folder="run", steps=2, batch_size=2, lr=1e-2, verbose=False)
    with torch.no_grad():
        assert torch.equal(one.model.denoise(x, sigma, cond), plain)
        rows = [
            with_controls(one.model, [Controlled(folder, image, edges=True)], SIZE).denoise(x, sigma, cond)[i]
            for i, image in enumerate(MAPS)
        ]
        made = with_controls(one.model, [Controlled(folder, MAPS[0], edges=True)], SIZE)
        both = made.denoise(x, sigma, Cond.of(cond.parts() | {"extra.control": maps}))
    assert far(both, torch.stack(rows)) <= 1e-4 and far(both, plain) > 1e-4
    assert diffusers.ControlNetModel.from_pretrained(folder).config.conditioning_channels == 3
    with torch.no_grad():  # a later training can begin with it
        more = new_control(one.model, folder).denoise(x, sigma, Cond.of(cond.parts() | {"extra.control": maps}))
        assert torch.equal(more, both)
    assert new_control(one.model, folder).id != new_control(one.model).id


def test_training_images_are_moved():
    """Smaller, anywhere, half of them mirrored, on the color of their border; the rest stay as they are."""
    ground = torch.tensor([0.5, -0.5, 0.25])
    flags = ground[:, None, None].repeat(400, 1, 32, 32).reshape(400, 3, 32, 32)
    flags[:, :, 8:24, 8:16], flags[:, :, 8:24, 16:24] = -1.0, 1.0
    assert torch.equal(moved(flags, 0.0, generator(0)), flags)
    some = moved(flags, 0.75, generator(0))
    assert torch.equal(some, moved(flags, 0.75, generator(0)))
    same = (some == flags).flatten(1).all(1)
    assert 0.2 < same.float().mean() < 0.3
    away = some[~same]
    colors = away[:, 0] < -0.5, away[:, 1] > 0.5  # what is black in the flag, and what is white
    area = sum(color.flatten(1).sum(1) for color in colors) / 256
    assert (area > 0.7 * SMALLEST**2).all() and (area < 1.15).all() and area.std() > 0.15
    columns = torch.arange(32.0)
    left, right = ((color * columns).flatten(1).sum(1) / color.flatten(1).sum(1) for color in colors)
    assert 0.4 < (left > right).float().mean() < 0.6
    assert ((left + right) / 2).std() > 2
    corners = away[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, ground[:, None].expand_as(corners), atol=1e-6)


def test_a_control_net_is_trained_on_moved_images(one):
    """The same at each call of a step, so that a run is resumed; as they are, if no part of them is to be moved."""
    pixels = torch.stack([as_uint8(image) for image in MAPS])
    images, options = Images("photos", [pixels.numpy()], captions=[["a cat"], ["a dog"]]), TrainingOptions(batch_size=2)
    model = new_control(one.model)
    still, task = (control_task(model, images, options, move).draw for move in (0.0, 1.0))
    for step in range(3):
        assert torch.equal(still(step)[0].sort(0).values, as_input(pixels).sort(0).values)
        assert torch.equal(task(step)[0], task(step)[0]) and not torch.equal(task(step)[0], task(step + 1)[0])
    with pytest.raises(InputError, match="from 0 to 1"):
        control_task(model, images, options, 1.5)


def test_the_trained_one_follows_edges():
    """Of the small checkpoint that is kept here: small glyphs in a corner, where no prompt would put them."""
    place = Path(__file__).parent / "checkpoints"
    emoji, names = data.load("emoji"), ["lizard", "flexed biceps", "sauropod", "guitar"]
    known = [emoji.captions[i][0] for i in range(len(emoji))]
    glyphs = as_input(emoji.batch([known.index(name) for name in names]).images)
    small = torch.nn.functional.interpolate(glyphs, (44, 44), mode="bicubic", antialias=True).clamp(-1, 1)
    images = torch.nn.functional.pad(small, (0, 20, 20, 0), value=1.0)
    maps = edge_map(images)
    plain = fastdiffusion.load(place / "sd-small", precision="float32", device="cpu")
    steered = with_controls(plain, [Controlled(place / "sketch", to_pil(images[0]), 1.5, edges=True)], SIZE)
    cond, table = plain.encode_prompt(names, SIZE), samplers.table("dpmpp_2m", plain.schedule(6, SIZE))
    x = float(table.sigmas[0]) * initial(range(4), plain.shape)
    agreement = []
    for model, extra in ((plain, {}), (steered, {"extra.control": maps})):
        run = samplers.run(model.denoise, x, table, Cond.of(cond.parts() | extra), range(4))
        with torch.no_grad():
            made = edge_map(model.decode(samplers.final(run)).clamp(-1, 1))
        near_made, near_map = (torch.nn.functional.max_pool2d(drawn, 3, 1, 1) for drawn in (made, maps))
        precision, recall = (made * near_map).sum() / made.sum(), (maps * near_made).sum() / maps.sum()
        agreement.append(float(2 * precision * recall / (precision + recall)))
    assert agreement[1] > max(agreement[0] + 0.3, 0.85)


def as_uint8(image):
    return ((to_tensor(image) + 1) * 127.5).round().to(torch.uint8)


def test_several_images_and_words_are_mixed(files, one, monkeypatch):
    """Every image becomes a caption, words stay words, and AND joins them with their weights."""
    passed = {}
    monkeypatch.setattr(variations.sample, "sample", lambda model, prompts, **options: passed.update(prompts=prompts))
    sample("emoji", "a crown", n=1, steps=6).save(files)
    crown = str(next(files.glob("0*.png")))
    variations.variations(crown, "on blue", mix=[f"{crown}:0.5", "a red heart:0.25", "gold"], n=2, temperature=0)
    assert passed["prompts"] == ["crown on blue AND crown:0.5 AND a red heart:0.25 AND gold:1"] * 2
    with pytest.raises(DataError, match=r"nothing\.png"):
        variations.variations(crown, mix="nothing.png", n=1)
