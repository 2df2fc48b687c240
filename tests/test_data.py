"""Data sets: what is in them, what is left out and why, and that nothing changes unless the data does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image

from fastdiffusion import data
from fastdiffusion.data import cache, captions, folders
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.io import images

scan = import_module("fastdiffusion.data.scan")  # the function stands before the module of its name


def album(folder: Path, n: int = 6, **options) -> Path:
    """A folder of n pictures, named 0.png and so on."""
    return pictures.write(folder, {f"{i}.png": pictures.encoded(pictures.photo(seed=i, **options)) for i in range(n)})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the parts that all share -------------------------------------------------------------------------------------


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
        data.Images("x", [np.zeros((2, 1, 8, 8), np.uint8)], labels=[0, 3], classes=["a"])
    with pytest.raises(DataError, match="no images"):
        data.Images("x", [])


def test_split_is_stable_and_complete():
    digits = data.digits()
    train, held = digits.split(0.1)
    assert len(held) == 180 and len(train) == 1617
    everything = Counter(train.batch(range(len(train))).names) + Counter(held.batch(range(len(held))).names)
    assert everything == Counter(digits.names)
    again, other = digits.split(0.1)[1], digits.split(0.1, seed=1)[1]
    assert again.indices == held.indices and again.fingerprint == held.fingerprint != other.fingerprint
    fewer = data.Images("d", [digits.arrays[0][:1700]], names=digits.names[:1700])
    moved = set(fewer.split(0.1)[1].indices) ^ {i for i in held.indices if i < 1700}
    assert len(moved) < 12
    assert len(digits.split(0)[1]) == 0
    with pytest.raises(InputError, match="holdout"):
        digits.split(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_no_class_is_held_out_whole(seed):
    labels = [0] * 20 + [1]
    few = data.Images("few", [np.zeros((21, 1, 8, 8), np.uint8)], labels=labels, classes=["many", "one"])
    train, held = few.split(0.3, seed)
    assert len(train) + len(held) == 21 and len(held) > 3
    assert 1 in train.annotations(range(len(train))).labels.tolist()


def test_whole_numbers_with_a_point_are_labels(tmp_path):
    for i in range(3):
        images.save_png(np.zeros((1, 8, 8), np.uint8), tmp_path / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "label": float(i % 2)} for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert data.ImageFolder(tmp_path, size=8).classes == ("0", "1")


def test_classes_whose_names_are_endless_numbers_are_sorted():
    assert sorted(["9" * 5000, "b", "10", "9"], key=folders.natural) == ["9", "10", "9" * 5000, "b"]


def test_a_run_inside_the_folder_is_no_data(tmp_path):
    images.save_png(np.zeros((1, 8, 8), np.uint8), tmp_path / "a.png")
    run = tmp_path / "runs" / "photos"
    images.save_png(np.zeros((1, 8, 8), np.uint8), run / "previews" / "0000010.png")
    (run / "step-000000010.safetensors").write_bytes(b"")
    found = data.ImageFolder(tmp_path, size=8)
    assert found.names == ["a.png"] and found.options["aspect"] == "bucket"


def test_fingerprint_is_of_the_content():
    digits = data.digits()
    changed = digits.arrays[0].copy()
    changed[5, 0, 0, 0] ^= 1
    assert digits.fingerprint == data.digits().fingerprint
    assert (
        digits.fingerprint
        != data.Images("digits", [changed], digits.labels.tolist(), classes=digits.classes).fingerprint
    )


def test_fingerprints_never_change(tmp_path):
    """Runs and caches are recognized by them: another value would orphan every one that there is."""
    for i in range(6):
        place = tmp_path / "photos" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:20, : 24 + 4 * (i // 4)]
        Image.fromarray(np.stack([x * 9 + i * 20, y * 11, (x + y) * 5], -1).astype(np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"number {i}\nnumero {i}")
    folder = tmp_path / "photos"
    buckets, squares = (
        data.ImageFolder(folder, 16),
        data.ImageFolder(folder, 16, aspect="crop", mode="L", labels="none"),
    )
    digits = data.digits()
    known = {
        digits: "8b00f6794d449f1096fdd69387207d3c",
        digits.split(0.1)[0]: "40648c520ea06aa789230360ae3f47d3",
        buckets: "1a691daaefeeff84efe154418f2cb4cb",
        buckets.split(0.3)[1]: "70c3c5f745c6e9094ca9d4565c5be73c",
        squares: "82004c14f0f0fb84553fe2c737dffd7c",
        data.Crops(folder, size=16): "28dc027536ccb80a97d9bbab8ed6539d",
        data.Pairs(folder, folder, size=16): "8cd47feacb9fa7bb7385a901dfe5131f",
    }
    assert {dataset: dataset.fingerprint for dataset in known} == known


def test_sigma_data():
    x = np.random.default_rng(0).integers(0, 256, (700, 1, 8, 8), dtype=np.uint8)
    flat = np.full((3, 1, 8, 8), 9, np.uint8)
    expected = images.to_tensor(x).std(correction=0)
    assert data.measure_sigma_data(data.Images("x", [x]), n=700) == pytest.approx(float(expected), rel=1e-5)
    assert data.measure_sigma_data(data.Images("x", [x[:600], x[600:, :, :4]])) == pytest.approx(
        float(expected), rel=0.01
    )
    with pytest.raises(DataError, match="one flat color"):
        data.measure_sigma_data(data.Images("flat", [flat]))


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
    assert len(folder) == len(report.images) == 1991 - (len(reasons) - 3) and report.others == 5
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
    assert report.skipped == (scan.Skipped("1.png", "permission denied"),) and len(report.images) == 2


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match=r"No images in .* \(0 other files\)\. Put PNG"):
        data.load(tmp_path)
    pictures.write(tmp_path, {"readme.md": b"", "a.png": b"", "b.jpg": b"no"})
    with pytest.raises(DataError, match=r"None of 2 images(.|\n)*a.png: empty file(.|\n)*b.jpg: not an image"):
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
    fact = folder.report.images[0]
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
    with pytest.raises(DataError, match=r"1 of 9 images have no label, e.g. '0.png': they need to lie in a subfolder"):
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
    assert "metadata.jsonl: 1 of 3 rows name no image here" in remarks


def test_one_of_several_captions_is_drawn(tmp_path):
    pictures.write(album(tmp_path, 1), {"0.txt": b"a\nb\nc"})
    folder = data.load(tmp_path, 16)
    drawn = Counter(folder.batch([0] * 3000, generator()).captions)
    assert set(drawn) == set("abc") and min(drawn.values()) > 900
    assert folder.batch([0] * 9, generator(1)).captions == folder.batch([0] * 9, generator(1)).captions
    assert folder.batch([0] * 9).captions == ["a"] * 9


def test_varied_captions():
    tags = ["cat, red, small, old"] * 1000
    out = captions.augment_captions(tags, generator(), dropout=0.25, shuffle=True)
    assert 200 < out.count("") < 300
    assert {t.split(", ")[0] for t in out if t} == {"cat"} and len(set(out)) == 7  # 3! orders, and nothing
    assert {tuple(sorted(t.split(", "))) for t in out if t} == {("cat", "old", "red", "small")}
    assert captions.augment_captions(tags, generator()) == tags


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
    inspect = folders.inspect
    monkeypatch.setattr(
        folders, "inspect", lambda root, file, near: looked.append(file.name) or inspect(root, file, near)
    )

    def load(**options) -> tuple[int, str]:
        """How many files were decoded, and the fingerprint."""
        looked.clear()
        folder = data.load(tmp_path, **{"size": 16, **options})
        return len(looked), folder.fingerprint

    first = load()
    assert first[0] == 6 and load() == (0, first[1])
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


def test_two_processes_may_decode_one_folder_at_once(tmp_path, monkeypatch):
    def with_one_that_is_renamed(folder):
        return [*listed(folder), folder / ".of-another-process"]

    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", with_one_that_is_renamed)
    assert len(data.load(album(tmp_path), 16)) == 6


def test_a_photograph_that_is_a_line_is_left_out(tmp_path):
    Image.new("L", (1, 7_000_000)).save(tmp_path / "line.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "square.png")
    assert [skip.name for skip in data.Crops(tmp_path, 16).report.skipped] == ["line.png"]


def test_large_arrays_are_mapped(tmp_path, monkeypatch):
    expected = data.load(album(tmp_path), 16)
    monkeypatch.setattr(cache, "MAX_RAM_BYTES", 100)
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


class Chains(data.Images):
    """100 pictures, the first 40 of which look alike."""

    def key(self, index):
        return "chain" if index < 40 else str(index)


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_of_copies_does_not_swallow_the_split(seed):
    train, held = Chains("chains", [np.zeros((100, 1, 2, 2), np.uint8)]).split(0.1, seed)
    assert len(held) == 10 and len(train) == 90
    assert min(held.indices) >= 40


def test_only_large_groups():
    class Two(data.Images):
        def key(self, index):
            return str(index < 30)

    train, held = Two("two", [np.zeros((70, 1, 2, 2), np.uint8)]).split(0.1)
    assert {len(train), len(held)} == {30, 40}


def test_what_is_said_of_held_out_pictures_is_not_read():
    said = data.Images(
        "said", [np.zeros((20, 1, 2, 2), np.uint8)], captions=[[f"word{i}", f"other{i}"] for i in range(20)]
    )
    train, held = said.split(0.2)
    assert sorted(train.texts() + held.texts()) == sorted(said.texts())
    assert set(held.texts()) == {text for i in held.indices for text in (f"word{i}", f"other{i}")}
    half = train.split(0.5)[0]
    assert half.texts() == said.texts([train.indices[i] for i in half.indices])


def test_images_without_structure_are_known_by_their_levels(tmp_path):
    """Crops of a sky have no look to compare, yet a mirror image of one must not lie on the other side of a split."""
    rng = np.random.default_rng(0)
    for i in range(12):
        sky = (200 + rng.integers(0, 3, (24, 24, 3))).astype(np.uint8)
        Image.fromarray(sky).save(tmp_path / f"{i}.png")
        Image.fromarray(sky[:, ::-1].copy()).save(tmp_path / f"{i}-mirrored.png")
    folder = data.ImageFolder(tmp_path, 16)
    for part in folder.split(0.3):
        names = {folder.names[i].replace("-mirrored", "") for i in part.indices}
        assert len(part) == 2 * len(names) > 0
