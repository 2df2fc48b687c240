"""Files of strangers for the verbs that take others' networks: LoRAs, words, folders, conditions, images as lines."""

import base64
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import traceback

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from test_faults import refused, within

import fastdiffusion
from fastdiffusion.adapters import tokens, with_loras
from fastdiffusion.adapters.lora import algebra, reading
from fastdiffusion.cli import main
from fastdiffusion.errors import CheckpointError, FastdiffusionError, InputError, UnavailableError
from fastdiffusion.io import checkpoints, untrusted_json
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.models import folder

DEEP = "[" * 200_000


@pytest.fixture(scope="module")
def text(desk):
    return fastdiffusion.load(desk.text, device="cpu")


@pytest.fixture(scope="module")
def layer(text):
    """A linear layer of the network: its name, and its rows and columns."""
    found = ((name, m) for name, m in text.modules["net"].named_modules() if isinstance(m, torch.nn.Linear))
    name, module = next(found)
    return name, *module.weight.shape


# ---- JSON -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [DEEP, "{" * 9, "\0", "1" * 5000, '"\\ud800', b"\xff\xfe", b"x" * 50_000_000])
def test_json_of_strangers_is_one_kind_of_error(tmp_path, content):
    place = tmp_path / "a.json"
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(error=InputError):
        untrusted_json.parsed_file(place)
    with refused(error=InputError):
        untrusted_json.parsed(content)


def test_json_is_read_with_the_mark_that_windows_puts_before_it(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + '{"é": [1e3]}'.encode())
    assert untrusted_json.parsed_file(tmp_path / "a.json") == {"é": [1000.0]} == untrusted_json.parsed('{"é": [1e3]}')


@pytest.mark.parametrize("content", [DEEP, "[]", "7", '{"checkpoint": "x", "tables": 7}', '{"checkpoint": []}'])
def test_tables_beside_a_checkpoint_are_read_or_named(text, tmp_path, content):
    folder.tables_file(tmp_path / "sd").write_text(content)
    with refused(error=CheckpointError) if content[0] != "{" else within(2):
        folder.read_tables(tmp_path / "sd", text)


# ---- LoRAs ------------------------------------------------------------------------------------------------------


def packed(rows=None, name="<x>", raw=None):
    content = save({"rows": torch.zeros(1, 16) if rows is None else rows}) if raw is None else raw
    return {"token": name, "rows": {"text_encoder": base64.b64encode(content).decode()}}


NOTES = {
    "deep": DEEP,
    "a list": "[1, 2]",
    "a number": "7",
    "tokens a number": '{"tokens": 7}',
    "a null": '{"tokens": [null]}',
    "tokens deep": '{"tokens": ' + DEEP + "}",
    "infinity": '{"tokens": [1e999]}',
    "another family": '{"family": {"a": 1}}',
    "a pickle": json.dumps({"tokens": [packed(raw=pickle.dumps(1))]}),
    "no rows": json.dumps({"tokens": [packed(raw=save({"a": torch.zeros(1)}))]}),
    "not a number": json.dumps({"tokens": [packed(torch.full((1, 16), torch.nan))]}),
    "a line break": json.dumps({"tokens": [packed(name="<x\ny>")]}),
    "5,000 tokens": json.dumps({"tokens": [packed(name=f"<x{i}>") for i in range(5000)]}),
}
SETTINGS = {
    "deep": DEEP,
    "a list": "[]",
    "text": '{"unet.lora_alpha": "x"}',
    "alphas": '{"unet.lora_alpha": [1]}',
    "400 digits": '{"unet.lora_alpha": 1' + "0" * 400 + "}",
    "infinity": '{"unet.lora_alpha": 1e999}',
    "a pattern's list": '{"unet.alpha_pattern": [1, 2]}',
    "a pattern's text": '{"unet.alpha_pattern": "x"}',
    "a pattern's value": '{"unet.alpha_pattern": {"a": {}}}',
}


def lora(path, layer, metadata=None, rank=2, **more):
    name, rows, columns = layer
    tensors = {
        f"unet.{name}.lora_A.weight": torch.ones(rank, columns),
        f"unet.{name}.lora_B.weight": torch.ones(rows, rank),
    }
    save_file({**tensors, **{f"unet.{name}.{key}": t for key, t in more.items()}}, path, metadata)
    return path


