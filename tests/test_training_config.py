"""Settings of a training run, from Python and the command line; what callbacks see; where and how it computes."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from test_learner import TINY, StopAt, learner, weights

from fastdiffusion import cli
from fastdiffusion.data import Images
from fastdiffusion.device import choose_precision
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.checkpoints import annotate, load_tensors
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.models import load
from fastdiffusion.tasks import training as tasks_training
from fastdiffusion.training.callback import TrainingView
from fastdiffusion.training.callbacks import Snapshots, defaults
from fastdiffusion.training.config import FREE, TrainingConfig
from fastdiffusion.training.options import Budget, TrainingOptions
from fastdiffusion.training.task import Part, Task
from fastdiffusion.training.trainer import train

OLD = {
    "sigma_distribution": "density", "sigma_distribution_options": "density_options", "loss_weighting": "weight",
    "loss_weighting_options": "weight_options", "captions": "text", "init_from": "begin",
    "cond_dropout": "label_dropout", "grad_clip": "clip",
}  # fmt: skip


def test_flags_become_keywords(monkeypatch, tmp_path):
    given = []

    class Recorded:
        def __init__(self, data, **keywords):
            given.append((data.name, keywords))

        model = None

        def fit(self, **budget):
            given.append(budget)
            return self

    monkeypatch.setattr(tasks_training, "Learner", Recorded)
    order = "train digits --net dit-tiny --augment mirror,crop --label-dropout 0.2 --batch-size 8 --cpu --steps 7"
    assert cli.main([*order.split(), "--folder", str(tmp_path)]) == 0
    (name, keywords), budget = given
    usual = vars(TrainingConfig())
    changed = {key: value for key, value in keywords.items() if value != usual[key]}
    assert keywords.keys() == usual.keys() and name == "digits"
    assert changed == {
        "net": "dit-tiny", "augment": ("mirror", "crop"), "cond_dropout": 0.2, "batch_size": 8, "device": "cpu",
        "folder": tmp_path,
    }  # fmt: skip
    assert budget == {"minutes": None, "steps": 7, "fresh": False, "procs": 1}


def test_every_setting_is_explained_and_told_apart():
    for kind in (TrainingConfig, Budget):
        for field in fields(kind):
            assert field.metadata["flag"].help.endswith((".", "...")), field.name
            assert any(f"    {field.name}: " in one.__doc__ for one in kind.__mro__), field.name
    stored = set(TrainingConfig().identity("x"))
    assert stored == {f.name for f in fields(TrainingConfig)} - FREE | {"data"}
    assert set(FREE) <= {f.name for f in fields(TrainingConfig)}


def test_a_run_of_the_first_version_is_continued_bit_for_bit_or_refused(tmp_path):
    """Its settings have their old names."""
    options = {"cond_dropout": 0.3, "grad_clip": 0.5, "loss_weighting": "p2", "loss_weighting_options": {"gamma": 0.5}}
    whole = learner(folder=tmp_path / "whole", **options).fit(steps=8)
    with pytest.raises(KeyboardInterrupt):
        learner(folder=tmp_path / "cut", **options).fit(steps=8, callbacks=[StopAt(5)])

    def renamed(stored):
        config = stored["config"]
        now = config.pop("run")
        assert OLD.keys() < now.keys()
        then = {OLD.get(name, name): value for name, value in now.items()}
        return {**stored, "config": {**config, "learner": then}}

    for path in Folder(tmp_path / "cut").checkpoints():
        annotate(path, renamed)
    with pytest.raises(CheckpointError, match=r"cond_dropout=0.3 \(now 0.2\).*--fresh"):
        learner(folder=tmp_path / "cut", **{**options, "cond_dropout": 0.2}).fit(steps=8)
    assert torch.equal(weights(learner(folder=tmp_path / "cut", **options).fit(steps=8)), weights(whole))


def test_the_usual_net_is_one_for_the_task():
    photos = Images("photos", [np.random.default_rng(0).integers(0, 256, (24, 1, 16, 16), dtype=np.uint8)])
    assert learner(photos, net=None, restore="blur 1").config.net == "restorer"
    assert learner(photos, net=None).config.net == "unet-small"


# ---- callbacks --------------------------------------------------------------------------------------------------


class Only:
    """A run of which nothing can be seen but what the protocol promises, and nothing can be set."""

    names = frozenset(name for name in vars(TrainingView) if not name.startswith("_"))

    def __init__(self, run):
        object.__setattr__(self, "_run", run)

    def __getattr__(self, name):
        assert name in Only.names, f"a callback looks at {name}"
        return getattr(self._run, name)

    def __setattr__(self, name, value):
        raise AssertionError(f"a callback sets {name}")


def test_callbacks_only_look_and_change_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    quiet, run = (
        learner(folder=tmp_path / name, track=track, verbose=loud, holdout=0.1)
        for name, track, loud in (("quiet", None, False), ("loud", "tensorboard", True))
    )
    quiet.fit(steps=20)
    view = Only(run)
    jobs = [*defaults(view), Snapshots(10)]
    assert [type(job).__name__ for job in jobs] == ["Metrics", "Tracker", "Pace", "Console", "Snapshots"]
    for job in jobs:
        job.start(view)
    for step in run.steps(20):
        for job in jobs:
            job.step(view, step._replace(validation=0.5))
    for job in jobs:
        job.end(view)
    assert torch.equal(weights(quiet), weights(run))
    losses = [
        record["validation_loss"] for record in Folder(tmp_path / "quiet").metrics() if "validation_loss" in record
    ]
    assert losses and load(tmp_path / "quiet").info["validation_loss"] == round(quiet.state.validation, 5)
    assert quiet.run.best() is not None and quiet.state.length in map(float, quiet.config.ema)
    assert (tmp_path / "quiet" / "report.html").is_file() and list(tmp_path.glob("quiet/previews/*.png"))


def test_a_callback_may_ask_for_an_end(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learner(folder=tmp_path).fit(steps=9, callbacks=[StopAt(4)])
    assert Folder(tmp_path).latest()[0] == 4


# ---- precision and device ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "device", "able", "chosen"), [
    ("auto", "cpu", True, "float32"),
    ("auto", "cuda", True, "bfloat16"),
    ("auto", "cuda", False, "float32"),
    ("auto", "mps", True, "float32"),
    ("bfloat16", "cpu", False, "bfloat16"),
    ("float32", "cuda", True, "float32"),
])  # fmt: skip
def test_precision_follows_from_the_device(monkeypatch, asked, device, able, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: able)
    assert choose_precision(asked, torch.device(device)) == chosen


def test_a_run_keeps_the_precision_that_it_began_in(tmp_path):
    """A run that once measured which is faster, or that moved here from a GPU."""
    learner(folder=tmp_path, precision="auto").fit(steps=2)

    def began(stored):
        stored["config"]["state"]["precision"] = "bfloat16"
        return stored

    for path in Folder(tmp_path).checkpoints():
        annotate(path, began)
    run = learner(folder=tmp_path, precision="auto")
    assert run.state.precision == "float32"
    seen = []
    run.objective.denoiser.net.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    run.resume()
    list(run.steps(3))
    assert run.state.precision == "bfloat16" and seen == [True]


def test_parts_are_trained_in_the_precision_that_is_asked_for_and_chance_is_left_alone(tmp_path):
    kinds, net = [], torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))

    def loss(batch):
        made = net(batch)
        kinds.append(made.dtype)
        return made.float().square().mean()

    def task():
        return Task({"net": Part(net, loss)}, lambda step: torch.ones(8, 4), {})

    before = torch.get_rng_state()
    for kind in ("auto", "bfloat16"):
        done = train(task(), TrainingOptions(steps=2, folder=tmp_path / kind, precision=kind, device="cpu"))
        assert done.state.step == 2 and not net.training
    assert kinds == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert torch.equal(torch.get_rng_state(), before)
    stored, _ = load_tensors(next((tmp_path / "bfloat16").glob("step-*")))
    assert stored["config"]["state"]["precision"] == "bfloat16"
    assert json.loads((tmp_path / "auto" / "metrics.jsonl").read_text())["step"] == 2
    with pytest.raises(InputError, match="No device 'abacus' here"):
        train(task(), TrainingOptions(steps=2, device="abacus"))
    with pytest.raises(InputError, match="2 processes were asked for, 1 runs"):
        train(task(), TrainingOptions(steps=2, procs=2))


def test_a_run_in_another_precision_is_refused_by_name(tmp_path):
    net = torch.nn.Linear(4, 4)
    task = Task({"net": Part(net, lambda x: net(x).float().square().mean())}, lambda step: torch.ones(8, 4), {})
    train(task, TrainingOptions(steps=2, folder=tmp_path, precision="bfloat16", device="cpu"))
    with pytest.raises(CheckpointError, match=r"precision=bfloat16 \(now float32\).*--fresh"):
        train(task, TrainingOptions(steps=3, folder=tmp_path, precision="float32", device="cpu"))
    assert train(task, TrainingOptions(steps=3, folder=tmp_path, precision="auto", device="cpu")).state.step == 3


def test_the_settings_of_a_run_do_not_start_it_anew(tmp_path, capsys):
    words = ["train", "digits", "--net", "unet-tiny", "--batch-size", "4", "--cpu", "--folder", str(tmp_path / "run")]
    assert cli.main([*words, "--steps", "2", "--fresh"]) == 0
    before = sorted((tmp_path / "run").glob("step-*"))
    assert cli.main(["train", "--config", str(tmp_path / "run" / "run.toml"), "--steps", "3"]) == 0
    assert set(before) & set((tmp_path / "run").glob("step-*"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3] or steps[0] < 3, steps


def test_tiny_is_what_is_stored(tmp_path):
    learner(folder=tmp_path).fit(steps=1)
    config, _ = load_tensors(next(tmp_path.glob("step-*")))
    assert config["config"]["run"]["net"] == TINY and "device" not in config["config"]["run"]
