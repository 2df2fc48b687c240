"""Augmentation: zeros mean untouched, every transformation is the one that it says, plans divide exactly."""

from __future__ import annotations

import numpy as np
import pictures
import pytest
import torch

from fastdiffusion.data import augment
from fastdiffusion.errors import InputError
from fastdiffusion.io import images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PHOTOS = images.to_tensor(np.stack([images.to_array(pictures.photo(24, 16, seed=i)) for i in range(64)]))


def test_lengths():
    assert augment.length() == 9 and augment.length(augment.EDM + augment.COLOR) == 14 + 0
    assert augment.length(("mirror", "crop")) == 0 and augment.length(()) == 0
    with pytest.raises(InputError, match="Did you mean 'rotate'"):
        augment.length(("rotat",))
    with pytest.raises(InputError, match="from 0 to 1"):
        augment.draw(1, generator(), p=2)


@pytest.mark.parametrize("names", [*((name,) for name in augment.AUGMENTS), augment.EDM + augment.COLOR])
def test_zeros_mean_untouched(names):
    """What the network is told is zero exactly when the picture is bit for bit the given one."""
    told = augment.length(names)
    x, vector = augment.augment(PHOTOS, generator(), names, p=0.5)
    assert x.shape == PHOTOS.shape and vector.shape == (64, told) and x.abs().max() <= 1
    same = (x == PHOTOS).flatten(1).all(1)
    if told:
        assert torch.equal((vector == 0).all(1), same) and (0 < same.sum() < 64 or len(names) > 1)
    off, silent = augment.augment(PHOTOS, generator(), tuple(n for n in names if n not in augment._ALWAYS), p=0)
    assert torch.equal(off, PHOTOS) and not silent.any()


def test_plans_are_divided_without_a_difference():
    whole, vector = augment.augment(PHOTOS, generator(3), augment.EDM + augment.COLOR, p=0.5)
    plan = augment.draw(64, generator(3), augment.EDM + augment.COLOR, p=0.5)
    halves = [augment.apply(PHOTOS[rows], plan[rows]) for rows in (slice(0, 64, 2), slice(1, 64, 2))]
    torch.testing.assert_close(torch.stack(halves, 1).flatten(0, 1), whole, rtol=0, atol=1e-6)
    assert torch.equal(plan.vector, vector)


