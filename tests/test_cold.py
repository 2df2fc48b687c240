"""Diffusion along any process: named ones, any corruption, and what a small training makes of it."""

import pytest
import torch

from fastdiffusion import cli, data, samplers
from fastdiffusion.corruptions import parse
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.checkpoints import save_tensors
from fastdiffusion.io.images import to_tensor
from fastdiffusion.samplers import processes
from fastdiffusion.samplers.processes import PROCESSES, Bridge, process, weaker
from fastdiffusion.tasks.restoration import cold_diffusion

COLD = ["blur 2", "pixelate 4", "fade 0.9", "posterize 3", "jpeg 10", "gray", "blur 1, fade 0.5"]
TINY = {"width": 8, "multiples": [1], "blocks": [1], "attention": []}


def images(n=4):
    return torch.rand(n, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize("name", [*PROCESSES, *COLD])
def test_level_0_is_the_image_and_more_is_further(name):
    torch.manual_seed(0)
    x0, walk = images(), process(name, 16)
    torch.testing.assert_close(walk.degrade(x0, 0.0, torch.zeros_like(x0)), x0, rtol=0, atol=1e-5)
    noise = torch.randn_like(x0)
    away = [float((walk.degrade(x0, t, noise) - x0).square().mean()) for t in (0.1, 0.5, 1.0)]
    assert away[0] <= away[1] <= away[2] and away[2] > 0.01


@pytest.mark.parametrize("name", [*PROCESSES, *COLD])
def test_a_perfect_restorer_gets_the_image_back(name):
    x0, walk = images(), process(name, 16)
    table = samplers.table("euler", torch.linspace(1, 0, 6, dtype=torch.float64))
    start = walk.degrade(x0, 1.0, torch.randn_like(x0))
    out = samplers.final(processes.run(lambda x, s, c=None: x0, start, table, walk))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-3)


def test_weaker_is_a_part_of_what_was_said():
    assert str(weaker(parse("blur 4, pixelate 9"), 0.5)) == "blur 2, pixelate 5"
    assert str(weaker(parse("jpeg 30, gray"), 0.5)) == "jpeg 65, gray"


@pytest.mark.parametrize(("said", "sentence"), [
    ("blur 4, noise 0.1", "has no noise"), ("blur", "needs a strength"), ("blur 1..3", "needs a strength"),
    ("blurr 3", "Did you mean 'blur'"), ("downscale 4", "whole factors"), ("blur 4 | pixelate 8", "the choice"),
])  # fmt: skip
def test_what_is_no_process(said, sentence):
    with pytest.raises(InputError, match=sentence):
        process(said, 8)


# ---- the bridge ---------------------------------------------------------------------------------------------------


def test_the_bridge_has_its_law_at_every_step():
    """Steps of its posterior, with the true x0, end in the law that ``degrade`` draws from."""
    n, s, t = 40_000, 0.8, 0.3
    x0, end = torch.full((n, 1, 1, 1), 0.5), torch.full((n, 1, 1, 1), -0.7)
    bridge = Bridge(end, 0.6)
    for eta in (0.0, 0.5, 1.0):
        x = bridge.degrade(x0, s, torch.randn(n, 1, 1, 1))
        x = bridge.step(x, x0, s, t, torch.randn(n, 1, 1, 1), eta)
        assert float(x.mean()) == pytest.approx(0.7 * 0.5 + 0.3 * -0.7, abs=0.01)
        assert float(x.std()) == pytest.approx(0.6 * (t * (1 - t)) ** 0.5, rel=0.02)


