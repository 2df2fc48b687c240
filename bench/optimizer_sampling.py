"""Sampling with an optimizer instead of a solver, and blind: is it any good? Against DDIM at equal calls.

"error" is RMS to the model's own probability flow from the same noise (200 calls of DPM++ 3M); "fd" the Frechet
distance to real pictures in the features of a judge; real against real is printed as the floor.

Verdict on the digits: a solver does it better. Momentum above 0 is further from the flow than DDIM at every number of
calls; below 0 (extrapolation) it is nearer, and is then a multistep solver by another name. Blind descent is DDIM with
a blind denoiser, exactly, because the level cancels; its error stops falling where the predictor's own begins. Adam on
planned levels never arrives; blind, it makes other pictures than the flow, of like quality at 50 calls.

    python bench/optimizer_sampling.py [--data digits] [--model FILE] [--minutes 1] [-n 250] [--out out/bench]
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from subject import arguments, subject
from torch import Tensor

from fastdiffusion import guidance, metrics, noise, samplers
from fastdiffusion.data import selection
from fastdiffusion.samplers import optimization
from fastdiffusion.tasks.classification.train import level_error, train_noise_level


@torch.no_grad()
def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[8, 12, 20, 50])
    parser.add_argument("--level-steps", type=int, default=600)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    model, data, train, held_out, classifier = subject(args)
    with torch.enable_grad():
        level = train_noise_level(train, steps=args.level_steps)
    errors = level_error(level, held_out)
    print("noise level predictor, relative RMS error on held-out pictures by level:",
          {sigma: round(error, 3) for sigma, error in errors.items()})  # fmt: skip

    n, cond = args.n, model.cond(torch.arange(args.n) % len(model.classes))
    start = model.sigma_max * noise.initial(range(n), model.shape)
    real = metrics.features(classifier, selection.load_images(data, selection.choose(data, 2 * n))[0])
    print(f"floor, real against real: fd {metrics.frechet(real[:n], real[n:]):.3f}")

    def table(name: str, evaluations: int) -> samplers.Table:
        return model.table(evaluations, name, "exponential")

    def by_optimizer(update: str, blind: bool, **options: float) -> Callable[[int], Tensor]:
        eye = level if blind else None
        return lambda evaluations: samplers.final(optimization.optimize(
            model.denoise, start, model.sigma_max, evaluations, update, model.sigma_min, eye, cond, **options
        ))  # fmt: skip

    methods: dict[str, Callable[[int], Tensor]] = {
        "ddim": lambda evaluations: samplers.final(
            samplers.run(model.denoise, start, table("euler", evaluations), cond)
        ),
        "dpmpp_3m": lambda evaluations: samplers.final(
            samplers.run(model.denoise, start, table("dpmpp_3m", evaluations), cond)
        ),
        "momentum 0.3": by_optimizer("momentum", False, beta=0.3),
        "momentum -0.3": by_optimizer("momentum", False, beta=-0.3),
        "extrapolation 2": by_optimizer("extrapolation", False),
        "adam": by_optimizer("adam", False),
        "ddim, blind denoiser": lambda evaluations: samplers.final(
            samplers.run(guidance.blind(model.denoise, level), start, table("euler", evaluations), cond)
        ),
        "descent, blind": by_optimizer("descent", True),
        "momentum 0.3, blind": by_optimizer("momentum", True, beta=0.3),
        "momentum -0.3, blind": by_optimizer("momentum", True, beta=-0.3),
        "adam, blind": by_optimizer("adam", True),
    }
    flow = methods["dpmpp_3m"](200)
    rows = []
    for name, method in methods.items():
        cells = []
        for evaluations in args.evaluations:
            x = method(evaluations)
            error = float((x - flow).square().mean().sqrt())
            fd = metrics.frechet(real[:n], metrics.features(classifier, x.clamp(-1, 1)))
            rows.append({"method": name, "calls": evaluations, "error": error, "fd": fd})
            cells.append(f"{evaluations:3d}: error {error:.3f} fd {fd:6.3f}")
        print(f"{name:24s}", " | ".join(cells), flush=True)
    report = {"rows": rows, "level_error": {str(k): v for k, v in errors.items()}}
    (args.out / "optimizer_sampling.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
