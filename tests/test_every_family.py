"""What holds for every family of checkpoints: equal to its own pipeline, row by row, and a Model like any other."""

import re
from copy import deepcopy
from dataclasses import replace
from math import isqrt
from pathlib import Path

import pytest
import torch
from pretended_device import pretended

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get
from tiny_pipelines import FAMILIES

import fastdiffusion
from fastdiffusion import prompts
from fastdiffusion.adapters import FAMILIES as KNOWN
from fastdiffusion.adapters.examine import difference, pipeline, pipeline_class
from fastdiffusion.guidance import classifier
from fastdiffusion.guidance.attention import Controller, Replace, Reweight, Share, Store, attention_layers, control
from fastdiffusion.nets import presets
from fastdiffusion.nets.classifier import Classifier
from fastdiffusion.types import Cond

UNLIKE = ("a cat, on a mat that is rather long", "a dog")


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_its_pipeline(name):
    """Euler, 6 steps, two prompts of unlike length, with and without guidance: 1e-4 of the largest at most."""
    model = get(name).model
    for scale in (1.0, 4.0):
        with torch.no_grad():
            assert difference(model, scale, 6, UNLIKE, get(name).size) <= 1e-4


OTHERS = {"sd15", "sd2v", "zero_snr", "lcm", "sdxl", "pixart", "sana", "wan"}  # whose usual levels are our own choice


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in OTHERS])
def test_the_usual_levels_are_the_schedulers(name):
    """Of flows, whose pipelines have no other: with shifts by size and steps, and other spacings."""
    one = get(name)
    config = one.model.denoise.checkpoint.scheduler
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


# ---- attention --------------------------------------------------------------------------------------------------

HIDDEN = {"sana": "attn1"}  # linear attention, which has no probabilities


class Touch(Controller):
    """Sets the probabilities that are there anyway: the whole edited path, and no change."""

    def __call__(self, call):
        call.probabilities = call.probabilities


