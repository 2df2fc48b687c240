"""Memory that loading a checkpoint takes, beside diffusers' own loader, each in a process of its own.

    python bench/loading.py

A Stable Diffusion of random weights (about 100 million parameters in the UNet, all in fp16) is written as a folder and
as one file. Each row is a fresh process: resident memory after loading and its peak, both above what the imports take.
The last rows are what a VAE of the published widths holds while it decodes, whole and in tiles: the numbers behind
``adapters.low_memory``. Linux only; about two minutes on one core.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CHILD = """
import sys, json, gc, torch, diffusers, transformers, fastdiffusion, fastdiffusion.adapters
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
    from fastdiffusion.adapters.sources.single_file import CONFIGS
    config = json.loads((CONFIGS / "stable-diffusion-1.json").read_text())["vae"]
    vae = diffusers.AutoencoderKL.from_config(config).eval()
    if options.pop("tiled"):
        vae.enable_tiling()
    z = torch.randn(1, 4, options["side"] // 8, options["side"] // 8)
    run["decode"] = torch.no_grad()(lambda: vae.decode(z))
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
kept = run[what]()
gc.collect()
print(json.dumps([memory("VmRSS") - before, memory("VmHWM") - before]))
"""


def measured(what, path, **options):
    """(MB that are kept, MB at the peak) above what was there before."""
    arguments = [sys.executable, "-c", CHILD, what, str(path), json.dumps(options)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def checkpoint(place):
    """A random Stable Diffusion in fp16, as a folder and as one file whose layout has its sizes."""
    sys.path.insert(0, str(ROOT / "tests"))
    import diffusers
    import one_file
    from tiny_parts import clip
    from tiny_pipelines import NO_CHECKER, SCHEDULER

    torch.manual_seed(0)
    tokenizer, encoder = clip(512)
    unet = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256, 384, 384), cross_attention_dim=512, attention_head_dim=8
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(64, 64, 128, 128), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, sample_size=256, force_upcast=False,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        **NO_CHECKER,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(place / "sd", safe_serialization=True)
    one_file.write(pipe, place / "sd.safetensors")
    return pipe


def main():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pipe = checkpoint(place)
        nets = (pipe.unet, pipe.vae, pipe.text_encoder)
        count = sum(p.numel() for net in nets for p in net.parameters())
        size = sum(file.stat().st_size for file in (place / "sd").rglob("*.safetensors")) / 2**20
        print(f"{count / 1e6:.0f} million parameters, {size:.0f} MB in fp16, torch {torch.__version__}")
        theirs = measured("theirs", place / "sd")
        rows = {"diffusers, folder": theirs, "fastdiffusion, folder": measured("ours", place / "sd")}
        for name, (kept, peak) in rows.items():
            print(f"{name:24} kept {kept:6.0f} MB  peak {peak:6.0f} MB  {peak / theirs[1]:5.2f} of diffusers' peak")
    for side in (512, 768):
        for tiled in (False, True):
            _, peak = measured("decode", ".", side=side, tiled=tiled)
            numbers = peak * 2**20 / 4 / side**2
            print(
                f"decoding {side} px, {'tiled' if tiled else 'whole'}: {peak:.0f} MB, {numbers:.0f} float32 per pixel"
            )


if __name__ == "__main__":
    main()
