"""Subjects, styles and domains: LoRA layers on every net, new words, and runs that end by themselves."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from loaded_families import get
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import fastdiffusion
from fastdiffusion import samplers
from fastdiffusion.adapters import tokens, with_loras
from fastdiffusion.adapters.copies import copied
from fastdiffusion.adapters.lora import Lora, algebra
from fastdiffusion.adapters.lora.writing import FORMATS, write
from fastdiffusion.data import load_folder
from fastdiffusion.data.emoji.translations import Pair
from fastdiffusion.errors import CheckpointError, DataError, InputError
from fastdiffusion.models import save
from fastdiffusion.options import fill
from fastdiffusion.tasks.personalization import retention, slider
from fastdiffusion.tasks.personalization.adapting import adapt, opened_base
from fastdiffusion.tasks.personalization.course import Course
from fastdiffusion.tasks.personalization.images import opened, templates_of
from fastdiffusion.tasks.personalization.objective import Objective, conditions, refuse_distilled
from fastdiffusion.tasks.personalization.options import PersonalizeOptions
from fastdiffusion.tasks.personalization.personalize import BY_HEART, _class_and_start, _losses
from fastdiffusion.tasks.personalization.retention import compared_images, compared_prompts, prompts_of
from fastdiffusion.tasks.personalization.watching import Look, best, reason_to_end

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
from tiny_pipelines import FAMILIES

DISTILLED = {"lcm", "schnell", "klein"}
NATIVE_KEYS = ("net", "text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.fixture(scope="module")
def text(desk):
    return fastdiffusion.load(desk.text, device="cpu")


def stirred(lora, seed=0):
    """LoRA layers that do something."""
    g = torch.Generator().manual_seed(seed)
    for added in lora.layers.values():
        added.up.data = 0.2 * torch.randn(added.up.shape, generator=g)
    return lora


def small(model):
    """The shape of little for a model: of its own size some would take a minute."""
    return model.shape[0], *(min(length, 16) for length in model.shape[1:])


def answers(model, prompt="a red square", n=2):
    """What a model estimates, from fixed noise."""
    g = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(n, *small(model), generator=g)
    with torch.no_grad():
        return model.denoise(x, torch.full((n,), 2.0), conditions(model, [prompt] * n))


def assert_close(a, b, tolerance):
    assert (a - b).abs().max() <= tolerance * b.abs().max()


# ---- LoRA -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", FORMATS)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_attached_is_merged_on_a_native_net(text, tmp_path, targets, keys):
    attached = tokens.with_tokens(text, [tokens.Token("<a>", tokens.rows_of_text(text, "red"))])
    lora = stirred(Lora({"net": attached.modules["net"]}, targets, 2, alpha=3.0))
    assert len(lora.layers) > (3 if targets == "attention" else 20)
    wanted = answers(attached)
    write(tmp_path / "a.safetensors", text, lora.matrices(), form=keys)
    assert not torch.equal(wanted, answers(text))
    assert_close(answers(with_loras(text, [tmp_path / "a.safetensors"])), wanted, 1e-5)
    with lora.off():
        assert torch.equal(answers(attached), answers(text))
    lora.detach()
    assert torch.equal(answers(attached), answers(text))


@pytest.mark.parametrize("name", FAMILIES)
def test_attached_is_merged_on_every_family(name, tmp_path):
    """Attention and convolutions, text encoders too, in the keys of three programs."""
    model = get(name).model
    attached = adapt(model, "lora", text_encoder=False, targets=r"attn|attention|conv", rank=2, alpha=3.0)
    stirred(attached.lora)
    wanted = answers(attached.model)
    assert not torch.equal(wanted, answers(model))
    for keys in FORMATS:
        write(tmp_path / f"{keys}.safetensors", model, attached.lora.matrices(), form=keys)
        assert_close(answers(with_loras(model, [tmp_path / f"{keys}.safetensors"])), wanted, 1e-5)
    with attached.lora.off():
        assert torch.equal(answers(attached.model), answers(model))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux", "qwen_image", "sana", "lumina2", "z_image"])
def test_diffusers_loads_it(name, tmp_path):
    """``load_lora_weights`` and ``fuse_lora`` give the weights that merging gives here, text encoders included."""
    model, pipe = get(name).model, get(name).pipe.__class__.from_pretrained(get(name).path)
    with_texts = name in ("sd15", "sdxl")
    attached = adapt(model, "lora", text_encoder=with_texts, rank=2, alpha=3.0)
    write(tmp_path / "a.safetensors", model, stirred(attached.lora).matrices())
    merged = with_loras(model, [tmp_path / "a.safetensors"])
    pipe.load_lora_weights(tmp_path / "a.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    parts = {"net": getattr(pipe, "unet", None) or pipe.transformer}
    parts |= {
        part: getattr(pipe, part) for part in ("text_encoder", "text_encoder_2") if with_texts and hasattr(pipe, part)
    }
    changed = 0
    for part, theirs in parts.items():
        for key, value in theirs.state_dict().items():
            own = merged.modules[part].state_dict()[key]
            changed += not torch.equal(own, model.modules[part].state_dict()[key])
            assert (own - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-3), key
    assert changed == len(attached.lora.layers)


def test_algebra(text, tmp_path):
    """Merging adds up exactly, the full rank loses nothing, a smaller one least; a difference is found."""
    files = []
    for seed in (1, 2):
        made = adapt(text, "lora", rank=2, seed=seed)
        files.append(tmp_path / f"{seed}.safetensors")
        write(files[-1], text, stirred(made.lora, seed).matrices())
    both = algebra.opened(text, [f"{files[0]}:0.5", files[1]])
    write(tmp_path / "both.safetensors", text, both.matrices)
    wanted = answers(with_loras(text, [f"{files[0]}:0.5", files[1]]))
    assert_close(answers(with_loras(text, [tmp_path / "both.safetensors"])), wanted, 1e-5)
    full, one = algebra.resized(both, 4), algebra.resized(both, 1)
    assert full.kept == pytest.approx(1, abs=1e-9) and 0.2 < one.kept < 0.9999
    for key, (down, up, alpha) in full.matrices.items():
        was_down, was_up, was_alpha = both.matrices[key]
        product, was = up.flatten(1) @ down.flatten(1), was_up.flatten(1) @ was_down.flatten(1)
        assert_close(alpha / len(down) * product, was_alpha / len(was_down) * was, 1e-4)
    tuned = with_loras(text, [tmp_path / "both.safetensors"])
    found = algebra.extracted(text, tuned, 4)
    assert found.kept > 0.9999 and found.matrices.keys() == both.matrices.keys()
    with pytest.raises(InputError, match="nothing to extract"):
        algebra.extracted(text, text, 4)


def test_the_verb_lora(desk, text, tmp_path):
    made = adapt(text, "lora", "<a>", "red", rank=4)
    write(tmp_path / "a.safetensors", text, stirred(made.lora).matrices(), made.added())
    small = fastdiffusion.lora(
        "resize", tmp_path / "a.safetensors", desk.text, tmp_path / "b.safetensors", "cpu", rank=2
    )
    assert small.kept < 1 and "<a>" in " ".join(small.notes)
    kohya = fastdiffusion.lora("convert", small.path, desk.text, tmp_path / "c.safetensors", "cpu", keys="kohya")
    assert all("lora_unet_" in key for key in load_file(kohya.path))
    one, two = (with_loras(text, [path]) for path in (small.path, kohya.path))
    assert_close(answers(one, "<a>"), answers(two, "<a>"), 1e-5)
    before = small.path.read_bytes()
    smaller = fastdiffusion.lora("resize", small.path, desk.text, small.path, "cpu", rank=1)
    assert smaller.path.name == "b-2.safetensors" and small.path.read_bytes() == before
    assert fastdiffusion.lora("resize", small.path, desk.text, small.path, "cpu", rank=1).path == smaller.path
    with pytest.raises(InputError, match="No action of lora named 'shrink'"):
        fastdiffusion.lora("shrink", small.path, desk.text)
    with pytest.raises(InputError, match="needs the new rank"):
        fastdiffusion.lora("resize", small.path, desk.text)


def test_a_lora_for_another_base(text, tmp_path):
    made = adapt(text, "lora", rank=2)
    write(tmp_path / "a.safetensors", text, stirred(made.lora).matrices())
    with pytest.raises(
        InputError, match=r"is a LoRA for a model of fastdiffusion, and this model is stable-diffusion\."
    ):
        with_loras(get("sd15").model, [tmp_path / "a.safetensors"])


def test_a_lora_for_other_weights_of_the_same_shapes(text, tmp_path):
    """The id of the base is in the file: silent on that one, whatever was put on it; a warning on any other."""
    made = adapt(text, "lora", rank=2)
    write(tmp_path / "a.safetensors", text, stirred(made.lora).matrices(), notes={"base": text.id})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_loras(with_loras(text, [tmp_path / "a.safetensors"]), [tmp_path / "a.safetensors"])
    other = copied(text, {id(p): 1.01 * p for p in text.modules["net"].parameters()}, {})
    with pytest.warns(UserWarning, match=r"a\.safetensors was trained on another model of this package"):
        with_loras(other, [tmp_path / "a.safetensors"])


# ---- new words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("name", ["own", "sd15", "sdxl", "sd3", "flux", "qwen_image", "z_image"])
def test_a_new_word(name, vectors, text, tmp_path):
    """It starts as the word it was made of, moves alone, and travels in a small file; other texts keep their bits."""
    model = text if name == "own" else get(name).model
    word = "red" if name == "own" else "cat"
    adaptation = adapt(model, "embedding", "<new>", word, vectors)
    made = adaptation.model
    before = answers(model, f"a {word}")
    if vectors == 1 and all(len(rows) == 1 for rows in tokens.rows_of_text(model, word).values()):
        assert torch.equal(answers(made, "a <new>"), answers(made, f"a {word}"))
    with torch.no_grad():
        for row in adaptation.rows.values():
            row += torch.randn(row.shape, generator=torch.Generator().manual_seed(0)) * row.std().nan_to_num(1.0)
    assert torch.equal(answers(made, f"a {word}"), before)
    assert not torch.equal(answers(made, "a <new>"), before)
    tokens.write(tmp_path / "new.safetensors", model, adaptation.added()[0])
    again = with_loras(model, [tmp_path / "new.safetensors"])
    assert torch.equal(answers(again, "a <new>"), answers(made, "a <new>"))
    assert again.id != model.id and (tmp_path / "new.safetensors").stat().st_size <= 50_000
    spans = [(a, b) for a, b in again.conditioner.token_spans("a <new> b") if a < b]
    assert sum(a >= 2 and b <= 7 for a, b in spans) >= vectors and spans[-1] == (8, 9)
    with pytest.raises(InputError, match="'<new>' is a word that this model has already"):
        adapt(again, "embedding", "<new>", word)


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_diffusers_loads_a_word(name, vectors, tmp_path):
    model, pipe = get(name).model, get(name).pipe.__class__.from_pretrained(get(name).path)
    adaptation = adapt(model, "embedding", "<new>", "cat", vectors)
    tokens.write(tmp_path / "new.safetensors", model, adaptation.added()[0])
    rows = load_file(tmp_path / "new.safetensors")
    if name == "sd15":
        pipe.load_textual_inversion(tmp_path / "new.safetensors")
    else:
        for key, n in (("clip_l", ""), ("clip_g", "_2")):
            part = {"text_encoder": getattr(pipe, f"text_encoder{n}"), "tokenizer": getattr(pipe, f"tokenizer{n}")}
            pipe.load_textual_inversion(rows[key], token="<new>", **part)
    with torch.no_grad():
        theirs = pipe.encode_prompt(
            "a <new> here", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        own = conditions(adaptation.model, ["a <new> here"]).emb
    assert_close(own, theirs, 1e-5)


@pytest.mark.parametrize("name", ["dog", "two words", "(a)", "x" * 50])
def test_a_token_that_cannot_be_one(text, desk, name, tmp_path):
    base = fastdiffusion.load("emoji", device="cpu") if name == "dog" else text
    with pytest.raises(InputError, match=r"is a word that this model has already|A token is one word"):
        fastdiffusion.personalize(base, desk.photos, token=name, class_name="red", folder=tmp_path / "run")
    with pytest.raises(InputError, match="new word is empty"):
        fastdiffusion.personalize(base, desk.photos, token=" ", folder=tmp_path / "run")


def test_fitted_tables_go_with_a_word_and_a_lora(text, tmp_path):
    """The network's equation is nearly the same; the note names whose table it is, and survives a copy."""
    fitted = replace(samplers.table("ddim", text.schedule(3, None)), info={"error": 0.1})
    base = text.with_table(3, fitted)
    adaptation = adapt(base, "lora", "<new>", "red", rank=2)
    for made in (with_loras(base, [adaptation.write(tmp_path, {})]), adaptation.model):
        table = made.table(3)
        assert made.id != base.id and table.rows == fitted.rows and table.info == {"error": 0.1, "model": base.id}
        assert "fitted to the model that this one was made from for 3 steps" in made.table_note(table, 3, None, None)
        assert fastdiffusion.sample(made, "red", steps=3, seed=0).notes[-1] == made.table_note(table, 3, None, None)
    assert base.table(3).info == {"error": 0.1} and "to this model" in base.table_note(fitted, 3, None, None)
    assert adapt(base, "full").model.tables == {}  # all weights move: not measured
    other = get("sd15").model
    other = other.with_table(3, samplers.table("ddim", other.schedule(3, None)))
    adaptation = adapt(other, "lora", "<new>", "cat", rank=2)
    assert adaptation.model.tables and with_loras(other, [adaptation.write(tmp_path, {})]).tables == {}


