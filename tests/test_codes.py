"""Tokens of a codebook: a posterior that hardens, files of every kind, and a prior over which tokens stand together."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fastdiffusion import cli, data, nets
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.checkpoints import load_tensors
from fastdiffusion.io.images import read_image, to_tensor
from fastdiffusion.models import load_autoencoder
from fastdiffusion.nets.autoencoders import FSQ, KL, VQ, Gumbel
from fastdiffusion.nets.vq_prior import MaskedTokens
from fastdiffusion.noise import generator
from fastdiffusion.tasks.autoencoding import token_prior
from fastdiffusion.tasks.autoencoding import train as autoencoders
from fastdiffusion.tasks.autoencoding.analysis import describe
from fastdiffusion.tasks.autoencoding.token_prior import hidden, sample_tokens, surprise, train_token_prior, write
from fastdiffusion.tasks.autoencoding.train import train_autoencoder
from fastdiffusion.training.options import TrainingOptions
from fastdiffusion.training.task import Part, Task
from fastdiffusion.training.trainer import train

TINY = {"steps": 20, "levels": 2, "width": 8, "codebook_size": 64, "optimizer": "adamw", "lr": 3e-3}
PRIOR = {"steps": 6, "width": 32, "depth": 1, "batch_size": 8}
TWO = torch.stack([torch.arange(9).view(3, 3) % 5, torch.arange(9).view(3, 3) % 4 + 1])  # two grids, both likely


@pytest.fixture(scope="module")
def autoencoder():
    return train_autoencoder("digits", kind="fsq", **TINY).model


# ---- a posterior over tokens ------------------------------------------------------------------------------------


def gumbels(autoencoder, x):
    """The noise that the next draw takes."""
    shape = autoencoder.logits(x).shape
    with torch.random.fork_rng():
        return -torch.empty(shape).exponential_().log()


def test_a_cold_draw_is_the_token_that_wins():
    autoencoder = Gumbel(3, 4, 8, codebook=32).train()
    x = torch.rand(2, 3, 8, 8)
    autoencoder.temperature = 1e-4
    winner = (autoencoder.logits(x) + gumbels(autoencoder, x)).argmax(-1)
    cold = autoencoder(x)[0]
    torch.testing.assert_close(
        cold, autoencoder.decoder(autoencoder.book[winner].permute(0, 3, 1, 2)), atol=1e-3, rtol=0
    )
    assert not torch.equal(winner, autoencoder.tokens(x))  # the draw is one of the posterior, not its likeliest


def test_a_draw_belongs_to_its_example():
    """So that two processes, which share a batch, draw what one does; and its distribution is Gumbel's."""
    autoencoder = Gumbel(3, 4, 8, codebook=32)
    x, noise = torch.rand(4, 3, 8, 8), torch.randn(4, autoencoder.noise_channels, 2, 2)
    whole = autoencoder(x, noise)[0]
    halves = torch.cat([autoencoder(x[rows], noise[rows])[0] for rows in (slice(2), slice(2, 4))])
    torch.testing.assert_close(whole, halves)
    assert float((whole - autoencoder(x, noise.flip(0))[0]).detach().abs().max()) > 1e-3
    drawn = -(-torch.special.log_ndtr(torch.randn(100_000))).log()
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.02) and float(drawn.var()) == pytest.approx(
        math.pi**2 / 6, rel=0.03
    )


def test_a_sure_posterior_draws_its_likeliest_token():
    autoencoder = Gumbel(3, 4, 8, codebook=32).train()
    x = torch.rand(2, 3, 8, 8)
    torch.nn.init.constant_(autoencoder.log_precision, 12.0)
    autoencoder.anneal(1.0)
    assert autoencoder.temperature == 1 / 16
    torch.testing.assert_close(autoencoder(x)[0], autoencoder.decode(autoencoder.encode(x)), atol=1e-3, rtol=0)
    assert float(autoencoder(x)[1].detach().mean()) == pytest.approx(
        math.log(32), abs=0.2
    )  # nats to name one of 32 words


