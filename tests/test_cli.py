"""The command line as a person meets it: results, one sentence for an error, exit codes, narrow and poor terminals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastdiffusion import models, nets
from fastdiffusion.cli import demo as demo_
from fastdiffusion.cli import main, options
from fastdiffusion.data import digits
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.io.config import read_config, write_config
from fastdiffusion.io.images import read_recipe
from fastdiffusion.models import Model, load, save
from fastdiffusion.tasks.evaluation import feature_net
from fastdiffusion.tasks.evaluation.feature_net import train_feature_net


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    spec = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": []}
    net = nets.build({**spec, "in_channels": 1, "out_channels": 1, "classes": 10})
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    save(Model(Denoiser(net), (1, 8, 8), tuple("0123456789")), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str | Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastdiffusion", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_sample_and_reproduce(model, here, capsys):
    assert main(["sample", str(model), "--classes", "3,7", "-n", "3", "--steps", "2", "--seed", "5", "-o", "out"]) == 0
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["0005-3.png", "0006-7.png", "0007-3.png", "grid.png"]
    for name in names:
        assert main(["reproduce", f"out/{name}", "--model", str(model)]) == 0
        assert "the same bytes" in capsys.readouterr().out
        copy = Path("out") / f"{Path(name).stem}-reproduced.png"
        assert copy.read_bytes() == (Path("out") / name).read_bytes()


def test_guided_from_an_image_in_webp(model, here, capsys):
    """Guidance, an image to start from, another format, the recipe beside: all comes back by name, and can be shown."""
    Image.linear_gradient("L").save("in.png")
    Path("mask.png").write_bytes(Path("in.png").read_bytes())
    options = ["--guidance", "negative 8 scale=2", "--guidance", "inpaint in.png mask.png", "--image", "in.png"]
    command = ["sample", str(model), "--classes", "3", "-n", "1", "--steps", "3", "--strength", "0.4", *options]
    assert main([*command, "--format", "webp", "--sidecar"]) == 0
    assert main(["reproduce", "out/0000-3.webp", "--model", str(model)]) == 0
    assert "the same bytes" in capsys.readouterr().out
    recipe = json.loads(Path("out/0000-3.json").read_text())
    assert main(["recipe", "out/0000-3.webp"]) == 0
    tag = {"digital_source_type": "compositeWithTrainedAlgorithmicMedia"}
    assert json.loads(capsys.readouterr().out) == recipe | {"provenance": tag}
    assert recipe["parameters"]["guidance"].startswith("negative 8 scale=2 >> inpaint in.png@")
    assert main(["study", str(model), "--sweep", "strength=0,0.5", "-n", "1", "--steps", "1", "--image", "in.png"]) == 0
    assert "strength" in capsys.readouterr().out


def test_a_classifier_of_the_models_features(model, here, capsys):
    assert main(["train-classifier", "digits", "--model", str(model), "--steps", "2", "-o", "c"]) == 0
    guide = ["--guidance", "middle c/classifier.safetensors scale=2"]
    assert main(["sample", str(model), "-n", "1", "--steps", "1", *guide]) == 0


def test_reproduce_finds_the_model_of_a_run(model, here):
    Path("runs/digits").mkdir(parents=True)
    Path("runs/digits/model.safetensors").write_bytes(model.read_bytes())
    assert main(["sample", "runs/digits", "-n", "1", "--steps", "1"]) == 0
    assert main(["reproduce", "out/0000-0.png"]) == 0


def test_no_metadata(model, here):
    assert main(["sample", str(model), "-n", "1", "--steps", "1", "--no-metadata"]) == 0
    assert all(not Image.open(path).info for path in Path("out").glob("*.png"))


def test_evaluate(model, here, capsys, monkeypatch):
    judge = train_feature_net(digits(), steps=13)
    monkeypatch.setattr(feature_net, "feature_net", lambda data: judge)
    assert main(["evaluate", str(model), "digits", "-n", "60", "--steps", "1", "--rounds", "5", "-o", "e"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(Path("e/report.json").read_text())
    for name in (
        "fd_digits",
        "kd_digits",
        "precision",
        "recall",
        "coverage",
        "label accuracy",
        "gradients",
        "nearness",
    ):
        number = report["numbers"][name]
        assert name in printed
        assert number["low"] <= number["high"]
    assert report["numbers"]["fd_digits"]["value"] > 5 * report["numbers"]["fd_digits"]["floor"]
    assert report["numbers"]["nearness"]["floor"] == 1
    assert "fid" not in printed.lower()
    assert {"neighbors.png", "samples.png"} < {path.name for path in Path("e").iterdir()}
    assert str(here) not in json.dumps(report)


def test_fit_keeps_its_table_in_the_file(model, here, capsys):
    copy = here / "copy.safetensors"
    copy.write_bytes(model.read_bytes())
    assert main(["fit", str(copy), "--steps", "2", "--noises", "4", "--evaluations", "700"]) == 0
    printed = capsys.readouterr().out
    assert "At most 700 evaluations" in printed and "2 steps: " in printed
    assert list(load(copy).tables) == ["2 steps, scale 1, 8x8"]
    save(load(copy), copy, torch.int8)
    size = copy.stat().st_size
    assert main(["fit", str(copy), "--steps", "3", "--noises", "4", "--evaluations", "700"]) == 0
    assert len(load(copy).tables) == 2 and copy.stat().st_size < 1.2 * size  # its weights stay as stored


def test_reproduce_over_the_image_itself_and_in_another_format(model, here, capsys):
    assert main(["sample", str(model), "-n", "1", "--steps", "1", "-o", "out"]) == 0
    name = next(path for path in Path("out").iterdir() if path.name != "grid.png")
    assert main(["reproduce", str(name), "--model", str(model), "--out", str(name)]) == 0
    assert "the same bytes" in capsys.readouterr().out
    assert main(["reproduce", str(name), "--model", str(model), "--out", "out/x.jpg"]) == 0
    assert "another format" in capsys.readouterr().out
    assert main(["reproduce", str(name), "--model", str(model), "--out", "out/x.gif"]) == 2


@pytest.mark.parametrize(("words", "says"), [
    (["sample", "none.safetensors"], "No such file"),
    (["sample", "MODEL", "--classes", "cat"], "class"),
    (["sample", "MODEL", "--sampler", "dpm++"], "Did you mean"),
    (["sample", "MODEL", "--steps", "0"], "steps must be"),
    (["sample", "MODEL", "--size", "0"], "size must be"),
    (["sample", "MODEL", "--device", "tpu9"], "No device 'tpu9'"),
    (["sample", "pickle.pt"], "pickle"),
    (["sample", "cut.safetensors"], "damaged"),
    (["sample", "MODEL", "-n", "1", "--steps", "1", "-o", "file"], "is a file. Try --out out"),
    (["reproduce", "plain.png"], "no recipe"),
    (["reproduce", "none.png"], "none.png"),
    (["train", "empty"], "No images"),
    (["train", "nowhere"], "nowhere"),
    (["train", "digits", "--net", "unet-smal", "--steps", "1"], "Did you mean 'unet-small'"),
    (["train", "digits", "--size", "7"], "size"),
    (["train", "digits", "--optimizer", "adam", "--steps", "1"], "Did you mean"),
    (["train", "digits", "--steps", "0"], "steps"),
    (["train", "x" * 300], "name too long"),
    (["train", "empty", "--restore", "noise 0.1", "--aspect", "crop"], "--aspect does nothing here"),
    (["train", "digits", "--init-from", "MODEL", "--net", "unet-base"], "keeps its net"),
    (["sample", "MODEL", "--format", "gif"], "No format named 'gif'"),
    (["sample", "MODEL", "--classes", ","], "names no class"),
    (["sample", "MODEL", "--seed", str(2**64)], "seed must be of at most 64 bits"),
    (["sample", "MODEL", "-n", "1", "-o", "heart.gif"], "not '.gif'. Try --out heart.png"),
    (["sample", "MODEL", "-n", "1", "-o", "-"], "not to stdout"),
    (["sample", "MODEL", "-n", "2", "-o", "heart.png"], "Try n=1 (-n 1)"),
    (["sample", ""], "Say what to draw"),
    (["sample", "a cat", "a dog"], "No model 'a cat'. Of several prompts"),
    (["sample", "emoji", "a cat", "--guidance", "negative dog scale=2"], "Try negative_prompt (--negative dog)"),
    (["sample", "emoji", "\udcff", "-n", "1"], "is no text in the encoding of this system"),
    (["sample", "MODEL", "--image-prompt", "plain.png", "--image-encoder", "x"], "there is none. Give ip_adapter"),
    (["restore", "plain.png", "--corruption", "noise 0.1", "-o", "-", "--compare"], "To stdout goes one image"),
    (["fit", "emoji", "--steps", "2"], "comes with the package"),
    (["fit", "MODEL", "--noises", "0"], "noises must be"),
    (["scan", "empty"], "No images"),
    (["evaluate", "MODEL", "fashion-mnis"], "Did you mean 'fashion-mnist'"),
    (["fit", "MODEL", "--steps", "some"], "whole numbers"),
    (["about", "p3"], "Did you mean 'p2'"),
    (["sample", "MODEL", "--guidance", "cgf scale=3"], "Did you mean 'cfg'"),
    (["sample", "MODEL", "--image", "none.png"], "There is no file 'none.png'"),
    (["sample", "MODEL", "--image", "plain.png", "--strength", "2"], "strength must be from 0 to 1"),
    (["recipe", "plain.png"], "carries no recipe"),
    (["demo", "--seconds", "0"], "seconds must be above 0"),
])  # fmt: skip
def test_bad_input_is_one_sentence(model, here, capsys, words, says):
    Path("empty").mkdir()
    Path("file").write_text("")
    Path("pickle.pt").write_bytes(b"\x80\x04.")
    Path("cut.safetensors").write_bytes(model.read_bytes()[:2000])
    Image.new("L", (8, 8)).save("plain.png")
    assert main([str(model) if word == "MODEL" else word for word in words]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert "Traceback" not in err
    assert err.startswith("fastdiffusion: ")
    assert not out


def test_debug_shows_where(here, capsys):
    assert main(["sample", "none.safetensors", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["sample"], ["smaple", "x"], ["sample", "x", "--stepz", "3"], ["sample", "x", "-n", "many"]]
)
def test_usage_errors(words, capsys):
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["list-samplers"], ["about"], ["about", "edm"], ["about", "unet"], ["doctor"]]
)
def test_what_only_tells(words, capsys):
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


def test_doctor_names_a_broken_torchvision(monkeypatch, tmp_path):
    """As PyPI's build beside the CPU build of torch: installed, and its import raises."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    told = run("doctor", env={**os.environ, "PYTHONPATH": paths})
    assert told.returncode == 0, told.stderr
    assert "BROKEN (operator torchvision::nms does not exist)" in told.stdout


