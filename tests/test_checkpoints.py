"""Files that are cut, flipped, hostile, half written, written by two at once: never lost, never believed."""

import errno
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastdiffusion.errors import CheckpointError
from fastdiffusion.io import atomic, checkpoints
from fastdiffusion.io.atomic import write_bytes, write_json, write_text
from fastdiffusion.io.checkpoints import load_tensors, save_tensors, stored
from fastdiffusion.io.run_folder import Folder

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}
CONFIG = {"name": "thing", "sizes": [1, 2]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, CONFIG)
    return path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path):
    types = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    tensors = {str(t): torch.randn(3, 5).mul(9).to(t) for t in types}
    tensors |= {
        "none": torch.empty(0, 4),
        "one": torch.tensor(1.5),
        "odd": torch.randn(4, 6)[::2, ::3],
        "nan": torch.tensor([torch.nan]),
    }
    save_tensors(tmp_path / "x.safetensors", tensors, CONFIG)
    config, back = load_tensors(tmp_path / "x.safetensors")
    assert config == CONFIG
    assert torch.isnan(back.pop("nan")).all()
    assert same({k: v for k, v in tensors.items() if k != "nan"}, back)
    assert all(t.data_ptr() % 16 == 0 for t in back.values() if t.numel()), (
        "CPU kernels round differently off alignment"
    )


def test_eight_bits_a_number(tmp_path):
    """Every row keeps its own scale: the error is half a step of 127 in the row's largest number, whatever its size."""
    torch.manual_seed(0)
    weight = torch.randn(64, 8, 3, 3) * torch.logspace(-3, 3, 64).reshape(-1, 1, 1, 1)
    tensors = {"w": weight, "bias": torch.randn(64), "n": torch.arange(4), "zero": torch.zeros(64, 32)}
    path = tmp_path / "x.safetensors"
    save_tensors(path, stored(tensors, torch.int8), CONFIG)
    found = load_tensors(path)[1]
    assert found.keys() == tensors.keys() and path.stat().st_size < 10_000
    step = weight.flatten(1).abs().amax(1) / 127
    assert ((found["w"] - weight).flatten(1).abs().amax(1) <= 0.501 * step).all()
    assert torch.equal(found["n"], tensors["n"]) and torch.equal(found["zero"], tensors["zero"])
    assert torch.allclose(found["bias"].float(), tensors["bias"], atol=2e-3)
    assert same(stored(tensors, None), tensors)
    once = stored(found, torch.int8)  # written again it stays what it is
    save_tensors(path, once, CONFIG)
    assert torch.allclose(load_tensors(path)[1]["w"], found["w"], rtol=1e-6)


@pytest.mark.parametrize(
    "scale", [torch.ones(3), torch.ones(2, 2), torch.tensor(1.0), torch.ones(2, dtype=torch.int64)]
)
def test_scales_that_fit_no_tensor_are_our_own_error(tmp_path, scale):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w:scale": scale}, CONFIG)
    with pytest.raises(CheckpointError):
        load_tensors(path)
    save_tensors(path, {"w": torch.ones(2, 3, dtype=torch.int8), "w:scale": scale}, CONFIG)
    if scale.shape == (2,):
        assert load_tensors(path)[1]["w"].shape == (2, 3)
    else:
        with pytest.raises(CheckpointError):
            load_tensors(path)


def test_it_is_an_ordinary_safetensors_file_that_others_may_read(file):
    assert same(safetensors.torch.load_file(file), TENSORS)
    (file.parent / "plain").touch()
    assert file.stat().st_mode == (file.parent / "plain").stat().st_mode, "readable as any new file"


def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path):
    """A header of 640 bytes begins with 80 02, as a pickle does."""
    begins = set()
    for n in range(0, 2000, 8):
        save_tensors(tmp_path / "x.safetensors", TENSORS, {"pad": "x" * n})
        begins.add((tmp_path / "x.safetensors").read_bytes()[:2])
        assert same(load_tensors(tmp_path / "x.safetensors")[1], TENSORS)
    assert b"\x80\x02" in begins


