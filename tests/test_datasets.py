"""The data sets that have a name: digits, Fashion-MNIST, emoji, and those of the Hugging Face hub."""

from __future__ import annotations

import gzip
import sys
import types
from collections import Counter
from importlib import import_module
from pathlib import Path

import pictures
import pytest
import torch
from PIL import ImageFont

from fastdiffusion import data
from fastdiffusion.data.emoji import font
from fastdiffusion.errors import DataError, InputError, MissingExtra

fashion_mnist = import_module("fastdiffusion.data.fashion_mnist")  # the function stands before the module of its name
FMNIST = pytest.mark.skipif(not fashion_mnist.FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def test_digits():
    digits = data.load("digits")
    assert len(digits) == 1797 and digits.shape == (1, 8, 8) and digits.classes == tuple("0123456789")
    batch = digits.batch([0, 1, 1796])
    assert batch.images.dtype == torch.uint8 and batch.images.aminmax() == (0, 255)
    assert batch.labels.tolist() == [0, 1, 8] and batch.captions[1] == "the digit 1" and batch.names[0] == "digit-0000"
    with pytest.raises(InputError, match="8 by 8"):
        data.load("digits", size=16)


@FMNIST
def test_fashion_mnist():
    train, padded, test = (
        data.load("fashion-mnist"),
        data.load("fashion-mnist", 32),
        data.load("fashion-mnist", part="test"),
    )
    assert (len(train), len(test), train.shape, padded.shape) == (60_000, 10_000, (1, 28, 28), (1, 32, 32))
    assert Counter(test.batch(range(10_000)).labels.tolist()) == dict.fromkeys(range(10), 1000)
    plain, wide = train.batch([7]).images, padded.batch([7]).images
    assert torch.equal(wide[..., 2:-2, 2:-2], plain) and wide.sum() == plain.sum()
    assert train.classes[train.batch([0]).labels[0]] == "ankle boot"  # the first picture, as everywhere


def test_fashion_mnist_from_a_folder(tmp_path):
    for part, n in (("train", 5), ("t10k", 3)):
        pixels = bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(range(n)) * 784
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, n, *range(n)]))
        )
    assert len(data.load("fashion-mnist", folder=tmp_path)) == 5
    path = tmp_path / "t10k-images-idx3-ubyte"
    for content in (
        b"",
        b"\0\0\x08\x03\xff\xff\xff\xff",
        path.read_bytes()[:99],
        b"\0\0\x0d\x03" + path.read_bytes()[4:],
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="t10k-images"):
            data.load("fashion-mnist", folder=tmp_path, part="test")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(MissingExtra, match="apt install dataset-fashion-mnist"):
        data.load("fashion-mnist", folder=tmp_path / "elsewhere")


# ---- emoji --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not NOTO.is_file(), reason="Debian's fonts-noto-color-emoji is not installed")
class TestEmoji:
    SOME = ("😀", "👍", "👍🏽", "🇯🇵", "👩‍🚀", "❤️", "🇨🇶", "\U000fffff", "🏂", "🏂🏽", "😀😀")

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        names = {"😀": ["grin", "にこ"], "🏂": ["snowboarder"], "🏂🏽": ["snowboarder medium skin tone"]}
        monkeypatch.setattr(font, "_names", lambda languages: {s: names.get(s, [f"name {s}"]) for s in self.SOME})

    def test_only_what_the_font_has(self):
        found = data.emoji(32)
        drawn = dict(zip(found.names, found.captions, strict=True))
        # The flag of Sark (🇨🇶) is not in the font, a private code point neither, and two emoji are not one.
        assert set(drawn) == {"1f600", "1f44d", "1f44d-1f3fd", "1f1ef-1f1f5", "1f469-200d-1f680", "2764-fe0f", "1f3c2"}
        assert drawn["1f3c2"] == ("snowboarder", "snowboarder medium skin tone")  # drawn alike: one picture, both names
        assert drawn["1f600"] == ("grin", "にこ")
        assert found.key(found.names.index("1f44d")) == found.key(found.names.index("1f44d-1f3fd"))
        pixels = found.batch(range(len(found))).images.flatten(1)
        assert len(pixels.unique(dim=0)) == len(found) and (pixels.float().std(1) > 10).all()

    def test_alpha(self):
        flat, clear = data.emoji(32).batch([0]).images[0], data.emoji(32, alpha=True).batch([0]).images[0]
        assert flat.shape == (3, 32, 32) and clear.shape == (4, 32, 32)
        assert (flat[:, clear[3] == 0] == 255).all() and (clear[3] == 255).any()

    def test_without_complex_layout_families_are_left_out(self, monkeypatch):
        monkeypatch.setattr(font.features, "check", lambda name: False)
        real = font.ImageFont.truetype
        basic = font.ImageFont.Layout.BASIC
        monkeypatch.setattr(font.ImageFont, "truetype", lambda *a: real(*a, layout_engine=basic))
        with pytest.warns(UserWarning, match="lacks raqm"):
            found = data.emoji(32)
        assert set(found.names) == {"1f600", "1f44d", "2764-fe0f", "1f3c2"}


