"""The text-to-image emoji model: does it draw what the words say? Told by the judge, which it never met.

    python bench/text_to_image.py                          # the shipped model: all numbers, and docs/assets/emoji.png
    python bench/text_to_image.py --model runs/emoji --n 64 --only seen

Guidance is chosen on names that the numbers are not taken on. Baseline: the same pictures, asked for another's name.
Ceiling: the real pictures, through the codec and without.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiffusion import data, metrics, sample
from fastdiffusion.data import augment
from fastdiffusion.data.emoji import holdout
from fastdiffusion.io.images import grid, save_png, to_tensor
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model
from fastdiffusion.noise import generator
from fastdiffusion.tasks.evaluation import evaluator as judging_evaluator
from fastdiffusion.tasks.loading import load
from fastdiffusion.tasks.variations import variations

PROMPTS = (
    "a cat with heart eyes", "grinning face", "face with tears of joy", "smiling face with sunglasses", "red heart",
    "blue heart", "red apple", "pizza", "hamburger", "hot beverage", "birthday cake", "ice cream", "grapes",
    "strawberry", "dog face", "cat face", "fox", "lion", "panda", "frog", "penguin", "crab", "butterfly", "cactus",
    "sunflower", "tulip", "palm tree", "christmas tree", "mushroom", "rainbow", "sun with face", "crescent moon",
    "fire", "snowman", "cloud with rain", "rocket", "airplane", "automobile", "bicycle", "sailboat", "locomotive",
    "house", "castle", "mount fuji", "guitar", "trumpet", "soccer ball", "crown", "wrapped gift", "balloon",
    "light bulb", "key", "scissors", "blue book", "alarm clock", "mobile phone", "flag of japan", "flag of france",
    "woman cook", "man astronaut", "thumbs up", "robot", "ghost", "a red heart on a yellow background",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--precision", help="of a checkpoint of another program, such as float32")
    parser.add_argument("--engine", default="torch", help="torch or openvino")
    parser.add_argument("--n", type=int, default=128, help="prompts of each kind; 2000 are all names that were taught")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.5])
    parser.add_argument("--scale", type=float, help="do not choose it")
    parser.add_argument("--clips", type=Path, nargs="+", help="of vary, each with its memory")
    parser.add_argument("--memories", type=Path, nargs="+")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.02])
    parser.add_argument("--only", nargs="+", default=["choose", "seen", "compositions", "grounds", "designs", "grid"])
    parser.add_argument("--out", type=Path, default=Path("out/emoji-bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    evaluator, model = judging_evaluator.load(), load(args.model, precision=args.precision, engine=args.engine)
    train = data.load("emoji-scenes")
    plain, named = known(train)
    order = list(named)
    choosing, trained = order[: args.n // 2], [*order[args.n // 2 :], *order][: min(args.n, len(order))]
    results: dict[str, object] = {"model": str(args.model), "steps": args.steps, "n": args.n}

    def draw(prompts: list[str], scale: float, seed: int = 0) -> Tensor:
        return sample(model, prompts, n=len(prompts), steps=args.steps, seed=seed, scale=scale, batch_size=32).images

    scale = args.scale or 3.0
    if "choose" in args.only and args.scale is None:
        curve = {}
        for s in args.scales:
            images = draw(choosing, s, 1000)
            real = images_of(train, [named[name] for name in choosing])
            curve[s] = {"recall": retrieval.r_precision(evaluator, images, choosing)[:3],
                        "fd_judge": judging_evaluator.fd_evaluator(evaluator, real, images)}  # fmt: skip
            print("scale", s, curve[s], flush=True)
        scale = max(curve, key=lambda s: curve[s]["recall"][0])
        results["guidance"] = curve
    results["scale"] = scale
    sets = {"seen": (train, [named[name] for name in trained])}
    for part in ("compositions", "grounds", "designs"):
        other = data.load("emoji-scenes", part=part)
        rows = list(range(len(other)))
        random.Random(1).shuffle(rows)
        sets[part] = (other, sorted(rows[: args.n]))
    for part, (scenes, rows) in sets.items():
        if part not in args.only:
            continue
        prompts = [scenes.caption(i) for i in rows]
        names = [scenes.phrases[scenes.rows[i].image].name for i in rows]
        real, begun = images_of(scenes, rows), time.perf_counter()
        images = draw(prompts, scale)
        seconds = time.perf_counter() - begun
        away = names[1:] + names[:1]
        row = {
            "recall": retrieval.r_precision(evaluator, images, evaluator_names(names)),
            "ceiling": retrieval.r_precision(evaluator, real, evaluator_names(names)),
            "through_codec": retrieval.r_precision(
                evaluator, model.decode(model.encode(real)).clamp(-1, 1), evaluator_names(names)
            ),
            "baseline": retrieval.r_precision(evaluator, images, evaluator_names(away)),
            "fd_judge": judging_evaluator.fd_evaluator(evaluator, real, images),
            "fd_codec": judging_evaluator.fd_evaluator(evaluator, real, model.decode(model.encode(real)).clamp(-1, 1)),
            "pictures_per_second": len(images) / seconds,
        }
        if (
            part == "compositions"
        ):  # composed, or copied? what was asked for and never seen, against the nearest of all seen
            learned = images_of(train, plain)
            of = [metrics.features(evaluator, x) for x in (images, real, learned)]
            nearest = torch.cdist(of[0], of[2]).min(1)
            own = (of[0] - of[1]).norm(dim=1)
            row["nearer_to_the_unseen"] = float((own < nearest.values).float().mean())
            rows_of_three = torch.stack([real, images.cpu(), learned[nearest.indices]], 1)[:: max(len(rows) // 16, 1)]
            grid(rows_of_three[:16].transpose(0, 1).flatten(0, 1), len(rows_of_three[:16])).save(
                args.out / "neighbours.png"
            )
        if part == "grounds":
            colors = [scenes.rows[i].color for i in rows]
            row["ground_right"] = sum(
                a == b for a, b in zip(judging_evaluator.background_color(images), colors, strict=True)
            ) / len(rows)
        results[part] = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in row.items()}
        print(part, {k: str(v) for k, v in row.items()}, flush=True)
        grid(torch.stack([p for pair in zip(real[:32], images[:32], strict=True) for p in pair]), 16).save(
            args.out / f"{part}.png"
        )
    if "variations" in args.only:
        results["variations"] = varied(model, evaluator, sets, train, args)
    if "grid" in args.only:
        begun = time.perf_counter()
        made = sample(model, list(PROMPTS), n=len(PROMPTS), steps=args.steps, scale=scale, batch_size=32)
        results["grid_seconds"] = time.perf_counter() - begun
        made.save_grid(args.out / "grid.png", columns=8, labels=False, zoom=1)
    (args.out / "emoji.json").write_text(json.dumps(results, indent=1) + "\n")


def varied(
    model: Model, evaluator: judging_evaluator.Evaluator, sets: dict, train, args: argparse.Namespace
) -> dict[str, object]:
    """Real pictures in, pictures of the same things out: as the font draws them, moved within their frame, and unseen.

    ``variety`` is the mean distance of two variations of a picture in the judge's eyes. A picture that the model never
    saw has no name that it could draw, so ``likeness``, the judge's cosine to the source, says how near it comes.
    """
    rows = sets["seen"][1]
    real, names = images_of(train, rows), evaluator_names([train.phrases[train.rows[i].image].name for i in rows])
    plan = augment.draw(len(real), generator(6), ("mirror", "scale", "shift"), 1.0)
    unseen, its = sets["designs"]
    sources = {"as drawn": real, "moved": augment.apply(real, plan), "never seen": images_of(unseen, its)}
    results: dict[str, object] = {}
    for clip, index in zip(args.clips or [None], args.memories or [None], strict=True):
        for kind, shown in sources.items():
            for temperature in args.temperatures:
                made, variety = [], []
                with tempfile.TemporaryDirectory() as place, torch.no_grad():
                    for k, image in enumerate(tqdm(shown, f"varying {kind}")):
                        save_png(image, f"{place}/{k}.png")
                        options = {"clip": clip, "index": index, "temperature": temperature, "model": model}
                        images = variations(f"{place}/{k}.png", n=4, steps=args.steps, seed=4 * k, **options).images
                        made.append(images[:1])
                        variety.append(float(torch.pdist(evaluator.encode_image(images)).mean()))
                images = torch.cat(made)
                a, b = ((x - x.mean((1, 2, 3), keepdim=True)).flatten(1) for x in (shown, images))
                row: dict[str, object] = {
                    "recall": None if kind == "never seen" else str(retrieval.r_precision(evaluator, images, names)),
                    "pixel_correlation": round(float(torch.cosine_similarity(a, b).mean()), 3),
                    "likeness": round(
                        float((evaluator.encode_image(shown) * evaluator.encode_image(images)).sum(1).mean()), 3
                    ),
                    "variety": round(sum(variety) / len(variety), 3),
                }
                key = f"{clip or 'bundled'}, {kind}, {temperature:g}"
                results[key] = row
                print("variations", key, row, flush=True)
                sheet = torch.stack([p for pair in zip(shown[:24], images[:24], strict=True) for p in pair])
                grid(sheet, 12).save(args.out / f"vary-{kind.replace(' ', '-')}-{temperature:g}.png")
    return results


def known(train) -> tuple[list[int], dict[str, int]]:
    """Rows of the plain pictures, and of those without skin tones by name, in an order that says nothing."""
    plain = [i for i, row in enumerate(train.rows) if row.color == "white" and train.source(i) == i]
    named = {train.phrases[train.rows[i].image].name: i for i in plain if not holdout.skins(name_of(train, i))}
    order = sorted(named)
    random.Random(0).shuffle(order)
    return plain, {name: named[name] for name in order}


def name_of(scenes, i: int) -> str:
    return scenes.images.names[scenes.rows[i].image]


def evaluator_names(names: list[str]) -> list[str]:
    """Names as the judge was taught them: flags by their country."""
    return [name.removeprefix("flag of ") for name in names]


def images_of(scenes, rows: list[int]) -> Tensor:
    return to_tensor(scenes.batch(rows).images)


if __name__ == "__main__":
    main()
