"""Clip skip: prompts by another layer of CLIP, as diffusers' pipelines encode them."""

import json
import shlex
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import fastdiffusion
from fastdiffusion import prompts
from fastdiffusion.adapters import clip_layers, tokens
from fastdiffusion.adapters.conditioners import student as students
from fastdiffusion.cli import main
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.io import metadata
from fastdiffusion.io.images import read_recipe
from fastdiffusion.tasks.generation.recipe import reproduce

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get

PROMPTS = ["a cat, on a mat", "a dog", ""]
USUAL = {"sd15": 1, "sd2v": 1, "sdxl": 2, "sd3": 2}
CASES = [(name, n) for name in USUAL for n in (1, 2, 3)]


def load(name, n):
    return fastdiffusion.load(get(name).path, device="cpu", clip_skip=n)


@pytest.fixture
def theirs(monkeypatch):
    """What the pipeline makes of texts: token states, and the pooled vector where it has one."""

    def encode(name, texts, n):
        pipe, skip = get(name).pipe, n - USUAL[name]
        encoder = pipe.text_encoder
        if name in ("sd15", "sd2v"):
            if not hasattr(encoder, "text_model"):  # where diffusers 0.42 looks; in transformers 5 it is the encoder
                monkeypatch.setitem(encoder.__dict__, "text_model", encoder)
            return pipe.encode_prompt(texts, "cpu", 1, False, clip_skip=skip)[0], None
        others = {"prompt_2": None, "prompt_3": None} if name == "sd3" else {}
        limit = {"max_sequence_length": 256} if name == "sd3" else {}
        made = pipe.encode_prompt(
            texts, **others, device="cpu", do_classifier_free_guidance=False, clip_skip=skip, **limit
        )
        return made[0], made[2]

    with torch.no_grad():
        yield encode


@pytest.mark.parametrize(("name", "n"), CASES)
def test_states_and_pooled_vectors_are_the_pipelines(theirs, name, n):
    cond = load(name, n).conditioner.encode(PROMPTS, (64, 64))
    emb, pooled = theirs(name, PROMPTS, n)
    torch.testing.assert_close(cond.emb, emb, atol=1e-6, rtol=0)
    usual = get(name).model.conditioner.encode(PROMPTS, (64, 64))
    assert ((cond.emb - usual.emb).abs().max() > 1e-3) == (n != USUAL[name])
    if pooled is not None:
        torch.testing.assert_close(cond.pooled, pooled, atol=1e-6, rtol=0)
        assert torch.equal(cond.pooled, usual.pooled)


LANGUAGE = {
    "weights": ("a (cat:1.5), on a mat", ""),
    "low weights": ("a (cat:0.3) (dog:0)", ""),
    "long": ("a very long text about a cat on a mat in the sun " * 4, ""),
    "negative": ("a cat", "blurry, (bad:1.4)"),
}


def compiled(model, text, negative):
    """What a run makes of a prompt and a negative prompt: the condition of each."""
    conditioner, size = model.conditioner, (64, 64)
    made = prompts.compile(
        [text], partial(model.encode_prompt, size=size), 4, negative, conditioner.token_spans, conditioner.max_tokens,
        conditioner.null(1, size), conditioner.measure,
    )  # fmt: skip
    ((cond,),) = (stage.conds for stage in made.stages)
    return cond, made.negative