@pytest.mark.parametrize("name", NOTES)
def test_notes_in_a_lora_are_one_sentence(text, layer, tmp_path, name):
    with refused():
        with_loras(text, [lora(tmp_path / "a.safetensors", layer, {tokens.NOTE: NOTES[name]})])


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_lora_are_one_sentence(text, layer, tmp_path, name):
    with refused():
        with_loras(text, [lora(tmp_path / "a.safetensors", layer, {"lora_adapter_metadata": SETTINGS[name]})])


@pytest.mark.parametrize("content", [DEEP, "[]", "[[1]]", "7", '{"lora_alpha": {}}', '{"alpha_pattern": 3}', "\0"])
def test_settings_beside_a_lora_are_one_sentence(text, layer, tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    path = lora(tmp_path / "adapter_model.safetensors", layer)
    with refused() if content != "[]" else within(2):
        with_loras(text, [path])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_a_lora_that_is_not_finite_is_refused_by_every_verb(text, layer, tmp_path, value):
    path = lora(tmp_path / "a.safetensors", layer, alpha=torch.tensor(1e300 * value, dtype=torch.float64))
    with refused():
        with_loras(text, [path])
    with refused():
        algebra.opened(text, [path])


@pytest.mark.parametrize(
    "shapes", [((0, 5), (4, 0)), ((2,), (4,)), ((2, 5, 1, 1, 1, 1, 1), (4, 2, 1, 1, 1, 1)), ((3, 5), (4, 2))]
)
def test_matrices_of_odd_shapes_are_refused(text, layer, tmp_path, shapes):
    down, up = (torch.zeros(shape) for shape in shapes)
    name = layer[0]
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, tmp_path / "a.safetensors")
    with refused():
        with_loras(text, [tmp_path / "a.safetensors"])


def test_a_thousand_patterns_and_layers_are_matched_in_linear_time():
    settings = {"alpha_pattern": {f"a{i}": 1.0 for i in range(200_000)} | {"to_q": 4.0, "x.to_q": 8.0}}
    with within(2):
        assert [reading._scaling(settings, f"b{i}.x.to_q", 8, None) for i in range(5000)] == [1.0] * 5000
        assert reading._scaling(settings, "y.to_q", 8, None) == 0.5 and reading._scaling({}, "y", 8, None) == 1


@pytest.mark.parametrize("many", ["up", "down"])
def test_a_small_tucker_file_takes_little_memory(many):
    """Whichever of the products is larger would have 9 * 10**9 numbers."""
    a, b, k = (10**6, 1, 3) if many == "up" else (1, 10**6, 3)
    rows, columns = (4, 1000) if many == "up" else (1000, 4)
    update = reading.Update(
        "net", "x", "weight", 1.0, torch.ones(rows, a, 1, 1), torch.ones(b, columns, 1, 1), torch.ones(a, b, k, k)
    )
    with within(20):
        assert float(update.rows(slice(None), torch.device("cpu"))[0, 0]) == 10**6
    small = reading.Update(
        "net", "x", "weight", 2.0, torch.randn(5, 3, 1, 1), torch.randn(2, 7, 1, 1), torch.randn(3, 2, 3, 3)
    )
    whole = torch.einsum("oa,abij,bc->ocij", small.up[..., 0, 0], small.mid, small.down[..., 0, 0]).flatten(1)
    assert torch.allclose(small.rows(slice(None), torch.device("cpu")), 2 * whole, atol=1e-5)


@pytest.mark.parametrize(
    "rows", [torch.zeros(0), torch.zeros(()), torch.zeros(5, 0), torch.zeros(1000, 16), torch.full((1, 16), torch.nan)]
)
def test_rows_of_a_word_are_bounded(text, tmp_path, rows):
    save_file({"<x>": rows}, tmp_path / "word.safetensors")
    with refused():
        with_loras(text, [tmp_path / "word.safetensors"])


