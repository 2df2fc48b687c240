"""Does the bundled model draw what people type? The evaluator, which it never met, ranks all names for each image.

    python bench/everyday.py                                    # both lists: the numbers, and sheets in random order
    python bench/everyday.py bench/prompts-unseen.txt --seeds 0 1 2 --model runs/emoji
    python bench/everyday.py --reading      # of prompts.txt alone: how many are read as the name of the nearest glyph,
                                            # and whether ten words without a meaning leave the image as it was

A prompt is right where the name that fits its image best is one of those that a person would accept; baseline: the
images of other prompts. A sheet is in random order, its key in a file beside it, so that it can be judged blind.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import torch

from fastdiffusion import metrics, sample
from fastdiffusion.io.images import grid
from fastdiffusion.prompts.reading import key
from fastdiffusion.tasks.evaluation import evaluator as evaluators
from fastdiffusion.tasks.loading import load

HERE = Path(__file__).parent
LISTS = (HERE / "prompts.txt", HERE / "prompts-unseen.txt")


def rows_of(path: Path) -> list[tuple[str, list[str]]]:
    """The prompts of a list, each with the names that a person would accept."""
    lines = [line.split("\t") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [(prompt, names.split("/")) for prompt, names in lines]


def reading(name: str) -> None:
    """What is made of the words, before anything is drawn; and the pairs of tests/test_everyday.py."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from test_everyday import PAIRS

    model = load(name)
    read = [(prompt, names[0], model.conditioner.reading(prompt).text) for prompt, names in rows_of(LISTS[0])]
    wrong = [f"{prompt!r} as {text!r}" for prompt, name, text in read if key(text) != key(name)]
    print(f"{len(read) - len(wrong)} of {len(read)} prompts are read as the nearest glyph; {', '.join(wrong)} are not.")
    for pair in PAIRS:
        images = [sample(model, prompt, n=1, seed=1, steps=6).images.flatten() for prompt in pair]
        print(f"{float(torch.corrcoef(torch.stack(images))[0, 1]):.3f}  {pair[0]} / {pair[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="*", default=list(LISTS))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("out/everyday"))
    parser.add_argument("--reading", action="store_true", help="only how prompts are read")
    args = parser.parse_args()
    if args.reading:
        return reading(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    model, evaluator, results = load(args.model), evaluators.load(), {}
    for path in args.lists:
        rows, right, crossed, wrong = rows_of(path), [], [], []
        for seed in args.seeds:
            images = sample(model, [p for p, _ in rows], n=len(rows), steps=args.steps, seed=seed).images
            best = [row[0] for row in evaluators.best_names(evaluator, images)]
            right += [float(name in names) for name, (_, names) in zip(best, rows, strict=True)]
            shifted = best[1:] + best[:1]
            crossed += [float(name in names) for name, (_, names) in zip(shifted, rows, strict=True)]
            wrong += [f"{p}: {name}" for name, (p, names) in zip(best, rows, strict=True) if name not in names]
            if seed == args.seeds[0]:
                order = random.Random(0).sample(range(len(rows)), len(rows))
                grid(images[order], 10).save(args.out / f"{path.stem}.png")
                (args.out / f"{path.stem}-key.txt").write_text("\n".join(rows[i][0] for i in order))
        low, high = metrics.interval(lambda v: float(v.mean()), torch.tensor(right))
        results[path.stem] = {
            "right": sum(right) / len(right),
            "interval": [max(low, 0), min(high, 1)],
            "other prompts": sum(crossed) / len(crossed),
            "wrong": wrong,
        }
        print(path.stem, json.dumps(results[path.stem], indent=1), flush=True)
    (args.out / "everyday.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
