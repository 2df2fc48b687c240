"""A table in a pipeline of diffusers does what it does in our own loop."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from PIL import Image
from tiny_pipelines import FAMILIES, build

from fastdiffusion import noise, samplers, schedules
from fastdiffusion.adapters import TableScheduler
from fastdiffusion.adapters.examine import difference
from fastdiffusion.errors import InputError
from fastdiffusion.tasks.fitting import fit

CHOSEN = {"sd15": ("dpmpp_3m", "ddpm"), "sdxl": ("deis",), "sd3": ("dpmpp_3m", "ddpm"), "flux": ("dpmpp_3m", "lms")}


def sigmas(model, steps=4):
    return schedules.karras(steps, model.sigma_min, model.sigma_max)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_in_a_pipeline_is_our_own_loop(name):
    """With guidance, two prompts: 1e-4 of the largest value at most."""
    model = get(name).model
    for sampler in CHOSEN.get(name, ("dpmpp_2m",)):
        table = samplers.table(sampler, sigmas(model))
        with torch.no_grad():
            assert difference(model, 4.0, size=get(name).size, table=table) <= 1e-4, sampler


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_fitted_table_too(name):
    one = get(name)
    found = fit(one.model, steps=2, prompts=["a cat", "a dog"], scale=2.0, size=one.size, evaluations=300, noises=4,
                polish=False, seed=1)  # fmt: skip
    assert difference(one.model, 2.0, size=one.size, table=found.tables[2]) <= 1e-4


def test_it_is_not_the_pipelines_own_by_accident():
    """Another table makes other images, and the same again the same ones."""
    pipe = build("sd15")
    own = pipe.scheduler

    def made(sampler, steps=4):
        table = samplers.table(sampler, schedules.karras(steps, 0.03, 14.0))
        pipe.scheduler = TableScheduler.from_table(table.to_json(), own)
        options = {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}
        return pipe("a cat", generator=torch.Generator().manual_seed(0), **options)[0]

    euler, other, ddpm = made("euler"), made("dpmpp_2m"), made("ddpm")
    assert (euler - other).abs().max() > 1e-2 * euler.abs().max()
    torch.testing.assert_close(made("ddpm"), ddpm, rtol=0, atol=0)
    with pytest.raises(InputError, match="has 4 steps, and the pipeline was asked for 50"):
        pipe("a cat")
    with pytest.raises(InputError, match="own scheduler back"):
        pipe.scheduler.save_pretrained("x")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_a_perfect_network_gives_its_x0_back(prediction):
    """Whatever it predicts, from any table, with the pipelines' own scaling."""
    if prediction == "flow":
        like = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        like = diffusers.DDIMScheduler(prediction_type=prediction)
    x0, table = torch.randn(2, 4, 8, 8), samplers.table("unipc", schedules.exponential(5, 0.1, 10.0))
    scheduler = TableScheduler.from_table(table, like)
    scheduler.set_timesteps(5)
    noisy = scheduler.init_noise_sigma * torch.randn_like(x0)
    x = scheduler.add_noise(x0, torch.randn_like(x0), scheduler.timesteps[:1])
    for t, row in zip(scheduler.timesteps, table.rows, strict=True):
        n = (x * (1 + row.sigma) if prediction == "flow" else x) - x0
        eps, s = n / row.sigma, row.sigma
        out = {"epsilon": eps, "v_prediction": (eps - s * x0) / (1 + s * s) ** 0.5, "sample": x0, "flow": eps - x0}
        unit = scheduler.scale_model_input(torch.ones(()), t)
        assert float(unit) == pytest.approx(1.0 if prediction == "flow" else (1 + s * s) ** -0.5)
        x, estimate = scheduler.step(out[prediction], t, x)
        torch.testing.assert_close(estimate, x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x, x0, atol=1e-4, rtol=1e-4)
    assert noisy.std() == pytest.approx(scheduler.init_noise_sigma, rel=0.2)
    with pytest.raises(InputError, match="is over"):
        scheduler.step(x, t, x)


def test_what_other_pipelines_ask():
    """Image to image, inpainting and ControlNet: they start in the middle, add noise, and mix at every step."""
    parts, image = build("sd15").components, Image.new("RGB", (64, 64), (200, 30, 60))
    parts = {name: part for name, part in parts.items() if name != "image_encoder"}
    table = samplers.table("dpmpp_2m", schedules.karras(4, 0.03, 14.0))
    net = diffusers.ControlNetModel.from_unet(parts["unet"])
    options = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "latent", "return_dict": False}
    for kind, more, extra in (
        ("StableDiffusionImg2ImgPipeline", {}, {"image": image, "strength": 0.5}),
        ("StableDiffusionInpaintPipeline", {}, {"image": image, "mask_image": image, "height": 64, "width": 64}),
        ("StableDiffusionControlNetPipeline", {"controlnet": net}, {"image": image}),
    ):
        pipe = getattr(diffusers, kind)(**parts, **more, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = TableScheduler.from_table(table, pipe.scheduler)
        made = pipe(**options, **extra, generator=torch.Generator().manual_seed(0))[0]
        assert made.shape == (1, 4, 8, 8) and made.isfinite().all(), kind
    flow = build("sd3")
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**flow.components)
    pipe.scheduler = TableScheduler.from_table(samplers.table("dpmpp_2m", schedules.flow(4)), pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(**options, image=image, height=64, width=64, strength=0.5)[0]
    assert made.isfinite().all()


def test_a_run_from_the_middle_is_that_part_of_the_table():
    """Without the estimates that came before, the rows weigh none."""
    x0 = torch.randn(1, 4, 8, 8)
    table = samplers.table("dpmpp_3m", schedules.karras(5, 0.03, 14.0))
    scheduler = TableScheduler.from_table(table, diffusers.DDIMScheduler(prediction_type="sample"))
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    x = scheduler.add_noise(x0, noise.initial([0], (4, 8, 8)), scheduler.timesteps[2:3])
    torch.testing.assert_close(x, x0 + table.sigmas[2] * noise.initial([0], (4, 8, 8)))
    for t in scheduler.timesteps[2:]:
        x = scheduler.step(x0, t, x).prev_sample
    torch.testing.assert_close(x, x0)


def test_bad_input(tmp_path):
    like = diffusers.DDIMScheduler()
    with pytest.raises(InputError, match="cannot be read as a sampler table"):
        TableScheduler.from_table(tmp_path / "no.json", like)
    with pytest.raises(InputError, match="not a sampler table"):
        TableScheduler.from_table("{}", like)
