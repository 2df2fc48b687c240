"""Autoencoders, their training, and latents in place of pictures."""

import pytest
import torch
from test_learner import StopAt

from fastdiffusion import nets
from fastdiffusion.data.dataset import Images
from fastdiffusion.data.latents import Latents
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.checkpoints import save_tensors
from fastdiffusion.io.images import to_tensor
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.models import load, load_autoencoder, save
from fastdiffusion.nets.autoencoders import FSQ, KL, VQ, divergence, rotated
from fastdiffusion.tasks.autoencoding import train
from fastdiffusion.tasks.autoencoding.train import quality, standardize, train_autoencoder, use
from fastdiffusion.training import callbacks, trainer
from fastdiffusion.training.learner import Learner

SMALL = {"latent": 4, "width": 16, "batch_size": 16, "optimizer": "adamw", "lr": 3e-3}


def blobs(n: int = 96, size: int = 16) -> Images:
    """Soft disks of any color at any place: few numbers describe one."""
    g = torch.Generator().manual_seed(0)
    at, color = torch.rand(n, 2, 1, 1, generator=g) * size, torch.rand(n, 3, 1, 1, generator=g)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = torch.sigmoid(4 - ((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2).sqrt())[:, None]
    images = (255 * (1 - inside * (1 - color))).round().to(torch.uint8)
    return Images("blobs", [images.numpy()], captions=[["a blob"]] * n)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return train_autoencoder(blobs(), steps=200, folder=tmp_path_factory.mktemp("codec"), **SMALL).model


def test_the_divergence_is_the_closed_form_against_monte_carlo():
    mean, log_var = torch.tensor([0.7, -1.2], dtype=torch.float64), torch.tensor([-0.5, 0.3], dtype=torch.float64)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    z = q.sample(torch.Size([400_000]))
    estimate = (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).mean(0)
    torch.testing.assert_close(divergence(mean, log_var), estimate, atol=0.02, rtol=0)


def test_it_learns_to_give_pictures_back(autoencoder):
    torch.manual_seed(0)
    assert quality(autoencoder, blobs()).psnr > quality(KL(3, 4, 16), blobs()).psnr + 8


def test_latents_are_standardized(autoencoder):
    z = autoencoder.encode(to_tensor(blobs().batch(list(range(96))).images))
    assert z.mean((0, 2, 3)).abs().max() < 0.1 and (z.std((0, 2, 3)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("size", [(16, 16), (20, 12), (15, 9)])
def test_any_size(autoencoder, size):
    x = torch.rand(2, 3, *size)
    z = autoencoder.encode(x)
    assert z.shape == (2, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert autoencoder.decode(z).shape[-2] >= size[0]


def test_a_cut_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    options = {**SMALL, "steps": 12}
    whole = train_autoencoder(blobs(), folder=tmp_path / "whole", **options).model
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "defaults", lambda training: [*callbacks.defaults(training), StopAt(3)])
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder(blobs(), folder=tmp_path / "cut", **options)
    assert Folder(tmp_path / "cut").latest()[0] == 3
    resumed = train_autoencoder(blobs(), folder=tmp_path / "cut", **options).model
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="holds a run with codec="):
        train_autoencoder(blobs(), folder=tmp_path / "cut", **{**options, "latent": 3})


def test_cached_latents_equal_those_made_on_the_fly(autoencoder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = Latents(blobs(), autoencoder)
    monkeypatch.setattr(autoencoder, "encode", None)  # the second time, nothing is encoded
    second = Latents(blobs(), autoencoder)
    monkeypatch.undo()
    batch = second.batch([3, 50, 7])
    assert torch.equal(first.batch([3, 50, 7]).images, batch.images)
    fly = autoencoder.encode(to_tensor(blobs().batch([3, 50, 7]).images))
    torch.testing.assert_close(batch.images, fly, atol=1e-4, rtol=0)
    assert batch.captions == ["a blob"] * 3 and second.texts() == blobs().texts()


def test_a_latent_model_trains_and_its_file_holds_the_codec(autoencoder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net = {"name": "dit", "patch": 1, "width": 32, "depth": 1, "head": 32}
    learner = Learner(
        blobs(), net=net, autoencoder=autoencoder, batch_size=8, verbose=False, folder=tmp_path / "run"
    ).fit(steps=3)
    model = load(tmp_path / "run")
    assert model.shape == (4, 4, 4) and isinstance(model.autoencoder, KL)
    z = torch.randn(2, 4, 4, 4)
    assert torch.equal(model.decode(z), learner.model.decode(z)) and model.decode(z).shape == (2, 3, 16, 16)
    save(model, tmp_path / "half.safetensors", torch.float16)
    assert (load(tmp_path / "half.safetensors").decode(z) - model.decode(z)).abs().max() < 0.02
    assert type(load_autoencoder(tmp_path / "half.safetensors")) is KL


def test_files_that_are_no_codec_are_refused(autoencoder, tmp_path):
    train.save(autoencoder, tmp_path / "codec.safetensors")
    same = load_autoencoder(tmp_path / "codec.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(same.state_dict().values(), autoencoder.state_dict().values(), strict=True)
    )
    for config in ({}, {"codec": {"name": "kl", "width": 10**6}}, {"codec": {"name": "unet"}}, {"codec": [1]}):
        save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, config)
        with pytest.raises(CheckpointError, match=r"autoencoder|does not fit"):
            load_autoencoder(tmp_path / "other.safetensors")


def test_bad_input(autoencoder):
    with pytest.raises(InputError, match="at least 1"):
        train_autoencoder(blobs(), steps=1, latent=0)
    with pytest.raises(InputError, match="steps"):
        train_autoencoder(blobs(), steps=0)
    two = Images("two", [blobs(4).arrays[0], blobs(4, 24).arrays[0]])
    with pytest.raises(InputError, match="one size"):
        Latents(two, autoencoder)


def test_standardize_takes_the_measure_of_the_data(autoencoder):
    fresh = nets.build({"name": "kl", **autoencoder.config})
    standardize(fresh, blobs())
    z = fresh.encode(to_tensor(blobs().batch(list(range(96))).images))
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_discrete_latents(kind):
    autoencoder = train_autoencoder(
        blobs(), steps=60, kind=kind, width=16, batch_size=16, optimizer="adamw", lr=3e-3
    ).model
    x = to_tensor(blobs().batch(list(range(32))).images)
    tokens, z = autoencoder.tokens(x), autoencoder.encode(x)
    assert tokens.shape == (32, 4, 4) and int(tokens.min()) >= 0 and int(tokens.max()) < autoencoder.codebook_size
    torch.testing.assert_close(autoencoder.vectors(tokens), z)
    torch.testing.assert_close(
        autoencoder.decode(z + 1e-4 * torch.randn_like(z)), autoencoder.decode(z)
    )  # snaps to the words
    untrained = nets.build({"name": kind, **autoencoder.config}).eval()
    assert quality(autoencoder, blobs()).psnr > quality(untrained, blobs()).psnr + 3
    assert use(autoencoder, blobs()) > 2 / autoencoder.codebook_size


def test_fsq_codes_count_every_combination_once():
    autoencoder = FSQ(levels=(4, 3))
    every = torch.arange(12).reshape(1, 3, 4)
    assert torch.equal(autoencoder.quantize(autoencoder.vectors(every))[1], every)
    wild = autoencoder.bound(torch.tensor([-50.0, 50.0]).expand(1, 2, 1, 2).contiguous()) / (autoencoder.levels // 2)
    assert wild.round().abs().max() <= 1 and len(autoencoder.quantize(wild)[1].unique()) == 2


def test_a_vector_is_turned_to_its_token_and_the_gradient_with_it():
    z, to = torch.randn(2, 3, 1, 1, requires_grad=True), torch.randn(2, 3, 1, 1)
    turned = rotated(z, to)
    torch.testing.assert_close(turned, to)
    turn = [torch.autograd.grad(turned[0, i, 0, 0], z, retain_graph=True)[0][0, :, 0, 0] for i in range(3)]
    turn = torch.stack(turn) * z[0].norm().detach() / to[0].norm()
    torch.testing.assert_close(turn @ turn.T, torch.eye(3))  # a rotation, and no reflection
    assert float(torch.linalg.det(turn)) == pytest.approx(1, abs=1e-5)


def test_words_that_nobody_uses_start_again():
    torch.manual_seed(0)
    autoencoder = VQ(3, 4, 16, codebook=32).train()
    autoencoder.book += 100  # all far away: one is nearest to everything
    x = to_tensor(blobs().batch(list(range(32))).images)
    for _ in range(5):
        autoencoder(x)
    assert len(autoencoder.tokens(x).unique()) > 16


def test_a_critic_and_features_teach_a_decoder_alone(autoencoder, tmp_path):
    options = {"perceptual": 0.1, "adversarial": 0.1, "decoder_of": autoencoder, "batch_size": 8, "lr": 1e-3}
    tuned = train_autoencoder(blobs(), steps=8, folder=tmp_path, optimizer="adamw", **options).model
    x = to_tensor(blobs().batch([1, 2]).images)
    assert torch.equal(tuned.encode(x), autoencoder.encode(x))
    assert not torch.equal(tuned.decode(autoencoder.encode(x)), autoencoder.decode(autoencoder.encode(x)))
    same = train_autoencoder(
        blobs(), steps=8, folder=tmp_path, optimizer="adamw", **options
    ).model  # is finished already
    assert torch.equal(same.decode(autoencoder.encode(x)), tuned.decode(autoencoder.encode(x)))


def test_neither_augmentation_nor_pairs_in_latents(autoencoder):
    with pytest.raises(InputError, match="not on latents"):
        Learner(blobs(), autoencoder=autoencoder, augment=("flip_x",), verbose=False)
    pairs = blobs()
    pairs.cond_channels = 3
    with pytest.raises(InputError, match="pairs"):
        Latents(pairs, autoencoder)


def test_a_codec_of_other_channels_is_refused(autoencoder):
    gray = Images("gray", [torch.zeros(4, 1, 16, 16, dtype=torch.uint8).numpy()])
    with pytest.raises(InputError, match=r"takes images of 3 channels.*mode='RGB'"):
        Latents(gray, autoencoder)
