"""Inversion: what leads back to given data, on exact denoisers, on the bundled model, and on every kind of family."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import fastdiffusion
from fastdiffusion import samplers, schedules
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import cfg
from fastdiffusion.guidance.prompt_to_prompt import beside
from fastdiffusion.samplers import adaptive, image_to_image, inversion
from fastdiffusion.tasks.editing import inversions
from fastdiffusion.tasks.editing.edit import _method as automatic
from fastdiffusion.tasks.editing.options import EditOptions
from fastdiffusion.types import Cond


def gaussian(mean: float = 0.0, std: float = 1.0):
    """The exact denoiser of a normal distribution."""

    def denoise(x, sigma, cond=None):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return (std**2 * x + s * mean) / (std**2 + s)

    return denoise


def two_points(x, sigma, cond=None):
    """The exact denoiser of data that are -1 or 1: as far from linear as one can be."""
    return torch.tanh(x / sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def spoken(x, sigma, cond=None):
    """A normal distribution whose mean is the mean of its condition's states."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
    mean = 0 if cond is None else torch.tanh(cond.emb.mean((1, 2))).reshape(-1, *[1] * (x.ndim - 1))
    return (x + s * mean) / (1 + s)


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(made, x0):
    return float((made - x0).abs().max() / x0.abs().max())


def test_a_fixed_point_comes_back_and_plain_ddim_does_not():
    x0, sigmas = data(3, 2, 4, 4), schedules.karras(10, 0.002, 80)
    for denoise in (gaussian(0.5), gaussian(0.5, 2.0)):
        plain = inversion.euler(denoise, x0, sigmas)
        exact = inversion.euler(denoise, x0, sigmas, iterations=30)
        assert error(exact.reconstruction(denoise, None), x0) < 1e-4
        assert error(plain.reconstruction(denoise, None), x0) > 10 * error(exact.reconstruction(denoise, None), x0)
        assert (plain.evaluations, len(plain.states)) == (9, 10)
    # normal data of the stated deviation need one Newton step, whatever the step's length
    once = inversion.euler(gaussian(0.0), x0, sigmas, iterations=2)
    assert error(once.reconstruction(gaussian(0.0), None), x0) < 1e-4


def test_a_guided_fixed_point_that_diverges_keeps_its_best():
    x0 = two_points(data(2, 1, 4, 4), torch.full((2,), 0.1))
    sigmas = schedules.karras(12, 0.02, 10)
    plain, found = (inversion.euler(two_points, x0, sigmas, iterations=n) for n in (0, 20))
    assert torch.isfinite(found.x).all()
    assert error(found.reconstruction(two_points, None), x0) <= error(plain.reconstruction(two_points, None), x0) + 1e-6


def test_rows_do_not_depend_on_each_other():
    x0, sigmas = data(3, 2, 4, 4), schedules.karras(6, 0.02, 10)
    many, one = (inversion.euler(two_points, x, sigmas, iterations=8, tolerance=0) for x in (x0, x0[1:2]))
    torch.testing.assert_close(many.x[1:2], one.x)


def test_the_flow_comes_back_to_a_tolerance():
    x0 = data(2, 2, 4, 4)
    up = samplers.final(adaptive.rk45(gaussian(0.5), x0, 0.002, 80.0))
    assert error(samplers.final(adaptive.rk45(gaussian(0.5), up, 80.0, 0.002)), x0) < 1e-3
    assert float(up.std()) > 50


def test_edit_friendly_noise_makes_exactly_the_data():
    x0, table = data(3, 2, 4, 4), samplers.table("euler_ancestral", schedules.karras(12))
    denoise = gaussian(0.5)
    found = inversion.edit_friendly(denoise, x0, table, None, [1, 2, 3])
    assert error(found.reconstruction(denoise, None), x0) < 1e-4
    assert float(found.rest.abs().max()) < 0.02  # all but the last step's noise, of sigma .002, is in the run
    alone = inversion.edit_friendly(denoise, x0[1:2], table, None, [2])
    assert torch.allclose(alone.x[0], found.x[1])  # an image's noise is its own
    # the same noise under another distribution: its data, shifted by the distance of the means
    assert torch.allclose((found.reconstruction(gaussian(2.5), None) - x0).mean(), torch.tensor(2.0), atol=0.1)
    with pytest.raises(InputError, match="euler_ancestral"):
        inversion.edit_friendly(denoise, x0, samplers.table("euler", schedules.karras(4)), None, [0, 1, 2])


