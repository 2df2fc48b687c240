"""Files that version 0.1 wrote, one of every kind: they load for ever, and compute the numbers that they computed then.

tests/golden/0.1/expected.json has those numbers, written by 0.1 itself.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiffusion import models
from fastdiffusion.data.dataset import Images
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.io.images import read_image, read_recipe, to_tensor
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.tasks import variations
from fastdiffusion.tasks.autoencoding import token_prior
from fastdiffusion.tasks.classification import train as classification
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.tasks.generation.recipe import reproduce
from fastdiffusion.tasks.restoration import cold_diffusion
from fastdiffusion.tasks.stylization import network
from fastdiffusion.tasks.text_image import clip, prior
from fastdiffusion.tasks.translation import paired
from fastdiffusion.training.learner import Learner
from fastdiffusion.training.options import TrainingOptions
from fastdiffusion.training.task import Part, Task
from fastdiffusion.training.trainer import train
from fastdiffusion.types import Cond

GOLDEN = Path(__file__).parent / "golden" / "0.1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
S = torch.tensor([0.5, 2.0])


def file(name):
    return GOLDEN / f"{name}.safetensors"


def ramp(*shape):
    return torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


def autoencoder():
    made = models.load_autoencoder(file("codec"))
    return made.decode(made.encode(ramp(1, 3, 8, 8)))


def text():
    model = models.load(file("text"))
    cond = model.encode_prompt(["red square", "rotes quadrat"])
    return model.decode(model.denoise(ramp(2, 2, 4, 4), S, cond))


def restorer():
    model = models.load(file("restorer"))
    return model.denoise(ramp(2, 3, 8, 8), S, Cond(image=ramp(2, 3, 8, 8).flip(3)))


def dual_encoder():
    made = clip.load(file("clip"))
    return torch.cat([made.encode_image(ramp(1, 3, 8, 8)), made.encode_text(["red square"])])


def tokens():
    return token_prior.load(file("codes")).decode(torch.arange(16).reshape(1, 4, 4) % 8)


def judge():
    made = evaluator.load(file("judge"))
    return torch.cat([made.encode_image(ramp(1, 3, 64, 64)), made.encode_text(["red square"])])


def translator():
    return paired.load(file("translation")).denoiser(ramp(2, 1, 8, 8), S, Cond(image=ramp(2, 1, 8, 8).flip(3)))


KINDS = {
    "codec": autoencoder,
    "text": text,
    "restorer": restorer,
    "classifier": lambda: classification.load(file("classifier"))(ramp(2, 1, 8, 8), S),
    "clip": dual_encoder,
    "memory": lambda: variations.load(file("memory")).vectors,
    "prior": lambda: prior.load(file("prior"))(ramp(2, 8), S, Cond(pooled=ramp(2, 8).flip(1))),
    "codes": tokens,
    "codes sample": lambda: token_prior.sample_tokens(token_prior.load(file("codes")), n=1, steps=2, seed=0).images,
    "style": lambda: network.load(file("style"))(ramp(1, 3, 8, 8), 0.5),
    "translation": translator,
    "cycle": lambda: torch.cat([p.flatten()[:8] for p in paired.load(file("cycle")).parameters()]),
    "cold": lambda: cold_diffusion.load(file("cold"))(ramp(2, 1, 8, 8), torch.tensor([0.2, 0.8])),
    "judge": judge,
}


def some(value):
    """What expected.json keeps of a tensor."""
    return value.detach().flatten()[:: max(value.numel() // 6, 1)][:6].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_loads_and_computes_the_same(kind):
    with torch.no_grad():
        # index vectors are stored in half precision
        assert some(KINDS[kind]()) == pytest.approx(EXPECTED[kind], abs=1e-3 if kind == "memory" else 2e-5)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_no_loader_takes_a_file_of_another_kind(path):
    loaders = {
        "codec": models.load_autoencoder, "classifier": classification.load, "clip": clip.load,
        "memory": variations.load, "prior": prior.load, "codes": token_prior.load, "style": network.load,
        "translation": paired.load, "cold": cold_diffusion.load, "judge": evaluator.load, "text": models.load,
    }  # fmt: skip
    own = {"restorer": {"text"}, "cycle": {"translation"}, "text": {"text", "codec"}}.get(path.stem, {path.stem})
    for kind, load in loaders.items():
        if kind not in own:
            with pytest.raises(CheckpointError):
                load(path)


def test_models_are_the_same_by_their_id_and_notes():
    words, restores = models.load(file("text")), models.load(file("restorer"))
    assert (words.id, restores.id) == (EXPECTED["text id"], EXPECTED["restorer id"])
    assert words.scale == 2.5 and words.info["name"] == "text" and words.table(3).name == "heun"
    assert restores.corruption == "blur 0.5..3" and models.native_denoiser(restores).cond_channels == 3
    for prompt, unknown in (("red square", []), ("rotes Quadrat", []), ("green", ["green"])):
        assert words.conditioner.unknown_words(prompt) == unknown


def test_a_model_is_written_back_as_it_was(tmp_path):
    models.save(models.load(file("text")), tmp_path / "m.safetensors", torch.int8)
    old, new = (models.spec(models.load(path)) for path in (file("text"), tmp_path / "m.safetensors"))
    assert old == new and old["info"]["scale"] == 2.5


@pytest.mark.parametrize(("name", "model"), [("picture", GOLDEN.parent / "model-v1.safetensors"), ("text", None)])
def test_images_are_made_again_from_their_recipes(name, model):
    path = GOLDEN / f"{name}.png"
    made = reproduce(path, model)
    assert read_recipe(path)["verb"] == "sample"
    assert float((made.images[0].detach() - to_tensor(read_image(path))).abs().max()) <= 1.01 * 2 / 255


# ---- runs that were cut -----------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "work")
    return tmp_path / "work"


def learner(folder, **changes):
    g = np.random.default_rng(0)
    arrays, labels = [g.integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)], g.integers(0, 2, 24).tolist()
    options = {
        "net": {"name": "unet", "width": 4, "multiples": [1], "blocks": [1], "attention": [], "head": 4},
        "batch_size": 4, "cond_dropout": 0.2, "ema": (0.1,), "holdout": 0.25, "verbose": False, "precision": "float32",
        "optimizer": "adamw", "device": "cpu",
    }  # fmt: skip
    return Learner(Images("golden", arrays, labels, classes=("a", "b")), folder=folder, **options | changes)


def test_a_run_of_the_learner_is_continued(work):
    learn = learner(work / "run")
    learn.resume()
    assert learn.state.step == 2
    parameters = models.native_denoiser(learn.fit(steps=4).model).parameters()
    assert some(torch.cat([p.flatten()[:8] for p in parameters])) == pytest.approx(EXPECTED["run"], abs=1e-4)
    with pytest.raises((InputError, CheckpointError), match="holds a run with"):
        learner(work / "run", cond_dropout=0.1).fit(steps=5)


def test_a_run_of_the_loop_for_other_nets_is_refused_with_advice(work):
    net = torch.nn.Linear(4, 2)
    task = Task({"autoencoder": Part(net, lambda x: net(x).square().mean())}, lambda step: torch.ones(8, 4), {})
    options = TrainingOptions(steps=6, folder=work / "loop", device="cpu", verbose=False)
    with pytest.raises(CheckpointError, match=r"run of version 0.1.*another folder.*--fresh"):
        train(task, options)
    assert Folder(work / "loop").latest()[0] == 3, "nothing of it is lost"
    train(task, replace(options, fresh=True))
    assert Folder(work / "loop").latest()[0] == 6
