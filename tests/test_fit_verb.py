"""``fit``: what it may cost is said first, tables go where the model is, and ``sample`` takes the one that matches."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastdiffusion
from fastdiffusion import data, noise, samplers, schedules
from fastdiffusion.cli import main
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.io.images import save_png
from fastdiffusion.models import Model, load, save
from fastdiffusion.models.model import checked_key
from fastdiffusion.samplers import fitting, reference
from fastdiffusion.tasks import choosing
from fastdiffusion.tasks.fitting import fit, prepare
from fastdiffusion.types import Cond

COST = {"noises": 4, "evaluations": 400, "device": "cpu"}


def make(**options):
    net = fastdiffusion.nets.build(
        {"name": "dit", "width": 16, "depth": 2, "head": 8, "in_channels": 1, "out_channels": 1, "classes": 3}
    )
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return Model(Denoiser(net, "v", 0.4).eval(), (1, 8, 8), ("a", "b", "c"), **options)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(make(), tmp_path / "m.safetensors")
    return Path("m.safetensors")


def table_of(samples):
    return samplers.Table.from_json(json.dumps(samples.recipe["table"]))


def test_sample_takes_a_table_where_steps_scale_and_size_match(file):
    result = fit(file, steps="2", scale=2.0, **COST)
    assert result.path == file and list(load(file).tables) == ["2 steps, scale 2, 8x8"]
    table = result.tables[2]
    assert table.info["scale"] == 2 and table.info["size"] == [8, 8]
    options = {"n": 1, "device": "cpu"}
    assert table_of(fastdiffusion.sample(file, steps=2, scale=2.0, **options)) == table
    for other in ({"steps": 2}, {"steps": 3, "scale": 2.0}, {"steps": 2, "scale": 2.0, "size": 16}):
        assert table_of(fastdiffusion.sample(file, **other, **options)) != table
    model = load(file)
    assert "was fitted to this model for 2 steps, scale 2, 8x8" in model.table_note(table, 2, None, 2.0)
    assert "No table is fitted for 2 steps, scale 1" in model.table_note(model.table(2), 2, None, None)
    assert model.table_note(model.table(5), 5, None, None) is None


def test_tables_of_earlier_versions_count_as_before(file):
    old = replace(samplers.table("euler", [5.0, 1.0, 0.0]), name="fitted")
    save(make().with_table(2, old), file)
    model = load(file)
    assert list(model.tables) == ["2"] and model.table(2) == model.table(2, scale=3.0, size=(16, 16)) == old
    newer = replace(old, sigmas=(4.0, 1.0, 0.0))
    both = model.with_table(2, newer, 3.0)
    assert both.table(2, scale=3.0) == newer and both.table(2) == old, "one that says for what goes first"
    for key in ("2", "12 steps, scale 7.5, 512x768", "6 steps, scale -1e+10, 8x8"):
        assert checked_key(key) == key
    for key in ("two", "2 steps", "2 steps, scale x, 8x8", "../x"):
        with pytest.raises(ValueError, match="no number of steps"):
            checked_key(key)


class Stopped(Exception):
    pass


def test_killed_and_repeated(file, monkeypatch):
    """The file ends with the same tables; what lies beside it meanwhile is gone at the end."""
    whole = file.read_bytes()
    fit(file, steps=2, **COST)
    wanted = load(file).tables
    file.write_bytes(whole)
    counts, real = [], reference.Flow.rollout

    def dying(self, sigmas):
        counts.append(1)
        if len(counts) == 9:
            raise Stopped
        return real(self, sigmas)

    monkeypatch.setattr(reference.Flow, "rollout", dying)
    with pytest.raises(Stopped):
        fit(file, steps=2, **COST)
    assert file.read_bytes() == whole and list(Path("m.safetensors.fit.parts").glob("*/fit/*.safetensors"))
    fit(file, steps=2, **COST)
    assert load(file).tables == wanted and os.listdir() == ["m.safetensors"]


def test_a_place_that_cannot_be_written(file, tmp_path, monkeypatch):
    """The work in progress goes to the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "mkdir", _refusing(Path.mkdir, "fit.parts"))
    fit(file, steps=2, **COST)
    assert (tmp_path / "cache" / "fastdiffusion" / "fits").is_dir()


def _refusing(real, ending):
    def mkdir(self, *args, **kwargs):
        if self.name.endswith(ending) and "cache" not in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    return mkdir


