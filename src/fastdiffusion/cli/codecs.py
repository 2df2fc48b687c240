"""Commands of autoencoders: train one, look into it, and teach its words to make pictures."""

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
    next_command,
    unfinished,
)
from .options import pictures as load_pictures


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
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/autoencoder"
    ),
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 32,
    lr: LR = 1e-2,
    optimizer: Optimizer = "muon",
    holdout: Annotated[float, typer.Option(help="Part of the pictures kept to measure with.")] = 0.05,
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train an autoencoder, for models that work in its latents.

    Then: fastdiffusion train DATA --codec runs/autoencoder/codec.safetensors --net unet-latent
    """
    given: dict[str, Any] = {key: value for key, value in locals().items() if key != "aspect"}
    from ..tasks import autoencoders

    pictures = load_pictures(data, size, aspect, "crop")
    if pictures.report is not None:
        print(pictures.report)
    given |= {"data": pictures, "size": None}
    codec = autoencoders.train_autoencoder(**given)
    if unfinished(folder, steps):
        return
    _, held = pictures.split(holdout, seed)
    found = autoencoders.quality(codec, held if len(held) else pictures)
    print(
        f"{folder / autoencoders.FILE}: PSNR {found.psnr:.2f} dB, gradient energy {found.gradient_energy:.2f} of real."
    )
    shared = {"size": size, "aspect": aspect}
    if kind == "kl":
        next_command(f"train {shlex.quote(data)}", **shared, codec=folder / autoencoders.FILE, net="unet-latent")
    else:
        next_command(f"train-codes {shlex.quote(str(folder / autoencoders.FILE))} {shlex.quote(data)}", **shared)


@app.command()
def codec(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An autoencoder's, or a model's that works in latents.")],
    data: DataName,
    n: Annotated[int, typer.Option("-n", "--n", help="Pictures to measure with, at most.")] = 256,
    samples: Annotated[int, typer.Option(help="Draws of the importance-weighted bound.")] = 64,
    size: Size = None,
    aspect: Aspect = None,
    holdout: Annotated[float, typer.Option(help="The part that was kept from training; 0 for all.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the training's split, and of the draws.")] = 0,
    out: Out = Path("out/codec"),
) -> None:
    """Measure an autoencoder, and show what its latents say.

    How faithful, how sharp, how many bits; of a variational one bounds on the likelihood and how many latents are
    active, of one with words how many are used. The sheet: pictures, reconstructions, traversals, prior samples.
    """
    from ..checkpoints import write_json
    from ..images import save_png
    from ..models import load_codec
    from ..tasks import latent_variables

    net = load_codec(file)
    held = load_pictures(data, size, aspect, "crop").split(holdout, seed)[1 if holdout else 0]
    found = latent_variables.describe(net, held, n, samples, seed)
    write_json(out / "codec.json", found)
    save_png(latent_variables.sheet(net, held, seed), out / "codec.png")
    for name, value in found.items():
        print(f"{name:16} {value:10.4g}")
    print(f"In {out}: codec.json and codec.png.")


@app.command("train-codes")
def train_codes(
    codec: Annotated[Path, typer.Argument(metavar="CODEC", help="An autoencoder's file: kind vq, fsq or gumbel.")],
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 2000,
    width: Annotated[int, typer.Option(help="Channels of the prior.")] = 128,
    depth: Annotated[int, typer.Option(help="Its layers.")] = 4,
    size: Size = None,
    aspect: Aspect = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/codes"
    ),
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 64,
    lr: LR = 1e-2,
    optimizer: Optimizer = "muon",
    holdout: Annotated[float, typer.Option(help="Part of the pictures kept to measure with.")] = 0.05,
    minutes: Minutes = None,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Train a prior over the words of an autoencoder.

    It learns which words stand together, and so to make new pictures.
    """
    given: dict[str, Any] = {key: value for key, value in locals().items() if key != "aspect"}
    from ..tasks import codes

    pictures = load_pictures(data, size, aspect, "crop")
    given |= {"data": pictures, "size": None}
    made = codes.train_codes(**given)
    if unfinished(folder, steps):
        return
    learned, held = pictures.split(holdout, seed)
    cost, plain = codes.bits(made, held if len(held) else learned), made.plain_bits
    print(f"{folder / codes.FILE}: {cost:.0f} bits for the words of a picture, {plain:.0f} without the prior.")
    next_command(f"sample-codes {shlex.quote(str(folder / codes.FILE))} -n 16")


@app.command("sample-codes")
def sample_codes(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="What train-codes wrote.")],
    n: Annotated[int, typer.Option("-n", "--n", help="How many pictures.")] = 16,
    steps: Annotated[int, typer.Option(help="Calls of the prior per picture, each writing several words.")] = 16,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier words, fewer kinds.")] = 1.0,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    out: Out = Path("out"),
) -> None:
    """Make pictures out of words of a codebook.

    One PNG each, and grid.png.
    """
    given = {key: value for key, value in locals().items() if key != "out"}
    from ..images import grid, save_png
    from ..tasks import codes

    made = codes.sample_codes(**given)
    for i, picture in enumerate(made):
        save_png(picture, out / f"{seed + i:04d}.png")
    save_png(grid(made, zoom=max(1, 64 // made.shape[-1])), out / "grid.png")
    print(f"{n} pictures in {out}, and grid.png.")
