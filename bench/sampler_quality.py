"""How good the pictures of few calls are: Frechet distance at 5, 8 and 12 calls, against the same model's 100 calls.

All tables start from the same noises and classes. "fd" is the distance to the test pictures in the features of the
data's own classifier; "more" is how much of it the few calls are to blame for (fd less that of 100 calls, with a 95 %
interval of the bootstrap over noises, paired); "RMS" is the distance of the pictures from those of 100 calls.

    python bench/sampler_quality.py MODEL [--data fashion-mnist] [-n 500] [--evaluations 5,8,12] [--budget 20000]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from fastdiffusion import data as datasets
from fastdiffusion import metrics, noise, samplers, schedules
from fastdiffusion.data import selection
from fastdiffusion.io.checkpoints import load_tensors, save_tensors
from fastdiffusion.io.images import safe_name, to_tensor, to_uint8
from fastdiffusion.models import Model, load
from fastdiffusion.samplers import Table
from fastdiffusion.samplers.fitting import fit_sampler
from fastdiffusion.tasks.evaluation.feature_net import feature_net

TEXTBOOK = ("dpmpp_3m", "dpmpp_2m", "unipc", "deis", "gam", "lms", "heun", "euler")
FIRST = 10_000_000  # seeds from here on: no table was fitted to them


@torch.no_grad()
def drawn(model: Model, table: Table, n: int, path: Path) -> Tensor:
    """The n pictures of a table, in [-1, 1]; from the disk if they were made before."""
    if path.exists():
        return load_tensors(path)[1]["images"]
    parts = []
    for first in range(0, n, 100):
        rows = range(first, min(first + 100, n))
        seeds = [FIRST + i for i in rows]
        x = table.sigmas[0] * noise.initial(seeds, model.shape)
        cond = model.cond([i % len(model.classes) for i in rows])
        parts.append(samplers.final(samplers.run(model.denoise, x, table, cond, seeds)))
        print(f"\r{path.stem} {rows.stop} of {n}  ", end="", flush=True)
    images = torch.cat(parts).clamp(-1, 1)
    save_tensors(path, {"images": images}, {"table": json.loads(table.to_json())})
    return images


def fitted(model: Model, evaluations: int, budget: int, path: Path) -> Table:
    """The table fitted to the model, kept on the disk."""
    if not path.exists():
        cond = model.cond(range(len(model.classes)))
        path.write_text(fit_sampler(model, evaluations, cond=cond, evaluations=budget).to_json())
    return Table.from_json(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--evaluations", default="5,8,12")
    parser.add_argument("--budget", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("out/sampler_quality"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load(args.model)
    data = datasets.load(args.data, size=model.shape[1])
    test = datasets.load(args.data, size=model.shape[1], part="test") if args.data == "fashion-mnist" else data
    classifier = feature_net(data)
    real = metrics.features(classifier, selection.load_images(test, range(len(test)))[0])
    wanted = torch.arange(args.n) % len(model.classes)

    tables = {"dpmpp_3m, 100": samplers.table("dpmpp_3m", schedules.exponential(100, model.sigma_min, model.sigma_max))}
    for evaluations in map(int, args.evaluations.split(",")):
        tables[f"fitted, {evaluations}"] = fitted(
            model, evaluations, args.budget, args.out / f"fitted-{evaluations}.json"
        )
        name, schedule, low = tables[f"fitted, {evaluations}"].info["textbook"].split(", ")
        sigmas = schedules.schedule(schedule, evaluations, sigma_min=float(low.split()[1]), sigma_max=model.sigma_max)
        tables[f"best textbook by RMS ({name} {schedule}), {evaluations}"] = samplers.table(name, sigmas)
        for name in TEXTBOOK:
            each = samplers.about(name).nfe
            steps = (evaluations + each - 1) // each
            table = samplers.table(name, schedules.exponential(steps, model.sigma_min, model.sigma_max))
            if table.nfe == evaluations:
                tables[f"{name}, {evaluations}"] = table

    rows, reference, features_100 = [], torch.empty(0), torch.empty(0)
    for name, table in tables.items():
        images = drawn(model, table, args.n, args.out / f"{safe_name(name)}.safetensors")
        fake = to_uint8(images)
        features = metrics.features(classifier, fake)
        if not rows:
            reference, features_100 = images, features
        width = features.shape[1]

        def more(both: Tensor, width: int = width) -> float:
            return metrics.frechet(real, both[:, :width]) - metrics.frechet(real, both[:, width:])

        low, high = metrics.interval(more, torch.cat([features, features_100], 1), rounds=50) if rows else (0.0, 0.0)
        fd = metrics.frechet(real, features)
        row = {
            "table": name, "fd": fd, "more": fd - (rows[0]["fd"] if rows else fd), "low": low, "high": high,
            "rms": float((images - reference).square().mean().sqrt()),
            "accuracy": float((classifier(to_tensor(fake)).argmax(1) == wanted).float().mean()),
        }  # fmt: skip
        rows.append(row)
        print(
            "\r| {table} | {fd:.3f} | {more:+.3f} ({low:+.3f} to {high:+.3f}) | {rms:.4f} | {accuracy:.3f} |".format(
                **row
            )
        )
    (args.out / "sampler_quality.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