@pytest.mark.parametrize("stochastic", [False, True])
def test_known_estimates_lead_the_source_back_and_hold_the_target_outside_of_a_mask(stochastic):
    x0, sigmas = data(1, 2, 4, 4), schedules.karras(8, 0.02, 20)
    if stochastic:
        found = inversion.edit_friendly(gaussian(0.5), x0, samplers.table("euler_ancestral", sigmas), None, [3])
    else:
        found = inversion.euler(gaussian(0.5), x0, sigmas)  # DDIM's own error is corrected, too
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    both = found.x.repeat(2, 1, 1, 1)
    for look in (True, False):
        denoise = beside(gaussian(3.0), found.estimates(x0), mask, look)
        made = samplers.final(samplers.run(denoise, both, found.table, paths=found.paths(2)))
        assert error(made[:1], x0) < 1e-4
        torch.testing.assert_close(made[1:, ..., :2], x0[..., :2], atol=1e-4, rtol=1e-4)
        assert float((made[1:, ..., 2:] - x0[..., 2:]).mean()) > 1


def test_null_text_holds_at_any_scale_and_is_the_same_again():
    x0, sigmas = data(1, 2, 4, 4), schedules.karras(6, 0.02, 20)
    cond, null = Cond(emb=data(1, 3, 4, seed=1)), Cond(emb=torch.zeros(1, 3, 4))
    found = inversion.euler(spoken, x0, sigmas, cond, 20)

    def guide(uncond, scale):
        return cfg(spoken, scale, uncond)

    for scale in (2.0, 7.5, 12.0):
        nulls = inversion.null_text(lambda u, s=scale: guide(u, s), found, x0, null, cond)
        denoise = inversion.by_step(spoken, [guide(u, scale) for u in nulls.uncond])
        plain = error(found.reconstruction(guide(null, scale), cond), x0)
        assert error(nulls.reconstruction(denoise, cond), x0) < min(0.02, plain / 3)
        again = inversion.null_text(lambda u, s=scale: guide(u, s), found, x0, null, cond)
        assert all(torch.equal(a.emb, b.emb) for a, b in zip(nulls.uncond, again.uncond, strict=True))
    assert torch.equal(null.emb, torch.zeros(1, 3, 4))


def test_a_hidden_null_is_opened_and_says_as_little():
    model = fastdiffusion.load("emoji", device="cpu")
    cond, null, x = model.encode_prompt(["a red heart"]), model.null(1), data(1, *model.shape)
    opened = inversion.opened(null, cond)
    assert opened.mask.all()
    assert opened.emb.shape == cond.emb.shape
    with torch.no_grad():
        a, b = (model.denoise(x, torch.ones(1), each) for each in (null, opened))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def task(model, prompt="a red heart", steps=4, scale=7.5, strength=0.6, seed=0, **options):
    x0 = data(1, *model.shape, seed=seed) * model.sigma_data * 0.5
    sigma = schedules.strength_sigma(strength, model.sigma_data, model.sigma_max)
    levels = image_to_image.below(sigma, steps, lambda n: model.schedule(n, None))

    def guide(uncond):
        return model.guide(model.denoise, scale, uncond)

    return inversions.Task(model, x0, model.encode_prompt([prompt]), prompt, levels, guide, scale, **options)


