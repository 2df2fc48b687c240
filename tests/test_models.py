"""A model file gives back the same model, bit for bit, and a stranger's file gives one sentence."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastdiffusion
from fastdiffusion import models, nets, noise, samplers
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io import checkpoints, guarded, run_folder
from fastdiffusion.models import Model, load, registry, save
from fastdiffusion.models import card as cards
from fastdiffusion.models import model as models_model
from fastdiffusion.nets import presets

SMALL = {
    "unet": {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8},
    "dit": {"name": "dit", "width": 16, "depth": 2, "head": 8},
}

PARTS = {"text", "draft", "kl", "vq", "fsq", "gumbel", "masked"}  # test_text, test_drafts, test_latents, test_codes


def make(name="dit", classes=("a", "b", "c"), self_condition=False, **given):
    spec = SMALL[name] | {"in_channels": 2 if self_condition else 1, "out_channels": 1, "classes": len(classes)}
    net = nets.build(spec)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    return Model(Denoiser(net, "v", 0.4, self_condition).eval(), (1, 8, 8), classes, **given)


@pytest.fixture
def model():
    return make()


@pytest.fixture
def file(model, tmp_path):
    save(model, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@torch.no_grad()
def pictures(model, seeds=range(3)):
    cond = model.cond(list(range(len(seeds)))) if model.classes else None
    table = model.table(4)
    x = table.sigmas[0] * noise.initial(seeds, model.shape)
    return samplers.final(samplers.run(model.denoise, x, table, cond))


# ---- there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in nets.NETS if name not in PARTS])
@pytest.mark.parametrize("self_condition", [False, True])
def test_saved_loaded_and_sampled_is_bit_equal(name, self_condition, tmp_path):
    if name not in SMALL:
        pytest.fail(f"give {name} a small configuration in SMALL, so that its files are tested")
    model = make(name, self_condition=self_condition, sigma_max=40.0)
    save(model, tmp_path / "m.safetensors")
    stream = torch.random.get_rng_state()
    back = load(tmp_path / "m.safetensors")
    assert torch.equal(torch.random.get_rng_state(), stream), "loading draws nothing from the user's random numbers"
    assert models.spec(back) == models.spec(model)
    assert back.parameters_count == model.parameters_count
    assert torch.equal(pictures(back), pictures(model))


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_presets_can_be_described_and_built_without_memory(preset):
    """No net has parts that only a real device can build, or that its file would lack."""
    spec = {**presets.PRESETS[preset], "in_channels": 3, "out_channels": 3}
    with torch.device("meta"):
        net = nets.build(spec)
        again = nets.build(models.spec(Model(Denoiser(net), (3, 32, 32)))["net"])
    assert {n: t.shape for n, t in net.state_dict().items()} == {n: t.shape for n, t in again.state_dict().items()}
    assert json.dumps(again.config) == json.dumps(net.config)


def test_half_precision_halves_the_file_and_loads_as_float32(model, file, tmp_path):
    save(model, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    half = load(tmp_path / "half.safetensors")
    assert all(t.dtype == torch.float32 for t in models.tensors(half).values())
    assert (
        sum(t.numel() for t in models.tensors(half).values()) * 1.5
        < file.stat().st_size - (tmp_path / "half.safetensors").stat().st_size
    )
    assert (pictures(half) - pictures(model)).abs().max() < 0.05


def test_tables_and_notes_travel_along(model, tmp_path):
    fitted = replace(model.table(5, "euler"), name="fitted", info={"error": 0.01})
    model = replace(model, info={"data": "digits", "steps": 5, "losses": [1.0, 0.5]}).with_table(5, fitted)
    save(model, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors")
    assert back.table(5) == fitted
    assert back.info["losses"] == [1.0, 0.5]
    assert back.info["fastdiffusion"]


def test_golden_files_of_every_version_load():
    """What people have on their disks: written once by scripts/golden.py, loaded for ever."""
    golden = sorted((Path(__file__).parent / "golden").glob("model-v*.safetensors"))
    assert len(golden) == checkpoints.VERSION
    for path in golden:
        assert path.stat().st_size < 30_000
        model = load(path)
        assert model.classes == ("round", "square")
        assert model.table(4) == model.tables["4"]
        with torch.no_grad():
            x0 = model.denoise(noise.initial([0, 1], model.shape), torch.tensor([0.5, 2.0]), model.cond(["round", -1]))
        assert x0[:, 0, 3, 3].tolist() == pytest.approx(model.info["check"], abs=2e-4)


def test_a_run_folder_is_its_model_and_a_wrong_path_is_a_sentence(model, tmp_path):
    save(model, tmp_path / models.FILE)
    assert models.spec(load(tmp_path)) == models.spec(model)
    (tmp_path / "empty").mkdir()
    for path, says in [("empty", "without model.safetensors"), ("none.safetensors", "No such file")]:
        with pytest.raises(CheckpointError, match=says):
            load(tmp_path / path)
    for name in ("m.pt", "m", "m.safetensors.bak"):
        with pytest.raises(InputError, match=r"ends in \.safetensors.*Try "):
            save(model, tmp_path / name)


def test_a_net_that_is_not_in_the_table_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match=r"A Conv2d cannot be saved.*unet"):
        save(Model(Denoiser(nn.Conv2d(1, 1, 1)), (1, 8, 8)), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_training_is_not_a_model(tmp_path):
    folder = run_folder.Folder(tmp_path)
    with pytest.raises(CheckpointError, match="is not a model file"):
        load(folder.save(3, {"a": torch.ones(2)}, {}))


def test_loading_does_not_import_the_compiler(file):
    """torch._dynamo alone takes longer than loading a model; the meta device asks for it easily."""
    source = str(Path(models_model.__file__).parents[2])
    code = f"""
