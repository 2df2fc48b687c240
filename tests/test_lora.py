"""LoRA files of every kind: what peft and diffusers make of them, merged into a new model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretended_device import pretended
from safetensors.torch import save_file

import fastdiffusion
from fastdiffusion.adapters.lora import split_scale, with_loras
from fastdiffusion.cli import main
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.guidance.attention import Store, attention_layers, control
from fastdiffusion.io.images import read_recipe
from fastdiffusion.models import Model

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
from tiny_pipelines import FAMILIES, build

RANK = 2


def net_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def part_of(pipe):
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def layers(module, *pieces):
    """The layers with a matrix or kernel whose names have one of these pieces; those in groups have no LoRA in peft."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    return {
        name: layer for name, layer in module.named_modules()
        if isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1 and any(piece in name for piece in pieces)
    }  # fmt: skip


def drawn(module, *pieces, seed=0):
    """Random matrices for layers of a module: {name: (down, up)}."""
    g = torch.Generator().manual_seed(seed)
    return {name: pair_for(layer.weight, g) for name, layer in layers(module, *pieces).items()}


def pair_for(weight, g):
    down = 0.3 * torch.randn(RANK, *weight.shape[1:], generator=g)
    return down, 0.3 * torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=g)


def written(path, pairs, form="{}.lora_{}.weight", letters="AB", alpha=None, **metadata):
    """A file of pairs: keys by a form of the layer's name and "A" or "B"."""
    tensors = {
        form.format(name, letter): t for name, pair in pairs.items() for letter, t in zip(letters, pair, strict=True)
    }
    if alpha is not None:
        tensors |= {form.split(".lora")[0].format(name) + ".alpha": torch.tensor(float(alpha)) for name in pairs}
    save_file({key: t.clone() for key, t in tensors.items()}, path, metadata or None)
    return str(path)


class Identity:
    """A denoiser that has no part in these tests."""

    def __call__(self, x, sigma, cond=None):
        return x


def model_of(**modules):
    """A model of these networks."""
    return Model(Identity(), (4, 8, 8), modules=modules, info={"family": "stable-diffusion"})