@pytest.mark.parametrize("case", LANGUAGE)
@pytest.mark.parametrize(("name", "n"), [("sd15", 2), ("sd15", 3), ("sdxl", 1), ("sdxl", 3)])
def test_the_prompt_language_works_on_such_states(theirs, name, n, case):
    """What it makes of the pipeline's own states, of weights, long and negative prompts, is what the model makes."""
    model, usual = load(name, n), load(name, USUAL[name])
    got, other = (compiled(m, *LANGUAGE[case]) for m in (model, usual))
    plain, encoded = usual.denoise.condition, []

    def condition(texts, size):
        encoded.extend(texts)
        emb, pooled = theirs(name, list(texts), n)
        return replace(plain(texts, size), emb=emb, pooled=pooled)

    usual.denoise.condition = condition
    wanted = compiled(usual, *LANGUAGE[case])
    assert encoded and not any("(" in text for text in encoded)
    assert got[0].emb.shape[1] == (154 if case == "long" else 77)
    for ours, right, before in zip(got, wanted, other, strict=True):
        assert ours.emb.shape == right.emb.shape
        torch.testing.assert_close(ours.emb, right.emb, atol=1e-6, rtol=0)
        assert (ours.emb - before.emb).abs().max() > 1e-3 or not before.emb.any(), "SDXL's nothing is zeros"
        if name == "sdxl":
            torch.testing.assert_close(ours.pooled, right.pooled, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_negative_prompts_are_encoded_alike(theirs, name):
    """As in AUTOMATIC1111 and ComfyUI; diffusers would leave them at the usual layer."""
    model, n = load(name, 3), 3
    emb, _ = theirs(name, ["blurry"], n)
    got = model.conditioner.negative.encode(["blurry"], (64, 64)).emb
    torch.testing.assert_close(got, emb, atol=1e-6, rtol=0)
    nothing = model.null(1, (64, 64)).emb
    wanted = theirs(name, [""], n)[0] if name == "sd15" else torch.zeros_like(nothing)
    torch.testing.assert_close(nothing, wanted, atol=1e-6, rtol=0)


def test_it_is_part_of_the_model_and_its_recipe(tmp_path, capsys):
    plain, model, same = get("sd15").model, load("sd15", 2), load("sd15", 1)
    assert same.id == plain.id != model.id and model.info["loaded"] == {"clip_skip": 2} and "loaded" not in same.info
    path = str(get("sd15").path)
    words = ["a cat", "-n", "1", "--steps", "2", "--device", "cpu", "--negative", "bad"]
    for n in (1, 2):
        assert main(["sample", path, *words, "--clip-skip", str(n), "-o", str(tmp_path / f"{n}.png")]) == 0
    made = tmp_path / "2.png"
    assert made.read_bytes() != (tmp_path / "1.png").read_bytes()
    assert read_recipe(made)["model"]["loaded"] == {"clip_skip": 2}
    assert metadata.automatic1111(Image.open(made).text["parameters"])["clip_skip"] == 2
    assert "Clip skip" not in Image.open(tmp_path / "1.png").text["parameters"]
    assert main(["reproduce", str(made), "--model", path, "--device", "cpu", "-o", str(tmp_path / "again.png")]) == 0
    assert "the same bytes" in capsys.readouterr().out


TYPED = {
    ("a1111", 2): "--clip-skip 2", ("a1111", 1): "", ("a1111", "x"): "",
    ("comfy", -2): "--clip-skip 2", ("comfy", -1): "--clip-skip 1", ("comfy", 3): "",
}  # fmt: skip


@pytest.mark.parametrize(("case", "wanted"), TYPED.items())
def test_another_programs_recipe_maps_to_it(case, wanted, tmp_path):
    program, n = case
    texts = PngImagePlugin.PngInfo()
    if program == "a1111":
        texts.add_text("parameters", f"a cat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Clip skip: {n}")
    else:
        graph = {
            "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 2, "cfg": 7.0, "positive": ["2", 0]}},
            "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["3", 0]}},
            "3": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": n, "clip": ["4", 1]}},
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        }
        texts.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=texts)
    with pytest.raises(DataError, match="this comes near: fastdiffusion sample MODEL") as caught:
        reproduce(tmp_path / "theirs.png")
    typed = shlex.split(str(caught.value).partition("this comes near: ")[2])
    found = typed[typed.index("--clip-skip") :][:2] if "--clip-skip" in typed else []
    assert " ".join(found) == wanted


def test_a_file_without_its_last_layer_counts_it(monkeypatch):
    """As those of Stable Diffusion 2: their usual layer is 2, in ComfyUI's count of the layers there were."""
    config = get("sd2v").model.modules["text_encoder"].config
    monkeypatch.setattr(clip_layers, "CUT", (config.hidden_size, config.num_hidden_layers))
    usual, before = load("sd2v", 2), load("sd2v", 3)
    assert usual.id == get("sd2v").model.id != before.id and before.denoise.clip_skip == 1
    with pytest.raises(InputError, match=r"from 2 to 4, and 2 is the usual one\. Got 1"):
        load("sd2v", 1)


