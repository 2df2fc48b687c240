"""What is special in PixArt-Sigma, SANA, Lumina 2, HiDream and Wan; what all families share is in test_every_family."""

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get

import fastdiffusion
from fastdiffusion import prompts, samplers
from fastdiffusion.adapters.examine import examine, pipeline
from fastdiffusion.errors import InputError
from fastdiffusion.guidance.attention import Controller, Store, attention_layers, control

NAMES = ("pixart", "sana", "lumina2", "hidream", "wan")
TEXTS = ["a cat, on a mat that is rather long", "A Dog"]


def latents(model):
    return (*model.shape[:-2], *(64 // model.factor for _ in range(2)))


def settings(model):
    """How diffusers' pipeline is called for two small samples from the same noise."""
    noise = torch.randn(2, *latents(model), generator=torch.Generator().manual_seed(0))
    return noise, {
        "prompt": TEXTS, "latents": noise.clone(), "num_inference_steps": 4, "output_type": "latent",
        "height": 64, "width": 64, "return_dict": False, **model.denoise.pipeline_options(3.0),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sana", "lumina2", "pixart"])
def test_negative_prompts_are_the_pipelines(name):
    """Without the instruction that SANA and Lumina 2 put before a prompt: the final latents are equal."""
    model = get(name).model
    pipe, (noise, call) = pipeline(model), settings(model)
    with torch.no_grad():
        wanted, without = (
            pipe(**call, negative_prompt=text if name == "pixart" else [text] * 2)[0] for text in ("blurry fog", "")
        )
        sigmas = pipe.scheduler.sigmas.double()
        start = noise * float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
        if name != "pixart":
            sigmas = (sigmas / (1 - sigmas)).clamp(max=1e7)
            start = noise * (1 + float(sigmas[0]))
        table, other = samplers.table("euler", sigmas), model.conditioner.negative
        readers = [(partial(c.encode, size=(64, 64)), c.token_spans, c.max_tokens) for c in (model.conditioner, other)]
        encode, spans, limit = readers[0]
        compiled = prompts.compile(
            TEXTS,
            encode,
            4,
            "blurry fog",
            spans,
            limit,
            model.null(2),
            reader=None if other is model.conditioner else readers[1],
        )
        got = samplers.final(samplers.run(compiled.guide(model.denoise, 3.0, model.guide), start, table))
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (without - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("name", ["sana", "lumina2"])
def test_sample_reads_negative_prompts_so(name, monkeypatch):
    model, read = get(name).model, []
    encode = type(model.denoise).encode
    monkeypatch.setattr(
        type(model.denoise),
        "encode",
        lambda self, texts, size=None: read.append((self, texts)) or encode(self, texts, size),
    )
    fastdiffusion.sample(model, "a cat", negative_prompt="fog", n=1, steps=2, size="64x64")
    assert [(conditioner is model.denoise.negative, texts) for conditioner, texts in read if "fog" in texts] == [
        (True, ["fog"])
    ]


@pytest.mark.parametrize("name", ["sana", "lumina2", "pixart", "hidream"])
def test_spans_skip_what_is_put_before_a_prompt(name):
    family, text = get(name).model.denoise, "a Cat, on"
    spans = family.token_spans(text)
    assert {i for a, b in spans for i in range(a, b)} >= {i for i, letter in enumerate(text) if letter != " "}
    assert next((a, b) for a, b in spans if a < b) == (0, 1)
    if name != "hidream":  # which pads to 128
        assert len(spans) == family.encode([text]).emb.shape[1]


def test_a_long_prompt_of_lumina():
    """Its network has places for so many tokens only: the rest is reported."""
    model = get("lumina2").model
    most = model.denoise.net.config.axes_lens[0] - 1
    cond = model.encode_prompt(["a cat"])
    long = replace(cond, emb=cond.emb.repeat(1, most // cond.emb.shape[1] + 1, 1))
    x, sigma = torch.randn(1, *latents(model)), torch.ones(1)
    with torch.no_grad():
        with pytest.warns(UserWarning, match=f"Only the first {most} of"):
            got = model.denoise(x, sigma, long)
        torch.testing.assert_close(got, model.denoise(x, sigma, replace(long, emb=long.emb[:, :most])))


# ---- attention --------------------------------------------------------------------------------------------------


class Rebuild(Controller):
    """Every probability as it is, by way of the edited path."""

    def __call__(self, call):
        call.probabilities = call.probabilities


class Quench(Controller):
    def __call__(self, call):
        call.probabilities = 0 * call.probabilities


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_changed_and_left_as_it_was(name):
    """A no-op edit changes 1e-4 at most, another one more, and afterwards every bit of the network is as it was."""
    model = get(name).model
    net, x, sigma = model.modules["net"], torch.randn(2, *latents(model)), torch.tensor([2.0, 0.5])
    cond, kind = model.encode_prompt(TEXTS, (64, 64)), {"kind": "cross"} if name == "sana" else {}
    before = {key: t.clone() for key, t in net.state_dict().items()}
    with torch.no_grad():
        plain = model.denoise(x, sigma, cond)
        with control(net, Rebuild(**kind)):
            same = model.denoise(x, sigma, cond)
        with control(net, Quench(**kind)):
            other = model.denoise(x, sigma, cond)
        assert (same - plain).abs().max() <= 1e-4 * plain.abs().max()
        assert (other - plain).abs().max() > 1e-3 * plain.abs().max()
        assert torch.equal(model.denoise(x, sigma, cond), plain)
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_texts_of_unlike_length_side_by_side():
    """Lumina 2 puts each image right behind its text: controllers see both where they are in every row."""
    model = get("lumina2").model
    net, x, sigma = model.modules["net"], torch.randn(1, *latents(model)), torch.ones(1)
    alone, both = (Store(kind="cross", pixels=(0, 10**6)) for _ in range(2))
    with torch.no_grad():
        short = model.encode_prompt(["a"])
        with control(net, alone):
            model.denoise(x, sigma, short)
        with control(net, both):
            model.denoise(x[[0, 0]], sigma[[0, 0]], model.encode_prompt(["a", TEXTS[0]]))
    n = short.emb.shape[1]
    for layer, probabilities in alone.probabilities.items():
        torch.testing.assert_close(both.probabilities[layer][:1, :, :n], probabilities, atol=1e-5, rtol=1e-4)
        assert both.probabilities[layer][0, :, n:].abs().max() < 1e-6 < both.probabilities[layer][1, :, n:].max()
    assert alone.probabilities.keys() == {"layers.0.attn", "layers.1.attn"}


def test_linear_attention_is_refused_by_name():
    """Only where it is wanted: SANA's cross-attention can be read and changed."""
    model = get("sana").model
    net, x, sigma, cond = (
        model.modules["net"],
        torch.randn(1, *latents(model)),
        torch.ones(1),
        model.encode_prompt(["a"]),
    )
    store = Store(kind="cross")
    with torch.no_grad():
        with control(net, store):
            model.denoise(x, sigma, cond)
        for asked in ({"kind": "self"}, {}, {"layers": "*attn1"}):
            with (
                pytest.raises(InputError, match=r"layer transformer_blocks.0.attn1 does not use"),
                control(net, Store(**asked)),
            ):
                model.denoise(x, sigma, cond)
    assert sorted(store.probabilities) == [name for name in sorted(attention_layers(net)) if name.endswith("attn2")]
    findings = dict(examine(model))
    assert findings["attention"] == "2 of 4 layers can be seen and changed"


# ---- films and autoencoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sana", "wan"])
def test_the_autoencoder_is_the_pipelines(name):
    model = get(name).model
    pipe, (_, call) = pipeline(model), settings(model)
    z = torch.randn(1, *latents(model))
    z = z[:, :, :2] if name == "wan" else z
    more = {"num_frames": 5} if name == "wan" else {}
    with torch.no_grad():
        wanted = pipe(**call | {"prompt": "a", "latents": None, "output_type": "pt", "generator": seeded(), **more})[0]
        code = pipe(**call | {"prompt": "a", "latents": None, "generator": seeded(), **more})[0]
        got = model.decode(code) / 2 + 0.5
        got = got.transpose(1, 2) if name == "wan" else got
        torch.testing.assert_close(got.clamp(0, 1), wanted, atol=1e-5, rtol=1e-5)
        decoded = model.decode(z)
        assert decoded.shape == ((1, 3, 5, 64, 64) if name == "wan" else (1, 3, 64, 64))
        encoded = model.encode(decoded.clamp(-1, 1))
    assert encoded.shape == z.shape


def seeded():
    return torch.Generator().manual_seed(0)


def test_films_are_sampled(monkeypatch):
    """Five dimensions all the way, and each film from its own seed."""
    model = get("wan").model
    assert model.shape == (16, 21, 60, 104) and model.image_shape == (3, 81, 480, 832)
    small = replace(model, shape=(16, 2, 8, 8))
    made = fastdiffusion.sample(small, ["a cat", "a dog"], n=2, steps=2, seed=3, size="64x64")
    assert made.images.shape == (2, 3, 5, 64, 64) and made.images.isfinite().all()
    alone = fastdiffusion.sample(small, ["a dog"], n=1, steps=2, seed=4, size="64x64").images
    torch.testing.assert_close(made.images[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"boundary_ratio": 0.875}, {"expand_timesteps": True}])
def test_wan_2_2_is_refused(settings):
    """One of its two networks alone, at all noise levels, draws noise."""
    family = get("wan").model.denoise
    with pytest.raises(InputError, match="whose two networks, or smaller latents, are not"):
        type(family)(replace(family.checkpoint, settings={**family.checkpoint.settings, **settings}))


def test_a_flow_is_not_taken_for_betas():
    family = get("sd3").model.denoise
    scheduler = {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012}
    with pytest.raises(InputError, match="EulerDiscreteScheduler, with betas, and this family is a rectified flow"):
        type(family)(replace(family.checkpoint, scheduler=scheduler))


def test_what_a_flow_predicts_is_not_asked():
    """SANA's scheduler has betas too, which it does not use."""
    with pytest.raises(InputError, match="predicts the velocity of a flow, always"):
        fastdiffusion.load(get("sana").path, device="cpu", prediction="v")


def test_pixart_alpha_is_refused():
    family = get("pixart").model.denoise
    family.net.use_additional_conditions = True
    try:
        with pytest.raises(InputError, match="is a PixArt-alpha, which is not supported"):
            type(family)(family.checkpoint)
    finally:
        family.net.use_additional_conditions = False


@pytest.mark.parametrize("name", NAMES[:4])
def test_the_same_seed_gives_the_same_bytes(name):
    """And two at once are two single ones."""
    model = get(name).model
    one = fastdiffusion.sample(model, "a (cat:1.3) BREAK a dog", n=2, steps=2, size="64x64", seed=5).images
    assert torch.equal(
        fastdiffusion.sample(model, "a (cat:1.3) BREAK a dog", n=2, steps=2, size="64x64", seed=5).images, one
    )
    second = fastdiffusion.sample(model, "a (cat:1.3) BREAK a dog", n=1, steps=2, size="64x64", seed=6).images
    torch.testing.assert_close(one[1:], second, atol=1e-4, rtol=1e-4)
    plain = fastdiffusion.sample(model, "a cat BREAK a dog", n=2, steps=2, size="64x64", seed=5).images
    assert (plain - one).abs().max() > 1e-5
