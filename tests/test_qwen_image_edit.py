"""Qwen-Image-Edit: a reference image that network and language model see, equal to its own pipelines; edit on it."""

from dataclasses import replace

import pictures
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
import tiny_pipelines
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import fastdiffusion
from fastdiffusion import samplers
from fastdiffusion.guidance.attention import Controller, control
from fastdiffusion.io.images import to_tensor
from fastdiffusion.tasks.editing.edit import edit

PIPELINES = {
    "edit": (diffusers.QwenImageEditPipeline, pipeline_qwenimage_edit),
    "plus": (diffusers.QwenImageEditPlusPipeline, pipeline_qwenimage_edit_plus),
}
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
WIDTH, HEIGHT = 64, 96  # of the reference; the image is wider than high


class Processor:
    """What Qwen2VLProcessor does with images and texts; itself it asks for torchvision, which films need."""

    def __init__(self, tokenizer):
        self.tokenizer, self.images = tokenizer, Qwen2VLImageProcessorPil(min_pixels=28 * 28)

    def __call__(self, text, images, padding, return_tensors):
        seen = self.images(images, return_tensors=return_tensors)
        count = int(seen["image_grid_thw"][0].prod()) // self.images.merge_size**2
        texts = [each.replace("<|image_pad|>", "<|image_pad|>" * count) for each in text]
        return transformers.BatchFeature(
            {**self.tokenizer(texts, padding=padding, return_tensors=return_tensors), **seen}
        )


@pytest.fixture(scope="module", params=PIPELINES)
def made(request, tmp_path_factory):
    """The pipeline, its module, and the model of its folder."""
    kind, module = PIPELINES[request.param]
    parts = dict(tiny_pipelines.build("qwen_image").components)
    tokenizer, encoder = parts["tokenizer"], parts["text_encoder"]
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, *VISION]})
    encoder.resize_token_embeddings(len(tokenizer))
    config = encoder.config
    config.vision_start_token_id, config.vision_end_token_id, config.image_token_id = tokenizer.convert_tokens_to_ids(
        list(VISION)
    )
    pipe = kind(processor=None, **parts)
    path = tmp_path_factory.mktemp("edit") / request.param
    pipe.save_pretrained(path)
    pipe.processor = Processor(tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe, module, fastdiffusion.load(path, device="cpu")


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_equals_its_pipeline(made, scale, monkeypatch):
    """Final latents of six steps of Euler. The pipelines' references have a million pixels; here of few."""
    pipe, module, model = made
    wanted_size = module.calculate_dimensions
    monkeypatch.setattr(
        module, "calculate_dimensions", lambda area, ratio: wanted_size(HEIGHT * WIDTH * area / 1024**2, ratio)
    )
    monkeypatch.setattr(fastdiffusion.adapters.families.qwen_image_edit, "LOOKED_AT", HEIGHT * WIDTH * 0.375**2)
    image, noise = pictures.photo(WIDTH, HEIGHT), torch.randn(1, model.shape[0], 8, 12)
    with torch.no_grad():
        wanted = pipe(
            image=image, prompt="make it blue, a cat", negative_prompt=" ", true_cfg_scale=scale,
            latents=model.denoise.to_pipeline(noise), height=8 * model.factor, width=12 * model.factor,
            num_inference_steps=6, output_type="latent", return_dict=False,
        )[0]  # fmt: skip
        wanted = model.denoise.from_pipeline(wanted, noise.shape[1:])
        family = model.denoise.with_reference(to_tensor(image)[None])
        denoise = model.guide(family, scale, family.null(1)) if scale != 1 else family
        sigmas = pipe.scheduler.sigmas.double()
        table = samplers.table("euler", (sigmas / (1 - sigmas)).clamp(max=1e7))
        got = samplers.final(
            samplers.run(denoise, noise * table.sigmas[0], table, family.encode(["make it blue, a cat"]))
        )
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-4


def test_network_and_language_model_see_the_reference(made):
    _, _, model = made
    images = (to_tensor(pictures.photo(WIDTH, HEIGHT))[None], torch.zeros(1, 3, HEIGHT, WIDTH))
    assert model.denoise.negative is model.denoise
    one, other = (model.denoise.with_reference(image) for image in images)
    assert one.negative is one, "negative prompts are read beside the image too"
    x, sigma = torch.randn(1, model.shape[0], 8, 12), torch.ones(1)
    cond, blank = one.encode(["a cat"]), other.encode(["a cat"])
    assert not torch.allclose(cond.emb, blank.emb)
    assert not torch.allclose(one.null(1).emb, other.null(1).emb)
    with torch.no_grad():
        assert not torch.allclose(one(x, sigma, cond), other(x, sigma, cond))
    assert model.denoise.reference is None, "the model itself is given nothing"
    assert len(model.denoise.encode(["a cat"]).emb[0]) < len(cond.emb[0])


def test_the_language_model_looks_at_the_same_patches(made):
    pipe, _, model = made
    image = pictures.photo(WIDTH, HEIGHT)
    family = model.denoise.with_reference(to_tensor(image)[None])
    shown = image
    if type(pipe) is diffusers.QwenImageEditPlusPipeline:
        width, height = pipeline_qwenimage_edit_plus.calculate_dimensions(384 * 384, WIDTH / HEIGHT)
        shown = pipe.image_processor.resize(image, height, width)
    wanted = pipe.processor.images(shown, return_tensors="pt")
    assert list(family.grid) == wanted["image_grid_thw"][0, 1:].tolist()
    assert float((family.view - wanted["pixel_values"]).abs().max()) <= 1e-5


def test_rows_of_unlike_length_are_those_of_their_own_and_spans_are_the_texts(made):
    _, _, model = made
    family = model.denoise.with_reference(to_tensor(pictures.photo(WIDTH, HEIGHT))[None])
    texts = ["a dog on a mat", "a cat"]
    both = family.encode(texts)
    for i, text in enumerate(texts):
        alone = family.encode([text]).emb
        assert torch.allclose(both.emb[i, : alone.shape[1]], alone[0], atol=1e-5)
        spans = family.token_spans(text)
        assert len(spans) == alone.shape[1]
        assert "".join(text[a:b] for a, b in spans) == text


def test_attention_knows_the_place_of_the_reference(made):
    _, _, model = made
    family = model.denoise.with_reference(torch.zeros(1, 3, 32, 64))
    cond, seen = family.encode(["a cat"]), []

    class Look(Controller):
        def __call__(self, call):
            seen.append((call.pixels, call.query.shape[-2]))

    with torch.no_grad(), control(model.modules["net"], Look()):
        family(torch.randn(1, model.shape[0], 8, 12), torch.ones(1), cond)
    n, beside = cond.emb.shape[1], (32 // model.factor // 2) * (64 // model.factor // 2)
    assert seen
    assert all(pixels == slice(n, n + 24) and total == n + 24 + beside for pixels, total in seen)


def test_edit_takes_it(made):
    model = replace(made[2], shape=(*made[2].shape[:1], 8, 8))
    image = pictures.photo(*model.image_shape[-2:])
    result = edit(image, "make it blue", model=model, steps=2, keep=False)
    assert result.recipe["parameters"]["method"] == "reference"
    other = edit(pictures.photo(*model.image_shape[-2:]).rotate(90), "make it blue", model=model, steps=2, keep=False)
    assert torch.isfinite(result.images).all()
    assert not torch.equal(result.images, other.images)