def test_emoji_names_in_every_language():
    for language in font.LANGUAGES:
        names = font._names([language])
        assert len(names) > 3500 and sum(map(len, names.values())) > 0.9 * len(names)
    assert font._names(["en", "ja"])["👍"] == ["thumbs up", "サムズアップ"]
    with pytest.raises(InputError, match="got \\['xx'\\]"):
        data.emoji(languages=["en", "xx"])


def test_fonts_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(font.fonts, "FOLDERS", (str(tmp_path), "~/x"))
    with pytest.raises(MissingExtra, match="No color emoji font found"):
        data.emoji()
    broken = tmp_path / "NotoColorEmoji.ttf"
    broken.write_bytes(b"no font")
    with pytest.raises(DataError, match="not a font that can be opened"):
        data.emoji()
    with pytest.raises(DataError, match=r"Cannot read the font 'x\.ttf'"):
        data.emoji(font=tmp_path / "x.ttf")
    black = tmp_path / "black.ttf"
    black.write_bytes(ImageFont.load_default(16).font_bytes)  # the one that Pillow carries
    with pytest.raises(DataError, match="draws no color here"):
        data.emoji(font=black)
    monkeypatch.setattr(font.Pen, "draw", lambda self, sequence: None)
    with pytest.raises(DataError, match="draws nothing here"):
        data.emoji(font=black)


# ---- Hugging Face -------------------------------------------------------------------------------------------------


class FakeTable(list):
    """What ``datasets.load_dataset`` returns, as far as it is used."""

    features: dict

    def cast_column(self, column, kind):
        assert kind.decode is False
        return self


@pytest.fixture
def fake_datasets(monkeypatch):
    module = types.ModuleType("datasets")
    module.Image = type("Image", (), {"__init__": lambda self, decode=True: setattr(self, "decode", decode)})
    names = type("ClassLabel", (), {"names": ["cat", "dog"]})
    rows = [
        {"image": {"bytes": pictures.encoded(pictures.photo(seed=i)), "path": None}, "label": i % 2, "text": f"no {i}"}
        for i in range(6)
    ]
    rows[2]["image"] = {"bytes": pictures.png(30_000, 30_000, bits=1), "path": None}
    rows[3]["image"], rows[4]["label"] = None, -1
    table = FakeTable(rows)
    table.features = {"image": module.Image(), "label": names(), "text": object()}
    calls = []

    def load_dataset(name, **options):
        calls.append((name, options))
        if name == "nobody/nothing":
            raise FileNotFoundError("no such data set")
        return table

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return types.SimpleNamespace(table=table, calls=calls)


def test_hub(fake_datasets):
    pets = data.load("hf:me/pets", 16, streaming=True, revision="v1")
    assert fake_datasets.calls == [("me/pets", {"split": "train", "streaming": True, "revision": "v1"})]
    assert len(pets) == 4 and pets.classes == ("cat", "dog") and pets.name == "pets" and pets.shape == (3, 16, 16)
    batch = pets.batch(range(4))
    assert (
        batch.labels.tolist() == [0, 1, -1, 1] and batch.names == ["0", "1", "4", "5"] and batch.captions[0] == "no 0"
    )
    assert len(data.load("hf:me/pets", 16, limit=2)) == 2


def test_hub_mistakes(fake_datasets, monkeypatch):
    for options, message in (
        ({"columns": {"text": "words"}}, "has no column 'words'. It has: image, label, text"),
        ({"trust_remote_code": True}, "never on"),
        ({"size": 3}, "whole number"),
    ):
        with pytest.raises(InputError, match=message):
            data.load("hf:me/pets", **options)
    with pytest.raises(DataError, match=r"Cannot load 'hf:nobody/nothing' .*no such data set"):
        data.load("hf:nobody/nothing")
    fake_datasets.table.features = {"words": object()}
    with pytest.raises(DataError, match="no image column among words"):
        data.load("hf:me/poems")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtra, match=r"Loading 'hf:me/pets' needs datasets. Install it with: pip install 'fastdiff"
    ):
        data.load("hf:me/pets")