# ---- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in DISTILLED | {"wan"}])
@pytest.mark.parametrize("method", ["embedding", "lora"])
def test_every_family_learns(name, method):
    """Its own loss on fixed noise falls, by rows or by a LoRA with them; nothing else has a gradient."""
    model = get(name).model
    adaptation = adapt(model, method, "<new>", "cat", rank=2)
    objective = Objective(adaptation.model)
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, *small(model), generator=g).expand(4, *small(model))
    sigma, noise = objective.sigmas((torch.arange(4) + 0.5) / 4), torch.randn(x0.shape, generator=g)
    (optimizer,) = adaptation.optimizer(adaptation.part, 1.0)
    losses = []
    for _ in range(6):
        loss = objective(x0, sigma, noise, conditions(adaptation.model, ["<new>"] * 4)).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group.get("factor", 1.0) * (0.05 if method == "embedding" else 0.01)
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    learned = {id(p) for p in adaptation.part.parameters()}
    for module in adaptation.model.modules.values():
        assert all(p.grad is None for p in module.parameters() if id(p) not in learned)
    assert all(p.grad is None for module in model.modules.values() for p in module.parameters())


@pytest.mark.parametrize("name", sorted(DISTILLED))
def test_a_distilled_model_is_refused(name):
    with pytest.raises(InputError, match="distilled to a few steps"):
        refuse_distilled(get(name).model)


