"""Engines on a CPU: seconds, memory and quality by engine and precision, beside what diffusers does by default.

    python bench/engines.py step [--size 256]   # SD1.5's network (860 million random weights), one guided evaluation
    python bench/engines.py image [--size 512]  # words to image: 8 steps here, 25 of diffusers' default pipeline
    python bench/engines.py image --guidance "cfg scale=7.5 interval=0.28..5.42"    # guided at some of the 8 steps
    python bench/engines.py image --size 256 --only torch int8 "cpp f32" "cpp q8_0"  # beside stable-diffusion.cpp
    python bench/engines.py pair                # torch's own path beside diffusers' at equal settings
    python bench/engines.py small               # the bundled text-to-image model, and the bundled restorer

``step`` and ``image`` take 12 GB of memory and 9 GB of disk, given back; each row is a process of its own, so that
memory is its own too. A guided evaluation is a batch of two. Conversion and the first trial of a shape are timed apart.
stable-diffusion.cpp reads the same weights, as one file. It is built for this CPU by
pip install --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

PROMPT, STEPS, THEIRS = "a lighthouse at dusk, oil on canvas", 8, 25


def memory(name: str = "VmRSS") -> float:
    """Of this process, in GB; pages of mapped files, which cost none, are left out of the one that is held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return (kilobytes["RssAnon"] if name == "held" else kilobytes[name]) / 1024**2


