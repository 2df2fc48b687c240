"""Explanations on every family of checkpoints: right shape, finite, repeatable, and the model as it was."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

from fastdiffusion import sample
from fastdiffusion.prompts.terms import terms
from fastdiffusion.tasks import word_masks
from fastdiffusion.tasks.attribution.explain import explain

PROMPT = "A big Cat, on mats"
WORDS = ["A", "big", "Cat", "on", "mats"]
FILMS = {"wan"}
HIDDEN = {"sana"}  # whose self-attention cannot be seen; its attention to the text can


@pytest.mark.parametrize("name", FAMILIES)
def test_words_and_their_rows(name):
    conditioner = get(name).model.conditioner
    read = terms(PROMPT, conditioner)
    assert [term.text for term in read.content] == WORDS
    rows = sorted(row for term in read.all for row in term.rows)
    assert rows == list(range(conditioner.encode([PROMPT]).emb.shape[1]))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FILMS])
def test_maps_of_a_given_image(name):
    model = get(name).model
    before = {part: sum(float(p.double().sum()) for p in net.parameters()) for part, net in model.modules.items()}
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for method in ("attention", "occlusion"):
        found, again = (word_masks.word_map(model, image, PROMPT, "the big cat", method).map for _ in range(2))
        assert found.shape == (1, 64, 64) and bool(found.isfinite().all())
        deaf = method == "occlusion" and name in ("flux2", "klein")  # random nets, whose estimates no word changes
        assert float(found.max()) > 0 or deaf
        assert torch.equal(found, again)
    assert before == {part: sum(float(p.double().sum()) for p in n.parameters()) for part, n in model.modules.items()}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FILMS])
def test_shares_and_maps_of_a_run(name):
    model = get(name).model
    made = explain(PROMPT, model, size=64, steps=2, points=8, batch_size=4, maps="attention")
    assert made.maps.shape == (len(made.sigmas), len(WORDS), 64, 64) and bool(made.maps.isfinite().all())
    assert [row.text for row in made.terms if row.kind == "word"] == WORDS
    assert made.attribution is not None and bool(made.attribution.rows.isfinite().all())
    assert float(made.attribution.rows.abs().sum()) > 0
    plain = sample(model, PROMPT, n=1, steps=2, size=64).images
    assert torch.allclose(made.images[:1], plain, atol=1e-4 * float(plain.abs().max()))
