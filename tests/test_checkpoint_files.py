"""Checkpoints of other programs as they lie on disks: folders, single files, quantized ones, names on a hub."""

import hashlib
import json
import lzma
import re
import shutil
from pathlib import Path

import numpy as np
import one_file
import pictures
import pytest
import torch
from PIL import Image
from pretended_device import pretended
from safetensors.torch import save_file
from tiny_pipelines import build

import fastdiffusion
from fastdiffusion.adapters import examine, low_memory
from fastdiffusion.adapters.sources import conversion, hub, layouts, single_file
from fastdiffusion.adapters.sources.weights import open_weights
from fastdiffusion.cli import main
from fastdiffusion.errors import CheckpointError, InputError, MissingExtra
from fastdiffusion.models import folder
from fastdiffusion.tasks.generation.recipe import reproduce

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
SHIPPED = layouts.CONFIGS
PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


class Case:
    """A pipeline, its folder, and the same as one file."""

    def __init__(self, name, place):
        self.pipe, self.folder, self.file = build(name), place / name, place / f"{name}.safetensors"
        for part in ("tokenizer", "tokenizer_2"):
            if isinstance(getattr(self.pipe, part, None), transformers.CLIPTokenizer):
                pad = "!" if name == "sd2v" or part == "tokenizer_2" else "<|endoftext|>"  # as published
                options = {"model_max_length": 77, "pad_token": pad}
                setattr(self.pipe, part, single_file.clip_tokenizer(transformers.CLIPTokenizer, **options))
        self.pipe.save_pretrained(self.folder)
        one_file.write(self.pipe, self.file)
        self.rest = {"tokenizer": self.folder} if hasattr(self.pipe, "transformer") else {}

    def load(self, **options):
        return fastdiffusion.load(self.file, device="cpu", **self.rest, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files"), {}


@pytest.fixture
def case(place, monkeypatch):
    """Of a family by name; what ships for single files then has its tiny sizes, and a tokenizer that joins c, a, t."""
    folder, made = place

    def get(name):
        configs = folder / f"configs-{name}"
        if name not in made:
            shutil.copytree(SHIPPED, configs)
            (configs / "clip-merges.txt.xz").write_bytes(lzma.compress(b"c a\nca t</w>\n"))
            one_file.write_configs(build(name), configs, SHIPPED)
        monkeypatch.setattr(layouts, "CONFIGS", configs)
        if name not in made:
            made[name] = Case(name, folder)
        return made[name]

    return get


# ---- single files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sd2v", "sdxl", "sd3", "flux", "schnell"])
def test_one_file_is_its_folder(case, name):
    """Every weight is the folder's, and so are the images, bit for bit; nothing reaches for the network."""
    one = case(name)
    model, other = one.load(), fastdiffusion.load(one.folder, device="cpu")
    for part in (part for part in PARTS if getattr(one.pipe, part, None) is not None):
        got, wanted = model.denoise.checkpoint.modules[part].state_dict(), getattr(one.pipe, part).state_dict()
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert (model.sigma_min, model.sigma_max, model.guidance) == (other.sigma_min, other.sigma_max, other.guidance)
    options = {"n": 1, "steps": 2, "sampler": "euler", "size": 64}
    images = [fastdiffusion.sample(m, "a (cat:1.3) on a mat", **options).images for m in (model, other)]
    assert torch.equal(*images)
    assert model.id != other.id
    if not one.rest:
        assert model.id == hashlib.sha256(one.file.read_bytes()).hexdigest(), "as other programs name checkpoints"


def test_the_shipped_sizes_are_the_published_ones():
    """Numbers of parameters, in millions, as the papers and model cards have them."""
    published = {
        "stable-diffusion-1": {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06},
        "stable-diffusion-2": {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39},
        "stable-diffusion-xl": {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66},
        "stable-diffusion-3": {
            "transformer": 2028.33,
            "vae": 83.82,
            "text_encoder_2": 694.66,
            "text_encoder_3": 4762.31,
        },
        "flux-1": {"transformer": 11901.41, "vae": 83.82, "text_encoder": 123.06, "text_encoder_2": 4762.31},
    }
    for name, parts in published.items():
        configs = json.loads((SHIPPED / f"{name}.json").read_text())
        for part, millions in parts.items():
            library, kind = configs["model_index.json"][part]
            kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
            with torch.device("meta"):
                net = (
                    kind.from_config(configs[part])
                    if library == "diffusers"
                    else kind(kind.config_class(**configs[part]))
                )
            assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.006), (name, part)