class Look(Controller):
    """Notes what it sees."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = {}

    def __call__(self, call):
        assert call.name not in self.calls, "each once"
        self.calls[call.name] = call


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_seen_and_changed(name):
    """A reader changes no bit, every layer is seen, no-ops through the edited path are none, an edit is one."""
    one = get(name)
    model, net = one.model, one.model.modules["net"]
    shape = (*model.shape[:-2], 64 // model.factor, 96 // model.factor)
    x, sigma = torch.randn(2, *shape), torch.tensor([3.0, 0.5])
    kind = {"kind": "cross"} if name in HIDDEN else {}
    cond, look = model.encode_prompt(["a cat", UNLIKE[0]], (64, 96)), Look(**kind)
    with torch.no_grad():
        plain = model.denoise(x, sigma, cond)
        with control(net, look):
            assert torch.equal(model.denoise(x, sigma, cond), plain)
        seen = [layer for layer in attention_layers(net) if layer.rpartition(".")[-1] != HIDDEN.get(name)]
        assert sorted(look.calls) == sorted(seen)
        same = [Replace(source=0, target=0, **kind), Replace(source=1, target=1, **kind)]
        for controller in (Touch(**kind), Reweight({0: 1.0}, **kind), *same):
            with control(net, controller):
                same = model.denoise(x, sigma, cond)
            assert (same - plain).abs().max() <= 1e-4 * plain.abs().max()
        own = [] if name in HIDDEN else [Replace(kind="self"), Share(1)]
        for controller in (Reweight({1: 5.0}, **kind), Replace(kind="cross"), *own):
            with control(net, controller):
                other = model.denoise(x, sigma, cond)
            assert other.isfinite().all() and not torch.equal(other, plain)
        assert torch.equal(model.denoise(x, sigma, cond), plain), "nothing is left behind"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pipeline_is_left_as_it_was(name):
    """Around the same networks, before and after they were used here: bit by bit."""
    model = get(name).model
    pipe = pipeline(model)

    def theirs():
        options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent", "return_dict": False}
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt=["a cat"], generator=generator, **options, **model.denoise.pipeline_options(model.scale))[0]

    before = theirs()
    with control(model.modules["net"], Replace(source=0, target=0, kind="cross"), Store(kind="cross")):
        latents(model, "a (cat:1.5) AND a dog")
    assert torch.equal(theirs(), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_where_the_text_is(name):
    """Of the keys in each layer: a token of the text is one that another text changes, in the first layer of all."""
    one = get(name)
    model, net = one.model, one.model.modules["net"]
    x, sigma = torch.randn(1, *model.shape[:-2], 64 // model.factor, 64 // model.factor), torch.tensor([1.0])
    cond = model.encode_prompt(["a cat"], (64, 64))
    emb = cond.emb.clone()
    emb[:, 2] += 1.0
    looks = Look(kind="cross"), Look(kind="cross")
    with torch.no_grad():
        for look, each in zip(looks, (cond, replace(cond, emb=emb)), strict=True):
            with control(net, look):
                model.denoise(x, sigma, each)
    layer, call = next((name, call) for name, call in looks[0].calls.items() if call.tokens is not None)
    changed = (call.key != looks[1].calls[layer].key).any(-1).any(1)[0].nonzero().flatten().tolist()
    places = range(call.key.shape[-2])[call.tokens]
    assert changed == [places[2]] or (model.denoise.refiners and changed[0] == places[0]), "refined: all of the text"
    store = Store(kind="cross", pixels=(0, 10**6)), Store(kind="self", pixels=(0, 10**6))
    with torch.no_grad(), control(net, *(store[:1] if name in HIDDEN else store)):
        model.denoise(x, sigma, cond)
    tokens, pixels = cond.emb.shape[1], (64 // model.factor) ** 2 // model.denoise.patch**2
    assert store[0].probabilities[layer].shape[1:] == (pixels, tokens) or not model.denoise.joint
    assert all(p.shape[2] == tokens for p in store[0].probabilities.values())
    assert all(p.shape[1] == p.shape[2] for p in store[1].probabilities.values())


# ---- prompts ----------------------------------------------------------------------------------------------------


LONG = "a very long text about a cat that sleeps on a mat in the sun "


def latents(model, prompt, **options):
    """The last state of a run, without the autoencoder: what the denoiser made of the prompt."""
    made = {"n": 1, "steps": 3, "size": 64, "scale": 3.0 if model.scale == 1 else None, **options}
    return fastdiffusion.sample(replace(model, autoencoder=Bare(model.autoencoder)), prompt, **made).images


class Bare:
    """An autoencoder that shows latents as they are, scaled: images are cut off at 1."""

    def __init__(self, own):
        self.factor, self.image_channels, self.latent_channels = own.factor, own.latent_channels, own.latent_channels

    def encode(self, x):
        raise NotImplementedError

    def decode(self, z):
        return (z / 1000).repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_language_of_prompts(name, monkeypatch):
    """Weight 1 is no change, everything else is one, and the tail of a long prompt counts."""
    model = get(name).model
    if model.conditioner.main.template is str:  # 512 tokens would take long
        monkeypatch.setattr(model.conditioner.main, "limit", min(model.conditioner.main.limit, 80))
    plain = latents(model, "a cat")
    assert plain.abs().max() < 1 and torch.equal(latents(model, "a cat"), plain), "the same seed gives the same bytes"
    torch.testing.assert_close(latents(model, "a (cat:1.0)"), plain, atol=1e-4 * float(plain.abs().max()), rtol=0)
    texts = ("a (cat:1.5)", "a cat AND a dog", "a [cat:dog:0.2]", "a cat BREAK a dog", "a {dog|dog}", "a (cat:0)")
    changed = {text: float((latents(model, text) - plain).abs().max()) for text in texts}
    assert min(changed.values()) > 1e-5 * float(plain.abs().max()), changed
    guided = {"guidance": "cfg scale=3"} if model.guidance == "embedded" else {}
    away = latents(model, "a cat", negative_prompt="blurry", **guided)
    assert (away - latents(model, "a cat", **guided)).abs().max() > 1e-4 * plain.abs().max()
    blue, red = (latents(model, too_long(model) + tail, scale=1.0) for tail in ("blue", "red"))
    assert not torch.equal(blue, red)
    pair = latents(model, ["a cat", LONG], n=2)
    torch.testing.assert_close(pair[:1], plain, atol=1e-4 * float(plain.abs().max()), rtol=1e-4)


def test_a_text_is_cut_by_the_encoder_that_reads_most():
    """Stable Diffusion 3 lists the tokens of CLIP and of T5; only T5's 256 decide what has room."""
    model = get("sd3").model
    conditioner, text = model.conditioner, " ".join(["cat"] * 254)
    assert len(conditioner.measure(text)) == 255 < conditioner.max_tokens
    compiled = prompts.compile(
        [text], model.encode_prompt, spans=conditioner.token_spans, limit=conditioner.max_tokens,
        measure=conditioner.measure,
    )  # fmt: skip
    torch.testing.assert_close(compiled.stages[0].conds[0].emb, model.encode_prompt([text]).emb)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_their_letters(name):
    """Rows of ``emb`` know the letters that they are of, in the raw text; templates and padding are of none."""
    model = get(name).model
    text = "A  cat, on"
    spans = model.conditioner.token_spans(text)
    assert len(spans) <= model.encode_prompt([text], (64, 64)).emb.shape[1]
    own = [(a, b) for a, b in spans if a < b]
    assert {i for a, b in own for i in range(a, b)} >= {0, *range(3, 7), 8, 9} and {a for a, _ in own} <= {*range(10)}
    assert all(b <= len(text) for _, b in own) and own[-1][1] == len(text)
    assert not any(a < b for a, b in model.conditioner.token_spans(""))
    with pytest.warns(UserWarning, match=r"Only the first \d+ of \d+ tokens"):
        model.encode_prompt([too_long(model)], (64, 64))


