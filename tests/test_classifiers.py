"""What reads noisy pictures: it learns, goes on after a cut, saves and loads, and guides."""

from __future__ import annotations

import pytest
import torch

from fastdiffusion import data, guidance, models, nets
from fastdiffusion.data import Images
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.guidance.features import feature_guidance
from fastdiffusion.models import Model
from fastdiffusion.nets import presets
from fastdiffusion.nets.classifier import Classifier, NoiseLevel
from fastdiffusion.tasks.classification import train as classification
from fastdiffusion.tasks.classification.train import accuracy, level_error, train_classifier, train_noise_level
from fastdiffusion.types import Cond


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").split(0.2)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    spec = {**presets.PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1, "classes": 10}
    return Model(Denoiser(nets.build(spec)), (1, 8, 8), classes=tuple("0123456789"))


@pytest.fixture(scope="module")
def judge(digits) -> Classifier:
    return train_classifier(digits[0], steps=150, batch_size=64, lr=3e-3).model


@pytest.mark.slow
def test_a_classifier_learns_at_every_noise_level(digits, judge):
    seen = accuracy(judge, digits[1], (0.1, 1.0, 20.0))
    assert seen[0.1] > 0.17 and seen[0.1] > seen[20.0]  # chance is 0.1 (+- 0.02); bench/guidance.py trains on


def test_its_gradient_raises_its_own_verdict(judge):
    x, sigma, cond = torch.randn(8, 1, 8, 8), torch.full((8,), 0.5), Cond(label=torch.arange(8))
    guided = guidance.classifier(lambda x, sigma, cond=None: x, judge.log_prob, 0.2)
    assert judge.log_prob(guided(x, sigma, cond), sigma, cond).mean() > judge.log_prob(x, sigma, cond).mean()


def test_no_label_guides_nowhere(judge):
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    none, some = judge.log_prob(x, sigma, Cond(label=torch.tensor([-1, 3])))
    assert none == 0 and some < 0
    with pytest.raises(InputError, match="needs labels"):
        judge.log_prob(x, sigma)


def test_it_reads_the_middle_of_a_model_and_leaves_it_alone(digits, model):
    before = {name: value.clone() for name, value in models.native_denoiser(model).net.state_dict().items()}
    reader = train_classifier(digits[0], steps=3, model=model, batch_size=16).model
    assert all(
        torch.equal(value, before[name]) for name, value in models.native_denoiser(model).net.state_dict().items()
    )
    assert all(torch.equal(value, before[name]) for name, value in reader.trunk.state_dict().items())
    assert {name.split(".")[0] for name, p in reader.named_parameters() if p.requires_grad} == {"head"}
    dit = nets.build({**presets.PRESETS["dit-tiny"], "in_channels": 1, "out_channels": 1})
    with pytest.raises(InputError, match="Only a U-Net has a middle to read, got a DiT"):
        Classifier.from_denoiser(Denoiser(dit), 10)


@pytest.mark.parametrize("width", [8, 9])
def test_the_middle_guides_like_the_whole_classifier(width):
    """One way down for model and classifier is the sum of both, and the identity at scale 0."""
    torch.manual_seed(1)
    spec = {**presets.PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1, "classes": 3}
    denoiser = Denoiser(nets.build(spec))
    for p in denoiser.parameters():
        torch.nn.init.normal_(p, std=0.1)
    reader = Classifier.from_denoiser(denoiser, 3)
    for p in reader.head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, sigma, cond = torch.randn(4, 1, 8, width), torch.full((4,), 0.7), Cond(label=torch.tensor([0, 1, 2, -1]))
    with torch.no_grad():
        untold = denoiser(x, sigma, cond.null())
        whole = guidance.classifier(lambda x, sigma, cond=None: denoiser(x, sigma), reader.log_prob, 3.0)
        torch.testing.assert_close(feature_guidance(denoiser, reader, 3.0)(x, sigma, cond), whole(x, sigma, cond))
        assert torch.equal(feature_guidance(denoiser, reader, 0.0)(x, sigma, cond), untold)
        moved = (feature_guidance(denoiser, reader, 3.0)(x, sigma, cond) - untold).abs().flatten(1).amax(1)
        assert moved[:3].min() > 1e-4 and moved[3] < 1e-6
    next(denoiser.net.parameters()).data += 1
    with pytest.raises(InputError, match="does not read the middle of this model"):
        feature_guidance(denoiser, reader)(x, sigma, cond)


