"""Training: the mathematics of a step, equivalences between ways to run it, and that it learns."""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from types import ModuleType

import numpy as np
import pytest
import torch

from fastdiffusion import losses, models
from fastdiffusion.data import Batch, Dataset, Images, digits
from fastdiffusion.errors import CheckpointError, FastdiffusionError, InputError, MissingExtra
from fastdiffusion.io.checkpoints import load_tensors
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.models import load
from fastdiffusion.noise import generator
from fastdiffusion.schedules import SIGMA_DISTRIBUTIONS
from fastdiffusion.training import lr_finder, optimizers, trainer
from fastdiffusion.training.batches import Batches
from fastdiffusion.training.budget import State
from fastdiffusion.training.callbacks import Snapshots
from fastdiffusion.training.distributed import like
from fastdiffusion.training.ema import posthoc, snapshots
from fastdiffusion.training.learner import Learner
from fastdiffusion.training.options import TrainingOptions
from fastdiffusion.training.task import Part, Task

TINY = {"name": "dit", "patch": 4, "width": 32, "depth": 1, "head": 16}


def learner(data=None, **keywords):
    keywords = {"net": TINY, "precision": "float32", "batch_size": 32, "verbose": False, "device": "cpu"} | keywords
    return Learner(data or digits(), **keywords)


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.objective.parameters()])


class Toy(Dataset):
    """Float pictures made from a seed, of one or several sizes; some may be NaN."""

    name, shape, classes = "toy", (1, 8, 8), ()

    def __init__(self, n=64, scale=1.0, sizes=((8, 8),), broken=(), seed=0):
        g = torch.Generator().manual_seed(seed)
        self.n, self.broken = n, set(broken)
        self.sizes = [sizes[int(u * len(sizes))] for u in torch.rand(n, generator=g)]
        self.rows = [scale * torch.randn(1, *size, generator=g) * 0.5 for size in self.sizes]
        self.fingerprint = f"toy-{n}-{scale}-{sizes}-{broken}-{seed}"

    def __len__(self):
        return self.n

    def batch(self, indices, generator=None):
        rows = [self.rows[i] * (math.nan if i in self.broken else 1) for i in indices]
        labels = torch.full((len(rows),), -1)
        return Batch(torch.stack(rows), labels, [""] * len(rows), [f"picture-{i}" for i in indices])

    @property
    def groups(self):
        return [[i for i, s in enumerate(self.sizes) if s == size] for size in sorted(set(self.sizes))]


# ---- the stream of examples -------------------------------------------------------------------------------------


def test_an_epoch_shows_every_picture_once():
    stream = Batches(Toy(96), 32)
    seen = [i for step in range(3, 6) for i in stream.order(step)]
    assert sorted(seen) == list(range(96))
    assert seen != [i for step in range(3) for i in stream.order(step)]  # another order in another epoch


def test_sizes_are_never_mixed_and_equally_often_seen():
    data = Toy(100, sizes=((8, 8), (8, 8), (8, 8), (8, 8), (8, 12)))
    stream, counts = Batches(data, 16), torch.zeros(100)
    for step in range(stream.per_epoch * 400):
        rows = stream.order(step)
        assert len({data.sizes[i] for i in rows}) == 1
        counts[rows] += 1
    small, large = (counts[[s == size for s in data.sizes]].mean() for size in ((8, 12), (8, 8)))
    assert abs(small / large - 1) < 0.06


def test_steps_are_drawn_in_any_order_the_same():
    one, two = Batches(digits(), 16, cond_dropout=0.5), Batches(digits(), 16, cond_dropout=0.5)
    late = one.draw(200)
    for step in (0, 113, 200):
        again = two.draw(step)
    assert torch.equal(late.noise, again.noise)
    assert torch.equal(late.x0, again.x0)
    assert torch.equal(late.sigma, again.sigma)
    assert torch.equal(late.cond.label, again.cond.label)


def test_two_processes_draw_what_one_does():
    keywords = {"cond_dropout": 0.5, "self_condition": True, "augments": ("flip_x", "rotate")}
    whole = Batches(digits(), 16, **keywords).draw(7)
    halves = [Batches(digits(), 16, **keywords, rank=r, world=2).draw(7) for r in range(2)]
    for name in ("x0", "sigma", "noise", "self_condition_mask"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(h, name) for h in halves]))
    assert torch.equal(whole.cond.augment, torch.cat([h.cond.augment for h in halves]))