def test_the_tokenizer_of_clip():
    """Token numbers that OpenAI's own tokenizer gives."""
    tokenizer = single_file.clip_tokenizer(transformers.CLIPTokenizer, model_max_length=77)
    known = {"a photo of a cat": [320, 1125, 539, 320, 2368], "Hello  World!": [3306, 1002, 256]}
    for text, ids in known.items():
        assert tokenizer(text)["input_ids"] == [49406, *ids, 49407]
    assert len(tokenizer) == 49408 and tokenizer.decode(tokenizer("naïve 猫 ☃")["input_ids"][1:-1]) == "naïve 猫 ☃"


def test_the_names_of_flux_are_those_that_diffusers_knows():
    """At the published width, the only one that diffusers converts; one column of each matrix is enough."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    config = {"num_attention_heads": 24, "attention_head_dim": 128}
    tiny = one_file.flux(build("flux").transformer)
    rows = {"img_attn.qkv": 9216, "txt_attn.qkv": 9216, "linear1": 21504, "modulation": 6144}
    tensors = {}
    for name in tiny:
        n = next((n for key, n in rows.items() if f".{key}." in name), 64)
        tensors[name.removeprefix(one_file.NET)] = torch.randn(n, 1)[: None if name.endswith("weight") else n]
    wanted = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    got = conversion.CONVERTERS["FluxTransformer2DModel"](tensors, config, torch.nn.Module())
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_file_is_known_by_its_header(case, monkeypatch):
    """No weight is read to tell what it is, whether it fits, or that it does not."""
    path = case("sdxl").file
    monkeypatch.setattr("fastdiffusion.adapters.sources.weights.Safetensors.__getitem__", None)
    source = single_file.SingleFile(open_weights(path))
    assert (source.layout.name, source.precision("unet")) == ("stable-diffusion-xl", torch.float32)
    assert source.numbers("text_encoder") == sum(p.numel() for p in case("sdxl").pipe.text_encoder.parameters()) + 77


MARKS = {
    "v": ({"v_pred": torch.zeros(0)}, None, {"prediction": "v"}),
    "zero SNR": ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, None, {"prediction": "v", "zero_snr": True}),
    "a text": ({}, {"modelspec.prediction_type": "v"}, {"prediction": "v"}),
    "neither": ({}, {"modelspec.prediction_type": "epsilon"}, {"prediction": "noise", "zero_snr": False}),
}


@pytest.mark.parametrize("mark", MARKS)
def test_what_the_network_predicts(case, tmp_path, mark):
    """Newer files say it; for the others it is a setting, which is another model."""
    more, metadata, wanted = MARKS[mark]
    path = one_file.write(case("sdxl").pipe, tmp_path / "xl.safetensors", lambda tensors: tensors | more, metadata)
    model = fastdiffusion.load(path, device="cpu")
    assert {name: getattr(model.denoise.levels, name) for name in wanted} == wanted
    assert model.sigma_max == pytest.approx(4096 if wanted.get("zero_snr") else 14.61, rel=1e-3)
    asked = fastdiffusion.load(path, device="cpu", prediction="eps")
    assert asked.denoise.levels.prediction == "noise"
    assert (asked.id == model.id) == (wanted["prediction"] == "noise")


# ---- quantized files --------------------------------------------------------------------------------------------


def scaled(tensors, names=(".scale_weight", ".scale_input"), rows=False):
    """In ComfyUI's scaled fp8, and what the numbers then are."""
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        stored[name] = meant[name] = tensor
        if name.endswith("attn2.to_k.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 448 if rows else tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + names[0]] = scale
            stored[name.removesuffix(".weight") + names[1]] = torch.ones(())
            meant[name] = stored[name].float() * scale
    return stored | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, meant


@pytest.mark.parametrize(
    ("names", "rows"), [((".scale_weight", ".scale_input"), False), ((".weight_scale", ".input_scale"), True)]
)
def test_scaled_fp8(case, tmp_path, names, rows):
    stored, meant = scaled(one_file.tensors(case("sd15").pipe)[1], names, rows)
    quantized, plain = tmp_path / "fp8.safetensors", tmp_path / "plain.safetensors"
    for path, tensors in ((quantized, stored), (plain, meant)):
        save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path)
    got, wanted = (fastdiffusion.load(path, device="cpu").modules["net"].state_dict() for path in (quantized, plain))
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert open_weights(quantized).entries.keys() == meant.keys()