# ---- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write", [lambda p: write_bytes(p, b"new"), lambda p: write_text(p, "néw"), lambda p: write_json(p, {"a": 1})]
)
def test_writing_replaces_and_makes_folders(tmp_path, write):
    path = tmp_path / "deep" / "er" / "file"
    write(path)
    write(path)
    assert names(path.parent) == ["file"]
    assert path.read_bytes()


@pytest.mark.parametrize("broken", ["write_bytes", "fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_no_other(file, monkeypatch, broken):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Path, broken) if broken == "write_bytes" else (os, broken)), full)
    with pytest.raises(CheckpointError, match="No space left on device") as error:
        save_tensors(file, {"a": torch.ones(9)}, {})
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert names(file.parent) == [file.name]
    assert same(load_tensors(file)[1], TENSORS)


def test_a_file_that_grows_past_the_limit_leaves_the_old_one(file):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(CheckpointError, match="Cannot write"):
            save_tensors(file, {"a": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert names(file.parent) == [file.name]
    assert same(load_tensors(file)[1], TENSORS)


def test_an_interrupt_while_writing_leaves_the_old_file(file):
    writing = atomic.replacing(file)
    writing.__enter__().write_bytes(b"half")
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None), "and the interrupt goes on"
    assert names(file.parent) == [file.name]
    assert same(load_tensors(file)[1], TENSORS)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Cannot write"):
        write_text(tmp_path / "file" / "inside", "text")
    with pytest.raises(CheckpointError, match="Is a directory"):
        write_text(tmp_path, "text")


# ---- damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found(file):
    """20 bits all over the file: anchors' 20 of 20."""
    data = file.read_bytes()
    for _ in range(20):
        bit = random.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_tensors(file)


def test_every_bit_of_the_tensors_counts(file):
    data = file.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for bit in range(8 * start, 8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="checksum"):
            load_tensors(file)


@pytest.mark.parametrize("share", [0, 0.01, 0.25, 0.5, 0.99])
def test_a_cut_file_is_an_error(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(file)


def test_a_thousand_mutated_headers_give_our_own_error_only(file):
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    tokens = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b"9" * 20,
        b"-1",
        b"null",
        b"F64",
        b"\x00",
        b"\xff",
        b"1e999",
        b"data_offsets",
    ]
    chance = random.Random(0)
    for _ in range(1000):
        mutant = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(end)
            match chance.randrange(4):
                case 0:
                    mutant[at] = chance.randrange(256)
                case 1:
                    del mutant[at : at + chance.randint(1, 9)]
                case 2:
                    mutant[at:at] = chance.choice(tokens)
                case 3:  # a token in place, and the length made right again: the JSON itself is read
                    token = chance.choice(tokens)
                    mutant[at : at + len(token)] = token
                    mutant[:8] = struct.pack("<Q", end - 8)
        file.write_bytes(mutant)
        try:
            config, tensors = load_tensors(file)
        except CheckpointError:
            continue
        assert (config, same(tensors, TENSORS)) == (CONFIG, True), "the change was in what nobody reads"


def header(file, value, body=b""):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def meta(**changes):
    return {"__metadata__": {"format": "fastdiffusion", "version": "1", "config": "{}", "sha256": "0" * 64, **changes}}


@pytest.mark.parametrize(
    "value",
    [
        {**meta(), "a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {**meta(), "a": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}},
        {**meta(), "a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {**meta(), "a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}},
        {**meta(), "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        meta(config="[" * 100_000),
        meta(config="9" * 100_000),
        meta(config='{"a":' * 50_000),
        meta(config="[1]"),
        meta(config="null"),
        meta(config='{"a": NaN}'),
        meta(config="{"),
        meta(version=""),
        meta(version="one"),
        meta(version="١"),
        meta(version="9" * 100),
        meta(format="pt"),
        {"__metadata__": {"format": "fastdiffusion", "version": "1"}},
        {},
        b"",
        b"[]",
        b"{" * 1000,
        b'{"__metadata__": 3}',
    ],
)
def test_hostile_headers(file, value):
    header(file, value, b"\0" * 4)
    with pytest.raises(CheckpointError):
        load_tensors(file)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_lying_header_lengths_allocate_nothing(file, length):
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(CheckpointError):
        load_tensors(file)


def test_a_future_version_is_refused_with_advice(file):
    header(file, meta(version="2"))
    with pytest.raises(
        CheckpointError, match=r"format 2, .* reads up to 1\. Upgrade with: pip install --upgrade fastdiffusion"
    ):
        load_tensors(file)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="name too long"):
        load_tensors(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError):
        load_tensors("nul\0.safetensors")


# ---- pickles ----------------------------------------------------------------------------------------------------


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.bin", "x.pkl", "x.pth", "x.safetensors", "x"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "raw0", "raw2", "raw4", "trap"])
def test_pickles_are_never_opened(tmp_path, name, kind):
    path, trap = tmp_path / name, tmp_path / "trapped"
    if kind in ("zip", "legacy"):
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "trap":
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        path.write_bytes(pickle.dumps({"a": 1}, protocol=int(kind[-1])))
    with pytest.raises(CheckpointError) as error:
        load_tensors(path)
    assert ("unsafe=True" in str(error.value)) or kind == "raw0"
    if kind in ("zip", "legacy"):
        assert same(load_tensors(path, unsafe=True)[1], TENSORS)
    else:
        with pytest.raises(CheckpointError):
            load_tensors(path, unsafe=True)
    assert not trap.exists(), "even unsafe=True runs no code"


def test_unsafe_reads_nested_state_and_refuses_a_bomb(tmp_path):
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "x.ckpt")
    assert same(load_tensors(tmp_path / "x.ckpt", unsafe=True)[1], TENSORS)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="more than its own size"):
        load_tensors(tmp_path / "bomb.pt", unsafe=True)


# ---- a run's folder ---------------------------------------------------------------------------------------------


def state(step):
    return {"w": torch.full((100,), float(step))}


def filled(path, steps=(1, 2), **options):
    folder = Folder(path, **options)
    for step in steps:
        folder.save(step, state(step), {"seed": step})
    return folder


def test_a_new_folder_is_empty_and_the_newest_comes_back(tmp_path):
    assert Folder(tmp_path / "run").latest() is None
    step, config, tensors = filled(tmp_path / "run", (5, 12)).latest()
    assert (step, config) == (12, {"seed": 12})
    assert same(tensors, state(12))


def test_two_are_kept_and_the_best(tmp_path):
    folder = Folder(tmp_path)
    for step in range(1, 7):
        folder.save(step, state(step), {}, best=step == 2)
    assert names(tmp_path) == ["best.safetensors", "step-000000005.safetensors", "step-000000006.safetensors"]
    assert folder.best()[0] == 2
    assert len(filled(tmp_path / "three", range(5), keep=3).checkpoints()) == 3
    assert Folder(tmp_path / "none").best() is None


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("steps", [(1, 2), (3, 500), (9, 10)])
def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path, share, steps):
    """Anchors' 12 of 12."""
    folder = filled(tmp_path, steps)
    newest = folder.checkpoints()[0]
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    with pytest.warns(UserWarning, match="damaged"):
        step, _, tensors = folder.latest()
    assert step == steps[0]
    assert same(tensors, state(step))


def test_what_lay_ahead_of_a_fall_back_does_not_push_out_good_ones(tmp_path):
    folder = filled(tmp_path, (100, 200))
    (tmp_path / "step-000000200.safetensors").write_bytes(b"")
    folder.save(150, state(150), {})
    assert [p.name for p in folder.checkpoints()] == ["step-000000150.safetensors", "step-000000100.safetensors"]


def test_a_run_whose_checkpoints_are_all_lost_is_not_begun_anew_silently(tmp_path):
    folder = filled(tmp_path)
    for path in folder.checkpoints():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="--fresh"):
        folder.latest()
    folder.clear()
    assert folder.latest() is None


