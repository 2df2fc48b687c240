"""Memory that loading a checkpoint takes, beside diffusers' own loader, each in a process of its own.

    python bench/loading.py

Each row is a fresh process that loads a folder of random weights: the peak of its resident memory above what the
imports take, right after loading (mapped weights take none before they are used) and after all weights have been read
once. The last rows are what a VAE of the published widths holds while it decodes, whole and in tiles: the number behind
``adapters.low_memory``. Linux only; about three minutes on one core.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CHILD = """
import gc, json, sys, diffusers, torch, transformers, fastdiffusion, fastdiffusion.adapters
from pathlib import Path
torch.set_num_threads(1)

def memory(name):
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) / 1024

def loaders(path):
    yield "ours", lambda: fastdiffusion.load(path, device="cpu", **options)
    yield "theirs", lambda: diffusers.StableDiffusionPipeline.from_pretrained(path, torch_dtype=torch.float16)
    yield "import", lambda: [diffusers.UNet2DConditionModel, transformers.CLIPTextModel, diffusers.AutoencoderKL,
                             diffusers.StableDiffusionPipeline, transformers.CLIPTokenizer]

what, path, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
run = dict(loaders(path))
run["import"]()
if what == "decode":
    from fastdiffusion.adapters import low_memory
    from fastdiffusion.adapters.sources.layouts import CONFIGS
    config = json.loads((CONFIGS / "stable-diffusion-1.json").read_text())["vae"]
    vae = diffusers.AutoencoderKL.from_config(config).eval()
    if options.pop("tiled"):
        low_memory.tile(vae)
    z = torch.randn(1, 4, options["side"] // 8, options["side"] // 8)
    run["decode"] = torch.no_grad()(lambda: vae.decode(z))
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
kept = run[what]()
peak = memory("VmHWM") - before
if what in ("ours", "theirs"):
    for module in (kept.modules if what == "ours" else kept.components).values():
        for tensor in getattr(module, "parameters", list)():
            tensor.sum()
print(json.dumps([peak, memory("VmHWM") - before]))
"""


def measured(what, path, **options):
    """MB at the peak above what was there before: after loading, and after the weights have been read."""
    arguments = [sys.executable, "-c", CHILD, what, str(path), json.dumps(options)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def checkpoint(place):
    """A random Stable Diffusion of 100 million parameters in fp16."""
    sys.path.insert(0, str(ROOT / "tests"))
    import diffusers
    from tiny_parts import clip
    from tiny_pipelines import NO_CHECKER, SCHEDULER

    torch.manual_seed(0)
    tokenizer, encoder = clip(512)
    unet = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256, 384, 384), cross_attention_dim=512, attention_head_dim=8
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(64, 64, 128, 128), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, sample_size=256,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        **NO_CHECKER,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(place)


def main():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sd"
        checkpoint(place)
        size = sum(file.stat().st_size for file in place.rglob("*.safetensors")) / 2**20
        print(f"{size:.0f} MB in fp16, torch {torch.__version__}, diffusers {version('diffusers')}")
        theirs = measured("theirs", place)
        rows = {"diffusers": theirs, "fastdiffusion": measured("ours", place)}
        rows["fastdiffusion, float32"] = measured("ours", place, precision="float32")
        for name, (loaded, used) in rows.items():
            print(f"{name:24} peak {loaded:6.0f} MB loaded, {used:6.0f} MB when all weights have been read")
        print(
            f"ratio to diffusers {rows['fastdiffusion'][0] / theirs[0]:.2f}, {rows['fastdiffusion'][1] / theirs[1]:.2f}"
        )
    for tiled in (False, True):
        peak, _ = measured("decode", ".", side=768, tiled=tiled)
        per_pixel = peak * 2**20 / 768**2
        print(f"decoding 768 px, {'tiled' if tiled else 'whole'}: {peak:.0f} MB, {per_pixel:.0f} bytes per pixel")


if __name__ == "__main__":
    main()
