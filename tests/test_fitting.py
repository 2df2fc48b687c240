"""Fitted tables: closer to the flow than any textbook's, on noises that they never saw; honest where they are not."""

import pytest
import torch

from fastdiffusion import guidance, noise, samplers, schedules
from fastdiffusion.data import oracles
from fastdiffusion.errors import InputError
from fastdiffusion.samplers import fitting, ledger, planning, polish, reference, search
from fastdiffusion.types import Cond

RING = oracles.blobs(8)


def held_out(denoise, shape=(2,), n=256, cond=None):
    x = 80 * noise.initial(range(10_000, 10_000 + n), shape)
    return reference.Flow.solve(denoise, x, schedules.exponential(300), cond)


@pytest.fixture(scope="module")
def flow():
    return held_out(RING)


class Counting:
    """A denoiser that counts its evaluations of one sample, and stops the program at one of them."""

    def __init__(self, denoise=RING, stop=None):
        self.denoise, self.stop, self.count = denoise, stop, 0

    def __call__(self, x, sigma, cond=None):
        self.count += len(x)
        if self.stop is not None and self.count > self.stop:
            raise KeyboardInterrupt
        return self.denoise(x, sigma)


def problem(denoise=RING, **options):
    return fitting.Problem(denoise, (2,), 80.0, 0.002, **options)


@pytest.mark.parametrize(("evaluations", "last"), [(2_000, False), (20_000, True)])
def test_fitted_beats_the_textbook(flow, evaluations, last):
    counting = Counting()
    table = fitting.fit_sampler(counting, 6, (2,), 80.0, 0.002, evaluations=evaluations, polish=last, noises=32)
    assert 0.5 * evaluations < counting.count <= evaluations, "what was allowed, and no more"
    assert table.nfe == 6 and table.info["fitted"] and not table.stochastic
    assert table.info["error"] < table.info["textbook_error"]
    cheap = [samplers.table(name, schedules.schedule(kind, 6)) for name in search.TEXTBOOK[:6]
             for kind in search.SCHEDULES]  # fmt: skip
    assert flow.error_of(table) < 0.25 * min(flow.error_of(textbook) for textbook in cheap)
    assert samplers.Table.from_json(table.to_json()) == table


def test_polishing_gains():
    """All numbers together gain on noises of their own, from the least squares on levels that were not searched."""
    training, other = held_out(RING, n=16), held_out(RING, n=16)
    table, error = search.fit_rows(training, schedules.karras(4).tolist())
    *_, (best, misses) = polish.polished(table, training, other, ledger.Ledger(20_000))
    assert training.error_of(best) < 0.3 * error
    assert reference.rms(misses) == pytest.approx(other.error_of(best))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_perfect_model_still_gets_its_x0_back(steps):
    table = fitting.fit_sampler(RING, steps, (2,), 80.0, 0.002, noises=16, evaluations=3_000)
    x0 = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    out = samplers.final(samplers.run(lambda x, sigma, cond=None: x0, x0 + 80 * torch.randn(1, 2), table))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-9)
    assert table.nfe == steps


def test_falls_back_to_the_textbook():
    # On one Gaussian of no width every table is exact: nothing to win, so the textbook's stays.
    point = oracles.Mixture(torch.zeros(1, 3), torch.zeros(1), torch.ones(1))
    table = fitting.fit_sampler(point, 4, (3,), 80.0, 0.002, noises=16, evaluations=3_000)
    assert not table.info["fitted"] and table.info["error"] == table.info["textbook_error"]


def test_a_few_noises_do_not_decide():
    table = samplers.table("euler", [80.0, 0.0])
    textbook = search.Candidate(table, [1.0] * 7 + [50.0])
    assert search.Candidate(table, [0.5] * 7 + [49.5]).clearly_better(textbook)
    assert not search.Candidate(table, [2.0] * 7 + [1.0]).clearly_better(textbook), "one noise makes all the gain"
    assert not search.Candidate(table, [0.1] * 7 + [float("inf")]).clearly_better(textbook)
    assert textbook.clearly_better(search.Candidate(table, [float("inf")] * 8))


