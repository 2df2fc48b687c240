"""Pictures and words in one space: the encoders learn, go on after a cut, read noise, and guide; so does the prior."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastdiffusion
from fastdiffusion import guidance, nets
from fastdiffusion.cli import main
from fastdiffusion.data import Images
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.io.images import save_png, to_tensor
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.metrics.retrieval import r_precision
from fastdiffusion.models import Model
from fastdiffusion.nets import presets
from fastdiffusion.nets.clip import Clip, cloob, infonce, matches
from fastdiffusion.noise import generator
from fastdiffusion.tasks.generation import guidance_spec
from fastdiffusion.tasks.text_image import clip as clips_clip
from fastdiffusion.tasks.text_image import prior as priors
from fastdiffusion.tasks.text_image import scoring

COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
SHAPES = ("square", "stripe", "frame")


def drawn(color: str, shape: str, seed: int) -> torch.Tensor:
    """A shape on white, its place and size by seed, as uint8 (3, 16, 16)."""
    source = generator(seed, 3)
    x, y, side = (int(torch.randint(low, high, (1,), generator=source)) for low, high in ((1, 4), (1, 4), (7, 12)))
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    if shape == "stripe":
        mask[:, : x + 2] = mask[:, x + 5 :] = False
    elif shape == "frame":
        mask[y + 2 : y + side - 2, x + 2 : x + side - 2] = False
    paint = torch.tensor(COLORS[color], dtype=torch.uint8)[:, None, None]
    return torch.where(mask, paint, torch.full((3, 16, 16), 255, dtype=torch.uint8))


KINDS = [(color, shape) for color in COLORS for shape in SHAPES]


def shapes(n: int, seed: int = 0) -> Images:
    kinds = [KINDS[i % len(KINDS)] for i in range(n)]
    pictures = torch.stack([drawn(*kind, seed + i) for i, kind in enumerate(kinds)])
    captions = [(f"{color} {shape}", f"a {shape} in {color}") for color, shape in kinds]
    return Images("shapes", [pictures.numpy()], captions=captions)


NAMES = [f"{color} {shape}" for color, shape in KINDS]
OPTIONS = {"net": "tiny", "batch_size": 32, "lr": 4e-3, "optimizer": "adamw", "vocabulary": 320, "seed": 1}


@pytest.fixture(scope="module")
def data() -> Images:
    return shapes(240)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Clip, Folder]:
    folder = tmp_path_factory.mktemp("clip")
    return clips_clip.train_clip(data, steps=100, folder=folder, **OPTIONS).model, Folder(folder)


@pytest.fixture(scope="module")
def clip(trained) -> Clip:
    return trained[0]


# ---- losses -----------------------------------------------------------------------------------------------------


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=generator(seed), dtype=torch.double), dim=1)


NONE = torch.zeros(5, 5, dtype=torch.bool)


def test_infonce_is_two_cross_entropies():
    seen, said, scale = unit(5, 7, 0), unit(5, 7, 1), torch.tensor(3.0)
    by_hand = 0.0
    for i in range(5):
        rows, columns = scale * said @ seen[i], scale * seen @ said[i]
        by_hand += -(rows[i] - rows.logsumexp(0)) - (columns[i] - columns.logsumexp(0))
    assert float(infonce(seen, said, scale, NONE)) == pytest.approx(float(by_hand) / 10)


def test_cloob_follows_its_equations():
    """Fürst et al. 2022, eq. 6 to 8, term by term."""
    seen, said = unit(5, 7, 2), unit(5, 7, 3)

    def retrieve(stored, asking):
        return F.normalize(torch.softmax(8.0 * stored @ asking, 0) @ stored, dim=0)

    by_hand = 0.0
    for i in range(5):
        u = [retrieve(seen, said[j]) for j in range(5)]
        own = retrieve(seen, seen[i])
        by_hand -= math.log(math.exp(30 * own @ u[i]) / sum(math.exp(30 * own @ u[j]) for j in range(5) if j != i))
        v = [retrieve(said, seen[j]) for j in range(5)]
        own = retrieve(said, said[i])
        by_hand -= math.log(math.exp(30 * own @ v[i]) / sum(math.exp(30 * own @ v[j]) for j in range(5) if j != i))
    assert float(cloob(seen, said, torch.tensor(1.0), NONE)) == pytest.approx(by_hand / 5 / 30)


@pytest.mark.parametrize("loss", [infonce, cloob])
def test_equal_pairs_are_not_told_apart(loss):
    """A copy in the batch, marked as one, leaves the loss of each pair as it was but for the repetition."""
    seen, said, scale = unit(4, 7, 4), unit(4, 7, 5), torch.tensor(3.0)
    twice = [torch.cat([v, v[:1]]) for v in (seen, said)]
    same = torch.zeros(5, 5, dtype=torch.bool)
    same[0, 4] = same[4, 0] = True
    marked, unmarked = loss(*twice, scale, same), loss(*twice, scale, torch.zeros_like(same))
    assert marked < unmarked
    perfect = loss(seen, seen, torch.tensor(60.0), torch.zeros(4, 4, dtype=torch.bool))
    assert perfect < loss(seen, said, torch.tensor(60.0), torch.zeros(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("loss", [infonce, cloob])
def test_a_pair_with_none_to_be_told_from_teaches_nothing(loss):
    seen, said, scale = unit(3, 7, 4).requires_grad_(), unit(3, 7, 5).requires_grad_(), torch.tensor(3.0)
    value = loss(seen, said, scale, ~torch.eye(3, dtype=torch.bool))  # all captions are the same
    value.backward()
    assert value.item() == 0 and not seen.grad.any() and not said.grad.any()
    same = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)  # the first alone has no other
    assert math.isfinite(float(loss(seen, said, scale, same))) and float(loss(seen, said, scale, same)) != 0


# ---- the encoders -----------------------------------------------------------------------------------------------


def test_it_tells_pictures_that_it_never_saw(clip):
    fresh = shapes(48, seed=10_000)
    batch = fresh.batch(range(48))
    found = r_precision(clip, batch.images, batch.captions, among=len(NAMES), pool=NAMES)
    assert found.value > 0.5  # chance is 1 / 12
    assert found.low <= found.value <= found.high


def test_the_run_writes_its_recall_beside_chance(trained):
    lines = trained[1].metrics()
    assert [line for line in lines if "loss" in line][-1]["loss"] < 2.5
    assert 0 <= lines[-1]["recall"] <= 1 and lines[-1]["among"] >= 2


@pytest.mark.parametrize("loss", ["infonce", "cloob"])
def test_a_cut_run_goes_on_bit_for_bit(data, tmp_path, loss, cut):
    whole = clips_clip.train_clip(data, steps=6, loss=loss, folder=tmp_path / "whole", **OPTIONS).model
    with cut(4):
        clips_clip.train_clip(data, steps=6, loss=loss, folder=tmp_path / "cut", **OPTIONS)
    resumed = clips_clip.train_clip(data, steps=6, loss=loss, folder=tmp_path / "cut", **OPTIONS).model
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="holds a run with other data, seed=1"):
        clips_clip.train_clip(data, steps=6, loss=loss, folder=tmp_path / "cut", **{**OPTIONS, "seed": 77})


def test_saved_and_loaded_it_is_the_same(clip, trained, data, tmp_path):
    pictures = to_tensor(data.batch(range(4)).images)
    read = clips_clip.load(trained[1].path)
    assert torch.equal(read.encode_image(pictures), clip.encode_image(pictures)) and torch.equal(
        read.encode_text(NAMES), clip.encode_text(NAMES)
    )
    clips_clip.save(clip, tmp_path / "half.safetensors", torch.float16)
    half = clips_clip.load(tmp_path / "half.safetensors")
    torch.testing.assert_close(half.encode_image(pictures), clip.encode_image(pictures), atol=0.02, rtol=0)


def test_foreign_files_are_refused(tmp_path):
    from fastdiffusion.io.checkpoints import save_tensors

    for config in ({"kind": "classifier"}, {"kind": "clip"}, {"kind": "clip", "image": {"net": {}}, "text": {}}):
        save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, config)
        with pytest.raises(CheckpointError, match=r"is not a file that train-clip wrote|does not fit"):
            clips_clip.load(tmp_path / "other.safetensors")


def test_bad_data_and_options_are_told(data):
    silent = Images("photos", [torch.zeros(8, 3, 16, 16, dtype=torch.uint8).numpy()])
    with pytest.raises(DataError, match="photos has no captions"):
        clips_clip.train_clip(silent)
    alike = Images("photos", silent.arrays, captions=[["a photo"]] * 8)
    with pytest.raises(DataError, match="photos has one caption for all its images"):
        clips_clip.train_clip(alike)
    with pytest.raises(InputError, match="draws must be at least 1, got 0"):
        priors.train_prior(clips_clip.load(), data, draws=0)
    with pytest.raises(InputError, match=r"No CLIP size named 'smal'\. Did you mean 'small'"):
        clips_clip.train_clip(data, net="smal")
    with pytest.raises(InputError, match="No CLIP loss named"):
        clips_clip.train_clip(data, loss="triplet")


# ---- what it is good for ----------------------------------------------------------------------------------------


def test_a_picture_is_scored(clip, tmp_path):
    save_png(drawn("red", "square", 77_777), tmp_path / "picture.png")
    red, blue = fastdiffusion.clip_score(tmp_path / "picture.png", ["a red square", "a blue square"], clip)
    assert red.similarity > blue.similarity and red.better_than > blue.better_than
    with pytest.raises(InputError, match="no text"):
        scoring.clip_score(tmp_path / "picture.png", " ", clip)


def test_gray_pictures_and_latents(tmp_path):
    text = {"vocabulary": 260, "width": 32, "depth": 1, "head": 16}
    gray, latent = (Clip({"net": {**clips_clip.SIZES["tiny"], "in_channels": n}}, text, 16, ["a"]) for n in (1, 4))
    save_png(drawn("red", "square", 1), tmp_path / "picture.png")
    assert len(scoring.clip_score(tmp_path / "picture.png", ["a", "b"], gray)) == 2
    assert scoring.search(tmp_path, "a", model=gray)[0].path == "picture.png"
    with pytest.raises(InputError, match="takes latents of 4 channels"):
        scoring.clip_score(tmp_path / "picture.png", "a", latent)


def test_a_folder_is_searched(clip, trained, tmp_path, capsys):
    for i, (color, shape) in enumerate(KINDS):
        save_png(drawn(color, shape, 88_000 + i), tmp_path / "in" / f"{color}-{shape}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    found = fastdiffusion.search(tmp_path / "in", "blue frame", n=3, model=clip)
    assert found[0].path == "blue-frame.png" and found[0].similarity >= found[-1].similarity and len(found) == 3
    model = str(trained[1].path)
    assert main(["search", str(tmp_path / "in"), "blue frame", "-n", "2", "--model", model]) == 0
    assert "blue-frame.png" in capsys.readouterr().out.splitlines()[0]
    assert main(["score", str(tmp_path / "in" / "red-frame.png"), "blue frame", "red frame", "-m", model]) == 0
    assert "red frame" in capsys.readouterr().out.splitlines()[0]
    assert main(["score", str(tmp_path / "in" / "red-frame.png"), "x", "--model", str(tmp_path / "none")]) == 2


def test_pictures_without_captions_are_left_out(data, tmp_path):
    half = [said if i % 2 else () for i, said in enumerate(data.captions[:40])]
    mixed = Images("mixed", [data.arrays[0][:40]], captions=half)
    with pytest.warns(UserWarning, match=r"Left out: \d+ images? of .*, without a caption"):
        clips_clip.train_clip(mixed, steps=2, net="tiny", batch_size=8, folder=tmp_path, holdout=0.2)
    assert "recall" in Folder(tmp_path).metrics()[-1]
    lines = len(Folder(tmp_path).metrics())
    with pytest.warns(UserWarning, match="Left out"):
        clips_clip.train_clip(mixed, steps=2, net="tiny", batch_size=8, folder=tmp_path, holdout=0.2)
    assert len(Folder(tmp_path).metrics()) == lines  # what is finished is not reported again


def test_the_command_trains(tmp_path, capsys):
    for i in range(24):
        color, shape = KINDS[i % len(KINDS)]
        save_png(drawn(color, shape, i), tmp_path / "in" / f"{i}.png")
        (tmp_path / "in" / f"{i}.txt").write_text(f"{color} {shape}\nthe {color} {shape}\n")
    command = f"train-clip {tmp_path}/in --size 16 --net tiny --steps 3 --batch-size 8 --out {tmp_path}/run"
    assert main(command.split()) == 0
    assert "chance is" in capsys.readouterr().out
    assert (tmp_path / "run" / "clip.safetensors").exists()


def test_the_gap_closes(clip, data):
    batch = data.batch(range(96))
    before, after = clips_clip.gap(clip, to_tensor(batch.images), batch.captions)
    assert after < before


# ---- noise ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(clip, data) -> Clip:
    return clips_clip.train_noisy(clip, data, steps=60, batch_size=32, lr=2e-3, optimizer="adamw")


def test_a_noisy_encoder_sees_through_noise(clip, noisy):
    """Names of images under four times their own contrast in noise; how much it gains is measured in bench/clip.py."""
    batch = shapes(96, seed=20_000).batch(range(96))
    x = to_tensor(batch.images)
    x = x + 4.0 * torch.randn(x.shape, generator=generator(5))

    class Told:
        encode_text = staticmethod(clip.encode_text)

        @staticmethod
        def encode_image(images):
            return noisy.encode_image(images, torch.full((len(images),), 4.0))

    assert r_precision(Told, x, batch.captions, among=len(NAMES), pool=NAMES).value > 3 / len(NAMES)
    assert all(torch.equal(a, b) for a, b in zip(clip.text.parameters(), noisy.text.parameters(), strict=True))


def test_its_gradient_raises_its_own_verdict(noisy):
    x, sigma = torch.randn(6, 3, 16, 16, generator=generator(9)), torch.full((6,), 0.5)
    verdict = matches(noisy, ["red square"], NAMES)
    guided = guidance.classifier(lambda x, sigma, cond=None: x, verdict, 0.1)
    assert verdict(guided(x, sigma), sigma).mean() > verdict(x, sigma).mean()
    assert (verdict(x, sigma) < 0).all()
    each = matches(noisy, NAMES[:6], NAMES)(x, sigma)
    torch.testing.assert_close(each[2], matches(noisy, NAMES[2:3], NAMES)(x, sigma)[2])
    torch.testing.assert_close(each, matches(noisy, noisy.encode_text(NAMES[:6]), NAMES)(x, sigma))


def test_latents_have_an_encoder_too(clip, data):
    class Halved(Images):
        """Pictures with their pixels folded into channels: latents that need no codec."""

        def batch(self, indices, generator=None):
            found = super().batch(indices, generator)
            return found._replace(images=F.pixel_unshuffle(to_tensor(found.images), 2))

    latents = Halved("latents", data.arrays, captions=data.captions, shape=(12, 8, 8))
    made = clips_clip.train_noisy(clip, latents, data, steps=30, batch_size=32)
    fresh = shapes(48, seed=40_000).batch(range(48))
    x = F.pixel_unshuffle(to_tensor(fresh.images), 2)
    found = r_precision(made, x, fresh.captions, among=len(NAMES), pool=NAMES)
    assert made.encode_image(x, torch.ones(48)).shape == (48, clip.dim) and found.value > 0.25  # chance is 1 / 12


def test_words_guide_a_model_that_was_told_none(clip, noisy, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = {**presets.PRESETS["unet-tiny"], "in_channels": 3, "out_channels": 3}
        model = Model(Denoiser(nets.build(spec)), (3, 16, 16))
    x, sigma = torch.randn(4, 3, 16, 16, generator=generator(11)), torch.full((4,), 2.0)
    for name, encoder in (("noisy", noisy), ("clean", clip)):
        clips_clip.save(encoder, tmp_path / f"{name}.safetensors")
        guide = f"clip {tmp_path}/{name}.safetensors 'red square' scale=0.5"
        guided, said = guidance_spec.parse_guidance(guide, guidance_spec.Setting(model, model.shape))
        verdict = matches(encoder, ["red square"])
        by_hand = (
            guidance.classifier(model.denoise, verdict, 0.5)
            if encoder.noisy
            else guidance.loss_guidance(model.denoise, lambda x0, verdict=verdict: -verdict(x0), 0.5)
        )
        torch.testing.assert_close(guided(model.denoise)(x, sigma), by_hand(x, sigma))
        assert said is not None and said.startswith(f"clip {name}.safetensors@") and said.endswith("scale=0.5")
    gray = Model(Denoiser(nets.build({**spec, "in_channels": 1, "out_channels": 1})), (1, 16, 16))
    with pytest.raises(InputError, match="reads other images"):
        guidance_spec.parse_guidance(guide, guidance_spec.Setting(gray, gray.shape))


# ---- the prior --------------------------------------------------------------------------------------------------


def test_the_prior_crosses_the_gap(clip, data, tmp_path):
    prior = priors.train_prior(clip, data, steps=60, batch_size=64, folder=tmp_path, draws=2)
    fresh = shapes(48, seed=30_000)
    seen, said = priors.embeddings(clip, fresh)
    made = priors.imagine(prior, said[0], seeds=range(48))
    expected = priors.imagine(prior, said[0], seeds=range(48), steps=1)
    near, away, drawn = ((v * seen).sum(1).mean() for v in (expected, said[0], made))
    assert near > away and near > drawn
    torch.testing.assert_close(made.norm(dim=1), torch.ones(48))
    one = priors.imagine(prior, said[0][7:8], seeds=[7])
    torch.testing.assert_close(one[0], made[7], atol=1e-4, rtol=0)
    read = priors.load(tmp_path / priors.FILE)
    torch.testing.assert_close(priors.imagine(read, said[0], range(48)), made, atol=0.05, rtol=0)
    clips_clip.save(clip, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match="train_prior"):
        priors.load(tmp_path / "clip.safetensors")
