"""Byte-pair encoding: exact round trips in every script, merges that shorten, spans that point at the right letters."""

import pytest

from fastdiffusion.errors import InputError
from fastdiffusion.nets.tokenizer import BYTES, Tokenizer, train

TEXTS = ["a cat with heart eyes", "a cat face", "heart eyes", "black cat", "猫の顔", "黒猫の顔", "ハート目の猫の顔"]
STRANGE = [
    "",
    " ",
    "  two  spaces ",
    "tab\tand\nline",
    "naïve café",
    "猫",
    "🐈‍⬛",
    "السلام",
    "سلام‌ها",
    "under_score 3.14",
    "\ud800",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, size=BYTES + 60)


@pytest.mark.parametrize("text", [*TEXTS, *STRANGE[:-1]])
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_is_encoded_too(tokenizer):
    assert tokenizer.encode(STRANGE[-1])


def test_merges_shorten_what_they_were_trained_on(tokenizer):
    assert sum(len(tokenizer.encode(text)) for text in TEXTS) < 0.5 * sum(len(text.encode()) for text in TEXTS)
    assert tokenizer.known("cat") and not tokenizer.known("zebra")


def test_the_most_common_pair_is_merged_first():
    assert train(["ab ab ab cd cd"], size=BYTES + 2).token_bytes[-1] == b"ab"


def test_training_depends_on_the_texts_alone():
    assert train(TEXTS, size=BYTES + 40).merges == train(list(TEXTS), size=BYTES + 40).merges


def test_a_word_is_the_same_token_wherever_it_stands(tokenizer):
    (cat,) = tokenizer.encode(" cat")
    assert cat in tokenizer.encode("black cat") and cat in tokenizer.encode(" cat face")


@pytest.mark.parametrize("text", ["a cat, with heart eyes", "Black Cat!", "黒猫 の顔", "naïve café", "🐈‍⬛ cat"])
def test_spans_cover_the_letters_in_order(tokenizer, text):
    spans = tokenizer.spans(text)
    assert len(spans) == len(tokenizer.encode(text))
    assert all(0 <= a <= b <= len(text) for a, b in spans)
    assert [a for a, _ in spans] == sorted(a for a, _ in spans)
    covered = {i for a, b in spans for i in range(a, b)}
    assert covered >= {i for i, char in enumerate(text) if not char.isspace()}


def test_the_span_of_a_word_is_the_word(tokenizer):
    text = " a cat with heart eyes"
    assert "cat" in {text[a:b] for a, b in tokenizer.spans(text)}


def test_bad_merges_and_sizes_are_refused():
    with pytest.raises(InputError, match="earlier tokens"):
        Tokenizer([(1, 300)])
    with pytest.raises(InputError, match="4096"):
        train(TEXTS, size=BYTES)
