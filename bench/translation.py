"""Translation, measured by nets that none of the methods was trained against.

Pairs: edges to emoji at 32 pixels. ``likeness`` is the cosine between what the shipped judge sees in an answer and in
the truth; ``fd_judge`` the Frechet distance of all answers from all truths, which is 0 for the truths themselves.
Baselines: the training picture whose edges are nearest, and a regression with the same net.

Two piles: sneakers and ankle boots. ``told`` is the share that a classifier of all ten classes takes for the target;
``cycle`` the PSNR of a picture that went there and back; ``edges`` how far everything stayed where it was.

    python bench/translation.py [--runs runs] [--scale 1] [--model FILE] [-n 180] [--out out/bench]

``--runs`` holds the trainings, which are made where they are missing (``--scale 0.5``: half of their steps).
``--model`` is a class-conditional model of Fashion-MNIST at 32 pixels, for the two ways that need no training.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiffusion import data, metrics
from fastdiffusion.images import grid
from fastdiffusion.models import load as load_model
from fastdiffusion.nets.translators import Cycle, Translator
from fastdiffusion.tasks import judging, translation
from fastdiffusion.tasks.piles import piles
from fastdiffusion.tasks.styles import edge_similarity

STEPS = {"regression": 900, "gan": 650, "diffusion": 900, "bridge": 900, "cyclegan": 800}
CLASSES = ("sneaker", "ankle boot")


def trained(method: str, folder: Path, scale: float) -> Translator | Cycle:
    """The net of a run, trained if it is not there yet."""
    where = folder / method
    if not (where / "translation.safetensors").exists():
        steps = max(round(STEPS[method] * scale), 1)
        if method == "cyclegan":
            options = {"classes": CLASSES, "batch_size": 8, "size": 32}
            translation.train_translation("fashion-mnist", method=method, steps=steps, folder=where, **options)
        else:
            translation.train_translation("emoji", method=method, steps=steps, size=32, mirror=True, folder=where)
    return translation.load(where)


def mean(values: Tensor) -> str:
    """With the 95 % interval of the bootstrap."""
    low, high = metrics.interval(lambda v: float(v.mean()), values)
    return f"{float(values.mean()):.3f} [{low:.3f}, {high:.3f}]"


def nearest(found, a: Tensor, n: int) -> Tensor:
    """For each source, the training target whose source, slightly blurred, is nearest."""
    rows = torch.arange(found.sizes[0])
    known = torch.cat([F.avg_pool2d(found.batch(part, part)[0][:, :1], 2).flatten(1) for part in rows.split(512)])
    asked = F.avg_pool2d(a[:, :1], 2).flatten(1)
    best = torch.cdist(asked, known).argmin(1)
    return found.batch(best, best)[1]


def paired(runs: Path, scale: float, n: int, out: Path) -> dict:
    found = piles("emoji", size=32)
    a, b = found.kept(n)
    judge = judging.load()
    answers = {"nearest neighbor": nearest(found, a, n)}
    seconds = {}
    for method in ("regression", "gan", "diffusion", "bridge"):
        net = trained(method, runs, scale)
        assert isinstance(net, Translator)
        begun = time.process_time()
        answers[method] = torch.cat([translation.answer(net, part, seeds=range(len(part))) for part in a.split(60)])
        seconds[method] = (time.process_time() - begun) / len(a)
    answers["the truth mirrored"] = b.flip(3)
    with torch.no_grad():
        truth = judge.see(b)
        like = {name: (judge.see(made) * truth).sum(1) for name, made in answers.items()}
    result = {}
    print(f"edges to emoji, {len(a)} held-out pictures")
    for name, made in answers.items():
        against = ("nearest neighbor", "regression")
        gains = [mean(like[name] - like[base]) for base in against]
        psnr = -10 * (((made - b) / 2) ** 2).flatten(1).mean(1).log10()
        result[name] = {
            "likeness": mean(like[name]),
            "over nearest neighbor": gains[0],
            "over regression": gains[1],
            "fd_judge": round(judging.fd_judge(judge, b, made), 3),
            "psnr": mean(psnr),
            "seconds": round(seconds.get(name, 0.0), 3),
        }
        print(f"{name:18}", json.dumps(result[name]), flush=True)
    shown = slice(0, 12)
    grid(torch.cat([a[shown], *(made[shown] for made in answers.values()), b[shown]]), 12, 2).save(out / "edges.png")
    return result


def unpaired(runs: Path, scale: float, model_file: Path | None, n: int, out: Path, ways: list[str]) -> dict:
    found = piles("fashion-mnist", paired=False, classes=CLASSES, size=32)
    a, b = found.kept(n)
    judge = metrics.classifier(data.load("fashion-mnist", 32))  # nothing here was trained against it
    kinds = [data.load("fashion-mnist").classes.index(name) for name in CLASSES]

    def told(x: Tensor, kind: int) -> Tensor:
        with torch.no_grad():
            return (judge(x).argmax(1) == kinds[kind]).float()

    def row(name: str, there: Tensor, again: Tensor | None, here: Tensor, kind: int) -> None:
        cycle = None if again is None else -10 * (((again - here) / 2) ** 2).flatten(1).mean(1).log10()
        result[name] = {
            "told": mean(told(there, kind)),
            "cycle": None if cycle is None else mean(cycle),
            "edges": mean(edge_similarity(here, there)),
            "fd": round(metrics.frechet(*(metrics.features(judge, x) for x in ((a, b)[kind], there))), 3),
        }
        print(f"{name:34}", json.dumps(result[name]), flush=True)

    result: dict = {}
    print(f"{CLASSES[0]} to {CLASSES[1]} and back, {len(a)} held-out pictures each way")
    for kind, (here, there) in enumerate(((b, a), (a, b))):
        row(f"untouched, for {CLASSES[kind]}", here, None, here, kind)
        row(f"real {CLASSES[kind]}", there, None, here, kind)
    rows = [a]
    if "cyclegan" in ways:
        net = trained("cyclegan", runs, scale)
        assert isinstance(net, Cycle)
        with torch.no_grad():
            moved, back = net(a).clamp(-1, 1), net(b, back=True).clamp(-1, 1)
            row("cyclegan, there", moved, net(moved, back=True).clamp(-1, 1), a, 1)
            row("cyclegan, back", back, net(back).clamp(-1, 1), b, 0)
            rows += [moved, net(moved, back=True)]
    if model_file is not None:
        model = load_model(model_file)
        to, fro = (model.cond([name] * len(a)) for name in reversed(CLASSES))
        for strength in (0.8, 0.9, 0.95) if "sdedit" in ways else ():
            moved = translation.sdedit(model, a, strength, to, 12, scale=3.0)
            again = translation.sdedit(model, moved, strength, fro, 12, scale=3.0)
            row(f"sdedit {strength}, scale 3", moved, again, a, 1)
            rows.append(moved)
        for scale in (1.0, 2.0) if "dual" in ways else ():
            moved = translation.dual(model, model, a, fro, to, 16, scale=scale)
            again = translation.dual(model, model, moved, to, fro, 16, scale=scale)
            row(f"dual flow, scale {scale:g}", moved, again, a, 1)
            rows += [moved, again]
    grid(torch.cat([x[:12] for x in rows]), 12, 2).save(out / "shoes.png")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/translation"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("-n", type=int, default=180)
    parser.add_argument("--ways", nargs="+", default=["cyclegan", "sdedit", "dual"])
    parser.add_argument("--only", choices=["paired", "unpaired"])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = {}
    if given.only != "unpaired":
        result["paired"] = paired(given.runs, given.scale, given.n, given.out)
    if given.only != "paired":
        result["unpaired"] = unpaired(given.runs, given.scale, given.model, min(given.n, 64), given.out, given.ways)
    (given.out / "translation.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