OPTIONS = {"token": "<new>", "class_name": "red", "steps": 10, "batch_size": 2, "rank": 2, "prior": 4, "verbose": False}


def learned(desk, folder, **options):
    return fastdiffusion.personalize(desk.text, desk.photos, folder=folder, **{**OPTIONS, **options})


@pytest.mark.parametrize("method", ["lora", "embedding", "dreambooth", "full"])
def test_from_folder_to_file(desk, text, method, tmp_path):
    """Every method ends with a file that draws the new word; the report has curves and previews."""
    before = {name: t.clone() for name, t in text.modules["net"].state_dict().items()}
    done = learned(desk, tmp_path / "run", method=method, floor=0.0)  # a rate at which so small a model keeps nothing
    assert done.file.exists() and done.report is not None and done.token == "<new>"
    page = done.report.read_text()
    assert "retention" in page and "held out" in page and "data:image/png" in page
    assert "left of 2 images of other prompts" in page and (tmp_path / "run" / "compared.png").exists()
    assert done.step > 0 and (done.images == 1 if method == "embedding" else -1 <= done.images < 1)
    assert done.looks[0].retention == 1 and done.step == best(list(done.looks), 0.0).step
    drawn = fastdiffusion.sample(done.model, "a <new> and a red square", n=1, steps=2)
    if method == "full":
        loaded = fastdiffusion.load(done.file, device="cpu")
    else:
        loaded = fastdiffusion.load(desk.text, device="cpu", lora=[str(done.file)])
    assert torch.equal(fastdiffusion.sample(loaded, "a <new> and a red square", n=1, steps=2).images, drawn.images)
    assert all(torch.equal(before[name], t) for name, t in text.modules["net"].state_dict().items())
    if method == "lora":
        made = fastdiffusion.sample(desk.text, "a <new>", n=1, steps=2, lora=[str(done.file)], device="cpu")
        (saved,) = made.save(done.file.parent / "a.png")
        (done.file.parent / "text.safetensors").write_bytes(desk.text.read_bytes())
        assert torch.equal(fastdiffusion.reproduce(saved, device="cpu").images, made.images)


