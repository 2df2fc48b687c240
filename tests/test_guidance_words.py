"""CFG-Zero* against diffusers' own; guidance by noise on the condition, and by regions."""

import pytest
import torch
from test_attention import attentive

import fastdiffusion
from fastdiffusion import guidance, samplers, schedules
from fastdiffusion.denoisers import Denoiser, from_x0
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import Region, cads, cfg, cfg_zero, regional
from fastdiffusion.tasks.generation.regions import WORDS, parse_regions
from fastdiffusion.types import Cond, Run

TABLE = samplers.table("dpmpp_2m", schedules.exponential(4))


def model(kind="unet"):
    """A denoiser of a random net, x, sigma and the condition of two rows."""
    torch.manual_seed(0)
    net, (x, _, cond) = attentive(kind)
    return Denoiser(net, "edm"), x, torch.full((2,), 0.7), cond


def close(a, b, limit=1e-5):
    assert float((a - b).abs().max() / b.abs().max()) <= limit


class Counted:
    def __init__(self, denoise):
        self.denoise, self.rows = denoise, 0

    def __call__(self, x, sigma, cond=None):
        self.rows += len(x)
        return self.denoise(x, sigma, cond)


# ---- CFG-Zero* --------------------------------------------------------------------------------------------------


def test_cfg_zero_is_diffusers_own():
    guiders = pytest.importorskip("diffusers.guiders.classifier_free_zero_star_guidance")
    x, sigma = torch.randn(4, 3, 8, 8), torch.full((4,), 0.8)
    estimates = torch.randn(2, 4, 3, 8, 8)

    def denoise(x, sigma, cond=None):
        return estimates[(cond.label < 0).long(), torch.arange(len(x)) % 4]

    got = cfg_zero(denoise, 3.0, zero=0)(x, sigma, Cond(label=torch.arange(4)))
    c, u = (from_x0("flow", e, x, sigma) for e in estimates)
    alpha = guiders.cfg_zero_star_scale(c.flatten(1), u.flatten(1)).view(-1, 1, 1, 1)
    close(from_x0("flow", got, x, sigma), alpha * u + 3.0 * (c - alpha * u), 1e-5)


@pytest.mark.parametrize(("steps", "rows"), [(24, 4), (25, 0), (50, 0)])
def test_cfg_zero_waits_for_one_step_in_twenty_five(steps, rows):
    counted = Counted(lambda x, sigma, cond=None: 0.5 * x)
    run = Run(tuple(float(s) for s in range(steps, 0, -1)), steps)
    run.index, run.sigma = 0, float(steps)
    guidance.start(cfg_zero(counted, 2.0), run)(torch.randn(2, 3), torch.ones(2), Cond(label=torch.tensor([0, 1])))
    assert counted.rows == rows


def test_cfg_zero_waits_without_asking_the_net():
    counted = Counted(lambda x, sigma, cond=None: 0.5 * x)
    run = Run((4.0, 1.0), 2)
    guided = guidance.start(cfg_zero(counted, 2.0, zero=1), run)
    x, cond = torch.randn(2, 3), Cond(label=torch.tensor([0, 1]))
    for i, level in enumerate(run.sigmas):
        run.index, run.sigma = i, level
        x0 = guided(x, torch.full((2,), run.sigma), cond)
        if run.index == 0:  # at velocity 0 a flow's state x / (1 + sigma) stays where it is
            close(x0 + (x - x0) * 1.0 / run.sigma, x / (1 + run.sigma) * (1 + 1.0))
            assert counted.rows == 0
    assert counted.rows == 4


# ---- noise on the condition -------------------------------------------------------------------------------------


