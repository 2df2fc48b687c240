"""The text encoder: padding says nothing, batches do not mix, and a model file carries its words."""

import pytest
import torch

from fastdiffusion import models, nets
from fastdiffusion.data.dataset import Images
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.models import Model, load, save
from fastdiffusion.nets import tokenizer
from fastdiffusion.nets.text import TextEncoder, normalized, respelled
from fastdiffusion.training.learner import Learner
from fastdiffusion.types import Cond

CAPTIONS = ["red square", "blue square", "red circle", "blue circle", "a tall-ish red tree"]
NET = {"name": "dit", "patch": 4, "width": 32, "depth": 1, "head": 32, "words": {"width": 32, "depth": 1, "head": 32}}


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    made = TextEncoder(vocabulary=300, width=32, depth=2, head=16, length=8)
    made.set_vocabulary(tokenizer.train([normalized(c) for c in CAPTIONS], 300))
    for layer in made.layers:  # out of their first state, in which attention adds nothing
        torch.nn.init.normal_(layer.attention.out.weight, std=0.2)
    torch.nn.init.normal_(made.position)
    return made.eval()


def pictures(n: int = 24) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator).numpy()
    return Images("said", [images], captions=[[CAPTIONS[i % 4], f"also {CAPTIONS[i % 4]}"] for i in range(n)])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("bad, bad_hands", "B B1, H"),
        ("badminton, rebad", "badminton, rebad"),
        ("a<x>b bad.", "aX<b B B1."),
        ("<x> bad bad", "X< B B1 B B1"),
    ],
)
def test_an_added_word_is_no_part_of_another(text, written):
    """Nor is what stands for one word read once more: "<" and "bad" are words too."""
    assert respelled(text, {"bad": "B B1", "bad_hands": "H", "<x>": "X<", "B1": "wrong"}) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Floppy Disk", "F"), ("a FLOPPY  disk, red", "a F, red"), ("floppy-disk", "F"),
        ("floppy disks", "floppy disks"),
        ("eight o'clock", "8"), ("Eight O’Clock", "8"), ("<Toy> <toy>", "<Toy> T"), ("Ab ab", "A ab"),
    ],
)  # fmt: skip
def test_a_name_of_added_tokens_is_found_as_people_write_it(text, written):
    """But what has capitals or signs is meant as it is; and so is all in checkpoints of other programs."""
    names = {"floppy disk": "F", "eight o’clock": "8", "<toy>": "T", "Ab": "A"}
    assert respelled(text, names, tolerant=True) == written
    assert respelled("Floppy Disk", names) == "Floppy Disk"


def test_added_words_that_begin_alike_have_their_own_rows(encoder):
    encoder.add_tokens({"sks": torch.zeros(2, 32), "sks_blue": torch.ones(1, 32)})
    first, second, third = (encoder.tokens([text])[0].tolist() for text in ("sks", "sks_blue", "sks sks_blue"))
    assert len(first) == 2 and len(second) == 1 and third == first + second


def test_normalized():
    assert normalized("Ｔｈｅ  Heart-Eyes\tCat") == " the heart eyes cat"


def test_rows_do_not_see_each_other_or_the_padding(encoder):
    together, mask, pooled = encoder(encoder.tokens(["red square", "a tall-ish red tree", ""]))
    alone, _, alone_pooled = encoder(encoder.tokens(["red square"]))
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone)
    torch.testing.assert_close(pooled[:1], alone_pooled)
    assert not mask[2].any() and not together[2].any() and not pooled[2].any()
    assert together.isfinite().all()


def test_order_matters_and_long_captions_are_cut(encoder):
    a, b = (encoder(encoder.tokens([text]))[2] for text in ("red square blue", "blue square red"))
    assert (a - b).abs().max() > 1e-3
    assert encoder.tokens(["red " * 100]).shape == (1, 8)