def performed(
    name: str, u: float, z: float, x: torch.Tensor, v: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One transformation with chosen random numbers."""
    us, zs = torch.full((len(x), 2), u), torch.full((len(x), 2), z)
    if v is not None:
        us[:, 1] = zs[:, 1] = v
    matrix, vector = augment.AUGMENTS[name](us, zs)
    eyes = torch.eye(3).repeat(len(x), 1, 1), torch.eye(4).repeat(len(x), 1, 1)
    space, color = (matrix, eyes[1]) if matrix.shape[-1] == 3 else (eyes[0], matrix)
    return augment.apply(x, augment.Plan(space, color, vector)), vector[0]


def test_flips_are_exact():
    assert torch.equal(performed("mirror", 0.1, 0, PHOTOS)[0], PHOTOS.flip(3))
    assert torch.equal(performed("mirror", 0.9, 0, PHOTOS)[0], PHOTOS)


def test_quarter_turns_permute_the_pixels_of_squares_and_may_follow_a_mirror():
    square = PHOTOS[..., :16, :16]
    for k in range(4):
        turned, vector = performed("turn", k / 4 + 0.1, 0, square)
        assert torch.equal(turned, torch.rot90(square, k, (2, 3))) and vector.numel() == 0
    plan = augment.draw(64, torch.Generator().manual_seed(0), ("mirror", "turn"), 0.0)
    all_ways = torch.stack([torch.rot90(x, k, (1, 2)) for x in (square[0], square[0].flip(2)) for k in range(4)])
    found = augment.apply(square[:1].expand(64, -1, -1, -1), plan)
    same = (found[:, None] == all_ways).flatten(2).all(2)
    assert (same.sum(1) == 1).all() and same.any(0).all()
    assert torch.equal(performed("flip_x", 0.1, 0, PHOTOS)[0], PHOTOS.flip(3))
    assert torch.equal(performed("flip_y", 0.1, 0, PHOTOS)[0], PHOTOS.flip(2))


def test_quarter_turn():
    square = PHOTOS[..., :16]
    x, vector = performed("rotate", 0.75, 0, square)  # a = 90 degrees, clockwise as seen
    torch.testing.assert_close(x, torch.rot90(square, -1, (2, 3)), rtol=0, atol=1e-3)
    torch.testing.assert_close(vector, torch.tensor([-1.0, 1.0]))


def test_shift_by_whole_pixels():
    x, vector = performed("shift", 0, 1.0, PHOTOS, v=-0.5)  # 1/8 of 16 pixels: 2 to the right, 1 up
    torch.testing.assert_close(x[:, :, :-1, 2:], PHOTOS[:, :, 1:, :-2], rtol=0, atol=1e-3)
    torch.testing.assert_close(x[:, :, :-1, :2], PHOTOS[:, :, 1:, :2].flip(3), rtol=0, atol=1e-3)  # goes on mirrored
    assert vector.tolist() == [1.0, -0.5]


def test_scale_doubles():
    blob = torch.zeros(1, 1, 32, 48)
    blob[..., 12:20, 20:28] = 1
    x, vector = performed("scale", 0, 5.0, blob)
    assert x.sum() == pytest.approx(4 * 64, rel=0.05) and vector.tolist() == [5.0]
    torch.testing.assert_close(x, x.flip(2, 3), rtol=0, atol=1e-4)  # about the middle
    wide, _ = performed("stretch", 0.5, 5.0, blob)  # a = 0: twice as wide, half as high
    middle = wide[0, 0, 8:24]  # its mirror images lie farther out
    assert middle.sum() == pytest.approx(64, rel=0.1)
    assert (middle[8] > 0.5).sum() == 16 and (middle[:, 24] > 0.5).sum() == 4


def test_crop_is_a_window():
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    for u in (0.0, 0.3, 1.0):
        x, _ = performed("crop", u, 0.7, ramp)
        side = 0.85 + 0.15 * float(torch.tensor(0.7 * 0.5**0.5).erf())
        middle = (1 - side) * (2 * u - 1)
        torch.testing.assert_close(x[0, 0, 5, 8:24], side * ramp[0, 0, 5, 8:24] + middle * 32 / 31, rtol=0, atol=5e-3)


def test_colors():
    x = PHOTOS * 0.3
    torch.testing.assert_close(performed("brightness", 0, 1.0, x)[0], x + 0.2)
    torch.testing.assert_close(performed("contrast", 0, 1.0, x)[0], x * 2**0.5)
    third, _ = performed("hue", 5 / 6, 0, x)  # a third of a turn exchanges the colors
    torch.testing.assert_close(third, x.roll(1, 1), rtol=0, atol=1e-5)
    gray = x.mean(1, keepdim=True)
    torch.testing.assert_close(performed("saturation", 0, 1.0, x)[0], gray + 2 * (x - gray), rtol=0, atol=1e-5)
    for name in ("hue", "saturation"):
        torch.testing.assert_close(performed(name, 0.9, 1.0, gray)[0], gray, rtol=0, atol=1e-6)
    torch.testing.assert_close(performed("brightness", 0, 1.0, gray)[0], gray + 0.2)
    clear = torch.cat([x, torch.ones_like(gray)], 1)
    torch.testing.assert_close(performed("brightness", 0, -1.0, clear)[0][:, 3:], torch.ones_like(gray))


def test_last_transformation_is_done_last():
    """Shift then turn is not turn then shift: the plan's order is the order of the names."""
    square = PHOTOS[:1, :, :, :16]
    shift, turn = (
        augment.AUGMENTS[n](torch.full((1, 2), 0.75), torch.tensor([[1.0, 0.0]]))[0] for n in ("shift", "rotate")
    )
    both = augment.apply(square, augment.Plan(shift @ turn, torch.eye(4)[None], torch.zeros(1, 0)))
    once = performed("shift", 0, 1.0, square, v=0.0)[0]
    torch.testing.assert_close(both, performed("rotate", 0.75, 0, once)[0], rtol=0, atol=2e-2)


def test_rates():
    plan = augment.draw(20_000, generator(), p=0.12)
    rate = (plan.vector != 0).float().mean(0)
    assert rate[0] == pytest.approx(0.5, abs=0.02) and rate[1] == pytest.approx(0.06, abs=0.01)
    assert rate[2:].tolist() == pytest.approx([0.12] * 7, abs=0.01)
