"""OpenVINO in place of torch: the same numbers; and torch wherever the engine cannot, or would hide something."""

import copy
import importlib.util
import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import loaded_families
import pytest
import tiny_conditioners
import torch
from PIL import Image
from torch import nn

import fastdiffusion
from fastdiffusion import nets
from fastdiffusion.adapters import engines, tuning
from fastdiffusion.adapters.engines import converted, trial
from fastdiffusion.errors import InputError, MissingExtra
from fastdiffusion.guidance import attention
from fastdiffusion.models import tuned
from fastdiffusion.nets import presets
from fastdiffusion.types import Cond

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
    assert not norm.forward.refusals
    assert len(list(cache.glob("abc/net/*/net.xml"))) == 1  # converted once
    # the next process neither converts nor tries again
    monkeypatch.setattr(engines.Engine, "_convert", None)
    monkeypatch.setattr(engines.engine, "difference", None)
    engines.attach({"net": norm}, "abc")
    assert relative(norm(x, emb), norm.forward.torch_forward(x, emb)) < 1e-5


def test_bf16_is_near_and_no_more(norm, inputs):
    engines.attach({"net": norm}, "abc", "bf16")
    assert 1e-5 < relative(norm(*inputs), norm.forward.torch_forward(*inputs)) < 0.03


@pytest.mark.parametrize(("precision", "compiled"), [("float32", 6), ("int8", 2)])
def test_sizes_that_alternate_are_compiled_once(inputs, monkeypatch, precision, compiled):
    """As under a guidance of some steps only; with float32 there is room for one program."""
    counts, compiler = [], trial.compiled
    monkeypatch.setattr(trial, "compiled", lambda *given: counts.append(given) or compiler(*given))
    net = ready(nn.Conv2d(16, 16, 3, padding=1))
    truth = net(inputs[0])
    engines.attach({"net": net}, "alternating", precision)
    for _ in range(3):
        torch.testing.assert_close(net(inputs[0]), truth, atol=0.2, rtol=0)
        torch.testing.assert_close(net(inputs[0][:1]), truth[:1], atol=0.2, rtol=0)
    assert len(counts) == compiled


def test_detach_gives_torch_back(norm, inputs):
    before = norm(*inputs)
    engines.attach({"net": norm}, "abc")
    engines.detach({"net": norm})
    assert torch.equal(norm(*inputs), before)


def test_a_copy_has_weights_of_its_own(norm, inputs):
    engines.attach({"net": norm}, "abc")
    norm(*inputs)
    other = copy.deepcopy(norm)
    other.norm.weight.data.mul_(3)
    other.norm.bias.data.add_(1)
    engines.detach({"net": norm})
    assert relative(other(*inputs), norm(*inputs)) > 0.1


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
    monkeypatch.setattr(trial, "__file__", str(broken))
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
    with pytest.raises(InputError, match="float32, bf16, int8"):
        engines.attach({"net": norm}, "abc", "int3")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"fastdiffusion\[fast\]"):
        engines.attach({"net": norm}, "abc")


def test_bf16_is_refused_by_a_cpu_without_it(norm, monkeypatch):
    monkeypatch.setattr(trial, "hint", lambda precision: "f32")  # as of 8 bits where the CPU has none
    assert engines.available() == ("float32", "int8")
    with pytest.raises(InputError, match=r"does not compute in bf16\. Leave --precision out"):
        engines.attach({"net": norm}, "abc", "bf16")
    with pytest.raises(InputError, match="does not compute in bf16"):
        fastdiffusion.load("emoji", engine="openvino", precision="bf16", device="cpu")


def test_no_telemetry():
    trial.openvino()
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
        assert not model.modules["net"].forward.refusals
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
    assert {path.name for path in cache.glob("*/*")} == {"net", "decoder", "text_encoder"}  # what ran was converted
    assert drawn[1].recipe["model"]["loaded"] == {"engine": "openvino", "precision": "float32"}
    (path,) = drawn[1].save(tmp_path)
    again = fastdiffusion.reproduce(path)
    assert torch.equal(again.images, drawn[1].images)
    assert again.recipe["model"] == drawn[1].recipe["model"]


def test_conditioners_say_that_they_compute_in_torch(cache, tmp_path):
    Image.linear_gradient("L").resize((64, 64)).save(tmp_path / "map.png")
    fast = fastdiffusion.load(loaded_families.get("sd15").path, engine="openvino", device="cpu")
    tiny_conditioners.controlnet(fast.modules["net"]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="Leave --engine out"):
        fastdiffusion.sample(fast, "a cat", n=1, steps=1, size=64, control=f"{tmp_path}:{tmp_path}/map.png")


def test_the_engine_is_chosen_by_name(monkeypatch):
    fast = fastdiffusion.load("emoji", engine="openvino", device="cpu")
    made = fastdiffusion.sample(fast, "a red heart", n=1, steps=2)
    assert relative(made.images, fastdiffusion.sample("emoji", "a red heart", n=1, steps=2, device="cpu").images) < 1e-4
    with pytest.raises(InputError, match="Did you mean 'openvino'"):
        fastdiffusion.load("emoji", engine="openvin")