import sys
import torch
from fastdiffusion import models, nets
from fastdiffusion.nets import presets
from fastdiffusion.denoisers import Denoiser
before = "torch._dynamo" in sys.modules, "sympy" in sys.modules
models.load({str(file)!r})
for preset in presets.PRESETS.values():
    if preset["name"] in ("unet", "dit") and "tiny" in str([k for k, v in presets.PRESETS.items() if v is preset]):
        model = models.Model(Denoiser(nets.build(preset)), (3, 16, 16))
        models.from_spec(models.spec(model), models.tensors(model))
assert ("torch._dynamo" in sys.modules, "sympy" in sys.modules) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": source})


# ---- what a model answers ---------------------------------------------------------------------------------------


def test_classes_by_name_and_by_index(model):
    assert model.cond(None) is None
    assert model.cond(["c", 1, -1, "0"]).label.tolist() == [2, 1, -1, 0]
    assert model.cond(torch.tensor([2, 0])).label.tolist() == [2, 0]
    assert make(classes=("1", "0")).cond(["1", 1]).label.tolist() == [0, 1], "a name comes before an index"
    with pytest.raises(InputError, match="No class named 'None'"):
        model.cond([None])
    with pytest.raises(InputError, match=r"No class named 'cc'\. Did you mean 'c'\?|Known: a, b, c"):
        model.cond(["cc"])
    with pytest.raises(InputError, match="No class 3: there are 3, 0 to 2"):
        model.cond([3])
    with pytest.raises(InputError, match="trained without classes"):
        make(classes=()).cond([1])


def test_the_loss_of_an_untrained_net_is_one_at_every_noise_level():
    """EDM's weight undoes c_out, whose target has unit variance (Karras et al. 2022, table 1)."""
    zero = nets.build({**SMALL["dit"], "in_channels": 1, "out_channels": 1})
    model = Model(Denoiser(zero, "edm", 0.4), (1, 8, 8))
    x0, noises = 0.4 * torch.randn(256, 1, 8, 8), torch.randn(256, 1, 8, 8)
    for sigma in (0.01, 0.5, 20.0):
        assert float(model.loss(x0, torch.full((256,), sigma), noises).mean()) == pytest.approx(1, rel=0.05)


def test_the_ids_of_the_shipped_models_do_not_change():
    """Recipes in people's images name them by it."""
    emoji, restorer = (load(registry.WEIGHTS / f"{name}.safetensors") for name in ("emoji", "restorer"))
    assert emoji.id == "1766bb7ce77676785f4c70bf607d751e0ca258b6b2f458a24f5adf53227ece49"
    assert restorer.id == "550f448050762a68d66352f0794225b7a7cdbebb0e7cdc613c21b2d31eaac745"


def test_load_takes_a_name_a_file_or_a_folder(model, tmp_path):
    save(model, tmp_path / models.FILE)
    assert fastdiffusion.load(tmp_path).id == fastdiffusion.load(tmp_path / models.FILE, device="cpu").id == model.id
    assert fastdiffusion.load().image_shape == fastdiffusion.load("emoji").image_shape == (3, 64, 64)
    with pytest.raises(InputError, match=r"No option of load named 'devise'\. Did you mean 'device'"):
        fastdiffusion.load("emoji", devise="cpu")
    with pytest.raises(InputError, match="No device 'cuda:99' here"):
        fastdiffusion.load("emoji", device="cuda:99")