def test_the_cost_is_said_before_and_decides_nothing(file, capsys, monkeypatch):
    ready = prepare(file, steps="2,3", **{**COST, "evaluations": 900})
    cost = ready.cost()
    assert "At most 900 evaluations" in cost and "for each of 2 tables. One took" in cost
    monkeypatch.setattr("time.perf_counter", iter([0.0, 1000.0]).__next__)
    assert "250 h" in ready.cost() and ready.plan == prepare(file, steps="2,3", **{**COST, "evaluations": 900}).plan


def test_prompts_of_a_text_file(tmp_path):
    """A text-to-image model, here an exact Gaussian around what the prompt says, fitted under its own guidance."""
    (tmp_path / "p.txt").write_text("\ufeffa cat\n\n# no prompt\n a dog \n", encoding="utf-8")
    model = worded()
    result = fit(model, steps=3, prompts=[str(tmp_path / "p.txt"), "a fish"], scale=3.0, **COST)
    assert model.conditioner.asked == ["a cat", "a dog", "a fish"] and result.path is None
    assert result.tables[3].info["prompts"] == 3 and result.model.table(3, scale=3.0) == result.tables[3]
    assert result.tables[3].info["error"] <= result.tables[3].info["textbook_error"]
    with pytest.raises(InputError, match="needs prompts"):
        fit(model, steps=3, scale=3.0, **COST)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    for bad in (tmp_path / "none.txt", tmp_path / "p.txt"):
        with pytest.raises(DataError, match="Cannot read the prompts"):
            fit(model, steps=3, prompts=str(bad), **COST)
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(DataError, match="There are no prompts"):
        fit(model, steps=3, prompts=tmp_path / "p.txt", **COST)


class Texts(nn.Module):
    max_tokens, asked = 9, ()

    def encode(self, prompts, size=None):
        self.asked = list(prompts) if len(prompts) > 1 else self.asked
        return Cond(emb=torch.tensor([[[len(text) / 4.0]] for text in prompts]))

    def null(self, n, size=None):
        return self.encode([""]).expand(n)

    def token_spans(self, text):
        return [(0, len(text))]

    def unknown_words(self, text):
        return []


def worded():
    def denoise(x, sigma, cond=None):
        mean = 0.0 if cond is None else cond.emb.mean((1, 2)).reshape(-1, 1, 1, 1)
        variance = sigma.square().reshape(-1, 1, 1, 1)
        return (0.25 * x + variance * mean) / (0.25 + variance)

    return Model(denoise, (1, 4, 4), conditioner=Texts(), scale=2.0)


def test_levels_for_other_programs(file, tmp_path, capsys):
    before = file.read_bytes()
    options = ["--noises", "4", "--evaluations", "600", "--device", "cpu", "-o", "out"]
    assert main(["fit", str(file), "--steps", "3", "--levels", "dpmpp_2m", *options]) == 0
    printed = capsys.readouterr().out
    numbers = [float(n) for n in printed.split("# dpmpp_2m, 3 steps\n")[1].splitlines()[0].split(", ")]
    assert len(numbers) == 4 and numbers[0] == pytest.approx(80) and numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 0 and file.read_bytes() == before
    table = samplers.Table.from_json(Path("out/dpmpp_2m-3.json").read_text())
    assert table.sigmas == pytest.approx(numbers, rel=1e-5) and "dpmpp_2m" in Path("out/sigmas.txt").read_text()
    flow = fit(worded(), steps=3, scale=1.0, levels="euler", **COST)
    levels = type("Levels", (), {"prediction": "flow"})()
    flow.model.denoise.levels = levels
    assert flow.sigmas(3) == [s / (1 + s) for s in flow.tables[3].sigmas]


