"""Explanations: words of the raw text, maps, shares that add up; the box that is drawn is the one that is explained."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from desk import NET, WORDS, stirred
from PIL import Image

from fastdiffusion import nets, sample
from fastdiffusion.cli import main
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.guidance import concept_maps
from fastdiffusion.guidance.attention import Store, control
from fastdiffusion.io.images import save_png, to_pil
from fastdiffusion.models import Model
from fastdiffusion.nets import tokenizer
from fastdiffusion.prompts.terms import terms
from fastdiffusion.tasks import word_masks
from fastdiffusion.tasks.attribution import integrated
from fastdiffusion.tasks.attribution.explain import explain
from fastdiffusion.tasks.attribution.integrated import Run, attribute, by_term, secants
from fastdiffusion.tasks.attribution.result import rank_correlation
from fastdiffusion.tasks.generation.options import SampleOptions
from fastdiffusion.tasks.generation.plan import plan

PROMPT = "a red square on green"
QUICK = {"steps": 3, "points": 24, "batch_size": 8}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nets.build({**NET, "in_channels": 3, "out_channels": 3, "words": WORDS})
    net.text_encoder.set_vocabulary(tokenizer.train([f"a {c} square" for c in ("red", "green", "blue")], 300))
    return Model(Denoiser(stirred(net)).eval(), (3, 16, 16), sigma_max=10.0)


def reader(*, letters=3, marks=True):
    """A tokenizer of at most so many letters a token, spaces with what follows; a mark of start, and of end."""

    def token_spans(text):
        spans = [m.span() for m in re.finditer(rf"\s*(?:\w{{1,{letters}}}|[^\w\s])", text)]
        return [(0, 0), *spans, (0, 0)] if marks else spans

    return SimpleNamespace(token_spans=token_spans, max_tokens=None, encode=lambda _: SimpleNamespace(emb=None))


# ---- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A Red hat!", [("A", (1,)), ("Red", (2,)), ("hat", (3,)), ("!", (4,))]),
        ("a heart-shaped (balloon:1.3)", [("a", (1,)), ("heart-shaped", (2, 3, 4, 5, 6)), ("balloon", (7, 8, 9))]),
        ("赤いハート", [("赤いハ", (1,)), ("ート", (2,))]),
        ("a cat BREAK a dog", [("a", (1,)), ("cat", (2,)), ("a", (5,)), ("dog", (6,))]),
    ],
)
def test_words_are_those_of_the_raw_text(prompt, expected):
    read = terms(prompt, reader())
    assert [(term.text, term.rows) for term in read.all if term.span != (0, 0)] == expected
    rows = sorted(row for term in read.all for row in term.rows)
    assert rows == list(range(len(rows)))  # every row is somebody's, marks and padding too
    assert all(read.text[a:b] == term.text for term in read.all for a, b in [term.span] if b)


def test_a_word_of_several_tokens_and_letters_of_several_tokens_are_one():
    spans = reader(letters=2).token_spans("sunglasses")
    assert len(spans) == 7 and terms("sunglasses", reader(letters=2)).content[0].rows == (1, 2, 3, 4, 5)
    bytes_of_letters = SimpleNamespace(
        token_spans=lambda _: [(0, 1), (0, 1), (1, 2)], max_tokens=None, encode=lambda _: SimpleNamespace(emb=None)
    )
    assert [term.rows for term in terms("赤い", bytes_of_letters).content] == [(0, 1), (2,)]


def test_phrases_are_found_in_any_case_and_a_word_that_is_not_there_is_an_error():
    read = terms("A cat with a big Hat, a hat", reader())

    def found(phrase):
        return [term.text for term in read.find(phrase)]

    assert found("the big hat") == ["big", "Hat"] and found("HAT") == ["Hat", "hat"]
    assert found("cat hat") == ["cat", "Hat", "hat"]  # no phrase: each word
    with pytest.raises(InputError, match="named 'dog'"):
        read.find("dog")
    with pytest.raises(InputError, match="named 'at'"):
        read.find("at")  # a part of a word is none
    for several in ("a cat AND a dog", "a [cat:dog:0.5]"):
        with pytest.raises(InputError, match="several texts"):
            terms(several, reader())


def test_a_prompt_without_a_word_keeps_the_weights_of_the_others():
    read = terms("a (red:1.3) hat \\(old\\) BREAK on blue", reader())
    hat, on = (next(term for term in read.content if term.text == name) for name in ("hat", "on"))
    assert read.without([hat]) == "a (red:1.3) \\(old\\) BREAK on blue"
    assert read.without([on]) == "a (red:1.3) hat \\(old\\) BREAK blue"
    assert read.without(read.all) == ""


# ---- maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1 << 24, 40])
def test_concept_maps_are_the_probabilities_of_a_words_tokens(model, monkeypatch, block):
    """Also where queries are taken in blocks; and to look changes no bit."""
    monkeypatch.setattr(concept_maps, "BLOCK", block)
    net, cond = model.modules["net"], model.encode_prompt([PROMPT])
    x, sigma = torch.randn(1, 3, 8, 16), torch.ones(1)
    plain = model.denoise(x, sigma, cond)
    words, store = concept_maps.Concepts(tokens=[[0], [1, 2]]), Store(kind="cross")
    with control(net, words, store):
        assert torch.equal(model.denoise(x, sigma, cond), plain)
    for name, probabilities in store.probabilities.items():
        expected = torch.stack([probabilities[0, :, 0], probabilities[0, :, 1:3].sum(1)])
        assert torch.allclose(words.layer_maps[name], expected, atol=1e-6)
    maps = words.maps(x.shape[2:], (16, 32))
    assert maps.shape == (2, 16, 32) and len(words.layer_maps) > 1
    assert torch.allclose(
        maps.mean((1, 2)), torch.stack([m.mean(1) for m in words.layer_maps.values()]).mean(0), atol=1e-5
    )


def test_heat_stays_inside_of_edges():
    image = -torch.ones(3, 12, 20)
    image[:, 2:9, 3:15] = 1
    inside = image[0] > 0
    start = torch.zeros(1, 12, 20)
    start[0, 5, 8] = 1.0
    spread = concept_maps.along_edges(start, image, 600, 0.1)[0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-4)
    assert float(spread[inside].min()) > 0.9 / inside.sum() and float(spread[~inside].abs().max()) < 1e-6


def of_halves():
    """An exact denoiser whose left half is 1 under one word and whose right half is 1 under another."""
    halves = -torch.ones(2, 1, 16, 24)
    halves[0, :, :, :10], halves[1, :, :, 10:] = 1, 1

    class Words:
        max_tokens = None

        def token_spans(self, text):
            return [m.span() for m in re.finditer(r"\w+", text)]

        def encode(self, texts, size=None):
            from fastdiffusion.types import Cond

            return Cond(pooled=torch.tensor([[float("left" in t), float("right" in t)] for t in texts]))

        def null(self, n, size=None):
            return self.encode([""] * n)

        def unknown_words(self, text):
            return []

    def denoise(x, sigma, cond=None):
        mean = torch.einsum("bw,wchv->bchv", cond.pooled, halves).clamp(-1, 1)
        part = (sigma**2 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
        return mean * part + x * (1 - part)

    return Model(denoise, (1, 16, 24), conditioner=Words(), sigma_max=10.0)


def test_a_mask_from_words_finds_what_the_words_explain():
    model, image = of_halves(), torch.ones(1, 16, 24)
    image[:, :, 10:] = 0.4  # an edge between them
    for word, place in (("left", slice(0, 10)), ("right", slice(10, 24))):
        expected = torch.zeros(1, 16, 24)
        expected[..., place] = 1
        found = word_masks.word_map(model, image, "left and right", word)
        assert found.method == "occlusion"
        assert torch.equal((found.map > word_masks.CUT).float(), expected)
    with pytest.raises(InputError, match="brings no network"):
        word_masks.word_map(model, image, "left and right", "left", "attention")
    with pytest.raises(InputError, match="named 'hat'"):
        word_masks.word_mask(model, image, "left and right", "the hat")


def test_a_word_that_alone_means_another_thing_is_found_by_its_prompt():
    """As "heart", which alone is a red one, in "a blue heart"."""
    image = -torch.ones(1, 16, 24)
    image[..., :10] = 1

    def denoise(x, sigma, cond=None):
        mean = torch.where(cond.pooled.prod(1).reshape(-1, 1, 1, 1) > 0, image, -1.0)
        part = (sigma**2 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
        return mean * part + x * (1 - part)

    model = dataclasses.replace(of_halves(), denoise=denoise)
    found = word_masks.word_map(model, image, "left right", "left").map > word_masks.CUT
    assert torch.equal(found, image > 0)


@pytest.mark.parametrize("side", [64, 256])
def test_a_mask_takes_along_the_even_middle_of_what_it_goes_around(side):
    """Of a square on white a map knows the rim: its middle is of one color with it, and what is outside is not."""
    quarter, cells = side // 4, 16
    image = torch.ones(1, 3, side, side)
    square = (..., slice(quarter, -quarter), slice(quarter, -quarter))
    image[square] = torch.tensor([-1.0, -0.5, 0.8])[:, None, None]
    places = torch.zeros(1, 1, cells, cells)
    places[..., 4:12, 4:12] = 1
    places[..., 6:10, 6:10] = 0.4
    rim, whole = (f(places, 0.7, image) for f in (word_masks.soft, word_masks.filled))
    middle = (..., slice(side // 2 - 2, side // 2 + 2), slice(side // 2 - 2, side // 2 + 2))
    assert float(rim[middle].max()) == 0
    assert float(whole[middle].min()) > 0.99
    assert float(whole[square].mean()) > 0.98
    outside = torch.ones(side, side, dtype=torch.bool)
    near = slice(quarter - side // 32, side // 32 - quarter)  # half a latent
    outside[near, near] = False
    assert float(whole[0, 0][outside].max()) < 0.05
    assert bool((whole >= rim).all())


def test_nothing_is_above_the_largest_value_of_a_map():
    """Not even a spot that is far above what counts as the largest of areas."""
    image, places = torch.ones(1, 3, 64, 64), torch.full((1, 1, 16, 16), 0.5)
    image[..., 32:36, 32:36] = -1.0
    places[..., 8, 8] = 1
    assert float(word_masks.filled(places, 0.9, image)[..., 33:35, 33:35].min()) > 0.9
    assert not word_masks.filled(places, 1.0, image).any()


def test_a_large_image_is_looked_at_through_windows_of_the_models_size():
    model, half = of_halves(), torch.ones(1, 16, 24)
    half[:, :, 10:] = 0.4
    image, shapes = torch.cat([half, half], -1), set()

    def denoise(x, sigma, cond=None):
        shapes.add(tuple(x.shape[1:]))
        return model.denoise(x, sigma, cond)

    assert word_masks._windows(model, image[None]) == [(0, 0, 24, 16), (12, 0, 24, 16), (24, 0, 24, 16)]
    assert word_masks._windows(model, half[None, :, :9, :9]) == [(0, 0, 9, 9)]
    found = word_masks.word_map(dataclasses.replace(model, denoise=denoise), image, "left and right", "left").map
    assert shapes == {(1, 16, 24)}
    assert found.shape == (1, 16, 48)
    assert float(found[..., :10].min()) > word_masks.CUT  # what only the first window sees
    assert float(found[..., 36:].max()) < word_masks.CUT  # and only the last: the right half of the image in it


@pytest.mark.parametrize(("only", "changes"), [("left", slice(0, 10)), ("right, left", slice(0, 24))])
def test_only_what_shows_the_words_is_drawn_anew(only, changes, tmp_path):
    image = torch.ones(1, 16, 24)
    image[:, :, 10:] = 0.6
    given = to_pil(image)
    made = sample(of_halves(), "nothing", n=1, steps=4, scale=1.0, image=given, only=only)
    before, after = (np.asarray(each).astype(int) for each in (given, to_pil(made.images[0])))
    expected = np.zeros((16, 24), bool)
    expected[:, changes] = True
    outside = ~expected
    outside[:, 10:12] = False  # the soft edge
    assert np.array_equal(before[outside], after[outside])  # 0 of 255
    assert (before != after)[:, changes].any(0).all()  # in every column
    assert made.recipe["parameters"]["only"] == only
    with pytest.raises(InputError, match="only changes an image, and there is none"):
        sample(of_halves(), "nothing", n=1, only=only)
    with pytest.raises(InputError, match="one after the other"):
        sample(of_halves(), "nothing", n=1, image=given, only=only, outpaint="0,0,8,0")


# ---- shares -------------------------------------------------------------------------------------------------------


def run_of(model, prompt=PROMPT, **options):
    return Run(plan(model, SampleOptions(prompt=prompt, n=1, steps=3, **options)), 0)


def test_gradients_are_those_of_the_run(model):
    """Against a finite difference along the path, through guidance and a negative prompt."""
    run = run_of(model, scale=3.0, negative_prompt="a blue square")
    weights = torch.randn(3, 16, 16)

    def target(images):
        return (images * weights).flatten(1).sum(1)

    by_step, negative, pixels, _ = run.gradients([0.4], target)
    assert pixels is None and len(by_step) == run.table.nfe
    moved = sum(
        float((own[name] * (run.cond.parts()[name] - base)).sum()) for own in by_step for name, base in run.base.items()
    )
    away = run.negative.parts()
    moved += sum(float((negative[name] * (away[name] - base)).sum()) for name, base in run.no_negative.items())
    low, high = target(run.at([0.395, 0.405])).tolist()
    assert moved == pytest.approx((high - low) / 0.01, rel=0.02)


def test_shares_add_up_and_the_ends_are_the_sample_and_no_prompt(model):
    run = run_of(model, scale=2.0)
    blank, whole = run.at([0.0, 1.0]).split(1)
    assert torch.allclose(blank.clamp(-1, 1), sample(model, n=1, steps=3, scale=1.0).images, atol=1e-5)
    assert torch.allclose(whole.clamp(-1, 1), sample(model, PROMPT, n=1, steps=3, scale=2.0).images, atol=1e-5)
    change = whole - blank

    def target(images):
        return ((images - blank) * change).flatten(1).sum(1) / change.square().sum()

    read = terms(PROMPT, model.conditioner)

    def encode(words):
        gone = [word for i, word in enumerate(read.content) if i not in words]
        return word_masks.condition(model, read, (16, 16), read.without(gone))

    split = by_term(run, len(read.content), encode)
    for name, base in run.base.items():
        assert torch.allclose(split[name].sum(0), (run.cond.parts()[name] - base)[0], atol=1e-4)  # Shapley's efficiency
    found = attribute(run, target, split, 64, 8)
    assert found.low == pytest.approx(0, abs=1e-5) and found.high == pytest.approx(1, abs=1e-5)
    assert found.missing < 0.02
    assert float(found.terms.sum()) == pytest.approx(float(found.rows.sum() + found.pooled.sum()), abs=1e-3)
    exact = secants(run, target, split, panels=16, batch_size=8)
    assert float(exact.sum()) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(exact, found.terms.sum(0), atol=0.1)  # a smooth run: the two agree
    one_by_one = attribute(run, target, split, 64, 3)
    assert torch.allclose(found.rows, one_by_one.rows, atol=1e-4)  # batches are for speed only


def test_image_to_image_also_gives_shares_to_pixels(model):
    given = to_pil(torch.rand(3, 16, 16) * 2 - 1)
    made = explain(PROMPT, model, image=given, strength=0.4, **QUICK)
    assert made.attribution.pixels.shape == (3, 16, 16)
    assert made.attribution.missing < 0.02
    (pixels,) = (row for row in made.terms if row.kind == "pixels")
    assert pixels.share > 0.5  # little noise: the image is most of what comes out


def test_the_backward_pass_holds_no_activations_of_the_run(model, monkeypatch):
    """Bytes that the graph holds: with checkpoints less than a third."""

    def held():
        bytes_of = {}

        def pack(t):
            bytes_of[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            cond, _, _ = run._points([0.5])
            cond = cond.map(lambda v: v.clone().requires_grad_() if v.is_floating_point() else v)
            with integrated.fixed(run.plan.model):
                *_, last = run.steps([cond] * run.table.nfe, grad=True)
        assert last.x.requires_grad
        return sum(bytes_of.values())

    run = run_of(model)
    small = held()
    monkeypatch.setattr(integrated, "checkpoint", lambda f, *args, **_: f(*args))
    assert small < held() / 3


def test_a_backward_pass_holds_the_rows_that_it_is_allowed(model):
    """Guidance stacks two rows for each point, and an evaluation that holds activations has only as many as allowed."""

    def seen(rows, points):
        run, sizes = Run(plan(model, SampleOptions(prompt=PROMPT, n=1, steps=2, scale=3.0)), 0, rows), []
        net = model.modules["net"]
        hook = net.register_forward_hook(lambda _, given, made: sizes.append(len(made)) if made.requires_grad else None)
        try:
            by_step, _, _, values = run.gradients(points, lambda images: images.flatten(1).sum(1))
        finally:
            hook.remove()
        return set(sizes), by_step[0]["pooled"], values

    one, slow, low = seen(1, [0.3, 0.6])
    two, fast, high = seen(2, [0.3, 0.6])
    assert (one, two) == ({1}, {2})
    torch.testing.assert_close(slow, fast, atol=1e-3, rtol=1e-3)
    assert low == pytest.approx(high, rel=1e-4)


def test_one_row_at_a_time_holds_one_block(model):
    """Blocks are computed once more, the gradient is the same, and the network is as it was."""

    def computed_again(by_block):
        run, computed = Run(plan(model, SampleOptions(prompt=PROMPT, n=1, steps=2)), 0), []
        run.by_block = by_block
        block = max(integrated._blocks(model.modules["net"]), key=lambda part: len(list(part.modules())))
        hook = block.register_forward_pre_hook(lambda *_: computed.append(1))
        own = next(part for part in block.modules() if isinstance(part, torch.nn.Linear))
        inner = own.register_forward_pre_hook(lambda *_: computed.append(0))
        try:
            by_step, _, _, _ = run.gradients([0.5], lambda images: images.flatten(1).sum(1))
        finally:
            hook.remove()
            inner.remove()
        return by_step[0]["pooled"], len(computed) - sum(computed)

    (fast, few), (slow, many) = computed_again(False), computed_again(True)
    assert many > few
    torch.testing.assert_close(slow, fast)
    assert not any("forward" in vars(block) for block in integrated._blocks(model.modules["net"]))
    assert Run(plan(model, SampleOptions(prompt=PROMPT, n=1, steps=2)), 0).by_block


# ---- the verb -----------------------------------------------------------------------------------------------------


def test_a_model_is_as_it_was_and_the_answer_the_same_again(model, tmp_path):
    before = {name: t.clone() for name, t in model.modules["net"].state_dict().items()}
    needed = [p.requires_grad for p in model.modules["net"].parameters()]
    with torch.no_grad():
        first = explain(PROMPT, model, seed=5, **QUICK)
        assert not torch.is_grad_enabled()  # diffusers-interpret flips it for the whole program
    second = explain(PROMPT, model, seed=5, **QUICK)
    assert torch.is_grad_enabled()
    assert torch.equal(first.maps, second.maps) and torch.equal(first.attribution.rows, second.attribution.rows)
    assert all(torch.equal(t, before[name]) for name, t in model.modules["net"].state_dict().items())
    assert needed == [p.requires_grad for p in model.modules["net"].parameters()]
    assert all(p.grad is None for p in model.modules["net"].parameters())
    assert torch.allclose(first.images[:1], sample(model, PROMPT, n=1, seed=5, steps=3).images, atol=1e-5)
    assert first.maps.shape == (3, 5, 16, 16) and bool(first.maps.isfinite().all())
    assert sum(row.share or 0 for row in first.terms) == pytest.approx(1, abs=first.attribution.missing + 1e-4)
    assert [row.text for row in first.terms if row.kind == "word"] == PROMPT.split()
    assert any("add up to the whole but for" in note for note in first.notes)


def test_the_box_that_is_drawn_is_the_box_that_is_explained(model):
    """Not square, in an image that is not: diffusers-interpret draws (4, 2) and explains (2, 4)."""
    made = explain(PROMPT, model, size="24x16", box="3,5,20,9", seed=1, **QUICK)
    inside = made.region[0].bool()
    assert made.images.shape[-2:] == inside.shape == (16, 24)
    drawn = torch.zeros(16, 24, dtype=torch.bool)
    red = torch.tensor([[made.boxed().getpixel((x, y)) == (255, 0, 0) for x in range(24)] for y in range(16)])
    rows, columns = red.nonzero().unbind(1)
    drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert torch.equal(drawn, inside) and (int(inside.sum()), made.box) == (17 * 4, (3, 5, 20, 9))
    again = explain(PROMPT, model, size="24x16", mask=to_pil(2 * made.region - 1), seed=1, **QUICK)
    assert torch.allclose(again.attribution.rows, made.attribution.rows, atol=1e-4)
    other = explain(PROMPT, model, size="24x16", box="5,3,9,16", seed=1, **QUICK)  # the transposed one
    assert not torch.allclose(other.attribution.rows, made.attribution.rows, atol=1e-3)


def test_an_image_is_explained_by_the_recipe_in_it(model, tmp_path):
    """The third of several prompts, which diffusers-interpret does not take; and a negative one."""
    prompts = ["a red square", "a blue square", "a green square"]
    drawn = sample(model, prompts, n=3, seed=4, steps=3, scale=2.0, negative_prompt="blue")
    path = drawn.save(tmp_path)[2]
    made = explain(path, model, points=8, batch_size=8)
    assert made.text == "a green square" and not any("had no effect" in note for note in made.notes)
    assert torch.allclose(made.images[0], drawn.images[2], atol=2e-2)  # rounded to 8 bits, in another batch
    assert [row.text for row in made.terms if row.kind == "negative"] == ["negative prompt"]
    page, numbers, *images = made.save(tmp_path / "why")
    assert page.name == "explain.html" and len(images) == 4
    text = page.read_text()
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org)|@import|url\(", text) and len(text) < 2_000_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["text"] == made.text and len(data["steps"]) == 3 and len(data["words"][0]["maps"]) == 4
    known = json.loads(numbers.read_text())
    assert known["integral"]["missing"] == made.attribution.missing and numbers.stat().st_size < 100_000
    assert [row["share"] for row in known["words"]] == [row.share for row in made.terms]
    with pytest.raises(InputError, match="a page"):
        made.save(tmp_path / "why.png")
    again = explain(path, model, points=0, seed=9, lora="a.safetensors").notes
    assert "The image's recipe says how it was drawn: seed, lora had no effect." in again
    sheet = drawn.save_grid(tmp_path / "sheet.png")
    with pytest.raises(InputError, match="sheet of 3"):
        explain(sheet, model)


def test_a_page_quotes_whatever_a_prompt_says(model):
    made = explain("a </script><b>red</b> square & more", model, **{**QUICK, "points": 0})
    text = made.html()
    assert "<b>red" not in text and text.count("</script>") == 2
    assert json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["text"] == made.text
    assert made.attribution is None and all(row.share is None for row in made.terms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": "0,0,20,4"}, "beyond the image"),
        ({"box": "4,4,2,8"}, "right and bottom beyond"),
        ({"box": "0,0,4,4", "mask": Image.new("L", (16, 16), 255)}, "one of them"),
        ({"maps": "gradient"}, "method of maps"),
        ({"points": 3}, "at least 8"),
    ],
)
def test_what_cannot_be_explained_is_said(model, options, message):
    with pytest.raises(InputError, match=message):
        explain(PROMPT, model, **{**QUICK, **options})


def test_an_image_without_a_prompt_has_no_words(model, tmp_path):
    (path,) = sample(model, n=1, steps=2).save(tmp_path)
    with pytest.raises(InputError, match="no words to explain"):
        explain(path, model)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 3, 3, 9]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0


def test_shares_add_up_where_the_integral_does_not(model, monkeypatch):
    """A run that is too rough for the integral: also with a negative prompt and pixels, shares are exact."""
    from fastdiffusion.tasks.attribution import explain as verb

    monkeypatch.setattr(verb, "ALLOWED", -1.0)
    given = to_pil(torch.rand(3, 16, 16) * 2 - 1)
    made = explain(PROMPT, model, image=given, strength=0.6, scale=2.0, negative_prompt="blue", **QUICK)
    assert made.attribution.exact.shape == (7,)
    assert sum(row.share or 0 for row in made.terms) == pytest.approx(1, abs=1e-3)
    assert made.numbers()["integral"]["shares"] == "finite steps"
    assert any("add up exactly" in note for note in made.notes)


def test_a_place_that_takes_no_result_is_said_before_the_work(monkeypatch, capsys, tmp_path):
    def work(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("fastdiffusion.tasks.attribution.explain.explain", work)
    monkeypatch.setattr("fastdiffusion.tasks.editing.edit.edit", work)
    assert main(["explain", "a red heart", "--out", "why.png"]) == 2
    assert "An explanation is a page" in capsys.readouterr().err
    assert main(["edit", "a blue heart", "--source", "a red heart", "--out", "heart.tif"]) == 2
    assert "not '.tif'" in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["edit", str(tmp_path / "a.png"), "--source", "a red heart"]) == 2  # a file is no target
    assert "is to show" in capsys.readouterr().err


def test_a_folder_and_an_edited_image_are_no_prompts(model, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        explain(f"{tmp_path}/", model)
    recipe = {"fastdiffusion": "0.1.0", "verb": "edit", "parameters": {}}
    save_png(Image.new("RGB", (8, 8)), tmp_path / "edited.png", recipe)
    with pytest.raises(DataError, match="was made by 'edit', and only what sample drew"):
        explain(tmp_path / "edited.png", model)
