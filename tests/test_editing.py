"""Editing: words aligned, attention replaced and weighed, flows whose difference is 0 where prompts agree."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiffusion
from fastdiffusion import choices, schedules
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import prompt_to_prompt
from fastdiffusion.guidance.attention import Reweight, Store, control
from fastdiffusion.io.images import read_image, to_pil, to_tensor
from fastdiffusion.samplers import editing
from fastdiffusion.tasks.editing.alignment import Alignment, removed
from fastdiffusion.tasks.editing.edit import edit
from fastdiffusion.tasks.editing.options import EditOptions, windows_of
from fastdiffusion.tasks.editing.reweighting import removals, reweighted
from fastdiffusion.types import Cond


@pytest.fixture(scope="module")
def model():
    return fastdiffusion.load("emoji", device="cpu")


def gaussian(mean: float, std: float = 1.0):
    """The exact denoiser of a normal distribution."""

    def denoise(x, sigma, cond=None):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return (std**2 * x + s * mean) / (std**2 + s)

    return denoise


@pytest.mark.parametrize(
    ("source", "target", "columns"),
    [
        ("a red heart", "a blue heart", [0, 1, 2]),
        ("a smiling face", "a smiling face with sunglasses", [0, 1, 2, -1, -1]),
        ("a Cat", "a cat", [0, 1]),
        ("a p iz za on red", "a h amb ur ger on red", [0, 1, 1, 2, 3, 4, 5]),  # one word of three tokens, one of four
        ("a very red heart", "a heart", [0, 3]),
        ("猫 が 座る", "犬 が 座る", [0, 1, 2]),
    ],
)
def test_tokens_are_aligned(source, target, columns):
    assert prompt_to_prompt.align(source.split(), target.split()) == columns


def test_flow_edit_moves_one_distribution_onto_the_other():
    g = torch.Generator().manual_seed(0)
    x0, sigmas = torch.randn(4, 2, 4, 4, generator=g), schedules.karras(40, 0.002, 1e3)
    same = editing.flow_edit(gaussian(1), gaussian(1), x0, sigmas, range(4))
    assert torch.equal(same, x0)  # where source and target agree, nothing changes, whatever the noise
    moved = editing.flow_edit(gaussian(0), gaussian(3), x0, sigmas, range(4))
    assert torch.allclose(moved, x0 + 3, atol=0.1)  # of normal distributions alike, the map is the shift


def test_difference_map_shows_where_conditions_disagree():
    def half(x, sigma, cond=None):
        out = x.clone()
        out[..., 4:] += 0 if cond is None else cond.pooled.reshape(-1, 1, 1, 1)
        return out

    cond = fastdiffusion.types.Cond(pooled=torch.ones(1, 1))
    places = editing.difference_map(half, torch.zeros(1, 3, 8, 8), [0.5, 1.0], None, cond, [0, 1])
    assert float(places[:, 5:].min()) > 0.999
    assert float(places[:, :3].max()) == 0


def test_magic_mix_goes_from_the_layout_to_the_meaning():
    x0, sigmas = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0)), schedules.karras(20, 0.002, 3.0)
    layout, meaning, between = (
        editing.magic_mix(gaussian(3, 0.1), x0, sigmas, 0.5, range(4), share=share) for share in (0.0, 1.0, 0.6)
    )
    near = [float((made - x0).square().mean()) for made in (layout, between, meaning)]
    assert near == sorted(near)
    assert float(meaning.mean()) == pytest.approx(3, abs=0.3)


def test_source_is_what_sample_draws_and_words_that_stay_change_nothing(model):
    result = edit(prompt="a red heart", source="a red heart", model=model, seed=3, steps=4, method="p2p", keep=False)
    drawn = fastdiffusion.sample(model, "a red heart", n=1, seed=3, steps=4).images
    assert torch.allclose(result.source, drawn, atol=1e-3)
    assert torch.allclose(result.images, result.source, atol=1e-3)


@pytest.fixture(scope="module")
def heart(model):
    return to_pil(fastdiffusion.sample(model, "a red heart", n=1, steps=4).images[0])


@pytest.mark.parametrize("method", ["direct", "edit-friendly", "fixed-point", "diffedit", "flow-ode"])
def test_a_given_image_under_its_own_words_stays(model, heart, method):
    result = edit(
        heart, "a red heart", model=model, source="a red heart", method=method, steps=4, keep=False, scale=1.0
    )
    through = model.decode(model.encode(to_tensor(heart)[None])).clamp(-1, 1)
    assert float((result.images - through).abs().mean()) < 0.02
    assert torch.equal(edit(heart, "a dog", model=model, strength=0, source="a cat").images, to_tensor(heart)[None])


@pytest.mark.parametrize("method", [name for name in choices.EDITS if name not in ("auto", "reference")])
def test_every_method_makes_an_image_and_leaves_the_model(model, heart, method, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: value.clone() for name, value in model.modules["net"].state_dict().items()}
    made = [
        edit(heart, "a blue heart", model=model, source="a red heart", method=method, steps=2, extra_steps=1, seed=1)
        for _ in range(2)
    ]
    assert made[0].images.shape == (1, 3, 64, 64)
    assert torch.isfinite(made[0].images).all()
    assert torch.equal(made[0].images, made[1].images)
    assert not torch.equal(made[0].images, made[0].source)
    assert made[0].recipe["parameters"]["method"] == method
    assert all(torch.equal(value, before[name]) for name, value in model.modules["net"].state_dict().items())


@pytest.mark.parametrize(
    ("given", "options", "method"),
    [
        (False, {}, "diffedit"),
        (True, {}, "diffedit"),
        (True, {"window": "cross=0..0.5"}, "direct"),
        (False, {"window": "cross=0..0.5"}, "p2p"),
        (False, {"align": "blue=red"}, "p2p"),
        (False, {"reweight": "blue:2"}, "p2p"),
    ],
)
def test_auto_takes_the_method_that_obeys(model, heart, given, options, method):
    """What acts through attention alone would be ignored by the default method."""
    made = edit(heart if given else None, "a blue heart", model, source="a red heart", steps=2, cached=False, **options)
    assert made.notes[0].startswith(f"Method {method}")
    assert made.recipe["parameters"]["method"] == method


def test_pixels_outside_of_the_mask_are_kept(model, heart, tmp_path):
    mask = torch.full((1, 64, 64), -1.0)
    mask[:, :, 40:] = 1
    result = edit(heart, "a blue heart", model=model, source="a red heart", mask=to_pil(mask), steps=4)
    (path,) = result.save(tmp_path / "edited.png")
    before, after = to_tensor(heart), to_tensor(read_image(path))
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not torch.equal(before[:, :, 40:], after[:, :, 40:])
    assert result.save(tmp_path / "edited.png") == [path]  # the same is not written twice
    other = edit(heart, "a green heart", model=model, source="a red heart", steps=4)
    assert other.save(tmp_path / "edited.png") == [tmp_path / "edited-2.png"]


def test_several_targets_have_one_source(model, heart, tmp_path):
    both = edit(heart, ["a blue heart", "a green heart"], model=model, source="a red heart", steps=3, seed=1)
    for i, target in enumerate(("a blue heart", "a green heart")):
        alone = edit(heart, target, model=model, source="a red heart", steps=3, seed=1)
        assert torch.equal(both.images[i : i + 1], alone.images)
    assert [path.name for path in both.save(tmp_path / "e.png")] == ["e-0.png", "e-1.png"]


def test_a_gray_mask_is_a_strength_in_its_region(model, heart):
    """Left at a quarter of the strength, right at all of it: the change on the right does not depend on the left."""
    mask = torch.full((1, 64, 64), 1.0)
    mask[:, :, :32] = -0.5
    graded = edit(heart, "a dog", model=model, method="sdedit", mask=to_pil(mask), strength=0.9, steps=6)
    change = (graded.images - graded.source).abs().mean((0, 1, 2))
    assert float(change[:28].mean()) < 0.6 * float(change[36:].mean())


def test_recolouring_is_seen(model):
    result = edit(prompt="a blue heart", source="a red heart", model=model, seed=3, steps=8)
    red, _, blue = result.images[0, :, 24:40, 24:40].mean((1, 2))
    assert blue > red + 0.5
    assert result.source[0, 0, 24:40, 24:40].mean() > result.source[0, 2, 24:40, 24:40].mean() + 0.5


def test_regions_have_strengths_and_prompts(model, heart):
    """A region of strength 0 keeps its pixels to the bit; one with a prompt is drawn by it."""
    options = {"model": model, "strength": 1.0, "steps": 4, "seed": 2}
    made = edit(heart, "a yellow square", regions="left: 0", **options)
    assert made.recipe["parameters"]["method"] == "sdedit"
    assert torch.equal(made.images[..., :32], made.source[..., :32])
    assert not torch.equal(made.images[..., 32:], made.source[..., 32:])
    whole = edit(heart, "a dog", regions="all: a yellow square", **options)
    plain = edit(heart, "a yellow square", method="sdedit", **options)
    torch.testing.assert_close(whole.images, plain.images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": " "}, "what the result shows"),
        ({"prompt": "a dog"}, "what is drawn first"),
        ({"prompt": "a dog", "source": "a cat", "only": "hat"}, "No word of the prompts named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "protect": "cat, hat"}, "No word of the prompts named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "window": "hat=0..1"}, "No word of the new prompt named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "window": "cross=0.8"}, "NAME=FROM..TO"),
        ({"prompt": "a dog", "source": "a cat", "window": "cross=0.8..0.2"}, "NAME=FROM..TO"),
        ({"prompt": "a dog", "source": "a cat", "align": "dog=hat"}, "No word of the old prompt named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "align": "dog"}, "NEW=OLD"),
        ({"prompt": "a dog", "source": "a cat", "regions": "left: 2"}, "strength of a region"),
        ({"prompt": "a dog", "source": "a cat", "regions": "left: a hat", "method": "flowedit"}, "for sdedit"),
        ({"prompt": "a dog", "source": "a cat", "reweight": "hat:2"}, "No word of the new prompt named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "reweight": "dog"}, "WORD:FACTOR"),
        ({"prompt": "a dog", "source": "a cat", "method": "p3p"}, "Did you mean 'p2p'"),
        ({"prompt": "a dog", "source": "a cat", "strength": 2}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_said(model, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        edit(model=model, steps=2, **arguments)


def words(source, target, **options):
    """Words of a tokenizer whose tokens are letters in pairs, so that most words are several."""

    class Pairs:
        def token_spans(self, text):
            return [(0, 0)] + [(m.start() + i, min(m.start() + i + 2, m.end()))
                               for m in re.finditer(r"\w+|[^\w\s]", text) for i in range(0, len(m[0]), 2)]  # fmt: skip

    return Alignment(Pairs(), source, target, EditOptions(source=source, **options))


def test_words_of_several_tokens_in_any_case_beside_punctuation():
    found = words("A cat, asleep", "A Cat, with Sunglasses, asleep", reweight="sunglasses:2, cat:-1")
    assert found.pairs == (("A", "A"), ("Cat", "cat"), ("with", ""), ("Sunglasses", ""), ("asleep", "asleep"))
    assert found.note == "Alignment: with = (new), Sunglasses = (new)."
    assert len(found.find("sunglasses", 1)) == 5
    assert found.weights == {"sunglasses": 2, "cat": -1}
    assert found.find("at", 1) == []  # no part of a word
    assert removed("A Cat, with Sunglasses, asleep", ["sunglasses"]) == "A Cat, asleep"
    japanese = words("座る猫", "座る犬", align="犬=猫")
    assert japanese.find("犬", 1)


def test_the_alignment_can_be_edited():
    assert words("a cat on a mat", "a dog on a mat").pairs[1] == ("dog", "cat")
    assert words("a cat on a mat", "a dog on a mat", align="dog=").pairs[1] == ("dog", "")
    assert words("a cat on a mat", "a dog on a mat", align="dog=mat").pairs[1] == ("dog", "mat")


def test_methods_that_compare_ask_what_the_image_shows(model, heart):
    with pytest.raises(InputError, match="Say it: source="):
        edit(heart, "a dog", model=model, method="null-text")
    with pytest.raises(InputError, match="takes no reference image"):
        edit(heart, "a dog", model=model, method="reference")


def test_windows_are_fractions_of_the_run_and_a_word_may_have_its_own():
    assert windows_of("cross=0..0.8, self=.1..0.4, big hat=0..1") == {
        "cross": (0.0, 0.8), "self": (0.1, 0.4), "big hat": (0.0, 1.0)
    }  # fmt: skip
    found = words("a cat", "a dog", window="cross=0..0.5, dog=0..0.1")
    assert found.attends
    assert not words("a cat", "a dog", window="cross=0..0").attends
    made = prompt_to_prompt.controllers(found.columns, found.cross, found.self_attention, {}, found.windows)
    by_window = {each.window: each.columns for each in made}
    assert set(by_window) == {(0.0, 0.1), (0.0, 0.5)}
    assert all(a == -1 or b == -1 for a, b in zip(*by_window.values(), strict=True))  # a token has one window


@pytest.mark.parametrize("normalize", [False, True])
def test_weights_may_be_negative_and_keep_the_sum(model, normalize):
    cond, x = model.encode_prompt(["a red heart"]), torch.randn(1, *model.shape)
    store = Store(kind="cross")
    with control(model.modules["net"], Reweight({1: -2.0}, normalize=normalize), store), torch.no_grad():
        model.denoise(x, torch.ones(1), cond)
    plain = Store(kind="cross")
    with control(model.modules["net"], plain), torch.no_grad():
        model.denoise(x, torch.ones(1), cond)
    name = next(iter(store.probabilities))
    weighed, before = store.probabilities[name], plain.probabilities[name]
    assert (weighed[..., 1] < 0).all()
    if not normalize:
        torch.testing.assert_close(weighed[..., 1], -2 * before[..., 1])
    with control(model.modules["net"], Reweight({1: 1.0}, normalize=normalize)), torch.no_grad():
        same = model.denoise(x, torch.ones(1), cond)
    with torch.no_grad():
        torch.testing.assert_close(same, model.denoise(x, torch.ones(1), cond), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["p2p", "direct", "diffedit", "flowedit", "flow-ode", "sdedit", "magicmix"])
def test_weight_1_is_the_prompt_and_weight_0_the_prompt_without_the_word(model, heart, method):
    """To the bit, under every method."""
    image = None if method == "p2p" else heart
    options = {"model": model, "source": "a red book", "method": method, "steps": 3, "keep": False, "seed": 3}

    def made(prompt="a blue book", **more):
        return edit(image, prompt, **options, **more).images

    plain, none, twice = made(), made(reweight="blue:0"), made(reweight="blue:2")
    assert torch.equal(made(reweight="blue:1"), plain)
    assert torch.equal(none, made("a book"))
    assert not torch.equal(none, plain)
    assert not torch.equal(twice, plain)


def test_a_word_comes_with_its_weight(model):
    """Blue less red, of a book that is red without the word."""
    amounts = []
    for weight in (-1, 0, 0.5, 1, 2):
        options = {"model": model, "source": "a blue book", "method": "p2p", "keep": False, "steps": 4}
        image = edit(prompt="a blue book", reweight=f"blue:{weight}", **options).images[0, :, 20:44, 20:44]
        amounts.append(float((image[2] - image[0]).mean()))
    assert amounts == sorted(amounts)
    assert amounts[-2] > amounts[1] + 0.5


def test_words_are_weighed_together_and_apart():
    """Coefficients of "without these words": multilinear corners are exact, and they add up to 1."""
    assert removals({"a": 1.0}) == [(1.0, ())]
    assert removals({"a": 0.0, "b": 0.0}) == [(1.0, ("a", "b"))]
    assert removals({"a": 0.0, "b": 1.0}) == [(1.0, ("a",))]
    assert {words: amount for amount, words in removals({"a": 3.0, "b": 3.0})} == {(): 3.0, ("a", "b"): -2.0}
    mixed = removals({"a": 0.5, "b": 3.0, "c": -1.0})
    assert sum(amount for amount, _ in mixed) == 1
    near, exact = ({w: a for a, w in removals({"a": v, "b": 2.0})} for v in (1 + 1e-9, 1.0))
    assert all(abs(near.get(w, 0) - exact.get(w, 0)) < 1e-8 for w in near | exact)  # no jump where a weight passes 1


def test_contrast_of_a_weighed_estimate_stays_that_of_its_parts():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = [lambda x, sigma, cond: x * torch.tensor([1.0, 1.0]).reshape(2, 1, 1, 1), lambda x, sigma, cond: 0.5 * x]
    cond, level = Cond(pooled=torch.zeros(2, 1)), torch.ones(2)
    for normalize, factor in ((True, 1.0), (False, 2.0)):
        run = reweighted(*parts, amounts=[3.0, -2.0], conds=[cond, cond], normalize=normalize)
        row = run(x, level, cond)
        assert torch.equal(row[0], x[0])  # the source beside it is as it was
        torch.testing.assert_close(row[1].std((-1, -2)), factor * x[1].std((-1, -2)))


def test_imagic_weighs_no_words(model, heart):
    with pytest.raises(InputError, match="weighs no words"):
        edit(heart, "a blue heart", model=model, method="imagic", reweight="blue:2", steps=2)


def test_a_mask_is_scaled_together_with_its_image(model):
    given = to_pil(fastdiffusion.sample(model, "a red heart", n=1, steps=4).images[0]).resize((128, 128))
    mask = torch.full((1, 128, 128), -1.0)
    mask[:, :, 80:] = 1
    result = edit(given, "a blue heart", model=model, source="a red heart", mask=to_pil(mask), steps=2)
    assert torch.equal(result.images[..., :38], result.source[..., :38])
    assert "scaled from 128x128 to 64x64" in " ".join(result.notes)


@pytest.mark.parametrize("method", ["diffedit", "p2p", "flowedit", "sdedit", "magicmix"])
def test_a_size_that_does_not_divide_is_the_results(model, heart, method, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = heart.crop((0, 3, 43, 64))
    mask = Image.new("L", given.size)
    mask.paste(255, (20, 10, 43, 40))
    made = edit(given, "a dog", model, source="a red heart", method=method, mask=mask, size="43x61", steps=2)
    change = (to_tensor(to_pil(made.images[0])) - to_tensor(given)).abs().amax(0).numpy()
    assert made.images.shape == (1, 3, 61, 43) and made.mask.shape == (1, 1, 61, 43)
    kept = np.asarray(mask) == 0
    assert change[kept].max() == 0 and change[~kept].mean() > 0.05
    assert made.recipe["parameters"]["size"] == "43x61"


def test_a_size_is_of_a_given_image(model):
    with pytest.raises(InputError, match="size is of a given image"):
        edit(None, "a dog", model, source="a cat", size=32)


def test_a_mask_of_nothing_is_told(model, heart):
    made = edit(heart, "a blue heart", model, source="a red heart", only="heart", threshold=1.0, steps=2)
    assert any("Nothing is inside of the mask" in note for note in made.notes)
    assert torch.equal(made.images, made.source)