def test_a_cut_run_goes_on_bit_for_bit(digits, tmp_path, cut):
    options = {"steps": 6, "batch_size": 16, "dropout": 0.3}
    whole = train_classifier(digits[0], **options).model
    with cut(4):
        train_classifier(digits[0], folder=tmp_path, **options)
    resumed = train_classifier(digits[0], folder=tmp_path, **options).model
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"holds a run with lr=0\.001"):
        train_classifier(digits[0], folder=tmp_path, **{**options, "lr": 0.1})
    with pytest.raises(CheckpointError, match="of other options such as the optimizer"):
        train_classifier(digits[0], folder=tmp_path, optimizer="muon", **{**options, "steps": 9})


def test_saved_and_loaded_it_is_the_same(judge, tmp_path):
    x, sigma = torch.randn(4, 1, 8, 8), torch.ones(4)
    classification.save(judge, tmp_path / "judge.safetensors")
    read = classification.load(tmp_path / "judge.safetensors")
    with torch.no_grad():
        assert isinstance(read, Classifier) and torch.equal(read(x, sigma), judge(x, sigma))


def test_foreign_files_are_refused(model, tmp_path):
    from fastdiffusion.io.checkpoints import load_tensors, save_tensors
    from fastdiffusion.models import save

    save(model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a file that train-classifier wrote|does not fit"):
        classification.load(tmp_path / "model.safetensors")
    classification.save(NoiseLevel({"width": 8}), tmp_path / "level.safetensors")
    config, tensors = load_tensors(tmp_path / "level.safetensors")
    for wrong in ({"kind": "classifier"}, {"net": {"width": 16}}, {"net": {"depth": 3}}, {"net": [1]}, {"more": 1}):
        save_tensors(tmp_path / "wrong.safetensors", tensors, {**config, **wrong})
        with pytest.raises(CheckpointError):
            classification.load(tmp_path / "wrong.safetensors")


def test_bad_data_and_options_are_told(digits):
    unlabelled = Images("photos", [torch.zeros(1, 8, 8, dtype=torch.uint8)] * 4)
    with pytest.raises(DataError, match="photos has no labels"):
        train_classifier(unlabelled)
    with pytest.raises(InputError, match=r"No U-Net named 'unet-tniy'. Did you mean 'unet-tiny'"):
        train_classifier(digits[0], net="unet-tniy")
    with pytest.raises(InputError, match="either steps or minutes, above 0"):
        train_noise_level(digits[0], steps=0)


def test_images_without_a_label_are_left_out(digits):
    known = digits[1].annotations(range(40)).labels.tolist()
    pixels = digits[1].batch(range(40)).images.numpy()
    some = [label if i % 10 == 0 else -1 for i, label in enumerate(known)]
    mixed = Images("mixed", [pixels], some, classes=digits[1].classes)
    options = {"steps": 4, "batch_size": 4, "verbose": False}
    with pytest.warns(UserWarning, match="Left out: 36 images of 40, without a label"):
        made = train_classifier(mixed, **options).model
    labelled = train_classifier(Images("labelled", [pixels[::10]], known[::10], classes=digits[1].classes), **options)
    x, sigma = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    assert torch.equal(made(x, sigma), labelled.model(x, sigma))
    with pytest.warns(UserWarning, match="Left out"):
        assert accuracy(made, mixed) == accuracy(made, Images("l", [pixels[::10]], known[::10], classes=mixed.classes))


def test_a_dropout_that_is_none_is_refused(digits):
    with pytest.raises(InputError, match=r"dropout must be at least 0 and below 1, got 1\.5"):
        train_classifier(digits[0], dropout=1.5)


@pytest.mark.slow
def test_a_noise_level_is_seen(digits):
    eye = train_noise_level(digits[0], steps=60, batch_size=64)
    error = level_error(eye, digits[1], (1.0, 10.0))
    assert error[1.0] < 0.35 and error[10.0] < 0.2
    assert eye(torch.randn(3, 1, 8, 8)).shape == (3,)
