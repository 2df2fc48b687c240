"""The judge: its counting is exact, it knows right from wrong, and nothing but the right file is taken for it."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiffusion import data
from fastdiffusion.data.emoji.font import find_font
from fastdiffusion.data.emoji.holdout import COLORS
from fastdiffusion.errors import CheckpointError, InputError, MissingExtra
from fastdiffusion.io.checkpoints import save_tensors
from fastdiffusion.metrics import retrieval
from fastdiffusion.metrics.retrieval import chances, r_precision
from fastdiffusion.nets.evaluator import Evaluator, parts
from fastdiffusion.noise import generator
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.tasks.evaluation.evaluator import background_color, best_names, distort, fd_evaluator, on_background
from fastdiffusion.training.callback import Callback
from fastdiffusion.training.trainer import train


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    return evaluator.load()


@pytest.fixture(scope="module")
def emoji():
    try:
        find_font()
    except MissingExtra:
        pytest.skip("no color emoji font is installed")
    pictures = data.load("emoji", alpha=True)
    rows = torch.randperm(len(pictures), generator=generator(3))[:200].tolist()
    return pictures.batch(rows).images, [pictures.captions[i][0] for i in rows]


class Numbers:
    """Pictures and names that are numbers, nearer the nearer they are: what wins can be counted by hand."""

    @staticmethod
    def encode_image(x):
        angle = x.flatten(1).mean(1)
        return torch.stack([angle.cos(), angle.sin()], 1)

    @staticmethod
    def encode_text(names):
        angle = torch.tensor([float(name) for name in names])
        return torch.stack([angle.cos(), angle.sin()], 1)


def test_the_count_is_exact():
    """Against drawing the other names, many times."""
    pool = [f"{0.1 * i:.1f}" for i in range(20)]
    x = torch.tensor([0.52, 0.0, 0.33])[:, None, None, None].expand(3, 3, 2, 2)
    names, among = ["0.5", "0.2", "0.9"], 5  # better ones in the pool: none, two, six or so
    exact = chances(Numbers, x, names, among, pool)
    draw = generator(0)
    for i, name in enumerate(names):
        others = torch.tensor([float(n) for n in pool if n != name])
        fits = (others - x[i].mean()).abs() > abs(float(name) - float(x[i].mean()))
        wins = sum(bool(fits[torch.randperm(len(others), generator=draw)[: among - 1]].all()) for _ in range(4000))
        assert wins / 4000 == pytest.approx(float(exact[i]), abs=0.03)
    assert float(exact[0]) == 1 and 0 < float(exact[1]) < 1
    assert float(chances(Numbers, x[:1], ["1.9"], 20, pool)[0]) == 0


def test_bad_questions_are_told(judge):
    x = torch.zeros(2, 3, 64, 64)
    with pytest.raises(InputError, match="one name per image, got 1 for 2"):
        r_precision(judge, x, ["cat"])
    with pytest.raises(InputError, match="among must be from 2 to the 3 names"):
        r_precision(judge, x, ["cat", "dog"], pool=["cat", "dog", "cow"])


def test_pictures_that_are_no_numbers_win_nothing(judge):
    assert retrieval.r_precision(judge, torch.full((2, 3, 64, 64), torch.nan), judge.names[:2]).value == 0


def test_it_tells_real_pictures_and_no_others(judge, emoji):
    pictures, names = emoji
    real = r_precision(judge, distort(pictures, generator(4), 0.3), names)
    assert real.value > 0.95 and real.low > 0.9
    wrong = r_precision(judge, on_background(pictures), names[1:] + names[:1])
    assert wrong.value < 0.05  # chance is 0.01
    noise = r_precision(judge, torch.randn(200, 3, 64, 64, generator=generator(5)).clamp(-1, 1), names)
    assert noise.value < 0.05


def test_it_tells_names(judge, emoji):
    pictures, names = emoji
    told = best_names(judge, on_background(pictures), k=3)
    assert sum(name in row for name, row in zip(names, told, strict=True)) > 180
    assert best_names(judge, on_background(pictures[:1]), pool=[names[0], "nothing of the kind"]) == [[names[0]]]


def test_its_distance_grows_with_harm(judge, emoji):
    pictures = on_background(emoji[0])
    floor = fd_evaluator(judge, pictures[:100], pictures[100:])
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(pictures, 8), (64, 64))
    assert fd_evaluator(judge, pictures, pictures) < 1e-3 < floor < fd_evaluator(judge, pictures[:100], blurred[100:])


def test_grounds_are_told(emoji):
    for name, rgb in COLORS.items():
        color = (torch.tensor(rgb) / 127.5 - 1).expand(50, 3)
        seen = background_color(
            on_background(emoji[0][:50], color) + 0.05 * torch.randn(50, 3, 64, 64, generator=generator(6))
        )
        assert seen.count(name) >= 45, name


def test_distortion_is_by_seed_and_leaves_the_range(emoji):
    a, b, c = (distort(emoji[0][:8], generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (8, 3, 64, 64) and float(a.min()) >= -1 and float(a.max()) <= 1
    still = distort(emoji[0][:8], generator(1), strength=0.0)
    whites = (still - on_background(emoji[0][:8])).flatten(1).abs().mean(1) < 0.01
    assert 0 < int(whites.sum()) < 8  # unharmed but for the ground, which is white for about half


def test_names_are_heard_by_words_order_and_letters():
    assert set(parts("red cat")) >= {"red", "cat", "red cat", "#<ca", "#at>"}
    assert set(parts("dog bites man")) != set(parts("man bites dog"))
    assert parts("") == ["< >"]


def test_it_can_be_taught_other_things(monkeypatch):
    """Flat colors, told by their names, from nothing."""
    colors = list(COLORS.items())
    pictures = torch.stack([torch.tensor(rgb, dtype=torch.uint8)[:, None, None].expand(3, 64, 64) for _, rgb in colors])
    losses: list[float] = []

    class Watch(Callback):
        def step(self, training, step):
            losses.append(step.loss)

    monkeypatch.setattr(evaluator, "train", lambda task, chosen: train(task, chosen, [Watch()]))
    made = evaluator.train_evaluator(
        *(pictures.repeat(4, 1, 1, 1), [[f"{name} {i}"] for i in range(4) for name, _ in colors]),
        steps=25,
        batch_size=18,
        lr=1e-3,
        seed=1,
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]) and math.isfinite(losses[-1])
    assert made.names[:2] == ("white 0", "black 0")


def test_only_a_judge_is_loaded(judge, tmp_path):
    from importlib.resources import files

    assert (files("fastdiffusion") / "weights" / evaluator.SHIPPED).stat().st_size < 3e6  # type: ignore[attr-defined]
    evaluator.save(judge, tmp_path / "judge.safetensors")
    again, x = evaluator.load(tmp_path / "judge.safetensors"), torch.zeros(1, 3, 64, 64)
    assert torch.equal(again.encode_image(x), judge.encode_image(x)) and not any(
        p.requires_grad for p in again.parameters()
    )
    for config in ({"kind": "clip"}, {"kind": "judge"}, {"kind": "judge", "names": ["a"], "width": 3}):
        save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, config)
        with pytest.raises(CheckpointError, match=r"judge|does not fit"):
            evaluator.load(tmp_path / "other.safetensors")