def test_products_of_8_bits_are_near_and_small(inputs, cache):
    torch.manual_seed(0)
    net = ready(
        nn.Sequential(nn.Conv2d(16, 128, 3), nn.SiLU(), nn.Conv2d(128, 16, 3), nn.Flatten(), nn.Linear(256, 99))
    )
    before = net(inputs[0])
    engines.attach({"net": net}, "abc", "int8")
    assert 1e-4 < relative(net(inputs[0]), before) < 0.03
    assert not net.forward.refusals
    whole, small = (next(cache.rglob(name)).stat().st_size for name in ("net.bin", "products8.bin"))
    assert small < 0.3 * whole


@pytest.mark.parametrize("kind", ["convolution", "pointwise", "tokens", "few rows"])
def test_products_of_8_bits_are_of_whole_numbers(kind, inputs, monkeypatch):
    """Beside the same in torch: one scale for each image, place or token, whatever its size; and for each output."""
    monkeypatch.setattr(trial, "hint", lambda precision: "f32")
    torch.manual_seed(0)
    layer: nn.Module = ready(
        {"convolution": nn.Conv2d(16, 128, 3), "pointwise": nn.Conv2d(16, 2048, 1)}.get(kind, nn.Linear(16, 2048))
    )
    shape = {"tokens": (2, 5, 16), "few rows": (2, 16)}.get(kind, (2, 16, 8, 8))
    x = torch.randn(shape) * torch.tensor([1.0, 1000.0]).view(2, *[1] * (len(shape) - 1))
    rows = layer.weight.flatten(1)
    scale = rows.abs().amax(1, keepdim=True) / 127
    weight = ((rows / scale).round() * scale).view_as(layer.weight)
    greatest = x.abs().amax({"convolution": (1, 2, 3), "pointwise": 1}.get(kind, -1), keepdim=True) / 127
    units = x if kind == "few rows" else (x / greatest).round() * greatest
    wanted = torch.func.functional_call(layer, {"weight": weight}, units)
    exact = layer(x)
    engines.attach({"net": layer}, kind, "int8")
    found = layer(x)
    for image in range(2):  # a dark one beside a bright one is as exact
        assert relative(found[image], wanted[image]) < 1e-5 < relative(found[image], exact[image])


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_a_doubled_image_is_convolved_before_it_is_doubled(size, cache):
    torch.manual_seed(0)
    net = ready(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2.0), nn.Conv2d(8, 5, 3, padding=1)))
    x = torch.randn(2, 3, *size)
    before = net(x)
    engines.attach({"net": net}, "abc")
    assert relative(net(x), before) < 1e-5
    assert not net.forward.refusals
    (file,) = cache.rglob("net.xml")
    assert 'type="Interpolate"' not in file.read_text()
    assert file.read_text().count('type="Convolution"') == 5


def test_torch_shares_the_weights_with_the_file(inputs, cache, monkeypatch):
    monkeypatch.setattr(converted, "LARGE", 0)
    torch.manual_seed(0)
    net = ready(nn.Sequential(nn.Conv2d(16, 128, 3), nn.Flatten(), nn.Linear(128 * 36, 9)))
    before = net(inputs[0])
    engines.attach({"net": net}, "abc")
    net(inputs[0])
    (file,) = cache.rglob("net.bin")
    kept = file.read_bytes()
    for layer in (net[0], net[2]):
        assert layer.weight.untyped_storage().nbytes() == len(kept)  # a view of the file, the one of both
    engines.detach({"net": net})
    assert relative(net(inputs[0]), before) < 1e-6
    net[2].weight.data.zero_()
    assert file.read_bytes() == kept  # and changes stay in this process