def test_json(file, capsys):
    assert main(["fit", str(file), "--steps", "2", "--noises", "4", "--evaluations", "400", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["2"]["scale"] == 1 and len(document["2"]["sigmas"]) == 3


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": "some"}, "whole numbers with commas"),
    ({"steps": 0}, "steps must be at least 1"),
    ({"evaluations": 10}, "too few to fit 1 table"),
    ({"evaluations": -1}, "too few to fit 1 table"),
    ({"noises": 0}, "noises must be at least 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"size": "big"}, "size must be"),
    ({"prompts": "a cat"}, "takes no prompt"),
    ({"levels": "dpm"}, "No sampler named"),
    ({"levels": "ddpm"}, "draws noise"),
    ({"stepz": 2}, "Did you mean 'steps'"),
])  # fmt: skip
def test_bad_input(file, options, message):
    before = file.read_bytes()
    with pytest.raises(InputError, match=message):
        fit(file, **{"steps": 2, **COST, **options})
    assert file.read_bytes() == before


def test_models_that_stay_as_they_are(tmp_path):
    with pytest.raises(InputError, match="comes with the package"):
        fit("emoji", steps=2)
    with pytest.raises(InputError, match="There is no file"):
        fit(tmp_path / "none.safetensors", steps=2)


def test_the_models_own_table_is_a_candidate():
    """A schedule that is perfect for the model wins against textbooks that are not."""
    table = fitting.fit_tables(
        fitting.Problem(worded().denoise, (1, 4, 4), 80.0, 0.002, schedule=lambda n: torch.tensor([80.0, 0.5, 0.0])),
        prepare(worded(), steps=2, scale=1.0, **COST).plan,
    )[2]
    assert table.info["textbook_error"] < 0.5


# ---- tables chosen by images ----------------------------------------------------------------------------------------


@pytest.fixture
def like(file):
    """A folder of what one textbook table makes of the model, from noises that no fit takes."""
    model = load(file)
    made = next(
        table for table in choosing.textbook(2, model.sigma_min, model.sigma_max) if table.name == "consistency"
    )
    x = made.sigmas[0] * noise.initial(range(500, 580), model.shape)
    images = samplers.final(samplers.run(model.denoise, x, made, model.cond([i % 3 for i in range(80)]), range(80)))
    for i, image in enumerate(images.clamp(-1, 1)):
        save_png(image, Path("like") / f"{i}.png")
    return made


def test_the_table_whose_images_are_nearest_is_kept(file, like):
    result = fit(file, steps=2, reference="like", **COST)
    table, info = result.tables[2], result.tables[2].info
    assert (table.rows, info["textbook"]) == (like.rows, like.info["textbook"]) and not info["fitted"]
    assert info["reference"] == "like" and info["images"] == 80
    assert info["distance"] == info["textbook_distance"] < info["fitted_distance"]
    assert "by their images consistency, " in result.notes[0] and load(file).tables["2 steps, scale 1, 8x8"] == table


def test_choosing_goes_on_where_it_was(file, like, monkeypatch):
    whole, measured, real = file.read_bytes(), [], choosing.Choice.distance
    wanted = fit(file, steps=2, reference="like", **COST).tables
    file.write_bytes(whole)

    def dying(self, table):
        measured.append(table)
        if len(measured) == 9:
            raise Stopped
        return real(self, table)

    monkeypatch.setattr(choosing.Choice, "distance", dying)
    with pytest.raises(Stopped):
        fit(file, steps=2, reference="like", **COST)
    assert fit(file, steps=2, reference="like", **COST).tables == wanted
    candidates = len(prepare(file, steps=2, reference="like", **COST).choice.others(2)) + 1
    assert len(measured) == candidates + 1 and "m.safetensors.fit.parts" not in os.listdir()


def test_the_levels_that_a_model_comes_with_are_tried_too():
    own = torch.tensor([80.0, 3.0, 0.0])
    names = [table.info["textbook"] for table in choosing.textbook(2, 0.002, 80.0, own)]
    assert "euler, the model's own" in names and len(names) == 8 * len(choosing.TEXTBOOK)
    same = choosing.textbook(2, 0.002, 80.0, schedules.schedule("flow", 2, sigma_min=0.002, sigma_max=80.0))
    assert [table.info["textbook"] for table in same] == [
        table.info["textbook"] for table in choosing.textbook(2, 0.002, 80.0)
    ]


def test_images_that_cannot_choose(file, like):
    for path in sorted(Path("like").glob("*.png"))[60:]:
        path.unlink()
    with pytest.raises(DataError, match="takes at least 64 of them, 'like' has 60"):
        fit(file, steps=2, reference="like", **COST)
    for i in range(64):
        save_png(torch.rand(3, 8, 8), Path("colored") / f"{i}.png")
    with pytest.raises(DataError, match="have 3 channels, those of the model 1"):
        fit(file, steps=2, reference="colored", **COST)
    with pytest.raises(InputError, match="Leave one out"):
        fit(file, steps=2, reference="like", levels="dpmpp_2m", **COST)


def test_what_choosing_costs_is_said_before(file, like):
    ready = prepare(file, steps=2, reference="like", **COST)
    assert f"and {choosing.cost([2], 80):,} more to choose by images" in ready.cost()


def test_images_without_a_caption_choose_nothing_where_others_have_one(tmp_path):
    """Prompts and the images that they are compared with stay in step."""
    for i in range(90):
        save_png(torch.rand(1, 8, 8), tmp_path / "some" / f"{i:02d}.png")
        if i % 5:
            (tmp_path / "some" / f"{i:02d}.txt").write_text(f"number {i}")
    images = data.load_folder(tmp_path / "some", 8)
    captions = images.annotations(choosing.chosen_rows(images, 1)).captions
    assert len(captions) == 72 and all(captions)
