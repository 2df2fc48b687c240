"""What untrusted files, broken disks and closed streams may do: one sentence of ours, soon, and nothing is lost."""

import errno
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from fastdiffusion import cli, corruptions, denoisers, models, nets, prompts, sample
from fastdiffusion.cli import doctor
from fastdiffusion.data import folders
from fastdiffusion.errors import CheckpointError, DataError, FastdiffusionError, InputError, UnavailableError
from fastdiffusion.io import checkpoints, images, metadata
from fastdiffusion.io.checkpoints import load_tensors, save_tensors
from fastdiffusion.io.guarded import BUDGET
from fastdiffusion.io.images import read_image, save_png
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.models import registry
from fastdiffusion.nets.clip import Clip
from fastdiffusion.nets.tokenizer import BYTES, Tokenizer, train
from fastdiffusion.samplers import Table
from fastdiffusion.tasks.classification import train as classification
from fastdiffusion.tasks.evaluation.options import EvaluateOptions
from fastdiffusion.tasks.generation.recipe import reproduce, reproduce_file
from fastdiffusion.tasks.restoration.result import RestorationResult
from fastdiffusion.tasks.restoration.watermarks import WatermarkResult
from fastdiffusion.tasks.text_image import clip as clips
from fastdiffusion.training import distributed, optimizers
from fastdiffusion.training.distributed import rank_and_world


@contextmanager
def within(seconds):
    """The block must end by then."""

    def late(number, frame):
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def refused(seconds=2.0, error=FastdiffusionError):
    with within(seconds), pytest.raises(error) as caught:
        yield
    assert len(str(caught.value)) < 2000


# ---- budgets ------------------------------------------------------------------------------------------------------


def test_merges_that_double_are_refused():
    doubling = [(98, 98), *((BYTES + i, BYTES + i) for i in range(1, 24))]  # the last would stand for 16 MB
    with refused(error=InputError):
        Tokenizer(doubling)


def test_no_token_outgrows_the_budget():
    made = train(["a" * 20_000] * 2, size=BYTES + 40)
    assert BUDGET.token >= max(map(len, made.token_bytes)) > BUDGET.token // 4


def test_a_long_word_is_encoded_as_before_and_soon():
    def slowly(tokenizer, chunk):
        tokens = [byte + 1 for byte in chunk.encode()]
        while len(tokens) > 1:
            rank, i = min((tokenizer.rank.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(tokens)))
            if rank == 1 << 30:
                break
            tokens[i : i + 2] = [BYTES + 1 + rank]
        return tokens

    random.seed(0)
    texts = ["".join(random.choices("abcü", k=random.randrange(1, 30))) for _ in range(300)]
    tokenizer = train(texts, size=BYTES + 200)
    assert all(tokenizer.encode(text) == slowly(tokenizer, text) for text in (*texts, "a" * 99, "abca" * 25))
    with within(5):
        tokenizer.encode("abc" * 30_000)


BRACKETS = {"corruption": lambda text: corruptions.parse(text), "prompt": lambda text: prompts.choose(text, 0)}


@pytest.mark.parametrize("parse", BRACKETS.values(), ids=BRACKETS)
@pytest.mark.parametrize("text", ["(" * 600 + "blur" + ")" * 600, "(" * 1_000_000, "blur, " * 170_000, "{a|" * 300_000])
def test_long_and_deep_texts_are_refused_at_once(parse, text):
    if parse is BRACKETS["prompt"] and len(text) < 10_000:
        with within(2):
            parse(text)  # its brackets are counted later
    else:
        with refused(error=InputError):
            parse(text)


