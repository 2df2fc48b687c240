"""``doctor MODEL``: what holds on somebody's own weights, and the settings that it measures and writes down."""

import json
import shutil
import sys

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from loaded_families import get

import fastdiffusion
from fastdiffusion.adapters import tuning
from fastdiffusion.adapters.examine import difference
from fastdiffusion.cli import doctor, main
from fastdiffusion.errors import CheckpointError, InputError
from fastdiffusion.guidance.attention import attention_layers
from fastdiffusion.models import tuned

LINES = {"model", "pipeline", "guidance", "attention", "prompts", "speed", "memory", "settings"}


@pytest.mark.parametrize("name", ["sd3", "schnell", "z_image"])
def test_any_family_is_compared_with_its_pipeline(name, monkeypatch):
    one = get(name)
    monkeypatch.setattr(sys.modules[difference.__module__], "SMALL", 64)
    found = doctor.findings(str(one.path))
    layers = len(attention_layers(one.model.modules["net"]))
    assert found.keys() >= LINES and sum(line.endswith(": equal") for line in found.values()) == 2
    assert f"{layers} of {layers} layers" in found["attention"] and "BREAK work" in found["prompts"]
    assert "GB are free" in found["memory"] and "fitted tables: none: fastdiffusion fit" in found["settings"]


@pytest.fixture
def sd15(tmp_path):
    shutil.copytree(get("sd15").path, tmp_path / "sd15")
    return tmp_path / "sd15"


def clock(monkeypatch, seconds):
    """Evaluations take as long as said: by threads, precision and rows."""

    def timed(model, rows):
        net = next(model.modules["net"].parameters())
        moved = seconds.get("moves", 1e-3) if net.dtype != torch.float32 else 0.0
        taken = seconds.get(str(net.dtype), 1.0) * seconds.get(torch.get_num_threads(), 1.0) * seconds[f"rows {rows}"]
        return taken, torch.ones(1, 1, 1, 1) + moved

    monkeypatch.setattr(tuning, "timed", timed)
    monkeypatch.setattr(tuning.engines, "available", tuple)  # importing OpenVINO here would crash later forks
    monkeypatch.setattr(tuning.os, "cpu_count", lambda: 2)


ROWS = {"rows 1": 1.0, "rows 2": 1.2, "rows 4": 2.3, "rows 8": 4.4}


def test_what_is_measured_is_written_down_and_taken(sd15, monkeypatch, capsys):
    before = torch.get_num_threads()
    clock(monkeypatch, {"torch.bfloat16": 0.5, 2: 0.6, **ROWS})
    try:
        assert main(["doctor", str(sd15), "--tune", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["tuned threads"].startswith("2:") and found["tuned precision"].startswith("bf16: 0.3 s for 0.6 s")
        assert found["tuned batch_size"].startswith("2: 0.18 s") and found["written to"].endswith("sd15.settings.json")
        with pytest.warns(UserWarning, match="--precision bf16.* doctor --tune chose"):
            model = fastdiffusion.load(sd15, device="cpu")
        assert next(model.modules["net"].parameters()).dtype == torch.bfloat16
        for options in ({"precision": "float32"}, {"tuned": False}):
            other = fastdiffusion.load(sd15, device="cpu", **options)
            assert next(other.modules["net"].parameters()).dtype == torch.float32, "what is asked for goes first"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seconds", [{"torch.bfloat16": 1.1}, {"torch.bfloat16": 0.5, "moves": 0.2}])
def test_what_does_not_gain_or_moves_estimates_is_not_taken(sd15, monkeypatch, seconds):
    clock(monkeypatch, {**seconds, **ROWS})
    found = {setting.name: setting.value for setting in _tune(sd15)}
    assert found["precision"] is None and found["batch_size"] == 2 and found["mem"] is None
    monkeypatch.setattr(tuning, "available", lambda device: 1e5)
    assert {setting.name: setting.value for setting in _tune(sd15)}["mem"] == "1M"


def _tune(path):
    return list(tuning.tune(lambda **options: fastdiffusion.load(path, device="cpu", tuned=False, **options),
                            torch.device("cpu")))  # fmt: skip


def test_settings_hold_for_one_checkpoint_on_one_machine(sd15, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tuned.save_settings(sd15, "cpu", {"precision": "bf16", "threads": 1}, {})
    assert tuned.settings_for(sd15, "cpu") == {"precision": "bf16", "threads": 1}
    monkeypatch.setattr(tuned, "machine", lambda device: "another")
    assert tuned.settings_for(sd15, "cpu") == {}
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (sd15 / "unet" / "config.json").write_text((sd15 / "unet" / "config.json").read_text() + " ")
    assert tuned.settings_for(sd15, "cpu") == {}, "another checkpoint"
    for text in ("[]", '{"settings": {"precision": 1}}', '{"settings": {"lora": "x"}}'):
        place.write_text(text)
        with pytest.raises(CheckpointError, match="Delete it, and tune again"):
            tuned.settings_for(sd15, "cpu")
    place.unlink()
    monkeypatch.setattr(tuned, "settings_file", lambda checkpoint: tmp_path / "sd15" / "model_index.json" / "x")
    kept = tuned.save_settings(sd15, "cpu", {"precision": "bf16"}, {})
    assert "cache" in kept.parts and tuned.settings_for(sd15, "cpu") == {"precision": "bf16"}


def test_bad_input():
    with pytest.raises(InputError, match="doctor MODEL --tune"):
        doctor.findings(None, tune=True)
    assert main(["doctor", "emoji"]) == 2


def test_seconds_and_memory_are_measured():
    seconds, estimate = tuning.timed(get("sd15").model, 2)
    assert 0 < seconds < 60 and estimate.shape == (1, 4, 8, 8) and tuning.available(torch.device("cpu")) > 1e6