def test_a_full_disk_leaves_nothing_behind(norm, inputs, cache, monkeypatch):
    before = norm(*inputs)
    engines.attach({"net": norm}, "abc")

    def full(net, path, **_):
        path.with_suffix(".xml").write_text("half a")
        raise RuntimeError("Failed to write: No space left on device")

    monkeypatch.setattr(trial.openvino(), "save_model", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert torch.equal(norm(*inputs), before)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    engines.attach({"net": norm}, "abc")
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.warns(UserWarning, match="No space: it takes 0.0 GB"):
        assert torch.equal(norm(*inputs), before)


@pytest.mark.parametrize("name", ["unet-small", "restorer", "dit-tiny"])
def test_own_networks(name):
    torch.manual_seed(0)
    net = ready(nets.build({**presets.PRESETS[name], "classes": 3}))
    for p in net.parameters():
        p.data.normal_(0, 0.1)  # at first their last layers are zeros
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([0.1, -1.0]), Cond(label=torch.tensor([1, -1]))
    before = net(*inputs)
    engines.attach({"net": net}, name)
    assert relative(net(*inputs), before) < 1e-4
    assert not net.forward.refusals


def test_tuning_takes_the_engine_where_it_is_faster(tmp_path, monkeypatch):
    place = shutil.copytree(loaded_families.get("sd15").path, tmp_path / "sd15")
    taken = {None: 1.0, "float32": 0.6, "bf16": 0.3, "int8": 0.29}

    def timed(model, rows):
        loaded = model.info.get("loaded", {})
        return taken[loaded.get("precision") if "engine" in loaded else None] * rows, torch.ones(1)

    monkeypatch.setattr(tuning, "timed", timed)
    for precision in ("bf16", "float32"):
        found = {setting.name: setting.value for setting in tuning.tune(partial(
            fastdiffusion.load, place, device="cpu", tuned=False), torch.device("cpu"))}  # fmt: skip
        assert (found["engine"], found["precision"]) == ("openvino", precision)
        monkeypatch.setattr(engines, "available", lambda: ("float32",))  # a CPU without bf16
    tuned.save_settings(place, "cpu", {"engine": "openvino", "precision": "float32"}, {})
    with pytest.warns(UserWarning, match="--engine openvino, --precision float32, as doctor --tune chose"):
        model = fastdiffusion.load(place, device="cpu")
    assert isinstance(model.modules["net"].forward, engines.Engine)


@pytest.mark.parametrize("name", ["emoji", "sd15"])
def test_exported_networks_answer_alike(name, tmp_path):
    what = name if name == "emoji" else loaded_families.get(name).path
    folder = fastdiffusion.export(what, tmp_path / "out", format="openvino")
    described = json.loads((folder / "networks.json").read_text())["networks"]
    assert described.keys() == {"net", "decoder"} | ({"text_encoder"} if name == "sd15" else set())
    model = fastdiffusion.load(what, device="cpu")
    z = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    program = trial.compiled(folder / "decoder.xml", [z.shape], "f32", 1)
    assert relative(torch.from_numpy(program([z.numpy()])[0]), model.decode(z)) < 1e-4
    assert [port.any_name for port in program.inputs] == list(described["decoder"]["inputs"]) == ["z"]


def test_a_network_that_answers_differently_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "difference", lambda *_: 0.1)
    with pytest.raises(InputError, match="answers differently in openvino"):
        fastdiffusion.export("emoji", tmp_path / "out", format="openvino")
    assert not any((tmp_path / "out").iterdir())


def test_a_folder_of_diffusers(tmp_path):
    place = loaded_families.get("sd15").path
    folder = fastdiffusion.export(place, tmp_path / "out", format="diffusers")
    plain, again = (fastdiffusion.sample(p, "a cat", n=1, steps=2, size=64, device="cpu") for p in (place, folder))
    assert torch.equal(plain.images, again.images)
    with pytest.raises(InputError, match="Name a new folder"):
        fastdiffusion.export(place, folder, format="diffusers")
    with pytest.raises(InputError, match="no class of diffusers"):
        fastdiffusion.export("emoji", tmp_path / "other", format="diffusers")
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "fastdiffusion"}  # the cache is there too


def test_onnx(tmp_path):
    if importlib.util.find_spec("onnx") is None:
        with pytest.raises(MissingExtra, match=r"fastdiffusion\[onnx\]"):
            fastdiffusion.export("emoji", tmp_path / "out", format="onnx")
    else:
        folder = fastdiffusion.export("emoji", tmp_path / "out", format="onnx")
        assert {path.name for path in folder.iterdir()} == {"net.onnx", "decoder.onnx", "networks.json"}
    with pytest.raises(InputError, match="Did you mean 'onnx'"):
        fastdiffusion.export("emoji", tmp_path / "out", format="onx")


def test_what_was_traced_wrongly_for_a_shape_is_traced_anew(inputs, cache):
    class Even(nn.Module):
        def forward(self, x):
            return x * (2 if x.shape[-1] % 2 else 3)  # which tracing cannot see

    net = ready(Even())
    engines.attach({"net": net}, "abc")
    for x in (inputs[0], inputs[0][..., :5], inputs[0][..., :4]):
        assert relative(net(x), net.forward.torch_forward(x)) < 1e-6
    assert not net.forward.refusals
    assert len(list(cache.rglob("net.xml"))) == 2


def test_the_restorer(tmp_path):
    g = torch.Generator().manual_seed(0)
    pixels = nn.functional.interpolate(torch.rand(1, 3, 12, 20, generator=g), (96, 160), mode="bicubic")[0].clamp(0, 1)
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
    plain, fast = (
        fastdiffusion.restore(image, "jpeg 30", device="cpu", **options) for options in ({}, {"engine": "openvino"})
    )
    off = (plain.images.int() - fast.images.int()).abs()
    assert int(off.max()) <= 1 and float(off.float().mean()) < 0.01
    assert fast.recipe["parameters"]["engine"] == "openvino" and "engine" not in plain.recipe["parameters"]
    with pytest.raises(InputError, match="engine"):
        fastdiffusion.restore(image, "jpeg 30", device="cpu", precision="int8")