def bits(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def assert_same(module, wanted, tolerance=0.0):
    for name, t in module.state_dict().items():
        assert (t - wanted[name]).abs().max() <= tolerance * wanted[name].abs().max(), name


@pytest.fixture(scope="module")
def pipe():
    """A pipeline whose weights nobody changes."""
    return build("sd15")


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "sd15"
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sd(folder):
    return fastdiffusion.load(folder, device="cpu")


# ---- peft says the same -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_peft(name, tmp_path):
    """Attention, feed-forward layers and convolutions of every family, at a scale; the given model keeps its bits."""
    pipe = build(name)
    net, part = net_of(pipe), part_of(pipe)
    pairs = drawn(net, "to_", "ff", "feed_forward", "conv", "add_")
    file = written(tmp_path / "a.safetensors", {f"{part}.{key}": pair for key, pair in pairs.items()})
    before, model = bits(net), model_of(net=net)
    merged = with_loras(model, [f"{file}:0.7"]).modules["net"]
    assert_same(net, before)
    config = peft.LoraConfig(r=RANK, lora_alpha=0.7 * RANK, target_modules=[*pairs])
    peft.inject_adapter_in_model(config, net, "one")
    theirs = {f"{key}.lora_{letter}.weight": t for key, p in pairs.items() for letter, t in zip("AB", p, strict=True)}
    peft.set_peft_model_state_dict(net, theirs, "one")
    for key in pairs:
        net.get_submodule(key).merge()
        wanted = net.get_submodule(key).get_base_layer().weight
        assert (merged.get_submodule(key).weight - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    touched = {f"{key}.weight" for key in pairs}
    for key, t in merged.state_dict().items():
        assert torch.equal(t, before[key]) == (key not in touched), key


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_equals_diffusers(name, tmp_path):
    """The whole pipeline with kohya's keys, text encoders too, as ``load_lora_weights`` attaches them: its latents."""
    pipe = build(name)
    pipe.save_pretrained(tmp_path / "folder")
    model = fastdiffusion.load(tmp_path / "folder", device="cpu")
    parts = {"lora_unet": drawn(pipe.unet, "attn", "ff", "conv1", "proj_in", "downsamplers")}
    texts = {"lora_te": pipe.text_encoder} if name == "sd15" else {
        "lora_te1": pipe.text_encoder, "lora_te2": pipe.text_encoder_2
    }  # fmt: skip
    for prefix, encoder in texts.items():
        pairs = drawn(encoder, "self_attn", "mlp")
        parts[prefix] = {f"text_model.{key.removeprefix('text_model.')}": pair for key, pair in pairs.items()}
    flat = {f"{prefix}_{key.replace('.', '_')}": pair for prefix, pairs in parts.items() for key, pair in pairs.items()}
    file = written(tmp_path / "k.safetensors", flat, "{}.lora_{}.weight", ("down", "up"), alpha=1)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)

    def theirs():
        return pipe(
            prompt=["a cat", "a dog, on a mat"], latents=noise.clone(), num_inference_steps=3, guidance_scale=4.0,
            height=64, width=64, output_type="latent", return_dict=False,
        )[0]  # fmt: skip

    plain = theirs()
    pipe.load_lora_weights(file, adapter_name="one")
    pipe.set_adapters(["one"], [0.5])
    wanted = theirs()
    new = with_loras(model, [f"{file}:0.5"])
    denoise = fastdiffusion.guidance.cfg(new.denoise, 4.0, new.null(1, (64, 64)))
    table = fastdiffusion.samplers.table("euler", pipe.scheduler.sigmas.double())
    start = noise * float(pipe.scheduler.init_noise_sigma)
    with torch.no_grad():
        cond = new.encode_prompt(["a cat", "a dog, on a mat"], (64, 64))
        got = fastdiffusion.samplers.final(fastdiffusion.samplers.run(denoise, start, table, cond))
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (wanted - plain).abs().max() > 1e-2 * wanted.abs().max()


def test_settings_of_peft(pipe, tmp_path):
    """alpha of the header, for all layers and for one, and its root ("rslora"), as diffusers reads its own files."""
    pairs, one = drawn(pipe.unet, "to_q", "to_v"), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for more in ({"alpha_pattern": {one: 1.0}}, {"use_rslora": True}):
        config = {"r": RANK, "lora_alpha": 8, "target_modules": ["to_q", "to_v"], **more}
        config = peft.LoraConfig(**config).to_dict()
        config = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
        header = json.dumps({f"unet.{key}": value for key, value in config.items()})
        named = {f"unet.{key}": pair for key, pair in pairs.items()}
        file = written(tmp_path / "a.safetensors", named, lora_adapter_metadata=header, format="pt")
        other = build("sd15")
        other.load_lora_weights(file, adapter_name="one")
        other.fuse_lora()
        other.unload_lora_weights()
        assert_same(with_loras(model_of(net=pipe.unet), [file]).modules["net"], bits(other.unet), 1e-6)
        peft_file = written(
            tmp_path / "adapter_model.safetensors", {f"base_model.model.{k}": v for k, v in pairs.items()}
        )
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert_same(with_loras(model_of(net=pipe.unet), [peft_file]).modules["net"], bits(other.unet), 1e-6)


# ---- the names of trainers --------------------------------------------------------------------------------------


DIALECTS = {
    "diffusers": ("unet.{}.lora_{}.weight", "AB", "text_encoder.{}.lora_{}.weight"),
    "an adapter's name": ("unet.{}.lora_{}.default_0.weight", "AB", "text_encoder.{}.lora_{}.default.weight"),
    "older diffusers": ("unet.{}.lora.{}.weight", ("down", "up"), "text_encoder.{}.lora_linear_layer.{}.weight"),
    "peft": ("base_model.model.unet.{}.lora_{}.weight", "AB", "base_model.model.text_encoder.{}.lora_{}.weight"),
    "ComfyUI": (
        "diffusion_model.{}.lora_{}.weight", ("down", "up"), "text_encoders.clip_l.transformer.{}.lora_{}.weight"
    ),
}  # fmt: skip


def test_dialects(sd, tmp_path):
    """However they are spelled, the same matrices make the same weights, to the bit."""
    net, encoder = sd.modules["net"], sd.modules["text_encoder"]
    pairs, texts = drawn(net, "to_", "conv"), drawn(encoder, "q_proj", "fc1", seed=1)
    results = {}
    for name, (form, letters, text_form) in DIALECTS.items():
        one = written(tmp_path / "net.safetensors", pairs, form, letters)
        two = written(tmp_path / "text.safetensors", texts, text_form, letters)
        results[name] = with_loras(sd, [f"{one}:0.5", two])
    flat = {key.replace(".", "_"): pair for key, pair in pairs.items()}
    one = written(tmp_path / "net.safetensors", flat, "lora_unet_{}.lora_{}.weight", ("down", "up"), alpha=RANK / 2)
    flat = {f"text_model_{key.replace('.', '_')}": pair for key, pair in texts.items()}
    two = written(tmp_path / "text.safetensors", flat, "lora_te_{}.lora_{}.weight", ("down", "up"))
    results["kohya"] = with_loras(sd, [one, two])
    first, *others = results.values()
    for part in ("net", "text_encoder"):
        for other in others:
            assert_same(other.modules[part], bits(first.modules[part]))
    assert not torch.equal(first.encode_prompt(["a cat"]).emb, sd.encode_prompt(["a cat"]).emb)


def test_attention_processors_of_old(sd, tmp_path):
    pairs = drawn(sd.modules["net"], "to_q", "to_out")
    old = {key.replace(".to_", ".processor.to_").removesuffix(".0"): pair for key, pair in pairs.items()}
    file = written(tmp_path / "a.safetensors", old, "unet.{}_lora.{}.weight", ("down", "up"))
    new = written(tmp_path / "b.safetensors", pairs, "unet.{}.lora_{}.weight")
    assert_same(with_loras(sd, [file]).modules["net"], bits(with_loras(sd, [new]).modules["net"]))


def test_text_encoders_of_old(sd, tmp_path):
    """As diffusers called their layers before 0.18."""
    pairs = drawn(sd.modules["text_encoder"], "q_proj", "out_proj")
    old = {re.sub(r"(\w+)_proj$", r"to_\1", key): pair for key, pair in pairs.items()}
    file = written(tmp_path / "a.safetensors", old, "text_encoder.text_model.{}_lora.{}.weight", ("down", "up"))
    new = written(tmp_path / "b.safetensors", pairs, "text_encoder.{}.lora_{}.weight")
    assert_same(with_loras(sd, [file]).modules["text_encoder"], bits(with_loras(sd, [new]).modules["text_encoder"]))


@pytest.mark.parametrize("form", ["lora_te3_{}.lora_{}.weight", "text_encoders.t5xxl.transformer.{}.lora_{}.weight"])
def test_t5_is_the_third_text_encoder_of_files(tmp_path, form):
    """For trainers and ComfyUI, also where a family has two."""
    build("flux").save_pretrained(tmp_path / "flux")
    model = fastdiffusion.load(tmp_path / "flux", device="cpu")
    pairs = drawn(model.modules["text_encoder_2"], "SelfAttention.q")
    named = {key.replace(".", "_") if "te3" in form else key: pair for key, pair in pairs.items()}
    file = written(tmp_path / "a.safetensors", named, form, ("down", "up") if "te3" in form else "AB")
    new = written(tmp_path / "b.safetensors", pairs, "text_encoder_2.{}.lora_{}.weight")
    made, wanted = (with_loras(model, [one]).modules["text_encoder_2"] for one in (file, new))
    assert_same(made, bits(wanted))
    assert not torch.equal(next(made.parameters()), torch.zeros(()))


def test_flux_in_the_names_of_xlabs(tmp_path):
    """As diffusers converts them: one file's queries, keys and values share a matrix."""
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers as convert

    net, g = build("flux").transformer, torch.Generator().manual_seed(0)
    rows = {"double_blocks.0.processor.qkv_lora1": 96, "double_blocks.1.processor.qkv_lora2": 96,
            "double_blocks.1.processor.proj_lora1": 32, "double_blocks.0.processor.proj_lora2": 32,
            "single_blocks.1.processor.qkv_lora": 96}  # fmt: skip
    pairs = {key: (torch.randn(RANK, 32, generator=g), torch.randn(n, RANK, generator=g)) for key, n in rows.items()}
    file = written(tmp_path / "a.safetensors", pairs, "{}.{}.weight", ("down", "up"))
    theirs = convert(
        {f"{key}.{end}.weight": t for key, pair in pairs.items() for end, t in zip(("down", "up"), pair, strict=True)}
    )
    save_file({key: t.clone() for key, t in theirs.items()}, tmp_path / "b.safetensors")
    model = Model(Identity(), (4, 8, 8), modules={"net": net}, info={"family": "flux"})
    made, wanted = (with_loras(model, [one]).modules["net"] for one in (file, tmp_path / "b.safetensors"))
    assert_same(made, bits(wanted), 1e-6)
    assert not torch.equal(made.transformer_blocks[0].attn.to_v.weight, net.transformer_blocks[0].attn.to_v.weight)


KINDS = {
    "LoHa": (peft.LoHaConfig, {}),
    "LoHa, Tucker": (peft.LoHaConfig, {"use_effective_conv2d": True}),
    "LoKr": (peft.LoKrConfig, {"decompose_factor": 2}),
    "LoKr, Tucker": (peft.LoKrConfig, {"use_effective_conv2d": True, "decompose_both": True}),
    "LoKr, whole": (peft.LoKrConfig, {"decompose_factor": 2, "r": 64}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_lycoris_equal_peft(sd, tmp_path, kind):
    """Products number by number and Kronecker's, of layers and convolutions, in the keys of kohya's trainers."""
    make, options = KINDS[kind]
    net = build("sd15").unet
    targets = [*layers(net, "to_q", "conv1", "ff", "proj_in")]
    config = make(**{"r": RANK, "alpha": 3, "target_modules": targets} | options)
    torch.manual_seed(0)
    adapted = peft.inject_adapter_in_model(config, net, "one")
    tensors, deltas = {}, {}
    for name in targets:
        layer = adapted.get_submodule(name)
        for key, parameter in layer.named_parameters():
            if match := re.fullmatch(r"((?:hada|lokr)_\w+)\.one", key):
                parameter.data.normal_(std=0.3)
                tensors[f"lora_unet_{name.replace('.', '_')}.{match[1]}"] = parameter.detach().clone()
        tensors[f"lora_unet_{name.replace('.', '_')}.alpha"] = torch.tensor(float(config.alpha))
        deltas[name] = layer.get_delta_weight("one").detach()
        if "LoKr" in kind and "one" in layer.lokr_w1 and "one" in layer.lokr_w2:
            deltas[name] /= config.alpha / config.r  # of whole matrices alpha counts in peft alone
    save_file(tensors, tmp_path / "a.safetensors")
    made = with_loras(sd, [f"{tmp_path / 'a.safetensors'}:0.5"]).modules["net"]
    for name, delta in deltas.items():
        before, after = (m.get_submodule(name).weight for m in (sd.modules["net"], made))
        torch.testing.assert_close(after - before, 0.5 * delta, atol=1e-6, rtol=1e-5)
        assert delta.abs().max() > 1e-3


@pytest.mark.parametrize("spoil", ["lokr_w2", "hada_w2_b"])
def test_products_that_are_incomplete(sd, tmp_path, spoil):
    key = "lora_unet_conv_in"
    names = ("lokr_w1", "lokr_w2") if "lokr" in spoil else ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    save_file({f"{key}.{name}": torch.ones(2, 2) for name in names if name != spoil}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"matrices of conv_in in a\.safetensors do not fit"):
        with_loras(sd, [tmp_path / "a.safetensors"])
    empty = {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(4, 0), "lokr_w2_b": torch.ones(0, 18)}
    empty["alpha"] = torch.tensor(1.0)
    save_file({f"{key}.{name}": t for name, t in empty.items()}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"matrices of conv_in in a\.safetensors do not fit"):
        with_loras(sd, [tmp_path / "a.safetensors"])
    save_file({f"{key}.lokr_w1": torch.ones(50, 9), f"{key}.lokr_w2": torch.ones(50, 9)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="changes 2500 x 81 numbers, and this model has 8 x 36"):
        with_loras(sd, [tmp_path / "b.safetensors"])


def test_norms_and_names_of_lycoris(sd, tmp_path):
    """Whole differences of a norm, and LyCORIS' own prefix."""
    norm = sd.modules["net"].down_blocks[0].attentions[0].transformer_blocks[0].norm1
    key, g = "down_blocks_0_attentions_0_transformer_blocks_0", torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, 8, generator=g)
    save_file({f"lycoris_{key}_norm1.w_norm": weight, f"lycoris_{key}_norm1.b_norm": bias}, tmp_path / "a.safetensors")
    made = with_loras(sd, [f"{tmp_path / 'a.safetensors'}:0.5"]).modules["net"]
    other = made.down_blocks[0].attentions[0].transformer_blocks[0].norm1
    torch.testing.assert_close(other.weight, norm.weight + 0.5 * weight)
    torch.testing.assert_close(other.bias, norm.bias + 0.5 * bias)


XL = {  # how SDXL's original code counts the blocks of the tiny one, whose every level has one block
    "input_blocks.0.0": "conv_in", "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.3.1.proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks.3.1.transformer_blocks.1.attn2.to_k": "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    "middle_block.0.emb_layers.1": "mid_block.resnets.0.time_emb_proj",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
    "output_blocks.0.0.in_layers.2": "up_blocks.0.resnets.0.conv1",
    "output_blocks.1.1.transformer_blocks.1.attn1.to_q": "up_blocks.0.attentions.1.transformer_blocks.1.attn1.to_q",
    "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.3.0.out_layers.3": "up_blocks.1.resnets.1.conv2",
    "time_embed.0": "time_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2", "out.2": "conv_out",
}  # fmt: skip

ORIGINALS = {
    "sdxl": XL,
    "flux": {
        "double_blocks.1.img_attn.qkv": [f"transformer_blocks.1.attn.to_{x}" for x in "qkv"],
        "double_blocks.1.txt_attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "double_blocks.1.img_attn.proj": "transformer_blocks.1.attn.to_out.0",
        "double_blocks.0.txt_attn.proj": "transformer_blocks.0.attn.to_add_out",
        "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.net.0.proj",
        "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.net.2",
        "double_blocks.0.img_mod.lin": "transformer_blocks.0.norm1.linear",
        "single_blocks.1.linear1": [
            *(f"single_transformer_blocks.1.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.1.proj_mlp",
        ],
        "single_blocks.1.linear2": "single_transformer_blocks.1.proj_out",
        "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
        "img_in": "x_embedder", "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2", "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    "flux2": {
        "double_blocks.1.img_attn.qkv": [f"transformer_blocks.1.attn.to_{x}" for x in "qkv"],
        "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.linear_in",
        "double_blocks.0.txt_attn.proj": "transformer_blocks.0.attn.to_add_out",
        "single_blocks.1.linear1": "single_transformer_blocks.1.attn.to_qkv_mlp_proj",
        "single_blocks.1.linear2": "single_transformer_blocks.1.attn.to_out",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "joint_blocks.0.x_block.attn2.qkv": [f"transformer_blocks.0.attn2.to_{x}" for x in "qkv"],
        "joint_blocks.1.context_block.attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "joint_blocks.0.context_block.attn.proj": "transformer_blocks.0.attn.to_add_out",
        "joint_blocks.1.x_block.mlp.fc1": "transformer_blocks.1.ff.net.0.proj",
        "joint_blocks.0.context_block.mlp.fc2": "transformer_blocks.0.ff_context.net.2",
        "joint_blocks.0.context_block.adaLN_modulation.1": "transformer_blocks.0.norm1_context.linear",
        "joint_blocks.1.context_block.adaLN_modulation.1": ("transformer_blocks.1.norm1_context.linear",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    "lumina2": {
        "layers.1.attention.qkv": [f"layers.1.attn.to_{x}" for x in "qkv"],  # of different heights: grouped queries
        "context_refiner.0.attention.out": "context_refiner.0.attn.to_out.0",
        "noise_refiner.0.feed_forward.w3": "noise_refiner.0.feed_forward.linear_3",
        "layers.0.adaLN_modulation.1": "layers.0.norm1.linear",
    },
    "z_image": {
        "layers.1.attention.qkv": [f"layers.1.attention.to_{x}" for x in "qkv"],
        "noise_refiner.0.attention.out": "noise_refiner.0.attention.to_out.0",
        "layers.0.feed_forward.w2": "layers.0.feed_forward.w2",
        "layers.0.adaLN_modulation.0": "layers.0.adaLN_modulation.0",
    },
    "wan": {
        "blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
        "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj", "blocks.0.ffn.2": "blocks.0.ffn.net.2",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "time_projection.1": "condition_embedder.time_proj", "head.head": "proj_out",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("form", ["diffusion_model.{}.lora_{}.weight", "lora_unet_{}.lora_{}.weight"])
def test_original_names(name, form, tmp_path):
    """What a family's original code calls its layers, which diffusers renamed, split, or turned around in halves."""
    net = net_of(build(name))
    g, pairs, wanted, weights = torch.Generator().manual_seed(0), {}, bits(net), dict(net.named_parameters())
    for original, own in ORIGINALS[name].items():
        names = [f"{one}.weight" for one in ([own] if isinstance(own, str) else own)]
        whole = torch.cat([weights[key] for key in names])
        down, up = pair_for(whole, g)
        pairs[original if "model." in form else original.replace(".", "_")] = down, up
        added = (up.flatten(1) @ down.flatten(1)).reshape(whole.shape)
        added = added.roll(len(added) // 2, 0) if isinstance(own, tuple) else added
        for key, part in zip(names, added.split([len(weights[key]) for key in names]), strict=True):
            wanted[key] = wanted[key] + part
    file = written(tmp_path / "a.safetensors", pairs, form, ("down", "up") if "unet" in form else "AB")
    new = with_loras(model_of(net=net), [file]).modules["net"]
    assert_same(new, wanted, 1e-6)


def test_convolutions_in_tucker_form(sd, tmp_path):
    """LoCon's three kernels, one after the other, are the one that is merged; whole updates and biases are added."""
    net = sd.modules["net"]
    name, layer = "mid_block.resnets.0.conv1", net.mid_block.resnets[0].conv1
    g = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*s, generator=g) for s in ((3, 16, 1, 1), (2, 3, 3, 3), (16, 2, 1, 1)))
    flat = f"lora_unet_{name.replace('.', '_')}"
    linear = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    more = {
        f"diffusion_model.{linear}.diff": torch.randn(16, 16, generator=g),
        f"diffusion_model.{linear}.diff_b": torch.randn(16, generator=g),
        "unet.conv_in.lora_A.weight": torch.randn(2, 4, 3, 3, generator=g),
        "unet.conv_in.lora_B.weight": torch.randn(8, 2, 1, 1, generator=g),
        "unet.conv_in.lora_B.bias": torch.randn(8, generator=g),
    }  # fmt: skip
    kernels = {f"{flat}.lora_{k}.weight": t for k, t in {"down": down, "mid": mid, "up": up}.items()}
    save_file({**kernels, f"{flat}.alpha": torch.tensor(6.0), **more}, tmp_path / "a.safetensors")
    new = with_loras(sd, [f"{tmp_path / 'a.safetensors'}:0.5"]).modules["net"]
    x = torch.randn(2, 16, 8, 8, generator=g)
    conv = torch.nn.functional.conv2d
    with torch.no_grad():
        wanted = layer(x) + 0.5 * (6 / 3) * conv(conv(conv(x, down), mid, padding=1), up)
        torch.testing.assert_close(new.mid_block.resnets[0].conv1(x), wanted, atol=1e-4, rtol=1e-5)
        old, tuned = net.get_submodule(linear), new.get_submodule(linear)
        torch.testing.assert_close(tuned.weight, old.weight + 0.5 * more[f"diffusion_model.{linear}.diff"])
        torch.testing.assert_close(tuned.bias, old.bias + 0.5 * more[f"diffusion_model.{linear}.diff_b"])
        torch.testing.assert_close(new.conv_in.bias, net.conv_in.bias + 0.5 * more["unet.conv_in.lora_B.bias"])


# ---- a new model ------------------------------------------------------------------------------------------------


@pytest.fixture
def style(sd, tmp_path):
    """A file that changes all attention of the net."""
    pairs = {f"unet.{key}": pair for key, pair in drawn(sd.modules["net"], "to_").items()}
    return written(tmp_path / "style.safetensors", pairs)


def test_only_touched_weights_are_copied(sd, style):
    """The rest lies in the same memory, in parameters of their own; attention control knows the new net."""
    new = with_loras(sd, [style])
    for part, module in sd.modules.items():
        for (name, old), (_, other) in zip(
            module.named_parameters(), new.modules[part].named_parameters(), strict=True
        ):
            assert other is not old and other.requires_grad == old.requires_grad
            assert (other.data_ptr() == old.data_ptr()) == (part != "net" or ".to_" not in name or "bias" in name)
    family = new.denoise
    assert new.conditioner is family and family.net is new.modules["net"] and new.tables == {}
    assert family.texts[0].encoder is new.modules["text_encoder"] and new.schedule.__self__ is family
    assert family.texts[0].tokenizer is sd.denoise.texts[0].tokenizer
    x, sigma, cond, store = torch.randn(1, *sd.shape), torch.ones(1), sd.encode_prompt(["a cat"]), Store()
    with torch.no_grad(), control(new.modules["net"], store):
        changed = new.denoise(x, sigma, cond)
        assert not torch.equal(changed, sd.denoise(x, sigma, cond))
    assert store.probabilities.keys() == attention_layers(new.modules["net"]).keys()


def test_several_and_their_scales(sd, style, tmp_path):
    other = written(
        tmp_path / "b.safetensors", drawn(sd.modules["net"], "to_q", "conv", seed=1), "unet.{}.lora_{}.weight"
    )
    net = bits(sd.modules["net"])
    one, two = (bits(with_loras(sd, [f]).modules["net"]) for f in (style, other))
    both = with_loras(sd, [f"{style}:0.5", f"{other}:-2"])
    wanted = {key: t + 0.5 * (one[key] - t) - 2 * (two[key] - t) for key, t in net.items()}
    assert_same(both.modules["net"], wanted, 1e-5)
    assert_same(with_loras(with_loras(sd, [f"{style}:0.5"]), [f"{other}:-2"]).modules["net"], wanted, 1e-5)
    nothing = with_loras(sd, [f"{style}:0", f"{other}:0.0"])
    assert_same(nothing.modules["net"], net)
    assert nothing.id == sd.id
    assert split_scale("C:\\a.safetensors") == split_scale("C:\\a.safetensors:1")
    assert split_scale("a:b.safetensors:-.5")[1] == -0.5


def test_the_id_covers_files_and_scales(sd, style, tmp_path):
    ids = [with_loras(sd, [style]).id, with_loras(sd, [f"{style}:0.5"]).id, sd.id]
    changed = written(tmp_path / "c.safetensors", drawn(sd.modules["net"], "to_", seed=1), "unet.{}.lora_{}.weight")
    ids.append(with_loras(sd, [changed]).id)
    ids.append(with_loras(with_loras(sd, [style]), [changed]).id)
    assert len(set(ids)) == len(ids)
    assert ids[0] == with_loras(sd, [f"{style}:1.0"]).id and ids[-1] == with_loras(sd, [style, changed]).id


def test_half_precision_is_rounded_once(tmp_path):
    net = build("sd15").unet.half()
    pairs = {f"unet.{key}": pair for key, pair in drawn(net, "to_q").items()}
    files = [written(tmp_path / f"{i}.safetensors", pairs) for i in range(2)]
    new = with_loras(model_of(net=net), [f"{files[0]}:0.3", f"{files[1]}:0.4"]).modules["net"]
    for key, (down, up) in pairs.items():
        name = key.removeprefix("unet.") + ".weight"
        exact = net.state_dict()[name].float() + 0.3 * (up @ down) + 0.4 * (up @ down)
        assert new.state_dict()[name].dtype == torch.float16
        assert (new.state_dict()[name] - exact).abs().max() <= 2**-11 * exact.abs().max()


def test_on_another_device(folder, style):
    wanted = bits(with_loras(fastdiffusion.load(folder, device="cpu"), [style]).modules["net"])
    with pretended():
        model = with_loras(fastdiffusion.load(folder, device="cuda"), [style])
        assert {p.device.type for module in model.modules.values() for p in module.parameters()} == {"cuda"}
        made = fastdiffusion.sample(model, "a cat", n=1, steps=2).images
    assert made.isfinite().all()
    assert_same(with_loras(fastdiffusion.load(folder, device="cpu"), [style]).modules["net"], wanted)


def test_from_the_command_line(folder, sd, tmp_path, monkeypatch, capsys):
    """``--lora FILE:scale`` changes the image; ``reproduce`` finds the file by its hash, and fails without it."""
    monkeypatch.chdir(tmp_path)
    pairs = {f"unet.{key}": pair for key, pair in drawn(sd.modules["net"], "to_", seed=7).items()}  # of this test alone
    style = written(tmp_path / "style.safetensors", pairs)
    run = ["sample", str(folder), "a cat", "-n", "1", "--steps", "2", "--device", "cpu"]
    assert main([*run, "--out", "plain"]) == 0
    assert main([*run, "--lora", f"{style}:0.3", "--lora", f"{style}:0.5", "--out", "out"]) == 0
    plain, styled = (read_recipe(tmp_path / f / "0000-a-cat.png") for f in ("plain", "out"))
    assert [lora["scale"] for lora in styled["model"]["loras"]] == [0.3, 0.5]
    assert styled["model"]["sha256"] != plain["model"]["sha256"] == styled["model"]["file"]
    far = tmp_path / "far" / "away" / "from" / "it"
    far.mkdir(parents=True)
    Path("out/0000-a-cat.png").rename(far / "a.png")
    assert main(["reproduce", str(far / "a.png"), "--device", "cpu"]) == 0
    assert "the same bytes" in capsys.readouterr().out
    Path(style).unlink()
    assert main(["reproduce", str(far / "a.png"), "--device", "cpu"]) == 2
    assert "'style.safetensors'" in capsys.readouterr().err


# ---- files that are none ----------------------------------------------------------------------------------------


def test_keys_without_a_place_are_reported(sd, tmp_path):
    pairs = drawn(sd.modules["net"], "to_q")
    down, up = next(iter(pairs.values()))
    others = {"unet.no.such.layer": (down, up), "text_encoder_2.encoder.fc": (down, up)}
    file = written(tmp_path / "a.safetensors", {f"unet.{k}": p for k, p in pairs.items()} | others)
    with pytest.warns(UserWarning, match=r"no place for 2 keys of a.safetensors, .*: encoder.fc, no.such.layer\."):
        new = with_loras(sd, [file])
    clean = written(tmp_path / "b.safetensors", {f"unet.{k}": p for k, p in pairs.items()})
    assert_same(new.modules["net"], bits(with_loras(sd, [clean]).modules["net"]))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_a.dora_scale", "DoRA"), ("unet.a.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_a.oft_blocks", "OFT"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(sd, tmp_path, key, kind):
    save_file({key: torch.ones(2, 2), "unet.conv_in.lora_A.weight": torch.ones(2, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"a.safetensors is a {kind}, which is not supported"):
        with_loras(sd, [tmp_path / "a.safetensors"])


FOREIGN = {
    "transformer.single_transformer_blocks.0.attn.to_q": "a LoRA for FLUX. Take",
    "lora_unet_double_blocks_0_img_attn_qkv": "a LoRA for FLUX. Take",
    "transformer.transformer_blocks.0.img_mlp.net.2": "a LoRA for Qwen-Image. Take",
    "diffusion_model.blocks.0.self_attn.q": "a LoRA for Wan. Take",
    "transformer.layers.0.attention.to_q": "a LoRA for Lumina 2 or Z-Image. Take",
    "lora_unet_joint_blocks_0_x_block_attn_qkv": "a LoRA for Stable Diffusion 3. Take",
    "lora_unet_input_blocks_7_1_proj_in": "a LoRA for Stable Diffusion 1, 2 or XL. No layer of it",
    "lora_unet_input_blocks_7_1_transformer_blocks_0_attn2_to_k": "a LoRA for Stable Diffusion XL. No layer of it",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": "for Stable Diffusion XL. Its .* changes 8 x 2048",
    "a.b": "a.safetensors is a LoRA for another model. No layer of it is in this model, a.b for one",
}  # fmt: skip


@pytest.mark.parametrize("layer", FOREIGN)
def test_a_lora_of_another_family(sd, tmp_path, layer):
    file = written(tmp_path / "a.safetensors", {layer: (torch.ones(2, 2048), torch.ones(8, 2))})
    with pytest.raises(InputError, match=FOREIGN[layer]) as error:
        with_loras(sd, [file])
    assert "Take one for stable-diffusion" in str(error.value)


def ranks_differ(pairs):
    return {key: (torch.cat([down, down]), up) for key, (down, up) in pairs.items()}


def not_finite(pairs):
    return {key: (down * float("nan"), up) for key, (down, up) in pairs.items()}


@pytest.mark.parametrize(
    ("spoil", "sentence"), [(ranks_differ, "do not fit each other"), (not_finite, "is not finite")]
)
def test_matrices_that_cannot_be_merged(sd, tmp_path, spoil, sentence):
    file = written(tmp_path / "a.safetensors", spoil(drawn(sd.modules["net"], "to_q")), "unet.{}.lora_{}.weight")
    before = bits(sd.modules["net"])
    with pytest.raises(InputError, match=sentence):
        with_loras(sd, [file])
    assert_same(sd.modules["net"], before)


def test_files_that_are_no_lora(sd, folder, style, tmp_path):
    cases = {
        "pickle.ckpt": (b"\x80\x02}q\x00.", CheckpointError, "a pickle, which can run any program"),
        "cut.safetensors": (Path(style).read_bytes()[:-10], CheckpointError, "damaged"),
        "empty.safetensors": (b"", CheckpointError, "damaged"),
    }  # fmt: skip
    for name, (content, kind, sentence) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=sentence):
            with_loras(sd, [tmp_path / name])
    with pytest.raises(CheckpointError, match="Cannot read"):
        with_loras(sd, ["none.safetensors:0.5"])
    with pytest.raises(InputError, match="is a function"):
        with_loras(replace(sd, denoise=lambda x, sigma, cond=None: x), [style])
    with pytest.raises(InputError, match="is no LoRA: it has no layers"):
        with_loras(sd, [folder / "unet" / "diffusion_pytorch_model.safetensors"])
    for scale in ("nan", "inf", "1e99"):
        with pytest.raises(InputError, match="no file with a scale"):
            with_loras(sd, [f"{style}:{scale}"])
    for header in ('{"unet.use_dora": true}', "[1]", "{"):
        written(
            tmp_path / "d.safetensors",
            drawn(sd.modules["net"], "to_q"),
            "unet.{}.lora_{}.weight",
            lora_adapter_metadata=header,
        )
        with pytest.raises((InputError, CheckpointError), match=r"is a DoRA|cannot be read"):
            with_loras(sd, [tmp_path / "d.safetensors"])
