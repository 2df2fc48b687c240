"""Checkpoints in Stable Diffusion's own format, trained by this package: they are what diffusers makes of them."""

import numpy as np
import pytest

from fastdiffusion import train
from fastdiffusion.data import Images
from fastdiffusion.errors import DataError, InputError

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

WORDS = ["red heart", "blue heart", "a red apple", "blue book on white"]


def captioned(n=8, side=64):
    g = np.random.default_rng(0)
    images = g.integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    return Images("captioned", [images], captions=[[WORDS[i % 4]] for i in range(n)])


@pytest.mark.parametrize("net", ["sd-small", "sd3-small"])
def test_a_run_makes_a_folder_and_resumes_bit_for_bit(tmp_path, cut, net):
    kept = {"steps": 2, "batch_size": 4, "device": "cpu", "verbose": False, "save_every": 0}
    whole = train(captioned(), net=net, folder=tmp_path / "whole", **kept)
    again = train(captioned(), net=net, folder=tmp_path / "whole", **kept)
    assert whole.model.id == again.model.id
    with cut(1):
        train(captioned(), net=net, folder=tmp_path / "cut", **kept)
    resumed = train(captioned(), net=net, folder=tmp_path / "cut", **kept)
    assert resumed.model.id == whole.model.id, "killed in the first stage and resumed"
    assert whole.report is not None
    with pytest.raises(InputError, match=r"^augment does nothing with --net"):
        train(captioned(), net=net, folder=tmp_path / "new", augment="mirror", **kept)
    with pytest.raises(DataError, match="--size 64"):
        train(captioned(side=32), net=net, folder=tmp_path / "new", **kept)
