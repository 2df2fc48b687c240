"""The parts of editing, one number each: inversion at high guidance, weights of words, added words, and sketches.

python bench/edit_parts.py inversion [--model emoji] [-n 8] [--steps 20] [--scale 7.5]
python bench/edit_parts.py weights   [--model emoji] [-n 4] [--steps 12] [--ways guidance]
python bench/edit_parts.py refine    [--model emoji] [-n 2] [--steps 12]
python bench/edit_parts.py sketches  [--model emoji] [-n 32] [--steps 12] [--cells 5] [--out out/bench]

inversion: PSNR of images that the model drew, inverted and drawn again under guidance, and the autoencoder's own, which
is the ceiling; of edit-friendly noise the largest error in latents, as a part of the largest value.

weights: an image is drawn with a word at the weights -1, 0, 0.5, 1, 1.5, 2 and 3: by "guidance" along the word (edit
--reweight), by "attention" to its tokens (guidance.attention.Reweight), and from 0 up by its token "states" (the prompt
language). Its score is the evaluator's similarity to the caption less that to the caption without the word; Spearman's
correlation of weight and score, for each caption, over the mean of n seeds; its mean over captions, with the interval.

refine: a word is added to an image that was drawn without it; the gain of the same score, by caption over n seeds.

sketches: what the model draws, in three flat colors on a grid of 5 x 5, is the sketch; its caption draws it anew at
rising strength. Recognised: as in bench/edits.py. Edges: intersection over union with the sketch's, one pixel of slack.
Intervals of 95 % by bootstrap over the sketches; of recognition also of the gain over the sketch itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from edits import edits, recognised
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

import fastdiffusion
from fastdiffusion import metrics, samplers
from fastdiffusion.data.emoji.holdout import COLORS
from fastdiffusion.guidance.attention import Reweight, attention_control
from fastdiffusion.io.images import grid, to_pil, to_tensor
from fastdiffusion.models import Model
from fastdiffusion.noise import initial
from fastdiffusion.samplers import image_to_image
from fastdiffusion.schedules import strength_sigma
from fastdiffusion.tasks.editing import inversions
from fastdiffusion.tasks.editing.alignment import TARGET, Alignment, removed
from fastdiffusion.tasks.editing.edit import edit
from fastdiffusion.tasks.editing.options import EditOptions
from fastdiffusion.tasks.evaluation import evaluator

WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
STRENGTHS = (0.0, 0.3, 0.5, 0.7, 0.9)
CAPTIONS = (
    ("a smiling face with sunglasses", "sunglasses"), ("a blue book", "blue"), ("a green apple", "green"),
    ("a smiling face with heart eyes", "heart eyes"), ("a cat face with tears of joy", "tears of joy"),
    ("a yellow heart", "yellow"), ("a face with medical mask", "medical mask"), ("a man with beard", "beard"),
    ("a woman with white hair", "white hair"), ("a broken heart", "broken"), ("an orange book", "orange"),
    ("a birthday cake", "birthday"),
)  # fmt: skip


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float(((a.clamp(-1, 1) - b) / 2).square().mean()), 1e-12))


def drawn(model: Model, prompt: str, seed: int, steps: int) -> Tensor:
    """An image of a prompt as a file of 8 bits has it, (1, 3, h, w)."""
    return to_tensor(to_pil(fastdiffusion.sample(model, prompt, n=1, seed=seed, steps=steps).images[0]))[None]


def inversion(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, list[float]] = {}
    for seed, (prompt, _, _) in enumerate(edits()[:: max(1, 64 // args.n)][: args.n]):
        image = drawn(model, prompt, seed, args.steps)
        x0, cond = model.encode(image), model.encode_prompt([prompt])
        sigma = strength_sigma(args.strength, model.sigma_data, model.sigma_max)
        levels = image_to_image.below(sigma, args.steps, lambda n: model.schedule(n, None))

        def guide(uncond: Any) -> Any:
            return model.guide(model.denoise, args.scale, uncond)

        task = inversions.Task(model, x0, cond, prompt, levels, guide, args.scale, seed, cached=False)
        rows.setdefault("ceiling", []).append(psnr(model.decode(x0), image))
        with torch.no_grad():
            for name in ("ddim", "fixed-point", "null-text"):
                found, _, reverse, _ = inversions.METHODS[name](task)
                rows.setdefault(name, []).append(psnr(model.decode(found.reconstruction(reverse, cond)), image))
                rows.setdefault(f"{name}, evaluations", []).append(found.evaluations)
            found, _, reverse, _ = inversions.METHODS["edit-friendly"](task)
            error = (found.reconstruction(reverse, cond) - x0).abs().max() / x0.abs().max()
            rows.setdefault("edit-friendly, error", []).append(float(error))
        print(prompt, {name: round(values[-1], 6) for name, values in rows.items()}, flush=True)
    return {name: interval(torch.tensor(values, dtype=torch.float)) for name, values in rows.items()} | {
        "n": len(rows["ceiling"])
    }


def by_guidance(model: Model, caption: str, word: str, weight: float, seed: int, steps: int) -> Tensor:
    options: dict[str, Any] = {"method": "sdedit", "strength": 1.0, "steps": steps, "seed": seed}  # from noise alone
    return edit(to_pil(torch.zeros(model.image_shape)), caption, model, reweight=f"{word}:{weight}", **options).images


def by_attention(model: Model, caption: str, word: str, weight: float, seed: int, steps: int) -> Tensor:
    tokens = Alignment(model.conditioner, caption, caption, EditOptions()).need(word, TARGET)
    cond, table = model.encode_prompt([caption]), model.table(steps)
    weighed = Reweight(dict.fromkeys(tokens, weight), rows=[0])  # of a guided batch, the conditional row
    denoise = attention_control(model.guide(model.denoise, model.scale, model.null(1)), model.modules["net"], weighed)
    x = table.sigmas[0] * initial([seed], model.shape)
    return model.decode(samplers.final(samplers.run(denoise, x, table, cond, [seed])))


def by_states(model: Model, caption: str, word: str, weight: float, seed: int, steps: int) -> Tensor:
    weighed = caption.replace(word, f"({word}:{weight})")
    return fastdiffusion.sample(model, weighed, n=1, seed=seed, steps=steps).images


WAYS: dict[str, Callable[..., Tensor]] = {"guidance": by_guidance, "attention": by_attention, "states": by_states}


@torch.no_grad()
def weights(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    net, made, cells = evaluator.load(), {}, []
    args.out.mkdir(parents=True, exist_ok=True)
    for caption, word in CAPTIONS[: args.captions]:
        text = (net.encode_text([caption]) - net.encode_text([removed(caption, [word])]))[0]
        for how in args.ways:
            used = WEIGHTS[1:] if how == "states" else WEIGHTS
            drawn = [[WAYS[how](model, caption, word, w, seed, args.steps) for w in used] for seed in range(args.n)]
            scores = [
                sum(float(net.encode_image(row[i])[0] @ text) for row in drawn) / args.n for i in range(len(used))
            ]
            rho = float(spearmanr(used, scores).statistic)  # type: ignore[attr-defined]
            made.setdefault(how, []).append(rho)
            print(how, caption, word, [round(s, 3) for s in scores], "Spearman", round(rho, 2), flush=True)
            cells += [image[0] for image in drawn[0]] if how == args.ways[0] else []
            grid(cells, columns=len(WEIGHTS)).save(args.out / "weights.png")
    return {how: {"mean": interval(torch.tensor(rhos)), "each": rhos} for how, rhos in made.items()}


@torch.no_grad()
def refine(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    net, gains = evaluator.load(), []
    for caption, word in CAPTIONS[: args.captions]:
        source, own = removed(caption, [word]), []
        text = (net.encode_text([caption]) - net.encode_text([source]))[0]
        for seed in range(3, 3 + args.n):
            before = drawn(model, source, seed, args.steps)
            options: dict[str, Any] = {"source": source, "steps": args.steps, "seed": seed + 100, "cached": False}
            after = edit(to_pil(before[0]), caption, model, **options).images
            own.append(float((net.encode_image(after) - net.encode_image(before))[0] @ text))
        gains.append(sum(own) / len(own))
        print(caption, word, [round(gain, 3) for gain in own], flush=True)
    return {"gain": interval(torch.tensor(gains))}


def sketch(image: Tensor, cells: int = 5, colors: int = 3) -> Tensor:
    """Flat colors on a coarse grid: k-means of its cells, from their corners of brightness."""
    small = functional.adaptive_avg_pool2d(image, cells)[0].flatten(1).T
    centers = small[small.sum(1).argsort()[torch.linspace(0, len(small) - 1, colors).long()]]
    for _ in range(10):
        nearest = torch.cdist(small, centers).argmin(1)
        centers = torch.stack(
            [small[nearest == k].mean(0) if (nearest == k).any() else c for k, c in enumerate(centers)]
        )
    flat = centers[nearest].T.reshape(1, 3, cells, cells)
    return to_tensor(to_pil(functional.interpolate(flat, image.shape[-2:])[0]))[None]


def edges(image: Tensor) -> Tensor:
    gray = image.mean(1, keepdim=True)
    across, down = functional.pad(gray.diff(dim=-1), (0, 1)), functional.pad(gray.diff(dim=-2), (0, 0, 0, 1))
    return (across.square() + down.square()).sqrt() > 0.15


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of edges, where each may be off by a pixel."""
    near_a, near_b = (functional.max_pool2d(e.float(), 3, 1, 1).bool() for e in (a, b))
    return float(((a & near_b) | (b & near_a)).sum() / (a | b).sum()) if (a | b).any() else 1.0