def test_fp8_becomes_bfloat16(case, tmp_path):
    """A net that is mostly in 8 bits takes two bytes a number, or what is asked for."""

    def cast(tensors):
        return {n: t.to(torch.float8_e4m3fn) if n.startswith(one_file.NET) else t for n, t in tensors.items()}

    path = one_file.write(case("sd15").pipe, tmp_path / "fp8.safetensors", cast)
    assert fastdiffusion.load(path, device="cpu").modules["net"].dtype == torch.bfloat16
    full = fastdiffusion.load(path, device="cpu", precision="float32").modules["net"]
    assert torch.equal(full.conv_in.weight, case("sd15").pipe.unet.conv_in.weight.to(torch.float8_e4m3fn).float())


def write_gguf(path, tensors, kind="Q8_0"):
    import gguf

    writer = gguf.GGUFWriter(path, arch="flux")
    for name, tensor in tensors.items():
        numbers, quantization = tensor.detach().float().numpy(), getattr(gguf.GGMLQuantizationType, kind)
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(numbers, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, numbers)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf(case, tmp_path, kind):
    """A network alone, as such files are; the rest comes from a folder. Its numbers are those that gguf reads."""
    import gguf

    one = case("flux")
    names = {name.removeprefix(one_file.NET): t for name, t in one_file.flux(one.pipe.transformer).items()}
    path = write_gguf(tmp_path / "flux.gguf", names, kind)
    model = fastdiffusion.load(path, device="cpu", tokenizer=one.folder, precision="float32")
    net, quantization = model.modules["net"], getattr(gguf.GGMLQuantizationType, kind)
    numbers = one.pipe.transformer.context_embedder.weight.detach().numpy()
    wanted = gguf.quants.dequantize(gguf.quants.quantize(numbers, quantization), quantization)
    assert np.array_equal(net.context_embedder.weight.numpy(), wanted)
    assert 0 < np.abs(wanted - numbers).max() < 0.2 * np.abs(numbers).max()
    assert torch.equal(net.x_embedder.bias, one.pipe.transformer.x_embedder.bias)
    assert fastdiffusion.sample(model, "a cat", n=1, steps=2, size=64).images.isfinite().all()
    with pytest.raises(CheckpointError, match=r"has no vae.*--tokenizer FOLDER"):
        fastdiffusion.load(path, device="cpu")


@pytest.mark.parametrize("name", ["z_image", "qwen_image"])
def test_a_network_alone_of_any_family(tmp_path, name):
    """With its folder for all else; in its authors' names, or in those of diffusers."""
    pipe = build(name)
    pipe.save_pretrained(tmp_path / name)
    tensors = one_file.z_image(pipe.transformer) if name == "z_image" else dict(pipe.transformer.state_dict())
    save_file({n: t.detach().clone().contiguous() for n, t in tensors.items()}, tmp_path / "net.safetensors")
    (tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    model = fastdiffusion.load(tmp_path / "net.safetensors", device="cpu", tokenizer=tmp_path / name)
    got, wanted = model.modules["net"].state_dict(), pipe.transformer.state_dict()
    assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)
    with pytest.raises(InputError, match=r"--tokenizer FOLDER"):
        fastdiffusion.load(tmp_path / "net.safetensors", device="cpu")


def test_gguf_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingExtra, match=r"fastdiffusion\[gguf\]"):
        fastdiffusion.load(tmp_path / "x.gguf")


