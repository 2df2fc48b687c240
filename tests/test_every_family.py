"""What holds for every family of checkpoints: equal to its own pipeline, row by row, and a Model like any other."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

from fastdiffusion.adapters.examine import difference, pipeline
from fastdiffusion.types import Cond

UNLIKE = ("a cat, on a mat that is rather long", "a dog")


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_its_pipeline(name):
    """Euler, 6 steps, two prompts of unlike length, with and without guidance: 1e-4 of the largest at most."""
    model = get(name).model
    for scale in (1.0, 4.0):
        with torch.no_grad():
            assert difference(model, scale, 6, UNLIKE, get(name).size) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_usual_levels_are_the_schedulers(name):
    """Of flows, whose pipelines have no other: with shifts by size and steps, and other spacings."""
    one = get(name)
    config, scheduler = one.model.denoise.checkpoint.scheduler, type(one.pipe.scheduler)
    if scheduler.__name__ != "FlowMatchEulerDiscreteScheduler":
        pytest.skip("its usual levels are our own choice")
    for other in ({}, {"use_karras_sigmas": True}, {"use_dynamic_shifting": True, "time_shift_type": "linear"}):
        if {"use_beta_sigmas", "use_karras_sigmas"} <= {*other, *(k for k, v in config.items() if v is True)}:
            continue
        family = type(one.model.denoise)(replace(one.model.denoise.checkpoint, scheduler={**config, **other}))
        pipe = pipeline(replace(one.model, denoise=family))
        pipe.default_sample_size = 9  # HiDream's makes its images about so large
        for steps in (2, 7):
            pipe(
                prompt="", height=64, width=96, num_inference_steps=steps, output_type="latent",
                **family.pipeline_options(1.0),
            )  # fmt: skip
            t = pipe.scheduler.sigmas.double()
            sigmas = family.schedule(steps, (64, 96))
            torch.testing.assert_close(sigmas / (1 + sigmas), t, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_no_token(name):
    """A text in two pieces is the same whether or not its pieces were encoded along with longer ones."""
    model = get(name).model
    x, sigma = torch.randn(1, *model.shape[:-2], 64 // model.factor, 64 // model.factor), torch.tensor([0.8])
    alone = twice(model.encode_prompt(["a cat"], (64, 64)))
    padded = twice(model.encode_prompt(["a cat", UNLIKE[0]], (64, 64)))[:1]
    with torch.no_grad():
        wanted, got = (model.denoise(x, sigma, cond) for cond in (alone, padded))
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_do_not_depend_on_each_other(name):
    """Levels, lengths and conditions that differ within a batch give what single evaluations give."""
    model = get(name).model
    shape = (*model.shape[:-2], *(64 // model.factor for _ in range(2)))
    x, sigma = torch.randn(4, *shape), torch.tensor([9.0, 0.7, 0.05, 1.5])
    conds = [model.encode_prompt([text], (64, 64)) for text in ("a cat", "", UNLIKE[0], "a dog")]
    conds[1] = conds[1].with_text(Cond.cat([conds[0], conds[2]]).null()[:1])  # hidden: the family's own "nothing"
    conds[3] = twice(conds[3])
    with torch.no_grad():
        together = model.denoise(x * (1 + sigma.view(-1, *[1] * (x.ndim - 1))), sigma, Cond.cat(conds))
        for i in range(4):
            alone = model.denoise(x[i : i + 1] * (1 + sigma[i]), sigma[i : i + 1], conds[i])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4 * float(alone.abs().max()), rtol=1e-5)
        nothing = model.denoise(x[1:2] * 1.7, sigma[1:2], model.null(1, (64, 64)))
        torch.testing.assert_close(together[1:2], nothing, atol=1e-4 * float(nothing.abs().max()), rtol=1e-5)
        other = model.denoise(x[1:2] * 1.7, sigma[1:2], conds[0])
        assert (other - nothing).abs().max() > 1e-4 * nothing.abs().max()


def twice(cond):
    """A text in two pieces: other rows than those of one."""
    emb = torch.cat([cond.emb, cond.emb], 1)
    return replace(cond, emb=emb, mask=None if cond.mask is None else torch.cat([cond.mask, cond.mask], 1))
