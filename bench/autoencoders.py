"""Autoencoders on the emoji: how faithful, how sharp, how many words used; and what a variational one knows.

    python bench/autoencoders.py --steps 600           # 2 minutes for each row on a core
    python bench/autoencoders.py --rows digits         # ELBO, IWAE and active units on the digits

All are measured on designs that were held out. The rate is in bits a picture: for words, positions times log2 of the
codebook; for the variational ones, the divergence, which an ideal coder of latents reaches.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from fastdiffusion import data
from fastdiffusion.data import Dataset
from fastdiffusion.images import to_tensor
from fastdiffusion.nets.autoencoders import KL, Codec, Discrete
from fastdiffusion.tasks.autoencoders import batches, quality, train_autoencoder, use

# "equal bits": the weight of the divergence at which KL spends about as much as 256 words of 1,000
ROWS: dict[str, dict[str, Any]] = {
    "kl": {"kl": 1e-4},
    "kl, equal bits": {"kl": 6e-3},
    "kl, features": {"kl": 1e-4, "perceptual": 0.5},
    "vq": {"kind": "vq"},
    "fsq": {"kind": "fsq"},
}


@torch.no_grad()
def bits(codec: Codec, scenes: Dataset) -> float:
    """Bits a picture."""
    if isinstance(codec, Discrete):
        return 16 * 16 * math.log2(codec.words)
    assert isinstance(codec, KL)
    rates = [codec(x, torch.zeros(len(x), len(codec.mean), 16, 16))[1] for x in batches(scenes)]
    return float(torch.cat(rates).mean()) * len(codec.mean) * 16 * 16 / math.log(2)


@torch.no_grad()
def bounds(codec: KL, x: torch.Tensor, samples: int = 64, spread: float = 0.25) -> dict[str, float]:
    """ELBO and IWAE-64 in nats a picture, of pixels that are normal about the decoder's answer (Burda et al. 2016)."""
    mean, log_var = codec.posterior(x)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    weights = []
    for _ in range(samples):
        z = q.sample()
        pixels = torch.distributions.Normal(codec.decoder(z), spread).log_prob(x).flatten(1).sum(1)
        weights.append(pixels + (prior.log_prob(z) - q.log_prob(z)).flatten(1).sum(1))
    w = torch.stack(weights)
    active = int((mean.flatten(1).var(0) > 0.01).sum())  # Burda et al., sec. 5.2
    return {"elbo": float(w.mean()), "iwae": float((w.logsumexp(0) - math.log(samples)).mean()), "active": active}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "digits"], default=[*ROWS, "digits"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("out/autoencoders"))
    args = parser.parse_args()
    found: dict[str, Any] = {"steps": args.steps}
    for row in [r for r in args.rows if r != "digits"]:
        folder = args.out / row.replace(", ", "-").replace(" ", "-")
        codec = train_autoencoder("emoji-scenes", args.steps, folder=folder, **ROWS[row])
        held = data.load("emoji-scenes", part="designs")
        found[row] = {**quality(codec, held)._asdict(), "bits": bits(codec, held)}
        if isinstance(codec, Discrete):
            found[row]["used"] = use(codec, data.load("emoji-scenes"), 4000)
        print(row, found[row], flush=True)
    if "digits" in args.rows:
        digits = data.load("digits")
        x = to_tensor(digits.batch(range(500)).images)
        for kl in (1.0, 0.1, 0.01, 0.001):  # the first collapses: latents that say nothing
            folder = args.out / f"digits-{kl:g}"
            codec = train_autoencoder("digits", 1500, width=16, levels=1, latent=2, kl=kl, lr=3e-3, folder=folder)
            assert isinstance(codec, KL)
            found[f"digits, kl {kl:g}"] = bounds(codec, x)
            print("digits", kl, found[f"digits, kl {kl:g}"], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "autoencoders.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