def test_another_programs_metadata_is_read_in_linear_time():
    with within(1):
        for text in ("Steps: 1, " + "a" * 100_000, "Steps: 1, " + 'a: "' * 20_000, "Steps:" + " " * 100_000):
            metadata.automatic1111(text)
    known = metadata.automatic1111('a\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Note: "b, c: d", Seed: 1')
    assert (known["steps"], known["sampler"], known["cfg_scale"], known["seed"]) == (20, "Euler a", 7.5, 1)
    assert known["note"] == '"b, c: d"'
    known = metadata.automatic1111("a\nSteps: 20, Seed: " + "9" * 5000)  # Python refuses to make a number of it
    assert known["steps"] == 20 and known["seed"] == "9" * 5000


def test_a_graph_of_many_links_is_read_in_linear_time():
    links = {f"x{i}": ["2", 0] for i in range(300_000)}
    graph = {"1": {"inputs": {"steps": 1, "seed": 1, "positive": ["2", 0]}}, "2": {"inputs": links}}
    with within(3):
        assert metadata.comfyui(graph)["steps"] == 1


ROW = {"sigma": 1.0, "ratio": 0.0, "weights": [], "noise": []}
TABLES = {
    "a million rows": {"rows": [ROW] * 1_000_000},
    "a history of all": {"rows": [ROW | {"weights": [0.0] * i} for i in range(100)]},
    "1e308": {"rows": [ROW | {"ratio": 1e308}]},
    "1e999": {"rows": [ROW | {"ratio": json.loads("1e999")}]},
    "10**400": {"rows": [ROW | {"ratio": 10**400}]},
    "NaN": {"rows": [ROW | {"ratio": float("nan")}]},
    "noise to 0": {"rows": [ROW | {"noise": [[1.0, 0.5, 0.0]]}]},
    "noise below 0": {"rows": [ROW | {"noise": [[1.0, -0.5, 0.1]]}]},
    "noise from where it was": {"rows": [ROW | {"noise": [[1.0, 1.0, 0.5], [1.0, 0.7, 0.2]]}]},
    "noise of 1e-200": {"rows": [ROW | {"noise": [[1.0, 1.0, 1e-200]]}]},
    "no rows at all": {"rows": 3},
    "rows of text": {"rows": ["abc"]},
    "info of text": {"rows": [ROW], "info": "abc"},
    "sigmas of text": {"rows": [ROW], "sigmas": "abc"},
    "huge sigmas": {"rows": [ROW], "sigmas": [10**400, 0]},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_hostile_tables_are_refused(table):
    with refused(error=InputError):
        Table.from_json({"name": "x", "sigmas": [1.0, 0.0]} | table)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    spec = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}
    net = nets.build({**spec, "in_channels": 1, "out_channels": 1, "classes": 2})
    return models.Model(denoisers.Denoiser(net), (1, 8, 8), ("cat", "dog"))


def changed(model, tmp_path, **changes):
    """A file of the model with other settings."""
    path = tmp_path / "m.safetensors"
    models.save(model, path)
    config, tensors = load_tensors(path)
    save_tensors(path, tensors, config | changes)
    return path