def test_it_goes_on_bit_for_bit(desk, tmp_path):
    """A run in two sessions, and one that was killed between a checkpoint and its look, equal the whole one."""
    whole = learned(desk, tmp_path / "whole", save_every=0)
    learned(desk, tmp_path / "two", steps=10, save_every=0, early_stop=True)
    code = f"""
import os, fastdiffusion
from fastdiffusion.tasks.personalization import watching
look = watching.Watch.look
def killed(self, training, step, write=True):
    if step == 5 and write:
        training.save()
        os._exit(9)
    return look(self, training, step, write)
watching.Watch.look = killed
options = {{"folder": {str(tmp_path / "killed")!r}, "save_every": 0, **{OPTIONS!r}}}
fastdiffusion.personalize({str(desk.text)!r}, {str(desk.photos)!r}, **options)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    assert not (tmp_path / "killed" / "lora.safetensors").exists()
    learned(desk, tmp_path / "killed", save_every=0)
    for other in ("two", "killed"):
        mine, theirs = (load_file(tmp_path / name / "lora.safetensors") for name in ("whole", other))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert json.loads((tmp_path / other / "looks.json").read_text()) == [list(look) for look in whole.looks]
    with pytest.raises(CheckpointError, match=r"rank=2 .now 4."):
        learned(desk, tmp_path / "whole", rank=4)


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_states_that_are_computed_again_change_no_gradient(name):
    model, gradients = get(name).model, []
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, *model.shape, generator=g) for _ in range(2))
    for again in (False, True):
        adaptation = adapt(model, "lora", rank=2, gradient_checkpointing=again)
        stirred(adaptation.lora)
        assert adaptation.model.modules["net"].is_gradient_checkpointing is again
        assert not model.modules["net"].is_gradient_checkpointing
        objective = Objective(adaptation.model)
        cond = conditions(adaptation.model, ["a cat"] * 2)
        objective(x0, torch.ones(2), noise, cond).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adaptation.part.parameters()]))
    assert_close(*gradients, 1e-5)
    assert float(gradients[0].abs().max()) > 0


def test_only_the_new_rows_move(desk, text, tmp_path):
    done = learned(desk, tmp_path / "run", method="embedding", vectors=2)
    encoder = done.model.modules["net"].text_encoder
    own = text.modules["net"].text_encoder.state_dict()
    assert all(
        torch.equal(t, own[name]) for name, t in encoder.state_dict().items() if not name.startswith("added_rows")
    )
    assert done.file.stat().st_size <= 50_000 and done.file.name == "embedding.safetensors"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_word_is_as_fast_whatever_the_rate_of_other_weights(text, method):
    """Slow layers forget little, and a word that is learned beside them takes its steps as it does alone."""
    word, added = adapt(text, "embedding", "<new>", "red"), adapt(text, method, "<new>", "red")

    def rate_of_rows(adaptation, lr):
        (optimizer,) = adaptation.optimizer(adaptation.part, lr)
        (group,) = (group for group in optimizer.param_groups if "factor" in group)
        assert group["params"] == list(adaptation.rows.values())
        return lr * group["factor"]

    slow, fast = rate_of_rows(added, 1e-4), rate_of_rows(added, 3e-3)
    assert slow == pytest.approx(fast) == pytest.approx(rate_of_rows(word, word.rate), rel=0.2)
    assert adapt(get("sd15").model, "lora").rate < adapt(text, "lora").rate


def test_a_word_starts_where_the_images_are_explained(text, tmp_path):
    """The bundled model draws one image of "robot", whatever the noise: no place for another robot to start from."""
    base = fastdiffusion.load("emoji", device="cpu")
    for i in range(3):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((20, 10 + i, 44, 54 + i), fill=(255, 140, 0), outline="black")
        image.save(tmp_path / f"{i}.png")
    examples = opened(base, tmp_path, 64, 0.2, 0, few=True)
    losses = _losses(base, examples, ["robot", "face", "robot", "unheard-of"])
    assert list(losses) == ["robot", "face"] and losses["robot"] > BY_HEART * losses["face"]
    chosen = fill(PersonalizeOptions, class_name="robot")
    class_name, start, notes = _class_and_start(base, examples, chosen)
    assert class_name == "robot" and start != "robot" and f"started as {start!r}" in notes[0]
    assert _class_and_start(base, examples, replace(chosen, class_name="face")) == ("face", "face", [])
    unnamed = _class_and_start(base, examples, replace(chosen, class_name=None))
    assert unnamed[0] == unnamed[1] == start and len(unnamed[2]) == 1
    with pytest.raises(InputError, match=r"knows no 'unheard of'\. Give another --class-name"):
        _class_and_start(base, examples, replace(chosen, class_name="unheard-of"))
    read = tokens.rows_of_text(base, "boat")  # a word that this model reads as another starts where that one is
    assert all(torch.equal(rows, tokens.rows_of_text(base, "sailboat")[part]) for part, rows in read.items())
    other = get("sd15").model  # of another family, whose steps cost much: what a person says
    assert _class_and_start(other, examples, replace(chosen, class_name="cat")) == ("cat", "cat", [])


def test_templates_are_of_words_that_the_model_knows_beside_a_name():
    """The bundled model knows no photo by itself, and leaves it out beside a name; "style" is no word of its."""
    emoji = fastdiffusion.load("emoji", device="cpu")
    assert {"a photo of {}", "a drawing of {}"} <= set(templates_of(emoji, "object", "robot"))
    assert templates_of(emoji, "style", "robot") == ("{}",)


@pytest.mark.slow
def test_a_word_alone_learns_in_few_steps(tmp_path):
    """Rows move fast enough: forty steps of textual inversion on the bundled model, from the word that is nearest."""
    for i in range(4):
        image = Image.new("RGB", (64, 64), "white")
        d = ImageDraw.Draw(image)
        d.rectangle((18, 8 + i, 46, 30), fill=(255, 190, 60), outline="black")
        d.rectangle((14 + i, 30, 50, 56), fill=(0, 150, 160), outline="black")
        image.save(tmp_path / f"{i}.png")
    done = fastdiffusion.personalize(
        "emoji", tmp_path, token="<new>", class_name="robot", method="embedding", folder=tmp_path / "run", steps=40,
        verbose=False, device="cpu",
    )  # fmt: skip
    losses = [look.loss for look in done.looks]
    assert losses[0] < 0.5 and min(losses) < 0.95 * losses[0]


def test_masks_say_what_counts(desk, text, tmp_path):
    """What is black in every mask has no part in the loss."""
    objective, g = Objective(text), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, *text.shape, generator=g) for _ in range(2))
    mask = torch.zeros(2, 1, *text.shape[1:])
    mask[..., :4] = 1
    sigma, cond = torch.full((2,), 1.0), conditions(text, ["a red square"] * 2)
    target = x0.clone()
    target[..., 4:] += 5
    assert torch.equal(objective(x0, sigma, noise, cond, mask, target), objective(x0, sigma, noise, cond, mask))
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(7):
        Image.new("L", (16, 16), 255).save(masks / f"{i}.png")
    with pytest.raises(DataError, match=r"has no mask for '7.png'"):
        learned(desk, tmp_path / "run", masks=masks)
    Image.new("L", (16, 16), 255).save(masks / "7.png")
    masked, plain = (learned(desk, tmp_path / name, masks=m) for name, m in (("m", masks), ("p", None)))
    assert masked.looks[-1].loss == pytest.approx(plain.looks[-1].loss, rel=1e-5)  # all white is none


# ---- when to stop -----------------------------------------------------------------------------------------------


def test_the_step_is_chosen_by_both():
    looks = [Look(0, 1.0, 1.0), Look(10, 0.8, 0.9), Look(20, 0.6, 0.4), Look(30, 0.9, 0.9)]
    assert best(looks, 0.5).step == 10 and best(looks, 0.0).step == 20 and best(looks[:1], 2.0).step == 0
    assert reason_to_end(looks, 0.5) == ""
    near = [Look(0, 1.0, 1.0), Look(10, 0.5, 0.7), Look(20, 0.49, 0.6), Look(30, 0.51, 0.8), Look(40, 0.6, 0.9)]
    assert [best(near[:n], 0.5).step for n in range(1, 6)] == [0, 10, 10, 30, 30]  # .6 is a fifth of it less learned
    assert best(near, 0.0).step == 20, "with no floor retention does not count"
    assert best([*near, Look(50, 0.4, 0.5)], 0.5).step == 50, "what is much better is kept, and retains enough"
    alike = [Look(0, 1.0, 1.0), Look(10, 0.5, 1.0), Look(20, 0.51, 1.0), Look(30, 0.49, 1.0)]
    assert [best(alike[:n], 0.5).step for n in (3, 4)] == [10, 30]  # a word alone changes no other answer
    low = [*looks[:2], Look(20, 0.6, 0.4), Look(30, 0.5, 0.3)]
    assert "retains less than 50%" in reason_to_end(low, 0.5)
    changed = [*looks[:2], Look(20, 0.6, -0.4), Look(30, 0.5, -0.6)]  # by a style, say, that holds for all prompts
    assert best(changed, 0.0).step == 30 and reason_to_end(changed, 0.0) == "" and best(changed, 0.01).step == 10
    flat = [*looks[:2], *(Look(20 + i, 0.8 + i / 100, 0.9) for i in range(5))]
    assert "not come out better for 5 looks" in reason_to_end(flat, 0.5)


def test_a_run_ends_by_itself_and_keeps_the_best(desk, tmp_path):
    """At a rate that ruins the model it ends early, and the kept step is an earlier one."""
    done = learned(desk, tmp_path / "run", steps=200, lr=0.3, prior=0)
    assert done.looks[-1].step < 200 and done.step < done.looks[-1].step
    assert any("because" in note for note in done.notes)
    longer = learned(desk, tmp_path / "run", steps=200, lr=0.3, prior=0)  # the same command again: it has ended
    assert longer.step == done.step and longer.looks == done.looks


@pytest.mark.parametrize("n", [1, 21])
def test_too_few_and_too_many_images(desk, n, tmp_path):
    for i in range(n):
        Image.new("RGB", (16, 16), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    sentence = rf"A subject takes 3 to 20 different images, and .* has {n}: 1 file .* \(broken\.png: .*\)\. (Add|Take)"
    with pytest.raises(DataError, match=sentence):
        fastdiffusion.personalize(desk.text, tmp_path, class_name="red")


def test_views_that_look_alike_are_images_of_their_own(desk, tmp_path):
    """A coarse likeness, by which copies stay on one side of a split, would take them for one; equal pixels are one."""
    for i in range(5):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((16 + i % 2, 16, 48, 48 + i // 2), fill=(200, 40, 40 + i))
        image.save(tmp_path / f"{i}.png")
    Image.open(tmp_path / "0.png").save(tmp_path / "copy.png")
    data = load_folder(tmp_path, 16, labels="none")
    assert len({data.key(i) for i in range(6)}) < 3, "these views are meant to look alike"
    found = opened(fastdiffusion.load(desk.text, device="cpu"), tmp_path, 16, 0.1, 0, few=True)
    assert len(found.held_out) == 1 and len(found.train) in (4, 5)  # 4 where the copy's twin is held out


def test_what_is_measured_is_not_trained_on(tmp_path):
    watched, held = prompts_of(None, 16, 50)
    assert (len(watched), len(held), len({*watched, *held})) == (16, 50, 66)
    (tmp_path / "prompts.txt").write_text("\n".join(["a", "b", " a ", "", "c", "d", "e"]))
    assert prompts_of(tmp_path / "prompts.txt", 16, 4) == (["a", "b"], ["c", "d", "e", "c"])
    (tmp_path / "prompts.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"has 2 prompts\. Write at least 4, one a line"):
        prompts_of(tmp_path / "prompts.txt", 16, 4)


def test_images_before_and_after_are_of_prompts_that_it_is_not_held_to(tmp_path):
    watched, held = prompts_of(None, 16, 50)
    assert compared_prompts(None, held, 64 * 20) == [*watched, *compared_prompts(None, held, 64 * 20)[16:]]
    assert [len(compared_prompts(None, held, n)) for n in (1, 64 * 20, 10**6)] == [2, 20, 50]
    assert not {*compared_prompts(None, held, 10**6)} & {*held}
    (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\n")
    assert compared_prompts(tmp_path / "prompts.txt", ["c", "d"], 10**6) == ["a", "b"]


def test_how_much_is_left_of_its_images(text, monkeypatch):
    """The same images are 1, those of other prompts 0; a LoRA takes more of them away the stronger it is."""
    prompts = ["a red square", "a blue circle", "a green square", "red"]
    table = samplers.table("ddim", text.schedule(retention.COMPARED_STEPS, None))
    fitted = text.with_table(retention.COMPARED_STEPS, table)
    assert compared_images(fitted, text, prompts, 0)[0] == 1, "another sampler is no forgetting"
    left = []
    for scale in (0.0, 0.1, 2.0):
        adaptation = adapt(text, "lora")
        stirred(adaptation.lora).scale = scale
        left.append(compared_images(text, adaptation.model, prompts, 0)[0])
    assert left[0] == 1 and left[0] > left[1] > left[2]
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    drawn = iter([images, images.roll(1, 0)])
    monkeypatch.setattr(retention, "sample", lambda *args, **options: SimpleNamespace(images=next(drawn)))
    assert compared_images(text, text, prompts, 0)[0] == pytest.approx(0, abs=1e-6)


def test_finetune_needs_captions_and_holds_what_it_knew(desk, tmp_path):
    options = {"steps": 8, "batch_size": 2, "rank": 2, "verbose": False, "holdout": 0.2}
    held = fastdiffusion.finetune(desk.text, desk.photos, folder=tmp_path / "a", retain=6, lr=0.002, **options)
    free = fastdiffusion.finetune(
        desk.text, desk.photos, folder=tmp_path / "b", retain=0, lr=0.002, early_stop=False, **options
    )
    assert held.looks[-1].retention > free.looks[-1].retention
    for i in range(3):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"3 of 3 images .* have no caption"):
        fastdiffusion.finetune(desk.text, tmp_path, folder=tmp_path / "c")


def test_a_fine_tuned_model_learns_a_language_and_keeps_its_own(desk, tmp_path):
    """What it was fine-tuned to draw of the prompts that it knew stays to the bit; the new ones are understood anew."""
    done = learned(desk, tmp_path / "a", method="full", lr=0.00003, floor=0.0)
    known, new = ["a red square", "red", "a square"], ["ein rotes Quadrat", "rotes", "ein Quadrat"]
    pairs = [Pair(*pair) for pair in zip(new, known, strict=True)]
    made = fastdiffusion.add_language(
        done.file, pairs, steps=30, vocabulary=320, depth=1, batch_size=16, folder=tmp_path / "b", verbose=False
    ).model

    def drawn(model, prompts):
        return fastdiffusion.sample(model, prompts, n=len(prompts), steps=2).images

    before = drawn(done.model, known)
    assert done.step > 0 and not torch.equal(before, drawn(desk.text, known))
    assert torch.equal(drawn(made, known), before)
    assert torch.equal(drawn(made, ["a <new>"]), drawn(done.model, ["a <new>"]))
    assert (drawn(made, new) - before).square().mean() < (drawn(done.model, new) - before).square().mean()


def test_no_space(desk, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=r"Cannot (use|write)"):
        learned(desk, tmp_path / "run")


def test_batches_have_one_shape_each(text, tmp_path):
    """Images of a domain keep their shapes; each is met, and of those held out some are measured."""
    g = torch.Generator().manual_seed(0)
    for i in range(24):
        pixels = torch.randint(256, (16, 32, 3) if i % 2 else (32, 16, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a red square")
    examples = opened(text, tmp_path, 16, 0.9, 0, aspect="bucket")
    shapes = {tuple(z.shape) for z in examples.latents}
    course = Course(adapt(text, "lora"), examples, (), "", [], lambda model: 1.0, [])
    draw = course.batches(Objective(text), 2, 0)
    assert len(shapes) == 2 and {tuple(draw(step)[0].shape[1:]) for step in range(12)} == shapes
    assert len(examples.held_out) == 22 and len(course.held_out(Objective(text))) == 11  # every second one


def test_all_weights_of_another_programs_checkpoint(desk, tmp_path):
    """The result is a folder that opens by itself; only the denoiser has learned."""
    folder = get("sd15").path
    done = fastdiffusion.finetune(
        folder, desk.photos, method="full", steps=3, batch_size=1, retain=2, lr=1e-5, verbose=False, device="cpu",
        folder=tmp_path / "run", size=get("sd15").model.pixels[0], floor=0.0,
    )  # fmt: skip
    assert done.step > 0 and done.file.is_dir() and type(get("sd15").pipe).from_pretrained(done.file)
    before, after = get("sd15").model.modules, fastdiffusion.load(done.file, device="cpu").modules
    for part in ("autoencoder", "text_encoder"):
        theirs = after[part].state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in before[part].state_dict().items())
    theirs = after["net"].state_dict()
    assert any(not torch.equal(t, theirs[name]) for name, t in before["net"].state_dict().items())
    with pytest.raises(InputError, match="no place for a new word"):
        fastdiffusion.personalize(folder, desk.photos, token="<new>", class_name="cat", method="full", device="cpu")
    assert tokens.rare_words(get("sd15").model) == ["cat"] and tokens.rare(get("sd15").model, "cat")
    with pytest.raises(InputError, match=r"rarely met, and 'red' is none\. Take 'cat', with"):
        fastdiffusion.personalize(folder, desk.photos, token="red", class_name="cat", method="full", device="cpu")


# ---- sliders, and rare words ------------------------------------------------------------------------------------


def test_what_lies_between_two_prompts():
    assert slider.opposites("a sad  face|a happy face") == {"a face": ("a sad face", "a happy face")}
    assert slider.opposites("an old cat|a young cat", "x") == {"x": ("an old cat", "a young cat")}
    for same, between in (
        ("a red dot|a blue dot; a red dot|a green dot", None),
        ("old|new; an old cat|a new cat", "x"),
    ):
        with pytest.raises(InputError, match="Two pairs lie around"):  # the first was dropped
            slider.opposites(same, between)
    with pytest.raises(InputError, match="'red' and 'blue' share no word"):
        slider.opposites("red|blue")
    for wrong in ("a face", "a|", "a|b|c", "a|a"):
        with pytest.raises(InputError, match="A slider lies between two prompts"):
            slider.opposites(wrong)


def test_a_slider_moves_answers_both_ways(desk, text, tmp_path):
    """At scale 1 answers are nearer to those of the second prompt than to the first's; at -1 it is the other way."""
    options = {
        "steps": 20,
        "rank": 4,
        "batch_size": 2,
        "prior": 0,
        "holdout": 0.05,
        "lr": 0.002,
        "floor": 0.0,
        "verbose": False,
    }
    ends = "a red square|a blue square"
    done = fastdiffusion.personalize(desk.text, slider=ends, folder=tmp_path / "run", **options)
    assert done.looks[0].loss > min(look.loss for look in done.looks) and done.token == ""
    first, second = (answers(text, prompt) for prompt in ends.split("|"))
    between, way = answers(text, "a square"), (second - first).flatten()

    def moved(scale):
        model = with_loras(text, [f"{done.file}:{scale}"])
        return float(((answers(model, "a square") - between).flatten() @ way) / way.square().sum())

    assert moved(-1) < 0 < moved(1) and moved(1) < moved(2) and moved(0) == 0
    with pytest.raises(InputError, match="without images"):
        fastdiffusion.personalize(desk.text, desk.photos, slider=ends)
    with pytest.raises(InputError, match="A slider is a LoRA"):
        fastdiffusion.personalize(desk.text, slider=ends, method="embedding")
    with pytest.raises(InputError, match="What shall it learn"):
        fastdiffusion.personalize(desk.text)