def test_two_processes_are_told_what_one_is():
    """Captions, of which every picture has several."""
    captions = [[f"{i} {word}" for word in "abcd"] for i in range(64)]
    data = Images("told", [np.zeros((64, 1, 8, 8), np.uint8)], captions=captions)

    def tokens(texts):
        return torch.tensor([[int(text.split()[0]), ord(text[-1])] for text in texts])

    whole = Batches(data, 16, tokens=tokens).draw(7)
    halves = [Batches(data, 16, tokens=tokens, rank=r, world=2).draw(7) for r in range(2)]
    assert torch.equal(whole.cond.tokens, torch.cat([h.cond.tokens for h in halves]))
    assert len(whole.cond.tokens[:, 1].unique()) > 1


def test_noise_levels_are_one_from_each_quantile():
    sigma = Batches(Toy(64), 32).draw(0).sigma.sort().values
    edges = SIGMA_DISTRIBUTIONS["lognormal"](torch.arange(1, 32) / 32)
    assert torch.equal(torch.bucketize(sigma, edges), torch.arange(32))


# ---- a step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", ["edm", "v", "noise", "x0", "flow"])
def test_every_parameterization_and_option_trains(parameterization):
    learn = learner(
        parameterization=parameterization, self_condition=True, uncertainty=True, dropout=0.1,
        augment=("flip_x", "shift"), grad_accumulation=2,
    )  # fmt: skip
    before = weights(learn)
    steps = list(learn.steps(3))
    assert all(math.isfinite(s.loss) for s in steps)
    assert not torch.equal(before, weights(learn))
    assert learn.model.denoise(torch.randn(2, 1, 8, 8), torch.ones(2)).isfinite().all()


