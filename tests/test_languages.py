"""New languages and pictures for a frozen model of words: what the denoiser answers is the measure."""

from pathlib import Path

import pytest
import torch
from pictures import photo

from fastdiffusion import models, nets, sample
from fastdiffusion.cli import main
from fastdiffusion.data.dataset import Images
from fastdiffusion.data.emoji import holdout
from fastdiffusion.data.emoji import translations as dictionaries
from fastdiffusion.data.emoji.font import LANGUAGES
from fastdiffusion.data.emoji.scenes import CLDR
from fastdiffusion.data.emoji.translations import (
    BACKGROUNDS,
    Pair,
    edict,
    emoji_pairs,
    emoji_phrases,
    held_out,
    translations,
)
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import CheckpointError, DataError, InputError, MissingExtra
from fastdiffusion.io.images import save_png
from fastdiffusion.models import Model, load, save
from fastdiffusion.nets import tokenizer
from fastdiffusion.nets.clip import Clip
from fastdiffusion.nets.text import TextConditioned, normalized
from fastdiffusion.nets.text import vocabulary_ids as listed
from fastdiffusion.tasks import variations
from fastdiffusion.tasks.text_image import clip as clips
from fastdiffusion.tasks.text_image import multilingual
from fastdiffusion.tasks.text_image.multilingual import add_language

NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PAIRS = [
    Pair(f"{a} {b}", f"{c} {d}")
    for a, c in (("rotes", "red"), ("blaues", "blue"), ("grünes", "green"))
    for b, d in (("Quadrat", "square"), ("Dreieck", "triangle"), ("Haus", "house"))
]


@pytest.fixture(scope="module")
def model() -> Model:
    """An untrained net that does listen to its words."""
    torch.manual_seed(0)
    spec = {"name": "unet", "width": 32, "multiples": [1], "blocks": [1], "attention": [0], "head": 32}
    words = {"vocabulary": 300, "width": 32, "depth": 1, "head": 32}
    net = nets.build({**spec, "in_channels": 3, "out_channels": 3, "words": words})
    for p in net.parameters():  # what begins at zero says nothing yet
        if p.ndim >= 2 and not p.any():
            torch.nn.init.normal_(p, std=0.2)
    net.text_encoder.set_vocabulary(tokenizer.train([p.known for p in PAIRS], 300))
    return Model(Denoiser(net).eval(), (3, 8, 8))


def model_with_words(model: Model) -> Model:
    """The same model, which lists its words."""
    words = {**models.native_denoiser(model).net.text_encoder.config, "known": len(listed([p.known for p in PAIRS]))}
    encoder = nets.build({**words, "name": "text"})
    encoder.set_vocabulary(models.native_denoiser(model).net.text_encoder.tokenizer, [p.known for p in PAIRS])
    return Model(Denoiser(TextConditioned(models.native_denoiser(model).net.net, encoder)).eval(), model.shape)


def answers(model: Model, texts: list[str]) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(texts), 3, 8, 8, generator=g)
    with torch.no_grad():
        return model.denoise(x, torch.full((len(texts),), 1.0), model.encode_prompt(texts))


