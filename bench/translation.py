"""Translation, measured by nets that none of the methods was trained against.

Pairs: edges to emoji at 32 pixels, in equal CPU time for each method. ``likeness`` is the cosine between what the
shipped judge sees in an answer and in the truth, on held-out designs that are not just another sex, skin or direction
of a trained one; ``fd_judge`` the Frechet distance of all answers from all truths. Baselines: the training image, or
its mirror image, whose edges are nearest, and a regression by the same net. A diffusion and a bridge answer with the
mean, in one evaluation, and with samples.

Two domains: two kinds of clothes of Fashion-MNIST. ``target`` is the share that a classifier of all ten classes takes
for the target; ``cycle`` the PSNR of an image that went there and back; ``edges`` the correlation of the gradients
before and after, and ``inside`` the same on the places that both images cover, without the rim.

Grounds: emoji of designs that nobody has learned, from white to blue, at 64 pixels. The CycleGAN learns from half of
the other designs on white and the other half on blue; the bundled text-to-image model gets both as prompts. Here the
truth is known: ``likeness`` and ``psnr`` are those to it, and ``target`` asks for the color of the rim.

    python bench/translation.py [--runs runs] [--scale 1] [--model FILE] [--classes pullover,coat] [--out out/bench]

``--runs`` holds the trainings, which are made, or gone on with, where they are not complete. ``--only`` and
``--methods`` choose among parts and methods. ``--model`` is a class-conditional model of Fashion-MNIST at 32 pixels,
for the two methods that need no training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiffusion import data, metrics
from fastdiffusion.data.emoji import holdout
from fastdiffusion.data.emoji.scenes import composite
from fastdiffusion.io.images import grid, to_tensor
from fastdiffusion.models import Model
from fastdiffusion.models import load as load_model
from fastdiffusion.models.registry import loaded
from fastdiffusion.tasks.evaluation import evaluator as judging
from fastdiffusion.tasks.evaluation.feature_net import feature_net
from fastdiffusion.tasks.stylization.statistics import edge_similarity
from fastdiffusion.tasks.translation import paired as translation_paired
from fastdiffusion.tasks.translation import training_free
from fastdiffusion.tasks.translation.domains import Domains, domains
from fastdiffusion.types import Cond

STEPS = {"regression": 1036, "gan": 556, "diffusion": 960, "bridge": 960, "cyclegan": 400}  # about 2.5 CPU minutes
SEEDS = 3  # samples of each image that a sampled row is the mean of
EVALUATIONS = 12
# Skin tones, joiner, color variant, female, male, facing right: what two images of one design differ in
SIGNS = {*(f"1f3f{tone}" for tone in "bcdef"), "200d", "fe0f", "2640", "2642", "27a1"}
PARTS = ["paired", "unpaired", "grounds"]
METHODS = ["regression", "gan", "diffusion", "bridge", "cyclegan", "sdedit", "ddib"]


def trained(method: str, runs: Path, name: str = "emoji", *data: object, **options: Any) -> tuple[Any, float]:
    """The net of a run, which goes on if it is not complete, and how many CPU minutes it took in all."""
    where = runs / f"{method}-{name.replace(',', '-').replace(' ', '-')}"
    log, clock = where / "metrics.jsonl", where / "cpu-seconds.txt"
    done = json.loads(log.read_text().splitlines()[-1])["step"] if log.exists() else 0
    if done < options.get("steps", STEPS[method]):
        begun = time.process_time()
        options = {"batch_size": 16, "mirror": True, "steps": STEPS[method], **options}
        try:
            translation_paired.train_translation(*data, method=method, folder=where, device="cpu", **options)
        finally:  # a session that is cut counts, too
            with clock.open("a") as file:
                file.write(f"{time.process_time() - begun:.1f}\n")
    return translation_paired.load(where), sum(map(float, clock.read_text().split())) / 60


def mean(values: Tensor) -> str:
    """With the 95 % interval of the bootstrap."""
    low, high = metrics.interval(lambda v: float(v.mean()), values)
    return f"{float(values.mean()):.3f} [{low:.3f}, {high:.3f}]"


def nearest(pairs: Domains, a: Tensor) -> Tensor:
    """For each source, the training target, or its mirror image, whose source, slightly blurred, is nearest."""
    rows = torch.arange(pairs.sizes[0])
    best, answers = torch.full((len(a),), torch.inf), torch.empty(len(a), *pairs.b.shape[1:])
    asked = F.avg_pool2d(a[:, :1], 2).flatten(1)
    for mirrored in (False, True):
        for part in rows.split(512):
            known, targets = pairs.batch(part, part, torch.full((len(part),), mirrored))
            near, which = torch.cdist(asked, F.avg_pool2d(known[:, :1], 2).flatten(1)).min(1)
            answers = torch.where((near < best)[:, None, None, None], targets[which], answers)
            best = torch.minimum(near, best)
    return answers


def unrelated(size: int) -> Tensor:
    """Which held-out emoji are of no trained one's family: the same design of another sex, skin or direction."""
    emoji = data.emoji(size)
    learned, held = emoji.split(0.05, 0)

    def family(name: str) -> str:
        kept = [part for part in name.split("-") if part not in SIGNS]
        return "-".join("1f9d1" if part in ("1f468", "1f469") else part for part in kept)  # man and woman: person

    known = {family(emoji.names[i]) for i in learned.indices}
    return torch.tensor([family(emoji.names[i]) not in known for i in held.indices])


