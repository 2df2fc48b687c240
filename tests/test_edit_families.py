"""The verb edit on a tiny random checkpoint of every family: what holds whatever a network has learned."""

import copy
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

from fastdiffusion import sample
from fastdiffusion.errors import InputError
from fastdiffusion.io.images import to_pil, to_tensor
from fastdiffusion.tasks.editing.edit import edit

FILMS = {"wan"}
HIDDEN = {"sana"}  # whose self-attention cannot be seen
NAMES = [name for name in FAMILIES if name not in FILMS]
SHOWN, WANTED = "A big Cat, on mats", "A big dog with a hat, on mats"


def small(name):
    """The model of a family, whose usual size is 64x64 pixels; noise levels may depend on it."""
    model = get(name).model
    family, side = copy.copy(model.denoise), 64 // model.factor
    family.__class__ = type(name, (type(family),), {"shape": (model.shape[0], side, side)})
    return replace(model, shape=family.shape, denoise=family, conditioner=family, schedule=family.schedule)


def image():
    return to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_given_image_is_edited_where_words_are(name):
    model, given, made = small(name), image(), []
    before = {part: {key: t.clone() for key, t in net.state_dict().items()} for part, net in model.modules.items()}
    mask = torch.full((1, 64, 64), -1.0)
    mask[:, :, 32:] = 1
    options = {"model": model, "source": SHOWN, "steps": 2, "seed": 1}
    for how in (
        {"method": "diffedit", "only": "dog, hat"},
        {"method": "diffedit", "only": "dog, hat"},
        {"method": "flowedit", "mask": to_pil(mask)},
    ):
        made.append(edit(given, WANTED, **how, **options))
    assert torch.equal(made[0].images, made[1].images)
    for each in made:
        assert each.images.shape == (1, 3, 64, 64) and bool(each.images.isfinite().all())
        outside = (each.mask == 0).expand(1, 3, 64, 64)
        assert torch.equal(each.images[outside], to_tensor(given)[None][outside])
    for part, net in model.modules.items():
        assert all(torch.equal(t, before[part][key]) for key, t in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_edited_path_that_changes_nothing_is_plain_sampling(name):
    """Prompts of one text, through the attention of the source: what ``sample`` draws of it, twice."""
    model = small(name)
    window = "cross=0..0.8, self=0..0" if name in HIDDEN else "cross=0..0.8, self=0..0.4"
    plain = sample(model, SHOWN, n=1, steps=2, seed=1).images
    made = edit(prompt=SHOWN, source=SHOWN, model=model, method="p2p", keep=False, steps=2, seed=1, window=window)
    most = 1e-4 * float(plain.abs().max())
    assert float((made.source - plain).abs().max()) <= most
    assert float((made.images - plain).abs().max()) <= most


@pytest.mark.parametrize("name", sorted(HIDDEN))
def test_attention_that_cannot_be_seen_is_refused_by_name(name):
    with pytest.raises(InputError, match=r"transformer_blocks\.0\.attn1.*self=0\.\.0"):
        edit(prompt=WANTED, source=SHOWN, model=small(name), method="p2p", keep=False, steps=2)
