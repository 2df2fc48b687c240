"""Prompts from the command line: a folder with captions, a text-to-image model, images that carry their prompt."""

import pytest
import torch
from pictures import photo
from PIL import Image

from fastdiffusion.cli import main
from fastdiffusion.io.images import read_recipe
from fastdiffusion.tasks.text_image import caption_mean


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of captioned pictures, and a model that was trained on them for two steps."""
    place = tmp_path_factory.mktemp("words")
    (place / "photos").mkdir()
    for i, color in enumerate(("red", "green", "blue", "yellow") * 6):
        picture = Image.new("RGB", (16, 16), color)
        picture.putpixel((i % 16, i // 16), (i, i, i))  # no two are the same
        picture.save(place / "photos" / f"{i}.png")
        (place / "photos" / f"{i}.txt").write_text(f"a {color} square\nsomething {color}\n")
    train = ["train", str(place / "photos"), "--captions", "--size", "16", "--net", "dit-tiny", "--steps", "2"]
    assert main([*train, "--batch-size", "8", "--folder", str(place / "run")]) == 0
    return place


def test_sample_draws_each_prompt_in_turn_and_again_makes_the_same(place, capsys):
    out = place / "out"
    prompts = "a red square\n(blue:1.4) square AND something green:0.5\n[red:blue:0.5] square"
    arguments = [
        "sample",
        str(place / "run"),
        prompts,
        "-n",
        "3",
        "--steps",
        "3",
        "--negative",
        "yellow",
        "--scale",
        "2",
    ]
    assert main([*arguments, "--out", str(out)]) == 0
    pictures = sorted(p for p in out.glob("0*.png"))
    assert len(pictures) == 3 and "a-red-square" in pictures[0].name
    assert read_recipe(pictures[1])["parameters"]["negative_prompt"] == "yellow"
    assert main(["reproduce", str(pictures[1])]) == 0
    assert "the same bytes" in capsys.readouterr().out


def test_weight_one_changes_nothing_and_words_change_something(place):
    from fastdiffusion import sample

    def draw(prompt):
        return sample(place / "run", prompt, n=2, steps=2, scale=2.0).images

    plain = draw("a red square")
    torch.testing.assert_close(draw("a (red:1.0) square"), plain)
    assert torch.equal(plain, draw(["a red square", "a red square"]))
    assert not torch.equal(plain, draw("something blue"))


def test_words_that_were_never_read_are_told_of(place):
    from fastdiffusion import sample

    with pytest.warns(UserWarning, match="not trained on .*xylophonist"):
        sample(place / "run", "a xylophonist", n=1, steps=1)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "The prompt is empty"),
        ("word " * 2000, "words"),
        ("(red:1e9) square", "weight"),
        ("((red) square", "("),
        ("[red:blue:7] square", "7"),
    ],
)
def test_a_prompt_that_cannot_be_used(place, prompt, sentence, capsys):
    assert main(["sample", str(place / "run"), prompt, "-n", "1", "--steps", "1", "--out", str(place / "no")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (place / "no").exists()


def test_words_for_a_model_without_words(place, tmp_path, capsys):
    train = ["train", str(place / "photos"), "--size", "16", "--net", "dit-tiny", "--steps", "1", "--batch-size", "8"]
    assert main([*train, "--folder", str(tmp_path / "plain")]) == 0
    assert main(["sample", str(tmp_path / "plain"), "a red square", "--out", str(tmp_path / "out")]) == 2
    assert "without captions" in capsys.readouterr().err


def test_training_on_words_needs_captions(tmp_path, capsys):
    for i in range(4):
        Image.new("L", (16, 16), 60 * i).save(tmp_path / f"{i}.png")
    train = ["train", str(tmp_path), "--captions", "--size", "16", "--steps", "1"]
    assert main([*train, "--folder", str(tmp_path / "r")]) == 2
    assert "no captions" in capsys.readouterr().err


def test_the_shipped_model_draws_what_words_say(tmp_path, monkeypatch, capsys):
    """On a fresh install, anywhere, without a model's name; and the same picture again."""
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "a grinning face", "-n", "2", "--out", "out"]) == 0
    assert main(["reproduce", "out/0000-a-grinning-face.png"]) == 0
    assert "the same bytes" in capsys.readouterr().out
    from fastdiffusion import sample
    from fastdiffusion.metrics import retrieval
    from fastdiffusion.tasks.evaluation import evaluator

    names = ["grinning face", "woman cook", "flag of france", "blue heart"]
    images = sample(prompt=names * 4, n=16, seed=7).images
    judge = evaluator.load()
    told = [name.removeprefix("flag of ") for name in names * 4]
    assert retrieval.r_precision(judge, images, told).value > 0.3  # chance is 0.01
    assert retrieval.r_precision(judge, images, told[1:] + told[:1]).value < 0.2


