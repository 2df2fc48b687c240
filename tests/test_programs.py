"""The programs that a reader would write, at most ten lines each, in Python and for the terminal.

They were written before the names were settled, and chose them. Each runs as it stands, in a folder with a few images.
"""

import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from fastdiffusion.cli import main

HERE = Path(__file__).parent / "programs"
TO_COME = {
    "morph",
    "animate",
    "checkpoint",
}  # verbs that are not there yet
PROGRAMS = sorted(HERE.glob("*.py")) + sorted(HERE.glob("*.sh"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with photographs, captions, a mask, a style and a small trained model."""
    place = tmp_path_factory.mktemp("desk")
    (place / "photos").mkdir()
    (place / "blurred").mkdir()
    for i in range(6):
        image = Image.new("RGB", (48, 48), (40 * i, 90, 200 - 30 * i))
        ImageDraw.Draw(image).rectangle((6 + i, 8, 30 + i, 36), fill=(220, 30, 30))
        image.save(place / "photos" / f"{i}.png")
        image.filter(ImageFilter.GaussianBlur(2)).save(place / "blurred" / f"{i}.png")
        (place / "photos" / f"{i}.txt").write_text(f"a red square, number {i}")
    shutil.copy(place / "photos" / "0.png", place / "photo.png")
    Image.effect_noise((64, 64), 80).convert("RGB").save(place / "style.png")
    mask = Image.new("L", (48, 48))
    ImageDraw.Draw(mask).ellipse((12, 12, 36, 36), fill=255)
    mask.save(place / "mask.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(compile((HERE / "train.py").read_text(), "train.py", "exec"), {"__name__": "train"})
    shutil.copytree(place / "runs" / "digits", place / "runs" / "digits-fit")
    return place


def marked(path: Path):
    marks = [pytest.mark.xfail(strict=True, reason=f"{path.stem} is still to come")] if path.stem in TO_COME else []
    return pytest.param(path, id=path.name, marks=marks)


@pytest.mark.parametrize("path", [marked(path) for path in PROGRAMS])
def test_it_runs(path, desk, tmp_path, monkeypatch):
    desk = shutil.copytree(desk, tmp_path / "desk")  # each program finds what the desk had, and no other's results
    monkeypatch.chdir(desk)
    before = {p: p.stat().st_mtime_ns for p in desk.rglob("*") if p.is_file()}
    if path.suffix == ".py":
        exec(compile(path.read_text(), path.name, "exec"), {"__name__": path.stem})
    else:
        for line in path.read_text().splitlines():
            name, *arguments = shlex.split(line)
            assert name == "fastdiffusion"
            assert main(arguments) == 0, line
    written = [p for p in desk.rglob("*") if p.is_file() and before.get(p) != p.stat().st_mtime_ns]
    assert all(p.stat().st_size for p in written)
    if "out/" in path.read_text() or "runs/" in path.read_text().replace('"runs/digits"', ""):
        assert written, "it says where its results go, and nothing is there"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_it_is_short(path):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
