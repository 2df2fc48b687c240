"""Studies: every cell is a stand-alone run to the byte, and what explains what is an analysis of variance."""

from __future__ import annotations

import json

import pytest
import torch

from fastdiffusion import nets
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.models import Model
from fastdiffusion.tasks.evaluation.study import SWEPT, Study, study, trajectory, values_of
from fastdiffusion.tasks.generation.recipe import reproduce
from fastdiffusion.tasks.generation.sample import sample
from fastdiffusion.tasks.generation.samples import Samples


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    spec = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}
    net = nets.build({**spec, "in_channels": 1, "out_channels": 1, "classes": 3})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Model(Denoiser(net), (1, 8, 8), classes=("cat", "dog", "bird"))


SWEEP = {"scale": [1.0, 3.0], "steps": [2, 3, 4], "sampler": ["euler", "euler_ancestral"]}


@pytest.fixture(scope="module")
def made(model: Model) -> Study:
    return study(model, SWEEP, n=2, classes="dog", seed=5)


def test_every_cell_equals_the_stand_alone_run_to_the_byte(model: Model, made: Study) -> None:
    assert len(made.cells) == 12
    for scale in SWEEP["scale"]:
        for steps in SWEEP["steps"]:
            for sampler in SWEEP["sampler"]:
                alone = sample(model, n=2, classes="dog", seed=5, scale=scale, steps=steps, sampler=sampler)
                cell = made[{"scale": scale, "steps": steps, "sampler": sampler}]
                assert torch.equal(cell.images, alone.images) and cell.recipe == alone.recipe


def test_a_saved_cell_can_be_reproduced(model: Model, made: Study, tmp_path) -> None:
    made.save(tmp_path)
    images = sorted(path for path in tmp_path.glob("*.png") if path.name != "study.png")
    assert len(images) == 24
    assert images[0].read_bytes() == reproduce(images[0], model).save(tmp_path / "again")[0].read_bytes()
    explained = json.loads((tmp_path / "study.json").read_text())["explained"]
    assert sum(explained.values()) == pytest.approx(1) and set(explained) == {*SWEEP, "together"}


def grid_of(values) -> Study:
    """A study whose images are given by a function of its two options."""
    sweep = {"scale": [0.0, 1.0, 2.0], "seed": [0, 1]}
    cells = [Samples(values(a, b), (0, 1), ("", ""), (0, 1), {}) for a in sweep["scale"] for b in sweep["seed"]]
    return Study(sweep, cells)


BASE = torch.arange(8.0).reshape(2, 1, 2, 2)  # differs between the images, which is not the options' doing


def test_explained_variance_is_that_of_the_options() -> None:
    assert grid_of(lambda a, b: BASE + a).explained() == {"scale": pytest.approx(1), "seed": 0, "together": 0}
    both = grid_of(lambda a, b: BASE + 3 * a + 4 * b).explained()  # variances 9 * 2/3 and 16 * 1/4
    assert both == {"scale": pytest.approx(0.6), "seed": pytest.approx(0.4), "together": pytest.approx(0)}
    only_together = grid_of(lambda a, b: BASE + (a - 1) * (b - 0.5)).explained()
    assert only_together["together"] == pytest.approx(1)
    assert sum(grid_of(lambda a, b: BASE).explained().values()) == 0  # options that do nothing


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_sheet_holds_every_cell(model: Model, count: int) -> None:
    sweep = dict(list(SWEEP.items())[:count])
    made = study(model, sweep, n=1, classes="cat")
    sheet, one = made.to_image(zoom=2), made.cells[0].grid(zoom=2)
    rows = len(sweep.get("steps", [0])) * len(sweep.get("sampler", [0]))
    assert sheet.width >= 2 * one.width and sheet.height >= rows * one.height
    assert len(made._repr_png_()) > 100


def test_values_are_parsed_as_the_type_that_sample_takes() -> None:
    assert values_of("scale=1, 3") == ("scale", [1.0, 3.0]) and isinstance(values_of("scale=1")[1][0], float)
    assert values_of("steps=5,8") == ("steps", [5, 8]) and values_of("size=8,8x16")[1] == [8, "8x16"]
    assert values_of("sampler=euler,heun") == ("sampler", ["euler", "heun"])
    assert "n" not in SWEPT and "device" not in SWEPT


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"scal": [1]}, "Did you mean 'scale'"),
        ({"scale": []}, "list of values"),
        ({"sampler": "euler"}, "list of values"),
        ({}, "1 to 1000 cells"),
        (["steps=five"], "--sweep scale=1,3,7"),
        ({"seed": range(2000)}, "has 2000"),
    ],
)
def test_a_sweep_that_cannot_be_made(model: Model, sweep, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study(model, sweep)


def test_a_trajectory_ends_in_the_stand_alone_images(model: Model) -> None:
    path = trajectory(model, n=2, seed=3, steps=5, classes="bird", scale=2.0)
    assert torch.equal(
        path.images[-1], sample(model, n=2, classes="bird", steps=5, seed=3, scale=2.0, batch_size=2).images
    )
    assert len(path.sigmas) == 5 and list(path.sigmas) == sorted(path.sigmas, reverse=True)
    assert path.agreement[-1] == pytest.approx(1)
    assert path.to_image(zoom=2).width >= 5 * 16
