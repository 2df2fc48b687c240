"""The page of an explanation, its script run by node: hover, steps, and a box that is drawn where it is said to be."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_explain import PROMPT, QUICK, model  # noqa: F401 (the fixture)

from fastdiffusion.tasks.attribution.explain import explain

ZOOM = 384 // 24


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script: apt-get install nodejs")
def test_the_page_does_what_it_says(model, tmp_path):  # noqa: F811
    made = explain(PROMPT, model, size="24x16", box="3,5,20,9", seed=1, **QUICK)
    page = made.save(tmp_path)[0]
    run = subprocess.run(
        ["node", str(Path(__file__).with_name("page.js")), str(page), str(ZOOM)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    done = json.loads(run.stdout)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    assert done["loads"] == 1 + 3 + 5 * 4  # the image, its steps, and each word's maps at them and over all
    left, top, right, bottom = made.box
    assert done["first"]["box"] == [left, top, right, bottom] and done["first"]["shown"] == data["image"]
    x, y, wide, high = (v / ZOOM for v in done["first"]["stroke"])  # a line of two pixels inside of the box
    assert [round(x), round(y), round(x + wide), round(y + high)] == [left, top, right, bottom]
    words = [row for row in made.terms if row.kind == "word"]
    shown = [f"{'+' if row.share > 0 else '−'}{abs(100 * row.share):.1f} %" for row in words]
    assert [row[:2] for row in done["first"]["cells"][:5]] == [[r.text, s] for r, s in zip(words, shown, strict=True)]
    assert done["hover"] == {"says": f"red: {shown[1]}", "aria": "The image, with the places of “red”"}
    assert done["left"] == ""
    assert done["step"]["level"].startswith("1 of 3, noise 10.0") and done["step"]["shown"] == data["steps"][0]
    first = words[0].by_step[0]
    assert done["step"]["cells"][0][2] == f"{'+' if first > 0 else '−'}{abs(100 * first):.1f} %"
    assert done["dragged"]["box"] == [2, 4, 12, 10]  # from the lower left to the upper right
    assert done["refused"] == [2, 4, 12, 10] and done["clipped"] == [2, 4, 24, 10] and done["whole"] == [0, 0, 24, 16]
    assert done["pinned"] == [True, False, False, False, False][: len(done["pinned"])] + [False] * (
        len(done["pinned"]) - 5
    )