def test_a_folder_of_images_does_not_hide_a_model_that_ships(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = registry.shipped("emoji")
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "1.png").touch()
    assert own is not None and registry.shipped("emoji") == own
    save(model, tmp_path / "emoji" / "model.safetensors")
    assert registry.shipped("emoji") is None and fastdiffusion.load("emoji").id == model.id


def test_a_fitted_table_is_the_default_unless_something_is_named(model):
    fitted = replace(model.table(6), name="fitted")
    other = model.with_table(6, fitted)
    assert other.table(6).name == "fitted"
    assert other.table(6, sampler="heun").name == "heun"
    assert other.table(6, schedule="karras").name == other.table(7).name == "dpmpp_2m"
    assert model.tables == {}, "the first model is as it was"
    assert model.table(6).sigmas[0] == pytest.approx(model.sigma_max)
    for wrong in ({"sampler": "eulr"}, {"schedule": "karas"}):
        with pytest.raises(InputError, match="Did you mean"):
            model.table(6, **wrong)
    with pytest.raises(InputError, match="steps must be at least 1"):
        model.table(0)


@pytest.mark.parametrize(
    "given",
    [
        {"shape": (1, 8)},
        {"shape": (0, 8, 8)},
        {"shape": (2, 8, 8)},
        {"shape": (1, 1 << 16, 1 << 16)},
        {"sigma_min": 0.0},
        {"sigma_max": float("inf")},
        {"classes": ("a", "a")},
        {"classes": ("a", "b")},
    ],
)
def test_a_model_that_contradicts_itself_is_refused(model, given):
    with pytest.raises(InputError):
        replace(model, **given)


# ---- strangers' files -------------------------------------------------------------------------------------------


def _net(**changes):
    return lambda spec: spec["net"].update(changes)


