"""Editing: words aligned, noise that makes exactly the given data, flows whose difference is 0 where prompts agree."""

import pytest
import torch

import fastdiffusion
from fastdiffusion import samplers, schedules
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import cfg, prompt_to_prompt
from fastdiffusion.io.images import read_image, to_pil, to_tensor
from fastdiffusion.samplers import editing
from fastdiffusion.tasks.editing.edit import edit


@pytest.fixture(scope="module")
def model():
    return fastdiffusion.load("emoji", device="cpu")


def gaussian(mean: float, std: float = 1.0):
    """The exact denoiser of a normal distribution."""

    def denoise(x, sigma, cond=None):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return (std**2 * x + s * mean) / (std**2 + s)

    return denoise


@pytest.mark.parametrize(
    ("source", "target", "columns"),
    [
        ("a red heart", "a blue heart", [0, 1, 2]),
        ("a smiling face", "a smiling face with sunglasses", [0, 1, 2, -1, -1]),
        ("a Cat", "a cat", [0, 1]),
        ("a p iz za on red", "a h amb ur ger on red", [0, 1, 1, 2, 3, 4, 5]),  # one word of three tokens, one of four
        ("a very red heart", "a heart", [0, 3]),
        ("猫 が 座る", "犬 が 座る", [0, 1, 2]),
    ],
)
def test_tokens_are_aligned(source, target, columns):
    assert prompt_to_prompt.align(source.split(), target.split()) == columns


def test_edit_friendly_noise_makes_exactly_the_data():
    g = torch.Generator().manual_seed(0)
    x0, table = torch.randn(3, 2, 4, 4, generator=g), samplers.table("euler_ancestral", schedules.karras(12))
    denoise = gaussian(0.5)
    found = editing.edit_friendly(denoise, x0, table, None, [1, 2, 3])
    made = samplers.final(samplers.run(denoise, found.x, table, paths=found.paths())) + found.rest
    assert torch.allclose(made, x0, atol=1e-4)
    assert float(found.rest.abs().max()) < 0.02  # all but the last step's noise, of sigma .002, is in the run
    alone = editing.edit_friendly(denoise, x0[1:2], table, None, [2])
    assert torch.allclose(alone.x[0], found.x[1])  # an image's noise is its own
    # the same noise under another distribution: its data, shifted by the distance of the means
    moved = samplers.final(samplers.run(gaussian(2.5), found.x, table, paths=found.paths())) + found.rest
    assert torch.allclose((moved - x0).mean(), torch.tensor(2.0), atol=0.1)


def test_a_sampler_without_noise_in_each_step_is_refused():
    with pytest.raises(InputError, match="euler_ancestral"):
        editing.edit_friendly(gaussian(0), torch.zeros(1, 2), samplers.table("euler", schedules.karras(4)), None, [0])


def test_flow_edit_moves_one_distribution_onto_the_other():
    g = torch.Generator().manual_seed(0)
    x0, sigmas = torch.randn(4, 2, 4, 4, generator=g), schedules.karras(40, 0.002, 1e3)
    same = editing.flow_edit(gaussian(1), gaussian(1), x0, sigmas, range(4))
    assert torch.equal(same, x0)  # where source and target agree, nothing changes, whatever the noise
    moved = editing.flow_edit(gaussian(0), gaussian(3), x0, sigmas, range(4))
    assert torch.allclose(moved, x0 + 3, atol=0.1)  # of normal distributions alike, the map is the shift


def test_difference_map_shows_where_conditions_disagree():
    def half(x, sigma, cond=None):
        out = x.clone()
        out[..., 4:] += 0 if cond is None else cond.pooled.reshape(-1, 1, 1, 1)
        return out

    cond = fastdiffusion.types.Cond(pooled=torch.ones(1, 1))
    places = editing.difference_map(half, torch.zeros(1, 3, 8, 8), [0.5, 1.0], None, cond, [0, 1])
    assert float(places[:, 5:].min()) > 0.999
    assert float(places[:, :3].max()) == 0


