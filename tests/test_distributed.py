"""Two processes train as one: same examples, same loss, same weights; one cannot go on without the other."""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from test_learner import TINY, Toy, learner

from fastdiffusion.errors import FastdiffusionError, InputError
from fastdiffusion.io.checkpoints import fingerprint
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.tasks.autoencoding.train import train_autoencoder
from fastdiffusion.training import optimizers
from fastdiffusion.training.distributed import ASKED, gathered, launch, whole
from fastdiffusion.training.learner import Learner

SOURCE = str(Path(__file__).parent.parent / "src")


def pair(work, world=2):
    """Run ``work(rank)`` in forked processes of one group; what each returned."""
    list(learner().steps(1))  # import everything here, not in each child
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            answer = {}
            try:
                from accelerate.state import AcceleratorState

                AcceleratorState._reset_state(reset_partial_state=True)
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ |= {k: str(v) for k, v in ranks.items()} | {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                answer = work(rank)
            except FastdiffusionError as error:
                answer = {"error": str(error)}
            except BaseException:
                answer = {"crash": traceback.format_exc()}
            finally:
                os.write(writer, json.dumps(answer).encode())
                os._exit(0)
        os.close(writer)
        children.append((pid, reader))
    answers = []
    for pid, reader in children:
        with os.fdopen(reader) as file:
            answers.append(json.loads(file.read()))
        os.waitpid(pid, 0)
        assert "crash" not in answers[-1], answers[-1]["crash"]
    return answers


# AdamW, because Muon takes no divided matrices and its bfloat16 enlarges the rounding of sums
KEYWORDS = {
    "self_condition": True, "augment": ("flip_x", "shift"), "cond_dropout": 0.2, "optimizer": "adamw", "lr": 1e-3
}  # fmt: skip


def digest(learn):
    """A hash of the weights: equal on all processes, if training is right."""
    return fingerprint({name: whole(p.detach()) for name, p in learn.objective.named_parameters()})


def train(folder=None, steps=8, **keywords):
    learn = learner(folder=folder, **KEYWORDS | keywords)
    losses = [step.loss for step in learn.steps(steps)]
    return learn, {"losses": losses, "hash": digest(learn)}


METHODS = {"ddp": {}, "accumulate": {"grad_accumulation": 2}, "fsdp2": {"shard": True}}
if not torch.accelerator.is_available():
    METHODS["nobody said cpu"] = {"device": None}


def contrast(rows: torch.Tensor) -> torch.Tensor:
    """A loss that compares all rows with each other."""
    z = torch.nn.functional.normalize(gathered(rows))
    return torch.nn.functional.cross_entropy(3 * z @ z.T.roll(1, 1), torch.arange(len(z)))


def test_a_loss_over_all_rows_has_the_gradient_of_one_process():
    """Not merely to 1e-4 of the weights, where an optimizer may divide by gradients that are 0 but for rounding."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

    def gradient(rows):
        w = torch.nn.Parameter(torch.eye(8))
        contrast(rows @ w).backward()
        return w.grad

    def work(rank):
        torch.distributed.init_process_group("gloo")
        mean = gradient(x[2 * rank : 2 * rank + 2])
        torch.distributed.all_reduce(mean)
        return {"gradient": (mean / 2).flatten().tolist()}

    alone = gradient(x).flatten().tolist()
    for answer in pair(work):
        assert answer["gradient"] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("keywords", METHODS.values(), ids=METHODS)
def test_two_processes_have_one_loss_and_equal_hashes(keywords):
    def work(rank):
        return train(**keywords)[1]

    _, alone = train()
    one, two = pair(work)
    assert one["hash"] == two["hash"]
    assert one["losses"] == two["losses"]
    assert one["losses"] == pytest.approx(alone["losses"], abs=1e-4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_muon_moves_the_joined_weights_as_it_moves_those_of_one():
    """Its views must be of the weights as they lie after the joining, and its updates must not enlarge rounding."""
    muon = {"net": "unet-tiny", "optimizer": "muon", "lr": 1e-2}

    def weights(learn):
        return torch.cat([p.detach().flatten() for p in learn.objective.parameters()])

    def work(rank):
        learn, answer = train(steps=5, **muon)
        return answer | {"weights": weights(learn).tolist() if rank == 0 else None}

    learn, alone = train(steps=5, **muon)
    one, two = pair(work)
    assert one["hash"] == two["hash"]
    assert one["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert float((torch.tensor(one["weights"]) - weights(learn)).abs().max()) < 1e-4


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 33)])
def test_muon_is_torchs_muon_but_for_rounding(shape):
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    steps = (
        optimizers.Muon([ours], lr=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        theirs.grad = torch.randn(shape)
        ours.grad = theirs.grad.clone()
        for optimizer in steps:
            optimizer.step()
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).norm() / (theirs - 1).norm()) < 0.02


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, shard):
    def work(rank):
        learn = learner(folder=tmp_path, shard=shard, holdout=0.1, **KEYWORDS).fit(steps=6)
        return {"hash": learn.model.id}

    one, two = pair(work)
    assert one["hash"] == two["hash"]
    again = learner(folder=tmp_path, holdout=0.1, **KEYWORDS)
    again.resume()
    assert again.state.step == 6
    assert again.model.id == one["hash"]
    assert again.fit(steps=9).state.step == 9


def test_a_broken_batch_is_skipped_by_all_and_named(tmp_path):
    def work(rank):
        data = Toy(32, broken=[3])
        learn = learner(data, batch_size=8, holdout=0.0, folder=tmp_path)
        bad = [step.bad for step in learn.steps(4)]
        return {"bad": bad, "hash": digest(learn)}

    one, two = pair(work)
    assert one == two
    assert [bad for bad in one["bad"] if bad] == [["picture-3"]]


def test_a_batch_that_cannot_be_divided_is_refused():
    answers = pair(lambda rank: {"loss": next(learner(batch_size=9).steps(1)).loss})
    assert all("multiple of processes" in answer["error"] for answer in answers)


def test_few_images_train_in_two_processes_and_one_alone_is_refused():
    """The one image that is held out cannot be divided: nothing is measured on it."""

    def trained(n):
        made = train_autoencoder(Toy(n), steps=1, verbose=False, device="cpu").model
        return {"hash": fingerprint(made.state_dict())}

    one, two = pair(lambda rank: trained(8))
    assert one["hash"] == two["hash"]
    assert all("A batch of 1 example cannot be divided in 2" in a["error"] for a in pair(lambda rank: trained(1)))


def test_one_process_where_two_were_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv(ASKED, "2")
    with pytest.raises(InputError, match="2 processes were asked for, 1 runs"):
        Learner("digits", TINY)
    with pytest.raises(InputError, match="at least 2"):
        launch(1, ["-c", "pass"])


SCRIPT = f"""
import os, sys, time, torch
torch.set_num_threads(1)
from fastdiffusion.training.callback import Callback
from fastdiffusion.training.learner import Learner
class Tell(Callback):
    def step(self, learner, step):
        time.sleep(0.02)
        if learner.main and step.step == 3:
            print("pids", flush=True)
    def start(self, learner):
        open(os.path.join(sys.argv[1], f"pid{{learner.rank}}"), "w").write(str(os.getpid()))
Learner("digits", {TINY!r}, precision="float32", folder=sys.argv[1], device="cpu", save_every=0.3).fit(
    steps=int(sys.argv[2]), callbacks=[Tell()])
"""
START = "import sys; from fastdiffusion.training.distributed import launch; sys.exit(launch(2, sys.argv[1:]))"


def start(folder, steps):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, str(script), str(folder), str(steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_one_killed_ends_the_other_and_the_checkpoint_is_whole(tmp_path):
    process = start(tmp_path, 100_000)
    assert process.stdout.readline().strip() == "pids", process.stderr.read()
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    os.kill(pids[1], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert Folder(tmp_path).latest()[0] >= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_launcher_leaves_no_workers(tmp_path):
    process = start(tmp_path, 100_000)
    assert process.stdout.readline().strip() == "pids", process.stderr.read()
    process.kill()
    process.communicate(timeout=60)  # until the last process that could write has gone
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid{rank}").read_text()), 0)
    with Folder(tmp_path).lock() as run:
        assert run.latest()[0] >= 1


@pytest.mark.slow
def test_sigterm_reaches_all_processes_once(tmp_path):
    process = start(tmp_path, 100_000)
    assert process.stdout.readline().strip() == "pids", process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "Stopped at step" in err and "Traceback" not in err
    stopped = int(err.split("Stopped at step ")[1].split()[0].replace(",", ""))
    assert Folder(tmp_path).latest()[0] == stopped


def test_an_error_of_the_user_is_one_sentence_of_all_processes(tmp_path):
    command = [sys.executable, "-m", "fastdiffusion", "train", "nowhere-at-all", "--procs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len([line for line in lines if "nowhere-at-all" in line]) == 1, done.stderr
