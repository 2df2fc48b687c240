"""What holds for every family of checkpoints: equal to its own pipeline, row by row, and a Model like any other."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

from fastdiffusion.adapters.examine import difference

UNLIKE = ("a cat, on a mat that is rather long", "a dog")


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_its_pipeline(name):
    """Euler, 6 steps, two prompts of unlike length, with and without guidance: 1e-4 of the largest at most."""
    model = get(name).model
    for scale in (1.0, 4.0):
        with torch.no_grad():
            assert difference(model, scale, 6, UNLIKE, get(name).size) <= 1e-4