def test_the_temperature_falls_and_stays():
    autoencoder, seen = Gumbel(codebook=32), []
    for part in (0, 0.1, 0.25, 0.4, 0.5, 0.8, 1):
        autoencoder.anneal(part)
        seen.append(autoencoder.temperature)
    assert seen[0] == 1 and seen[-3:] == [1 / 16] * 3 and seen == sorted(seen, reverse=True)


def test_a_posterior_of_all_tokens_alike_costs_nothing():
    autoencoder = Gumbel(3, 4, 8, codebook=32)
    torch.nn.init.constant_(autoencoder.log_precision, -20.0)
    assert autoencoder(torch.rand(2, 3, 8, 8))[1].abs().max() < 1e-5


@pytest.mark.parametrize("make", [VQ, Gumbel, FSQ])
def test_tokens_survive_being_quantized_again(make):
    autoencoder = make(3, width=8).eval()
    autoencoder.standardize(torch.randn(4, len(autoencoder.mean), 5, 5) * 3 + 1)
    tokens = torch.randint(autoencoder.codebook_size, (2, 5, 6))
    vectors = autoencoder.vectors(tokens)
    assert torch.equal(autoencoder.quantize(autoencoder._out(vectors))[1], tokens)


@pytest.mark.parametrize("make", [KL, VQ, Gumbel, FSQ])
def test_files_of_every_kind(make, tmp_path):
    autoencoder = make(3, width=8).eval()
    autoencoders.save(autoencoder, tmp_path / "codec.safetensors")
    x, same = torch.rand(1, 3, 8, 8), load_autoencoder(tmp_path / "codec.safetensors")
    assert type(same) is make and torch.equal(same.encode(x), autoencoder.encode(x))


def test_fsq_has_the_codebooks_of_its_paper():
    made = train_autoencoder("digits", steps=1, kind="fsq", width=8, codebook_size=256).model
    assert made.config["levels"] == [8, 6, 5]
    with pytest.raises(InputError, match="codebooks of 64, 256"):
        train_autoencoder("digits", steps=1, kind="fsq", codebook_size=300)


# ---- their prior ------------------------------------------------------------------------------------------------


def test_as_many_tokens_are_masked_as_evenly_drawn():
    mask = hidden(torch.zeros(8000, 2, 3, dtype=torch.long), torch.Generator().manual_seed(0))
    counts = mask.flatten(1).sum(1).bincount(minlength=7)
    assert counts[0] == 0 and (counts[1:] / 8000 - 1 / 6).abs().max() < 0.02
    assert (mask.float().mean(0) - 3.5 / 6).abs().max() < 0.02  # and no place more than another


def test_an_untaught_prior_needs_the_plain_bits():
    prior = MaskedTokens(16, (3, 3), 32, 1)
    torch.nn.init.zeros_(prior.out.weight), torch.nn.init.zeros_(prior.out.bias)
    torch.testing.assert_close(surprise(prior, TWO, hidden(TWO, generator(0))), torch.full((2,), math.log(16)))


def test_it_learns_what_stands_together():
    """Of two grids either is drawn: one bit an image, whatever the tokens, and nothing else is ever written."""
    prior = MaskedTokens(5, (3, 3), 32, 2)

    def draw(step):
        tokens = TWO.repeat(32, 1, 1)
        return tokens, hidden(tokens, generator(0, step))

    part = Part(prior, lambda batch: surprise(prior, *batch), lr=1e-2)
    train(Task({"prior": part}, draw, {}), TrainingOptions(steps=320, verbose=False, device="cpu"))
    with torch.no_grad():
        nats = torch.cat([surprise(prior, TWO, hidden(TWO, generator(1, key))) for key in range(500)]).mean() * 9
    assert float(nats) / math.log(2) == pytest.approx(1, abs=0.15)
    made = write(prior, range(200), steps=9)
    first, second = ((made == grid).flatten(1).all(1) for grid in TWO)
    assert (first | second).float().mean() > 0.97 and 0.35 < first.float().mean() < 0.65


