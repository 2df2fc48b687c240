"""Networks of nine channels, which see image and mask: equal to their own pipeline, and used like any other model."""

import numpy as np
import pictures
import pytest
import torch
from PIL import Image

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import tiny_pipelines
from tiny_parts import unet

import fastdiffusion
from fastdiffusion import sample, samplers
from fastdiffusion.cli import main
from fastdiffusion.io.images import to_tensor
from fastdiffusion.types import Cond

KINDS = {"sd15": diffusers.StableDiffusionInpaintPipeline, "sdxl": diffusers.StableDiffusionXLInpaintPipeline}
PROMPTS = ["a cat, on a mat", "a dog"]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A pipeline that inpaints, and the model of its folder."""
    plain = tiny_pipelines.build(request.param)
    torch.manual_seed(1)
    plain.unet = unet(plain.unet.config.cross_attention_dim, **{**plain.unet.config, "in_channels": 9})
    for parameter in plain.unet.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.1)
    parts = {**plain.components, "scheduler": diffusers.EulerDiscreteScheduler(**tiny_pipelines.SCHEDULER)}
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder",)}
    if request.param == "sd15":
        parts["requires_safety_checker"] = False
    pipe = KINDS[request.param](**parts)
    pipe.set_progress_bar_config(disable=True)
    path = tmp_path_factory.mktemp("inpainting") / request.param
    pipe.save_pretrained(path)
    return pipe, fastdiffusion.load(path, device="cpu"), path


def mask() -> Image.Image:
    made = Image.new("L", (64, 64))
    made.paste(255, (11, 20, 40, 52))
    return made


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_equals_its_pipeline(made, scale, monkeypatch):
    """Final latents of six steps of Euler, with and without guidance: 1e-4 of the largest at most."""
    pipe, model, _ = made
    image, noise = pictures.photo(64, 64), torch.randn(2, 4, 8, 8)
    kind = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mode())  # it draws the image's latents
    wanted = pipe(
        prompt=list(PROMPTS), image=image, mask_image=mask(), strength=1.0, latents=noise.clone(), height=64, width=64,
        num_inference_steps=6, guidance_scale=scale, output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    extra = model.denoise.inpainting(to_tensor(image)[None], (to_tensor(mask())[None] + 1) / 2)

    def told(x, sigma, cond=None):
        parts = (cond or Cond()).parts() | {f"extra.{name}": value for name, value in extra.items()}
        return model.denoise(x, sigma, Cond.of(parts))

    denoise = model.guide(told, scale, model.null(1, (64, 64)))
    start = noise * float(pipe.scheduler.init_noise_sigma)
    with torch.no_grad():
        cond = model.encode_prompt(PROMPTS, (64, 64))
        table = samplers.table("euler", pipe.scheduler.sigmas.double())
        got = samplers.final(samplers.run(denoise, start, table, cond))
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_it_inpaints_by_its_own_way(made, tmp_path, monkeypatch):
    """The mask and the image reach the network, kept pixels are the image's, and both spellings are one."""
    _, model, path = made
    image = pictures.photo(64, 64)
    image.save(tmp_path / "in.png")
    mask().save(tmp_path / "mask.png")
    seen = []
    predict = type(model.denoise).predict
    monkeypatch.setattr(
        type(model.denoise), "predict", lambda self, x, t, cond: seen.append(cond) or predict(self, x, t, cond)
    )
    options = {"n": 2, "steps": 2, "scale": 3.0}
    result = sample(model, "a cat", image=tmp_path / "in.png", mask=tmp_path / "mask.png", **options)
    told = seen[0].extra["inpaint"]
    assert told.shape == (4, 5, 8, 8), "two images, with the prompt and without"
    assert torch.equal(told[0, 0] > 0, torch.nn.functional.interpolate(to_tensor(mask())[None], (8, 8))[0, 0] > 0)
    change = (result.images - to_tensor(image)).abs().amax((0, 1)).numpy()
    black = np.asarray(mask()) == 0
    assert change[black].max() == 0 and (change[~black] > 0).mean() > 0.9
    spec = f"inpaint {tmp_path / 'in.png'} {tmp_path / 'mask.png'}"
    assert torch.equal(result.images, sample(model, "a cat", guidance=spec, **options).images)
    monkeypatch.chdir(tmp_path)
    words = ["sample", str(path), "a cat", "--image", "in.png", "--mask", "mask.png", "-n", "1", "--steps", "1"]
    assert main([*words, "-o", "out.png", "--device", "cpu"]) == 0
    assert main(["reproduce", "out.png", "--device", "cpu"]) == 0


def test_without_an_image_everything_is_drawn(made):
    _, model, _ = made
    told = model.denoise.inpainting(torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64))["inpaint"]
    x, sigma, cond = torch.randn(2, 4, 8, 8), torch.tensor([2.0, 0.5]), model.encode_prompt(PROMPTS, (64, 64))
    with torch.no_grad():
        plain = model.denoise(x, sigma, cond)
        same = model.denoise(x, sigma, Cond.of(cond.parts() | {"extra.inpaint": told}))
    assert torch.equal(plain, same) and bool((told[:, 0] == 1).all())
    assert sample(model, "a cat", n=1, steps=2).images.isfinite().all()


def test_a_folder_of_the_wrong_class_is_refused(made, tmp_path, capsys):
    import json
    import shutil

    shutil.copytree(made[2], tmp_path / "x")
    index = json.loads((tmp_path / "x" / "model_index.json").read_text())
    index["_class_name"] = index["_class_name"].replace("Inpaint", "")
    (tmp_path / "x" / "model_index.json").write_text(json.dumps(index))
    assert main(["sample", str(tmp_path / "x"), "a cat"]) == 2
    assert "takes 9 channels, and 4 go with its class" in capsys.readouterr().err
    assert main(["doctor", str(made[2])]) == 2
    assert "cannot be compared yet" in capsys.readouterr().err