def test_fits_under_guidance():
    cond = Cond(label=torch.arange(8))
    table = fitting.fit_sampler(RING, 6, (2,), 80.0, 0.002, cond=cond, evaluations=20_000, scale=2.0)
    conditions = Cond(label=torch.arange(64) % 8)
    flow = held_out(guidance.cfg(RING, 2.0), n=64, cond=conditions)
    textbook = samplers.table("dpmpp_3m", schedules.exponential(6))
    assert table.info["scale"] == 2 and flow.error_of(table) < 0.5 * flow.error_of(textbook)


def test_the_estimate_beside_a_trajectory_is_right_for_a_gaussian():
    """``cheap`` costs nothing and is exact where the data are Gaussian, wherever a table leads."""
    gaussian = oracles.Mixture(torch.zeros(1, 2), torch.tensor([0.5]), torch.ones(1))
    solved = held_out(gaussian, n=512)
    for name in ("dpmpp_3m", "euler", "heun"):
        table = samplers.table(name, schedules.exponential(4))
        torch.testing.assert_close(solved.cheap().perform(table), solved.perform(table), atol=2e-2, rtol=0)
    ranked = sorted(search.TEXTBOOK[:6], key=lambda name: _error(solved.cheap(), name))
    assert ranked == sorted(search.TEXTBOOK[:6], key=lambda name: _error(solved, name))


def _error(solved, name):
    return solved.error_of(samplers.table(name, schedules.exponential(6)))


def test_evaluations_in_several_batches_are_the_same():
    """Guidance that keeps something from step to step keeps it for each batch."""
    guided = guidance.self_conditioned(guidance.cfg(RING, 2.0))
    x, cond = 80 * noise.initial(range(7), (2,)), Cond(label=torch.arange(7) % 8)
    table = samplers.table("dpmpp_2m", schedules.exponential(5))
    whole, parts = (reference.Flow.solve(guided, x, schedules.exponential(40), cond, batch) for batch in (7, 3))
    torch.testing.assert_close(whole.states, parts.states)
    torch.testing.assert_close(whole.perform(table), parts.perform(table))


# ---- plans --------------------------------------------------------------------------------------------------------


def test_a_plan_spends_what_it_may_and_says_so():
    small, large = planning.plan([6, 8], 1_500, (4, 128, 128)), planning.plan([8], 100_000, (3, 8, 8))
    assert 30 <= small.reference <= 60 and 4 <= small.noises <= 16 and small.held_out >= 4
    assert (large.reference, large.noises, large.held_out) == (100, 64, 32)
    for made in (small, large):
        assert made.reference * (made.noises + made.held_out) + made.each * len(made.steps) <= made.evaluations
    assert "1,500 evaluations" in str(small) and "2 tables" in str(small)
    assert planning.default_evaluations(2_600_000_000, (4, 128, 128)) == 1_500
    assert planning.default_evaluations(9_000_000, (4, 16, 16)) == pytest.approx(22_000, rel=0.1)
    assert planning.default_evaluations(0, (2,)) == 100_000


SMALL = planning.plan([2, 3], 3_800, (2,), noises=4)


@pytest.fixture(scope="module")
def uninterrupted():
    counting = Counting()
    return fitting.fit_tables(problem(counting, batch_size=3), SMALL), counting.count


@pytest.mark.parametrize("left", [3_300, 1_500, 300])  # in the reference, in the levels, in the polish
def test_killed_and_resumed_is_uninterrupted(tmp_path, uninterrupted, left):
    """Bit for bit, wherever it was killed, and no more than a batch of the reference and one step are paid twice."""
    whole, count = uninterrupted
    dying = Counting(stop=count - left)
    with pytest.raises(KeyboardInterrupt):
        fitting.fit_tables(problem(dying, batch_size=3), SMALL, keep=tmp_path)
    with next(tmp_path.glob("*/measured.jsonl")).open("a") as file:
        file.write('[{"error": 0.')  # the last line was being written
    resumed = Counting()
    again = fitting.fit_tables(problem(resumed, batch_size=3), SMALL, keep=tmp_path)
    assert {k: t.to_json() for k, t in again.items()} == {k: t.to_json() for k, t in whole.items()}
    assert resumed.count < left + 500


