"""Scenes of dead leaves: the same for a seed, of all sizes, and with the spectrum of photographs."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiffusion.data.dead_leaves import scene


@pytest.fixture(scope="module")
def scenes():
    return [np.asarray(scene(96, seed)) for seed in range(4)]


def test_a_seed_gives_one_scene_and_another_seed_another(scenes):
    assert all(x.shape == (96, 96, 3) and x.dtype == np.uint8 for x in scenes)
    assert np.array_equal(np.asarray(scene(96, 0)), scenes[0])
    assert np.abs(scenes[0].astype(float) - scenes[1]).mean() > 10


def test_their_power_falls_with_the_frequency_as_that_of_photographs_does(scenes):
    """f^-2 in the mean of photographs (Field 1987); uniform noise would have f^0, a blank image nothing."""
    gray = np.stack([x.mean(2) for x in scenes]) / 255
    assert gray.std((1, 2)).min() > 0.03
    power = (
        np.abs(np.fft.fft2((gray - gray.mean((1, 2), keepdims=True)) * np.hanning(96)[:, None] * np.hanning(96))) ** 2
    )
    radius = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None])
    at = np.geomspace(0.04, 0.4, 8)
    means = [power.mean(0)[(radius > 0.85 * r) & (radius < 1.18 * r)].mean() for r in at]
    slope = np.polyfit(np.log(at), np.log(means), 1)[0]
    assert -3.5 < slope < -1.2
