"""Tiny checkpoints as folders and as models, each made once for all tests of a process."""

import tempfile
from functools import cache
from pathlib import Path

from tiny_pipelines import build

import fastdiffusion


class Loaded:
    """A pipeline, its folder, and the model that was loaded from it."""

    def __init__(self, name):
        self.folder = tempfile.TemporaryDirectory(prefix="families-")  # gone when the process ends
        self.pipe, self.path = build(name), Path(self.folder.name) / name
        self.pipe.save_pretrained(self.path)
        self.model = fastdiffusion.load(self.path, device="cpu")
        self.size = (64, 64)


@cache
def get(name):
    return Loaded(name)
