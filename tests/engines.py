"""OpenVINO in place of torch: the same numbers; and torch wherever the engine cannot, or would hide something."""

import importlib.util
import sys

import loaded_families
import pytest
import torch
from torch import nn

import fastdiffusion
from fastdiffusion.adapters import engine_trial, engines
from fastdiffusion.errors import InputError, MissingExtra
from fastdiffusion.guidance import attention

if importlib.util.find_spec("openvino") is None:  # importing it as it stands would send telemetry
    pytest.skip("no OpenVINO: pip install 'fastdiffusion[fast]'", allow_module_level=True)


class AdaptiveNorm(nn.Module):
    """A group norm whose factor is another for each image: as it stands, OpenVINO crashes on it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.GroupNorm(4, 16), nn.Linear(8, 32)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, 1)
        return self.norm(x) * (1 + scale) + shift


def ready(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 16, 8, 8, generator=g), torch.randn(2, 8, generator=g)


@pytest.fixture
def norm():
    torch.manual_seed(0)
    return ready(AdaptiveNorm())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastdiffusion" / "engines"


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_the_engine_computes_what_torch_computes_for_any_shape(norm, inputs, cache, monkeypatch):
    x, emb = inputs
    engines.attach({"net": norm}, "abc")
    assert relative(norm(x, emb), norm.forward.torch_forward(x, emb)) < 1e-5
    assert relative(norm(x[:1, :, :3], emb[:1]), norm.forward.torch_forward(x[:1, :, :3], emb[:1])) < 1e-5
    assert not norm.forward.refused
    assert len(list(cache.glob("abc/net/*/net.xml"))) == 1  # converted once
    # the next process neither converts nor tries again
    monkeypatch.setattr(engines.Engine, "_convert", None)
    monkeypatch.setattr(engines.Engine, "_difference", None)
    engines.attach({"net": norm}, "abc")
    assert relative(norm(x, emb), norm.forward.torch_forward(x, emb)) < 1e-5


def test_bf16_is_near_and_no_more(norm, inputs):
    engines.attach({"net": norm}, "abc", "bf16")
    assert 1e-5 < relative(norm(*inputs), norm.forward.torch_forward(*inputs)) < 0.03


def test_detach_gives_torch_back(norm, inputs):
    before = norm(*inputs)
    engines.attach({"net": norm}, "abc")
    engines.detach({"net": norm})
    assert torch.equal(norm(*inputs), before)


def test_torch_computes_what_somebody_looks_into(norm, inputs, cache):
    x, emb = inputs
    engines.attach({"net": norm}, "abc")
    seen = []
    handle = norm.norm.register_forward_hook(lambda *_: seen.append(True))
    norm(x, emb)
    handle.remove()
    assert seen
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(norm(x, emb).square().sum(), x)
    assert float(gradient.abs().max()) > 0
    assert not cache.exists()  # nothing was converted for these


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        (
            "import sys, numpy as np; np.savez(sys.argv[2] + '/outputs.npz', np.zeros((2, 16, 8, 8), 'f'))",
            "differs from torch by 1",
        ),
    ],
)
def test_an_engine_that_crashes_or_is_wrong_is_left_out(norm, inputs, tmp_path, monkeypatch, program, reason):
    broken = tmp_path / "trial.py"
    broken.write_text(program)
    monkeypatch.setattr(engine_trial, "__file__", str(broken))
    before = norm(*inputs)
    engines.attach({"net": norm}, "abc")
    with pytest.warns(UserWarning, match=reason):
        assert torch.equal(norm(*inputs), before)
    assert torch.equal(norm(*inputs), before)  # and says so once


def test_an_operator_without_a_counterpart_is_named(inputs):
    class Odd(nn.Module):
        def forward(self, x):
            return x * torch.logspace(0, 1, x.shape[-1])

    net = ready(Odd())
    engines.attach({"net": net}, "abc")
    with pytest.warns(UserWarning, match="aten::logspace"):
        assert torch.equal(net(inputs[0]), net.forward.torch_forward(inputs[0]))


def test_bad_settings(norm, monkeypatch):
    with pytest.raises(InputError, match="float32 or bf16"):
        engines.attach({"net": norm}, "abc", "int3")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"fastdiffusion\[fast\]"):
        engines.attach({"net": norm}, "abc")


def test_no_telemetry():
    engine_trial.openvino()
    assert sys.modules["openvino_telemetry"] is None


def test_the_bundled_model():
    model = fastdiffusion.load("emoji", device="cpu")
    g = torch.Generator().manual_seed(0)
    x, sigma, cond = (
        torch.randn(2, *model.shape, generator=g),
        torch.tensor([3.0, 0.3]),
        model.encode_prompt(["a red heart", "a dog"]),
    )
    with torch.no_grad():
        before = model.denoise(x, sigma, cond)
        engines.attach({"net": model.modules["net"]}, model.id)
        assert relative(model.denoise(x, sigma, cond), before) < 1e-5
        assert not model.modules["net"].forward.refused
        with attention.control(model.modules["net"], store := attention.Store()):
            model.denoise(x, sigma, cond)
        assert store.probabilities
        engines.detach({"net": model.modules["net"]})
        assert torch.equal(model.denoise(x, sigma, cond), before)


def test_a_checkpoint_with_an_engine(cache, tmp_path):
    place = loaded_families.get("sd15").path
    plain, fast = fastdiffusion.load(place, device="cpu"), fastdiffusion.load(place, engine="openvino", device="cpu")
    assert plain.id != fast.id
    drawn = [fastdiffusion.sample(m, "a cat", n=1, steps=2, size=64) for m in (plain, fast)]
    assert relative(drawn[1].images, drawn[0].images) < 1e-4
    assert {path.name for path in cache.glob("*/*")} == {"net", "decoder"}  # what ran was converted
    assert drawn[1].recipe["model"]["loaded"] == {"engine": "openvino", "precision": "float32"}
    (path,) = drawn[1].save(tmp_path)
    again = fastdiffusion.reproduce(path)
    assert torch.equal(again.images, drawn[1].images)
    assert again.recipe["model"] == drawn[1].recipe["model"]


def test_the_engine_is_chosen_by_name(monkeypatch):
    fast = fastdiffusion.load("emoji", engine="openvino", device="cpu")
    made = fastdiffusion.sample(fast, "a red heart", n=1, steps=2)
    assert relative(made.images, fastdiffusion.sample("emoji", "a red heart", n=1, steps=2, device="cpu").images) < 1e-4
    with pytest.raises(InputError, match="Did you mean 'openvino'"):
        fastdiffusion.load("emoji", engine="openvin")