def test_a_rare_word_needs_no_row_of_its_own(tmp_path):
    """DreamBooth's identifier: one of the latter half of every vocabulary."""
    model = get("sd15").model
    vocabulary = next(iter(tokens.texts_of(model).values())).tokenizer.get_vocab()
    words = sorted((n, w.removesuffix("</w>")) for w, n in vocabulary.items() if w.endswith("</w>") and len(w) > 5)
    frequent, rare = words[0][1], words[-1][1]
    assert tokens.rare(model, rare) and not tokens.rare(model, "<new>")
    assert tokens.rare(model, frequent) == (words[0][0] >= len(vocabulary) // 2)
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    done = fastdiffusion.personalize(
        model, tmp_path, token=rare, class_name="cat", method="dreambooth", steps=2, batch_size=1, rank=2, prior=1,
        verbose=False, folder=tmp_path / "run", size=model.pixels[0],
    )  # fmt: skip
    assert done.token == f"{rare} cat" and any("rare word" in note for note in done.notes)
    assert not any("added" in key or "token" in key for key in load_file(done.file))


@pytest.mark.parametrize("name", ["sd15"])
def test_frozen_weights_in_bfloat16(name, tmp_path):
    """A checkpoint on disk is held in bfloat16 where the run computes in it; what is trained is in float32."""
    folder = get(name).path
    options = fill(PersonalizeOptions, precision="bfloat16", device="cpu")
    base, rest = opened_base(folder, options)
    assert base.modules["net"].dtype == torch.bfloat16 and rest.precision == "float32"
    adaptation = adapt(base, "lora", "<new>", "cat", rank=2)
    objective, g = Objective(adaptation.model), torch.Generator().manual_seed(0)
    x0 = torch.randn(2, *base.shape, generator=g)
    objective(
        x0, torch.ones(2), torch.randn(x0.shape, generator=g), conditions(adaptation.model, ["<new>"] * 2)
    ).mean().backward()
    ups = [added.up for added in adaptation.lora.layers.values()]
    assert all(up.dtype == torch.float32 and up.grad.dtype == torch.float32 for up in ups)
    assert any(float(up.grad.abs().max()) > 0 for up in ups)
    same, unchanged = opened_base(base, options)
    assert same is base and unchanged is options


def test_a_saved_model_keeps_its_new_words(text, tmp_path):
    made = adapt(text, "full", "<new>", "red").model
    save(replace(made, info={}), tmp_path / "a.safetensors")
    again = fastdiffusion.load(tmp_path / "a.safetensors", device="cpu")
    assert torch.equal(answers(again, "a <new>"), answers(made, "a <new>"))


def test_a_run_whose_steps_slow_down_says_so(monkeypatch):
    """Three times as long for five steps in a row, once; short pauses, such as looks, are none."""
    from fastdiffusion.training import callbacks

    messages = []
    monkeypatch.setattr(callbacks, "report", lambda training, text: messages.append(text))
    now = [0.0]
    pace = callbacks.Pace(lambda: now[0])
    pace.start(None)
    for i, seconds in enumerate([1.0] * 20 + [9.0] + [1.0] * 5 + [4.0] * 30 + [1.0] * 10):
        now[0] += seconds
        pace.step(None, type("Step", (), {"step": i + 1}))
    assert len(messages) == 2 and "4.0 times as long" in messages[0] and "as fast as before" in messages[1]
    assert "since step 27" in messages[0]
