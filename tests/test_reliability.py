"""What a training run survives: being killed, stopped, a full disk, broken numbers, a second run in its folder."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from test_learner import TINY, StopAt, Toy, learner, weights

from fastdiffusion import models
from fastdiffusion.errors import CheckpointError, FastdiffusionError
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.models import load
from fastdiffusion.training import results, trainer
from fastdiffusion.training.callback import Callback


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """Import here what children would otherwise import one by one."""
    list(learner().steps(1))


class Child:
    """A training run in a process of its own (a fork: nothing is imported anew); saves as often as it may."""

    def __init__(self, folder, steps=40, slow=0.0, file_size=None):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self.train(writer, folder, steps, slow, file_size))
        os.close(writer)
        self.lines = os.fdopen(reader)

    @staticmethod
    def train(writer, folder, steps, slow, file_size):
        class Tell(Callback):
            def step(self, learn, step):
                os.write(writer, b"%d\n" % step.step)
                time.sleep(slow)

        try:
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))  # as a full disk: writes fail
            learner(folder=folder, batch_size=16, save_every=0.0).fit(steps=steps, callbacks=[Tell()])
        except SystemExit as end:
            return end.code
        except KeyboardInterrupt:
            return 130
        except FastdiffusionError as error:
            os.write(writer, f"{error}\n".encode())
            return 2
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
            return 1
        return 0

    def until(self, line):
        """Read on up to a line."""
        for text in self.lines:
            if text.strip() == line:
                return
        raise AssertionError(f"{line!r} never came")

    def wait(self):
        """(exit code, what else it said)."""
        rest = self.lines.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), rest

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)


def last_weights(folder):
    _, _, tensors = Folder(folder).latest()
    return tensors


def test_killed_at_random_steps_it_ends_as_if_it_had_not_been(tmp_path):
    assert Child(tmp_path / "whole").wait() == (0, "".join(f"{i}\n" for i in range(1, 41)))
    random.seed(1)
    for _ in range(10):
        child = Child(tmp_path / "killed", slow=0.002)
        for _ in range(random.randrange(1, 5)):
            child.lines.readline()
        time.sleep(random.random() * 0.01)  # also amid a save
        child.kill()
        child.wait()
    assert Child(tmp_path / "killed").wait()[0] == 0
    one, two = last_weights(tmp_path / "whole"), last_weights(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    a, b = (models.tensors(load(tmp_path / x / "model.safetensors")) for x in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    steps = [[r["step"] for r in Folder(tmp_path / x).metrics() if "loss" in r] for x in ("whole", "killed")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_within_a_step(tmp_path, number, code):
    child = Child(tmp_path, steps=10_000, slow=0.02)
    child.until("5")
    child.kill(number)
    got, rest = child.wait()
    assert got == code
    step = int(rest.split()[-1] if rest else 5)
    assert Folder(tmp_path).latest()[0] == step
    assert load(tmp_path).info["steps"] == step  # and the model so far can be sampled from


def test_a_run_that_goes_on_shows_its_model(tmp_path):
    seen = {}

    class Look(Callback):
        def step(self, learn, step):
            if (tmp_path / "model.safetensors").exists():
                seen.setdefault(load(tmp_path).info["steps"], step.step)

    learner(folder=tmp_path, batch_size=64).fit(steps=120, callbacks=[Look()])  # every 50 steps
    assert len(seen) > 1 and all(steps == step for steps, step in seen.items())


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    child = Child(tmp_path, steps=100, slow=30.0)
    child.until("1")
    child.kill(signal.SIGINT)
    time.sleep(0.6)
    before = time.monotonic()
    child.kill(signal.SIGINT)
    assert child.wait()[0] == 130
    assert time.monotonic() - before < 25  # it did not wait for the end of the step, which takes 30 s
    assert Folder(tmp_path).latest()[0] == 1


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    child = Child(tmp_path, steps=10_000, slow=0.02)
    child.until("2")
    with pytest.raises(CheckpointError, match="Another run is using"):
        learner(folder=tmp_path).fit(steps=1)
    child.kill()
    child.wait()
    assert learner(folder=tmp_path, batch_size=16).fit(steps=3).state.step >= 3  # the lock went with its process


# ---- broken numbers ---------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_a_number_is_skipped_and_named(tmp_path):
    data = Toy(64, broken=[13])
    learn = learner(data, folder=tmp_path, batch_size=8, holdout=0.0).fit(steps=8)
    assert all(p.isfinite().all() for p in learn.objective.parameters())
    assert all(t.isfinite().all() for ts in learn.average.averages.values() for t in ts)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in records if "skipped" in r] == [["picture-13"]]
    assert "picture-13" in (tmp_path / "report.html").read_text()


def test_metrics_are_json_also_where_a_gradient_is_not_a_number(tmp_path):
    options = {"batch_size": 4, "holdout": 0.0}
    data = Toy(8, broken=[3])
    seed = next(seed for seed in range(20) if 3 in learner(data, seed=seed, **options).batches.order(1))
    learner(data, seed=seed, folder=tmp_path, **options).fit(steps=2)  # the last step, which has a line, is skipped

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1], parse_constant=refuse)
    assert last["step"] == 2 and last["skipped"] and "loss" in last


def test_three_in_a_row_restore_the_last_good_state_and_stop(tmp_path):
    good = learner(Toy(64), folder=tmp_path, batch_size=8, holdout=0.0, save_every=1e9)
    with pytest.raises(KeyboardInterrupt):
        good.fit(steps=20, callbacks=[StopAt(5)])
    bad = learner(Toy(64), folder=tmp_path, batch_size=8, holdout=0.0, save_every=1e9)
    bad.setup.train.parent.broken = set(range(64))
    with pytest.raises(FastdiffusionError, match=r"3 batches in a row.*picture-.*step 5"):
        bad.fit(steps=20)
    assert bad.state.step == 5
    assert torch.equal(weights(good), weights(bad))


# ---- the disk ---------------------------------------------------------------------------------------------------


def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learner(folder=tmp_path, save_every=0.0).fit(steps=20, callbacks=[StopAt(6)])
    older, newest = sorted(tmp_path.glob("step-*"))
    whole = newest.read_bytes()
    for share in (0.0, 0.25, 0.5, 0.99):
        newest.write_bytes(whole[: int(len(whole) * share)])
        learn = learner(folder=tmp_path)
        with pytest.warns(UserWarning, match=older.name):
            learn.resume()
        assert learn.state.step == int(older.stem.split("-")[1])


def test_a_full_disk_is_one_line_and_the_old_checkpoint_loads(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learner(folder=tmp_path, batch_size=16).fit(steps=40, callbacks=[StopAt(2)])
    code, said = Child(tmp_path, file_size=20_000).wait()
    assert code == 2
    assert "Cannot write" in said.splitlines()[-1]
    again = learner(folder=tmp_path, batch_size=16)
    again.resume()
    assert again.state.step == 2
    assert not list(tmp_path.glob(".*.part"))


def test_a_preview_that_fails_does_not_stop_training(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("full")

    monkeypatch.setattr(results, "save_png", full)
    learn = learner(folder=tmp_path, verbose=True).fit(steps=3)
    assert learn.state.finished
    assert "No preview" in capsys.readouterr().err


def test_a_preview_that_fails_leaves_the_nets_in_training(tmp_path, monkeypatch):
    def trained(folder):
        return weights(learner(folder=folder, dropout=0.5, batch_size=8).fit(steps=4))

    monkeypatch.setattr(trainer, "LOOK", 1)  # a preview at every step
    whole = trained(tmp_path / "whole")
    monkeypatch.setattr(results, "grid", None)  # whose call raises TypeError
    assert torch.equal(trained(tmp_path / "failing"), whole)


# ---- where it is run --------------------------------------------------------------------------------------------


def test_no_home_no_locale_no_terminal_forty_columns(tmp_path):
    script = f"from fastdiffusion import Learner; Learner('digits', {TINY!r}, folder='out', device='cpu').fit(steps=3)"
    source = str(Path(__file__).parent.parent / "src")
    environment = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "COLUMNS": "40",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": source,
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Done at step 3" in done.stderr
    assert "\r" not in done.stderr  # no moving line where nobody sees it


def test_the_moving_line_keeps_what_matters_in_forty_columns():
    from fastdiffusion.training.budget import TrainStep
    from fastdiffusion.training.console import line

    text = line(TrainStep(12_345, 100_000, 0.1, 0.1234, {}, 1.0, 1e-3, 812.0, 60.0, 3725.0), 0.1234)
    assert text[:39].startswith("loss 0.1234  1:02:05 left  812 img/s")


def test_memory_stays_flat():
    learn = learner(batch_size=16)
    loop, sizes = learn.steps(250), []
    for step in loop:
        if step.step in (100, 250):
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert sizes[1] - sizes[0] < 5 * 2**20 / os.sysconf("SC_PAGE_SIZE")


def test_the_report_escapes_what_it_shows(tmp_path):
    data = Toy(16, broken=[3])
    data.name = "<script>alert(1)</script>"
    learner(data, folder=tmp_path, batch_size=8, holdout=0.0).fit(steps=2)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script" in page