def test_a_folder_held_by_this_process_is_refused_and_freed(tmp_path):
    with Folder(tmp_path).lock():
        (tmp_path / ".stray.part").write_bytes(b"of a killed save")
        with pytest.raises(
            CheckpointError, match=rf"Another run is using .* \(pid {os.getpid()}\)\. Wait for it or .*--out"
        ):
            Folder(tmp_path).lock().__enter__()
    with Folder(tmp_path).lock():
        assert names(tmp_path) == [".lock"], "leftovers are cleared under the lock"


def test_a_place_that_cannot_be_a_run_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Choose another with --out"):
        Folder(tmp_path / "file").lock().__enter__()


SAVER = """
import os, sys, torch
from fastdiffusion.io.run_folder import Folder
torch.set_num_threads(1)
def main(path):
    with Folder(path).lock() as folder:
        found = folder.latest()
        step = found[0] if found else 0
        if found:
            assert all(bool((t == step).all()) for t in found[2].values())
        os.write(1, b"+")
        while True:
            step += 1
            folder.save(step, {"w": torch.full((50_000,), float(step)), "v": torch.full((9,), float(step))}, {})
            folder.append({"step": step})
"""

KILLER = """
import random, time, signal
random.seed(0)
begun = time.perf_counter()
Folder(sys.argv[1]).save(0, {"w": torch.zeros(50_000)}, {})
save = time.perf_counter() - begun
best = 0
for trial in range(50):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(tell, 1)
        try:
            main(sys.argv[1])
        finally:
            os._exit(1)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    time.sleep(random.uniform(0, 4) * save)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the child failed by itself"
    found = Folder(sys.argv[1]).latest()
    step = found[0] if found else 0
    assert step >= best and (not found or bool((found[2]["w"] == step).all())), (trial, best, step)
    best = step
with Folder(sys.argv[1]).lock() as folder:
    assert not [p for p in os.listdir(sys.argv[1]) if p.endswith(".part")]
print(best)
"""