def test_a_grid_depends_on_its_seed_alone():
    prior = MaskedTokens(16, (4, 4), 32, 1).eval()
    several = write(prior, [7, 8, 9], steps=5)
    assert torch.equal(write(prior, [8], steps=5)[0], several[1]) and not torch.equal(several[0], several[1])
    for steps in (1, 3, 16, 99):
        assert int(write(prior, [0], steps).max()) < 16  # nothing stays hidden
    assert len(write(prior, [0], temperature=1e-6).unique()) <= 16


def test_a_cut_run_goes_on_bit_for_bit(autoencoder, tmp_path, cut):
    whole = train_token_prior(autoencoder, "digits", **PRIOR, folder=tmp_path / "whole").model
    with cut(1):
        train_token_prior(autoencoder, "digits", **PRIOR, folder=tmp_path / "cut")
    assert not (tmp_path / "cut" / "report.html").exists()
    train_token_prior(autoencoder, "digits", **PRIOR, folder=tmp_path / "cut")
    resumed = token_prior.load(tmp_path / "cut" / token_prior.FILE)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    made = sample_tokens(resumed, n=3, steps=2).images
    assert made.shape == (3, 1, 8, 8)
    torch.testing.assert_close(made, sample_tokens(whole, n=3, steps=2, batch_size=2).images)


GOLDEN = Path(__file__).parent / "golden"


def test_runs_of_the_first_version_are_refused_with_advice_and_their_files_load(tmp_path):
    """Their loop had other checkpoints; what it finished is as good as ever."""
    first = {"steps": 3, "kind": "fsq", "width": 4, "levels": 1, "codebook_size": 64, "batch_size": 4, "lr": 3e-3}
    shutil.copyfile(GOLDEN / "autoencoder-run-v1.safetensors", tmp_path / "step-000000001.safetensors")
    with pytest.raises(CheckpointError, match=r"run of version 0\.1.*another folder.*--fresh"):
        train_autoencoder("digits", folder=tmp_path, optimizer="adamw", **first)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000001.safetensors"]
    train_autoencoder("digits", folder=tmp_path, optimizer="adamw", fresh=True, **first)
    made, golden = (load_tensors(p)[0] for p in (tmp_path / autoencoders.FILE, GOLDEN / "autoencoder-v1.safetensors"))
    assert made == golden
    assert sample_tokens(GOLDEN / "token-prior-v1.safetensors", n=2, device="cpu").images.isfinite().all()


def test_what_does_not_fit_is_refused(autoencoder, tmp_path):
    with pytest.raises(InputError, match="has some"):
        train_token_prior(KL(1, width=8), "digits")
    with pytest.raises(InputError, match="3 channels"):
        train_token_prior(FSQ(3, width=8), "digits")
    with pytest.raises(InputError, match="3 channels"):
        describe(KL(3, width=8), data.load("digits"))
    autoencoders.save(autoencoder, tmp_path / "codec.safetensors")
    with pytest.raises(CheckpointError, match="train-token-prior"):
        token_prior.load(tmp_path / "codec.safetensors")
    with pytest.raises(InputError, match="codebook"):
        nets.build({"name": "masked", "codebook": 10**9})


def test_bad_numbers_are_told(autoencoder, tmp_path):
    made = train_token_prior(autoencoder, "digits", **PRIOR).model
    for call in (
        lambda: train_token_prior(autoencoder, "digits", **{**PRIOR, "batch_size": 0}).model,
        lambda: sample_tokens(made, n=2, batch_size=-1),
        lambda: train_autoencoder("digits", **{**TINY, "batch_size": 0}).model,
        lambda: train_autoencoder("digits", **{**TINY, "lr": math.nan}).model,
        lambda: train_autoencoder("digits", kl=math.nan, **TINY).model,
    ):
        with pytest.raises(InputError, match=r"batch_size|lr must be|not negative"):
            call()
    task = Task({"codec": Part(autoencoder, lambda batch: torch.zeros(()))}, lambda step: None, {})
    with pytest.raises(InputError, match="No precision named 'half'"):
        train(task, TrainingOptions(steps=1, precision="half"))


