"""Style transfer on photographs, measured in features that were not optimized.

``style`` is the distance of the textures (roots of Gram distances, averaged over the maps of the shipped judge of
emoji, which has another architecture and another training than the features that pixels are optimized in): before,
after, and their ratio. ``edges`` is the SSIM of the gradients before and after, 1 where everything stays where it was.
Then the strength: Spearman's correlation of strength and style distance, and that strength 0 is the input.

    python bench/style.py [--method features] [--size 512] [--steps 5] [--keep 0.7] [--out out/bench]
    python bench/style.py --nets runs --pairs 0 2 9 --monotone 0     # by train-style's nets: runs/ihc

The photographs are scikit-image's and scikit-learn's: pip install scikit-image.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastdiffusion import metrics
from fastdiffusion.io.images import grid, plain
from fastdiffusion.io.inputs import as_tensor
from fastdiffusion.nets.perceptual import style_distance
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.tasks.stylization.network import FILE
from fastdiffusion.tasks.stylization.statistics import edge_similarity
from fastdiffusion.tasks.stylization.stylize import stylize

PAIRS = [
    ("chelsea.png", "ihc.png"), ("astronaut.png", "flower.jpg"), ("china.jpg", "ihc.png"), ("coffee.png", "flower.jpg"),
    ("rocket.jpg", "coffee.png"), ("flower.jpg", "retina.jpg"), ("astronaut.png", "retina.jpg"),
    ("china.jpg", "coffee.png"), ("chelsea.png", "brick.png"), ("motorcycle_left.png", "ihc.png"),
]  # fmt: skip
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def photograph(name: str, size: int) -> Image.Image:
    import skimage
    import sklearn

    roots = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    photo = plain(Image.open(next(root / name for root in roots if (root / name).exists()))).convert("RGB")
    photo.thumbnail((size, size), Image.Resampling.LANCZOS)
    return photo


def evaluator_maps():
    """The stages of the shipped judge as feature maps; it takes sides that divide by 16."""
    eye = evaluator.load().eye

    def look(x: Tensor) -> list[Tensor]:
        x, maps = x[..., : x.shape[-2] // 16 * 16, : x.shape[-1] // 16 * 16], []
        for layer in eye:
            x = layer(x)
            maps.append(x)
        return [maps[i] for i in (1, 3, 5, 6)]

    return look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="patches")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--keep", type=float)
    parser.add_argument("--pairs", type=int, nargs="+", default=list(range(len(PAIRS))), help="which of them")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument(
        "--nets", type=Path, help="runs of train-style in a folder, each called as its style, ihc or coffee"
    )
    parser.add_argument("--monotone", type=int, default=2, help="pairs to try all strengths on")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    eval_maps, rows, sheet = evaluator_maps(), [], []

    def style(a: Image.Image, b: Image.Image) -> float:
        with torch.no_grad():
            return float(style_distance(as_tensor(a), as_tensor(b), eval_maps))

    def run(a: Image.Image, b: Image.Image, strength: float, name: str) -> Image.Image:
        if args.nets:
            return stylize(a, args.nets / Path(name).stem / FILE, strength=strength, size=args.size).to_pil()[0]
        options = {"method": args.method, "size": args.size, "steps": args.steps, "keep": args.keep}
        return stylize(a, b, strength=strength, **options).to_pil()[0]

    for content, pattern in (PAIRS[i] for i in args.pairs):
        a, b = photograph(content, args.size), photograph(pattern, args.size)
        begun = time.process_time()
        made = run(a, b, args.strength, pattern)
        row = {
            "content": content, "style": pattern, "before": round(style(a, b), 3), "after": round(style(made, b), 3),
            "edges": round(float(edge_similarity(as_tensor(a), as_tensor(made))), 3),
            "seconds": round(time.process_time() - begun, 1),
        }  # fmt: skip
        row["ratio"] = round(row["after"] / row["before"], 3)
        print(json.dumps(row), flush=True)
        rows.append(row)
        sheet += [a, b, made]
    ratio, edges = (torch.tensor([row[key] for row in rows]) for key in ("ratio", "edges"))
    result: dict = {"pairs": rows}
    for name, values in (("ratio", ratio), ("edges", edges)):
        low, high = metrics.interval(lambda v: float(v.mean()), values)
        result[name] = f"{float(values.mean()):.3f} [{low:.3f}, {high:.3f}], n={len(values)}"
        print(name, result[name])
    ranks = []
    for content, pattern in PAIRS[: args.monotone]:
        a, b = photograph(content, args.size), photograph(pattern, args.size)
        answers = [run(a, b, strength, pattern) for strength in STRENGTHS]
        assert answers[0].tobytes() == a.tobytes()
        away = torch.tensor([style(made, b) for made in answers])
        ranks.append(
            float(torch.corrcoef(torch.stack([-away.argsort().argsort(), torch.arange(len(away))]).float())[0, 1])
        )
        print(f"{content} to {pattern}: style {[round(v, 3) for v in away.tolist()]}, Spearman {ranks[-1]:.3f}")
        sheet += [answers[1], answers[2], answers[3]]
    result["spearman"] = ranks
    args.out.mkdir(parents=True, exist_ok=True)
    grid(sheet, 3).save(args.out / "style.png")
    (args.out / "style.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