def test_poor_surroundings(model, tmp_path):
    """Locale C, no HOME, no terminal, 40 columns, a class name that ASCII does not have."""
    loaded = load(model)
    save(Model(models.native_denoiser(loaded), loaded.shape, ("Käse", *"123456789")), tmp_path / "m.safetensors")
    poor = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "40"}
    poor["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")
    made = run("sample", "m.safetensors", "-n", "2", "--steps", "1", cwd=tmp_path, env=poor)
    assert made.returncode == 0, made.stderr
    assert {"0001-1.png", "grid.png"} < {path.name for path in (tmp_path / "out").iterdir()}
    for words in (["doctor"], ["--help"], ["list-samplers"]):
        assert run(*words, cwd=tmp_path, env=poor).returncode == 0


def test_ctrl_c_is_130():
    program = """
import signal, sys, time
from fastdiffusion import cli
from fastdiffusion.tasks.generation import sample

def busy(*given, **options):
    print("go", flush=True)
    time.sleep(600)

sample.sample_to = busy
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
sys.exit(cli.main(["sample", "any"]))
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"go\n"
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=120)
    assert out == b"" and errors.startswith(b"Stopped.") and errors.count(b"\n") == 1
    assert child.returncode == 130


def test_train_resumes(here, monkeypatch, capsys):
    words = ["train", "digits", "--net", "unet-tiny", "--steps", "3", "--batch-size", "8", "--cpu"]
    assert main(words) == 0
    assert (here / "runs/digits/model.safetensors").exists()
    assert "Next: fastdiffusion sample runs/digits" in capsys.readouterr().out
    assert main(words) == 0
    assert "has had its budget" in capsys.readouterr().err
    assert main(["sample", "runs/digits", "-n", "1", "--steps", "1"]) == 0


def test_demo(here, monkeypatch, capsys):
    """The whole way in two seconds of training; how good it becomes in forty is measured in bench/."""
    judge = train_feature_net(digits(), steps=13)
    monkeypatch.setattr(feature_net, "feature_net", lambda data: judge)
    evaluate = demo_.evaluate
    monkeypatch.setattr(demo_, "evaluate", lambda *a, n, **o: evaluate(*a, n=40, rounds=3, **o))
    assert main(["demo", "--out", "d", "--seconds", "2"]) == 0
    names = {str(path.relative_to("d")) for path in Path("d").rglob("*") if path.is_file()}
    assert {"grid.png", "model.safetensors", "report.html", "evaluation/report.json"} < names
    lines = capsys.readouterr().out.split("What to type next:")[1].strip().splitlines()
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert "label accuracy" in load("d").info["metrics"]


def test_json_is_one_document_and_all_that_is_printed(model, here, capsys):
    """Of every command that has one: what it says besides goes to stderr."""
    Image.linear_gradient("L").resize((32, 32)).save("in.png")
    study = ["study", str(model), "--sweep", "scale=1,2", "-n", "1", "--steps", "1"]
    documents = {}
    for words in (["doctor"], ["scan", "."], ["clip-score", "in.png", "a heart", "a dog"], study):
        assert main([*words, "--json"]) == 0
        out, err = capsys.readouterr()
        documents[words[0]] = json.loads(out)
        assert err.strip() or words[0] == "doctor"
    assert [image["name"] for image in documents["scan"]["images"]] == ["in.png"]
    assert {score["prompt"] for score in documents["clip-score"]} == {"a heart", "a dog"}
    assert set(documents["study"]["explained"]) == {"scale", "together"}
    assert json.loads(Path("out/study/study.json").read_text()) == documents["study"]
    assert documents["doctor"]["core"].startswith("torch")


def test_quiet_prints_errors_and_answers_only(model, here, capfd):
    assert main(["sample", str(model), "-n", "1", "--steps", "1", "-q"]) == 0
    train = ["train", "digits", "--net", "unet-tiny", "--steps", "2", "--batch-size", "8", "--quiet"]
    assert main(train) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["sample", str(model), "--sampler", "none-such", "--quiet"]) == 2
    assert "No sampler named" in capfd.readouterr().err
    assert main(["about", "edm", "--quiet"]) == 0
    assert "edm" in capfd.readouterr().out


def test_a_run_writes_what_makes_it_again(model, here, capsys):
    """run.toml in a run's folder, and where --write-config says; what is typed wins over what is read."""
    train = ["train", "digits", "--net", "unet-tiny", "--steps", "2", "--batch-size", "8", "--lr", "0.002"]
    assert main([*train, "--folder", "a"]) == 0
    written = tomllib.loads(Path("a/run.toml").read_text())
    assert written["command"] == "train" and written["data"] == "digits" and written["lr"] == 0.002
    assert main(["train", "--config", "a/run.toml", "--folder", "b"]) == 0
    assert load("a").id == load("b").id
    sample = ["sample", str(model), "--seed", "random", "-n", "1", "--steps", "1"]
    assert main([*sample, "--write-config", "s.toml", "--out", "first"]) == 0
    assert main(["sample", "--config", "s.toml", "--out", "second"]) == 0
    (first,), (second,) = (sorted(Path(out).glob("[0-9]*.png")) for out in ("first", "second"))
    assert first.name == second.name and first.read_bytes() == second.read_bytes()  # the seed that was drawn
    assert main([*sample, "--write-config", "s.toml"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_one_value_of_a_list_in_a_config(model, here, capsys):
    Path("run.toml").write_text('guidance = "cfg scale=3"\nn = 1\nsteps = 1\n')
    assert main(["sample", str(model), "--config", "run.toml", "-o", "a.png"]) == 0
    assert read_recipe("a.png")["parameters"]["guidance"] == "cfg scale=3"


def test_what_does_nothing_says_so(model, here, capsys):
    words = ["sample", str(model), "-n", "1", "--steps", "1", "-o", "a.png"]
    with pytest.warns(UserWarning, match="does nothing") as met:
        assert main([*words, "--strength", "0.3", "--variation-seed", "4"]) == 0
    assert [str(one.message).partition(" ")[0] for one in met] == ["strength", "variation_seed"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*words, "--variation-seed", "4", "--variation-strength", "0.2"]) == 0


@pytest.mark.parametrize(("text", "says"), [
    ("stepz = 3", "Did you mean 'steps'"),
    ("steps 3", "is not TOML"),
    ('command = "train"', "is of another command: fastdiffusion train"),
    ("[sampler]\nname = 1", "is a table"),
    ('steps = "many"', "steps"),
])  # fmt: skip
def test_a_config_that_cannot_be_used(model, here, capsys, text, says):
    Path("run.toml").write_text(text)
    assert main(["sample", str(model), "--config", "run.toml"]) == 2
    assert says in capsys.readouterr().err


def test_config_keeps_every_kind_of_value(tmp_path):
    """What is written is read as the same text that would be typed: quotes, line breaks, signs, lists."""
    values = {
        "a": 'say "cat"\n\t\\ \x7f 猫',
        "b": 3,
        "c": -0.5,
        "d": True,
        "e": ["x=1", "y"],
        "f": Path("a/b"),
        "g": None,
    }
    write_config(tmp_path / "run.toml", "sample", values)
    again = read_config(tmp_path / "run.toml", "sample", values)
    assert again == {"a": values["a"], "b": "3", "c": "-0.5", "d": True, "e": ["x=1", "y"], "f": "a/b"}


@pytest.mark.parametrize("words", [
    ["sample", "MODEL", "--guidance-scale", "2"],
    ["sample", "MODEL", "--guidance_scale", "2", "--batch_size", "4"],
    ["sample", "--prompt", "a red heart", "--negative-prompt", "blue"],
    ["train", "digits", "--net", "unet-tiny", "--batch-size", "8", "--resume"],
])  # fmt: skip
def test_names_that_others_use(model, here, words):
    few = ["--steps", "1", *([] if words[0] == "train" else ["-n", "1"])]
    assert main([str(model) if word == "MODEL" else word for word in words] + few) == 0


def test_what_is_experimental_says_so(here, capsys):
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save("in.png")
    for i in range(3):
        Image.effect_noise((64, 64), 20).convert("RGB").save(f"{i}.png")
    main(["remove-watermark", "0.png", "1.png", "2.png"])
    assert "Experimental: from 3 images" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="Experimental: the bundled restorer"):
        assert main(["restore", "in.png", "--corruption", "colorize"]) == 0
    with pytest.warns(UserWarning, match="Experimental: the encoder"):
        main(["search", ".", "a red car"])
    for command in ("restore", "remove-watermark", "search"):
        assert main([command, "--help"]) == 0
        assert "xperimental" in capsys.readouterr().out, command


def test_what_to_type_next_works_where_the_shell_does_not_find_the_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [".venv/bin/fastdiffusion", "names"])
    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    assert main(["names", "burger"]) == 0
    assert capsys.readouterr().out.endswith("Next: .venv/bin/fastdiffusion sample hamburger\n")
    monkeypatch.setattr(options.shutil, "which", lambda name: "/usr/bin/fastdiffusion")
    assert main(["names", "burger"]) == 0
    assert capsys.readouterr().out.endswith("Next: fastdiffusion sample hamburger\n")