def least(call: Any, times: int) -> float:
    """Seconds of a call, the least of several."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def in_turn(first: Any, second: Any, times: int) -> tuple[list[float], list[float]]:
    """Seconds of two calls, made in turn: what slows the machine for a while slows both."""
    spent = [(least(first, 1), least(second, 1)) for _ in range(times)]
    return [a for a, _ in spent], [b for _, b in spent]


def filled(net: torch.nn.Module) -> Any:
    """Random weights for a network that has none yet."""
    net, g = net.to_empty(device="cpu"), torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data.normal_(0, 0.02, generator=g) if p.ndim > 1 else p.data.zero_()
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.weight.data.fill_(1)
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    return net.eval().requires_grad_(False)


# ---- one evaluation ----------------------------------------------------------------------------------------------


@torch.no_grad()
def step(precision: str, size: int, folder: Path) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    from fastdiffusion.adapters import engines

    with torch.device("meta"):
        net: Any = UNet2DConditionModel(cross_attention_dim=768)
    net, g = filled(net), torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, size // 8, size // 8, generator=g), torch.randn(2, 77, 768, generator=g)
    t, found = torch.tensor([300.5, 300.5]), {}

    def evaluate() -> torch.Tensor:
        return net(x, t, encoder_hidden_states=text, return_dict=False)[0]

    kept = folder / "answer.pt"
    if precision != "torch":
        engines.attach({"net": net}, "bench", precision)
    start = time.perf_counter()
    answer = evaluate()
    found["first call"] = time.perf_counter() - start
    found["seconds"] = least(evaluate, 3)
    found["GB held"] = memory("held")
    if precision == "torch":
        torch.save(answer, kept)
        return found
    truth, (program, _) = torch.load(kept), *net.forward._programs.values()
    call = engines.Call((x, t), {"encoder_hidden_states": text})
    in_turn(lambda: program(call.arrays()), evaluate, 2)
    raw, ours = in_turn(lambda: program(call.arrays()), evaluate, 15)
    refused = {"refused": str(net.forward.refusals)} if net.forward.refusals else {}
    moved = float((answer - truth).abs().max() / truth.abs().max())
    return found | {"over the raw engine": median(ours) / median(raw), "difference": moved} | refused


# ---- a whole image -----------------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> Path:
    """A folder of the size of SD1.5, of random weights, in float32."""
    import diffusers
    import transformers

    from fastdiffusion.adapters.sources.clip_tokenizer import clip_tokenizer
    from fastdiffusion.adapters.sources.layouts import CONFIGS

    config = json.loads((CONFIGS / "stable-diffusion-1.json").read_text())
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel.from_config(config["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(config["vae"]),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**config["text_encoder"])),
        }
    pipe = diffusers.StableDiffusionPipeline(
        **{name: filled(net) for name, net in parts.items()},
        tokenizer=clip_tokenizer(transformers.CLIPTokenizer, **config["tokenizer"]),
        scheduler=diffusers.PNDMScheduler(**config["scheduler"], skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "sd15")
    return folder / "sd15"


@torch.no_grad()
def image(precision: str, size: int, folder: Path, guidance: str | None = None) -> dict[str, Any]:
    path = folder / "sd15"
    if precision.startswith("cpp "):
        return cpp(precision.removeprefix("cpp "), size, path)
    if precision == "torch":
        import diffusers

        pipe = diffusers.StableDiffusionPipeline.from_pretrained(path)
        spent = least(lambda: pipe(PROMPT, height=size, width=size, num_inference_steps=THEIRS), 1)
        return {"seconds": spent, "GB held": memory("held"), "GB at most": memory("VmHWM")}
    import fastdiffusion

    plain = precision == "torch, ours"
    guidance = None if plain else guidance  # beside diffusers' default it is guided at every step too
    options: dict[str, Any] = {} if plain else {"engine": "openvino", "precision": precision}
    model = fastdiffusion.load(path, device="cpu", **options)

    def draw(steps: int, scale: float | None = None) -> None:
        fastdiffusion.sample(
            model, PROMPT, n=1, steps=steps, size=size, guidance=None if scale else guidance, scale=scale
        )

    start = time.perf_counter()
    if not plain:
        for scale in (7.5, 1.0) if guidance else (7.5,):  # with two conditions and with one: each is a shape of its own
            draw(1, scale)
    first = time.perf_counter() - start
    spent = least(lambda: draw(THEIRS if plain else STEPS), 1)
    return {
        "first image of one step": first,
        "seconds": spent,
        "GB held": memory("held"),
        "GB at most": memory("VmHWM"),
    }


@torch.no_grad()
def pair(precision: str, size: int, folder: Path) -> dict[str, Any]:
    """torch's own path beside diffusers' at equal settings: the same solver, as many steps, in turn in one process."""
    import diffusers

    import fastdiffusion

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd15")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    model = fastdiffusion.load(folder / "sd15", device="cpu")

    def theirs() -> Any:
        return pipe(PROMPT, height=size, width=size, num_inference_steps=STEPS)

    def ours() -> Any:
        return fastdiffusion.sample(model, PROMPT, n=1, steps=STEPS, size=size)

    in_turn(theirs, ours, 1)
    spent = in_turn(theirs, ours, 3)
    return {"theirs": median(spent[0]), "ours": median(spent[1]), "ratio": median(spent[1]) / median(spent[0])}


def cpp(weights: str, size: int, path: Path) -> dict[str, Any]:
    """stable-diffusion.cpp, as many steps as here, with weights in f32 or q8_0."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import one_file
    from stable_diffusion_cpp import StableDiffusion  # pyright: ignore[reportMissingImports]

    file = path.with_suffix(".safetensors")
    if not file.is_file():
        import diffusers

        one_file.write(diffusers.StableDiffusionPipeline.from_pretrained(path), file)
    net = StableDiffusion(
        model_path=str(file), wtype=weights, n_threads=torch.get_num_threads(), vae_decode_only=True, verbose=False
    )
    times: list[float] = []
    start = time.perf_counter()
    net.generate_image(
        prompt=PROMPT, width=size, height=size, cfg_scale=7.5, sample_steps=STEPS, sample_method="dpm++2m", seed=0,
        progress_callback=lambda *_: times.append(time.perf_counter()),
    )  # fmt: skip
    end = time.perf_counter()
    a_step = (times[-1] - times[0]) / (len(times) - 1)
    return {
        "seconds": end - start,
        "a step": a_step,
        "decoding": end - times[-1],
        "GB held": memory("held"),
        "GB at most": memory("VmHWM"),
    }