SETTINGS = {
    "20,000 tables": {"tables": {str(i + 1): {"name": "x", "sigmas": [1, 0], "rows": [ROW]} for i in range(20_000)}},
    "a class name of a megabyte": {"classes": ["a" * 1_000_000, "b"]},
    "scale of text": {"info": {"scale": "abc"}},
    "scale of a list": {"info": {"scale": [1]}},
    "scale NaN": {"info": {"scale": float("nan")}},
    "scale 1e308": {"info": {"scale": 1e308}},
    "scale 10**400": {"info": {"scale": 10**400}},
    "info of text": {"info": "abc"},
    "info of numbers": {"info": 3},
    "sigma_min 1e999": {"sigma_min": json.loads("1e999")},
    "sigma_max 10**400": {"sigma_max": 10**400},
    "sigma_max 1e308": {"sigma_max": 1e308},
    "sigma_min 1e-320": {"sigma_min": 1e-320},
    "sigma_data NaN": {"sigma_data": float("nan")},
    "sigma_data 1e308": {"sigma_data": 1e308},
    "sigma_data of text": {"sigma_data": "0.5"},
    "self_condition of text": {"self_condition": "yes"},
    "self_condition 2": {"self_condition": 2},
    "tables of numbers": {"tables": 3},
    "classes of a number": {"classes": 3},
    "shape of text": {"shape": "abc"},
    "corruption of a number": {"corruption": 3},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_hostile_settings_of_a_model_are_refused(model, tmp_path, changes):
    with refused(error=CheckpointError):
        models.load(changed(model, tmp_path, **changes))


RECIPES = {
    "n": {"n": 10**9},
    "a batch": {"n": 100_000, "batch_size": 100_000, "size": 512},
    "steps": {"steps": 10**9},
    "size": {"size": "999999x999999"},
    "guides in guides": {"guidance": " >> ".join(["cfg scale=2"] * 1000)},
    "twelve doublings": {"guidance": " >> ".join(["cfg scale=2"] * 12), "scale": 1},
    "a guidance of a megabyte": {"guidance": "cfg " + "a" * 1_000_000},
    "scale 1e999": {"scale": json.loads("1e999")},
    "scale of text": {"scale": "3"},
    "scale 1e308": {"scale": 1e308},
    "scale 10**400": {"scale": 10**400},
    "seed 1e999": {"seed": json.loads("1e999")},
    "strength NaN": {"strength": float("nan")},
    "strength of text": {"strength": "abc"},
    "variation_strength of text": {"variation_strength": "abc"},
    "classes of numbers": {"classes": 10**400},
    "classes 1e999": {"classes": [json.loads("1e999")]},
    "device meta": {"device": "meta"},
    "device of a number": {"device": 3},
    "sampler of a list": {"sampler": []},
    "size of a list": {"size": [[1], 2]},
    "size 1e999": {"size": json.loads("1e999")},
    "guidance of numbers": {"guidance": [3]},
    "image of a number": {"image": 3},
    "image of no user": {"image": "~nosuch/a.png"},
    "negative of a number": {"negative_prompt": 3},
}


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_hostile_recipes_are_refused(model, tmp_path, changes):
    made = sample(model, n=1, steps=1)
    recipe = made.recipe_of(0)
    save_png(made.images[0], tmp_path / "x.png", {**recipe, "parameters": {**recipe["parameters"], **changes}})
    with refused():
        reproduce(tmp_path / "x.png", model)


@pytest.mark.parametrize("grid", [{"zoom": 64}, {"columns": 10**400}, {"columns": 1.5}, {"zoom": "a"}, {"gap": 9}, 3])
def test_hostile_grids_are_refused(model, tmp_path, grid):
    made = sample(model, n=1, steps=1)
    parameters = made.recipe["parameters"] | {"n": 400, "batch_size": 400, "size": 32}
    save_png(made.images[0], tmp_path / "x.png", {**made.recipe, "parameters": parameters, "grid": grid})
    with refused():
        reproduce_file(tmp_path / "x.png", tmp_path / "y.png", model)


NETS = {
    "deep": {"blocks": [10**9]},
    "wide": {"width": 10**9},
    "no width": {"width": 0},
    "less than none": {"width": -8},
    "half": {"width": 7.5},
    "NaN": {"width": float("nan")},
    "a text": {"width": "8"},
    "many levels": {"multiples": [1] * 10_000, "blocks": [1] * 10_000},
    "no head": {"head": 0},
    "1e999": {"dropout": json.loads("1e999")},
}


@pytest.mark.parametrize("changes", NETS.values(), ids=NETS)
@pytest.mark.parametrize("kind", ["classifier", "clip"])
def test_hostile_classifiers_and_encoders_are_refused(tmp_path, kind, changes):
    net = {"in_channels": 1, "width": 8, "multiples": [1], "blocks": [1], "attention": [0], "head": 8}
    if kind == "clip":
        text = {"vocabulary": 300, "width": 8, "depth": 1, "head": 8, "length": 4}
        made, save, load = Clip({"net": net}, text, 8), clips.save, clips.load
    else:
        made, save, load = classification.Classifier(net, 2), classification.save, classification.load
    path = tmp_path / "x.safetensors"
    save(made, path)
    load(path)
    config, tensors = load_tensors(path)
    (config["image"] if kind == "clip" else config)["net"].update(changes)
    save_tensors(path, tensors, config)
    with refused(error=CheckpointError):
        load(path)


# ---- checkpoints that cannot be read this time --------------------------------------------------------------------


PASSING = {
    "no memory": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "no memory in Python": MemoryError(),
    "no memory in torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    "a failing disk": OSError(errno.EIO, "Input/output error"),
    "no permission": PermissionError(errno.EACCES, "Permission denied"),
    "no handles": OSError(errno.EMFILE, "Too many open files"),
    "within the reader": RuntimeError("Error while deserializing: I/O error: Input/output error (os error 5)"),
}


def saved_run(folder):
    run = Folder(folder)
    for step in (1, 2):
        run.save(step, {"a": torch.full((4,), float(step))}, {})
    return run


CASES = [(place, name) for name, e in PASSING.items() for place in ("opened", "read")[not isinstance(e, OSError) :]]


@pytest.mark.parametrize(("place", "name"), CASES)
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, place, name):
    run, before = saved_run(tmp_path), sorted(p.name for p in tmp_path.iterdir())

    def failing(*args, **kwargs):
        raise PASSING[name]

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "open") if place == "opened" else (checkpoints, "safe_open")), failing)
        with pytest.raises(UnavailableError) as caught:
            run.latest()
    assert "--fresh" not in str(caught.value) and "same command again" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert run.latest()[0] == 2


