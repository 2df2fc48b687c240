"""Drafts: what words alone say of a picture, learned by regression, shown to the denoiser, and kept in its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastdiffusion import models
from fastdiffusion.cli import main
from fastdiffusion.data import Images
from fastdiffusion.data.emoji.translations import Pair
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.checkpoints import load_tensors
from fastdiffusion.io.images import to_tensor
from fastdiffusion.models import Model, load, save
from fastdiffusion.tasks.text_image.caption_mean import FILE, train_caption_mean
from fastdiffusion.tasks.text_image.multilingual import add_language
from fastdiffusion.training.learner import Learner
from fastdiffusion.types import Cond

NET = {"name": "dit", "patch": 4, "width": 32, "depth": 1, "head": 32, "words": {"width": 32, "depth": 1, "head": 32}}
SETTINGS = {"net": NET, "side": 4, "batch_size": 32, "lr": 5e-3, "holdout": 0.0, "precision": "float32"}
CAPTIONS = ["red square", "blue square", "red frame", "blue frame"]


@pytest.fixture(scope="module")
def data() -> Images:
    """Of each caption many pictures, which are its own mean and noise of their own."""
    g = torch.Generator().manual_seed(0)
    kinds = torch.randint(60, 196, (4, 3, 4, 4), generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.randint(-50, 51, (128, 3, 16, 16), generator=g)
    images = (kinds.repeat(32, 1, 1, 1) + noise).to(torch.uint8).numpy()
    return Images("means", [images], captions=[(CAPTIONS[i % 4],) for i in range(128)])


@pytest.fixture(scope="module")
def drafted(data: Images) -> Model:
    return train_caption_mean(data, steps=150, **SETTINGS).model


def drawn(model: Model, captions: list[str]) -> torch.Tensor:
    with torch.no_grad():
        pooled = model.encode_prompt(captions).pooled
        return models.native_denoiser(model).net.caption_mean(pooled) * models.native_denoiser(model).sigma_data


def test_it_is_the_mean_of_the_pictures_of_a_caption(data, drafted):
    x = torch.nn.functional.adaptive_avg_pool2d(to_tensor(data.batch(range(128)).images), 4)
    means = torch.stack([x[i::4].mean(0) for i in range(4)])
    error = (drawn(drafted, CAPTIONS) - means).square().mean()
    assert error < 0.02 * means.var(0).mean()


def test_the_denoiser_sees_it(data, drafted):
    """Its last input channels are the draft, enlarged; without words, that of no words."""
    seen = []
    net = models.native_denoiser(drafted).net
    hook = net.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x, sigma = torch.randn(2, 3, 16, 16), torch.ones(2)
    with torch.no_grad():
        drafted.denoise(x, sigma, drafted.encode_prompt(CAPTIONS[:2]))
        drafted.denoise(x, sigma, Cond())
        drafted.denoise(x, sigma, drafted.encode_prompt(["", ""]))
    hook.remove()
    wanted = drawn(drafted, CAPTIONS[:2]) / models.native_denoiser(drafted).sigma_data
    torch.testing.assert_close(seen[0][:, 3:], torch.nn.functional.interpolate(wanted, (16, 16)))
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0][:, 3:], seen[1][:, 3:])


def test_a_file_keeps_it_and_training_goes_on_with_it(data, drafted, tmp_path):
    save(drafted, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(drawn(again, CAPTIONS), drawn(drafted, CAPTIONS))
    learner = Learner(
        data,
        init_from=tmp_path / "m.safetensors",
        captions=True,
        holdout=0.0,
        batch_size=16,
        precision="float32",
        verbose=False,
    ).fit(steps=3)
    assert not torch.equal(drawn(learner.model, CAPTIONS), drawn(drafted, CAPTIONS))
    assert torch.isfinite(drawn(learner.model, CAPTIONS)).all()


def test_another_language_keeps_it(drafted):
    pairs = [Pair(text[::-1], text) for text in CAPTIONS]
    taught = add_language(drafted, pairs, steps=2, vocabulary=320, batch_size=8).model
    assert (
        torch.equal(
            models.native_denoiser(taught).net.caption_mean.layers[0].weight,
            models.native_denoiser(drafted).net.caption_mean.layers[0].weight,
        )
        and models.native_denoiser(taught).net.config["draft"]["side"] == 4
    )


def test_it_goes_on_where_it_was_cut(data, tmp_path, cut):
    whole = train_caption_mean(data, steps=6, folder=tmp_path / "a", **SETTINGS).model
    with cut(1):
        train_caption_mean(data, steps=6, folder=tmp_path / "b", **SETTINGS)
    saved = load_tensors(tmp_path / "b" / "step-000000001.safetensors")[0]["config"]
    assert (
        list(saved["optimizer"]) == ["draft"] and {"words", "draft", "begin"} < saved["run"].keys()
    )  # as ever in files
    cut = train_caption_mean(data, steps=6, folder=tmp_path / "b", **SETTINGS).model
    assert torch.equal(drawn(cut, CAPTIONS), drawn(whole, CAPTIONS))
    assert torch.equal(drawn(load(tmp_path / "b" / FILE), CAPTIONS), drawn(whole, CAPTIONS))
    with pytest.raises(CheckpointError, match="choose another folder"):
        train_caption_mean(data, steps=6, folder=tmp_path / "b", **{**SETTINGS, "seed": 5})


def test_a_model_without_a_draft_is_refused(data, tmp_path):
    model = Learner(data, net=NET, captions=True, verbose=False).model
    save(model, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="no caption mean"):
        train_caption_mean(data, steps=2, init_from=tmp_path / "plain.safetensors", **SETTINGS)


def test_the_command(tmp_path, capsys):
    from fastdiffusion.io.images import save_png

    folder: Path = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        save_png(torch.rand(3, 16, 16) * 2 - 1, folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(CAPTIONS[i % 4])
    out = tmp_path / "draft"
    main(["train-draft", str(folder), "--steps", "2", "--net", "dit-tiny", "--batch-size", "4", "-o", str(out)])
    assert f"--init-from {out / FILE}" in capsys.readouterr().out
    assert load(out / FILE).conditioner is not None
