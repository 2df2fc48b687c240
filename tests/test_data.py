"""Data sets: what is in them, what is left out and why, and that nothing changes unless the data does."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import types
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image

from fastdiffusion import data, images
from fastdiffusion.data import augment, cache, captions, folders
from fastdiffusion.errors import DataError, InputError, MissingExtra

# Functions of the package stand before these modules of the same names.
emoji, fashion_mnist, scan = (
    import_module(f"fastdiffusion.data.{name}") for name in ("emoji", "fashion_mnist", "scan")
)
FMNIST = pytest.mark.skipif(not fashion_mnist.FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def album(folder: Path, n: int = 6, **options) -> Path:
    """A folder of n pictures, named 0.png and so on."""
    return pictures.write(folder, {f"{i}.png": pictures.encoded(pictures.photo(seed=i, **options)) for i in range(n)})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the parts that all share -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digitz", {}, "No folder or data set named 'digitz'. Did you mean 'digits'?"),
        ("no/such/folder", {}, "is not a folder: there is nothing"),
        (__file__, {}, "is not a folder: there is a file"),
        ("a\0b/c", {}, "is not a folder"),
        ("digits", {"colour": 1}, "does not take these options"),
        ("fashion-mnist", {"size": 64}, "size=28, or size=32"),
        ("fashion-mnist", {"part": "valid"}, "'train' and 'test'"),
        (".", {"size": 0}, "whole number from 8 to 4096, got 0"),
        (".", {"size": 7}, "got 7"),
        (".", {"size": "64"}, "got '64'"),
        (".", {"aspect": "crp"}, "Did you mean 'crop'?"),
    ],
)
def test_mistakes_are_explained(source, options, message):
    with pytest.raises((InputError, DataError)) as error:
        data.load(source, **options)
    assert message in str(error.value)


def test_a_data_set_is_its_own_source():
    digits = data.digits()
    assert data.load(digits) is digits


def test_batches_refuse_what_is_not_there():
    digits = data.digits()
    for wrong in ([], [-1], [1797]):
        with pytest.raises(InputError, match="from 0 to 1796"):
            digits.batch(wrong)
    with pytest.raises(InputError, match="Label 3"):
        data.Pictures("x", [np.zeros((2, 1, 8, 8), np.uint8)], labels=[0, 3], classes=["a"])
    with pytest.raises(DataError, match="no pictures"):
        data.Pictures("x", [])


def test_split_is_stable_and_complete():
    digits = data.digits()
    train, held = digits.split(0.1)
    assert len(held) == 180 and len(train) == 1617
    everything = Counter(train.batch(range(len(train))).names) + Counter(held.batch(range(len(held))).names)
    assert everything == Counter(digits.names)
    again, other = digits.split(0.1)[1], digits.split(0.1, seed=1)[1]
    assert again.indices == held.indices and again.fingerprint == held.fingerprint != other.fingerprint
    fewer = data.Pictures("d", [digits.arrays[0][:1700]], names=digits.names[:1700])
    moved = set(fewer.split(0.1)[1].indices) ^ {i for i in held.indices if i < 1700}
    assert len(moved) < 12
    assert len(digits.split(0)[1]) == 0
    with pytest.raises(InputError, match="holdout"):
        digits.split(1.0)


def test_fingerprint_is_of_the_content():
    digits = data.digits()
    changed = digits.arrays[0].copy()
    changed[5, 0, 0, 0] ^= 1
    assert digits.fingerprint == data.digits().fingerprint
    assert (
        digits.fingerprint
        != data.Pictures("digits", [changed], digits.labels.tolist(), classes=digits.classes).fingerprint
    )


def test_sigma_data():
    x = np.random.default_rng(0).integers(0, 256, (700, 1, 8, 8), dtype=np.uint8)
    flat = np.full((3, 1, 8, 8), 9, np.uint8)
    expected = images.to_tensor(x).std(correction=0)
    assert data.measure_sigma_data(data.Pictures("x", [x]), n=700) == pytest.approx(float(expected), rel=1e-5)
    assert data.measure_sigma_data(data.Pictures("x", [x[:600], x[600:, :, :4]])) == pytest.approx(
        float(expected), rel=0.01
    )
    with pytest.raises(DataError, match="one flat color"):
        data.measure_sigma_data(data.Pictures("flat", [flat]))


# ---- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wild(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """2,000 files of every kind, and which are to be skipped for what reason."""
    root, files, reasons = tmp_path_factory.mktemp("wild"), {}, {}
    good, bad = pictures.good(), pictures.bad()
    kinds = [*((name, content, None) for name, content in good.items()), *((n, c, why) for n, (c, why) in bad.items())]
    i = 0
    while len(files) < 1990:
        name, content, why = kinds[i % len(kinds)]
        path = f"dir {i // 100}/{i}-{name}" if i % 3 else f"{i}-{name}"
        files[path] = content
        if why:
            reasons[path] = why
        i += 1
    files |= {"notes.txt": b"x", ".DS_Store": b"x", "._0.png": b"x", "__MACOSX/0.png": b"x", "Thumbs.db": b"x"}
    pictures.write(root, files)
    (root / "loop").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    with open(os.fsencode(root) + b"/\xff\xfe.png", "wb") as file:
        file.write(good["rgb.png"])
    reasons |= {
        "self.png": "too many levels of symbolic links",
        "dangling.png": "link to nothing",
        "pipe.png": "not a regular file",
    }
    return root, reasons


def test_two_thousand_files(wild):
    root, reasons = wild
    folder = data.ImageFolder(root, size=32)
    report = folder.report
    assert dict(report.skipped) == reasons and len(reasons) > 600
    assert len(folder) == len(report.pictures) == 1991 - (len(reasons) - 3) and report.others == 5
    for group in folder.groups:
        folder.batch(group[:50])
    assert folder.classes == ()  # pictures lie in the root, too
    text = report.text(40)
    assert max(map(len, text.split("\n"))) <= 40 and text.isprintable() is False and "\x00" not in text
    assert json.loads(json.dumps(report.to_dict()))["skipped"]
    text.encode("utf-8")  # no lone surrogates of undecodable names
    assert data.ImageFolder(root, size=32).fingerprint == folder.fingerprint


def test_unreadable_files_are_skipped(tmp_path, monkeypatch):
    album(tmp_path, 3)
    read = Path.read_bytes

    def denied(path):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    report = data.scan(tmp_path)
    assert report.skipped == (scan.Skipped("1.png", "permission denied"),) and len(report.pictures) == 2


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match=r"No pictures in .* \(0 other files\)\. Put PNG"):
        data.load(tmp_path)
    pictures.write(tmp_path, {"readme.md": b"", "a.png": b"", "b.jpg": b"no"})
    with pytest.raises(DataError, match=r"None of the 2 pictures(.|\n)*a.png: empty file(.|\n)*b.jpg: not a picture"):
        data.load(tmp_path)


@pytest.mark.parametrize("size", [28, 32, 48, 64, 96, 128, 250, 256])
def test_buckets_lose_at_most_a_tenth(size):
    shapes = folders.buckets(size)
    assert (size, size) in shapes and len(shapes) <= 17 and set(shapes) == {(w, h) for h, w in shapes}
    assert all(0.9 < h * w / size**2 < 1.1 for h, w in shapes)
    for ratio in np.geomspace(1 / 4, 4, 301):
        w, h = 1000 * ratio**0.5, 1000 / ratio**0.5
        assert min(folders.crop_loss(w, h, shape) for shape in shapes) <= 0.1


def test_bucket_batches_are_uniform(tmp_path):
    sizes = [(60, 60), (90, 60), (60, 90), (120, 40), (61, 60), (300, 200)]
    pictures.write(tmp_path, {f"{i}.png": pictures.encoded(pictures.photo(*s, seed=i)) for i, s in enumerate(sizes)})
    folder = data.load(tmp_path, size=32)
    assert sorted(i for group in folder.groups for i in group) == list(range(6)) and len(folder.groups) == 4
    for group in folder.groups:
        batch = folder.batch(group)
        h, w = batch.images.shape[2:]
        for name in batch.names:
            assert folders.crop_loss(*sizes[int(name[0])], (h, w)) <= 0.1
    with pytest.raises(InputError, match="differ in size"):
        folder.batch(range(6))
    train, held = folder.split(0.3)
    for part in (train, held):
        assert sorted(i for group in part.groups for i in group) == list(range(len(part)))
        for group in part.groups:
            part.batch(group)
    assert sum(folder.report.sizes.values()) == 6


def test_square_options(tmp_path):
    stripes = Image.new("RGB", (64, 32), "blue")
    stripes.paste("red", (16, 0, 48, 32))
    pictures.write(
        tmp_path, {"a.png": pictures.encoded(stripes), "b.png": pictures.encoded(stripes.rotate(90, expand=True))}
    )
    cut, padded = data.load(tmp_path, 16, aspect="crop"), data.load(tmp_path, 16, aspect="pad")
    assert len(cut.groups) == len(padded.groups) == 1
    red = torch.tensor([255, 0, 0])[:, None, None]
    assert (cut.batch([0]).images[0, :, :, 2:-2] - red).abs().max() <= 2
    assert (padded.batch([0]).images[0, :, :4] == 255).all() and (padded.batch([1]).images[0, :, :, :4] == 255).all()


def test_modes(tmp_path):
    album(tmp_path / "gray", 3, mode="L")
    album(tmp_path / "color", 3)
    pictures.write(
        tmp_path / "gray", {"looks-gray.jpg": pictures.encoded(pictures.photo(mode="L").convert("RGB"), "JPEG")}
    )
    pictures.write(tmp_path / "color", {"alpha.png": pictures.encoded(pictures.transparent())})
    assert data.load(tmp_path / "gray", 16).shape == (1, 16, 16)
    assert data.load(tmp_path / "color", 16).shape == data.load(tmp_path, 16).shape == (3, 16, 16)
    assert data.load(tmp_path / "color", 16, mode="L").shape == (1, 16, 16)
    kept = data.load(tmp_path / "color", 16, mode="RGBA", aspect="crop")
    pixels = kept.batch([kept.names.index("alpha.png")]).images[0]
    assert pixels[:, 8, 0].tolist() == [255, 0, 0, 255] and pixels[3, 8, -1] == 0
    flat = data.load(tmp_path / "color", 16, aspect="crop")
    assert flat.batch([flat.names.index("alpha.png")]).images[0, :, 8, -1].tolist() == [255, 255, 255]


def test_turned_pictures_stand_upright(tmp_path):
    pictures.write(tmp_path, {"x.jpg": pictures.rotated(6, width=80, height=40)})
    folder = data.load(tmp_path, 32)
    height, width = folder.batch([0]).images.shape[2:]
    assert height > width
    fact = folder.report.pictures[0]
    assert (fact.width, fact.height) == (40, 80)


def test_class_folders(tmp_path):
    for name in ("cat", "dog/puppy", "10", "9"):
        album(tmp_path / name, 2)
    folder = data.load(tmp_path, 16)
    assert folder.classes == ("9", "10", "cat", "dog")
    batch = folder.batch(range(8))
    assert [folder.classes[i] for i in batch.labels] == [name.split("/")[0] for name in batch.names]
    assert folder.report.classes == {"9": 2, "10": 2, "cat": 2, "dog": 2}
    assert data.load(tmp_path, 16, labels="none").classes == ()
    album(tmp_path, 1)
    assert data.load(tmp_path, 16).classes == ()
    with pytest.raises(
        DataError, match=r"1 of 9 pictures have no label, e.g. '0.png': they need to lie in a subfolder"
    ):
        data.load(tmp_path, 16, labels="folders")
    with pytest.raises(DataError, match="row with a label"):
        data.load(tmp_path, 16, labels="table")


def test_captions_of_every_kind(tmp_path):
    album(tmp_path, 4)
    album(tmp_path / "sub", 3)
    rows = [
        {"file_name": "2.png", "text": ["one", "two"], "label": "x"},
        {"file_name": "./sub/../3.png", "text": "three", "label": 7},
        {"file_name": "../../etc/passwd", "text": "no"},
    ]
    files = {
        "0.txt": "a cat\n\n  on a mat \r\n".encode("utf-8-sig"),
        "1.json": b'{"caption": "from json", "label": "y"}',
        "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode() + b"\n\n",
        "sub/list.csv": 'File_Name,Caption\r\n0.png,"a, ""quoted""\nline"\r\n1,猫\r\n'.encode(),
        "sub/list.tsv": b"image\tprompt\n2.png\ttabbed\n",
        "broken.jsonl": b'{"file_name": "0.png"}\n{nonsense\n',
        "lonely.txt": b"nobody's",
        "latin.txt": b"\xe9",
    }
    folder = data.load(pictures.write(tmp_path, files), 16)
    found = dict(zip(folder.names, folder.captions, strict=True))
    assert found == {
        "0.png": ("a cat", "on a mat"),
        "1.png": ("from json",),
        "2.png": ("one", "two"),
        "3.png": ("three",),
        "sub/0.png": ('a, "quoted"\nline',),
        "sub/1.png": ("猫",),
        "sub/2.png": ("tabbed",),
    }
    assert folder.classes == ("7", "x", "y") and folder.batch([0]).labels.tolist() == [-1]
    assert folder.report.captions == (7, 9, 1)
    remarks = " | ".join(folder.report.remarks)
    assert "broken.jsonl: cannot be read (line 2 is not a JSON object)" in remarks
    assert "metadata.jsonl: 1 of 3 rows name no picture here" in remarks


def test_one_of_several_captions_is_drawn(tmp_path):
    pictures.write(album(tmp_path, 1), {"0.txt": b"a\nb\nc"})
    folder = data.load(tmp_path, 16)
    drawn = Counter(folder.batch([0] * 3000, generator()).captions)
    assert set(drawn) == set("abc") and min(drawn.values()) > 900
    assert folder.batch([0] * 9, generator(1)).captions == folder.batch([0] * 9, generator(1)).captions
    assert folder.batch([0] * 9).captions == ["a"] * 9


def test_varied_captions():
    tags = ["cat, red, small, old"] * 1000
    out = captions.vary(tags, generator(), dropout=0.25, shuffle=True)
    assert 200 < out.count("") < 300
    assert {t.split(", ")[0] for t in out if t} == {"cat"} and len(set(out)) == 7  # 3! orders, and nothing
    assert {tuple(sorted(t.split(", "))) for t in out if t} == {("cat", "old", "red", "small")}
    assert captions.vary(tags, generator()) == tags


def test_copies_are_found_and_stay_together(tmp_path):
    album(tmp_path, 40, width=200, height=150)
    (tmp_path / "copy.png").write_bytes((tmp_path / "7.png").read_bytes())
    picture = Image.open(tmp_path / "9.png")
    picture.resize((100, 75)).save(tmp_path / "smaller.jpg", quality=60)
    folder = data.load(tmp_path, 16)
    assert folder.report.duplicates == [["7.png", "copy.png"]]
    assert folder.report.near_duplicates == [["9.png", "smaller.jpg"]]
    for seed in range(20):
        held = {folder.names[i] for i in folder.split(0.3, seed)[1].indices}
        assert ("7.png" in held) == ("copy.png" in held) and ("9.png" in held) == ("smaller.jpg" in held)


def test_alike_equals_comparing_all():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, (60, 128))
    near = base[rng.integers(0, 60, 200)]
    for row in near:
        row[rng.choice(128, rng.integers(0, 12), replace=False)] ^= 1
    bits = np.concatenate([base, near])
    hashes = [np.packbits(row).tobytes().hex() for row in bits]
    close = (bits[:, None] != bits[None]).sum(2) <= scan.NEAR
    root = np.arange(len(bits))
    for _ in range(10):  # the smallest index that can be reached
        root = np.where(close, root[None], len(bits)).min(1)
    assert scan.alike(hashes) == root.tolist()
    assert scan.alike(["0" * 32, "0" * 32]) == [0, 1]  # flat pictures are like nothing


# ---- the cache ----------------------------------------------------------------------------------------------------


def test_decoded_once_and_again_when_changed(tmp_path, monkeypatch):
    album(tmp_path)
    looked = []
    look = folders.look
    monkeypatch.setattr(folders, "look", lambda root, file, near: looked.append(file.name) or look(root, file, near))

    def load(**options) -> tuple[int, str]:
        looked.clear()
        return (data.load(tmp_path, **{"size": 16, **options}), len(looked))[::-1][0], data.load(
            tmp_path, **{"size": 16, **options}
        ).fingerprint

    first = load()
    assert first == (6, load()[1]) and load()[0] == 0
    assert load(size=32)[0] == load(aspect="crop")[0] == load(mode="L")[0] == 6
    os.utime(tmp_path / "0.png", ns=(1, 1))
    assert load() == first  # decoded again; the content is the same
    (tmp_path / "0.png").write_bytes(pictures.encoded(pictures.photo(seed=99)))
    assert load()[0] == 6 and load()[1] != first[1]
    (tmp_path / "5.png").unlink()
    assert load()[0] == 5
    pictures.write(tmp_path, {"0.txt": b"words"})
    assert load()[0] == 0 and data.load(tmp_path, 16).captions[0] == ("words",)  # captions are never cached
    family = [f for f in (data.cache_folder() / "data").iterdir() if len(list(f.iterdir())) > 1]
    assert not family  # the old state of a folder is removed


def test_damaged_cache_is_made_again(tmp_path):
    folder = data.load(album(tmp_path), 16)
    pixels = folder.batch(folder.groups[0]).images
    for spoil in ("cut", "index", "gone"):
        place = max((data.cache_folder() / "data").iterdir(), key=lambda p: p.stat().st_mtime)
        state = next(place.iterdir())
        if spoil == "gone":
            shutil.rmtree(place)
        else:
            file = next(f for f in state.iterdir() if (f.name == "index.json") == (spoil == "index"))
            file.write_bytes(file.read_bytes()[:-5])
        assert torch.equal(data.load(tmp_path, 16).batch(folder.groups[0]).images, pixels)


def test_large_arrays_are_mapped(tmp_path, monkeypatch):
    expected = data.load(album(tmp_path), 16)
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    mapped = data.load(tmp_path, 16)
    assert isinstance(mapped.arrays[0], np.memmap)
    assert torch.equal(mapped.batch([3, 1]).images, expected.batch([3, 1]).images)


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device\. Name a folder with more room: XDG_CACHE_HOME"):
        data.load(album(tmp_path), 16)
    monkeypatch.undo()
    assert len(data.load(tmp_path, 16)) == 6


def test_without_home_and_in_locale_c(tmp_path):
    album(tmp_path / "photös", 3)
    program = (
        "import sys; from fastdiffusion import data; folder = data.load(sys.argv[1], 16); "
        "print(data.cache_folder().name, len(folder), ascii(folder.report.text(40)))"
    )
    environment = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "TMPDIR": str(tmp_path),
        "HOME": "/proc/nowhere",
    }
    environment["PYTHONPATH"] = str(Path(data.__file__).parents[2])
    out = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "photös"], env=environment, capture_output=True, check=True
    )
    assert out.stdout.split()[:2] == [f"fastdiffusion-{os.getuid()}".encode(), b"3"]
    assert (tmp_path / f"fastdiffusion-{os.getuid()}" / "data").is_dir()


# ---- emoji --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not NOTO.is_file(), reason="Debian's fonts-noto-color-emoji is not installed")
class TestEmoji:
    SOME = ("😀", "👍", "👍🏽", "🇯🇵", "👩‍🚀", "❤️", "🇨🇶", "\U000fffff", "🏂", "🏂🏽", "😀😀")

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        names = {"😀": ["grin", "にこ"], "🏂": ["snowboarder"], "🏂🏽": ["snowboarder medium skin tone"]}
        monkeypatch.setattr(emoji, "_names", lambda languages: {s: names.get(s, [f"name {s}"]) for s in self.SOME})

    def test_only_what_the_font_has(self):
        found = data.emoji(32)
        drawn = dict(zip(found.names, found.captions, strict=True))
        # The flag of Sark (🇨🇶) is not in the font, a private code point neither, and two emoji are not one.
        assert set(drawn) == {"1f600", "1f44d", "1f44d-1f3fd", "1f1ef-1f1f5", "1f469-200d-1f680", "2764-fe0f", "1f3c2"}
        assert drawn["1f3c2"] == ("snowboarder", "snowboarder medium skin tone")  # drawn alike: one picture, both names
        assert drawn["1f600"] == ("grin", "にこ")
        pixels = found.batch(range(len(found))).images.flatten(1)
        assert len(pixels.unique(dim=0)) == len(found) and (pixels.float().std(1) > 10).all()

    def test_alpha(self):
        flat, clear = data.emoji(32).batch([0]).images[0], data.emoji(32, alpha=True).batch([0]).images[0]
        assert flat.shape == (3, 32, 32) and clear.shape == (4, 32, 32)
        assert (flat[:, clear[3] == 0] == 255).all() and (clear[3] == 255).any()

    def test_without_complex_layout_families_are_left_out(self, monkeypatch):
        monkeypatch.setattr(emoji.features, "check", lambda name: False)
        real = emoji.ImageFont.truetype
        basic = emoji.ImageFont.Layout.BASIC
        monkeypatch.setattr(emoji.ImageFont, "truetype", lambda *a: real(*a, layout_engine=basic))
        with pytest.warns(UserWarning, match="lacks raqm"):
            found = data.emoji(32)
        assert set(found.names) == {"1f600", "1f44d", "2764-fe0f", "1f3c2"}


def test_emoji_names_in_every_language():
    for language in emoji.LANGUAGES:
        names = emoji._names([language])
        assert len(names) > 3500 and sum(map(len, names.values())) > 0.9 * len(names)
    assert emoji._names(["en", "ja"])["👍"] == ["thumbs up", "サムズアップ"]
    with pytest.raises(InputError, match="got \\['xx'\\]"):
        data.emoji(languages=["en", "xx"])


def test_fonts_that_cannot_be_used(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setattr(emoji, "_FOLDERS", (str(tmp_path), "~/x"))
    with pytest.raises(MissingExtra, match="No color emoji font found"):
        data.emoji()
    broken = tmp_path / "NotoColorEmoji.ttf"
    broken.write_bytes(b"no font")
    with pytest.raises(DataError, match="not a font that can be opened"):
        data.emoji()
    with pytest.raises(DataError, match=r"Cannot read the font 'x\.ttf'"):
        data.emoji(font=tmp_path / "x.ttf")
    black = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    with pytest.raises(DataError, match="draws no color here"):
        data.emoji(font=black)
    monkeypatch.setattr(emoji.Pen, "draw", lambda self, sequence: None)
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


# ---- augmentation -------------------------------------------------------------------------------------------------

PHOTOS = images.to_tensor(np.stack([images.to_array(pictures.photo(24, 16, seed=i)) for i in range(64)]))


def test_lengths():
    assert augment.length() == 9 and augment.length(augment.EDM + augment.COLOR) == 14 + 0
    assert augment.length(("mirror", "crop")) == 0 and augment.length(()) == 0
    with pytest.raises(InputError, match="Did you mean 'rotate'"):
        augment.length(("rotat",))
    with pytest.raises(InputError, match="from 0 to 1"):
        augment.draw(1, generator(), p=2)


@pytest.mark.parametrize("names", [*((name,) for name in augment.AUGMENTS), augment.EDM + augment.COLOR])
def test_zeros_mean_untouched(names):
    """What the network is told is zero exactly when the picture is bit for bit the given one."""
    told = augment.length(names)
    x, vector = augment.augment(PHOTOS, generator(), names, p=0.5)
    assert x.shape == PHOTOS.shape and vector.shape == (64, told) and x.abs().max() <= 1
    same = (x == PHOTOS).flatten(1).all(1)
    if told:
        assert torch.equal((vector == 0).all(1), same) and (0 < same.sum() < 64 or len(names) > 1)
    off, silent = augment.augment(PHOTOS, generator(), tuple(n for n in names if n not in augment._ALWAYS), p=0)
    assert torch.equal(off, PHOTOS) and not silent.any()


def test_plans_are_divided_without_a_difference():
    whole, vector = augment.augment(PHOTOS, generator(3), augment.EDM + augment.COLOR, p=0.5)
    plan = augment.draw(64, generator(3), augment.EDM + augment.COLOR, p=0.5)
    halves = [augment.apply(PHOTOS[rows], plan[rows]) for rows in (slice(0, 64, 2), slice(1, 64, 2))]
    torch.testing.assert_close(torch.stack(halves, 1).flatten(0, 1), whole, rtol=0, atol=1e-6)
    assert torch.equal(plan.vector, vector)


def performed(
    name: str, u: float, z: float, x: torch.Tensor, v: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One transformation with chosen random numbers."""
    us, zs = torch.full((len(x), 2), u), torch.full((len(x), 2), z)
    if v is not None:
        us[:, 1] = zs[:, 1] = v
    matrix, vector = augment.AUGMENTS[name](us, zs)
    eyes = torch.eye(3).repeat(len(x), 1, 1), torch.eye(4).repeat(len(x), 1, 1)
    space, color = (matrix, eyes[1]) if matrix.shape[-1] == 3 else (eyes[0], matrix)
    return augment.apply(x, augment.Plan(space, color, vector)), vector[0]