# ---- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(case, tmp_path, monkeypatch):
    """A hub that serves one folder, and whose cache is another: what was asked of it, in order."""
    import huggingface_hub

    served, cache, asked = tmp_path / "served", tmp_path / "cache", []
    shutil.copytree(case("sd15").folder, served)
    (served / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (served / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (served / "safety_checker").mkdir()
    (served / "safety_checker" / "model.safetensors").write_bytes(b"large")
    (served / "own.py").write_text("raise SystemExit")

    def get(name, local_files_only):
        assert name == "owner/sd15", "no such repository"
        asked.append("cache" if local_files_only else "network")
        return cache if local_files_only else served

    def snapshot_download(name, local_files_only=False, allow_patterns=None):
        place = get(name, local_files_only)
        if place == cache:
            assert cache.is_dir(), "LocalEntryNotFoundError"
            return str(cache)
        for file in allow_patterns:
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(served / file, cache / file)
        return str(cache)

    def hf_hub_download(name, file, local_files_only=False):
        path = get(name, local_files_only) / file
        assert path.is_file(), "EntryNotFoundError"
        return str(path)

    class HfApi:
        def list_repo_files(self, name):
            return [str(path.relative_to(get(name, False))) for path in served.rglob("*") if path.is_file()]

    for entry in (snapshot_download, hf_hub_download, HfApi):
        monkeypatch.setattr(huggingface_hub, entry.__name__, entry)
    return served, cache, asked


def test_a_folder_is_loaded_without_another_program_s_bars(capfd):
    fastdiffusion.load(Path(__file__).parent / "checkpoints" / "sd-small", device="cpu")
    assert capfd.readouterr() == ("", "")


def test_the_hub_is_asked_only_when_told_to(fake_hub, monkeypatch, tmp_path, capsys):
    """Without --download the cache alone; with it safetensors and texts of the parts that are needed, no more."""
    _, cache, asked = fake_hub
    monkeypatch.chdir(tmp_path)
    run = ["sample", "hf:owner/sd15", "a cat", "-n", "1", "--steps", "2", "--device", "cpu"]
    assert main(run) == 2 and set(asked) == {"cache"}
    assert "Add --download" in capsys.readouterr().err
    assert main([*run, "--download"]) == 0 and "network" in asked
    got = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    weights = {
        f"{p}/{'' if p == 'text_encoder' else 'diffusion_pytorch_'}model.safetensors"
        for p in ("unet", "vae", "text_encoder")
    }
    assert {name for name in got if not name.endswith((".json", ".txt"))} == weights
    assert {name.split("/")[0] for name in got} == {
        "model_index.json",
        "scheduler",
        "tokenizer",
        "unet",
        "vae",
        "text_encoder",
    }
    asked.clear()
    assert main(run) == 0 and set(asked) == {"cache"}
    model = fastdiffusion.load("hf:owner/sd15", device="cpu")
    assert model.id == folder.digest(cache) and model.info["name"] == "cache"
    shutil.rmtree(cache / "vae")
    with pytest.raises(CheckpointError, match="has no vae"):
        fastdiffusion.load("hf:owner/sd15", device="cpu")


def test_without_a_network(monkeypatch, tmp_path, capsys):
    import huggingface_hub

    def blocked(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", blocked)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "hf:owner/name", "a cat", "--download"]) == 2
    assert "HF_HUB_OFFLINE is set: unset it" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert main(["sample", "hf:owner/name", "a cat", "--download"]) == 2
    message = capsys.readouterr().err
    assert "Name or service not known" in message and "Check the name, the network" in message


def test_one_file_of_the_hub(fake_hub, case):
    served, _, _ = fake_hub
    shutil.copy(case("sd15").file, served / "sd15.safetensors")
    model = fastdiffusion.load("hf:owner/sd15/sd15.safetensors", device="cpu", download=True)
    assert model.id == folder.digest(case("sd15").file)


def test_the_hub_s_cache_as_it_is(case, tmp_path, monkeypatch, capsys):
    """Links to files whose names are hashes: it is called by its repository, and what is measured is kept beside it."""
    import huggingface_hub

    from fastdiffusion.adapters import tuning

    repository = tmp_path / "models--owner--sd15"
    place, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    for folder_ in (blobs, repository / "refs"):
        folder_.mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for i, file in enumerate(sorted(path for path in case("sd15").folder.rglob("*") if path.is_file())):
        shutil.copy(file, blobs / f"{i:040d}")
        link = place / file.relative_to(case("sd15").folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / f"{i:040d}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = fastdiffusion.load("hf:owner/sd15", device="cpu")
    assert model.info["name"] == "sd15" and model.id == folder.digest(case("sd15").folder)
    found = [tuning.Tuned("precision", "bf16", "it is faster"), tuning.Tuned("batch_size", 2, "0.1 s an image")]
    monkeypatch.setattr(tuning, "tune", lambda load, device: iter(found))
    assert main(["doctor", "hf:owner/sd15", "--tune"]) == 0, capsys.readouterr().err
    with pytest.warns(UserWarning, match="Loaded with --precision bf16, as doctor --tune chose"):
        assert fastdiffusion.load("hf:owner/sd15", device="cpu").modules["net"].dtype == torch.bfloat16


@pytest.fixture
def small_hub(case, tmp_path, monkeypatch):
    """A hub with a LoRA and a ControlNet; what is fetched lies in the real cache's layout, whose files are links."""
    import huggingface_hub
    import tiny_conditioners

    served, cache = tmp_path / "served", tmp_path / "cache"
    local = {name: getattr(huggingface_hub, name) for name in ("snapshot_download", "hf_hub_download")}
    unet = case("sd15").pipe.unet
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = unet.get_submodule(name).weight.shape[1]
    low = {f"unet.{name}.lora_{a}.weight": torch.randn(*s) for a, s in (("A", (2, width)), ("B", (width, 2)))}
    for file in ("owner/style/pytorch_lora_weights.safetensors", "owner/two/a.safetensors", "owner/two/b.safetensors"):
        (served / file).parent.mkdir(parents=True, exist_ok=True)
        save_file(low, served / file)
    tiny_conditioners.controlnet(unet).save_pretrained(served / "owner/canny")
    (served / "owner/canny/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    shutil.copytree(served / "owner/canny", served / "owner/all/canny")

    def fetch(repository, files):
        place = cache / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text("a" * 40)
        for file in files:
            blob = place / "blobs" / hashlib.sha256(file.encode()).hexdigest()
            link = place / "snapshots" / ("a" * 40) / file
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(served / repository / file, blob)
            link.unlink(missing_ok=True)
            link.symlink_to(blob)

    def snapshot_download(repository, local_files_only=False, allow_patterns=None):
        if not local_files_only:
            fetch(repository, allow_patterns)
        return local["snapshot_download"](repository, local_files_only=True)

    def hf_hub_download(repository, file, local_files_only=False):
        if not local_files_only:
            fetch(repository, [file])
        return local["hf_hub_download"](repository, file, local_files_only=True)

    class HfApi:
        def list_repo_files(self, repository):
            place = served / repository
            return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]

    for entry in (snapshot_download, hf_hub_download, HfApi):
        monkeypatch.setattr(huggingface_hub, entry.__name__, entry)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return served, cache


SMALL = {
    "a LoRA": ("style/pytorch_lora_weights.safetensors", "--lora", "hf:owner/style:0.5", "{}:0.5"),
    "one of several": ("two/b.safetensors", "--lora", "hf:owner/two/b.safetensors", "{}"),
    "a ControlNet": ("canny", "--control", "hf:owner/canny:map.png:0.8", "{}:map.png:0.8"),
    "its file": (
        "canny", "--control", "hf:owner/canny/diffusion_pytorch_model.safetensors:edges:map.png", "{}:edges:map.png",
    ),
    "one in a folder": ("all/canny", "--control", "hf:owner/all/canny:map.png", "{}:map.png"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SMALL)
def test_loras_and_control_networks_of_the_hub(small_hub, case, tmp_path, monkeypatch, capsys, kind):
    """Not without --download, then with it, then from the cache: the images of the files themselves, made again."""
    (served, cache), (place, flag, name, own) = small_hub, SMALL[kind]
    monkeypatch.chdir(tmp_path)
    pictures.photo(64, 64).save("map.png")
    run = ["sample", str(case("sd15").folder), "a cat", "-n", "1", "--steps", "1", "--size", "64", "--device", "cpu"]
    assert main([*run, flag, name, "-o", "no.png"]) == 2
    assert re.search(r"hf:owner/\S+ is not on this machine\. Add --download", capsys.readouterr().err)
    assert main([*run, flag, name, "--download", "-o", "got.png"]) == 0, capsys.readouterr().err
    assert not [path for path in cache.rglob("*") if path.suffix == ".bin"]
    assert main([*run, flag, name, "-o", "kept.png"]) == 0
    assert main([*run, flag, own.format(served / "owner" / place), "-o", "own.png"]) == 0
    assert main([*run, "-o", "without.png"]) == 0
    got, kept, wanted, without = (np.asarray(Image.open(f"{n}.png")) for n in ("got", "kept", "own", "without"))
    assert (got == wanted).all() and (kept == wanted).all() and (wanted != without).any()
    shutil.rmtree(served)
    assert main(["reproduce", "got.png", "--device", "cpu"]) == 0, capsys.readouterr().err


def test_which_file_of_the_hub_is_meant(small_hub, case):
    with pytest.raises(InputError, match=r"has 2 files of weights\. Name one, such as hf:owner/two/a.safetensors"):
        fastdiffusion.load(case("sd15").folder, device="cpu", lora="hf:owner/two", download=True)


def test_variants_of_weights():
    files = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json", "unet/readme.md"]
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"]
    every = [*files, *shards, *half]
    assert set(hub.selection("n", every, ["unet"])) == {*files[:2], *shards}
    assert set(hub.selection("n", every, ["unet"], half=True)) == {files[0], half[0]}
    assert set(hub.selection("n", [files[0], *half], ["unet"])) == {files[0], half[0]}
    more = ["low_res_scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"]
    more += ["unet/chat_template.jinja"]  # of a tokenizer, from which a language model's prompts are made
    assert set(hub.selection("n", [*every, *more, "safety_checker/config.json"], ["unet"])) == {
        *files[:2], *shards, *more
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="pickles only in unet"):
        hub.selection("n", [files[0], "unet/diffusion_pytorch_model.bin"], ["unet"])


# ---- settings that save memory ----------------------------------------------------------------------------------


def test_precision_of_loading(case):
    """Half precision when asked for, of files in float32: another model, with the rounded weights."""
    one = case("sd15")
    for source in (one.folder, one.file):
        full, half = (fastdiffusion.load(source, device="cpu", **o) for o in ({}, {"precision": "bf16"}))
        weights = half.modules["net"].state_dict()
        assert all(torch.equal(weights[n], t.bfloat16()) for n, t in full.modules["net"].state_dict().items())
        assert half.modules["text_encoder"].dtype == torch.bfloat16
        assert half.modules["autoencoder"].dtype == torch.float32, "which force_upcast says, so it is not rounded"
        assert half.id != full.id and fastdiffusion.load(source, device="cpu", precision="float32").id == full.id
    assert fastdiffusion.sample(half, "a cat", n=1, steps=2).images.isfinite().all()


def test_offloading_moves_one_network_at_a_time(case):
    """Encode, denoise, decode: never are two networks on the device, and the images are the same."""
    options = {"n": 2, "steps": 2, "negative_prompt": "blurry"}
    wanted = fastdiffusion.sample(case("sdxl").file, "a (cat:1.5)", device="cpu", **options).images
    with pretended():
        model = fastdiffusion.load(case("sdxl").file, device="cuda", offload=True)
        assert model.device.type == "cuda" and {
            p.device.type for m in model.modules.values() for p in m.parameters()
        } == {"cpu"}
        order, there = [], []
        for name, module in model.modules.items():

            def note(*_, name=name):
                there.append([n for n, m in model.modules.items() if next(m.parameters()).device.type == "cuda"])
                order.append(name)

            module.register_forward_hook(note)
        got = fastdiffusion.sample(model, "a (cat:1.5)", **options).images
        assert all(len(names) == 1 for names in there)
        assert order[-2:] == ["net", "net"] and set(order) == {"net", "text_encoder", "text_encoder_2"}
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="runs on a CPU"):
        case("sdxl").load(offload=True)


def test_tiles(case, monkeypatch):
    one = case("sd15")
    plain, tiled = one.load(), one.load(vae_tiling=True)
    z = torch.randn(1, 4, 12, 12)
    with torch.no_grad():
        assert (plain.decode(z) - tiled.decode(z)).abs().max() > 1e-4, "96 pixels are more than the 64 of a tile"
    assert plain.id != tiled.id


def test_settings_for_a_given_memory():
    """As few as fit: first what changes no pixel. Less memory never takes fewer settings, nor more than allowed."""
    numbers = {
        "unet": (2_567_000_000, torch.float32),
        "vae": (84_000_000, torch.float32),
        "text_encoder": (817_000_000, torch.float32),
    }
    choices = []
    for limit in range(40, 5, -1):
        choice, note = low_memory.choose(limit * 1e9, numbers, 1024**2, gpu=True, half=True)
        assert choice.bytes <= limit * 1e9 and note.startswith("--mem chose")
        choices.append((choice.tiling, choice.half, choice.offload))
    assert choices[0] == (False, False, False) and (False, False, True) in choices and (False, True, True) in choices
    assert choices == sorted(choices)
    with pytest.raises(InputError, match="even with all settings"):
        low_memory.choose(4e9, numbers, 1024**2, gpu=True, half=True)
    assert not low_memory.choose(40e9, numbers, 1024**2, gpu=False, half=True)[0].offload


def test_mem_says_what_it_chose(case, tmp_path, monkeypatch, capsys):
    one = case("sd15")
    for name in ("_DECODING", "_DENOISING"):
        monkeypatch.setattr(low_memory, name, 0)
    parts = [getattr(one.pipe, part) for part in PARTS if hasattr(one.pipe, part)]
    unet, vae, text = (sum(p.numel() for p in part.parameters()) for part in parts)
    limit = 3 * (unet + text) + 4 * vae  # less than in float32, more than in half precision; the VAE stays float32
    with pytest.warns(UserWarning, match="--mem chose --precision bf16"):
        model = one.load(mem=f"{limit / 1e6}M")
    assert model.modules["net"].dtype == torch.bfloat16 and "precision bf16" in model.info["notes"][0]
    with pytest.warns(UserWarning, match="no other setting"):
        assert one.load(mem="4G").id == one.load().id
    with pytest.raises(InputError, match="even with all settings"):
        one.load(mem="0.001M")


# ---- options and recipes ----------------------------------------------------------------------------------------


def test_every_way_to_ask(case, tmp_path, monkeypatch):
    """Verbs, ``load`` and commands take the same options; what changes images is in ``id`` and in the recipe."""
    monkeypatch.chdir(tmp_path)
    one = case("sd15")
    asked = {"precision": "bf16", "prediction": "v"}
    made = fastdiffusion.sample(one.file, "a cat", n=1, steps=2, device="cpu", **asked)
    model = one.load(**asked)
    again = fastdiffusion.sample(model, "a cat", n=1, steps=2)
    assert torch.equal(made.images, again.images) and made.recipe == again.recipe
    assert made.recipe["model"] == {
        "name": "sd15.safetensors", "sha256": model.id, "loaded": asked, "file": folder.digest(one.file)
    } | {"name": made.recipe["model"]["name"]}  # fmt: skip
    assert not set(asked) & set(made.recipe["parameters"])
    shutil.copy(one.file, tmp_path / "sd15.safetensors")
    run = ["sample", "sd15.safetensors", "a cat", "-n", "1", "--steps", "2", "--device", "cpu"]
    assert main([*run, "--precision", "bfloat16", "--prediction", "v"]) == 0
    reproduced = reproduce(tmp_path / "out" / "0000-a-cat.png", device="cpu")
    assert torch.equal(reproduced.images, made.images), "loaded as the recipe says"
    assert torch.equal(reproduce(tmp_path / "out" / "0000-a-cat.png", model).images, made.images)
    assert fastdiffusion.sample(one.file, "a cat", n=1, steps=2, device="cpu").recipe["model"].keys() == {
        "name",
        "sha256",
    }


def test_the_doctor_finds_a_single_file_equal_to_the_pipeline(case):
    """With the noise levels that ship for its layout."""
    verdicts = [text for what, text in examine(case("sd15").load()) if what in ("pipeline", "guidance")]
    assert len(verdicts) == 2 and all(text.endswith(": equal") for text in verdicts)


def test_a_recipe_may_not_load_as_it_likes(case, tmp_path):
    made = fastdiffusion.sample(case("sd15").file, "a cat", n=1, steps=2, device="cpu", precision="bf16")
    (path,) = made.save(tmp_path)
    from PIL import Image, PngImagePlugin

    for change in ({"parameters": {"download": True}}, {"model": {"loaded": {"tokenizer": "/etc"}}}):
        recipe = {
            key: value | change.get(key, {}) if isinstance(value, dict) else value
            for key, value in made.recipe_of(0).items()
        }
        info = PngImagePlugin.PngInfo()
        info.add_text("fastdiffusion", json.dumps(recipe))
        Image.open(path).save(tmp_path / "bad.png", pnginfo=info)
        with pytest.raises(fastdiffusion.errors.FastdiffusionError):
            reproduce(tmp_path / "bad.png", device="cpu")


def test_tables_of_a_single_file(case, tmp_path):
    """Beside it, and only for a model that was loaded alike."""
    path = tmp_path / "sd15.safetensors"
    shutil.copy(case("sd15").file, path)
    model = fastdiffusion.load(path, device="cpu")
    fitted = model.table(3, "euler")
    assert folder.write_table(path, model, 3, 7.5, (64, 64), fitted) == tmp_path / "sd15.safetensors.tables.json"
    assert fastdiffusion.load(path, device="cpu").tables == {"3 steps, scale 7.5, 64x64": fitted}
    assert fastdiffusion.load(path, device="cpu", precision="bf16").tables == {}


def test_a_lora_with_a_single_file(case, tmp_path):
    net = case("sd15").pipe.unet
    name = next(name for name, _ in net.named_modules() if name.endswith("attn2.to_k"))
    weight = net.get_submodule(name).weight
    tensors = {
        f"unet.{name}.lora_A.weight": torch.randn(2, weight.shape[1]),
        f"unet.{name}.lora_B.weight": torch.randn(len(weight), 2),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    model = case("sd15").load(lora=f"{tmp_path / 'style.safetensors'}:0.5")
    down, up = tensors.values()
    torch.testing.assert_close(model.modules["net"].get_submodule(name).weight, weight + 0.5 * up @ down)
    made = fastdiffusion.sample(model, "a cat", n=1, steps=2)
    assert model.id not in (case("sd15").load().id, folder.digest(case("sd15").file))
    (path,) = made.save(tmp_path)
    assert torch.equal(reproduce(path, device="cpu").images, made.images)


# ---- bad input: the sentence, and exit code 2 -----------------------------------------------------------------------


def without(*starts):
    return lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(starts)}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


def with_channels(n):
    def change(tensors):
        name = f"{one_file.NET}input_blocks.0.0.weight"
        return tensors | {name: torch.randn(len(tensors[name]), n, 3, 3)}

    return change


def equal_widths(tensors):
    prefix = "conditioner.embedders.1.model."
    return {n: t[..., :16] if n == f"{prefix}token_embedding.weight" else t for n, t in tensors.items()}


BAD = {
    "no text encoder": ("sd15", without("cond_stage_model."), r"has no text_encoder\. Name .*--tokenizer FOLDER"),
    "no VAE": ("sdxl", without("first_stage_model."), r"has no vae\. Name a folder.*--tokenizer FOLDER"),
    "two encoders of one width": ("sdxl", equal_widths, "text_encoder_2 .* has width 16; .* not guessed"),
    "inpainting": ("sd15", with_channels(9), r"takes 9 channels.* give the folder"),
    "another architecture": ("sd15", renamed("input_blocks.1.", "input_blocks.9."), "is not stable-diffusion-1.s"),
    "unknown": ("sd15", lambda tensors: {"weight": torch.zeros(2)}, r"layout of .* is not known.*give the folder"),
    "nothing in it": ("sd15", lambda tensors: {}, r"layout of .* is not known"),
    "Chroma": ("sd15", lambda t: {"distilled_guidance_layer.x": torch.zeros(2)}, "is Chroma.*Give its folder"),
    "a LoRA": ("sd15", lambda t: {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, "is a LoRA.*--lora"),
    "EDM": ("sdxl", lambda t: t | {"edm_vpred.sigma_max": torch.zeros(1)}, "EDM's levels"),
    "another quantization": (
        "sd15",
        lambda t: t | {"x.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
        "quantized as nvfp4.*GGUF",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(case, tmp_path, monkeypatch, capsys, kind):
    name, change, sentence = BAD[kind]
    monkeypatch.chdir(tmp_path)
    one_file.write(case(name).pipe, tmp_path / "model.safetensors", change)
    assert main(["sample", "model.safetensors", "a cat", "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert re.search(sentence, message, re.DOTALL) and "Traceback" not in message


def test_files_that_are_cut_or_pickled(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = case("sd15").file.read_bytes()
    contents = {
        "half.safetensors": whole[: len(whole) // 2],
        "old.ckpt": b"PK",
        "none.gguf": b"GGUF\x03",
        "bad.gguf": b"no",
    }
    sentences = ("half downloaded.*Download it anew", "pickle", "half downloaded", "half downloaded")
    for (name, content), sentence in zip(contents.items(), sentences, strict=True):
        Path(name).write_bytes(content)
        assert main(["sample", name, "a cat"]) == 2
        message = capsys.readouterr().err
        assert re.search(sentence, message) and "Traceback" not in message
    assert main(["sample", "missing.gguf", "a cat"]) == 2


OPTIONS = {
    ("emoji", "--precision bf16"): "--precision is for checkpoints of other programs",
    ("emoji", "--download"): "--download is for checkpoints",
    ("sd15", "--precision int3"): "No precision named 'int3'",
    ("sd15", "--prediction x0"): "No prediction named 'x0'",
    ("sd15", "--mem lots"): "mem is a size such as 6G",
    ("sd15", "--download"): "--download is for a name such as hf:owner/name",
    ("sd15", "--offload"): "runs on a CPU",
    ("sd15", "--tokenizer nowhere"): "There is no folder 'nowhere'",
    ("sd15", "--size 65"): "sizes that divide by",
    ("flux", "--prediction v"): "Leave --prediction out",
    ("flux alone", ""): r"has no tokenizer_2.*--tokenizer FOLDER",
    ("sd15 folder", "--tokenizer ."): "has its own tokenizers",
    ("hf:name", ""): "written hf:owner/name",
}  # fmt: skip


@pytest.mark.parametrize(("what", "options"), OPTIONS)
def test_options_that_make_no_sense(case, tmp_path, monkeypatch, capsys, what, options):
    monkeypatch.chdir(tmp_path)
    name, _, how = what.partition(" ")
    rest = []
    if name in ("sd15", "flux"):
        one = case(name)
        rest = ["--tokenizer", str(one.folder)] if name == "flux" and not how else []
        name = str(one.folder if how == "folder" else one.file)
    assert main(["sample", name, "a cat", "--device", "cpu", *rest, *options.split()]) == 2
    message = capsys.readouterr().err
    assert re.search(OPTIONS[what, options], message) and "Traceback" not in message
