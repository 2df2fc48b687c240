"""Commands of autoencoders: train one, evaluate it, and train a prior that samples its tokens."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    LR,
    Aspect,
    BatchSize,
    DataName,
    Fresh,
    Minutes,
    Optimizer,
    Out,
    Seed,
    SeedOfAll,
    Size,
    app,
    load_data,
    next_command,
    unfinished,
)


@app.command("train-autoencoder")
def train_autoencoder(
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 3000,
    kind: Annotated[str, typer.Option(help="kl (continuous latents); vq, fsq, gumbel (tokens of a codebook).")] = "kl",
    latent: Annotated[int, typer.Option(help="Channels of the latents.")] = 4,
    width: Annotated[int, typer.Option(help="Channels of the first level.")] = 32,
    blocks: Annotated[int, typer.Option(help="Residual blocks of each level.")] = 1,
    levels: Annotated[int, typer.Option(help="How often the size is halved.")] = 2,
    codebook_size: Annotated[int, typer.Option(help="Number of tokens.")] = 1024,
    kl: Annotated[float, typer.Option(help="Weight of the divergence; larger is smoother and coarser.")] = 1e-4,
    free_bits: Annotated[float, typer.Option(help="Nats a latent number that cost nothing.")] = 0.0,
    perceptual: Annotated[float, typer.Option(help="Weight of the distance in a feature net.")] = 0.0,
    adversarial: Annotated[float, typer.Option(help="Weight of a critic of patches.")] = 0.0,
    size: Size = None,
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/autoencoder"
    ),
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    lr: LR = 1e-2,
    optimizer: Optimizer = "muon",
    holdout: Annotated[float, typer.Option(help="Part of the images kept to measure with.")] = 0.05,
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train an autoencoder, for models that work in its latents.

    Then: fastdiffusion train DATA --autoencoder runs/autoencoder/codec.safetensors --net unet-latent
    """
    options: dict[str, Any] = {key: value for key, value in locals().items() if key != "aspect"}
    from ..tasks.autoencoding import train

    images = load_data(data, size, aspect, "crop")
    if images.report is not None:
        print(images.report)
    options |= {"data": images, "size": None}
    autoencoder = train.train_autoencoder(**options)
    if unfinished(folder, steps):
        return
    _, held = images.split(holdout, seed)
    quality = train.quality(autoencoder, held if len(held) else images)
    file = folder / train.FILE
    print(f"{file}: PSNR {quality.psnr:.2f} dB, gradient energy {quality.gradient_energy:.2f} of real.")
    shared = {"size": size, "aspect": aspect}
    if kind == "kl":
        next_command(f"train {shlex.quote(data)}", **shared, autoencoder=file, net="unet-latent")
    else:
        next_command(f"train-token-prior {shlex.quote(str(file))} {shlex.quote(data)}", **shared)


@app.command("evaluate-autoencoder")
def evaluate_autoencoder(
    autoencoder: Annotated[
        Path, typer.Argument(metavar="FILE", help="An autoencoder's, or a model's that works in latents.")
    ],
    data: DataName,
    n: Annotated[int, typer.Option("-n", "--n", help="Images to measure with, at most.")] = 256,
    samples: Annotated[int, typer.Option(help="Draws of the importance-weighted bound.")] = 64,
    size: Size = None,
    aspect: Aspect = None,
    holdout: Annotated[float, typer.Option(help="The part that was kept from training; 0 for all.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the training's split, and of the draws.")] = 0,
    out: Out = Path("out/autoencoder"),
) -> None:
    """Measure an autoencoder, and show what its latents encode.

    How faithful, how sharp, how many bits; of a variational one bounds on the likelihood and how many latents are
    active, of one with tokens how many are used. The sheet: images, reconstructions, traversals, prior samples.
    """
    from ..io.atomic import write_json
    from ..io.images import save_png
    from ..models import load_autoencoder
    from ..tasks.autoencoding import analysis

    net = load_autoencoder(autoencoder)
    held = load_data(data, size, aspect, "crop").split(holdout, seed)[1 if holdout else 0]
    numbers = analysis.describe(net, held, n, samples, seed)
    write_json(out / "autoencoder.json", numbers)
    save_png(analysis.sheet(net, held, seed), out / "autoencoder.png")
    for name, value in numbers.items():
        print(f"{name:16} {value:10.4g}")
    print(f"In {out}: autoencoder.json and autoencoder.png.")


@app.command("train-token-prior")
def train_token_prior(
    autoencoder: Annotated[
        Path, typer.Argument(metavar="AUTOENCODER", help="An autoencoder's file: kind vq, fsq or gumbel.")
    ],
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 2000,
    width: Annotated[int, typer.Option(help="Channels of the prior.")] = 128,
    depth: Annotated[int, typer.Option(help="Its layers.")] = 4,
    size: Size = None,
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/token-prior"
    ),
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    lr: LR = 1e-2,
    optimizer: Optimizer = "muon",
    holdout: Annotated[float, typer.Option(help="Part of the images kept to measure with.")] = 0.05,
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train a prior over the tokens of an autoencoder.

    It learns which tokens stand together, and so to make new images.
    """
    options: dict[str, Any] = {key: value for key, value in locals().items() if key != "aspect"}
    from ..tasks.autoencoding import token_prior

    images = load_data(data, size, aspect, "crop")
    options |= {"data": images, "size": None}
    prior = token_prior.train_token_prior(**options)
    if unfinished(folder, steps):
        return
    learned, held = images.split(holdout, seed)
    cost, plain = token_prior.bits(prior, held if len(held) else learned), prior.plain_bits
    print(f"{folder / token_prior.FILE}: {cost:.0f} bits for the tokens of an image, {plain:.0f} without the prior.")
    next_command(f"sample-tokens {shlex.quote(str(folder / token_prior.FILE))} -n 16")


@app.command("sample-tokens")
def sample_tokens(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="What train-token-prior wrote.")],
    n: Annotated[int, typer.Option("-n", "--n", help="How many images.")] = 16,
    steps: Annotated[int, typer.Option(help="Evaluations of the prior per image, each setting several tokens.")] = 16,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier tokens, fewer kinds.")] = 1.0,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    out: Out = Path("out"),
) -> None:
    """Make images out of tokens of a codebook.

    One PNG each, and grid.png.
    """
    options = {key: value for key, value in locals().items() if key != "out"}
    from ..io.images import grid, save_png
    from ..tasks.autoencoding import token_prior

    made = token_prior.sample_tokens(**options)
    for i, image in enumerate(made):
        save_png(image, out / f"{seed + i:04d}.png")
    save_png(grid(made, zoom=max(1, 64 // made.shape[-1])), out / "grid.png")
    print(f"{n} images in {out}, and grid.png.")