def python(code, *args, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", code, *map(str, args)], env=env, text=True, **options
    )


@pytest.mark.slow
def test_fifty_kills_while_saving_lose_nothing(tmp_path):
    """kill -9 at random moments of a loop that does nothing but save: never a damaged newest, never a step back."""
    process = python(SAVER + KILLER, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert int(out) > 0, "it saved between the kills"
    steps = [record["step"] for record in Folder(tmp_path).metrics()]
    assert steps == sorted(set(steps))


def test_the_lock_of_another_process_holds_until_it_is_killed(tmp_path):
    holder = python(SAVER + "main(sys.argv[1])", tmp_path, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.read(1) == "+"
        with pytest.raises(CheckpointError, match=rf"\(pid {holder.pid}\)"):
            Folder(tmp_path).lock().__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with Folder(tmp_path).lock():
        assert not list(tmp_path.glob("*.part"))


def test_metrics_survive_a_cut_line_and_a_resumed_run(tmp_path):
    folder = Folder(tmp_path)
    assert folder.metrics() == []
    for step in (1, 2, 3):
        folder.append({"step": step, "loss": 1 / step})
    folder.append({"step": 3, "validation": 9.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    folder.append({"step": 2, "loss": 5.0})
    folder.append({"step": 3, "loss": 4.0})
    assert folder.metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 5.0}, {"step": 3, "loss": 4.0}]


def test_metrics_that_cannot_be_written(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="Cannot write"):
        Folder(tmp_path).append({"step": 1})
