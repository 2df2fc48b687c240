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
from fastdiffusion.data import reserved
from fastdiffusion.data.scenes import on_ground, scenes
from fastdiffusion.images import grid, to_tensor
from fastdiffusion.noise import generator
from fastdiffusion.tasks import judging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    judge, emoji = judging.load(), data.load("emoji", alpha=True)
    pictures, names = emoji.batch(range(len(emoji))).images, [own[0] for own in emoji.captions]
    plain = [i for i, name in enumerate(emoji.names) if not reserved.skins(name)]
    results: dict[str, object] = {}

    def note(what: str, value: object) -> None:
        results[what] = str(value)
        print(f"{what}: {value}", flush=True)

    white = judging.on_background(pictures)
    light = judging.distort(pictures, generator(100), 0.3)
    heavy = judging.distort(pictures, generator(101), 1.0)
    for what, seen in (("as they are", white), ("distorted 0.3 (the ceiling)", light), ("distorted 1", heavy)):
        note(f"recall@1 among 100, {what}", judging.recall_at_1(judge, seen, names))
        note(f"recall@1 among all {len(names)}, {what}", judging.recall_at_1(judge, seen, names, len(names)))
        some = [names[i] for i in plain]
        note(f"recall@1 among all {len(plain)} without skin tones, {what}",
             judging.recall_at_1(judge, seen[plain], some, len(plain), some))  # fmt: skip
    for what in ("designs", "compositions"):
        held = scenes(part=what)
        batch = held.batch(range(len(held)))
        own = [names[held.rows[i].picture] for i in range(len(held))]
        note(f"recall@1 among 100, reserved {what} as they are", judging.recall_at_1(judge, batch.images, own))

    # what it makes of pictures that show nothing, or something else
    order = torch.randperm(len(names), generator=generator(102)).tolist()
    shuffled = [names[i] for i in order]
    note("recall@1 among 100, names of other pictures", judging.recall_at_1(judge, white, shuffled))
    noise = torch.randn(500, 3, 64, 64, generator=generator(103)).clamp(-1, 1)
    note("recall@1 among 100, noise", judging.recall_at_1(judge, noise, shuffled[:500]))
    small = torch.nn.functional.avg_pool2d(white, 8)
    small = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic").clamp(-1, 1)
    note("recall@1 among 100, 8x8 pixels enlarged", judging.recall_at_1(judge, small, names))

    # mistakes, among all names, of lightly distorted pictures
    told = [row[0] for row in judging.tell(judge, light)]
    wrong = [i for i in range(len(names)) if told[i] != names[i]]
    place = {name: i for i, name in enumerate(names)}
    kinds = Counter(
        "another skin tone of the design" if emoji.keys[i] == emoji.keys[place[told[i]]] else "another design"
        for i in wrong
    )
    note("mistakes among all names", f"{len(wrong)} of {len(names)}: {dict(kinds)}")
    others = [i for i in wrong if emoji.keys[i] != emoji.keys[place[told[i]]]]
    for i in others[:40]:
        print(f"    {names[i]!r} taken for {told[i]!r}")
    results["mistakes"] = [(names[i], told[i]) for i in others]
    if others:
        grid([p for i in others[:32] for p in (light[i], white[place[told[i]]])], 8, 2).save(
            given.out / "judge-mistakes.png"
        )

    # distances: the floor, and what harm does
    a, b = order[: len(order) // 2], order[len(order) // 2 :]
    n = min(len(a), len(b))
    note(f"fd_judge, real against real, n={n}", round(judging.fd_judge(judge, white[a[:n]], white[b[:n]]), 3))
    for what, harmed in (("distorted 0.3", light), ("distorted 1", heavy), ("8x8 pixels enlarged", small)):
        note(f"fd_judge, real against {what}, n={n}", round(judging.fd_judge(judge, white[a[:n]], harmed[b[:n]]), 3))

    # grounds
    right, total = 0, 0
    for k, (color, rgb) in enumerate(reserved.COLORS.items()):
        ground = torch.tensor([rgb] * len(plain), dtype=torch.uint8)
        x = to_tensor(on_ground(pictures[plain], ground))
        seen = judging.ground(x + 0.1 * torch.randn(x.shape, generator=generator(104, k)))
        right, total = right + sum(s == color for s in seen), total + len(seen)
    note("the ground's color told rightly, noise 0.1", f"{right / total:.1%}, n={total}")
    for words in ("cat with hearts in its eyes", "a fast red car", "somebody is sleeping", "spooky", "birthday"):
        own = judge.read([words]) @ judge.read(judge.names).T
        print(f"    {words!r} is near {[judge.names[i] for i in own[0].topk(5).indices.tolist()]}")
    (given.out / "judge.json").write_text(json.dumps(results, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
