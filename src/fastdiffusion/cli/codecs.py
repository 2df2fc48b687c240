"""The command that trains autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DataName, Size, app


@app.command("train-autoencoder")
def train_autoencoder(
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 3000,
    kind: Annotated[str, typer.Option(help="kl (continuous latents); vq, fsq, gumbel (words of a codebook).")] = "kl",
    latent: Annotated[int, typer.Option(help="Channels of the latents.")] = 4,
    width: Annotated[int, typer.Option(help="Channels of the first level.")] = 32,
    blocks: Annotated[int, typer.Option(help="Residual blocks of each level.")] = 1,
    levels: Annotated[int, typer.Option(help="How often the size is halved.")] = 2,
    codebook: Annotated[int, typer.Option(help="Number of words.")] = 1024,
    kl: Annotated[float, typer.Option(help="Weight of the divergence; larger is smoother and coarser.")] = 1e-4,
    free_bits: Annotated[float, typer.Option(help="Nats a latent number that cost nothing.")] = 0.0,
    perceptual: Annotated[float, typer.Option(help="Weight of the distance in a feature net.")] = 0.0,
    adversarial: Annotated[float, typer.Option(help="Weight of a critic of patches.")] = 0.0,
    size: Size = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/autoencoder"
    ),
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-2,
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    holdout: Annotated[float, typer.Option(help="Part of the pictures kept to measure with.")] = 0.05,
    minutes: Annotated[float | None, typer.Option(help="End after so long; the same command goes on.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Train an autoencoder, for models that work in its latents.

    Then: fastdiffusion train DATA --codec runs/autoencoder/codec.safetensors --net unet-latent
    """
    given = dict(locals())
    from .. import data as datasets
    from ..tasks import autoencoders

    pictures = datasets.load(data, size)
    if pictures.report is not None:
        print(pictures.report)
    given |= {"data": pictures, "size": None}
    codec = autoencoders.train_autoencoder(**given)
    if not (folder / autoencoders.FILE).is_file():
        print("Stopped. The same command goes on from here.")
        return
    _, held = pictures.split(holdout, seed)
    found = autoencoders.quality(codec, held if len(held) else pictures)
    print(
        f"{folder / autoencoders.FILE}: PSNR {found.psnr:.2f} dB, gradient energy {found.gradient_energy:.2f} of real."
    )
    print(f"Next: fastdiffusion train {data} --codec {folder / autoencoders.FILE} --net unet-latent")
