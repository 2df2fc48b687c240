"""Averages against their definition, sums written out; post-hoc against averages that were kept all along."""

import math

import pytest
import torch
from torch import nn

from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.checkpoints import load_tensors, save_tensors
from fastdiffusion.training.ema import LONGEST, Ema, gamma_of, length_of, mix, posthoc, snapshots, warmup_decay


def walk(steps, n=50):
    """A run of parameters: drift and noise, as in training."""
    theta = torch.randn(n)
    for _ in range(steps):
        theta = theta + 0.002 * (1 - theta) + 0.02 * torch.randn(n)
        yield theta


def follow(ema, path):
    for theta in path:
        ema.params["0"].copy_(theta)
        ema.update()
        yield ema


def run(lengths, steps, **options):
    ema = Ema([torch.zeros(50)], lengths, **options)
    for _ in follow(ema, walk(steps)):
        pass
    return ema


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94), (LONGEST, 0.0)])
def test_lengths_and_exponents_are_the_papers(length, gamma):
    """sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94 (Karras et al. 2024, sec. 3.1)."""
    assert gamma_of(length) == pytest.approx(gamma, abs=0.005)
    assert length_of(gamma_of(length)) == pytest.approx(length, abs=1e-9)


def test_a_length_is_the_standard_deviation_of_its_profile():
    tau = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1e6
    weight = tau ** gamma_of(0.07)
    weight /= weight.sum()
    mean = (weight * tau).sum()
    assert float((weight * (tau - mean) ** 2).sum().sqrt()) == pytest.approx(0.07, abs=1e-6)


@pytest.mark.parametrize("length", [0.03, 0.1, LONGEST])
def test_an_average_is_the_profile_summed_over_all_steps(length):
    """Each step weighs the integral of tau^gamma over it: (k^(gamma+1) - (k-1)^(gamma+1)) / t^(gamma+1)."""
    path = [theta.double() for theta in walk(100)]
    ema = Ema([torch.zeros(50)], [length])
    for _ in follow(ema, path):
        pass
    k = (torch.arange(101, dtype=torch.float64) / 100) ** (gamma_of(length) + 1)
    exact = (k.diff()[:, None] * torch.stack(path)).sum(0)
    assert torch.allclose(ema.averages[length][0].double(), exact, atol=1e-5)
    if length == LONGEST:
        assert torch.allclose(exact, torch.stack(path).mean(0)), "gamma 0 is the plain mean"


def test_the_first_update_is_the_parameters_themselves():
    ema = run([0.05], 1, decays=[0.999])
    assert all(torch.equal(average[0], ema.params["0"]) for average in ema.averages.values())


def test_updating_every_few_steps_is_nearly_the_same():
    every, some = Ema([torch.zeros(50)]), Ema([torch.zeros(50)])
    for _ in follow(every, walk(1000)):
        if every.step % 4 == 0:
            some.params["0"].copy_(every.params["0"])
            some.update(every.step)
    difference = (some.averages[0.05][0] - every.averages[0.05][0]).norm() / every.averages[0.05][0].norm()
    assert difference < 5e-3
    with pytest.raises(InputError, match="must rise, got 1000 after 1000"):
        some.update(1000)


def test_warm_up_grows_to_the_decay_and_averages_plainly():
    assert warmup_decay(0) == 0
    assert warmup_decay(7) == pytest.approx(0.75)
    assert warmup_decay(10**9, 0.99) == 0.99
    path = list(walk(50))
    expected = path[0]
    for step, theta in enumerate(path[1:], 2):
        expected = torch.lerp(expected, theta, 1 - min(0.9, 1 - (1 + step) ** (-2 / 3)))
    ema = Ema([torch.zeros(50)], [], [0.9])
    for _ in follow(ema, path):
        pass
    assert torch.allclose(ema.averages[0.9][0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"lengths": [0.3]}, {"lengths": [0]}, {"lengths": [-1]}, {"decays": [1.0]}, {"decays": [0.05]}]
)
def test_lengths_and_decays_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=r"Try 0\.(05|9999)"):
        Ema([torch.zeros(2)], **wrong)