@pytest.mark.parametrize(("name", "n", "usual"), [("sd15", 4, 1), ("sdxl", 4, 2), ("sd15", 12, 1)])
def test_a_layer_that_is_not_there_is_refused(name, n, usual):
    with pytest.raises(InputError, match=rf"in {name} from 1 to 3, and {usual} is the usual one\. Got {n}\."):
        load(name, n)


@pytest.mark.parametrize("name", ["flux", "chroma", "pixart"])
def test_families_without_such_states_refuse_it(name):
    with pytest.raises(InputError, match=r"--clip-skip is for models that take .* is a [a-z-]+.*Leave it out"):
        load(name, 2)


def test_what_else_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--clip-skip is for checkpoints of other programs.*Leave it out"):
        fastdiffusion.load("emoji", clip_skip=2, engine="openvino")
    with pytest.raises(InputError, match="this one is loaded already"):
        fastdiffusion.sample(get("sd15").model, "a cat", clip_skip=2)
    for n in (0, -1):
        with pytest.raises(InputError, match=f"which is 1, got {n}. Try 2"):
            load("sd15", n)
    with pytest.raises(InputError, match="whole number"):
        load("sd15", "two")
    with pytest.raises(InputError, match="Leave --clip-skip out"):
        fastdiffusion.export(load("sd15", 2), tmp_path / "folder", format="diffusers")
    with pytest.raises(InputError, match="A language answers as the usual layer"):
        students.check(load("sd15", 2))
    students.check(load("sd15", 1))


# ---- what is laid over a model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("sd15", 2), ("sdxl", 3)])
def test_loras_and_learned_words_go_on_to_work(name, n, tmp_path):
    """Both are of the layer that is taken: the same as of a model whose weights have the LoRA in them."""
    model, plain = load(name, n), get(name).model
    word = tokens.Token("<thing>", {part: torch.ones(1, width) for part, width in tokens.widths(model).items()})
    made, usual = tokens.with_tokens(model, [word]), tokens.with_tokens(plain, [word])
    assert made.denoise.clip_skip == model.denoise.clip_skip and made.id not in (model.id, usual.id)
    one, two, three = (
        m.encode_prompt([text], (64, 64)).emb
        for m, text in ((made, "a <thing>"), (made, "a cat"), (usual, "a <thing>"))
    )
    assert (one - two).abs().max() > 1e-3 and (one - three).abs().max() > 1e-3
    assert torch.equal(two, model.encode_prompt(["a cat"], (64, 64)).emb)
    key = "lora_te1" if name == "sdxl" else "lora_te"
    layer = f"{key}_text_model_encoder_layers_0_mlp_fc1"
    width, inner = 16, 32
    update = {"down": torch.randn(2, width), "up": torch.randn(inner, 2)}
    tensors = {f"{layer}.lora_{way}.weight": t for way, t in update.items()} | {f"{layer}.alpha": torch.tensor(2.0)}
    save_file(tensors, file := tmp_path / "style.safetensors")
    with_lora = fastdiffusion.load(get(name).path, device="cpu", clip_skip=n, lora=str(file))
    merged = load(name, n)
    encoder = merged.modules["text_encoder"]
    weight = getattr(encoder, "text_model", encoder).encoder.layers[0].mlp.fc1.weight
    weight.data += update["up"] @ update["down"]
    got, wanted = (m.encode_prompt(["a cat"], (64, 64)).emb for m in (with_lora, merged))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert (got - two).abs().max() > 1e-3


def test_the_engine_for_cpus_takes_the_same_layer():
    pytest.importorskip("openvino")
    model = fastdiffusion.load(get("sd15").path, device="cpu", clip_skip=2, engine="openvino")
    got, wanted = (m.encode_prompt(PROMPTS, (64, 64)).emb for m in (model, load("sd15", 2)))
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
