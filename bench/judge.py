"""The judge judged: its ceiling on real pictures, its mistakes, what it makes of wrong ones, its distances' scale.

All numbers of docs/judge.md, and the sheet of its mistakes:

    python bench/judge.py [--out out/bench]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from fastdiffusion import data
from fastdiffusion.data.emoji import holdout
from fastdiffusion.data.emoji.scenes import composite, scenes
from fastdiffusion.io.images import grid, to_tensor
from fastdiffusion.metrics import retrieval
from fastdiffusion.noise import generator
from fastdiffusion.tasks.evaluation import evaluator as judging_evaluator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    evaluator, emoji = judging_evaluator.load(), data.load("emoji", alpha=True)
    images, names = emoji.batch(range(len(emoji))).images, [own[0] for own in emoji.captions]
    plain = [i for i, name in enumerate(emoji.names) if not holdout.skins(name)]
    results: dict[str, object] = {}

    def note(what: str, value: object) -> None:
        results[what] = str(value)
        print(f"{what}: {value}", flush=True)

    white = judging_evaluator.on_background(images)
    light = judging_evaluator.distort(images, generator(100), 0.3)
    heavy = judging_evaluator.distort(images, generator(101), 1.0)
    for what, shown in (("as they are", white), ("distorted 0.3 (the ceiling)", light), ("distorted 1", heavy)):
        note(f"recall@1 among 100, {what}", retrieval.r_precision(evaluator, shown, names))
        note(f"recall@1 among all {len(names)}, {what}", retrieval.r_precision(evaluator, shown, names, len(names)))
        some = [names[i] for i in plain]
        note(f"recall@1 among all {len(plain)} without skin tones, {what}",
             retrieval.r_precision(evaluator, shown[plain], some, len(plain), some))  # fmt: skip
    for what in ("designs", "compositions"):
        held = scenes(part=what)
        batch = held.batch(range(len(held)))
        own = [names[held.rows[i].image] for i in range(len(held))]
        note(f"recall@1 among 100, reserved {what} as they are", retrieval.r_precision(evaluator, batch.images, own))

    # what it makes of pictures that show nothing, or something else
    order = torch.randperm(len(names), generator=generator(102)).tolist()
    shuffled = [names[i] for i in order]
    note("recall@1 among 100, names of other pictures", retrieval.r_precision(evaluator, white, shuffled))
    noise = torch.randn(500, 3, 64, 64, generator=generator(103)).clamp(-1, 1)
    note("recall@1 among 100, noise", retrieval.r_precision(evaluator, noise, shuffled[:500]))
    small = torch.nn.functional.avg_pool2d(white, 8)
    small = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic").clamp(-1, 1)
    note("recall@1 among 100, 8x8 pixels enlarged", retrieval.r_precision(evaluator, small, names))

    # mistakes, among all names, of lightly distorted pictures
    answers = [row[0] for row in judging_evaluator.best_names(evaluator, light)]
    wrong = [i for i in range(len(names)) if answers[i] != names[i]]
    place = {name: i for i, name in enumerate(names)}
    kinds = Counter(
        "another skin tone of the design" if emoji.keys[i] == emoji.keys[place[answers[i]]] else "another design"
        for i in wrong
    )
    note("mistakes among all names", f"{len(wrong)} of {len(names)}: {dict(kinds)}")
    others = [i for i in wrong if emoji.keys[i] != emoji.keys[place[answers[i]]]]
    for i in others[:40]:
        print(f"    {names[i]!r} taken for {answers[i]!r}")
    results["mistakes"] = [(names[i], answers[i]) for i in others]
    if others:
        grid([p for i in others[:32] for p in (light[i], white[place[answers[i]]])], 8, 2).save(
            args.out / "judge-mistakes.png"
        )

    # distances: the floor, and what harm does
    a, b = order[: len(order) // 2], order[len(order) // 2 :]
    n = min(len(a), len(b))
    note(
        f"fd_judge, real against real, n={n}",
        round(judging_evaluator.fd_evaluator(evaluator, white[a[:n]], white[b[:n]]), 3),
    )
    for what, harmed in (("distorted 0.3", light), ("distorted 1", heavy), ("8x8 pixels enlarged", small)):
        note(
            f"fd_judge, real against {what}, n={n}",
            round(judging_evaluator.fd_evaluator(evaluator, white[a[:n]], harmed[b[:n]]), 3),
        )

    # grounds
    right, total = 0, 0
    for k, (color, rgb) in enumerate(holdout.COLORS.items()):
        background = torch.tensor([rgb] * len(plain), dtype=torch.uint8)
        x = to_tensor(composite(images[plain], background))
        shown = judging_evaluator.background_color(x + 0.1 * torch.randn(x.shape, generator=generator(104, k)))
        right, total = right + sum(s == color for s in shown), total + len(shown)
    note("the ground's color told rightly, noise 0.1", f"{right / total:.1%}, n={total}")
    for text in ("cat with hearts in its eyes", "a fast red car", "somebody is sleeping", "spooky", "birthday"):
        own = evaluator.encode_text([text]) @ evaluator.encode_text(evaluator.names).T
        print(f"    {text!r} is near {[evaluator.names[i] for i in own[0].topk(5).indices.tolist()]}")
    (args.out / "judge.json").write_text(json.dumps(results, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