def test_other_work_in_the_folder_is_not_used(tmp_path):
    planned = planning.plan([2], 3_000, (2,), noises=8, polish=False)
    first = fitting.fit_tables(problem(), planned, keep=tmp_path, purpose="one")
    counting = Counting(lambda x, sigma, cond=None: RING(x, sigma) + 0.1)
    other = fitting.fit_tables(problem(counting), planned, keep=tmp_path, purpose="another")
    assert counting.count > 1_000 and other != first
    repeated = Counting()
    assert fitting.fit_tables(problem(repeated), planned, keep=tmp_path, purpose="one") == first and not repeated.count


def test_a_ledger_counts_what_it_remembers(tmp_path):
    shown = []
    one = ledger.Ledger(10, tmp_path / "l.jsonl", lambda done, of, what: shown.append((done, of)))
    assert one.measure(lambda: (float("inf"), 4)) == float("inf") and one.spent == 4 and not one.affords(7)
    two = ledger.Ledger(10, tmp_path / "l.jsonl")
    assert two.measure(lambda: 1 / 0) == float("inf") and two.spent == 4
    assert two.measure(lambda: ([0.1], 6)) == [0.1] and two.affords(0) and shown == [(4, 10)]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_levels_alone(flow, sampler):
    """A textbook sampler with levels of this model's own: better than on any textbook schedule."""
    planned = planning.plan([6], 20_000, (2,), noises=32)
    table = fitting.fit_tables(problem(), planned, sampler)[6]
    assert table.name == sampler and len(table.sigmas) == 7 and table.info["fitted"]
    assert samplers.table(sampler, list(table.sigmas)).rows == table.rows
    schedule = [samplers.table(sampler, schedules.schedule(kind, 6)) for kind in search.SCHEDULES]
    assert flow.error_of(table) < 0.8 * min(map(flow.error_of, schedule))


def test_a_table_may_start_higher_than_the_reference(flow):
    """As flow models' own levels do, at infinity nearly: from the same noise, and to the same place."""
    low, high = (samplers.table("dpmpp_3m", [*top, *schedules.exponential(60).tolist()[1:]]) for top in ([80.0], [1e4]))
    assert flow.error_of(high) < 2 * flow.error_of(low) + 1e-3


def test_the_flow_between_its_points(flow):
    fine = held_out(RING, n=8)
    for sigma in (40.0, 3.3, 0.4, 0.05):
        sigmas = torch.cat([schedules.exponential(200, sigma, 80.0)])
        steps = list(samplers.run(RING, fine.start, samplers.table("dpmpp_3m", sigmas)))
        torch.testing.assert_close(fine.at(sigma), steps[-2].x, rtol=1e-3, atol=2e-3)


def test_bad_input():
    with pytest.raises(InputError, match="steps must be at least 1"):
        fitting.fit_sampler(RING, 0, (2,), 80.0, 0.002)
    with pytest.raises(InputError, match="shape, sigma_max and sigma_min"):
        fitting.fit_sampler(RING, 4)
    with pytest.raises(InputError, match=r"too few to fit 1 table of up to 8 steps\. Try at least 432"):
        fitting.fit_sampler(RING, 8, (2,), 80.0, 0.002, evaluations=100)
    fitting.fit_sampler(RING, 8, (2,), 80.0, 0.002, evaluations=int(_least(8)))
    with pytest.raises(InputError, match="noises must be at least 1"):
        fitting.fit_sampler(RING, 4, (2,), 80.0, 0.002, noises=0)
    with pytest.raises(InputError, match="draws noise"):
        fitting.fit_tables(problem(), planning.plan([4], 9_000, (2,)), "euler_ancestral")


def _least(steps):
    with pytest.raises(InputError, match="Try at least") as error:
        planning.plan([steps], 100, (2,))
    return str(error.value).split("at least ")[1].strip(".").replace(",", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_fitted_there():
    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([0.5, 0.8]))

        def forward(self, x, sigma, cond=None):
            mean = 0 if cond is None else 0.1 * cond.label[:, None]
            return mean + (x - mean) * self.scale.square() / (self.scale.square() + sigma[:, None].square())

    cond = Cond(label=torch.arange(4))
    for model in (Exact().cuda(), guidance.self_conditioned(Exact().cuda())):
        table = fitting.fit_sampler(model, 5, (2,), 80.0, 0.01, cond=cond, noises=32, evaluations=5_000, scale=2.0)
        assert table.info["error"] <= table.info["textbook_error"] and table.nfe == 5