def test_a_picture_is_drawn_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "a red heart on a yellow background", "-n", "1", "--out", "out"]) == 0
    source = str(next((tmp_path / "out").glob("0*.png")))
    assert main(["variations", source, "on a blue background", "-n", "2", "--steps", "4", "--out", "new"]) == 0
    made = sorted((tmp_path / "new").glob("0*.png"))
    assert len(made) == 2 and all(
        read_recipe(path)["parameters"]["prompt"][0].endswith("blue background") for path in made
    )
    assert main(["variations", source, "-n", "1", "--strength", "0", "--out", "same"]) == 0
    (made,) = [p for p in (tmp_path / "same").glob("*.png") if p.name != "grid.png"]
    with Image.open(made) as a, Image.open(source) as b:
        error = max(abs(x - y) for x, y in zip(a.convert("RGB").tobytes(), b.convert("RGB").tobytes(), strict=True))
    assert error < 90  # the picture itself, through the codec


def test_the_folder_of_results_is_checked_before_any_work(tmp_path, capsys):
    (tmp_path / "odd.png").write_bytes(b"")
    for n, out in (("2", "odd.png"), ("1", "odd.png/x")):  # one image may be written to a file
        assert main(["sample", "a red heart", "-n", n, "-o", str(tmp_path / out)]) == 2
        assert "a file" in capsys.readouterr().err


@pytest.fixture
def mixed(tmp_path):
    """Captioned photographs of three shapes, as cameras make them."""
    for i in range(24):
        photo(*[(48, 32), (32, 48), (40, 40)][i % 3], seed=i).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"photograph {i}\n")
    return tmp_path


def test_every_command_takes_photographs_of_several_shapes(mixed, tmp_path_factory, capsys):
    """What docs/words.md types for one's own pictures, at its smallest."""
    out, photos = tmp_path_factory.mktemp("out"), str(mixed)
    small, codec = ["--size", "16", "--steps", "2"], str(out / "codec" / "codec.safetensors")
    autoencoder = ["train-autoencoder", photos, *small, "--width", "4", "--batch-size", "4"]
    assert main([*autoencoder, "--folder", str(out / "codec")]) == 0
    report = ["evaluate-autoencoder", codec, photos, "--size", "16", "--samples", "2", "--holdout", "0"]
    assert main([*report, "-o", str(out / "c")]) == 0
    mean = ["train-caption-mean", photos, "--autoencoder", codec, *small, "--batch-size", "4"]
    assert main([*mean, "--folder", str(out / "mean")]) == 0
    start = out / "mean" / caption_mean.FILE
    train = ["train", photos, "--captions", "--autoencoder", codec, "--init-from", str(start), *small]
    assert main([*train, "--batch-size", "4", "--holdout", "0.01", "--folder", str(out / "model")]) == 0
    clip = ["train-clip", photos, *small, "--net", "tiny", "--batch-size", "4", "--folder", str(out / "clip")]
    assert main(clip) == 0
    assert "the right caption among" in capsys.readouterr().out
    words = ["train-autoencoder", photos, *small, "--kind", "fsq", "--codebook-size", "64", "--width", "4"]
    assert main([*words, "--batch-size", "4", "--folder", str(out / "vq")]) == 0
    prior = ["train-token-prior", str(out / "vq" / "codec.safetensors"), photos, *small, "--width", "32"]
    assert main([*prior, "--depth", "1", "--batch-size", "4", "--folder", str(out / "prior")]) == 0


def test_a_model_of_words_is_evaluated_on_what_the_captions_say(place):
    from fastdiffusion.tasks.evaluation.evaluate import evaluate

    found = evaluate(place / "run", place / "photos", n=10, steps=1, features=torch.nn.Flatten(), rounds=2, note=False)
    assert found.samples is not None
    assert set(found.samples.labels) <= {f"a {color} square" for color in ("red", "green", "blue", "yellow")}