def paired(runs: Path, n: int, out: Path, methods: list[str]) -> dict:
    pairs = domains("emoji", size=32)
    a, b = pairs.kept(n)
    new = unrelated(32)[: len(a)]
    evaluator = judging.load()
    answers = {"nearest neighbor": [nearest(pairs, a)]}  # name: of each seed
    minutes, seconds = {}, {}
    for method in (candidate for candidate in ("regression", "gan", "diffusion", "bridge") if candidate in methods):
        net, spent = trained(method, runs, "emoji", "emoji", size=32)
        walks = [(method, net, 1)]
        if method in ("diffusion", "bridge"):
            walks = [(f"{method}, mean", net, 1), (f"{method}, {EVALUATIONS} evaluations", net, EVALUATIONS)]
        if method == "diffusion":  # the two are one network, see nets.translators
            bridge = copy(net)
            bridge.method = "bridge"
            walks.append((f"... on a bridge, {EVALUATIONS} evaluations", bridge, EVALUATIONS))
        for name, walked, evaluations in walks:
            begun = time.process_time()
            answers[name] = [
                translation_paired.answer(walked, a, steps=evaluations, seeds=range(1000 * seed, 1000 * seed + len(a)))
                for seed in range(SEEDS if evaluations > 1 else 1)
            ]
            seconds[name] = (time.process_time() - begun) / len(a) / len(answers[name])
            minutes[name] = spent
    answers |= {"the truth mirrored": [b.flip(3)], "the truth": [b]}
    with torch.no_grad():
        truth = evaluator.encode_image(b)
        like = {
            name: torch.stack([(evaluator.encode_image(x) * truth).sum(1) for x in made]).mean(0)
            for name, made in answers.items()
        }
    result = {}
    print(f"edges to emoji: {int(new.sum())} images of new designs; with relatives of known ones, {len(a)}")
    for name, made in answers.items():
        psnr = torch.stack([-10 * (((x - b) / 2) ** 2).flatten(1).mean(1).clamp(min=1e-6).log10() for x in made])
        result[name] = {
            "likeness": mean(like[name][new]),
            "over nearest neighbor": mean((like[name] - like["nearest neighbor"])[new]),
            "over regression": mean((like[name] - like["regression"])[new]) if "regression" in like else None,
            "psnr": mean(psnr.mean(0)[new]),
            "likeness, relatives too": mean(like[name]),
            "fd_judge": round(sum(judging.fd_evaluator(evaluator, b, x) for x in made) / len(made), 3),
            "training, CPU minutes": round(minutes.get(name, 0.0), 1),
            "an answer, CPU seconds": round(seconds.get(name, 0.0), 3),
        }
        print(f"{name:26}", json.dumps(result[name]), flush=True)
    shown = new.nonzero()[:, 0][torch.linspace(0, int(new.sum()) - 1, 20).long()]  # spread evenly, not chosen
    rows = [a, *(made[0] for name, made in answers.items() if name != "the truth mirrored")]
    grid(torch.cat([row[shown] for row in rows]), len(shown), 2).save(out / "edges.png")
    return result