def too_long(model):
    return LONG * (1 + model.conditioner.max_tokens // sum(a < b for a, b in model.conditioner.measure(LONG)))


# ---- autoencoders, precision, devices ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_autoencoder_is_the_pipelines(name):
    """What the pipeline shows of its latents, and latents of images that are of the denoiser's kind."""
    one = get(name)
    model, pipe = one.model, pipeline(one.model)
    options = {"num_inference_steps": 2, "height": 64, "width": 96, "return_dict": False}
    options |= model.denoise.pipeline_options(1.0)
    shape = (*model.shape[:-2], 64 // model.factor, 96 // model.factor)
    options |= {"num_frames": 4 * shape[1] - 3} if len(shape) == 4 else {}
    pipe.default_sample_size = isqrt(shape[-2] * shape[-1])  # HiDream's changes sizes to this area
    latents, shown = (
        pipe(prompt=["a cat"], generator=torch.Generator().manual_seed(0), output_type=kind, **options)[0]
        for kind in ("latent", "pt")
    )
    with torch.no_grad():
        z = model.denoise.from_pipeline(latents, shape)
        images = model.decode(z)
        shown = shown.transpose(1, 2) if shown.ndim == 5 else shown  # frames come first there
        torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), shown, atol=1e-4, rtol=1e-4)
        code = model.encode(images)
        assert code.shape == z.shape
        same = model.autoencoder.normalize(model.autoencoder.denormalize(code))
        torch.testing.assert_close(same, code, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_kept(name):
    """A network in bfloat16 computes in it; x, sigma and the estimate are float32."""
    model = get(name).model
    checkpoint = model.denoise.checkpoint
    net = "unet" if "unet" in checkpoint.modules else "transformer"
    half = {**checkpoint.modules, net: deepcopy(checkpoint.modules[net]).to(torch.bfloat16)}
    denoise = type(model.denoise)(replace(checkpoint, modules=half))
    x = torch.randn(2, *model.shape[:-2], 64 // model.factor, 64 // model.factor)
    sigma = torch.tensor([1.0, 1 / 3])  # of a flow, 1000 t is 500 and 250, which bfloat16 has
    cond = model.encode_prompt(["a cat", "a dog"], (64, 64))
    with torch.no_grad():
        exact, rounded = model.denoise(x, sigma, cond), denoise(x, sigma, cond)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 5e-2 * exact.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_another_device(name):
    """Tensors of two devices never meet: prompts with weights, guidance, lengths that differ, attention."""
    one = get(name)
    options = {"n": 2, "steps": 2, "size": 64}
    wanted = fastdiffusion.sample(one.path, "a (cat:1.5) AND a dog", **options, device="cpu").images
    touch = Touch(kind="cross") if name in HIDDEN else Touch()
    with pretended():
        model = fastdiffusion.load(one.path, device="cuda")
        got = fastdiffusion.sample(model, "a (cat:1.5) AND a dog", **options)
        with torch.no_grad(), control(model.modules["net"], touch):
            x = torch.randn(2, *model.shape[:-2], 64 // model.factor, 64 // model.factor).to("cuda")
            conds = [model.encode_prompt(["a cat"], (64, 64)), twice(model.encode_prompt(["a dog"], (64, 64)))]
            model.denoise(x, torch.ones(2).to("cuda"), Cond.cat(conds))
            model.denoise(x, torch.ones(2).to("cuda"), Cond.cat(conds).null())
    torch.testing.assert_close(got.images, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_page_about_families(name):
    """Its rows are the families there are, with the scale and the number of tokens of each."""
    page = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "Pipeline` |" in line
    ]
    assert {row[1].strip("`") for row in rows} == {*KNOWN}
    model, kind = get(name).model, pipeline_class(get(name).model)
    kind = "LatentConsistencyModelPipeline" if name == "lcm" else kind  # which may be called either
    own = [row for row in rows if row[1] == f"`{kind}`"]
    row = own[1 if name == "schnell" else 0]
    assert float(row[2].split(",")[0].split(";")[0]) == model.scale
    assert ("embedded" in row[2]) == (model.guidance == "embedded")
    assert ("norm" in row[2]) == (model.guide(model.denoise, 2.0).factory.__name__ == "norm_rescaled")
    assert str(model.conditioner.max_tokens) in re.findall(r"\d+", row[4])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_of_latents_guides(name):
    """A random one: sigma^2 times its own gradient is what it adds."""
    model = get(name).model
    if len(model.shape) != 3:  # a film's; such a classifier would have to read several frames
        return
    spec = {**presets.PRESETS["unet-tiny"], "in_channels": model.shape[0]}
    torch.manual_seed(0)
    net = Classifier({key: value for key, value in spec.items() if key != "name"}, 3)
    torch.nn.init.normal_(net.head.out.weight)
    x, sigma = torch.randn(1, *model.shape), torch.full((1,), 0.9)
    with torch.no_grad():
        cond = model.encode_prompt(["a cat"], get(name).size)
        plain = model.denoise(x, sigma, cond)
        guided = classifier(model.denoise, net, 2.0, label=1)(x, sigma, cond)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.log_prob(leaf, sigma, Cond(label=torch.tensor([1]))).sum(), leaf)
    torch.testing.assert_close(guided - plain, 2 * 0.81 * slope, rtol=1e-3, atol=1e-5)
