"""The emoji as checkpoints of Stable Diffusion's own classes: diffusers opens them, and they draw what prompts say.

``scripts/train-small-checkpoints`` makes them.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import one_file

from fastdiffusion import doctor, load, sample
from fastdiffusion.metrics import retrieval
from fastdiffusion.tasks.evaluation import evaluator

PLACE = Path(__file__).parent / "checkpoints"
FLOORS = {"sd-small": 0.75, "sd3-small": 0.75}  # part of NAMES that is drawn; by chance 0.01
NAMES = [
    "red heart", "red apple", "pizza", "hamburger", "grapes", "sunflower", "crown", "guitar", "blue book", "key",
    "ghost", "fire", "rainbow", "soccer ball", "rocket", "tulip",
]  # fmt: skip


@pytest.fixture(scope="module", params=FLOORS)
def checkpoint(request):
    return PLACE / request.param


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint, precision="float32", device="cpu")


def pipeline(place, dtype=torch.float32):
    from diffusers import DiffusionPipeline

    without = {"text_encoder_3": None, "tokenizer_3": None} if place.name == "sd3-small" else {}
    pipe = DiffusionPipeline.from_pretrained(place, torch_dtype=dtype, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_they_are_small(model):
    assert sum(file.stat().st_size for name in FLOORS for file in (PLACE / name).rglob("*")) < 30e6
    assert sum(p.numel() for part in model.modules.values() for p in part.parameters()) < 7.1e6


def test_one_step_is_the_pipelines(checkpoint, model):
    """By its own scheduler, from the same latents and the same prompt."""
    pipe, z = pipeline(checkpoint), torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    if "timestep_spacing" in pipe.scheduler.config:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "height": 64, "width": 64}
    theirs = pipe("a red heart on blue", latents=z.clone(), **options).images
    cond = model.conditioner.encode(["a red heart on blue"], (64, 64))
    with torch.no_grad():
        if checkpoint.name == "sd3-small":  # from pure noise to the mean
            sigma = torch.tensor([1e7])
            ours = model.denoise(z * sigma, sigma, cond)
        else:  # DDIM, from the most noise to the least
            sigma = model.denoise.levels.sigma(pipe.scheduler.timesteps[:1].float()).float()
            x = z * (1 + sigma.square()).sqrt()
            x0, last = model.denoise(x, sigma, cond), pipe.scheduler.final_alpha_cumprod
            ours = last.sqrt() * x0 + (1 - last).sqrt() * (x - x0) / sigma
    assert (theirs - ours).abs().max() <= 1e-4 * theirs.abs().max()


def test_what_is_asked_for_is_drawn(checkpoint, model):
    images = sample(model, NAMES, n=len(NAMES), steps=8, scale=4.0, seed=0).images
    assert retrieval.r_precision(evaluator.load(), images, NAMES)[0] >= FLOORS[checkpoint.name]


def test_a_doctor_finds_them_equal(checkpoint):
    found = doctor(str(checkpoint))
    assert found.count("equal") == 2
    assert "differ from" in found


def test_the_same_in_one_file(tmp_path):
    """In half precision, beside its folder, which says how large its networks are."""
    one_file.write(pipeline(PLACE / "sd-small", torch.float16), tmp_path / "one.safetensors")
    kept = {"precision": "float32", "device": "cpu"}
    models = load(PLACE / "sd-small", **kept), load(tmp_path / "one.safetensors", tokenizer=PLACE / "sd-small", **kept)
    first, second = (sample(model, ["red heart", "pizza"], n=2, steps=2, seed=0).images for model in models)
    assert torch.equal(first, second)