def test_flips_are_exact():
    assert torch.equal(performed("mirror", 0.1, 0, PHOTOS)[0], PHOTOS.flip(3))
    assert torch.equal(performed("mirror", 0.9, 0, PHOTOS)[0], PHOTOS)
    assert torch.equal(performed("flip_x", 0.1, 0, PHOTOS)[0], PHOTOS.flip(3))
    assert torch.equal(performed("flip_y", 0.1, 0, PHOTOS)[0], PHOTOS.flip(2))


def test_quarter_turn():
    square = PHOTOS[..., :16]
    x, vector = performed("rotate", 0.75, 0, square)  # a = 90 degrees, clockwise as seen
    torch.testing.assert_close(x, torch.rot90(square, -1, (2, 3)), rtol=0, atol=1e-3)
    torch.testing.assert_close(vector, torch.tensor([-1.0, 1.0]))


def test_shift_by_whole_pixels():
    x, vector = performed("shift", 0, 1.0, PHOTOS, v=-0.5)  # 1/8 of 16 pixels: 2 to the right, 1 up
    torch.testing.assert_close(x[:, :, :-1, 2:], PHOTOS[:, :, 1:, :-2], rtol=0, atol=1e-3)
    torch.testing.assert_close(x[:, :, :-1, :2], PHOTOS[:, :, 1:, :2].flip(3), rtol=0, atol=1e-3)  # goes on mirrored
    assert vector.tolist() == [1.0, -0.5]


