"""Explanations on every family of checkpoints: right shape, finite, repeatable, and the model as it was."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

from fastdiffusion import sample
from fastdiffusion.adapters.copies import copied
from fastdiffusion.prompts.terms import terms
from fastdiffusion.tasks import word_masks
from fastdiffusion.tasks.attribution import integrated
from fastdiffusion.tasks.attribution.explain import explain
from fastdiffusion.tasks.generation.options import SampleOptions
from fastdiffusion.tasks.generation.plan import plan

PROMPT = "A big Cat, on mats"
WORDS = ["A", "big", "Cat", "on", "mats"]
FILMS = {"wan"}
LAYERS = (torch.nn.Linear, torch.nn.Conv2d)
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


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FILMS])
def test_one_row_at_a_time_computes_blocks_again(name):
    """The gradient is the same, blocks whose network allows it run once more, and the network is as it was."""
    model = get(name).model
    nets = [model.modules[part] for part in ("net", "autoencoder")]
    able = [net for net in nets if net._supports_gradient_checkpointing]
    blocks = {block for net in able for block in (*integrated._blocks(net), *integrated._inner(net))}
    runs = []
    inside = {layer for block in blocks for layer in block.modules() if isinstance(layer, LAYERS)}
    hooks = [layer.register_forward_pre_hook(lambda *_: runs.append(1)) for layer in inside]

    def gradient(by_block):
        run = integrated.Run(plan(model, SampleOptions(prompt="a big cat", n=1, steps=2, size=64)), 0)
        run.by_block = by_block
        runs.clear()
        by_step, _, _, values = run.gradients([0.5], lambda images: images.flatten(1).sum(1))
        return by_step[0]["emb"], values, len(runs)

    try:
        (slow, low, few), (fast, high, many) = gradient(False), gradient(True)
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(fast, slow, atol=1e-4 * float(slow.abs().max()), rtol=0)
    assert low == pytest.approx(high, rel=1e-4)
    assert many > few
    assert not any("forward" in vars(block) for block in blocks)
    copied(model, {}, {})  # no module keeps a tensor of the pass, which cannot be copied
