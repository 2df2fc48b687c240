"""What each improvement is worth: one switch at a time, equal compute, three seeds, on small data.

    python bench/ablations.py                    # all rows on the digits, about a CPU hour
    python bench/ablations.py B4 B6 --seeds 5    # some rows
    python bench/ablations.py B12 --data fashion-16 --net unet-small --steps 300 --few 1000 --seeds 5
    python bench/ablations.py table              # what has been measured, as markdown

Every row trains a baseline and its variants. A variant that makes a step slower gets fewer steps: the number is set by
timing both in turns first. The number is the Frechet distance of 1,000 samples (12 calls, no guidance) to the real
pictures in the features of the data's own classifier, and the label accuracy beside it. A variant "wins" or "loses" if
the 95 % interval of the paired differences over seeds (Student's t) excludes 0, and is "level" otherwise. With --few
the model learns from so many images, and "gap" is how much higher its loss is on as many others. "fashion-16" is
Fashion-MNIST shrunk to 16 px: a training in a minute of one core.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import seeds
import torch
from scipy.optimize import linear_sum_assignment

from fastdiffusion import data, metrics, samplers, schedules
from fastdiffusion.data import Dataset, selection
from fastdiffusion.data.dataset import Images
from fastdiffusion.io.images import to_tensor, to_uint8
from fastdiffusion.models import Model
from fastdiffusion.nets.layers import Shuffle
from fastdiffusion.nets.presets import PRESETS
from fastdiffusion.noise import initial
from fastdiffusion.tasks.evaluation.feature_net import feature_net
from fastdiffusion.training.batches import TrainingBatch
from fastdiffusion.training.learner import Learner

OUT = Path("out/ablations")
AUGMENT = ("scale", "rotate", "stretch", "shift")  # no flips: a mirrored digit is none


DIGITS: dict[str, Any] = {"data": "digits", "net": "unet-tiny", "steps": 400, "few": None}

# Of "net", what is changed of the preset; "changed" names a function of CHANGES.
ROWS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "B1": ("U-Net against a plain autoencoder", {"no skips": {"net": "skips=false"}}),
    "B2": ("attention", {"none": {"net": "attention=none"}, "linear": {"net": "linear=true"}}),
    "B3": (
        "ADM's switches",
        {
            "no adaptive group norm": {"net": "scale_shift=false"},
            "no rescaled sums": {"net": "rescale=false"},
            "two blocks a level": {"net": "blocks={twos}"},
        },
    ),
    "B4": (
        "weight over noise levels",
        {
            "noise": {"loss_weighting": "noise"},
            "p2": {"loss_weighting": "p2"},
            "min_snr": {"loss_weighting": "min_snr"},
            "v": {"loss_weighting": "v"},
            "not learned": {"uncertainty": False},
        },
    ),
    "B4d": (
        "density of noise levels",
        {
            "uniform": {"sigma_distribution": "uniform"},
            "cosine": {"sigma_distribution": "beta_cosine"},
            "linear": {"sigma_distribution": "beta_linear"},
        },
    ),
    "B5": ("EMA", {"nearly raw weights": {"ema": (0.005,)}, "longer": {"ema": (0.2,)}}),
    "B6": ("self-conditioning", {"on": {"self_condition": True}}),
    "B7": (
        "what the network predicts",
        {p: {"parameterization": p} for p in ("noise", "score", "x0", "v", "edm")},
    ),
    "B12": ("augmentation", {"EDM, p 0.12": {"augment": AUGMENT}}),
    "B15": ("optimizer", {"adamw": {"optimizer": "adamw"}}),
    "T": (
        "what others found",
        {
            "immiscible": {"changed": "immiscible"},
            "contrastive": {"changed": "contrastive"},
            "EDM2's levels": {"sigma_distribution_options": {"mean": -0.8, "std": 1.6}},
            "half the batch": {"batch_size": 32},
        },
    ),
    "B16": ("first weights", {"plain shuffles": {"changed": "plain_shuffles"}, "no zeros": {"changed": "no_zeros"}}),
    "B17": (
        "blur before downsampling",
        {"fixed": {"net": "blur=1"}, "learned": {"net": "blur=learned"}},
    ),
}


@functools.cache
def load(name: str) -> Dataset:
    """A data set by name; "fashion-16" is Fashion-MNIST, padded to 32 px and shrunk."""
    if name != "fashion-16":
        return data.load(name)
    large = data.load("fashion-mnist", size=32)
    rows = range(len(large))
    images, labels = selection.load_images(large, rows, (16, 16))
    known = large.annotations(rows)
    return Images(name, [images.numpy()], labels.tolist(), [(c,) for c in known.captions], known.names, large.classes)


def images_of(settings: dict[str, Any]) -> tuple[Dataset, Dataset]:
    """What is learned from, and as many other images (without "few": all images, twice)."""
    whole = load(settings["data"])
    if settings["few"] is None:
        return whole, whole
    rows = selection.choose(whole, 2 * settings["few"])
    return data.Subset(whole, rows[::2]), data.Subset(whole, rows[1::2])


def immiscible(learn: Learner) -> None:
    """Noises go to the images of the batch that they are nearest to (Li et al. 2024, arXiv:2406.12303, algorithm 1)."""
    draw = learn.batches.draw

    def assigned(step: int) -> TrainingBatch:
        e = draw(step)
        far = torch.cdist(e.x0.flatten(1), e.noise.flatten(1))
        return e._replace(noise=e.noise[torch.from_numpy(linear_sum_assignment(far.numpy())[1])])

    learn.batches.draw = assigned


def contrastive(learn: Learner, part: float = 0.05) -> None:
    """Away from the other images of the batch (Stoica et al. 2025, arXiv:2506.05350, eq. 8, here of x0)."""
    objective = learn.objective
    plain = objective.forward

    def forward(e: TrainingBatch) -> torch.Tensor:
        estimates: list[torch.Tensor] = []
        hook = objective.denoiser.register_forward_hook(lambda *made: estimates.append(made[-1]))
        loss = plain(e)
        hook.remove()
        away = (estimates[-1] - e.x0.roll(1, 0)).square().flatten(1).mean(1)
        return loss - part * away / objective.denoiser.sigma_data**2

    objective.forward = forward


def plain_shuffles(learn: Learner) -> None:
    """Upsampling begins with torch's random weights: as a checkerboard."""
    with torch.random.fork_rng():
        torch.manual_seed(learn.config.seed)
        for module in learn.objective.modules():
            if isinstance(module, Shuffle) and bool(module.conv.weight.any()):
                module.conv.reset_parameters()