HOSTILE = {
    "a class path for a name": _net(name="os.system"),
    "a dotted name": _net(name="fastdiffusion.nets.dit.DiT"),
    "a name that is a list": _net(name=["unet"]),
    "no name": lambda s: s["net"].pop("name"),
    "an attribute for a name": _net(name="__class__"),
    "an unknown keyword": _net(trust_remote_code=True),
    "a keyword self": _net(self=1),
    "another net": _net(name="unet"),
    "a huge width": _net(width=1 << 19),
    "a width beyond all": _net(width=1 << 62),
    "a huge depth": _net(depth=1 << 19),
    "a depth beyond all": _net(depth=10**12),
    "many classes": _net(classes=1 << 20),
    "a negative width": _net(width=-16),
    "no width": _net(width=0),
    "a width of text": _net(width="16"),
    "a width of half": _net(width=16.5),
    "no number for a width": _net(width=float("nan")),
    "a list for a width": _net(width=[16] * 10_000),
    "lists in lists": _net(width=[[[[[[16]]]]]]),
    "a long text": _net(width="9" * 100_000),
    "a dict for a width": _net(width={"a": 1}),
    "a net of null": lambda s: s.update(net=None),
    "a net of text": lambda s: s.update(net="unet"),
    "no net": lambda s: s.pop("net"),
    "a codec of its own": lambda s: s.update(codec={"name": "subprocess.Popen", "args": ["true"]}),
    "a parameterization": lambda s: s.update(parameterization="__import__('os')"),
    "sigma_data": lambda s: s.update(sigma_data=-1),
    "a shape": lambda s: s.update(shape=[1, 1 << 16, 1 << 16]),
    "a shape of text": lambda s: s.update(shape="138"),
    "a top-level key": lambda s: s.update(imports=["os"]),
    "a table of weights": lambda s: s.update(tables={"8": {"name": "x", "sigmas": [1e999, 0], "rows": []}}),
    "a table by a path": lambda s: s.update(tables={"../../x": {}}),
    "classes of numbers": lambda s: s.update(classes=5),
    "more classes than the net": lambda s: s.update(classes=list("abcd")),
    "denoiser itself": lambda s: s.update(denoiser="x"),
    "sigmas the wrong way": lambda s: s.update(sigma_min=80, sigma_max=1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_configurations_are_refused_before_they_cost_anything(model, tmp_path, what):
    spec = models.spec(model)
    HOSTILE[what](spec)
    checkpoints.save_tensors(tmp_path / "m.safetensors", models.tensors(model), spec)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="is not a model file") as error:
        load(tmp_path / "m.safetensors")
    assert len(str(error.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape", "renamed"])
def test_tensors_that_do_not_belong_to_the_configuration(model, tmp_path, wrong):
    tensors = models.tensors(model)
    name = sorted(tensors)[0]
    if wrong == "shape":
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    elif wrong == "extra":
        tensors["net.more"] = torch.zeros(1)
    else:
        value = tensors.pop(name)
        tensors |= {"net.\x1b[2J": value} if wrong == "renamed" else {}
    checkpoints.save_tensors(tmp_path / "m.safetensors", tensors, models.spec(model))
    with pytest.raises(CheckpointError, match="is not a model file"):
        load(tmp_path / "m.safetensors")


def test_what_does_not_fit_is_built_on_the_meta_device_alone():
    devices, stream = [], torch.random.get_rng_state()

    def make():
        made = nn.Linear(3, 2)
        devices.append(made.weight.device.type)
        return made

    with pytest.raises(InputError, match=r"weight should have shape \(2, 3\), the file has \(2, 4\)"):
        guarded.build(make, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)})
    assert devices == ["meta"]
    made = guarded.build(make, {"weight": torch.ones(2, 3, dtype=torch.float16), "bias": torch.zeros(2)})
    assert devices[1:] == ["meta", "cpu"] and made.weight.dtype == torch.float32 and bool((made.weight == 1).all())
    assert torch.equal(torch.random.get_rng_state(), stream)


# ---- sharing ----------------------------------------------------------------------------------------------------

PRIVATE = {
    "data": "/home/jane/photos/",
    "cache": "~/secret/stuff",
    "drive": "C:\\Users\\jane\\photos",
    "nested": {"paths": ["/mnt/jane/a.png", "plain"]},
    "note": "half/half",
}


def test_no_path_and_no_user_travels_along(model, tmp_path):
    save(replace(model, info=PRIVATE), tmp_path / "m.safetensors")
    text = (tmp_path / "m.safetensors").read_bytes()
    assert not re.search(rb"jane|secret|Users|/home|/mnt", text)
    info = load(tmp_path / "m.safetensors").info
    assert (info["data"], info["drive"], info["nested"], info["note"]) == (
        "photos",
        "photos",
        {"paths": ["a.png", "plain"]},
        "half/half",
    )


def test_an_exported_folder_has_all_that_a_hub_wants(model, tmp_path):
    info = {
        "name": "Tiny",
        "license": "Apache-2.0",
        "data": "digits",
        "steps": 1200,
        "metrics": {"fd_digits": [1.0, 1.25, 1.5]},
    }
    model = replace(model, info=info)
    folder = models.export_folder(model, tmp_path / "out", cards.card(model), preview=b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "preview.png"]
    assert json.loads((folder / "config.json").read_text()) == models.spec(model)
    assert models.spec(load(folder)) == models.spec(model)
    card = (folder / "README.md").read_text()
    for part in (
        'license: "apache-2.0"',
        "# Tiny",
        "| training steps | 1,200 |",
        "1.25 (1 to 1.5)",
        "--classes a,b",
        "1x8x8",
    ):
        assert part in card
    assert card.startswith("---\n")
    assert card.count("\n---\n") == 1


def test_a_card_claims_nothing_that_was_not_measured():
    card = cards.card(make(classes=()))
    assert "Nothing was measured yet" in card
    assert "license:" not in card
    assert "--classes" not in card
    assert "preview.png" not in cards.card(make(), preview=None)


def test_names_bring_no_markup_into_the_card():
    evil = "<script>alert(1)</script> ![x](http://e) | `\n---\n# head"
    model = make(
        classes=(evil, "'; rm -rf ~ #", "c"),
        info={"name": evil, "data": evil, "license": evil, "metrics": {evil: evil}, evil: evil},
    )
    card = cards.card(model)
    code = re.search(r"```bash.*?```", card, re.DOTALL).group()
    prose = card.replace(code, "").split("\n---\n", 1)[1]
    assert "<script" not in prose
    assert "![x]" not in prose
    assert card.count("\n---\n") == 1
    assert "\n# head" not in card
    assert "'\\''; rm -rf ~ #'" in code, "one quoted word for the shell"


def test_a_card_has_no_paths():
    assert "jane" not in cards.card(make(info=PRIVATE))


def test_a_card_tells_what_kind_of_model_it_is():
    card = cards.card(make(classes=(), corruption="blur 0.5..3 | jpeg 10..60"))
    assert "A restoration diffusion model" in card and "restore photo.jpg --corruption 'blur 0.5..3' --model" in card
    words = cards.card(models.load(registry.WEIGHTS / "emoji.safetensors"))
    assert "A text-to-image diffusion model" in words and "3x64x64" in words and "'some words'" in words