def test_source_is_what_sample_draws_and_words_that_stay_change_nothing(model):
    result = edit(prompt="a red heart", source="a red heart", model=model, seed=3, steps=4, method="p2p", keep=False)
    drawn = fastdiffusion.sample(model, "a red heart", n=1, seed=3, steps=4).images
    assert torch.allclose(result.source, drawn, atol=1e-3)
    assert torch.allclose(result.images, result.source, atol=1e-3)


@pytest.mark.parametrize("method", ["p2p", "flowedit"])
def test_a_given_image_under_its_own_words_stays(model, method, tmp_path):
    given = to_pil(fastdiffusion.sample(model, "a red heart", n=1, steps=4).images[0])
    whole = {"scale": 1.0} if method == "p2p" else {}
    result = edit(given, "a red heart", model=model, source="a red heart", method=method, steps=6, keep=False, **whole)
    through = model.decode(model.encode(to_tensor(given)[None])).clamp(-1, 1)
    limit = 0.02 if method == "p2p" else 0.2  # FlowEdit is guided otherwise towards the target than from the source
    assert float((result.images - through).abs().mean()) < limit
    assert torch.equal(edit(given, "a dog", model=model, strength=0, source="a cat").images, to_tensor(given)[None])


def test_pixels_outside_of_the_mask_are_kept(model, tmp_path):
    given = to_pil(fastdiffusion.sample(model, "a red heart", n=1, steps=4).images[0])
    mask = torch.full((1, 64, 64), -1.0)
    mask[:, :, 40:] = 1
    result = edit(given, "a blue heart", model=model, source="a red heart", mask=to_pil(mask), steps=4)
    (path,) = result.save(tmp_path / "edited.png")
    before, after = to_tensor(given), to_tensor(read_image(path))
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not torch.equal(before[:, :, 40:], after[:, :, 40:])
    assert result.save(tmp_path / "edited.png") == [path]  # the same is not written twice
    other = edit(given, "a green heart", model=model, source="a red heart", steps=4)
    assert other.save(tmp_path / "edited.png") == [tmp_path / "edited-2.png"]


def test_recolouring_is_seen(model):
    result = edit(prompt="a blue heart", source="a red heart", model=model, seed=3, steps=8)
    red, _, blue = result.images[0, :, 24:40, 24:40].mean((1, 2))
    assert blue > red + 0.5
    assert result.source[0, 0, 24:40, 24:40].mean() > result.source[0, 2, 24:40, 24:40].mean() + 0.5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": " "}, "what the result shows"),
        ({"prompt": "a dog"}, "what is drawn first"),
        ({"prompt": "a dog", "source": "a cat", "only": "hat"}, "No word of the prompts named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "reweight": "hat:2"}, "No word of the new prompt named 'hat'"),
        ({"prompt": "a dog", "source": "a cat", "reweight": "dog"}, "WORD:FACTOR"),
        ({"prompt": "a dog", "source": "a cat", "method": "p3p"}, "Did you mean 'p2p'"),
        ({"prompt": "a dog", "source": "a cat", "strength": 2}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_said(model, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        edit(model=model, steps=2, **arguments)


def test_guidance_of_a_pair(model):
    cond, x = model.encode_prompt(["a red heart", "a dog"]), torch.randn(2, *model.shape)
    both = prompt_to_prompt.pair(model.denoise, cfg(model.denoise, 3.0))(x, torch.ones(2), cond)
    assert torch.allclose(both[:1], model.denoise(x[:1], torch.ones(1), cond[:1]), atol=1e-5)
    assert torch.allclose(both[1:], cfg(model.denoise, 3.0)(x, torch.ones(2), cond)[1:], atol=1e-5)


def test_a_mask_is_scaled_together_with_its_image(model):
    given = to_pil(fastdiffusion.sample(model, "a red heart", n=1, steps=4).images[0]).resize((128, 128))
    mask = torch.full((1, 128, 128), -1.0)
    mask[:, :, 80:] = 1
    result = edit(given, "a blue heart", model=model, source="a red heart", mask=to_pil(mask), steps=2)
    assert torch.equal(result.images[..., :38], result.source[..., :38])
    assert "scaled from 128x128 to 64x64" in " ".join(result.notes)