def test_null_text_is_kept_by_image_prompt_and_settings_in_a_file_that_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = fastdiffusion.load("emoji", device="cpu")
    few = {"iterations": 1, "steps": 2}

    def made(**options):
        with torch.no_grad():
            return inversions.inverted("null-text", task(model, **{**few, **options}))

    first, again = made(), made()
    files = list((tmp_path / "fastdiffusion" / "inversions").iterdir())
    assert [file.suffix for file in files] == [".safetensors"]
    assert again.inversion.evaluations == 0 < first.inversion.evaluations
    for a, b in zip(first.inversion.uncond, again.inversion.uncond, strict=True):
        assert torch.equal(a.emb, b.emb)
        assert torch.equal(a.pooled, b.pooled)
    for other in ({"prompt": "a dog"}, {"scale": 3.0}, {"seed": 1}):  # diffusers' ignores all of them
        made(**other)
    assert len(list((tmp_path / "fastdiffusion" / "inversions").iterdir())) == 4
    files[0].write_bytes(b"\x80\x04 no pickle is opened")
    assert made().inversion.evaluations > 0


@pytest.mark.parametrize("method", ["direct", "edit-friendly", "ddim", "fixed-point"])
def test_every_inversion_says_its_time_and_error(method):
    with torch.no_grad():
        found = inversions.inverted(method, task(fastdiffusion.load("emoji", device="cpu"), scale=1.5))
    assert f"Inversion {method}: " in found.note
    assert (found.known is not None) == (method in ("direct", "edit-friendly"))


FAMILIES = ["sd15", "sd2v", "zero_snr", "sdxl", "sd3", "flux"]


@pytest.mark.parametrize("name", FAMILIES)
def test_on_every_kind_of_family(name):
    """Noise, v, zero-terminal SNR and flow: the fixed point comes back, null-text no worse than DDIM; nothing moves."""
    pytest.importorskip("diffusers")
    from loaded_families import get

    model = get(name).model
    before = {key: value.clone() for key, value in model.modules["net"].state_dict().items()}
    with torch.no_grad():
        work = task(model, "a cat", 4, 4.0, 0.6, cached=False, iterations=3)
        again = {}
        for method in ("ddim", "direct", "edit-friendly"):
            found = inversions.inverted(method, work)
            again[method] = float(found.note.split("within ")[1].split()[0])
        assert again["direct"] == again["edit-friendly"] == 0  # by construction
        friendly = inversions.METHODS["edit-friendly"](work)[0]
        assert error(friendly.reconstruction(model.denoise, work.cond), work.x0) < 1e-4
        fixed = work.euler(model.denoise, 12)
        assert error(fixed.reconstruction(model.denoise, work.cond), work.x0) < 0.01
        if model.guidance == "cfg":
            found = inversions.inverted("null-text", work)
            assert float(found.note.split("within ")[1].split()[0]) <= max(again["ddim"] / 10, 0.01)
            assert all(part.dtype == torch.float32 for u in found.inversion.uncond for part in [u.emb])
        else:
            with pytest.raises(InputError, match="compares with nothing"):
                inversions.inverted("null-text", work)
    assert all(torch.equal(value, before[key]) for key, value in model.modules["net"].state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_null_text_of_a_network_in_half_precision(dtype):
    """What is optimized stays in float32, where small steps count; diffusers' pipeline fails in half precision."""
    pytest.importorskip("diffusers")
    from loaded_families import get

    full = get("sd15").model
    checkpoint = full.denoise.checkpoint
    net = deepcopy(checkpoint.modules["unet"]).to(dtype)
    family = type(full.denoise)(replace(checkpoint, modules={**checkpoint.modules, "unet": net}))
    model = replace(full, denoise=family, conditioner=family, modules={**full.modules, "net": net})
    with torch.no_grad():
        work = task(model, "a cat", 4, 7.5, 0.6, cached=False, iterations=3)
        plain, found = (inversions.inverted(name, work) for name in ("ddim", "null-text"))
    again = [float(each.note.split("within ")[1].split()[0]) for each in (plain, found)]
    assert again[1] < again[0] / 3
    for each in found.inversion.uncond:
        assert each.emb.dtype == torch.float32
        assert torch.isfinite(each.emb).all()


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_edited_alike(name, drawn):
    pytest.importorskip("diffusers")
    from loaded_families import get

    assert automatic(get(name).model, EditOptions(source="a cat"), drawn)[0] == "diffedit"
