"""Autoencoders: how faithful, how sharp, how many words used; what a variational one knows; what their priors draw.

    python bench/autoencoders.py --rows kl vq fsq                # emoji of 64x64 pixels, 1 to 2 CPU minutes each
    python bench/autoencoders.py --rows collapse                 # digits: latents that fall silent, and the cure
    python bench/autoencoders.py --rows priors --seeds 0 1 2     # digits: normal latents against words with a prior
    python bench/autoencoders.py --rows priors --data fashion-mnist --seeds 0

Emoji are measured on designs that were held out. The rate is in bits a picture: for the variational ones the
divergence, which an ideal coder of latents reaches that knows their prior. Such a coder draws the latents from their
posterior, so ``psnr_drawn`` is what its rate buys; ``psnr`` is of the posterior's mean. For words ``bits`` is places
times log2 of the codebook, and ``coded`` what an ideal coder needs that knows how often each word occurs in training:
that is compared at equal bits, since it pays for a white place as little as the other coder does. Drawn
pictures are judged by a classifier of the data that nothing here was trained against: how sure it is of its answer
(``confidence``), and the Frechet distance ``fd`` from as many real pictures in its features.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiffusion import data, metrics
from fastdiffusion.data import Dataset, selection
from fastdiffusion.io.images import grid, save_png, to_tensor
from fastdiffusion.nets.autoencoders import KL, Autoencoder, Discrete
from fastdiffusion.tasks.autoencoding.analysis import describe, imagine, sheet
from fastdiffusion.tasks.autoencoding.token_prior import bits, sample_tokens, train_token_prior
from fastdiffusion.tasks.autoencoding.train import batches, train_autoencoder, use
from fastdiffusion.tasks.evaluation.feature_net import feature_net

EMOJI: dict[str, dict[str, Any]] = {
    "kl": {"kl": 1e-4},
    "kl-coarse": {"kl": 6e-3},  # the curve of rate and error that words are compared with
    "kl-coarsest": {"kl": 3e-2},
    "kl-rough": {"kl": 6e-2},
    "kl-critic": {"kl": 1e-4, "adversarial": 0.2},
    "vq": {"kind": "vq"},
    "fsq": {"kind": "fsq"},
    "gumbel": {"kind": "gumbel"},
}
COLLAPSE: dict[str, dict[str, Any]] = {
    "weight 2": {"kl": 2.0},
    "weight 2, 0.5 free": {"kl": 2.0, "free_bits": 0.5},
    "weight 0.5": {"kl": 0.5},
    "weight 0.1": {"kl": 0.1},
    "weight 0.02": {"kl": 0.02},
}
PRIORS: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {  # one vector a picture, or four words
        "kl": {"levels": 3, "latent": 16, "kl": 0.1, "steps": 1000},
        "vq": {"kind": "vq", "levels": 2, "latent": 8, "codebook_size": 128},
        "fsq": {"kind": "fsq", "levels": 2, "codebook_size": 256},
        "gumbel": {"kind": "gumbel", "levels": 2, "latent": 8, "codebook_size": 128},
    },
    "fashion-mnist": {  # one vector, or sixteen words
        "kl": {"levels": 5, "latent": 32, "kl": 0.02, "steps": 800},
        "vq": {"kind": "vq", "levels": 3, "latent": 8, "codebook_size": 256},
    },
}
SMALL = {"width": 16, "lr": 3e-3}


@torch.no_grad()
def drawn(autoencoder: Autoencoder, images: Dataset, n: int) -> float:
    """PSNR of latents that a coder sends at its rate: drawn from the posterior."""
    errors = []
    for x in batches(images, n):
        side = [-(-k // autoencoder.factor) for k in x.shape[2:]]
        y = autoencoder(x, torch.randn(len(x), autoencoder.noise_channels, *side))[0]
        errors.append(((y.clamp(-1, 1) - x) / 2).square().flatten(1).mean(1))
    return float(-10 * torch.cat(errors).clamp(min=1e-10).log10().mean())


@torch.no_grad()
def coded(autoencoder: Discrete, train: Dataset, held: Dataset, n: int) -> float:
    """Bits of a held-out picture's words, each coded by its frequency in 4,000 pictures of the training."""
    count = torch.ones(autoencoder.codebook_size, dtype=torch.float64)
    for rows in torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:4000].split(100):
        tokens = autoencoder.tokens(to_tensor(train.batch(rows.tolist()).images))
        count += tokens.flatten().bincount(minlength=autoencoder.codebook_size)
    price = -(count / count.sum()).log2()
    return float(torch.cat([price[autoencoder.tokens(x)].flatten(1).sum(1) for x in batches(held, n)]).mean())


def at_equal_bits(curve: list[Path], bits: float) -> float | None:
    """PSNR of the variational codecs measured before, at this rate: between the two nearest, in its logarithm."""
    rows = [json.loads(path.read_text()) for path in curve if path.exists()]
    rows = [row for file in rows for row in ([file] if "bits" in file else file.values())]
    if len(rows) < 2:
        return None
    p, q = sorted(rows, key=lambda row: abs(math.log2(row["bits"] / bits)))[:2]
    part = math.log2(bits / p["bits"]) / math.log2(q["bits"] / p["bits"])
    return p["psnr_drawn"] + part * (q["psnr_drawn"] - p["psnr_drawn"])


