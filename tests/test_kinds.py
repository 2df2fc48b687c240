"""Every kind of net goes through one trainer: killed, it resumes bit for bit, and two processes train as one."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from test_distributed import pair

SPEC = importlib.util.spec_from_file_location("kills", Path(__file__).parents[1] / "bench" / "kills.py")
kills = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kills)

SOME = ("diffusion", "autoencoder", "token prior", "clip", "language", "cyclegan")  # bench/kills.py has them all
# Those whose loss is a mean over examples, with nothing that is each process's own: dropout, BatchNorm's statistics,
# a critic's weight by its own gradients.
EXACT = ("token prior", "unclip prior", "caption mean", "language", "translation", "cold")


def flat(made):
    return torch.cat([t.detach().double().flatten() for t in made.state_dict().values() if t.is_floating_point()])


@pytest.mark.parametrize("kind", SOME)
def test_a_run_that_was_killed_ends_as_one_that_nobody_killed(kind, tmp_path):
    """SIGKILL at a random moment; bench/kills.py does it five times to each."""
    equal, times, _ = kills.killed(kind, tmp_path, 1, 10, random.Random(kind))
    assert equal and times <= 1


@pytest.mark.parametrize("kind", ["clip", "token prior", "language", "cold"])
def test_two_processes_train_as_one(kind, tmp_path):
    def work(rank):
        made = kills.KINDS[kind](folder=tmp_path / "two", steps=3)
        return {"hash": kills.weights(made), "weights": flat(made).tolist() if rank == 0 else None}

    one, two = pair(work)
    assert one["hash"] == two["hash"]
    if kind in EXACT:
        alone = flat(kills.KINDS[kind](folder=tmp_path / "one", steps=3))
        away = (torch.tensor(one["weights"], dtype=torch.float64) - alone).abs().max()
        assert float(away) < 1e-4 * max(float(alone.abs().max()), 1)