def test_saying_nothing_equals_being_dropped():
    torch.manual_seed(0)
    net = nets.build({**NET, "in_channels": 3, "out_channels": 3, "words": {**NET["words"], "vocabulary": 300}}).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    net.text_encoder.set_vocabulary(tokenizer.train(CAPTIONS, 300))
    x, c_noise = torch.randn(2, 3, 16, 16), torch.zeros(2)
    said = Cond(tokens=net.text_encoder.tokens(["red square", "blue circle"]))
    nothing = net(x, c_noise, Cond(tokens=net.text_encoder.tokens(["", ""])))
    torch.testing.assert_close(net(x, c_noise, said.null()), nothing)
    torch.testing.assert_close(net(x, c_noise, net.encode_prompt(said).null()), nothing)
    torch.testing.assert_close(net(x, c_noise, net.encode_prompt(said)), net(x, c_noise, said))
    assert (net(x, c_noise, said) - nothing).abs().max() > 1e-3


def test_a_model_of_words_trains_resumes_and_is_saved_whole(tmp_path):
    def run(folder, steps):
        return Learner(
            pictures(), net=NET, captions=True, batch_size=8, folder=folder, verbose=False, precision="float32"
        ).fit(steps=steps)

    whole = run(tmp_path / "whole", 6).model
    run(tmp_path / "cut", 3)
    cut = run(tmp_path / "cut", 6).model
    # a budget of 3 steps decays sooner than one of 6, so only what does not depend on it is compared
    assert cut.conditioner.net.text_encoder.tokenizer.merges == whole.conditioner.net.text_encoder.tokenizer.merges
    save(whole, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.conditioner.net.text_encoder.tokenizer.encode(
        " red square"
    ) == whole.conditioner.net.text_encoder.tokenizer.encode(" red square")
    a, b = (m.encode_prompt(["red square", ""]) for m in (whole, again))
    assert torch.equal(a.emb, b.emb) and torch.equal(a.mask, b.mask) and torch.equal(a.pooled, b.pooled)
    x, sigma = torch.randn(2, 3, 16, 16), torch.ones(2)
    assert torch.equal(whole.denoise(x, sigma, a), again.denoise(x, sigma, b))


def test_words_are_refused_where_there_are_none(tmp_path):
    plain = Model(Denoiser(nets.build({"name": "dit", "width": 32, "depth": 1, "head": 32})), (3, 16, 16))
    with pytest.raises(InputError, match="without words"):
        plain.encode_prompt(["red square"])
    silent = Images("silent", [pictures().arrays[0]])
    with pytest.raises(DataError, match="no captions"):
        Learner(silent, net=NET, captions=True, verbose=False)
    encoder = TextEncoder(vocabulary=300)
    with pytest.raises(InputError, match="room for 300"):
        encoder.set_vocabulary(tokenizer.Tokenizer([(1, 2)] * 100))


def test_a_run_may_begin_with_a_trained_model(tmp_path):
    first = Learner(pictures(), net=NET, captions=True, batch_size=8, verbose=False, folder=tmp_path / "a").fit(steps=2)
    options = {"captions": True, "batch_size": 8, "verbose": False, "init_from": tmp_path / "a" / "model.safetensors"}
    going = Learner(pictures(), folder=tmp_path / "b", **options)
    mine, theirs = (
        going.objective.denoiser.net.state_dict(),
        models.native_denoiser(load(tmp_path / "a")).net.state_dict(),
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (
        going.fit(steps=2).model.conditioner.net.text_encoder.tokenizer.merges
        == first.model.conditioner.net.text_encoder.tokenizer.merges
    )
    assert Learner(pictures(), folder=tmp_path / "b", **options).fit(steps=3).state.step == 3  # goes on as any other
    with pytest.raises(InputError, match="cannot be trained on here"):
        Learner(pictures(), **{**options, "captions": False})


def test_words_are_known_from_the_captions():
    texts = [normalized(c) for c in CAPTIONS]
    encoder = TextEncoder(vocabulary=300, width=32, depth=1, head=16, known=8)
    encoder.set_vocabulary(tokenizer.train(texts, 300), texts)
    assert all(map(encoder.knows, ["red", "Tall", "circle", "ish", "a"]))
    assert not any(map(encoder.knows, ["re", "rede", "squares", "xylophone"]))


def test_a_tokenizer_without_merges_is_taken_over():
    made = TextEncoder(vocabulary=300, width=32, depth=1, head=16)
    made.set_vocabulary(tokenizer.train(["a", "b"], 300))
    assert made.tokens(["ab"]).shape == (1, 3)
