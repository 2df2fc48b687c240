"""Commands of autoencoders: train one, evaluate it, and train a prior that samples its tokens."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import counted
from ..tasks.autoencoding.options import (
    EvaluateAutoencoderOptions,
    SampleTokensOptions,
    TrainAutoencoderOptions,
    TrainTokenPriorOptions,
)
from .command import command
from .options import Aspect, DataName, Out, Size, next_command


@command(
    "train-autoencoder",
    TrainAutoencoderOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-autoencoder photos/ --size 64",
        "fastdiffusion train-autoencoder fashion-mnist --kind vq --codebook-size 256",
    ],
)
def train_autoencoder(chosen: TrainAutoencoderOptions, data: DataName, aspect: Aspect = None) -> None:
    """Train an autoencoder, for models of its latents.

    Then: fastdiffusion train DATA --vae runs/autoencoder/codec.safetensors --net unet-latent
    """
    from ..data import load_folder
    from ..tasks.autoencoding import train

    chosen, images = chosen.in_runs("autoencoder"), load_folder(data, chosen.size, aspect, "crop")
    if images.report is not None:
        print(images.report)
    autoencoder = train.train_autoencoder(images, **vars(chosen)).model
    file = Path(str(chosen.folder)) / train.FILE
    _, held = images.split(chosen.holdout, chosen.seed)
    quality = train.quality(autoencoder, held if len(held) else images)
    print(f"{file}: PSNR {quality.psnr:.2f} dB, gradient energy {quality.gradient_energy:.2f} of real.")
    shared = {"size": chosen.size, "aspect": aspect}
    if chosen.kind == "kl":
        next_command(f"train {shlex.quote(data)}", **shared, autoencoder=file, net="unet-latent")
    else:
        next_command(f"train-token-prior {shlex.quote(str(file))} {shlex.quote(data)}", **shared)


@command(
    "evaluate-autoencoder",
    EvaluateAutoencoderOptions,
    panel="Measure",
    examples=[
        "fastdiffusion evaluate-autoencoder runs/autoencoder/codec.safetensors photos/ --size 64",
        "fastdiffusion evaluate-autoencoder runs/autoencoder/codec.safetensors fashion-mnist -n 64",
    ],
)
def evaluate_autoencoder(
    chosen: EvaluateAutoencoderOptions,
    autoencoder: Annotated[
        Path, typer.Argument(metavar="FILE", help="File of an autoencoder, or of a model that works in latents.")
    ],
    data: DataName,
    size: Size = None,
    aspect: Aspect = None,
    holdout: Annotated[float, typer.Option(help="Part of the data that was kept from training; 0 takes all.")] = 0.05,
    out: Out = Path("out/autoencoder"),
) -> None:
    """Measure an autoencoder, and show what its latents encode.

    How faithful, how sharp, how many bits; of a variational one bounds on the likelihood and how many latents are
    active, of one with tokens how many are used. The sheet: images, reconstructions, traversals, prior samples.
    """
    from ..data import load_folder
    from ..device import device_of
    from ..io.atomic import write_json
    from ..io.images import save_png
    from ..models import load_autoencoder
    from ..tasks.autoencoding import analysis

    net = load_autoencoder(autoencoder)
    held = load_folder(data, size, aspect, "crop").split(holdout, chosen.seed)[1 if holdout else 0]
    numbers = analysis.describe(net, held, **vars(replace(chosen, device=str(device_of(chosen.device)))))
    write_json(out / "autoencoder.json", numbers)
    save_png(analysis.sheet(net, held, chosen.seed), out / "autoencoder.png")
    for name, value in numbers.items():
        print(f"{name:16} {value:10.4g}")
    print(f"In {out}: autoencoder.json and autoencoder.png.")


@command(
    "train-token-prior",
    TrainTokenPriorOptions,
    panel="Train",
    examples=[
        "fastdiffusion train-token-prior runs/autoencoder/codec.safetensors fashion-mnist",
        "fastdiffusion train-token-prior runs/autoencoder/codec.safetensors photos/ --depth 6 --minutes 30",
    ],
)
def train_token_prior(
    chosen: TrainTokenPriorOptions,
    autoencoder: Annotated[
        Path, typer.Argument(metavar="AUTOENCODER", help="File of an autoencoder of kind vq, fsq or gumbel.")
    ],
    data: DataName,
    aspect: Aspect = None,
) -> None:
    """Train a prior over an autoencoder's tokens.

    It learns which tokens stand together, and so to make new images.
    """
    from ..data import load_folder
    from ..tasks.autoencoding import token_prior

    chosen, images = chosen.in_runs("token-prior"), load_folder(data, chosen.size, aspect, "crop")
    prior = token_prior.train_token_prior(autoencoder, images, **vars(chosen)).model
    file = Path(str(chosen.folder)) / token_prior.FILE
    learned, held = images.split(chosen.holdout, chosen.seed)
    cost, plain = token_prior.bits(prior, held if len(held) else learned), prior.plain_bits
    print(f"{file}: {cost:.0f} bits for the tokens of an image, {plain:.0f} without the prior.")
    next_command(f"sample-tokens {shlex.quote(str(file))} -n 16")


@command(
    "sample-tokens",
    SampleTokensOptions,
    panel="Create",
    examples=[
        "fastdiffusion sample-tokens runs/token-prior -n 16",
        "fastdiffusion sample-tokens runs/token-prior/codes.safetensors --temperature 0.9 --seed 7",
    ],
)
def sample_tokens(
    chosen: SampleTokensOptions,
    model: Annotated[Path, typer.Argument(metavar="FILE", help="What train-token-prior wrote.")],
    out: Out = Path("out"),
) -> None:
    """Make images from a prior over tokens.

    One PNG each, and grid.png.
    """
    from ..io.images import grid
    from ..io.outputs import save_image
    from ..tasks.autoencoding import token_prior

    made = token_prior.sample_tokens(model, **vars(chosen))
    made.save(out)
    sheet = save_image(grid(made.images, zoom=max(1, 64 // made.images.shape[-1])), out / "grid.png", made.recipe)
    print(f"{counted(chosen.n, 'image')} in {out}, and {sheet.name}.")