def test_the_bridges_posterior_is_brownian():
    # Between x0 at time 0 and x at time s, a Brownian motion has mean x0 + t/s (x - x0) and variance t (s - t) / s.
    n, s, t = 40_000, 0.9, 0.4
    x0, end = torch.randn(n, 1, 1, 1), torch.randn(n, 1, 1, 1)
    bridge, fresh = Bridge(end, 1.0), torch.randn(n, 1, 1, 1)
    x = bridge.degrade(x0, s, torch.randn(n, 1, 1, 1))
    made = bridge.step(x, x0, s, t, fresh, eta=1.0)
    rest = made - (x0 + t / s * (x - x0))
    torch.testing.assert_close(rest, fresh * (t * (s - t) / s) ** 0.5, rtol=0, atol=1e-4)


def test_a_bridge_begins_at_its_end():
    end = images()
    bridge = Bridge(end)
    torch.testing.assert_close(bridge.degrade(images(), 1.0, torch.randn_like(end)), end)
    assert bridge.step(end, images(), 1.0, 0.5).isfinite().all()


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(cold_diffusion.presets, "unet", lambda name: TINY)


@pytest.mark.parametrize("name", ["pixelate 4", "blur_noise"])
def test_a_small_training_restores(name, tmp_path):
    digits = data.load("digits")
    made = cold_diffusion.train_cold(digits, name, steps=60, batch_size=32, lr=5e-3, folder=tmp_path / "run").model
    x0 = to_tensor(digits.batch(range(64)).images)
    level = 1.0 if name == "pixelate 4" else 0.4
    x = made.process.degrade(x0, level, torch.randn_like(x0))
    error = [float((v - x0).square().mean()) for v in (x, cold_diffusion.restore(made, x, 1, level=level))]
    assert error[1] < 0.7 * error[0]
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    again = cold_diffusion.load(tmp_path / "run" / "cold.safetensors")
    assert torch.equal(
        cold_diffusion.restore(again, x, 3, level=level), cold_diffusion.restore(made, x, 3, level=level)
    )


def test_new_images_need_noise():
    torch.manual_seed(0)
    made = cold_diffusion.Restorer("blur_noise", TINY, (1, 8, 8)).eval()
    one, both = cold_diffusion.sample(made, [4], steps=3), cold_diffusion.sample(made, [3, 4], steps=3)
    torch.testing.assert_close(one[0], both[1], rtol=0, atol=1e-4)
    for name in ("pixelate 4", "heat"):
        with pytest.raises(InputError, match="nothing to start from"):
            cold_diffusion.sample(cold_diffusion.Restorer(name, TINY, (1, 8, 8)), [0])


def test_bad_input(tmp_path, capsys):
    with pytest.raises(InputError, match="level above 0"):
        next(
            cold_diffusion.restore_steps(
                cold_diffusion.Restorer("gray", TINY, (1, 8, 8)), torch.zeros(1, 1, 8, 8), level=0.0
            )
        )
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"kind": "cycle"})
    with pytest.raises(CheckpointError, match="not a file that train-cold wrote"):
        cold_diffusion.load(tmp_path / "x.safetensors")
    assert cli.main(["train-cold", "digits", "--process", "blurr 3", "--folder", str(tmp_path / "r")]) == 2
    assert "Did you mean 'blur'" in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("size", [3, 4, 9, 12, 20])
def test_every_part_of_the_way_is_trained_on(size, monkeypatch):
    seen, forward = [], cold_diffusion.Restorer.forward

    def watched(self, x, level, cond=None):
        seen.append(level)
        return forward(self, x, level, cond)

    monkeypatch.setattr(cold_diffusion.Restorer, "forward", watched)
    cold_diffusion.train_cold(data.load("digits"), "blur 2", steps=1, batch_size=size)
    levels, parts = seen[0], min(size, cold_diffusion.LEVELS)
    assert len(levels) == size and float(levels.max()) > 1 - 1 / parts and float(levels.min()) < 1 / parts


def test_nothing_held_out_is_no_reason_to_lose_the_work(tmp_path):
    cold_diffusion.train_cold(data.load("digits"), "blur 1", steps=2, batch_size=4, holdout=0.0, folder=tmp_path)
    assert (tmp_path / "cold.safetensors").exists() and list((tmp_path / "previews").glob("*.png"))