def strength(x: Tensor) -> Tensor:
    """How steep the brightness is at each place, one pixel's noise averaged away: (b, h * w)."""
    soft = F.avg_pool2d(F.pad(x.mean(1, keepdim=True), (2, 2, 2, 2), mode="replicate"), 3, 1)
    dx, dy = soft[..., 1:-1, 2:] - soft[..., 1:-1, :-2], soft[..., 2:, 1:-1] - soft[..., :-2, 1:-1]
    return (dx.square() + dy.square()).sqrt().flatten(1)


def edges_kept(before: Tensor, after: Tensor, inside: bool = False) -> Tensor:
    """Correlation of the two, one number an image; ``inside`` of both silhouettes, a pixel from their rims."""
    one, other = strength(before), strength(after)
    bare = torch.maximum(*((x.mean(1, keepdim=True) < -0.9).float() for x in (before, after)))
    weight = 1 - F.max_pool2d(bare, 3, 1, 1).flatten(1) if inside else torch.ones_like(one)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    one, other = (v - (weight * v).sum(1, keepdim=True) for v in (one, other))
    shared, *own = ((weight * p * q).sum(1) for p, q in ((one, other), (one, one), (other, other)))
    return shared / (own[0] * own[1]).sqrt().clamp(min=1e-9)