def test_one_picture_of_one_latent_is_finite(tmp_path):
    one = data.Subset(data.load("digits"), [3])
    autoencoder = train_autoencoder(one, steps=1, levels=3, width=8, holdout=0).model
    assert (
        autoencoder.std.isfinite().all()
        and autoencoder.decode(autoencoder.encode(torch.zeros(1, 1, 8, 8))).isfinite().all()
    )


def test_from_the_command_line(autoencoder, tmp_path, capsys):
    file = tmp_path / "codec.safetensors"
    autoencoders.save(autoencoder, file)
    assert cli.main(["codec", str(file), "digits", "-o", str(tmp_path)]) == 0
    said = json.loads((tmp_path / "autoencoder.json").read_text())
    assert (
        said["bits"] == 24
        and "used" in capsys.readouterr().out
        and read_image(tmp_path / "autoencoder.png").size[1] > 90
    )
    order = [
        "train-codes",
        str(file),
        "digits",
        "--steps",
        "3",
        "--width",
        "32",
        "--depth",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(order) == 0 and "24 without the prior" in capsys.readouterr().out
    prior = tmp_path / token_prior.FILE
    assert cli.main(["sample-codes", str(prior), "-n", "2", "--seed", "5", "-o", str(tmp_path / "a")]) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["0005.png", "0006.png", "grid.png"]
    first = to_tensor(read_image(tmp_path / "a" / "0005.png"))
    torch.testing.assert_close(first, sample_tokens(prior, n=1, seed=5).images[0], atol=1 / 127, rtol=0)
    assert torch.equal(sample_tokens(tmp_path, n=1, seed=5).images, sample_tokens(prior, n=1, seed=5).images)
    assert cli.main(["sample-codes", str(file), "-o", str(tmp_path / "b")]) == 2


def test_a_variational_codec_from_the_command_line(tmp_path):
    made = train_autoencoder("digits", steps=10, latent=4, levels=3, width=8, free_bits=0.1).model
    autoencoders.save(made, tmp_path / "kl.safetensors")
    run = ["codec", str(tmp_path / "kl.safetensors"), "digits", "-n", "20", "--samples", "8", "-o", str(tmp_path)]
    assert cli.main(run) == 0
    said = json.loads((tmp_path / "autoencoder.json").read_text())
    assert said["latents"] == 4 and said["elbo"] <= said["iwae"] and 0 <= said["active"] <= 4


@pytest.mark.slow
def test_free_bits_cure_a_collapse():
    """Under a heavy weight all latents collapse; with half a nat free, they do not."""
    given = {"latent": 8, "levels": 3, "width": 8, "lr": 3e-3, "kl": 4.0, "optimizer": "adamw"}
    held = data.load("digits").split(0.05, 0)[1]
    silent, cured = (
        describe(train_autoencoder("digits", steps=250, **given, free_bits=f).model, held) for f in (0, 0.5)
    )
    assert silent["active"] <= 1 and cured["active"] >= 6
    assert cured["psnr"] > silent["psnr"] + 0.5 and cured["iwae"] > silent["iwae"]


def test_a_prior_goes_on_only_with_the_weights_that_it_began_with(autoencoder, tmp_path):
    train_token_prior(autoencoder, "digits", **PRIOR, folder=tmp_path)
    other = train_autoencoder("digits", kind="fsq", **TINY, seed=1).model
    with pytest.raises(CheckpointError, match="weights"):
        train_token_prior(other, "digits", **PRIOR, folder=tmp_path)


@pytest.mark.parametrize("budget", [{"minutes": 0.02}, {"steps": 100_000}], ids=["minutes", "stopped"])
def test_an_autoencoder_can_be_used_however_it_ended(budget, tmp_path, cut):
    tiny = {k: v for k, v in TINY.items() if k != "steps"}
    with cut(5) if "steps" in budget else nullcontext():
        train_autoencoder("digits", kind="kl", **tiny, **budget, folder=tmp_path)
    autoencoder = load_autoencoder(tmp_path / autoencoders.FILE)
    latents = autoencoder.encode(to_tensor(data.load("digits").batch(range(256)).images))
    assert 0.8 < float(latents.detach().std()) < 1.25
