"""Labels in scripts that Pillow's own font lacks: in a font of the system, or a number and what to install."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont

from fastdiffusion.io import fonts
from fastdiffusion.io.images import lettering, to_pil
from fastdiffusion.tasks.evaluation.study import Study
from fastdiffusion.tasks.generation import samples

CARRIED = ImageFont.load_default(16).font_bytes


def font_with(letters: str) -> bytes:
    """Pillow's font, its first letters moved to these places."""
    count = struct.unpack(">H", CARRIED[4:6])[0]
    entries = [struct.unpack(">4s3I", CARRIED[12 + 16 * i : 28 + 16 * i]) for i in range(count)]
    tables = {tag: CARRIED[start : start + length] for tag, _, start, length in entries}
    groups = b"".join(struct.pack(">3I", ord(a), ord(a), 5 + i) for i, a in enumerate(sorted(letters)))
    tables[b"cmap"] = (
        struct.pack(">HHHHI", 0, 1, 3, 10, 12)
        + struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(letters))
        + groups
    )
    head, body = CARRIED[:12], b""
    for tag, content in sorted(tables.items()):
        head += struct.pack(">4s3I", tag, 0, 12 + 16 * count + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    return head + body


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The only place of fonts."""
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    fonts._fullest.cache_clear()
    yield tmp_path
    fonts._fullest.cache_clear()


def test_a_label_is_drawn_in_a_font_that_has_its_letters(folder):
    (folder / "Some-Regular.ttf").write_bytes(font_with("犬小"))
    (folder / "All-Regular.ttf").write_bytes(font_with("犬小赤い abc"))
    (folder / "LastResort.ttf").write_bytes(font_with("犬小赤い abc"))
    (folder / "broken.ttf").write_bytes(b"no font")
    assert Path(fonts.font_for("小犬", 20).path).name in ("Some-Regular.ttf", "All-Regular.ttf")
    assert Path(fonts.font_for("小犬 abc", 20).path).name == "All-Regular.ttf"
    assert fonts.font_for("a dog", 20).getname() == ImageFont.load_default(20).getname()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fonts.drawable(["小犬", "a dog", "", "赤い猫"]) == ["小犬", "a dog", "", "赤い"]


def test_without_such_a_font_labels_are_numbers_and_a_warning_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(fonts.sys, "platform", "linux")
    with pytest.warns(UserWarning, match="1 is '犬', 3 is 'собака'.*apt-get install fonts-noto-cjk fonts-noto-core$"):
        assert fonts.drawable(["犬", "köpek", "собака", "a\ndog"]) == ["1", "kopek", "3", "a\ndog"]
    with pytest.warns(UserWarning, match=r"1 is '🍕'\.$"):
        assert fonts.drawable(["🍕", "🍕 pizza"]) == ["1", " pizza"]


def test_sheets_show_letters_of_other_scripts(folder):
    """What stands on a sheet is not blank, and differs from another text's: no boxes."""
    (folder / "Some-Regular.ttf").write_bytes(font_with("犬猫=_abcdefghijklmnopqrstuvwxyz"))

    def sheets(text: str) -> list[np.ndarray]:
        made = samples.Samples(torch.ones(1, 1, 8, 8), (0,), (text,), (0,), {})
        study = Study({"prompt": [text], "negative_prompt": [text]}, (made,))
        drawn = made.grid(labels=True), study.to_image(), to_pil(1 - 2 * lettering(text, 40)[None])
        return [np.asarray(sheet.convert("L")) for sheet in drawn]

    for of_dog, of_cat, blank in zip(sheets("犬"), sheets("猫"), sheets(" "), strict=True):
        assert of_dog.shape != of_cat.shape or (of_dog != of_cat).any()
        ink = [int((255 - sheet.astype(int)).sum()) for sheet in (of_dog, of_cat, blank)]
        assert min(ink[:2]) > ink[2]


def test_chinese_and_japanese_labels_are_broken_anywhere(folder):
    (folder / "Some-Regular.ttf").write_bytes(font_with("白い猫が青帽子をかぶってる"))
    rows, _ = samples._rows_of_text("白い猫が青い帽子を", 30)
    assert len(rows) == 2 and "".join(rows) == "白い猫が青い帽子を"
    rows, _ = samples._rows_of_text("白い猫が青い帽子をかぶっている" * 3, 40)
    assert len(rows) == 2 and rows[1].endswith("…") and len(rows[0]) > 1
