"""Autoencoders, their training, and latents in place of pictures."""

import json

import pytest
import torch

from fastdiffusion import nets
from fastdiffusion.checkpoints import save_tensors
from fastdiffusion.data.dataset import Pictures
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.images import to_tensor
from fastdiffusion.latents import Latents
from fastdiffusion.learner import Learner
from fastdiffusion.models import load, load_codec, save
from fastdiffusion.nets.autoencoders import FSQ, KL, VQ, divergence
from fastdiffusion.tasks import autoencoders
from fastdiffusion.tasks.autoencoders import quality, standardize, train_autoencoder, use

SMALL = {"latent": 4, "width": 16, "batch_size": 16, "optimizer": "adamw", "lr": 3e-3}


def blobs(n: int = 96, size: int = 16) -> Pictures:
    """Soft disks of any color at any place: few numbers describe one."""
    g = torch.Generator().manual_seed(0)
    at, color = torch.rand(n, 2, 1, 1, generator=g) * size, torch.rand(n, 3, 1, 1, generator=g)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = torch.sigmoid(4 - ((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2).sqrt())[:, None]
    images = (255 * (1 - inside * (1 - color))).round().to(torch.uint8)
    return Pictures("blobs", [images.numpy()], captions=[["a blob"]] * n)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return train_autoencoder(blobs(), 200, folder=tmp_path_factory.mktemp("codec"), **SMALL)


def test_the_divergence_is_the_closed_form_against_monte_carlo():
    mean, log_var = torch.tensor([0.7, -1.2], dtype=torch.float64), torch.tensor([-0.5, 0.3], dtype=torch.float64)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    z = q.sample(torch.Size([400_000]))
    estimate = (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).mean(0)
    torch.testing.assert_close(divergence(mean, log_var), estimate, atol=0.02, rtol=0)


def test_it_learns_to_give_pictures_back(codec):
    torch.manual_seed(0)
    assert quality(codec, blobs()).psnr > quality(KL(3, 4, 16), blobs()).psnr + 8


def test_latents_are_standardized(codec):
    z = codec.encode(to_tensor(blobs().batch(list(range(96))).images))
    assert z.mean((0, 2, 3)).abs().max() < 0.1 and (z.std((0, 2, 3)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("size", [(16, 16), (20, 12), (15, 9)])
def test_any_size(codec, size):
    x = torch.rand(2, 3, *size)
    z = codec.encode(x)
    assert z.shape == (2, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert codec.decode(z).shape[-2] >= size[0]


def test_a_cut_run_goes_on_bit_for_bit(tmp_path):
    options = {**SMALL, "steps": 12}
    whole = train_autoencoder(blobs(), folder=tmp_path / "whole", **options)
    train_autoencoder(blobs(), folder=tmp_path / "cut", minutes=1e-9, **options)
    steps = (
        [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
        if (tmp_path / "cut" / "metrics.jsonl").exists()
        else []
    )
    assert 12 not in steps  # it was indeed cut
    resumed = train_autoencoder(blobs(), folder=tmp_path / "cut", **options)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="holds a run with codec="):
        train_autoencoder(blobs(), folder=tmp_path / "cut", **{**options, "latent": 3})


def test_cached_latents_equal_those_made_on_the_fly(codec, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = Latents(blobs(), codec)
    monkeypatch.setattr(codec, "encode", None)  # the second time, nothing is encoded
    second = Latents(blobs(), codec)
    monkeypatch.undo()
    batch = second.batch([3, 50, 7])
    assert torch.equal(first.batch([3, 50, 7]).images, batch.images)
    fly = codec.encode(to_tensor(blobs().batch([3, 50, 7]).images))
    torch.testing.assert_close(batch.images, fly, atol=1e-4, rtol=0)
    assert batch.captions == ["a blob"] * 3 and second.texts() == blobs().texts()


def test_a_latent_model_trains_and_its_file_holds_the_codec(codec, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net = {"name": "dit", "patch": 1, "width": 32, "depth": 1, "head": 32}
    learner = Learner(blobs(), net=net, codec=codec, batch_size=8, verbose=False, folder=tmp_path / "run").fit(steps=3)
    model = load(tmp_path / "run")
    assert model.shape == (4, 4, 4) and isinstance(model.codec, KL)
    z = torch.randn(2, 4, 4, 4)
    assert torch.equal(model.decode(z), learner.model.decode(z)) and model.decode(z).shape == (2, 3, 16, 16)
    save(model, tmp_path / "half.safetensors", torch.float16)
    assert (load(tmp_path / "half.safetensors").decode(z) - model.decode(z)).abs().max() < 0.02
    assert type(load_codec(tmp_path / "half.safetensors")) is KL


def test_files_that_are_no_codec_are_refused(codec, tmp_path):
    autoencoders.save(codec, tmp_path / "codec.safetensors")
    same = load_codec(tmp_path / "codec.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), codec.state_dict().values(), strict=True))
    for config in ({}, {"codec": {"name": "kl", "width": 10**6}}, {"codec": {"name": "unet"}}, {"codec": [1]}):
        save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, config)
        with pytest.raises(CheckpointError, match="autoencoder"):
            load_codec(tmp_path / "other.safetensors")


def test_bad_input(codec):
    with pytest.raises(InputError, match="at least 1"):
        train_autoencoder(blobs(), 1, latent=0)
    with pytest.raises(InputError, match="steps"):
        train_autoencoder(blobs(), 0)
    two = Pictures("two", [blobs(4).arrays[0], blobs(4, 24).arrays[0]])
    with pytest.raises(InputError, match="one size"):
        Latents(two, codec)


def test_standardize_takes_the_measure_of_the_data(codec):
    fresh = nets.build({"name": "kl", **codec.config})
    standardize(fresh, blobs())
    z = fresh.encode(to_tensor(blobs().batch(list(range(96))).images))
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_discrete_latents(kind):
    codec = train_autoencoder(blobs(), 60, kind, width=16, batch_size=16, optimizer="adamw", lr=3e-3)
    x = to_tensor(blobs().batch(list(range(32))).images)
    codes, z = codec.codes(x), codec.encode(x)
    assert codes.shape == (32, 4, 4) and int(codes.min()) >= 0 and int(codes.max()) < codec.words
    torch.testing.assert_close(codec.vectors(codes), z)
    torch.testing.assert_close(codec.decode(z + 1e-4 * torch.randn_like(z)), codec.decode(z))  # snaps to the words
    untrained = nets.build({"name": kind, **codec.config}).eval()
    assert quality(codec, blobs()).psnr > quality(untrained, blobs()).psnr + 3
    assert use(codec, blobs()) > 2 / codec.words


def test_fsq_codes_count_every_combination_once():
    codec = FSQ(levels=(4, 3))
    every = torch.arange(12).reshape(1, 3, 4)
    assert torch.equal(codec.quantize(codec.vectors(every))[1], every)
    wild = codec.bound(torch.tensor([-50.0, 50.0]).expand(1, 2, 1, 2).contiguous()) / (codec.levels // 2)
    assert wild.round().abs().max() <= 1 and len(codec.quantize(wild)[1].unique()) == 2


def test_words_that_nobody_uses_start_again():
    torch.manual_seed(0)
    codec = VQ(3, 4, 16, codebook=32).train()
    codec.book += 100  # all far away: one is nearest to everything
    x = to_tensor(blobs().batch(list(range(32))).images)
    for _ in range(5):
        codec(x)
    assert len(codec.codes(x).unique()) > 16


def test_a_critic_and_features_teach_a_decoder_alone(codec, tmp_path):
    options = {"perceptual": 0.1, "adversarial": 0.1, "decoder_of": codec, "batch_size": 8, "lr": 1e-3}
    tuned = train_autoencoder(blobs(), 8, folder=tmp_path, optimizer="adamw", **options)
    x = to_tensor(blobs().batch([1, 2]).images)
    assert torch.equal(tuned.encode(x), codec.encode(x))
    assert not torch.equal(tuned.decode(codec.encode(x)), codec.decode(codec.encode(x)))
    same = train_autoencoder(blobs(), 8, folder=tmp_path, optimizer="adamw", **options)  # is finished already
    assert torch.equal(same.decode(codec.encode(x)), tuned.decode(codec.encode(x)))


def test_neither_augmentation_nor_pairs_in_latents(codec):
    with pytest.raises(InputError, match="not on latents"):
        Learner(blobs(), codec=codec, augment=("flip_x",), verbose=False)
    pairs = blobs()
    pairs.given = 3
    with pytest.raises(InputError, match="pairs"):
        Latents(pairs, codec)


def test_a_codec_of_other_channels_is_refused(codec):
    gray = Pictures("gray", [torch.zeros(4, 1, 16, 16, dtype=torch.uint8).numpy()])
    with pytest.raises(InputError, match=r"takes pictures of 3 channels.*mode='RGB'"):
        Latents(gray, codec)
