"""Colors that a restorer knows: gray emoji colored, told by the judge; how much of what gray hides comes back.

    python bench/color.py [--runs runs/color] [--steps 2400] [-n 160] [--out out/bench]

The restorer (32 pixels) learns ``gray`` on designs and tones that the text-to-image model learns from, too; what that
never saw stands apart as "designs" and "compositions". Recall of the right name among 100, of the pictures as they
are, gray, and colored; ``closed`` is the part of the gap between gray and true colors. The judge knows all emoji, and
nothing was trained against it. Chroma is measured in CIELAB, as the mean distance of the colors at equal luminance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from fastdiffusion import data, metrics
from fastdiffusion.data import Dataset, Subset
from fastdiffusion.data.emoji import holdout
from fastdiffusion.io.images import grid, to_pil, to_tensor, to_uint8
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model
from fastdiffusion.tasks.evaluation import evaluator as judging_evaluator
from fastdiffusion.tasks.restoration.colorization import luminance
from fastdiffusion.tasks.restoration.restore import restore
from fastdiffusion.training.learner import Learner

SIZE = 32


def parts(emoji: Dataset) -> dict[str, list[int]]:
    """Rows that are learned from, and two kinds that are not."""
    held = {"designs": holdout.glyph, "compositions": holdout.composition}
    groups = {part: [i for i, name in enumerate(emoji.names) if rule(name)] for part, rule in held.items()}
    groups["taught"] = [i for i, name in enumerate(emoji.names) if not holdout.reserved(name)]
    return groups


def chroma(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of the colors without their luminance, of 255, a picture each."""
    off = [(x - luminance(x)) * 127.5 for x in (a, b)]
    return (off[0] - off[1]).square().flatten(1).mean(1).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/color"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("-n", type=int, default=160, help="pictures of each part")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    emoji, evaluator = data.emoji(SIZE), judging_evaluator.load()
    rows = parts(emoji)
    learner = Learner(Subset(emoji, rows["taught"]), net="unet-small", restore="gray", holdout=0.0, folder=args.runs)
    model = learner.fit(steps=args.steps).model
    report: dict[str, dict[str, object]] = {"steps": {"all": args.steps}}
    for part, all_rows in rows.items():
        chosen = all_rows[:: max(len(all_rows) // args.n, 1)][: args.n]
        report[part] = measured(model, evaluator, emoji, chosen, args.out / f"color-{part}.png")
        print(part, json.dumps(report[part]), flush=True)
    (args.out / "color.json").write_text(json.dumps(report, indent=1) + "\n")


def measured(
    model: Model, evaluator: judging_evaluator.Evaluator, emoji: Dataset, rows: list[int], sheet: Path
) -> dict[str, object]:
    batch = emoji.batch(rows)
    real, names = to_tensor(batch.images), [emoji.captions[i][0] for i in rows]
    shades = to_tensor(to_uint8(luminance(real)))
    made = {"real": real, "gray": shades.expand_as(real)}
    for answer in ("mean", "sample"):
        made[answer] = torch.cat([
            restore(to_pil(x), "colorize", model, answer=answer, seed=i).images for i, x in enumerate(shades)
        ])  # fmt: skip
    pool = [captions[0] for captions in emoji.captions]
    right = {}
    result: dict[str, object] = {"n": len(rows)}
    for name, x in made.items():
        recall = retrieval.r_precision(evaluator, x, names, 100, pool)
        right[name] = recall.value
        low, high = metrics.interval(lambda v: float(v.mean()), chroma(x, real))
        off = float((luminance(x) - shades).abs().max()) * 127.5
        result[name] = {
            "recall": str(recall), "chroma off": f"{float(chroma(x, real).mean()):.1f} [{low:.1f}, {high:.1f}]",
            "luminance off, at most": round(off, 2),
        }  # fmt: skip
    gap = max(right["real"] - right["gray"], 1e-9)
    result["closed"] = {name: round((right[name] - right["gray"]) / gap, 3) for name in ("mean", "sample")}
    shown = torch.linspace(0, len(rows) - 1, min(20, len(rows))).long()
    grid(torch.cat([x[shown] for x in (made["gray"], made["mean"], made["sample"], real)]), len(shown), 2).save(sheet)
    return result


if __name__ == "__main__":
    main()
