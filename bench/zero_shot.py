"""Zero-shot restoration with a trained prior: all of fastdiffusion.guidance.posterior, at few calls and at many.

    python bench/zero_shot.py runs/fashion-mnist                    # a model of Fashion-MNIST
    python bench/zero_shot.py runs/fashion-mnist --restorer runs/x  # and a supervised restorer beside it

The pictures are Fashion-MNIST's test pictures, which the prior has not seen. Intervals are of the mean over pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from fastdiffusion import data, load, noise, samplers, schedules
from fastdiffusion.corruptions import parse
from fastdiffusion.guidance import cfg, posterior
from fastdiffusion.io.images import grid, save_png, to_tensor
from fastdiffusion.training.batches import degraded
from fastdiffusion.types import Cond

TEXTS = ("downscale 2, noise 0.02", "downscale 4, noise 0.02", "blur 1.5, noise 0.02", "mask 0.4", "noise 0.3")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1))


def formatted(values: Tensor) -> str:
    return f"{float(values.mean()):6.2f} +- {1.96 * float(values.std()) / math.sqrt(len(values)):.2f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--restorer", type=Path)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--evaluations", default="12,100")
    parser.add_argument("--methods", default="ddnm,pigdm")
    parser.add_argument("--sampler", default="ddpm")
    parser.add_argument("--texts", default="|".join(TEXTS))
    parser.add_argument("--out", type=Path, default=Path("out/zero_shot"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, report = load(args.model), {}
    images = data.load("fashion-mnist", part="test")
    x0 = to_tensor(images.batch(range(0, 50 * args.n, 50)).images)
    cond = Cond(label=torch.full((len(x0),), -1))
    start = noise.initial(range(len(x0)), x0.shape[1:])
    for text in args.texts.split("|"):
        operator = parse(text).on(x0.shape[1:], range(len(x0)))
        y = operator.forward(x0)
        rows = {"input": operator.lift(y)}
        if args.restorer is not None:
            restorer = load(args.restorer)
            measured = degraded(parse(text), x0, range(len(x0)))
            level = x0.new_full((len(x0),), restorer.sigma_max)
            rows["supervised"] = restorer.denoise(measured, level, Cond(image=measured))
        for method in args.methods.split(","):
            for evaluations in map(int, args.evaluations.split(",")):
                options = {} if method in ("diffpir", "tmpd") else {"sigma_data": model.sigma_data}
                guided = posterior.INVERSE[method](cfg(model.denoise, 1.0), operator, y, **options)
                table = samplers.table(
                    args.sampler, schedules.exponential(evaluations, model.sigma_min, model.sigma_max)
                )
                x = table.sigmas[0] * start
                rows[f"{method} {evaluations}"] = samplers.final(samplers.run(guided, x, table, cond, range(len(x))))
                rows[f"{method} {evaluations}"].clamp_(-1, 1)
        report[text] = {name: psnr(x, x0).tolist() for name, x in rows.items()}
        for name, x in rows.items():
            print(f"{text:26} {name:12} {formatted(psnr(x, x0))} dB", flush=True)
        shown = torch.cat([x0[:8], *(x[:8] for x in rows.values())])
        save_png(grid(shown.clamp(-1, 1), 8, 2), args.out / f"{text.split(',')[0]}.png")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