def no_zeros(learn: Learner) -> None:
    """Layers that begin at zero, so that each block begins as the identity, begin with torch's random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(learn.config.seed)
        for module in learn.objective.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and not bool(module.weight.any()):
                module.reset_parameters()


CHANGES = {f.__name__: f for f in (immiscible, contrastive, plain_shuffles, no_zeros)}


def learner(settings: dict[str, Any], seed: int) -> Learner:
    keywords = {k: v for k, v in settings.items() if k not in ("steps", "data", "few", "changed")}
    learn = Learner(images_of(settings)[0], **keywords, seed=seed, verbose=False)
    if "changed" in settings:
        CHANGES[settings["changed"]](learn)
    return learn


def seconds_a_step(settings: list[dict[str, Any]], rounds: int = 5, each: int = 8) -> list[float]:
    """Seconds of one training step of several settings, measured in turns (medians)."""
    runs = [learner(s, 0).steps(steps=10_000) for s in settings]
    measured: list[list[float]] = [[] for _ in runs]
    for run in runs:
        for _ in range(3):
            next(run)
    for _ in range(rounds):
        for run, times in zip(runs, measured, strict=True):
            start = time.process_time()
            for _ in range(each):
                next(run)
            times.append((time.process_time() - start) / each)
    return [sorted(times)[rounds // 2] for times in measured]


@torch.no_grad()
def quality(model: Model, name: str, n: int = 1000, steps: int = 12) -> dict[str, float]:
    """Frechet distance and label accuracy of ``n`` samples."""
    real_data = load(name)
    evaluator = feature_net(real_data)
    real, _ = selection.load_images(real_data, selection.choose(real_data, min(len(real_data), 10_000)))
    table = samplers.table("dpmpp_3m", schedules.exponential(steps))
    labels = torch.arange(n) % len(real_data.classes)
    parts = []
    for first in range(0, n, 250):
        seeds = range(first, min(first + 250, n))
        cond = model.cond(labels[list(seeds)].tolist())
        parts.append(samplers.final(samplers.run(model.denoise, 80 * initial(seeds, model.shape), table, cond)))
    fake = to_uint8(torch.cat(parts))
    distance = metrics.frechet(metrics.features(evaluator, real), metrics.features(evaluator, fake))
    accuracy = (evaluator(to_tensor(fake)).argmax(1) == labels).float().mean()
    return {"distance": distance, "accuracy": float(accuracy)}


@torch.no_grad()
def loss(model: Model, images: Dataset, n: int = 500) -> float:
    """Mean squared error at four noise levels, each divided by that of the best guess without an image."""
    batch = images.batch(list(range(min(n, len(images)))))
    x, cond = to_tensor(batch.images), model.cond(batch.labels.tolist())
    noises, errors = initial(range(10**6, 10**6 + len(x)), model.shape), []
    for sigma in (0.2, 0.5, 1.0, 3.0):
        x0 = model.denoise(x + sigma * noises, x.new_full((len(x),), sigma), cond)
        errors.append(float((x0 - x).square().mean()) * (1 / sigma**2 + 1 / float(x.var())))
    return sum(errors) / len(errors)


def scores(settings: dict[str, Any], steps: int, seed: int, label: str) -> dict[str, float]:
    """Train once and measure; what was measured before is read. (All rows share their baseline's trainings.)"""
    key = hashlib.sha256(json.dumps([settings, steps, seed], sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = OUT / "runs" / f"{key}.json"
    if not path.exists():
        torch.manual_seed(seed)
        learn = learner(settings, seed)
        learn.fit(steps=steps)
        measured = quality(learn.model, settings["data"])
        if settings["few"] is not None:
            known, unseen = (loss(learn.model, part) for part in images_of(settings))
            measured["gap"] = unseen - known
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured) + "\n")
        print(label, seed, steps, measured, flush=True)
    return json.loads(path.read_text())


def ablate(row: str, base: dict[str, Any], count: int) -> None:
    """Train and measure one row, ``count`` seeds each."""
    title, variants = ROWS[row]
    settings = {"baseline": base, **{name: {**base, **change} for name, change in variants.items()}}
    for changed in settings.values():
        if changed["net"] != base["net"]:
            twos = ",".join("2" for _ in PRESETS[base["net"]]["blocks"])
            changed["net"] = f"{base['net']} {changed['net'].format(twos=twos)}"
    cost = dict(zip(settings, seconds_a_step(list(settings.values())), strict=True))
    results: dict[str, Any] = {}
    for name, s in settings.items():
        steps = round(s["steps"] * cost["baseline"] / cost[name])
        measured = [scores(s, steps, seed, f"{row} {name}") for seed in range(count)]
        results[name] = {"steps": steps, "ms": 1000 * cost[name], "scores": measured}
        OUT.mkdir(parents=True, exist_ok=True)  # what is measured stays, wherever the row is cut
        name = row if base == DIGITS else f"{row} {base['data']} {base['net']} {base['few'] or ''}".strip()
        (OUT / f"{name}.json").write_text(json.dumps({"title": title, "results": results}, indent=1) + "\n")


def verdict(base: list[float], other: list[float]) -> str:
    """Whether a variant's distances are lower (wins), higher (loses), or not to be told apart from the baseline's."""
    mean, half = seeds.mean([b - a for a, b in zip(base, other, strict=True)])
    outcome = "wins" if mean + half < 0 else "loses" if mean - half > 0 else "level"
    return f"{mean:+.3f} ± {half:.3f} {outcome}"


def table() -> None:
    """All results so far, as markdown."""
    print("| row | variant | ms a step | steps | distance by seed | accuracy | difference to the baseline |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(OUT.glob("*.json")):
        measured = json.loads(path.read_text())
        base = [s["distance"] for s in measured["results"]["baseline"]["scores"]]
        for name, r in measured["results"].items():
            distances = [s["distance"] for s in r["scores"]]
            accuracy = sum(s["accuracy"] for s in r["scores"]) / len(r["scores"])
            by_seed = ", ".join(f"{d:.2f}" for d in distances)
            gaps = [s["gap"] for s in r["scores"] if "gap" in s]
            by_seed += "; gap " + ", ".join(f"{g:.3f}" for g in gaps) if gaps else ""
            difference = "" if name == "baseline" else verdict(base, distances)
            print(
                f"| {path.stem} {measured['title']} | {name} | {r['ms']:.0f} | {r['steps']} | {by_seed} "
                f"| {accuracy:.3f} | {difference} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    for name, value in DIGITS.items():
        parser.add_argument(f"--{name}", type=type(value) if value is not None else int, default=value)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.rows == ["table"]:
        table()
    else:
        for name in args.rows:
            ablate(name, {name: getattr(args, name) for name in DIGITS}, args.seeds)