def test_scale_doubles():
    blob = torch.zeros(1, 1, 32, 48)
    blob[..., 12:20, 20:28] = 1
    x, vector = performed("scale", 0, 5.0, blob)
    assert x.sum() == pytest.approx(4 * 64, rel=0.05) and vector.tolist() == [5.0]
    torch.testing.assert_close(x, x.flip(2, 3), rtol=0, atol=1e-4)  # about the middle
    wide, _ = performed("stretch", 0.5, 5.0, blob)  # a = 0: twice as wide, half as high
    middle = wide[0, 0, 8:24]  # its mirror images lie farther out
    assert middle.sum() == pytest.approx(64, rel=0.1)
    assert (middle[8] > 0.5).sum() == 16 and (middle[:, 24] > 0.5).sum() == 4


def test_crop_is_a_window():
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    for u in (0.0, 0.3, 1.0):
        x, _ = performed("crop", u, 0.7, ramp)
        side = 0.85 + 0.15 * float(torch.tensor(0.7 * 0.5**0.5).erf())
        middle = (1 - side) * (2 * u - 1)
        torch.testing.assert_close(x[0, 0, 5, 8:24], side * ramp[0, 0, 5, 8:24] + middle * 32 / 31, rtol=0, atol=5e-3)


def test_colors():
    x = PHOTOS * 0.3
    torch.testing.assert_close(performed("brightness", 0, 1.0, x)[0], x + 0.2)
    torch.testing.assert_close(performed("contrast", 0, 1.0, x)[0], x * 2**0.5)
    third, _ = performed("hue", 5 / 6, 0, x)  # a third of a turn exchanges the colors
    torch.testing.assert_close(third, x.roll(1, 1), rtol=0, atol=1e-5)
    gray = x.mean(1, keepdim=True)
    torch.testing.assert_close(performed("saturation", 0, 1.0, x)[0], gray + 2 * (x - gray), rtol=0, atol=1e-5)
    for name in ("hue", "saturation"):
        torch.testing.assert_close(performed(name, 0.9, 1.0, gray)[0], gray, rtol=0, atol=1e-6)
    torch.testing.assert_close(performed("brightness", 0, 1.0, gray)[0], gray + 0.2)
    clear = torch.cat([x, torch.ones_like(gray)], 1)
    torch.testing.assert_close(performed("brightness", 0, -1.0, clear)[0][:, 3:], torch.ones_like(gray))


def test_last_transformation_is_done_last():
    """Shift then turn is not turn then shift: the plan's order is the order of the names."""
    square = PHOTOS[:1, :, :, :16]
    shift, turn = (
        augment.AUGMENTS[n](torch.full((1, 2), 0.75), torch.tensor([[1.0, 0.0]]))[0] for n in ("shift", "rotate")
    )
    both = augment.apply(square, augment.Plan(shift @ turn, torch.eye(4)[None], torch.zeros(1, 0)))
    once = performed("shift", 0, 1.0, square, v=0.0)[0]
    torch.testing.assert_close(both, performed("rotate", 0.75, 0, once)[0], rtol=0, atol=2e-2)


def test_rates():
    plan = augment.draw(20_000, generator(), p=0.12)
    rate = (plan.vector != 0).float().mean(0)
    assert rate[0] == pytest.approx(0.5, abs=0.02) and rate[1] == pytest.approx(0.06, abs=0.01)
    assert rate[2:].tolist() == pytest.approx([0.12] * 7, abs=0.01)