def test_a_checkpoint_of_the_future_is_not_deleted(tmp_path):
    run = saved_run(tmp_path)
    path = tmp_path / "step-000000002.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {"a": file.get_tensor("a")}
    safetensors.torch.save_file(tensors, path, metadata | {"version": "9"})
    with pytest.raises(UnavailableError, match="pip install --upgrade"):
        run.latest()


def test_short_of_memory_is_told_from_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(1 << 25)}, {})  # 128 MB
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (140 << 20), size + (140 << 20)))  # for the map, not the copy
        try:
            load_tensors(path)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert said.startswith("UnavailableError") and "not enough memory" in said, said


# ---- streams and processes ----------------------------------------------------------------------------------------

PROGRAM = [sys.executable, "-m", "fastdiffusion"]
SOURCE = str(Path(__file__).parent.parent / "src")
HOME = {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
TRAIN = "train digits --net unet-tiny --size 8 --batch-size 4 --steps 2 --device cpu"


def shell(command, folder, timeout=100, **environment):
    line = command.replace("fastdiffusion", " ".join(PROGRAM), 1)
    environment = {**os.environ, **HOME, **environment}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=environment, timeout=timeout
    )


def test_training_does_not_need_its_streams(tmp_path):
    streams = {"closed": ">&- 2>&- <&-", "full": ">/dev/full 2>/dev/full"}
    with ThreadPoolExecutor() as pool:
        runs = {name: f"fastdiffusion {TRAIN} --folder {name} {end}" for name, end in streams.items()}
        codes = [done.returncode for done in pool.map(lambda run: shell(run, tmp_path), runs.values())]
    assert codes == [0, 2]  # the second could not print what to do next
    assert all(Folder(tmp_path / name).latest()[0] == 2 for name in streams)
    assert all((tmp_path / name / "model.safetensors").exists() for name in streams)


def test_lost_output_is_an_error(tmp_path):
    done = shell("fastdiffusion list-samplers >/dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "fastdiffusion: Cannot write the output: No space left on device.\n"


@pytest.mark.parametrize(("rank", "world"), [("x", "2"), ("-1", "2"), ("2", "2"), ("0", "")])
def test_a_rank_that_is_none_is_one_sentence(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(InputError, match="no process of a group"):
        rank_and_world()


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), OSError(12, "")])
def test_out_of_memory_is_one_sentence(monkeypatch, capsys, error):
    def app(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli, "app", app)
    assert cli.main(["sample"]) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_a_fault_of_our_own_is_not_hidden(monkeypatch):
    def app(*args, **kwargs):
        raise RuntimeError("shapes")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(RuntimeError):
        cli.main(["sample"])


