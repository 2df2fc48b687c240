"""The library as a person meets it in Python: names, results, warnings, and sentences that are true."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastdiffusion
from fastdiffusion import denoisers, losses, sample, samplers
from fastdiffusion.cli import doctor
from fastdiffusion.errors import InputError
from fastdiffusion.io.images import read_recipe
from fastdiffusion.io.results import ImageResult
from fastdiffusion.options import fill
from fastdiffusion.tasks.generation.options import SampleOptions

ROOT = Path(__file__).parent.parent


# ---- names and results ---------------------------------------------------------------------------------------------


def test_a_prompt_stands_first_as_on_the_command_line(tmp_path):
    made = fastdiffusion.sample("a red heart", n=1, steps=1)
    assert made.labels == ("a red heart",) and made.recipe["model"]["name"] == "emoji"
    torch.testing.assert_close(made.images, fastdiffusion.sample("emoji", "a red heart", n=1, steps=1).images)
    assert [step.of for step in fastdiffusion.sample_steps("a red heart", n=1, steps=1)][-1] >= 1
    with pytest.raises(fastdiffusion.FastdiffusionError, match="No such file"):
        fastdiffusion.sample("runs/nothing", n=1)


def test_models_and_results_are_printed_in_one_line(tmp_path):
    model = fastdiffusion.load("emoji")
    assert re.fullmatch(r"Model\(emoji.*: samples of 3x64x64 from prompts, 8\.\d+ M parameters, on cpu\)", repr(model))
    result = ImageResult(torch.zeros(2, 3, 8, 9), ("a", "b"), {"verb": "translate"})
    assert repr(result) == "ImageResult(2 images of 3x8x9 by translate)" == str(result)


@pytest.mark.parametrize(("out", "names"), [
    ("new", ["a.png", "b.png"]), ("x.png", ["x-0.png", "x-1.png"]), ("new/x.webp", ["x-0.webp", "x-1.webp"]),
])  # fmt: skip
def test_a_result_saves_itself_and_overwrites_nothing(tmp_path, out, names):
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    result = ImageResult(images, ("a", "b"), {"verb": "translate", "seed": 3})
    paths = result.save(tmp_path / out)
    assert [path.name for path in paths] == names
    assert read_recipe(paths[0])["seed"] == 3
    assert result.save(tmp_path / out) == paths  # the same images
    other = ImageResult(-images, ("a", "b"), {"verb": "translate", "seed": 4}).save(tmp_path / out)
    assert not set(other) & set(paths) and all(path.exists() for path in (*paths, *other))
    single = result[1].save(tmp_path / "one.png", metadata=False)
    assert single == [tmp_path / "one.png"] and not Image.open(single[0]).info
    assert torch.equal(result[0].images, images[:1]) and len(result[1:]) == 1
    assert result._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(IndexError):
        _ = result[2]


def test_train_returns_where_and_what(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = fastdiffusion.train("digits", net="unet-tiny", steps=2, batch_size=4, verbose=False)
    assert done.path == Path("runs/digits") and done.model.shape == (1, 8, 8)
    assert done.report == Path("runs/digits/report.html") and done.report.exists()
    assert fastdiffusion.load(done.path).id == done.model.id
    with pytest.raises(fastdiffusion.FastdiffusionError, match="Did you mean 'steps'"):
        fastdiffusion.train("digits", stepz=2)


@pytest.mark.parametrize(("typed", "schedule", "meant"), [
    ("DPM++ 2M Karras", None, ("dpmpp_2m", "karras")),
    ("DPM++ 3M SDE Exponential", None, ("dpmpp_3m_sde", "exponential")),
    ("DPM++ 2M Karras", "cosine", ("dpmpp_2m", "cosine")), ("Euler a", None, ("euler_ancestral", None)),
])  # fmt: skip
def test_a_sampler_with_its_schedule_as_others_write_them(typed, schedule, meant):
    chosen = SampleOptions(sampler=typed, schedule=schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        assert (samplers.registry.sampler_name(chosen.sampler), chosen.schedule) == meant


# ---- warnings ------------------------------------------------------------------------------------------------------


def _of_a_prompt():
    fastdiffusion.sample("a xylophonist", n=1, steps=1)


def _of_a_photograph():
    fastdiffusion.clip_score(Image.linear_gradient("L").convert("RGB"), "a cat")


def _of_an_old_name():
    _ = fastdiffusion.again  # type: ignore[attr-defined]


def _of_a_sampler():
    samplers.table("DPM++ 2M Karras", [10.0, 1.0, 0.0])


@pytest.mark.parametrize("call", [_of_a_prompt, _of_a_photograph, _of_an_old_name, _of_a_sampler])
def test_a_warning_points_at_the_callers_line(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    assert found
    for warning in found:
        assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno + 1)


def test_warnings_are_made_in_one_place():
    """Where the level is found by looking, and never counted by hand."""
    counted = [p.name for p in (ROOT / "src").rglob("*.py") if re.search(r"\bstacklevel=\d", p.read_text())]
    assert not counted


# ---- sentences that are true ----------------------------------------------------------------------------------------


def test_the_sampler_that_is_called_the_default_is_the_default():
    called = [s.name for s in fastdiffusion.list_samplers() if "the default" in s.use]
    made = fastdiffusion.load("emoji").table(7)
    assert [name for name in called if samplers.table(name, made.sigmas).to_json() == made.to_json()] == called
    assert len(called) == 1


@pytest.mark.parametrize(("weight", "parameterization", "sigma_data"), [
    ("noise", "noise", 0.5), ("edm", "edm", 0.5), ("edm", "edm", 2.0), ("edm", "v", 0.5), ("v", "v", 1.0),
    ("flow", "flow", 0.5), ("x0", "x0", 1.0),
])  # fmt: skip
def test_a_weight_is_the_error_of_what_theory_md_says(weight, parameterization, sigma_data):
    """weight(sigma) times the squared error of x0 is the squared error of what that network predicts."""
    sigma = torch.tensor([0.05, 0.5, 1.0, 4.0], dtype=torch.float64)
    out = denoisers.PARAMETERIZATIONS[parameterization](sigma, sigma_data).c_out
    torch.testing.assert_close(losses.LOSS_WEIGHTINGS[weight](sigma, sigma_data), 1 / out.square())


def test_doctor_lists_the_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {name: [re.split(r"[<>=]", n)[0] for n in needs if "[" not in n] for name, needs in extras.items()}
    assert {name: packages[name] for name in packages.keys() - {"docs", "bench", "dev"}} == doctor.EXTRAS


@pytest.mark.parametrize("name", ["negative_prompt", "only", "strength", "variation_strength", "variation_seed", "rng"])
def test_none_is_the_default_as_in_other_programs(name):
    assert fill(SampleOptions, image="in.png", **{name: None}) == SampleOptions(image="in.png")


@pytest.mark.parametrize(
    "wrong", [{"negative_prompt": ["blue", "red"]}, {"sampler": ["euler"]}, {"strength": "0.5"}, {"scale": "2"}]
)
def test_another_kind_of_value_is_a_sentence(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"{name} must be a (text|number), got {re.escape(repr(value))}"):
        sample(prompt="a heart", n=1, image=Image.new("RGB", (64, 64)), **wrong)