def test_the_loss_that_is_shown_has_no_part_of_the_learned_weighting():
    """Else it has no scale, may be negative, and neither checkpoints nor runs can be compared by it."""
    learn, plain = learner(uncertainty=True), learner(uncertainty=False)
    next(plain.steps(1))  # some weights begin as zeros
    (batch,) = learn.draw(0)
    learn.objective.uncertainty.linear.bias.data.fill_(-3.0)
    learn.objective.denoiser.load_state_dict(plain.objective.denoiser.state_dict())
    plain.objective.zero_grad()
    shown, whole = learn.objective(batch).mean(), plain.objective(batch).mean()
    assert float(shown.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    shown.backward()
    whole.backward()
    pairs = zip(learn.objective.denoiser.parameters(), plain.objective.denoiser.parameters(), strict=True)
    assert all(
        torch.allclose(a.grad, math.exp(3) * b.grad, rtol=1e-4, atol=1e-5) for a, b in pairs if b.grad is not None
    )


def test_what_is_left_open_is_decided_by_what_is_trained(tmp_path):
    assert (learner().config.parameterization, learner().config.uncertainty) == ("flow", True)
    assert not learner(loss_weighting="min_snr").config.uncertainty, "it would even out what was chosen"
    assert learner(loss_weighting="min_snr", uncertainty=True).config.uncertainty
    restorer = learner(restore="noise 0.1").config
    assert (restorer.parameterization, restorer.uncertainty) == ("edm", False)
    models.save(learner(parameterization="v").model, tmp_path / "v.safetensors")
    assert learner(init_from=tmp_path / "v.safetensors").config.parameterization == "v"


def test_what_is_left_open_of_a_run_is_kept_and_by_fresh_decided_anew(tmp_path):
    def kept(fresh, **options):
        run = learner(folder=tmp_path / "run", **options).fit(steps=2, fresh=fresh)
        stored, _ = load_tensors(max((tmp_path / "run").glob("step-*")))
        assert (
            stored["config"]["run"]["parameterization"] == run.config.parameterization == run.options.parameterization
        )
        return run.config.parameterization, run.config.uncertainty

    chosen = {"parameterization": "v", "loss_weighting": "min_snr"}
    assert kept(False, **chosen) == ("v", False)
    assert kept(False, loss_weighting="min_snr") == ("v", False), "the run goes on"
    assert kept(True) == ("flow", True)
    assert kept(True, loss_weighting="min_snr") == ("flow", False), "it would even out what was chosen"
    assert kept(True, restore="noise 0.1") == ("edm", False)
    models.save(learner(parameterization="noise").model, tmp_path / "noise.safetensors")
    assert kept(True, init_from=tmp_path / "noise.safetensors")[0] == "noise"


COUNTS = {  # what a squared error of x0 counts at noise level s, of data of standard deviation d
    "edm": lambda s, d: (s**2 + d**2) / (s * d) ** 2,
    "noise": lambda s, d: s**-2,
    "x0": lambda s, d: s**0,
    "v": lambda s, d: s**-2 + 1,
    "flow": lambda s, d: (1 + 1 / s) ** 2,
    "min_snr": lambda s, d: torch.minimum(s**-2, torch.tensor(5.0)),
    "p2": lambda s, d: s**-2 / (1 + s**-2),
}


@pytest.mark.parametrize("loss_weighting", losses.LOSS_WEIGHTINGS)
def test_every_weight_trains_on_the_error_times_what_it_counts(loss_weighting):
    learn = learner(loss_weighting=loss_weighting)
    (batch,) = learn.draw(0)
    with torch.no_grad():
        s = batch.sigma[:, None, None, None]
        error = learn.objective.denoiser(batch.x0 + s * batch.noise, batch.sigma, batch.cond) - batch.x0
        counts = COUNTS[loss_weighting](batch.sigma, learn.setup.sigma_data)
        expected = (counts * error.square().mean((1, 2, 3))).mean()
    before = weights(learn)
    assert next(learn.steps(1)).loss == pytest.approx(float(expected), rel=1e-4)
    assert not torch.equal(before, weights(learn))


def test_p2_with_gamma_0_is_the_plain_loss_and_with_1_another():
    plain, p2 = learner(loss_weighting="noise"), learner(loss_weighting="p2", loss_weighting_options={"gamma": 0.0})
    loss = next(plain.steps(1)).loss
    assert loss == next(p2.steps(1)).loss
    assert loss != pytest.approx(
        next(learner(loss_weighting="p2", loss_weighting_options={"gamma": 1.0}).steps(1)).loss, rel=0.01
    )


@pytest.mark.parametrize(("loss_weighting", "options", "reason"), [
    ("p3", {}, "Did you mean 'p2'"),
    ("p2", {"gama": 0.0}, "p2 does not take these options.*gama"),
    ("p2", {"gamma": "x"}, "p2 does not take these options"),
    ("edm", {"gamma": 1.0}, "edm does not take these options.*gamma"),
])  # fmt: skip
def test_bad_weights_and_options_are_refused_before_training(loss_weighting, options, reason):
    with pytest.raises(InputError, match=reason):
        learner(loss_weighting=loss_weighting, loss_weighting_options=options)


def test_accumulated_parts_make_the_same_step():
    # Muon multiplies in bfloat16 and would enlarge the rounding of the sums
    one, four = learner(optimizer="adamw", lr=1e-3), learner(optimizer="adamw", lr=1e-3, grad_accumulation=4)
    losses_ = [[s.loss for s in learn.steps(5)] for learn in (one, four)]
    assert losses_[0] == pytest.approx(losses_[1], abs=1e-5)
    assert torch.allclose(weights(one), weights(four), atol=1e-5)


def test_data_ten_times_as_large_trains_alike():
    runs = [learner(Toy(scale=scale), lr=1e-3) for scale in (1.0, 8.0)]
    assert runs[1].setup.sigma_data == pytest.approx(8 * runs[0].setup.sigma_data, rel=1e-3)
    curves = [[s.loss for s in learn.steps(6)] for learn in runs]
    assert curves[0] == pytest.approx(curves[1], rel=1e-2)


def test_a_wrong_sigma_data_is_told():
    with pytest.warns(UserWarning, match="standard deviation is"):
        learner(sigma_data=5.0)


def test_self_conditioning_feeds_the_estimate_only_where_the_coin_says():
    learn = learner(self_condition=True)
    (piece,) = learn.draw(0)
    told = []
    hook = learn.objective.denoiser.net.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    learn.objective(piece)
    hook.remove()
    given = told[-1][:, 1:].abs().flatten(1).amax(1) > 0
    # at the start the net's answer is 0, so that the estimate is c_skip x, never 0
    assert torch.equal(given, piece.self_condition_mask)
    assert len(told[0]) == int(piece.self_condition_mask.sum())


def test_it_learns_the_mean_of_a_gaussian():
    data = Toy(256)
    data.rows = [torch.full((1, 8, 8), 0.7) + 0.05 * row for row in data.rows]
    with pytest.warns(UserWarning, match="sigma_data"):
        learn = learner(data, lr=3e-3, sigma_data=0.5)
    assert [s.loss for s in learn.steps(150)][-1] < 1
    guess = learn.model.denoise(20 * torch.randn(64, 1, 8, 8), torch.full((64,), 20.0))
    assert guess.mean().item() == pytest.approx(0.7, abs=0.1)


COMPILED = f"""
import json
from torch._dynamo.utils import counters
from fastdiffusion import Learner

def losses(compile):
    options = dict(optimizer="adamw", precision="float32", device="cpu", verbose=False)
    learn = Learner("digits", {TINY}, compile=compile, **options)
    return [s.loss for s in learn.steps(5)]

print(json.dumps([losses(False), losses(True), counters["stats"]["unique_graphs"]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same_training(tmp_path):
    """In a process of its own, where the compiler sees the code without the checks of shapes."""
    settings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=settings, capture_output=True, text=True, check=True)
    plain, compiled, graphs = json.loads(done.stdout)
    assert graphs >= 1
    assert compiled == pytest.approx(plain, abs=1e-4)


# ---- optimizers -------------------------------------------------------------------------------------------------


def test_muon_takes_hidden_matrices_and_kernels_and_agrees_with_the_paper():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 40, 3), torch.nn.Conv2d(40, 48, 3), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    ).to(memory_format=torch.channels_last)
    kernel = net[1].weight
    reference = torch.nn.Parameter(kernel.detach().permute(0, 2, 3, 1).reshape(48, -1).clone())
    begun = reference.detach().clone()
    muon, adam = optimizers.build("muon", net, 1e-2)
    assert [p.shape for p in muon.weights] == [kernel.shape]
    assert len(adam.param_groups[0]["params"]) == 5
    momentum = torch.zeros_like(reference)
    for _ in range(3):
        net(torch.randn(4, 1, 5, 5)).square().mean().backward()
        gradient = kernel.grad.permute(0, 2, 3, 1).reshape(48, -1).double()
        momentum = momentum.double().lerp(gradient, 0.05)
        x = gradient.lerp(momentum, 0.95)
        x = x / x.norm()
        for _ in range(5):  # Newton and Schulz's iteration as Jordan et al. write it, in float64
            gram = x @ x.T
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        reference.data -= 1e-2 * 0.2 * max(x.shape) ** 0.5 * x.float()
        muon.step()
        muon.zero_grad()
        adam.zero_grad()
    assert kernel.grad is None
    away = kernel.detach().permute(0, 2, 3, 1).reshape(48, -1) - reference.detach()
    assert float(away.norm() / (reference.detach() - begun).norm()) < 1e-3


def test_muon_alone_trains_a_net_of_hidden_matrices_alone():
    net = torch.nn.Linear(64, 64, bias=False)
    (muon,) = optimizers.build("muon", net, 1e-2)
    assert [p.shape for p in muon.weights] == [(64, 64)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_survives_packing(name):
    one, two = learner(optimizer=name), learner(optimizer=name)
    list(one.steps(4))
    two.unpack(*one.pack())
    for learn in (one, two):
        list(learn.steps(8))
    assert torch.equal(weights(one), weights(two))


def test_schedule_free_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"optimizer='schedule_free' needs .*pip install 'fastdiffusion\[optim\]'"):
        learner(optimizer="schedule_free")


def test_schedule_free_is_given_the_weights_and_told_that_training_begins(monkeypatch):
    class AdamWScheduleFree(torch.optim.AdamW):
        training = False

        def train(self):
            self.training = True

    package = ModuleType("schedulefree")
    package.AdamWScheduleFree = AdamWScheduleFree
    monkeypatch.setitem(sys.modules, "schedulefree", package)
    net = torch.nn.Linear(3, 2)
    (optimizer,) = optimizers.build("schedule_free", net, 0.25, 0.125)
    assert isinstance(optimizer, AdamWScheduleFree) and optimizer.training
    (group,) = optimizer.param_groups
    assert group["params"] == list(net.parameters()) and (group["lr"], group["weight_decay"]) == (0.25, 0.125)


def test_the_result_of_schedule_free_is_the_average_and_looking_at_it_changes_nothing(tmp_path, cut):
    """Weights are trained at another point, y, than the result, x (Defazio et al. 2024, eq. 7 to 9)."""

    def trained(steps, folder=None, look=False):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 4)
        shown = []

        def preview():
            shown.append(net.weight.detach().clone())
            return torch.zeros(1, 1, 8, 8), 1

        def draw(step):
            return torch.randn(8, 4, generator=generator(0, 1, step))

        task = Task(
            {"net": Part(net, lambda x: (net(x) - x.flip(1)).square().mean(), "schedule_free", 0.05)}, draw, {},
            held_out=[draw(-1)] if look else [], preview=preview,
        )  # fmt: skip
        return trainer.train(task, TrainingOptions(steps=steps, folder=folder, verbose=False, device="cpu")), net, shown

    run, net, _ = trained(20)
    (optimizer,) = run.optimizers["net"]
    (group,) = optimizer.param_groups
    assert not group["train_mode"] and run.rates["net"] == group["lr"], "no decay, of which it needs none"
    y, z = run.iterates._trained[0], optimizer.state[net.weight]["z"]
    torch.testing.assert_close(net.weight.detach(), (y - (1 - group["betas"][0]) * z) / group["betas"][0])
    assert not torch.equal(net.weight, y)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "LOOK", 0)  # after every step
        _, looked, shown = trained(20, tmp_path / "a", look=True)
    assert torch.equal(looked.weight, net.weight) and torch.equal(shown[-1], net.weight)
    with cut(11):
        trained(20, tmp_path / "b")
    _, resumed, _ = trained(20, tmp_path / "b")
    assert torch.equal(resumed.weight, net.weight)


def test_muon_on_an_old_torch_says_so(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(MissingExtra, match=r"2\.9"):
        learner(optimizer="muon")


def test_the_learning_rate_rises_stays_and_falls_to_nearly_nothing():
    s, rates = State(), []
    s.plan(100, None)
    while not s.finished:
        rates.append(s.rate(10, 0.5))
        s.advance(0.0, 1.0)
    assert len(rates) == 100 and rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[-1] == pytest.approx(1 / 50)
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_the_learning_rate_finder_leaves_no_trace_and_finds_a_sane_rate():
    learn = learner()
    list(learn.steps(2))
    before, state = weights(learn), replace(learn.state)
    found = lr_finder.find_lr(learn, n=40)
    assert torch.equal(before, weights(learn))
    assert learn.state == state
    assert 1e-5 < found.lr < 0.1
    for wrong in ({"n": 1}, {"low": 0.0}, {"low": 0.5}):
        with pytest.raises(InputError, match="n must be at least 2 and 0 < low < high"):
            lr_finder.find_lr(learn, **wrong)


# ---- budgets ----------------------------------------------------------------------------------------------------


def paced(pace, state=None, until=math.inf):
    """A run of one minute on a machine that makes ``pace(seconds)`` steps a second: its state, and the rates."""
    s, rates = state or State(), []
    s.plan(None, 1.0)
    while not s.finished and s.step < until:
        rates.append(s.rate(100, 0.5))
        s.advance(s.seconds + 1 / pace(s.seconds), pace(s.seconds))
    return s, rates


PACES = {
    "steady": lambda t: 10.0, "slower": lambda t: 10.0 if t < 20 else 3.0,
    "slower in the end": lambda t: 10.0 if t < 50 else 0.7, "faster": lambda t: 2.0 if t < 40 else 20.0,
    "slow": lambda t: 0.2,
}  # fmt: skip


@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
def test_minutes_end_in_time_and_at_a_rate_of_nothing_however_the_speed_changes(pace):
    s, rates = paced(pace)
    step = 1 / pace(s.seconds)
    assert abs(s.seconds - 60) <= step / 2 + 1e-9
    assert rates[-1] <= 2 * step / 60 * 1.01 + 1e-9 and max(rates) == 1
    fall = rates[rates.index(1.0) :]
    assert fall == sorted(fall, reverse=True), "once it falls it never rises"


def test_minutes_on_a_steady_machine_are_the_steps_that_it_makes_in_them():
    s = State()
    s.plan(600, None)
    rates = []
    while not s.finished:
        rates.append(s.rate(60, 0.5))
        s.advance(0.0, 1.0)
    assert paced(PACES["steady"])[1] == pytest.approx(rates, abs=0.1)
    assert paced(PACES["steady"])[0].step == 600


def test_a_run_in_minutes_that_was_cut_goes_on_as_if_it_had_not_been():
    for pace in PACES.values():
        whole, rates = paced(pace)
        cut, first = paced(pace, until=whole.step // 2)
        again, second = paced(pace, State.of(json.loads(json.dumps(asdict(cut)))))
        assert first + second == rates and again == whole


def test_minutes_that_a_clock_of_steps_measures_are_resumed_bit_for_bit(tmp_path, monkeypatch):
    """All that such a run depends on besides its settings is how long its steps took."""
    runs, clock, update = [], [0.0], Learner.update

    def quarter(self, *arguments):
        clock[0] += 0.25  # seconds, exact in binary
        return update(self, *arguments)

    monkeypatch.setattr(Learner, "update", quarter)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock[0])
    for name, cut in (("whole", 99), ("cut", 17), ("cut", 99)):
        runs.append(learner(folder=tmp_path / name, dropout=0.1, save_every=0.0))
        with contextlib.suppress(KeyboardInterrupt):
            runs[-1].fit(minutes=0.1, callbacks=[StopAt(cut)])
    assert runs[0].state.step == runs[2].state.step == 19 and runs[1].state.step == 17
    assert torch.equal(weights(runs[0]), weights(runs[2])) and not torch.equal(weights(runs[0]), weights(runs[1]))


def test_a_finished_run_takes_more_but_not_less():
    s = State(step=100, seconds=10.0, total=100, progress=1.0)
    s.plan(100, None)
    assert s.finished
    s.plan(50, None)
    assert s.finished
    s.plan(200, None)
    assert (s.start, s.progress, s.total) == (100, 0.0, 200)
    assert s.rate(10, 0.5) == pytest.approx(0.1), "it rises anew"


def test_a_budget_is_given_once():
    with pytest.raises(InputError, match="either"):
        next(learner().steps(5, 1.0))
    with pytest.raises(InputError, match="above 0"):
        next(learner().steps(0))


def test_minutes_are_kept(tmp_path):
    learn = learner(folder=tmp_path).fit(minutes=0.03)
    assert learn.state.finished and learn.state.seconds == pytest.approx(1.8, abs=1.0)


# ---- the run ----------------------------------------------------------------------------------------------------


def test_stopping_and_going_on_changes_nothing():
    one, two = learner(), learner()
    straight = [s.loss for s in one.steps(12)]
    broken = []
    for step in two.steps(12):
        broken.append(step.loss)
        if step.step == 5:
            break
    broken += [s.loss for s in two.steps(12)]
    assert straight == broken
    assert torch.equal(weights(one), weights(two))


def test_two_runs_interleaved_equal_two_in_turn():
    runs = [learner(seed=seed, dropout=0.1) for seed in (1, 2)]
    together = [(a.loss, b.loss) for a, b in zip(runs[0].steps(4), runs[1].steps(4), strict=True)]
    alone = [[s.loss for s in learner(seed=seed, dropout=0.1).steps(4)] for seed in (1, 2)]
    assert together == list(zip(*alone, strict=True))


def test_a_folder_holds_everything_and_goes_on_bit_for_bit(tmp_path):
    whole = learner(folder=tmp_path / "a").fit(steps=12)
    with pytest.raises(KeyboardInterrupt):
        learner(folder=tmp_path / "b").fit(steps=12, callbacks=[StopAt(7)])
    again = learner(folder=tmp_path / "b").fit(steps=12)
    assert torch.equal(weights(whole), weights(again))
    a, b = ((tmp_path / x / "model.safetensors") for x in "ab")
    for one, two in zip(models.tensors(load(a)).values(), models.tensors(load(b)).values(), strict=True):
        assert torch.equal(one, two)
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in r for r in records)
    assert any("validation_loss" in r for r in records)
    report = (tmp_path / "a" / "report.html").read_text()
    assert "<svg" in report
    assert "data:image/png" in report


class StopAt:
    """A callback that asks for an end, as Ctrl-C would."""

    def __init__(self, at):
        self.at = at

    def start(self, learn):
        pass

    def step(self, learn, step):
        if step.step == self.at:
            learn.stop()

    def end(self, learn):
        pass


def test_any_length_of_average_can_be_made_afterwards(tmp_path):
    learn = learner(folder=tmp_path, ema=(0.05, 0.07, 0.1)).fit(steps=64, callbacks=[Snapshots(4)])
    states = [load_tensors(path)[1] for path in sorted((tmp_path / "ema").iterdir())]
    stored = [s for state in states for s in snapshots(state) if s.length != 0.07]
    made, kept = posthoc(stored, 0.07), learn.average.weights(0.07)
    error = sum((made[n] - kept[n]).square().sum() for n in kept) / sum(t.square().sum() for t in kept.values())
    assert error.sqrt() < 1e-3


def test_the_same_budget_again_says_so(tmp_path, capsys):
    learner(folder=tmp_path, verbose=True).fit(steps=3)
    again = learner(folder=tmp_path, verbose=True).fit(steps=3)
    assert again.state.step == 3
    assert "has had its budget" in capsys.readouterr().err


def test_a_wrong_budget_forgets_nothing(tmp_path):
    learner(folder=tmp_path).fit(steps=2)
    before = sorted(path.name for path in tmp_path.iterdir())
    for budget in ({"steps": 0}, {"steps": 1, "minutes": 2.0}, {"minutes": math.inf}):
        with pytest.raises(InputError, match="Give either steps or minutes"):
            learner(folder=tmp_path).fit(fresh=True, **budget)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("lost", ["model.safetensors", "report.html"])
def test_results_that_were_lost_are_written_by_the_same_command(tmp_path, lost, capsys):
    made = learner(folder=tmp_path).fit(steps=3)
    whole = models.tensors(load(tmp_path / "model.safetensors"))
    (tmp_path / lost).unlink()  # as if it had been cut between the last checkpoint and its results
    again = learner(folder=tmp_path, verbose=True).fit(steps=3)
    assert (tmp_path / lost).is_file() and "has had its budget" not in capsys.readouterr().err
    assert torch.equal(weights(again), weights(made))
    assert all(torch.equal(v, whole[k]) for k, v in models.tensors(load(tmp_path / "model.safetensors")).items())


def test_ctrl_c_in_the_last_step_costs_nothing(tmp_path):
    whole = learner(folder=tmp_path / "a").fit(steps=4)
    with pytest.raises(KeyboardInterrupt):
        learner(folder=tmp_path / "b").fit(steps=4, callbacks=[StopAt(4)])
    again = learner(folder=tmp_path / "b").fit(steps=4)
    assert (tmp_path / "b" / "report.html").is_file() and again.state.length == whole.state.length


def test_a_budget_of_less_than_a_step_is_recorded(tmp_path):
    learner(folder=tmp_path).fit(minutes=1e-6)
    assert Folder(tmp_path).metrics()[-1]["step"] == 1 and list((tmp_path / "previews").iterdir())


def test_a_model_that_goes_on_keeps_its_scale_and_net(tmp_path):
    learner(folder=tmp_path, sigma_data=0.42).fit(steps=1)
    on = learner(init_from=tmp_path / "model.safetensors", net="unet-base")
    assert on.setup.sigma_data == 0.42 and on.info["net"] == "dit"


def test_parts_out_of_range_are_refused():
    for wrong in ({"cond_dropout": 7.0}, {"cond_dropout": math.nan}, {"warmup": -1}, {"grad_clip": math.nan}):
        with pytest.raises(InputError, match=r"cond_dropout|negative"):
            learner(**wrong)


def test_a_checkpoint_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 1\) is not \(4, 3\)"):
        like(torch.zeros(4, 3), torch.zeros(4, 1))


def test_another_configuration_in_the_same_folder_is_refused_by_name(tmp_path):
    learner(folder=tmp_path).fit(steps=2)
    with pytest.raises(CheckpointError, match=r"lr=None \(now 0.002\).*--fresh"):
        learner(folder=tmp_path, lr=0.002).fit(steps=3)
    with pytest.raises(CheckpointError, match="other data"):
        learner(Toy(), folder=tmp_path).fit(steps=3)
    assert learner(folder=tmp_path, lr=0.002).fit(steps=2, fresh=True).state.step == 2


def test_fresh_in_memory_begins_anew():
    learn = learner().fit(steps=3)
    first = weights(learn)
    assert torch.equal(first, weights(learn.fit(steps=3, fresh=True)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"net": "unet-tyni"}, "unet-tiny"),
        ({"optimizer": "adam"}, "adamw"),
        ({"sigma_distribution": "normal"}, "lognormal"),
        ({"loss_weighting": "edn"}, "edm"),
        ({"precision": "fp16"}, "float"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10, "grad_accumulation": 3}, "multiple"),
        ({"lr": -1.0}, "lr must be"),
        ({"decay": 1.0}, "decay"),
        ({"track": "tensorbord"}, "tensorboard"),
        ({"ema": ()}, "ema"),
        ({"lr": 0.0}, "lr"),
        ({"device": "abacus"}, "No device 'abacus' here"),
        ({"cond_drpout": 0.1}, "cond_dropout"),
        ({"loss_weighting_options": {"gama": 1.0}}, "gama"),
        ({"sigma_distribution_options": {"mu": 1.0}}, "mu"),
        ({"loss_weighting_options": {"sigma_data": 1.0}}, "sigma_data"),
        ({"sigma_data": 0.0}, "sigma_data must be above 0, got 0.0"),
        ({"sigma_data": math.inf}, "sigma_data must be above 0, got inf"),
        ({"ema": 0.1}, "ema needs at least one length.* got 0.1"),
        ({"batch_size": "8"}, "batch_size must be a whole number, got '8'"),
        ({"dropout": 1.5}, "dropout must be from 0 to 1, got 1.5"),
        ({"warmup": 2.5}, "warmup must be a whole number, got 2.5"),
        ({"net": "unet-tiny dropout=0.5"}, "The net's dropout: decided by the data and by the other options"),
        ({"net": {**TINY, "classes": 3, "in_channels": 2}}, "The net's classes, in_channels: decided"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(keywords, message):
    with pytest.raises(FastdiffusionError, match=message):
        learner(**keywords)


def test_the_validation_noise_depends_on_neither_run_nor_time():
    one, two = (learner(lr=lr) for lr in (1e-3, 1e-2))
    list(two.steps(2))
    assert one.task.held_out
    for a, b in zip(one.task.held_out, two.task.held_out, strict=True):
        assert torch.equal(a.x0, b.x0) and torch.equal(a.noise, b.noise)
    assert set(one.setup.held_out.indices).isdisjoint(one.setup.train.indices)


def test_an_unreadable_checkpoint_is_named(tmp_path):
    learner(folder=tmp_path).fit(steps=2)
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="--fresh"):
        learner(folder=tmp_path).fit(steps=3)


def test_a_run_that_goes_on_remembers_its_best(tmp_path):
    """A validation loss that is worse than before the break does not take the place of the best."""
    learn = learner(folder=tmp_path, holdout=0.1, batch_size=256).fit(steps=40)
    measured = [(r["step"], r["validation_loss"]) for r in learn.run.metrics() if "validation_loss" in r]
    assert len(measured) > 2
    again = learner(folder=tmp_path, holdout=0.1, batch_size=256)
    again.resume()
    assert [step for step, _ in again.state.validations] == [step for step, _ in measured]
    best = min(loss for _, loss in again.state.validations)
    again.validate = lambda length=None: best + 1.0
    again.fit(steps=60)
    assert again.run.best()[0] <= 40


def test_a_tracker_is_told_what_metrics_jsonl_says(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn = learner(folder=tmp_path, track="tensorboard", batch_size=16).fit(steps=20)
    events = EventAccumulator(str(tmp_path / "fastdiffusion")).Reload()
    for name in ("loss", "norm", "lr", "images_per_second", "seconds", "validation_loss"):
        told = {e.step: e.value for e in events.Scalars(name)}
        assert told == pytest.approx({r["step"]: r[name] for r in learn.run.metrics() if name in r}), name
        assert told


def test_no_epoch_rounds_beyond_the_last_group():
    """The last place of an epoch's systematic sample can round up to the number of pictures."""
    many = Images("many", [np.zeros((60_000, 1, 1, 1), np.uint8)])
    assert len(Batches(many, 1).order(95 * 60_000)) == 1


class Same(Images):
    """Pairs whose answers are their inputs."""

    cond_channels = 1

    def batch(self, indices, generator=None):
        batch = super().batch(indices, generator)
        return batch._replace(inputs=batch.images)


def test_both_pictures_of_a_pair_are_moved_alike():
    pairs = Same("same", [np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)])
    moved = Batches(pairs, 32, augments=("mirror", "rotate", "shift"), augment_p=1.0).draw(0)
    assert moved.cond is not None
    assert torch.equal(moved.x0, moved.cond.image)
    assert not torch.equal(moved.x0, Batches(pairs, 32).draw(0).x0)
    with pytest.raises(InputError, match="contrast would change the targets"):
        learner(pairs, augment=("contrast",))


def test_a_run_that_begins_with_a_model_has_its_own_dropout_and_no_untold_augmentation(tmp_path):
    learner(folder=tmp_path).fit(steps=1)
    going = learner(init_from=tmp_path / "model.safetensors", dropout=0.3)
    assert {m.dropout for m in going.objective.modules() if isinstance(getattr(m, "dropout", None), float)} == {0.3}
    with pytest.raises(InputError, match="augmentation"):
        learner(init_from=tmp_path / "model.safetensors", augment=("rotate",))


def test_fresh_forgets_the_previews_too(tmp_path):
    learner(folder=tmp_path).fit(steps=30)
    (tmp_path / "previews" / "0000999.png").write_bytes(b"old")
    learner(folder=tmp_path).fit(steps=2, fresh=True)
    assert not (tmp_path / "previews" / "0000999.png").exists()
