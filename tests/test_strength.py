"""One strength for the whole library: the noise level that image to image starts from, whoever asks."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fastdiffusion import schedules
from fastdiffusion.errors import InputError
from fastdiffusion.io.images import to_tensor
from fastdiffusion.models import Model
from fastdiffusion.samplers import strength_table
from fastdiffusion.samplers.image_to_image import below
from fastdiffusion.tasks import variations
from fastdiffusion.tasks.generation.sample import sample
from fastdiffusion.tasks.translation.training_free import ddib, sdedit


class Recorded:
    """A model that estimates grey for everything, and the noise levels that it was evaluated at."""

    def __init__(self) -> None:
        self.levels: list[float] = []
        self.model = Model(self.denoise, (1, 8, 8), sigma_data=0.7, sigma_max=40.0)

    def denoise(self, x, sigma, cond=None):
        self.levels.append(float(sigma[0]))
        return torch.zeros_like(x)


IMAGE = Image.linear_gradient("L").resize((8, 8))


def by_sample(recorded: Recorded, strength: float) -> torch.Tensor:
    return sample(recorded.model, n=1, steps=5, image=IMAGE, strength=strength).images


def by_sdedit(recorded: Recorded, strength: float) -> torch.Tensor:
    return sdedit(recorded.model, to_tensor(IMAGE)[None], strength, steps=5)


def by_ddib(recorded: Recorded, strength: float) -> torch.Tensor:
    return ddib(recorded.model, recorded.model, to_tensor(IMAGE)[None], steps=5, strength=strength)


CALLERS = [by_sample, by_sdedit, by_ddib]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("strength", "sigma"), [(0.1, 0.7 / 9), (0.5, 0.7), (0.9, 6.3), (0.999, 40.0), (1.0, 40.0)])
def test_all_start_at_the_same_noise_level(caller, strength, sigma):
    recorded = Recorded()
    caller(recorded, strength)
    assert max(recorded.levels) == pytest.approx(sigma)


@pytest.mark.parametrize("caller", CALLERS)
def test_strength_0_returns_the_input(caller):
    recorded = Recorded()
    assert torch.equal(caller(recorded, 0.0), to_tensor(IMAGE)[None]) and not recorded.levels


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_is_from_0_to_1(caller, strength):
    with pytest.raises(InputError, match="strength must be from 0 to 1"):
        caller(Recorded(), strength)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_variations_pass_it_on(strength, tmp_path, monkeypatch):
    IMAGE.save(tmp_path / "x.png")
    passed: dict = {}
    monkeypatch.setattr(variations.sample, "sample", lambda model, prompts, **options: passed.update(options))
    variations.variations(tmp_path / "x.png", n=2, strength=strength)
    assert passed["strength"] == strength and passed["n"] == 2
    assert passed["image"] == (None if strength == 1 else tmp_path / "x.png")


def test_strength_1_starts_from_noise_alone():
    """Which image it was makes no difference: the run is the one without an image."""
    model = Model(lambda x, sigma, cond=None: x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2), (1, 8, 8), sigma_data=1.0)
    with_image = sample(model, n=2, steps=6, image=IMAGE, strength=1.0)
    assert torch.equal(with_image.images, sample(model, n=2, steps=6).images)


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES.keys() - schedules.AYS.keys()))  # a list is cut instead
@pytest.mark.parametrize("start", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_shorter_way_is_the_schedule_from_there(name, start, steps):
    def schedule(n):
        return schedules.schedule(name, n, sigma_min=0.02, sigma_max=14.0)

    shorter = below(start, steps, schedule)
    expected = schedules.schedule(name, steps, sigma_min=0.02, sigma_max=start)
    torch.testing.assert_close(shorter, expected, rtol=1e-3, atol=0)
    assert shorter[0] == start


def test_strengths_below_the_schedule_and_above_it():
    def schedule(n):
        return schedules.karras(n, 0.02, 14.0)

    low = below(0.01, 4, schedule)
    assert float(schedules.check_sigmas(low)[0]) == pytest.approx(0.01) and len(low) == 5
    assert torch.equal(below(20.0, 4, schedule), schedule(4))
    assert strength_table(0.0, 4, schedule, 0.5, 14.0) is None
