"""A language for checkpoints of other programs: a student of their text encoders, in a file that names its base."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import loaded_families
import tiny_conditioners
import tiny_pipelines

import fastdiffusion
from fastdiffusion import add_language, load, sample
from fastdiffusion.adapters import with_loras
from fastdiffusion.adapters.conditioners import student as students
from fastdiffusion.adapters.copies import copied
from fastdiffusion.adapters.tokens import Token, with_tokens
from fastdiffusion.cli import main
from fastdiffusion.data.emoji.translations import Pair
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.nets.student import StudentEncoder, recognized
from fastdiffusion.nets.tokenizer import train
from fastdiffusion.training.trainer import Trainer

PAIRS = [
    Pair(f"{a} {b}", f"{c} {d}")
    for a, c in (("rotes", "red"), ("blaues", "blue"), ("grünes", "green"))
    for b, d in (("Quadrat", "square"), ("Dreieck", "triangle"), ("Haus", "house"))
]
NEW, KNOWN = [pair.text for pair in PAIRS], [pair.known for pair in PAIRS]
OPTIONS = {"vocabulary": 320, "depth": 1, "batch_size": 16, "lr": 0.02, "verbose": False, "device": "cpu"}
FAMILIES = ("sd15", "sdxl", "sd3", "chroma", "pixart", "qwen_image", "lumina2")  # one of each kind of condition


def drawn(model, prompt, **options):
    return sample(model, prompt, n=1, steps=2, size=64, **options).images


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A checkpoint's name, and its model with a language."""
    base = loaded_families.get(request.param).model
    return request.param, base, add_language(base, PAIRS, steps=60, **OPTIONS).model


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Stable Diffusion with a language, and the folder of that run."""
    place = tmp_path_factory.mktemp("taught") / "run"
    return add_language(loaded_families.get("sd15").path, PAIRS, steps=60, folder=place, **OPTIONS)


def test_every_family_learns_one_and_keeps_its_own(family):
    _, base, model = family
    before, after = (m.conditioner.encode(KNOWN).parts() for m in (base, model))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    own, new = (m.conditioner.encode(NEW) for m in (base, model))
    answers = model.conditioner.student_of(NEW[0])
    assert answers is not None and answers is model.conditioner.student_of("ein grünes Haus")
    assert own.parts().keys() - {"mask"} == new.parts().keys() - {"mask"}
    wanted, mean = before["emb"], before["emb"].mean(0)
    if new.emb.shape == wanted.shape:  # else the number of tokens is not learned yet
        assert (new.emb - wanted).square().mean() < 0.98 * (wanted - mean).square().mean()
    assert torch.equal(drawn(base, "red house"), drawn(model, "red house")) and base.id != model.id
    assert not torch.equal(drawn(base, "rotes Haus"), drawn(model, "rotes Haus"))


def test_the_prompt_language_goes_on_working(family):
    *_, model = family
    whole = sample(model, ["rotes Haus", "red house"], n=2, steps=2, size=64).images
    assert whole.isfinite().all()
    for i, prompt in enumerate(("rotes Haus", "red house")):  # side by side as alone
        alone = sample(model, prompt, n=1, steps=2, size=64, seed=i).images
        assert (whole[[i]] - alone).abs().max() < 1e-3
    assert torch.equal(drawn(model, "(rotes:1.0) Haus"), drawn(model, "rotes Haus"))
    for other in (
        "[rotes Haus:blaues Quadrat:0.5]",
        "rotes Haus AND blaues Quadrat",
        "rotes Haus BREAK blaues Quadrat",
    ):
        assert not torch.equal(drawn(model, other), drawn(model, "rotes Haus"))
    away = drawn(model, "rotes Haus", negative_prompt="blaues Quadrat", scale=3.0)
    assert away.isfinite().all() and not torch.equal(away, drawn(model, "rotes Haus", scale=3.0))
    spans = model.conditioner.token_spans("rotes Haus")
    assert len(spans) == model.conditioner.encode(["rotes Haus"]).emb.shape[1]
    assert all(0 <= a <= b <= len("rotes Haus") for a, b in spans)
    (row,) = [i for i, (a, b) in enumerate(spans) if a < b][:1] or [None]
    if row is not None:  # a word has weight where rows are made of it
        a, b = spans[row]
        text = f"{'rotes Haus'[:a]}({'rotes Haus'[a:b]}:1.8){'rotes Haus'[b:]}"
        assert not torch.equal(drawn(model, text), drawn(model, "rotes Haus"))


def test_a_file_holds_it_and_names_its_base(taught, tmp_path):
    file = taught.path / "language.safetensors"
    path = loaded_families.get("sd15").path
    with safe_open(file, "pt") as opened:
        note = json.loads(opened.metadata()["fastdiffusion"])
    assert note["base"] == loaded_families.get("sd15").model.denoise.id and note["base_name"] == "sd15"
    again = load(path, lora=str(file), device="cpu")
    assert torch.equal(drawn(again, "rotes Haus"), drawn(taught.model, "rotes Haus"))
    assert again.id != load(path, device="cpu").id
    off = load(path, lora=f"{file}:0", device="cpu")
    assert off.id == load(path, device="cpu").id
    with pytest.raises(InputError, match="wholly or not at all"):
        load(path, lora=f"{file}:0.5", device="cpu")
    (tmp_path / "sd15").symlink_to(path)
    made = sample(tmp_path / "sd15", "rotes Haus", n=1, steps=2, size=64, lora=[str(file)], device="cpu")
    (saved,) = made.save(tmp_path / "a.png")
    (tmp_path / "language.safetensors").write_bytes(file.read_bytes())
    assert torch.equal(fastdiffusion.reproduce(saved, device="cpu").images, made.images)


def test_other_text_encoders_are_refused(taught, tmp_path):
    file, own = taught.path / "language.safetensors", loaded_families.get("sd15")
    with pytest.raises(InputError, match=r"is a language for sd15 .*has other text encoders"):
        load(loaded_families.get("sdxl").path, lora=str(file), device="cpu")
    pipe = tiny_pipelines.build("sd15")
    pipe.unet.conv_in.weight.data += 0.1
    pipe.save_pretrained(tmp_path / "tuned")  # a fine-tune of the network has the same texts
    tuned = load(tmp_path / "tuned", lora=str(file), device="cpu")
    cond = tuned.conditioner.encode(NEW)
    assert torch.equal(cond.emb, taught.model.conditioner.encode(NEW).emb)
    pipe.text_encoder.get_input_embeddings().weight.data[0, 0] += 1
    pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is a language for sd15"):
        load(tmp_path / "other", lora=str(file), device="cpu")
    with pytest.raises(InputError, match="is a language for sd15"):
        with_loras(fastdiffusion.load("emoji", device="cpu"), [file])
    assert own.model.denoise.students == ()


def test_a_fine_tuned_model_keeps_its_english(tmp_path):
    """It is added to what a LoRA made of the base, whose English images are the same to the bit afterwards."""
    base, tuning = loaded_families.get("sd15"), tmp_path / "tuning.safetensors"
    draw, tensors = torch.Generator().manual_seed(0), {}
    for part, net in (("unet", base.model.modules["net"]), ("text_encoder", base.model.modules["text_encoder"])):
        for name, layer in net.named_modules():
            if name.endswith(("to_k", "v_proj")):
                rows, columns = layer.weight.shape
                tensors[f"{part}.{name}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
                tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=draw)
    save_file(tensors, tuning)
    tuned = load(base.path, lora=str(tuning), device="cpu")
    model = add_language(base.path, PAIRS, steps=20, lora=str(tuning), folder=tmp_path / "run", **OPTIONS).model
    assert torch.equal(drawn(model, "red house"), drawn(tuned, "red house"))
    assert not torch.equal(drawn(tuned, "red house"), drawn(base.model, "red house"))
    file = str(tmp_path / "run" / "language.safetensors")
    for files in ([str(tuning), file], [file, str(tuning)]):
        both = load(base.path, lora=files, device="cpu")
        for prompt in ("rotes Haus", "red house"):
            assert torch.equal(drawn(both, prompt), drawn(model, prompt))


def test_a_damaged_file_is_refused(taught, tmp_path):
    path = loaded_families.get("sd15").path
    tensors = load_file(taught.path / "language.safetensors")
    with safe_open(taught.path / "language.safetensors", "pt") as opened:
        note = json.loads(opened.metadata()["fastdiffusion"])

    def written(name, changed, kept):
        save_file(kept, tmp_path / name, {"fastdiffusion": json.dumps(changed)})
        return str(tmp_path / name)

    fewer = {name: t for name, t in tensors.items() if name != "places"}
    huge = {**note, "language": {**note["language"], "rows": 1 << 19}}
    strange = {**note, "language": {**note["language"], "cost": 1}}
    for i, (changed, kept) in enumerate(
        [(note, fewer), (huge, tensors), (strange, tensors), ({**note, "form": 2}, tensors)]
    ):
        with pytest.raises(CheckpointError):
            load(path, lora=written(f"{i}.safetensors", changed, kept), device="cpu")


def test_it_goes_on_bit_for_bit(tmp_path, monkeypatch):
    def learned(name):
        add_language(loaded_families.get("sd15").model, PAIRS, steps=8, folder=tmp_path / name, **OPTIONS)
        return load_file(tmp_path / name / "language.safetensors")

    whole, after = learned("whole"), Trainer._after

    def killed(self, step, *others):
        after(self, step, *others)
        if step.step == 4:
            self.save()
            raise MemoryError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after", killed)
        with pytest.raises(MemoryError):
            learned("two")
    two = learned("two")
    assert all(torch.equal(whole[name], two[name]) for name in whole)
    with pytest.raises(CheckpointError, match=r"batch_size=16 .now 8."):
        add_language(
            loaded_families.get("sd15").model, PAIRS, steps=8, folder=tmp_path / "two", **{**OPTIONS, "batch_size": 8}
        )


def test_several_stand_beside_each_other(taught, tmp_path):
    """The newest is asked first; languages that are resumed keep their tokenizer and know more."""
    french = [Pair("carré bleu", "blue square"), Pair("maison rouge", "red house")]
    both = add_language(taught.model, french, steps=4, **OPTIONS).model
    german, other = both.conditioner.student_of("rotes Haus"), both.conditioner.student_of("maison rouge")
    assert german is not None and other is not None and german is not other
    assert torch.equal(both.conditioner.encode(["rotes Haus"]).emb, taught.model.conditioner.encode(["rotes Haus"]).emb)
    assert {"student_encoder", "student_encoder_2"} <= both.modules.keys()
    more = add_language(taught.model, [*PAIRS, *french], steps=4, resume_languages=True, **OPTIONS).model
    old, new = (m.denoise.students[0].encoder for m in (taught.model, more))
    assert new.encoder.tokenizer.merges == old.encoder.tokenizer.merges
    assert new.reads("maison rouge") and not old.reads("maison rouge") and new.reads("rotes Haus")
    with pytest.raises(InputError, match="no other languages"):
        add_language(loaded_families.get("sd15").model, PAIRS, resume_languages=True, **OPTIONS)


def test_which_prompts_are_of_the_new_language():
    new, known = ["corazón rojo", "un gato con botas", "piano"], ["red heart", "a cat with boots", "piano", "no entry"]
    lists = recognized(new, known)
    student = StudentEncoder(4, 8, vocabulary=300, width=8, head=8, depth=1, terms=len(lists[0]), shared=len(lists[1]),
                             letters=len(lists[2]))  # fmt: skip
    student.set_vocabulary(train([*new, *known], 300), lists)
    for text in (
        "corazón rojo",
        "gato",
        "un gato con una flor roja y botas, perdón",
        "CORAZÓN",
        "el león rojo, un gato",
    ):
        assert student.reads(text), text
    assert student.lists("un piano rojo") and not student.lists("un piano verde")
    for text in ("red heart", "piano", "", "a photo of a cat", "con artist", "no entry", "a house in León", "42"):
        assert not student.reads(text), text


def test_added_tokens_are_the_base_s_own(taught):
    text = taught.model.conditioner.main
    token = Token("<dog>", {"text_encoder": torch.ones(1, text.encoder.get_input_embeddings().embedding_dim)})
    both = with_tokens(taught.model, [token])
    assert both.conditioner.student_of("<dog> rotes Haus") is None
    assert both.conditioner.student_of("rotes Haus") is not None


def test_an_added_token_is_a_whole_word(taught):
    """Tokens of several rows are written out; "sks" is in neither "sks_blue" nor "asksa"."""
    width = taught.model.conditioner.main.encoder.get_input_embeddings().embedding_dim
    rows = {"sks": torch.zeros(3, width), "sks_blue": torch.ones(2, width)}
    model = with_tokens(taught.model, [Token(name, {"text_encoder": own}) for name, own in rows.items()])
    text = model.conditioner.main
    plain = len(taught.model.conditioner.main.spans("x asksa y")) - len(taught.model.conditioner.main.spans(""))
    for words, n in (("sks", 3), ("sks_blue", 2), ("sks_blue sks", 5), ("sks, sks", 7), ("x asksa y", plain)):
        assert len(text.spans(words)) - len(text.spans("")) == n, words


def test_what_texts_cannot_teach_is_refused():
    with pytest.raises(InputError, match=r"hidream is conditioned on more of a text .*llama"):
        add_language(loaded_families.get("hidream").model, PAIRS, steps=1, **OPTIONS)
    with pytest.raises(InputError, match="whole number"):
        add_language(loaded_families.get("sd15").model, PAIRS, steps=1, **{**OPTIONS, "depth": 0})


def test_image_variations_have_no_language(tmp_path):
    tiny_conditioners.PIPELINES["image_variation"]().save_pretrained(tmp_path / "v")
    with pytest.raises(InputError, match=r"no (text encoder|language)"):
        add_language(load(tmp_path / "v", device="cpu"), PAIRS, steps=1, **OPTIONS)


def test_the_command_writes_the_file(tmp_path, capsys):
    path, pairs = loaded_families.get("sd15").path, tmp_path / "pairs.csv"
    pairs.write_text("".join(f"{a},{b}\n" for a, b, _ in PAIRS), encoding="utf-8")
    out = tmp_path / "german.safetensors"
    options = ["--steps=2", "--vocabulary=320", "--depth=1", "--device=cpu", f"--folder={tmp_path / 'r'}"]
    assert main(["add-language", str(path), str(pairs), "--out", str(out), *options]) in (0, None)
    assert "--lora" in capsys.readouterr().out
    written, kept = load_file(out), load_file(tmp_path / "r" / "language.safetensors")
    assert written.keys() == kept.keys() and all(torch.equal(written[name], kept[name]) for name in kept)
    model = load(path, lora=str(out), device="cpu")
    assert model.conditioner.student_of("rotes Haus") is not None
    students.write(tmp_path / "again.safetensors", model, students.students_of(model)[0].encoder)
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[name], t) for name, t in written.items())
    with pytest.raises(InputError, match="no place for a language"):
        fastdiffusion.export(path, tmp_path / "folder", format="diffusers", lora=[str(out)], device="cpu")
    changed = copied(replace(model), {}, {"trained": ["x"]})
    assert changed.conditioner.student_of("rotes Haus") is not None  # copies have it too
