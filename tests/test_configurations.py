"""A net's configuration, as files hold it: the keywords of its constructor, under the names that they always had."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from fastdiffusion import nets
from fastdiffusion.nets.adversarial import PatchDiscriminator
from fastdiffusion.nets.classifier import Classifier, NoiseLevel
from fastdiffusion.nets.clip import Clip, ImageEncoder, Prior
from fastdiffusion.nets.evaluator import Evaluator
from fastdiffusion.nets.mlp import PointNet
from fastdiffusion.nets.perceptual import Features
from fastdiffusion.nets.translators import Cycle, Translator
from fastdiffusion.tasks.stylization.network import Stylizer

OTHERS = (
    Classifier, Clip, Cycle, Evaluator, Features, ImageEncoder, NoiseLevel, PatchDiscriminator, PointNet, Prior,
    Stylizer, Translator,
)  # fmt: skip
CONFIGURED = {**nets.NETS, **{kind.__name__: kind for kind in OTHERS}}
CONFIGS = json.loads((Path(__file__).parent / "golden" / "configs.json").read_text())


def build(name):
    with torch.device("meta"):
        return CONFIGURED[name.split(",")[0]](**CONFIGS[name]["keywords"])


def test_every_kind_of_net_has_a_golden_configuration():
    assert {name.split(",")[0] for name in CONFIGS} == set(CONFIGURED)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_those_of_the_files_that_there_are(name):
    """Key by key and in order; a copy and a net that was pickled keep theirs."""
    made, wanted = build(name), json.dumps(CONFIGS[name]["config"])
    assert json.dumps(made.config) == wanted
    assert json.dumps(copy.deepcopy(made).config) == json.dumps(pickle.loads(pickle.dumps(made)).config) == wanted


@pytest.mark.parametrize("name", ["unet", "kl"])
def test_a_constructor_refuses_what_it_does_not_know(name):
    with pytest.raises(TypeError, match="nonsense"):
        CONFIGURED[name](nonsense=1)