@torch.no_grad()
def test_cads_anneals_the_condition():
    seen = []

    def denoise(x, sigma, cond=None):
        seen.append(cond)
        return 0.9 * x + cond.emb.mean((1, 2))[:, None] + cond.pooled.mean(1)[:, None]

    cond, x = Cond(emb=torch.randn(3, 5, 12), pooled=torch.randn(3, 7) + 2), torch.randn(3, 4)
    assert torch.equal(cads(denoise, 0.0)(x, torch.full((3,), 80.0), cond), denoise(x, torch.ones(3), cond))
    run = Run((80.0, 2.0, 0.4), 3)
    guided = guidance.start(cads(denoise, 0.5, sigma_data=1.0), run)
    seen.clear()
    for i, level in enumerate(run.sigmas):
        run.index, run.sigma = i, level
        guided(x, torch.full((3,), run.sigma), cond)
    far = [float((c.emb - cond.emb).norm() / cond.emb.norm()) for c in seen]
    assert far[0] > 1 > far[1] > far[2] == 0  # at first nothing is left of it, at last all
    for c in seen:
        for name in ("emb", "pooled"):
            own, new = cond.parts()[name], c.parts()[name]
            axes = tuple(range(1, own.ndim))
            torch.testing.assert_close(new.mean(axes), own.mean(axes), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(new.std(axes), own.std(axes), atol=1e-5, rtol=1e-4)
    assert cads(denoise)(x, torch.ones(3), cond[:1]).shape == x.shape  # one row for all


def test_cads_goes_down_from_start_to_end():
    with pytest.raises(InputError, match=r"got 0\.2 and 0\.6\. Exchange them"):
        cads(lambda x, sigma, cond=None: x, start=0.2, end=0.6)(torch.zeros(1, 2), torch.ones(1))


@torch.no_grad()
def test_cads_of_an_image_does_not_depend_on_its_batch():
    denoise, x, _, cond = model()
    guided = cads(denoise, 0.7)

    def run(rows):
        return samplers.final(samplers.run(guided, 80 * x[rows], TABLE, cond[rows], rows))

    both = run([0, 1])
    close(both[1:], run([1]), 1e-4)
    assert torch.equal(both, run([0, 1]))
    assert not torch.allclose(both, samplers.final(samplers.run(denoise, 80 * x, TABLE, cond, [0, 1])))


# ---- regions ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_region_that_covers_all_is_its_denoiser():
    denoise, x, sigma, cond = model()
    never = Counted(denoise)
    one = regional(never, [Region(cfg(denoise, 3.0), (0, 0, 8, 8))], (8, 8))
    assert torch.equal(one(x, sigma, cond), cfg(denoise, 3.0)(x, sigma, cond)) and never.rows == 0


def test_each_region_is_drawn_by_its_own_and_later_ones_lie_over():
    windows = []

    def constant(value):
        def denoise(x, sigma, cond=None):
            windows.append(tuple(x.shape[-2:]))
            return torch.full_like(x, value)

        return denoise

    parts = [Region(constant(1.0), (0, 0, 6, 4)), Region(constant(2.0), (4, 2, 8, 8))]
    x0 = regional(constant(0.0), parts, (6, 4))(torch.zeros(1, 3, 8, 8), torch.ones(1))
    wanted = torch.zeros(8, 8)
    wanted[0:4, 0:6], wanted[2:8, 4:8] = 1, 2
    assert torch.equal(x0, wanted.expand(1, 3, 8, 8))
    assert windows == [(8, 8), (6, 6), (6, 4)]  # the rest, and each at least 6 high and 4 wide


def test_regions_as_they_are_written():
    assert parse_regions("left: a (red:1.2) tree; Top-Right : a\\; b;") == [
        (WORDS["left"], "a (red:1.2) tree"), (WORDS["top right"], "a; b")
    ]  # fmt: skip
    ((place, _),) = parse_regions("0, .5, 0.5,1: a pond")
    assert place.box(64, 128, 2) == (0, 32, 64, 64)
    for wrong, message in {
        "left a tree": "a place and what is there", "lift: a tree": "Did you mean 'left'", "0,0,2,1: a": "from 0 to 1",
        "": "from 1 to 16", "left:": "a place and",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            parse_regions(wrong)


def test_regions_of_the_model_that_ships():
    whole = fastdiffusion.sample("a red heart", n=2, steps=4, seed=3)
    same = fastdiffusion.sample(regions="all: a red heart", n=2, steps=4, seed=3)
    assert torch.equal(whole.images, same.images)
    halves = fastdiffusion.sample(regions="left: red heart; right: blue heart", n=1, steps=4, seed=3)
    left, right = halves.images[0, :, 24:40, 12:28], halves.images[0, :, 24:40, 36:52]
    assert left[0].mean() > left[2].mean() + 0.3 and right[2].mean() > right[0].mean() + 0.3
    with pytest.raises(InputError, match="Regions are guided by scale alone"):
        fastdiffusion.sample(regions="left: a", n=1, steps=4, guidance="cfg scale=2")