def carried(
    model: Model,
    a: Tensor,
    fro: Cond | None,
    to: Cond | None,
    methods: list[str],
    noises: Sequence[float],
    flows: Sequence[tuple[float, float]],
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What a diffusion model makes of images, there and back again: by noise and by flow, at each strength."""
    for strength in noises if "sdedit" in methods else ():
        moved = training_free.sdedit(model, a, strength, to, 12, scale=3.0)
        yield f"sdedit {strength}", moved, training_free.sdedit(model, moved, strength, fro, 12, scale=3.0)
    for strength, scale in flows if "ddib" in methods else ():
        keywords = {"steps": 10, "scale": scale, "strength": strength}
        moved = training_free.ddib(model, model, a, fro, to, **keywords)
        yield f"ddib {strength:g}, scale {scale:g}", moved, training_free.ddib(model, model, moved, to, fro, **keywords)


def unpaired(runs: Path, model_file: Path | None, classes: str, n: int, out: Path, methods: list[str]) -> dict:
    pairs, names = domains("fashion-mnist", paired=False, classes=classes, size=32), classes.split(",")
    a, b = pairs.kept(n)
    evaluator = feature_net(data.load("fashion-mnist", 32))  # nothing here was trained against it
    kinds = [data.load("fashion-mnist").classes.index(name) for name in names]

    def row(name: str, there: Tensor, returned: Tensor | None = None, reverse: bool = False) -> None:
        here, like = (b, a) if reverse else (a, b)
        with torch.no_grad():
            as_target = (evaluator(there).argmax(1) == kinds[not reverse]).float()
        cycle = None if returned is None else -10 * (((returned - here) / 2) ** 2).flatten(1).mean(1).log10()
        result[name] = {
            "target": mean(as_target),
            "cycle": None if cycle is None else mean(cycle),
            "edges": mean(edges_kept(here, there)),
            "inside": mean(edges_kept(here, there, inside=True)),
            "ssim": mean(edge_similarity(here, there)),
            "fd": round(metrics.frechet(*(metrics.features(evaluator, x) for x in (like, there))), 2),
        }
        print(f"{name:34}", json.dumps(result[name]), flush=True)

    result: dict = {}
    print(f"{names[0]} to {names[1]} and back, {len(a)} held-out images each way")
    row("untouched, there", a)
    row("others of the target, there", b)
    row("untouched, back", b, reverse=True)
    row("others of the target, back", a, reverse=True)
    rows = [a]
    if "cyclegan" in methods:
        net, spent = trained("cyclegan", runs, classes, "fashion-mnist", classes=classes, size=32, batch_size=8)
        with torch.no_grad():
            moved, moved_back = net(a).clamp(-1, 1), net(b, reverse=True).clamp(-1, 1)
            returned, there = net(moved, reverse=True).clamp(-1, 1), net(moved_back).clamp(-1, 1)
        print(f"trained for {spent:.1f} CPU minutes")
        row("cyclegan, there", moved, returned)
        row("cyclegan, back", moved_back, there, reverse=True)
        rows += [moved, returned]
    if model_file is not None:
        model = load_model(model_file)
        to, fro = (model.cond([name] * len(a)) for name in reversed(names))
        for name, moved, returned in carried(model, a, fro, to, methods, (0.75, 0.86), ((0.86, 3.0), (1.0, 2.0))):
            row(f"{name}, there", moved, returned)
            rows += [moved, returned] if name.startswith("ddib") else [moved]  # sdedit does not come back
    grid(torch.cat([x[:12] for x in rows]), 12, 2).save(out / f"{'-'.join(names).replace(' ', '-')}.png")
    return result


def grounds(runs: Path, n: int, out: Path, methods: list[str], color: str = "blue") -> dict:
    emoji, evaluator = data.scenes(64).images, judging.load()
    names = data.scenes(64).phrases
    plain = [i for i, name in enumerate(emoji.names) if not holdout.skins(name)]
    known = [i for i in plain if not holdout.glyph(emoji.names[i])]
    asked = [i for i in plain if holdout.glyph(emoji.names[i])][:n]

    def on(rows: list[int], color: str) -> Tensor:
        grounds = torch.tensor(holdout.COLORS[color], dtype=torch.uint8).expand(len(rows), 3)
        return composite(emoji.batch(rows).images, grounds)

    a, b = to_tensor(on(asked, "white")), to_tensor(on(asked, color))
    result: dict = {}
    with torch.no_grad():
        truth = evaluator.encode_image(b)

    def row(name: str, there: Tensor, returned: Tensor | None = None) -> None:
        away = [
            -10 * (((x - y) / 2) ** 2).flatten(1).mean(1).clamp(min=1e-6).log10()
            for x, y in ((there, b), (returned if returned is not None else a, a))
        ]
        result[name] = {
            "target": mean(torch.tensor([float(c == color) for c in judging.background_color(there)])),
            "cycle": None if returned is None else mean(away[1]),
            "edges": mean(edges_kept(a, there)),
            "likeness": mean((evaluator.encode_image(there) * truth).sum(1)),
            "psnr": mean(away[0]),
        }
        print(f"{name:34}", json.dumps(result[name]), flush=True)

    print(f"emoji from white to {color} and back, {len(a)} images of held-out designs")
    row("untouched", a)
    row("the truth", b)
    rows = [a]
    if "cyclegan" in methods:
        piled = [data.Images(c, [on(known[i::2], c).numpy()]) for i, c in enumerate(("white", color))]
        net, spent = trained("cyclegan", runs, f"white-{color}", *piled, batch_size=4, steps=STEPS["cyclegan"] // 2)
        with torch.no_grad():
            moved = net(a).clamp(-1, 1)
            returned = net(moved, reverse=True).clamp(-1, 1)
        row(f"cyclegan, {spent:.1f} CPU minutes", moved, returned)
        rows += [moved, returned]
    model = loaded("emoji")
    fro, to = (model.encode_prompt([names[i].name + more for i in asked]) for more in ("", f" on {color}"))
    row("the truth through the autoencoder", model.decode(model.encode(b)).clamp(-1, 1))
    for name, moved, returned in carried(model, a, fro, to, methods, (0.58, 0.75), ((0.58, 3.0), (0.75, 2.0))):
        row(name, moved, returned)
        rows += [moved, returned] if name.startswith("ddib") else [moved]
    shown = torch.linspace(0, len(a) - 1, 12).long()  # spread evenly, not chosen
    grid(torch.cat([x[shown] for x in (*rows, b)]), 12).save(out / "grounds.png")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/translation"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the trainings' steps; 2.5 is about 6 CPU minutes")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--classes", default="pullover,coat")
    parser.add_argument("-n", type=int, default=188)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    STEPS.update({method: max(round(steps * args.scale), 1) for method, steps in STEPS.items()})
    result = {}
    if "paired" in args.only:
        result["paired"] = paired(args.runs, args.n, args.out, args.methods)
    if "unpaired" in args.only:
        result["unpaired"] = unpaired(args.runs, args.model, args.classes, min(args.n, 64), args.out, args.methods)
    if "grounds" in args.only:
        result["grounds"] = grounds(args.runs, min(args.n, 64), args.out, args.methods)
    (args.out / "translation.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