# ---- the bundled models --------------------------------------------------------------------------------------------


def small(precision: str, size: int, folder: Path) -> dict[str, Any]:
    from PIL import Image
    from text_to_image import images_of, known

    import fastdiffusion
    from fastdiffusion import data
    from fastdiffusion.metrics import retrieval
    from fastdiffusion.tasks.evaluation import evaluator as judging

    options = {} if precision == "torch" else {"engine": "openvino", "precision": precision}
    model = fastdiffusion.load("emoji", device="cpu", **options)
    train = data.load("emoji-scenes")
    _, named = known(train)
    names = list(named)[-64:]

    def draw() -> torch.Tensor:
        return fastdiffusion.sample(model, names, n=len(names), steps=6, scale=3.0, batch_size=32).images

    images = draw()
    truth = images if precision == "torch" else torch.load(folder / "emoji.pt")
    torch.save(images, folder / "emoji.pt") if precision == "torch" else None
    found: dict[str, Any] = {"images a second": len(names) / least(draw, 2)}
    found["R-precision"] = retrieval.r_precision(judging.load(), images, names)[0]
    found["of real images"] = retrieval.r_precision(judging.load(), images_of(train, [named[n] for n in names]), names)[
        0
    ]
    found["images differ at most, of 1, and by dB"] = _moved(images, truth)
    g = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 60, generator=g), (800, 1200), mode="bicubic")[0]
    picture = Image.fromarray((smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    picture.save(folder / "photo.jpg", quality=30)

    def restore() -> torch.Tensor:
        return fastdiffusion.restore(folder / "photo.jpg", "dejpeg", device="cpu", **options).images

    restored = restore()
    found["restorer, s a megapixel"] = least(restore, 2) / 0.96
    truth = restored if precision == "torch" else torch.load(folder / "restored.pt")
    torch.save(restored, folder / "restored.pt") if precision == "torch" else None
    found["restored differs at most, of 1, and by dB"] = _moved(restored, truth)
    return found


def _moved(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The greatest difference as a part of the range, and the mean one as a PSNR."""
    off = (a.float() - b.float()).abs() / (255 if a.dtype == torch.uint8 else 2)
    return round(float(off.max()), 4), round(float(-10 * off.square().mean().clamp(min=1e-12).log10()), 1)


PARTS = {"step": step, "image": image, "pair": pair, "small": small}
PRECISIONS = ("torch", "float32", "bf16", "int8")
ROWS = {"step": PRECISIONS, "image": ("torch", "torch, ours", *PRECISIONS[1:]), "pair": ("torch",), "small": PRECISIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--only", nargs="+", help="rows, of: torch 'torch, ours' float32 bf16 int8 'cpp f32' 'cpp q8_0'"
    )
    parser.add_argument("--guidance", help="of image's rows here, such as 'cfg scale=7.5 interval=0.28..5.42'")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep checkpoint and converted networks here")
    args = parser.parse_args()
    if args.guidance and args.part != "image":
        parser.error("--guidance is of the part image.")
    size = args.size or (512 if args.part == "image" else 256)
    if args.row:
        torch.set_num_threads(args.threads)
        os.environ["XDG_CACHE_HOME"] = str(args.folder)
        options = {"guidance": args.guidance} if args.guidance else {}
        print(json.dumps(PARTS[args.part](args.row, size, args.folder, **options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.part in ("image", "pair") and not (folder / "sd15" / "model_index.json").is_file():
            checkpoint(folder)
        base: dict[str, Any] = {}
        for row in args.only or ROWS[args.part]:
            command = [sys.executable, __file__, args.part, "--row", row, "--size", str(size), "--folder", str(folder)]
            command += ["--threads", str(args.threads), *(["--guidance", args.guidance] if args.guidance else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{row}: {done.stderr[-1000:]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            base = base or found
            if "seconds" in found and found is not base:
                found["times as fast"] = base["seconds"] / found["seconds"]
            print(f"{row:12}", {k: round(v, 7) if isinstance(v, float) else v for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