def test_headers_that_lie_about_shapes_allocate_nothing(text, tmp_path):
    for shape in ([10**9, 10**9], [2**63, 2], [0, 10**18], [-1, 4]):
        header = json.dumps({"unet.x.lora_A.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with refused():
            with_loras(text, [tmp_path / "a.safetensors"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_not_waited_for(text, tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with refused(error=CheckpointError):
        with_loras(text, [tmp_path / "a.safetensors"])
    with refused(error=FastdiffusionError):
        checkpoints.load_tensors(tmp_path / "a.safetensors")


# ---- images that are lines --------------------------------------------------------------------------------------


def test_a_line_of_pixels_is_no_square_of_gigabytes():
    from fastdiffusion.tasks.text_image import clip

    line = Image.new("RGB", (1_000_000, 1), "red")
    with within(5):
        x = clip.as_input(clip.load(), line)
    assert x.shape[-1] == x.shape[-2] and bool(x.isfinite().all())


# ---- folders of other programs ----------------------------------------------------------------------------------

CONFIGS = {
    "unet": "unet/config.json", "vae": "vae/config.json", "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json", "tokenizer": "tokenizer/tokenizer_config.json",
}  # fmt: skip
WRONG: dict[str, tuple[str, object]] = {
    "deep": ("unet", DEEP),
    "a list": ("unet", "[]"),
    "60 MB": ("vae", '{"a": "' + "x" * 60_000_000 + '"}'),
    "10**9 layers": ("unet", {"layers_per_block": 10**9}),
    "16 million layers": ("unet", {"layers_per_block": 1 << 24}),
    "wide": ("unet", {"cross_attention_dim": 16_000_000}),
    "10**9 wide": ("unet", {"cross_attention_dim": 10**9}),
    "100,000 levels": ("unet", {"block_out_channels": [4] * 100_000}),
    "no class": ("unet", {"act_fn": "os.system"}),
    "4,000 levels": ("vae", {"block_out_channels": [4] * 4000}),
    "zero": ("vae", {"norm_num_groups": 0}),
    "null": ("text_encoder", {"hidden_size": None}),
    "text": ("text_encoder", {"num_hidden_layers": "x"}),
    "deep nets": ("text_encoder", {"num_hidden_layers": 16_000_000}),
    "words": ("text_encoder", {"vocab_size": 1 << 24}),
    "infinity": ("text_encoder", {"hidden_size": torch.inf}),
    "400 digits": ("unet", {"in_channels": 10**400}),
    "steps": ("scheduler", {"num_train_timesteps": 10**9}),
    "no steps": ("scheduler", {"num_train_timesteps": 0}),
    "steps as text": ("scheduler", {"num_train_timesteps": "x"}),
    "betas": ("scheduler", {"beta_end": -5}),
    "infinite betas": ("scheduler", {"beta_end": torch.inf}),
    "million betas": ("scheduler", {"trained_betas": [0.1] * 10**6}),
    "negative length": ("tokenizer", {"model_max_length": -1}),
    "endless": ("tokenizer", {"model_max_length": torch.inf}),
    "length as text": ("tokenizer", {"model_max_length": "x"}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint in diffusers' layout, and a ControlNet for it."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import tiny_conditioners
    import tiny_pipelines

    place, pipe = tmp_path_factory.mktemp("folders"), tiny_pipelines.build("sd15")
    pipe.save_pretrained(place / "sd15")
    tiny_conditioners.controlnet(pipe.unet).save_pretrained(place / "canny")
    fastdiffusion.load(place / "sd15", device="cpu")  # so that the imports count in no case
    return place


def changed(source, place, config, change):
    """A copy of a folder with other values in a configuration."""
    shutil.copytree(source, place)
    content = json.loads((place / config).read_text())
    if isinstance(change, str):  # what json.dumps would not write
        (place / config).write_text(change)
    else:
        (place / config).write_text(json.dumps({**content, **change}))
    return place


@pytest.mark.parametrize("name", WRONG)
def test_configurations_of_strangers_are_one_sentence_before_memory_is_taken(folders, tmp_path, name):
    part, change = WRONG[name]
    place = changed(folders / "sd15", tmp_path / "sd15", CONFIGS[part], change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused(10):
        fastdiffusion.load(place, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000, "kB"


@pytest.mark.parametrize("change", [
    DEEP, "[]", {"layers_per_block": 10**9}, {"block_out_channels": [4] * 4000}, {"cross_attention_dim": None},
    {"conditioning_embedding_out_channels": [10**6] * 50}, {"_class_name": ["ControlNetModel"]},
    {"conditioning_channels": "x"},
])  # fmt: skip
def test_networks_of_conditions_are_one_sentence(folders, tmp_path, change):
    from fastdiffusion.adapters.conditioners import Controlled, with_controls

    place = changed(folders / "canny", tmp_path / "canny", "config.json", change)
    model = fastdiffusion.load(folders / "sd15", device="cpu")
    with refused(10):
        with_controls(model, [Controlled(place, Image.new("RGB", (64, 64)))])


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"weight_map": {"a": "../../../etc/passwd"}}',
        '{"weight_map": [1]}',
        "7",
        '{"weight_map": {"a": "a\\u0000"}}',
        '{"weight_map": {"a": "x.bin"}}',
    ],
)
def test_an_index_of_strangers_names_no_other_place(folders, tmp_path, content):
    place = tmp_path / "sd15"
    shutil.copytree(folders / "sd15", place)
    (place / "unet/diffusion_pytorch_model.safetensors").unlink()
    (place / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with refused(10):
        fastdiffusion.load(place, device="cpu")


# ---- places -----------------------------------------------------------------------------------------------------


def test_a_name_that_is_no_text_is_left_out_of_the_settings(tmp_path):
    from fastdiffusion.io.config import read_config, write_config

    write_config(tmp_path / "run.toml", "train", {"folder": "a\udcff", "steps": 3, "data": "a\nb"})
    assert read_config(tmp_path / "run.toml", "train", ["steps", "data", "folder"]) == {"steps": "3", "data": "a\nb"}
    assert "# folder is left out" in (tmp_path / "run.toml").read_text()


def test_a_home_that_is_none_is_a_place_that_is_missing(folders, text):
    from fastdiffusion.adapters.conditioners import with_image_prompts

    with refused():
        with_loras(text, ["~nosuch/a.safetensors"])
    model, image = fastdiffusion.load(folders / "sd15", device="cpu"), Image.new("RGB", (64, 64))
    with refused():
        with_image_prompts(model, [(image, 1.0)], "~nosuch/a.safetensors")
    with refused():
        fastdiffusion.sample(model, "a cat", n=1, steps=1, control="~nosuch/canny:a.png")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
@pytest.mark.parametrize(
    "verb", [["restore", "--corruption", "noise 0.1"], ["stylize"], ["edit", "--source", "a red square"]]
)
def test_a_link_to_itself_is_a_file_that_cannot_be_read(desk, tmp_path, capsys, verb):
    link = tmp_path / "a.png"
    link.symlink_to(link)
    second = {"stylize": [str(desk.style)], "edit": ["a green square"]}.get(verb[0], [])
    assert main([verb[0], str(link), *second, *verb[1:], "-o", str(tmp_path / "b.png")]) == 2
    assert "a.png" in capsys.readouterr().err


NEW_VERBS = {
    "edit": ("edit", "PHOTO", "a green square", "--source", "a red square", "--model", "TEXT", "--steps", "2", "-o"),
    "explain": (
        "explain",
        "a red square",
        "--model",
        "TEXT",
        "--points",
        "0",
        "--maps",
        "attention",
        "--steps",
        "2",
        "-o",
    ),
    "personalize": (
        "personalize",
        "TEXT",
        "PHOTOS",
        "--token",
        "<x>",
        "--class-name",
        "red",
        "--steps",
        "2",
        "--prior",
        "2",
        "--batch-size",
        "2",
        "-o",
    ),
}


def ended(desk, verb, out, limit=None):
    """A verb in a process of its own, a fork: exit code and what it said; ``limit`` is the largest file in bytes."""
    places = {"PHOTO": str(desk.photo), "TEXT": str(desk.text), "PHOTOS": str(desk.photos)}
    words = [places.get(word, word) for word in NEW_VERBS[verb]]
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            code = main([*words, str(out)])
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stderr.flush()
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


@pytest.mark.parametrize("verb", NEW_VERBS)
def test_newer_verbs_end_with_a_sentence_where_they_cannot_write(desk, tmp_path, verb):
    """A full disk leaves what was there; a name with a line break, or in bytes that are no text, is a name like any."""
    end = ".png" if verb == "edit" else ""
    code, said = ended(desk, verb, tmp_path / f"full{end}", limit=100)
    assert code == 2 and "Traceback" not in said, said
    assert said.splitlines()[-1].startswith(("fastdiffusion: Cannot write", "fastdiffusion: Cannot keep")), said
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.suffixes or path.name.startswith(".full")]
    (tmp_path / "file").write_text("x")
    code, said = ended(desk, verb, tmp_path / "file" / f"a{end}")
    assert code == 2 and "Traceback" not in said, said
    for name in ("a\nb<script>", os.fsdecode(b"a\xff")):
        code, said = ended(desk, verb, tmp_path / f"{name}{end}")
        if verb == "personalize" and not name.isascii():  # safetensors opens no such name: that is said at the start
            assert code == 2 and "is no text in UTF-8" in said and not (tmp_path / name / "lora.safetensors").exists()
        else:
            assert code == 0 and (tmp_path / f"{name}{end}").exists(), said


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_a_place_whose_name_is_no_text_is_not_called_damaged(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff") / "a.safetensors"
    path.parent.mkdir()
    checkpoints.save_tensors(path, {"a": torch.zeros(1)}, {})
    with refused(error=UnavailableError):
        checkpoints.load_tensors(path)
    with refused(error=CheckpointError), Folder(path.parent).lock():
        pass