def sketches(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    net, names = evaluator.load(), [(t, n) for _, t, n in edits() if n not in COLORS][: args.n]
    rows: dict[float, list[tuple[float, float]]] = {s: [] for s in STRENGTHS}
    cells = []
    for seed, (prompt, name) in enumerate(names):
        flat = sketch(drawn(model, prompt, seed + 1000, args.steps), args.cells)
        cells.append(flat[0])
        for strength in STRENGTHS:
            options: dict[str, Any] = {"method": "sdedit", "strength": strength, "seed": seed, "steps": args.steps}
            image = edit(to_pil(flat[0]), prompt, model=model, **options).images
            assert strength > 0 or torch.equal(image, flat), "strength 0 returns the input in pixels"
            rows[strength].append((float(recognised(net, image, name, prompt)), overlap(edges(image), edges(flat))))
            cells += [image[0]] if strength in (0.5, 0.7, 0.9) else []
        args.out.mkdir(parents=True, exist_ok=True)
        grid(cells, columns=16).save(args.out / "sketches.png")
    found, plain = {}, torch.tensor(rows[0.0])
    for strength, values in rows.items():
        known, edge = torch.tensor(values).unbind(1)
        gain = known - plain[:, 0]
        found[f"{strength:g}"] = {"recognised": interval(known), "gain": interval(gain), "edges": interval(edge)}
    return found


def interval(values: Tensor) -> list[float]:
    """Mean, and the ends of its interval of 95 % by bootstrap."""
    return [float(f"{v:.4g}") for v in (float(values.mean()), *metrics.interval(lambda v: float(v.mean()), values))]


PARTS = {"inversion": inversion, "weights": weights, "refine": refine, "sketches": sketches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="of weights")
    parser.add_argument("--captions", type=int, default=len(CAPTIONS), help="of weights and refine")
    parser.add_argument("--cells", type=int, default=5, help="of a sketch, along each side")
    parser.add_argument("--scale", type=float, default=7.5)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    foreign = {} if args.model == "emoji" else {"precision": "float32"}
    model = fastdiffusion.load(args.model, device="cpu", **foreign)
    print(json.dumps({args.part: PARTS[args.part](model, args)}))


if __name__ == "__main__":
    main()
