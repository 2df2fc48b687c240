"""FLUX.1 Kontext: a reference image as more tokens, equal to its own pipeline, and the verb edit on it."""

from dataclasses import replace

import pictures
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import tiny_pipelines

import fastdiffusion
from fastdiffusion import samplers
from fastdiffusion.guidance.attention import Controller, control
from fastdiffusion.io.images import to_tensor
from fastdiffusion.tasks.editing.edit import edit

PROMPTS = ["a cat, on a mat", "a dog"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pipeline, and the model of its folder."""
    pipe = diffusers.FluxKontextPipeline(**tiny_pipelines.build("flux").components)
    pipe.set_progress_bar_config(disable=True)
    path = tmp_path_factory.mktemp("kontext") / "kontext"
    pipe.save_pretrained(path)
    return pipe, fastdiffusion.load(path, device="cpu")


@pytest.mark.parametrize("size", [(64, 64), (32, 96), None])
def test_equals_its_pipeline(made, size):
    """Final latents of six steps of Euler, with a reference of the same size, of another, and without any."""
    pipe, model = made
    image = None if size is None else pictures.photo(*size)
    noise = torch.randn(2, model.shape[0], 64 // model.factor, 64 // model.factor)
    height, width = 64, 64
    with torch.no_grad():
        wanted = pipe(
            image=image, prompt=list(PROMPTS), latents=model.denoise.to_pipeline(noise), height=height, width=width,
            num_inference_steps=6, guidance_scale=4.0, output_type="latent", return_dict=False, max_area=height * width,
            _auto_resize=False,
        )[0]  # fmt: skip
        wanted = model.denoise.from_pipeline(wanted, noise.shape[1:])
        family = model.denoise if image is None else model.denoise.with_reference(to_tensor(image)[None])
        denoise = model.guide(family, 4.0, None)
        sigmas = pipe.scheduler.sigmas.double()
        table = samplers.table("euler", (sigmas / (1 - sigmas)).clamp(max=1e7))
        start = noise * table.sigmas[0]
        got = samplers.final(samplers.run(denoise, start, table, model.encode_prompt(PROMPTS, (64, 64))))
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-4


def test_the_reference_is_seen_and_attention_knows_its_place(made):
    _, model = made
    x, cond = torch.randn(1, *model.shape[:1], 8, 8), model.encode_prompt(["a cat"], (64, 64))
    images = (to_tensor(pictures.photo(64, 64))[None], torch.zeros(1, 3, 64, 64))
    seen = []

    class Look(Controller):
        def __call__(self, call):
            seen.append((call.pixels, call.query.shape[-2]))

    with torch.no_grad():
        one, other = (model.denoise.with_reference(i)(x, torch.ones(1), cond) for i in images)
        with control(model.modules["net"], Look()):
            again = model.denoise.with_reference(images[0])(x, torch.ones(1), cond)
    assert not torch.allclose(one, other)
    assert torch.equal(one, again)
    n = cond.emb.shape[1]
    assert all(pixels == slice(n, n + 16) and total == n + 32 for pixels, total in seen if pixels is not None)
    assert any(pixels is not None for pixels, _ in seen)


def test_edit_takes_it(made):
    model = replace(made[1], shape=(*made[1].shape[:1], 8, 8))
    image = pictures.photo(*model.image_shape[-2:])
    result = edit(image, "a dog", model=model, steps=2, keep=False)
    assert result.recipe["parameters"]["method"] == "reference"
    assert "takes the image itself" in " ".join(result.notes)
    assert torch.isfinite(result.images).all()