def test_a_taught_model_answers_in_the_new_language_as_it_did_in_the_old(model, tmp_path):
    taught = add_language(model, PAIRS, steps=120, vocabulary=320, depth=1, batch_size=16, folder=tmp_path).model
    known, new = [p.known for p in PAIRS], [p.text for p in PAIRS]
    wanted = answers(model, known)
    before = (answers(model, new) - wanted).square().mean()
    assert (answers(taught, new) - wanted).square().mean() < 0.3 * before
    assert torch.equal(answers(taught, known), wanted)  # what was understood is understood as before, to the bit
    inner = zip(
        models.native_denoiser(model).net.net.parameters(),
        models.native_denoiser(taught).net.net.parameters(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in inner)  # the denoiser is as it was
    again = add_language(
        model, PAIRS, steps=120, vocabulary=320, depth=1, batch_size=16, folder=tmp_path
    ).model  # is finished already
    assert torch.equal(answers(again, new), answers(taught, new))

    both = [new[0], known[1], "", new[2] + " " + known[3]]  # readers of a batch are chosen by row
    one_by_one = torch.cat([taught.encode_prompt([text]).pooled for text in both])
    assert torch.allclose(taught.encode_prompt(both).pooled, one_by_one, atol=1e-6)
    encoder = taught.conditioner.net.text_encoder
    tokens = encoder.tokens([known[0]])
    wider = torch.nn.functional.pad(tokens, (0, encoder.length + 3 - tokens.shape[1]))  # a batch beside longer texts
    assert torch.allclose(encoder(wider)[2], encoder(tokens)[2], atol=1e-6)
    other = taught.conditioner.net.text_encoder.student_encoder
    assert (
        taught.conditioner.net.text_encoder.encoder_of(known[0]) is taught.conditioner.net.text_encoder
        and taught.conditioner.net.text_encoder.encoder_of(new[0]) is other
    )
    assert (
        other.knows("Quadrat")
        and taught.conditioner.net.text_encoder.knows("square")
        and not taught.conditioner.net.text_encoder.knows("Quadrat")
    )
    with pytest.warns(UserWarning, match="tall"):  # "tall" alone the first would read; here the other reads
        sample(taught, "rotes Quadrat tall", n=1, steps=2)
    assert taught.conditioner.net.text_encoder.spans(normalized(new[0]))[-1][1] == len(normalized(new[0]))

    def drawn(prompt: str) -> torch.Tensor:
        return sample(taught, prompt, n=1, steps=6, scale=2.0).images

    assert torch.allclose(drawn("(rotes:1.0) Quadrat"), drawn("rotes Quadrat"), atol=1e-5)
    assert not torch.allclose(drawn("(rotes:1.5) Quadrat"), drawn("rotes Quadrat"), atol=1e-3)
    assert not torch.allclose(drawn("[rotes Quadrat:blue house:0.5]"), drawn("rotes Quadrat"), atol=1e-3)

    save(taught, tmp_path / "taught.safetensors")
    same = load(tmp_path / "taught.safetensors")
    assert torch.equal(answers(same, both), answers(taught, both))
    with pytest.warns(UserWarning, match="other languages already"):  # another language takes the first one's place
        anew = add_language(same, PAIRS, steps=2, vocabulary=320, depth=1, batch_size=16).model
    assert torch.equal(answers(anew, known), wanted) and not torch.equal(answers(anew, new), answers(taught, new))

    more = [*PAIRS, Pair("carré bleu", "blue square")]
    on = add_language(
        same, more, steps=60, batch_size=16, resume_languages=True
    ).model  # the same tokenizer, more words, and nothing is forgotten
    assert (
        on.conditioner.net.text_encoder.student_encoder.tokenizer.merges
        == taught.conditioner.net.text_encoder.student_encoder.tokenizer.merges
    )
    assert (
        on.conditioner.net.text_encoder.student_encoder.knows("carré")
        and not other.knows("carré")
        and on.conditioner.net.text_encoder.student_encoder.knows("Quadrat")
    )
    assert (answers(on, new) - wanted).square().mean() < 0.3 * before
    french = answers(model, ["blue square"])
    assert (answers(on, ["carré bleu"]) - french).square().mean() < (
        answers(same, ["carré bleu"]) - french
    ).square().mean()


def test_pairs_come_from_a_table(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("rotes Haus,red house\n,\nblau,blue\n", encoding="utf-8")
    assert translations(path) == [Pair("rotes Haus", "red house"), Pair("blau", "blue")]
    path.write_text("one column\n")
    with pytest.raises(DataError, match="no pairs"):
        translations(path)
    with pytest.raises(DataError, match="Cannot read"):
        translations(tmp_path / "absent.csv")


def test_pairs_come_from_a_dictionary(tmp_path, monkeypatch):
    path = tmp_path / "edict"
    lines = ("猫(P) [ねこ(P);ネコ] /(n) (1) cat (esp. the domestic cat)/(2) shamisen/geisha/(P)/EntL1467640X/",
             "走る [はしる] /(v5r,vi) to run/to travel by some vehicle/")  # fmt: skip
    path.write_bytes("\n".join(lines).encode("euc-jp"))
    found = translations(path)
    assert Pair("猫", "cat", 0.3) in found and Pair("ねこ", "cat", 0.3) in found
    assert Pair("走る", "run", 0.05) in found and all(len(pair.known.split()) <= 2 for pair in found)
    assert [pair for pair in edict(path, names=["Cat"]) if pair not in found] == [
        Pair("猫", "cat", 1.0), Pair("ねこ", "cat", 1.0)
    ]  # fmt: skip
    path.write_text("nothing here")
    with pytest.raises(DataError, match="no dictionary"):
        translations(path)
    monkeypatch.setattr(dictionaries, "EDICT", tmp_path / "absent")
    with pytest.raises(MissingExtra, match="apt install edict"):
        translations("edict")


@pytest.mark.skipif(not NOTO.is_file(), reason="Debian's fonts-noto-color-emoji is not installed")
@pytest.mark.skipif(not CLDR.is_dir(), reason="Debian's unicode-cldr-core is not installed")
def test_pairs_come_from_emoji_without_what_is_held_out():
    pairs, held = emoji_pairs(["ja"]), emoji_pairs(["ja"], held_out=True)
    assert Pair("バイソン", "bison") in held and Pair("黒猫", "black cat") in pairs
    assert not {p.text for p in pairs} & {p.text for p in held}
    assert 0.05 < len(held) / len(pairs) < 0.15
    words = emoji_phrases(["ja"])
    assert any(p.text.endswith("青の背景") and p.known.endswith("on blue") for p in words)
    assert all(p.weight < 1 or p.known.startswith("flag of ") for p in words)
    assert Pair("エジプト", "flag of Egypt") in words  # a country is no emoji's name
    assert not {text.casefold() for text in held_out("ja")} & {p.text.casefold() for p in words}
    with pytest.raises(InputError, match="'xx'"):
        translations("emoji:xx")


def test_every_language_says_every_ground():
    assert set(BACKGROUNDS) == set(LANGUAGES) - {"en"}
    for saying, colors in BACKGROUNDS.values():
        assert len(set(colors.split())) == len(holdout.COLORS)
        assert "{name}" in saying and "{color}" in saying


@pytest.fixture(scope="module")
def clip():
    """Untrained, which tells flat colors apart all the same."""
    torch.manual_seed(0)
    net = {"width": 32, "multiples": [1], "blocks": [1], "attention": [], "in_channels": 3}
    return Clip({"net": net, "dim": 16}, {"vocabulary": 300, "width": 32, "depth": 1, "head": 32}, side=16).eval()


@pytest.fixture(scope="module")
def flat():
    """Nine colors, one caption each."""
    colors = torch.randint(0, 256, (9, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = colors.expand(9, 3, 16, 16).contiguous()
    return Images("flat", [images.numpy()], captions=[[p.known] for p in PAIRS])


def test_a_picture_recalls_its_own_caption_and_near_ones(clip, flat, tmp_path):
    index = variations.build_index(clip, flat)
    assert [index.retrieve(v, [0], 0)[0] for v in index.vectors] == [p.known for p in PAIRS]
    # over many seeds each caption comes as often as the softmax says
    chances = (index.vectors @ index.vectors[3] / 0.02).softmax(0)
    drawn = index.retrieve(index.vectors[3], range(2000), 0.02)
    often = torch.tensor([drawn.count(caption) / 2000 for caption in index.captions])
    assert (often - chances).abs().max() < 0.05
    assert index.retrieve(index.vectors[3], [7, 8], 0.02) == drawn[7:9]  # by the seed alone
    for dtype, atol in ((None, 1e-6), (torch.int8, 0.02)):
        variations.save(index, tmp_path / "memory.safetensors", dtype)
        same = variations.load(tmp_path / "memory.safetensors")
        torch.testing.assert_close(same.vectors, index.vectors, atol=atol, rtol=0)
        assert same.captions == index.captions


def test_a_picture_is_varied_by_its_words(model, clip, flat, tmp_path):
    index = variations.build_index(clip, flat)
    save_png(flat.batch([4]).images[0], tmp_path / "x.png")
    made = variations.variations(tmp_path / "x.png", n=2, model=model, index=index, clip=clip, temperature=0, steps=2)
    said = PAIRS[4].known
    assert made.labels == (said, said)
    assert torch.equal(made.images, sample(model, said, n=2, steps=2).images)
    more = variations.variations(
        tmp_path / "x.png", "house", n=1, model=model, index=index, clip=clip, temperature=0, steps=1
    )
    assert more.labels == (f"{said} house",)
    with pytest.raises(InputError, match="temperature"):
        index.retrieve(index.vectors[0], [0], -1)
    with pytest.raises(InputError, match="the encoder makes 16"):
        variations.variations(
            tmp_path / "x.png", model=model, index=variations.RetrievalIndex(torch.eye(3), ["a"] * 3), clip=clip
        )
    with pytest.raises(DataError, match="no captions"):
        variations.build_index(clip, Images("silent", [flat.arrays[0]]))
    with pytest.raises(DataError, match="1 channels, the encoder takes 3"):
        variations.build_index(clip, Images("gray", [flat.arrays[0][:, :1]], captions=flat.captions))
    torch.manual_seed(1)  # another encoder of the same form
    other = Clip(clip.config["image"], clip.config["text"], side=16).eval()
    with pytest.raises(InputError, match="another encoder"):
        variations.variations(tmp_path / "x.png", model=model, index=index, clip=other)
    with pytest.raises(InputError, match=r"another encoder|numbers, the encoder"):
        variations.variations(tmp_path / "x.png", model=model, clip=other)  # and the package's memory
    assert index.retrieve(index.vectors[0], [0], 1e-42) == index.retrieve(index.vectors[0], [0], 0)


def test_negative_words_are_heard_without_a_scale(model):
    plain = sample(model, "red square", n=1, steps=3).images
    away = sample(model, "red square", n=1, steps=3, negative_prompt="blue house").images
    assert (plain - away).abs().max() > 0.01
    assert torch.equal(away, sample(model, "red square", n=1, steps=3, negative_prompt="blue house", scale=2.0).images)
    with pytest.warns(UserWarning, match="does nothing at scale 1"):
        off = sample(model, "red square", n=1, steps=3, negative_prompt="blue house", scale=1).images
    torch.testing.assert_close(off, plain, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="no choices"):
        sample(model, "red square", n=1, negative_prompt="{blue|green} house")


def test_a_memory_is_made_from_the_command_line(clip, tmp_path, capsys):
    clips.save(clip, tmp_path / "clip.safetensors")
    (tmp_path / "photos").mkdir()
    for i, (w, h) in enumerate(((20, 16), (16, 20), (16, 16))):
        photo(w, h, seed=i).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"thing {i}")
    out = str(tmp_path / "memory.safetensors")
    given = ["index", str(tmp_path / "photos"), "--clip", str(tmp_path / "clip.safetensors"), "--size", "16"]
    assert main([*given, "--out", out]) == 0
    assert "3 images" in capsys.readouterr().out
    assert variations.load(out).captions == ["thing 0", "thing 1", "thing 2"]
    with pytest.raises(CheckpointError, match=r"no memory|no retrieval index"):
        variations.load(tmp_path / "clip.safetensors")


def test_bad_input(model, tmp_path):
    plain = Model(Denoiser(nets.build({"name": "dit", "width": 32, "depth": 1, "head": 32})), (3, 8, 8))
    with pytest.raises(InputError, match="without captions"):
        add_language(plain, PAIRS, steps=1)
    with pytest.raises(InputError, match="no other languages"):
        add_language(model, PAIRS, steps=1, resume_languages=True)
    with pytest.raises(DataError, match="No pairs"):
        add_language(model, [], steps=1)
    with pytest.raises(DataError, match=r"of none of the 1, .*'chat'.*exchanged"):
        add_language(taught_twice := model_with_words(model), [Pair("a cat", "chat")], steps=1)
    with pytest.warns(UserWarning, match=r"1 of 10 pairs are left out.*'unread'"):
        add_language(
            taught_twice, [*PAIRS, Pair("x", "unread")], steps=1, vocabulary=320, depth=1, folder=tmp_path / "t"
        )
    with pytest.raises(CheckpointError, match="holds a run with"):  # corrected pairs are another run
        add_language(
            taught_twice, [*PAIRS[:-1], Pair("x", "blue")], steps=1, vocabulary=320, depth=1, folder=tmp_path / "t"
        )
    with pytest.raises(InputError, match="batch_size"):
        add_language(model, PAIRS, steps=1, batch_size=0)
    with pytest.raises(InputError, match="keep"):
        add_language(model, PAIRS, steps=1, keep=1.0)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        variations.load(tmp_path / "no.safetensors")


def test_a_layer_that_ignores_the_texts_does_not_drown_the_others():
    """What the same error counts where the wanted output varies by its own size, and where it hardly varies."""
    wanted = 3 * torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(0))
    same = wanted[:1] + 1e-5 * wanted
    off = 0.1 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    assert multilingual._apart(wanted + off, wanted) == pytest.approx(1.1e-3, rel=0.2)
    assert multilingual._apart(same + off, same) == pytest.approx(1.1, rel=0.3)