def emoji(row: str, steps: int, out: Path) -> dict[str, Any]:
    autoencoder = train_autoencoder("emoji-scenes", steps=steps, folder=out / row, **EMOJI[row]).model
    held = data.load("emoji-scenes", part="designs")
    results: dict[str, Any] = describe(autoencoder, held, n=144, samples=4)
    save_png(sheet(autoencoder, held), out / f"{row}.png")
    if isinstance(autoencoder, Discrete):
        train = data.load("emoji-scenes")
        results |= {"used": use(autoencoder, train, 4000), "coded": coded(autoencoder, train, held, 144)}
        curve = [out / f"{row}.json" for row in EMOJI if row.startswith("kl-") and row != "kl-critic"]
        return results | {"kl at equal bits": at_equal_bits(curve, results["coded"])}
    return results | {"psnr_drawn": drawn(autoencoder, held, 144)}


def collapse(out: Path) -> dict[str, Any]:
    """The held-out digits under several weights of the divergence."""
    digits, results = data.load("digits"), {}
    evaluator, held = DigitEvaluator(digits), digits.split(0.05, 0)[1]
    for row, options in COLLAPSE.items():
        autoencoder = train_autoencoder(
            digits, steps=500, levels=3, latent=16, **SMALL, **options, folder=out / f"digits-{row}"
        ).model
        assert isinstance(autoencoder, KL)
        results[row] = describe(autoencoder, held) | {"psnr_drawn": drawn(autoencoder, held, len(held))}
        results[row] |= evaluator(imagine(autoencoder, range(898), (8, 8)))
        save_png(sheet(autoencoder, held), out / f"digits-{row}.png")
        print(row, results[row], flush=True)
    return results


class DigitEvaluator:
    """Confidence and Frechet distance, the latter from half of the data; ``floor`` is of the other half."""

    def __init__(self, images: Dataset):
        self.net, n = feature_net(images), min(len(images) // 2, 1000)
        both = to_tensor(selection.load_images(images, selection.choose(images, 2 * n))[0])
        self.n, self.real = n, metrics.features(self.net, both[:n])
        self.floor = self(both[n:])

    def sure(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(part).softmax(1).max(1).values for part in x.split(256)])

    def __call__(self, x: Tensor) -> dict[str, float]:
        fd = metrics.frechet(self.real, metrics.features(self.net, x))
        return {"confidence": round(float(self.sure(x).mean()), 4), "fd": round(fd, 3)}


def priors(name: str, kinds: list[str], seeds: list[int], prior_steps: int, out: Path) -> dict[str, Any]:
    """New pictures from each kind's prior, and the difference to the variational one's with its 95 % interval."""
    images = data.load(name)
    evaluator, made = DigitEvaluator(images), {}
    results: dict[str, Any] = {"real": evaluator.floor}
    for kind in (k for k in kinds if k in PRIORS[name]):
        for seed in seeds:
            folder = out / f"{name}-{kind}-{seed}"
            held = images.split(0.05, seed)[1]
            keywords = {"steps": 500, **SMALL, **PRIORS[name][kind]}
            autoencoder = train_autoencoder(images, seed=seed, folder=folder, **keywords).model
            if isinstance(autoencoder, KL):
                x, row = imagine(autoencoder, range(evaluator.n), images.shape[1:]), describe(autoencoder, held)
            else:
                assert isinstance(autoencoder, Discrete)
                tokens = train_token_prior(
                    autoencoder, images, steps=prior_steps, width=96, depth=3, seed=seed, folder=folder / "prior"
                ).model
                row = describe(autoencoder, held) | {
                    "bits, prior": bits(tokens, held),
                    "used": use(autoencoder, images, 1000),
                }
                row["kl at equal bits"] = (
                    at_equal_bits([out / "collapse.json"], row["bits"]) if name == "digits" else None
                )
                x = sample_tokens(tokens, n=evaluator.n).images
            made[kind, seed] = x
            results[f"{kind}, seed {seed}"] = evaluator(x) | row
            print(kind, seed, results[f"{kind}, seed {seed}"], flush=True)
        if kind != "kl" and "kl" in kinds:
            a, b = (torch.cat([made[k, s] for s in seeds]) for k in ("kl", kind))
            sure = metrics.interval(lambda p, q: float(q.mean() - p.mean()), evaluator.sure(a), evaluator.sure(b))
            features = [metrics.features(evaluator.net, x) for x in (a, b)]
            gain = metrics.interval(
                lambda r, p, q: metrics.frechet(r, p) - metrics.frechet(r, q), evaluator.real, *features, rounds=100
            )
            results[f"{kind} against kl"] = {"confidence gained": sure, "fd gained": gain}
            print(kind, "against kl", results[f"{kind} against kl"], flush=True)
    rows = torch.cat([x[:16] for (_, seed), x in made.items() if seed == seeds[0]])
    save_png(grid(rows, 16, max(1, 40 // rows.shape[-1])), out / f"priors-{name}.png")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*EMOJI, "collapse", "priors"], default=[*EMOJI])
    parser.add_argument("--steps", type=int, default=400, help="of each emoji row")
    parser.add_argument("--data", choices=list(PRIORS), default="digits", help="of priors")
    parser.add_argument("--kinds", nargs="+", choices=list(PRIORS["digits"]), default=list(PRIORS["digits"]))
    parser.add_argument("--prior-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("out/autoencoders"))
    args = parser.parse_args()
    for row in args.rows:
        if row == "collapse":
            results = collapse(args.out)
        elif row == "priors":
            results = priors(args.data, args.kinds, args.seeds, args.prior_steps, args.out)
            row = f"priors-{args.data}"
        else:
            results = emoji(row, args.steps, args.out)
            print(row, results, flush=True)
        (args.out / f"{row}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
