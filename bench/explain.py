"""Explanations measured: where words are, whether the top word matters, whether shares add up, what memory it takes.

python bench/explain.py masks [--model MODEL] [--of pairs|colors] [-n 32]   # IoU of word masks, against baselines
python bench/explain.py deletion [--model MODEL] [-n 32]   # the top word left out, against the others
python bench/explain.py memory [--model MODEL]             # peak of sampling and of explaining, each in a process
python bench/explain.py peer --model tests/checkpoints/sd-small   # maps by attention, and attention-map-diffusers' own

Compositions of two objects ("pairs"): glyphs side by side, each 64 pixels, whose masks are those they were drawn with;
prompts are "A and B". Or a glyph and the color that it is on ("colors"), "A on blue". Baselines are a mask of all ones
and a centered disc. For the deletion test the prompts are names of glyphs of at least three words. Each word is left
out in turn, and the evaluator's score of the whole name falls by so much; of the word that ranks first the fall is
compared with the mean over the others, which is what a random one may expect. Words are ranked by their shares of what
the prompt changed in pixels and of how well the image fits the name by CLIP (--toward), and by what is lost of either
without the word. "incomplete" is what the shares lack of the whole, as a part of it. 95 % intervals by bootstrap over
prompts. Memory is the peak above what is held before, after a first run at the model's own size (what a first run
imports is no memory of a run); Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import fastdiffusion
from fastdiffusion import metrics
from fastdiffusion.data.emoji import holdout
from fastdiffusion.data.emoji.font import emoji
from fastdiffusion.io.images import to_tensor
from fastdiffusion.prompts.terms import terms
from fastdiffusion.tasks import word_masks
from fastdiffusion.tasks.attribution import explain as explaining
from fastdiffusion.tasks.attribution.explain import explain
from fastdiffusion.tasks.attribution.integrated import Run, by_term, secants
from fastdiffusion.tasks.attribution.options import ExplainOptions
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.tasks.generation.options import SampleOptions
from fastdiffusion.tasks.generation.plan import plan


def glyphs(least: int = 1, most: int = 3) -> list[tuple[int, str]]:
    known = emoji(64, alpha=True)
    names = [(i, captions[0]) for i, captions in enumerate(known.captions)]
    plain = [
        (i, name) for i, name in names if not holdout.reserved(known.names[i]) and not holdout.skins(known.names[i])
    ]
    return [(i, name) for i, name in plain if least <= len(name.split()) <= most and name.replace(" ", "").isalpha()]


def pair(rng: random.Random) -> tuple[torch.Tensor, list[torch.Tensor], list[str]]:
    """Two glyphs side by side on white, where each of them is, and their names."""
    known, chosen = emoji(64, alpha=True), rng.sample(glyphs(), 2)
    images = to_tensor(known.batch([i for i, _ in chosen]).images)
    alpha = (images[:, 3:] + 1) / 2
    shown = torch.cat(list(images[:, :3] * alpha + 1 - alpha), -1)
    masks = [torch.zeros(64, 128, dtype=torch.bool) for _ in chosen]
    for k, mask in enumerate(masks):
        mask[:, 64 * k : 64 * (k + 1)] = alpha[k, 0] > 0.5
    return shown, masks, [name for _, name in chosen]


def on_color(rng: random.Random) -> tuple[torch.Tensor, list[torch.Tensor], list[str]]:
    """A glyph on a color, where it is and where the color is, and their names."""
    i, name = rng.choice(glyphs())
    color = rng.choice([color for color in holdout.COLORS if color != "white"])
    image = to_tensor(emoji(64, alpha=True).batch([i]).images)[0]
    alpha, ground = (image[3:] + 1) / 2, torch.tensor(holdout.COLORS[color])[:, None, None] / 127.5 - 1
    return image[:3] * alpha + ground * (1 - alpha), [alpha[0] > 0.5, alpha[0] <= 0.5], [name, color]


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def masks(model: fastdiffusion.Model, n: int, of: str) -> dict[str, object]:
    rng, found = random.Random(11), {}
    for _ in range(n):
        image, places, names = {"pairs": pair, "colors": on_color}[of](rng)
        height, width = image.shape[1:]
        y, x = torch.meshgrid(
            torch.arange(height) - height / 2 + 0.5, torch.arange(width) - width / 2 + 0.5, indexing="ij"
        )
        baselines = {"ones": torch.ones(height, width, dtype=torch.bool), "disc": (x.square() + y.square()).sqrt() < 26}
        prompt = {"pairs": " and ", "colors": " on "}[of].join(names)
        for k, (name, place, other) in enumerate(zip(names, places, reversed(places), strict=True)):
            part = "" if of == "pairs" else (" of the glyph", " of the color")[k]
            for method in ("attention", "occlusion"):
                made = word_masks.word_map(model, image, prompt, name, method)
                found.setdefault(method + part, []).append(overlap(made.map[0] > word_masks.CUT, place))
                hit = made.map[0][place].mean() > made.map[0][other].mean()
                found.setdefault(f"{method}{part}: the right one", []).append(float(hit))
            for kind, mask in baselines.items():
                found.setdefault(kind + part, []).append(overlap(mask, place))
    return {name: summary(values) for name, values in found.items()}


class Remembered(Run):
    """A run whose images for finite steps are made once, for several targets."""

    def mixed(self, amounts: torch.Tensor, terms: Any) -> torch.Tensor:
        kept: dict[tuple[float, ...], torch.Tensor] = self.__dict__.setdefault("kept", {})
        rows = [tuple(row) for row in amounts.tolist()]
        if any(row not in kept for row in rows):
            kept.update(zip(rows, super().mixed(amounts, terms).split(1), strict=True))
        return torch.cat([kept[row] for row in rows])


@torch.no_grad()
def deletion(model: fastdiffusion.Model, n: int) -> dict[str, object]:
    rng, net, found = random.Random(12), evaluator.load(), {}
    for seed, (_, name) in enumerate(rng.sample(glyphs(3, 6), n)):
        run = Remembered(plan(model, SampleOptions(prompt=name, n=1, seed=seed, steps=8)), 0)
        read = terms(name, model.conditioner)
        size, image, blank = model.image_shape[1:], run.image(), run.at([0.0])

        def encode(kept: Any, read: Any = read, size: Any = size) -> Any:
            gone = [term for i, term in enumerate(read.content) if i not in kept]
            return word_masks.condition(model, read, size, read.without(gone))

        split, count = by_term(run, len(read.content), encode), len(read.content)
        without = [run.image(encode([k for k in range(count) if k != i])) for i in range(count)]
        text = net.encode_text([name])[0]
        fall = [float((net.encode_image(image) - net.encode_image(each))[0] @ text) for each in without]
        for what, toward in (("pixels", ""), ("toward", name)):
            target = explaining._target(ExplainOptions(toward=toward), image, blank, torch.ones(1, *size))
            shares = secants(run, target, split, batch_size=4)
            low, high = target(blank).item(), target(image).item()
            lost = [high - target(each).item() for each in without]
            for how, values in (("share", shares.tolist()), ("lost", lost)):
                top = max(range(count), key=values.__getitem__)
                others = [fall[i] for i in range(count) if i != top]
                found.setdefault(f"{how} of {what}: top", []).append(fall[top])
                found.setdefault(f"{how} of {what}: top less random", []).append(fall[top] - sum(others) / len(others))
            found.setdefault(f"{what}: incomplete", []).append(abs(float(shares.sum()) / (high - low) - 1))
        print(seed, name, [round(v, 3) for v in fall], {k: round(v[-1], 3) for k, v in found.items()}, flush=True)
    most = {name: max(values) for name, values in found.items() if "incomplete" in name}
    return {**{name: summary(values) for name, values in found.items()}, "most incomplete": most}


def summary(values: list[float]) -> dict[str, object]:
    low, high = metrics.interval(lambda v: float(v.mean()), torch.tensor(values))
    mean, median = sum(values) / len(values), sorted(values)[len(values) // 2]
    return {
        "n": len(values),
        "mean": round(mean, 4),
        "median": round(median, 4),
        "95 %": [round(low, 4), round(high, 4)],
    }


def memory(name: str, size: int) -> dict[str, object]:
    """Peaks in MB: of the whole process, and above what is held once the model is loaded.

    "In use" is the latter without what glibc's malloc keeps of freed memory: each tensor is then mapped on its own.
    """
    found: dict[str, dict[str, float]] = {}
    for what in ("sample", "explain"):
        run = [sys.executable, __file__, f"_{what}", "--model", name, "--size", str(size)]
        kept, used = (
            json.loads(subprocess.run(run, capture_output=True, text=True, check=True, env=env).stdout.splitlines()[-1])
            for env in (None, os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
        )
        found[what] = {**kept, "in use": used["above the model"]}
    ratios = {name: round(found["explain"][name] / value, 2) for name, value in found["sample"].items()}
    return {**found, "ratio": ratios}


def peer(path: str, prompt: str = "a dog face on blue") -> dict[str, object]:
    """Maps of each word in one evaluation of a Stable Diffusion, beside those of attention-map-diffusers (1.0.0).

    Its capture keeps the probabilities of each layer; their mean over layers, at 64 pixels, is compared.
    """
    import diffusers
    from attention_map_diffusers import AttentionCapture
    from torch.nn import functional

    pipe, seen = diffusers.StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32), {}
    pipe.unet.register_forward_pre_hook(lambda _, args, kw: seen.update(x=args[0], t=int(args[1])), with_kwargs=True)
    with AttentionCapture(pipe, relations=["image->text"], timesteps="all") as capture:
        pipe(prompt, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    layers = []
    for record in capture.compute():
        places = record.data.float().flatten(1, -3).mean(1)[0].T  # tokens, pixels
        side = round(places.shape[1] ** 0.5)
        layers.append(functional.interpolate(places.reshape(1, -1, side, side), (64, 64), mode="bilinear")[0])
    theirs = torch.stack(layers).mean(0)
    model = fastdiffusion.load(path, device="cpu", precision="float32")
    kept = pipe.scheduler.alphas_cumprod[seen["t"]]
    sigma = float(((1 - kept) / kept).sqrt())
    read = terms(prompt, model.conditioner)
    with torch.no_grad():
        own = word_masks.of_attention(model, read, [(seen["x"] * (1 + sigma**2) ** 0.5, sigma)], (64, 64))
    found = {}
    for term, places in zip(read.content, own, strict=True):
        other = theirs[list(term.rows)].sum(0)
        found[term.text] = float((places - other).abs().max() / other.max())
    return {"largest difference, of the largest value": found}


def peak_of(what: str, model: fastdiffusion.Model, size: int) -> dict[str, float]:
    own = model.image_shape[-1]
    size = size or own * (4 if own <= 64 else 1)  # large enough to be seen above the rest

    def once(size: int) -> None:
        if what == "sample":
            fastdiffusion.sample(model, "a red heart", n=1, steps=2, size=size)
        else:
            explain("a red heart", model, steps=2, points=8, size=size, maps="occlusion")

    def now() -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]

    once(own)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew at what is held
    before = now()
    once(size)
    return {"process": round(now()), "above the model": round(now() - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("masks", "deletion", "memory", "peer", "_sample", "_explain"))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("-n", type=int, default=0)
    parser.add_argument("--of", choices=("pairs", "colors"), default="pairs", help="what the masks are measured on")
    parser.add_argument(
        "--size", type=int, default=0, help="of memory, in pixels; by default 4 times that of small models"
    )
    args = parser.parse_args()
    if args.what in ("memory", "peer"):
        print(json.dumps(memory(args.model, args.size) if args.what == "memory" else peer(args.model), indent=1))
        return
    model = fastdiffusion.load(args.model, device="cpu")
    if args.what.startswith("_"):
        print(json.dumps(peak_of(args.what[1:], model, args.size)))
    else:
        n = args.n or {"masks": 32, "deletion": 32}[args.what]
        made = masks(model, n, args.of) if args.what == "masks" else deletion(model, n)
        print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
