"""Further conditions of a checkpoint: equal to the pipelines that have them, and a model like any other."""

import pictures
import pytest
import torch
from PIL import Image

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import tiny_conditioners as tiny
import tiny_pipelines

import fastdiffusion
from fastdiffusion import samplers
from fastdiffusion.adapters.conditioners import Controlled, with_controls, with_image, with_image_prompts
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.images import to_tensor

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

CONTROLNET = {"sd15": diffusers.StableDiffusionControlNetPipeline, "sdxl": diffusers.StableDiffusionXLControlNetPipeline}
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
        pipe, scale, noise, prompt=PROMPTS, image=[MAPS[0]] * 2, height=64, width=64, adapter_conditioning_scale=0.7, **part
    )
    window = (0.0, 0.5) if part else (0.0, 1.0)
    model = with_controls(base.model, [Controlled(base.folder / "sketch", MAPS[0], 0.7, window)], SIZE)
    assert far(ours(model, pipe, scale, noise), truth) <= 1e-4
    assert far(ours(base.model, pipe, scale, noise), truth) > 1e-2


# ---- IP-Adapters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("scale", [1.0, 4.0])
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