def test_doctor_tries_what_is_installed(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(doctor, "import_module", broken)
    assert "accelerate" in doctor._works("accelerate") and "BROKEN (undefined symbol: x)" in doctor._works("accelerate")


def test_doctor_tries_the_extras_in_a_process_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "torn.py").write_text("raise ImportError('undefined symbol: y')")
    (tmp_path / "deadly.py").write_text("import os; os._exit(9)")
    (tmp_path / "fine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor._broken(["torn", "deadly", "fine"])
    assert found == {"torn": "undefined symbol: y", "deadly": "importing it ends Python, exit code 9"}
    assert doctor._stated("torch", found["torn"]).endswith("BROKEN (undefined symbol: y), reinstall it")


CUTTING = """
import numpy, sys
from fastdiffusion.cli import explain_bus_errors
explain_bus_errors()
mapped = numpy.memmap(sys.argv[1], numpy.uint8, "r")
open(sys.argv[1], "w").close()  # another program makes it shorter
print(int(mapped.sum()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let a mapped file be cut")
def test_a_mapped_file_that_is_cut_is_a_sentence(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(1 << 20))
    out = subprocess.run([sys.executable, "-c", CUTTING, str(tmp_path / "a.bin")], capture_output=True, text=True)
    assert out.returncode == 2 and "became shorter" in out.stderr and not out.stdout


def test_notices_in_a_file_change_nothing_else(model, tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(model, path)
    before, whole = models.load(path).id, load_tensors(path)
    for license in ("MIT", "CC0-1.0", "é" * 3):
        checkpoints.label(path, license=license, attribution="nobody")
        assert checkpoints.notices(path) == {"license": license, "attribution": "nobody"}
        config, tensors = load_tensors(path)  # checks the sum
        assert config == whole[0] and all(torch.equal(t, whole[1][name]) for name, t in tensors.items())
        assert models.load(path).id == before
    checkpoints.annotate(path, lambda config: config | {"tables": {}})
    assert checkpoints.notices(path)["license"] == "é" * 3
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)


def test_every_file_of_weights_states_its_license():
    weights = Path(models.__file__).parents[1] / "weights"
    table = (weights / "README.md").read_text("utf-8")
    for path in weights.glob("*.safetensors"):
        found = checkpoints.notices(path)
        assert found.get("license") and found.get("attribution"), f"{path.name}: run scripts/label-weights"
        assert f"| {path.name} |" in table


def test_processes_that_cannot_reach_each_other_are_refused(monkeypatch):
    class Socket(socket.socket):
        def connect(self, address):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(InputError, match="Leave out --procs"):
        distributed._free_port()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_child_ends_with_its_parent(tmp_path):
    child = "from fastdiffusion.training.distributed import end_with_parent as end\n"
    child += "end()\nprint(1, flush=True)\nimport time\ntime.sleep(99)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env={**os.environ, **HOME})
    assert process.stdout.readline() == b"1\n"
    process.kill()
    with within(10):
        assert process.stdout.read() == b""  # its last holder has gone


# ---- values, names and places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30, -1e30, -1.0])
def test_numbers_that_are_no_brightness_are_refused_with_the_reason(tmp_path, value):
    values = np.full((32, 32), 0.5, np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match="no brightness"):
        read_image(tmp_path / "x.tiff")
    with pytest.raises(DataError, match="no brightness"):
        folders.ImageFolder(tmp_path, 16)  # and the list of what was skipped says why


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_numbers_of_a_known_range_are_read(tmp_path, top):
    Image.fromarray(np.linspace(0, top, 1024, dtype=np.float32).reshape(32, 32)).save(tmp_path / "x.tiff")
    gray = np.asarray(read_image(tmp_path / "x.tiff"))
    assert (gray.min(), gray.max()) == (0, 255)


@pytest.mark.parametrize("comment", [3, 1.5, (1, 2), "text", b"text", b"fastdiffusion:[1"])
def test_comments_of_any_type_are_no_recipe(tmp_path, comment):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png")
    image.getexif = lambda: exif
    assert set(images._exif_texts(image)) <= {"fastdiffusion"}


def test_folders_in_folders_are_read_to_a_depth(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a" / "x.png")
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(here)
        data = folders.ImageFolder(tmp_path, 16)
        assert len(data) == 1 and "folders deep" in str(data.report)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # too deep for what cleans up after us


def test_a_line_break_in_a_name_does_not_break_the_sheet(model, tmp_path):
    named = replace(model, classes=("cat\nand\ndog", "x" * 1_000_000))
    with within(20):
        sample(named, n=2, steps=1).save_grid(tmp_path / "sheet.png", labels=True)
    assert read_image(tmp_path / "sheet.png").height > 0


def test_numbers_of_a_person_are_checked_too(model):
    with pytest.raises(InputError, match="rounds"):
        EvaluateOptions(rounds=-1)
    with pytest.raises(InputError, match="at most 100"):
        optimizers.build("adamw", torch.nn.Linear(1, 1), 1e300)
    with pytest.raises(DataError, match="no file"):
        registry.named("~nosuch/a.png")


def test_a_home_folder_does_not_name_its_user(tmp_path, monkeypatch):
    home = tmp_path / "jane"
    home.mkdir()
    Image.new("RGB", (32, 32), "red").save(home / "x.png")
    assert folders.ImageFolder(home, 16).name == "jane"
    monkeypatch.setenv("HOME", str(home))
    assert folders.ImageFolder(home, 16).name == "images"


def test_every_result_carries_its_recipe(tmp_path):
    home = tmp_path / "jane"
    home.mkdir()
    marked = [np.random.default_rng(i).integers(0, 255, (48, 48, 3), np.uint8) for i in range(3)]
    for i, pixels in enumerate(marked):
        pixels[8:16, 8:40] = 200
        Image.fromarray(pixels).save(home / f"{i}.png")
    Image.new("RGB", (48, 48), "red").save(home / "style.png")
    commands = {
        "stylized.png": ["stylize", f"{home}/0.png", f"{home}/style.png", "--steps", "1", "--size", "32"],
        "plain.png": ["stylize", f"{home}/0.png", f"{home}/style.png", "--steps", "1", "--size", "32", "--no-metadata"],
    }
    for out, command in commands.items():
        assert cli.main([*command, "--out", str(tmp_path / out)]) == 0
    done = WatermarkResult(torch.zeros(1, 3, 32, 32), ("a",), torch.zeros(32, 32), torch.zeros(3, 32, 32))
    done.save(tmp_path / "clean", metadata.recipe("remove-watermark", {"opacity": 1}, home / "0.png"))
    for path in (tmp_path / "stylized.png", *(tmp_path / "clean").iterdir()):
        recipe = images.read_recipe(path)
        assert recipe["inputs"][0] == "0.png" and "jane" not in json.dumps(recipe)
    assert images.inner_recipe(tmp_path / "plain.png") is None


def test_comparisons_carry_the_recipe():
    shown = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    result = RestorationResult(shown, shown[0], "gray", "zero-shot", None, torch.zeros(16, 16), (), {"verb": "restore"})
    with TemporaryDirectory() as folder:
        paths = result.save(Path(folder) / "x.png", compare=True)
        assert [images.read_recipe(path)["verb"] for path in paths] == ["restore"] * 2
        paths = result.save(Path(folder) / "x.png", compare=True, metadata=False)
        assert [images.inner_recipe(path) for path in paths] == [None] * 2
