"""Time to quality: class-conditional Fashion-MNIST at 32 px, ours against two peers' documented recipes.

    python bench/time_to_quality.py rates                       # images/s of all, in turns; needs an idle machine
    python bench/time_to_quality.py train fastdiffusion 0 10    # system, seed, minutes
    python bench/time_to_quality.py score fastdiffusion 0 10    # 1,000 pictures -> distances; --n 10000 for more
    python bench/time_to_quality.py table                       # what has been measured, as markdown

A budget of m minutes is m * 60 * rate images, where the rate is what ``rates`` measured for that system on the same
idle machine with the same two threads. So a training may run beside other work without being cheated by it. Every
system is sampled by its own sampler, without guidance, and measured against the test pictures in the features of one
classifier of the training pictures. Steps: 12 for ours, 50 for the peers.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from peers import PEERS

from fastdiffusion import data, metrics, sample
from fastdiffusion.data import selection
from fastdiffusion.io.checkpoints import load_tensors, save_tensors
from fastdiffusion.io.images import grid, save_png, to_tensor, to_uint8
from fastdiffusion.models import load
from fastdiffusion.noise import generator
from fastdiffusion.tasks.evaluation.feature_net import feature_net
from fastdiffusion.training.learner import Learner

OUT = Path("out/time_to_quality")
SYSTEMS = ("fastdiffusion", *PEERS)
THREADS = 2


def ours(seed: int, folder: Path | None = None) -> Learner:
    """The library's own recipe: the defaults, nothing tuned for this table alone."""
    return Learner(data.load("fashion-mnist", size=32), seed=seed, folder=folder, verbose=False)


def rates(rounds: int = 5, seconds: float = 6.0) -> None:
    """Training images per second of every system, measured in turns so that the machine's moods fall on all alike."""
    dataset = data.load("fashion-mnist", size=32)
    batch = dataset.batch(list(range(256)))
    images, labels = to_tensor(batch.images), batch.labels
    runs = {}
    for name, make in PEERS.items():
        peer = make(100_000)
        runs[name] = (lambda peer=peer: peer.step(images[: peer.batch], labels[: peer.batch]), peer.batch)
    learner = ours(0)
    steps = learner.steps(steps=100_000)
    runs["fastdiffusion"] = (lambda: next(steps), learner.config.batch_size)
    for step, _ in runs.values():
        for _ in range(3):
            step()
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (step, size) in runs.items():
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                step()
                done += size
            speeds[name].append(done / (time.perf_counter() - start))
    result = {name: sorted(values)[len(values) // 2] for name, values in speeds.items()}
    write("rates.json", {"images_per_second": result, "all": speeds, "threads": THREADS})
    print(json.dumps(result, indent=1))


def train(system: str, seed: int, minutes: float) -> None:
    """Train on as many images as ``minutes`` idle minutes hold, and keep the averaged weights."""
    rate = json.loads((OUT / "rates.json").read_text())["images_per_second"][system]
    total = int(rate * 60 * minutes)
    place = OUT / f"{system}-{seed}-{minutes:g}"
    start = time.perf_counter()
    if system == "fastdiffusion":
        learner = ours(seed, place)
        learner.fit(steps=total // learner.config.batch_size)
    else:
        torch.manual_seed(seed)
        peer, trained, source = PEERS[system](total), 0, generator(seed)
        dataset = data.load("fashion-mnist", size=32)
        while trained < total:
            for rows in torch.randperm(len(dataset), generator=source).split(peer.batch):
                batch = dataset.batch(rows.tolist())
                peer.step(to_tensor(batch.images), batch.labels)
                trained += len(rows)
                if trained >= total:
                    break
        place.mkdir(parents=True, exist_ok=True)
        save_tensors(place / "weights.safetensors", peer.weights(), {"system": system})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    note = {"images": total, "seconds": time.perf_counter() - start, "peak MB": round(peak)}
    write(f"{place.name}.json", note)
    print(system, seed, minutes, note)


@torch.no_grad()
def score(system: str, seed: int, minutes: float, n: int, steps: int) -> None:
    """Sample ``n`` pictures and measure them."""
    place = OUT / f"{system}-{seed}-{minutes:g}"
    if system == "fastdiffusion":
        model = load(place / "model.safetensors")
    else:
        peer = PEERS[system](1000)
        peer.load(load_tensors(place / "weights.safetensors")[1])
    torch.manual_seed(0)
    parts = []
    for first in range(0, n, 100):
        labels = torch.arange(first, first + 100) % 10
        if system == "fastdiffusion":
            images = sample(model, n=100, classes=labels.tolist(), seed=first, steps=steps, batch_size=100).images
        else:
            images = peer.sample(labels, steps)
        parts.append(to_uint8(images))
        print(f"\r{system} {first + 100} of {n}", end="", flush=True)
    fake = torch.cat(parts)
    labels = torch.arange(n) % 10
    save_png(grid(fake[:100], columns=10), OUT / f"{place.name}.png")
    result = {"steps": steps, "n": n, **measure(fake, labels)}
    write(f"{place.name}-score{n}.json", result)
    print("\n", result)


def measure(fake: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Distances to the test pictures, and the floor: as many training pictures of the same labels."""
    net = feature_net(data.load("fashion-mnist", size=32))
    test = data.load("fashion-mnist", size=32, part="test")
    real, _ = selection.load_images(test, range(len(test)))
    a, b = metrics.features(net, real), metrics.features(net, fake)
    x, y = metrics.gradient_statistics(to_tensor(real)), metrics.gradient_statistics(to_tensor(fake))
    accuracy = (net(to_tensor(fake)).argmax(1) == labels).float().mean()
    train = data.load("fashion-mnist", size=32)
    floor, _ = selection.load_images(train, selection.choose(train, len(fake)))
    z = metrics.gradient_statistics(to_tensor(floor))
    return {
        "fd_fashion_mnist": metrics.frechet(a, b),
        "floor": metrics.frechet(a, metrics.features(net, floor)),
        "gradients": metrics.gradient_distance(x, y)["all"],
        "gradients_floor": metrics.gradient_distance(x, z)["all"],
        "accuracy": float(accuracy),
        "judge_accuracy": net.info["accuracy"],
    }


def table() -> None:
    """All scores so far, as markdown."""
    print("| system | seed | minutes | n | fd_fashion_mnist | gradients | label accuracy | floor (fd, gradients) |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(OUT.glob("*-score*.json")):
        system, seed, rest = path.stem.rsplit("-", 3)[0], *path.stem.rsplit("-", 3)[1:3]
        s = json.loads(path.read_text())
        print(
            f"| {system} | {seed} | {rest} | {s['n']:,} | {s['fd_fashion_mnist']:.3f} | {s['gradients']:.4f} "
            f"| {s['accuracy']:.3f} | {s['floor']:.3f}, {s['gradients_floor']:.4f} |"
        )


def write(name: str, value: object) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "train", "score", "table"))
    parser.add_argument("system", nargs="?", choices=SYSTEMS)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("minutes", nargs="?", type=float, default=10)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="sampler steps, one network call each; 12 for ours, 50 for the peers")
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "rates":
        rates()
    elif args.what == "table":
        table()
    elif args.system is None:
        parser.error(f"which system? One of {', '.join(SYSTEMS)}")
    elif args.what == "train":
        train(args.system, args.seed, args.minutes)
    else:
        score(
            args.system, args.seed, args.minutes, args.n, args.steps or (12 if args.system == "fastdiffusion" else 50)
        )