def test_resumed_is_bit_equal(tmp_path):
    path = list(walk(200))
    whole, first, second = (Ema([torch.zeros(50)], decays=[0.999]) for _ in range(3))
    for _ in follow(whole, path):
        pass
    for _ in follow(first, path[:77]):
        pass
    save_tensors(tmp_path / "x.safetensors", first.state_dict(), {})
    second.load_state_dict(load_tensors(tmp_path / "x.safetensors")[1])
    assert second.step == 77
    for _ in follow(second, path[77:]):
        pass
    assert all(torch.equal(second.state_dict()[key], value) for key, value in whole.state_dict().items())


def test_a_state_of_another_net_or_other_lengths_is_refused():
    state = Ema([torch.zeros(50)]).state_dict()
    for other in (Ema([torch.zeros(50)], [0.05]), Ema([torch.zeros(51)]), Ema(nn.Linear(50, 1))):
        with pytest.raises(CheckpointError, match="other lengths or another net"):
            other.load_state_dict(state)


def test_a_module_its_averages_by_name_and_in_place_for_a_while():
    net = nn.Linear(3, 2).to(torch.bfloat16)
    ema = Ema(net, [0.1])
    ema.update()
    with torch.no_grad():
        net.weight += 1
    ema.update()
    assert set(ema.weights(0.1)) == {"weight", "bias"}
    assert ema.weights(0.1)["weight"].dtype == torch.float32, "kept in float32 whatever the parameters are"
    now = net.weight.clone()
    with ema.applied(0.1):
        assert torch.equal(net.weight, ema.weights(0.1)["weight"].bfloat16())
        assert not torch.equal(net.weight, now)
    assert torch.equal(net.weight, now)
    assert net.weight.requires_grad
    with pytest.raises(InputError, match=r"No EMA of length 0\.2\. Known: 0\.1"):
        ema.weights(0.2)


# ---- post-hoc ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "every"), [(500, 25), (2000, 100), (2000, 50)])
def test_posthoc_equals_the_average_that_was_kept(steps, every):
    """The bar is 1e-3, relative, between the stored lengths and around them."""
    targets = [0.04, 0.06, 0.075, 0.09, 0.12]
    ema, stored = Ema([torch.zeros(50)], [0.05, 0.10, *targets]), []
    for _ in follow(ema, walk(steps)):
        if ema.step % every == 0:
            state = {k: v.clone() for k, v in ema.state_dict().items() if k.split(":")[0] in ("step", "0.05", "0.1")}
            stored += snapshots(state)
    assert len(stored) == 2 * steps // every
    for target in targets:
        found, kept = posthoc(stored, target)["0"], ema.averages[target][0]
        assert float((found - kept).norm() / kept.norm()) < 1e-3, target


def test_posthoc_at_a_stored_length_and_moment_is_that_average():
    points = [(step, length) for step in range(100, 1001, 100) for length in (0.05, 0.1)]
    for step, length in [(1000, 0.1), (1000, 0.05), (500, 0.1)]:
        factors = mix(points, length, step)
        expected = [float(point == (step, length)) for point in points]
        assert factors == pytest.approx(expected, abs=1e-6)


def test_posthoc_factors_sum_to_about_one():
    points = [(step, length) for step in range(64, 1025, 64) for length in (0.05, 0.1)]
    assert math.fsum(mix(points, 0.07)) == pytest.approx(1, abs=1e-3)


def test_posthoc_needs_averages_and_snapshots_leave_plain_ones_out():
    with pytest.raises(InputError, match="needs stored averages"):
        posthoc([], 0.05)
    ema = run([0.05], 3, decays=[0.99])
    assert [(s.step, s.length, list(s.weights)) for s in snapshots(ema.state_dict())] == [(3, 0.05, ["0"])]
