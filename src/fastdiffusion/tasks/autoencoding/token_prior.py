"""Images as tokens: an autoencoder with a codebook, and a small prior over which tokens stand together.

    prior = train_token_prior(autoencoder, "digits", folder="runs/token-prior").model
    images = sample_tokens(prior, n=16)

The second stage of VQ-VAE (van den Oord et al. 2017, sec. 3.3). The prior masks some tokens and learns to predict them
from the others (MaskGIT, Chang et al. 2022). With the number of masked tokens drawn evenly, its loss is a bound on the
likelihood of a model that sets the tokens one by one, in any order (Hoogeboom et al. 2022, arXiv:2110.02037).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ... import data as datasets
from ... import nets
from ...data import Dataset
from ...device import device_of
from ...errors import InputError
from ...io import guarded
from ...io.checkpoints import fingerprint
from ...io.metadata import recipe
from ...io.results import ImageResult
from ...models import load_autoencoder
from ...nets import layers
from ...nets.autoencoders import Autoencoder, Discrete
from ...nets.vq_prior import MaskedTokens
from ...noise import Stream, generator
from ...options import fill
from ...progress import Progress
from ...training.batches import title
from ...training.distributed import place
from ...training.report import TrainingResult
from ...training.task import Part, Task, Updates
from ...training.trainer import train
from .options import SampleTokensOptions, TrainTokenPriorOptions
from .train import batches, fitting

FILE = "codes.safetensors"


class VQPrior(nn.Module):
    """An autoencoder with a codebook and the prior of its tokens, complete in one file.

    Args:
        autoencoder: Name and keywords of the autoencoder, as for ``nets.build``.
        image_size: Height and width of the images.
        width: Channels of the prior.
        depth: Its layers.
    """

    def __init__(self, autoencoder: Mapping[str, Any], image_size: Sequence[int], width: int = 128, depth: int = 4):
        super().__init__()
        self.config = {"codec": dict(autoencoder), "picture": list(image_size), "width": width, "depth": depth}
        made = nets.build(autoencoder)
        if not isinstance(made, Discrete):
            raise InputError(
                "A prior over tokens needs an autoencoder that has some. Train one with kind vq, fsq or gumbel."
            )
        self.autoencoder, self.image_size = made, tuple(image_size)
        prior = {"name": "masked", "codebook": made.codebook_size, "width": width, "depth": depth}
        self.prior = cast("MaskedTokens", nets.build({**prior, "size": [-(-n // made.factor) for n in image_size]}))

    @property
    def plain_bits(self) -> float:
        """Bits an image whose tokens are all equally likely and independent."""
        return math.prod(self.prior.size) * math.log2(self.autoencoder.codebook_size)

    def decode(self, tokens: Int64[Tensor, "b H W"]) -> Float[Tensor, "b c h w"]:
        """The images of tokens, in [-1, 1]."""
        y = self.autoencoder.decode(self.autoencoder.vectors(tokens))
        return y[..., : self.image_size[0], : self.image_size[1]].clamp(-1, 1)


def train_token_prior(
    autoencoder: Discrete | str | Path, data: Dataset | str, **options: Any
) -> TrainingResult[VQPrior]:
    """A prior over an autoencoder's tokens; the same call goes on where it stopped.

    Args:
        autoencoder: Trained with kind "vq", "fsq" or "gumbel", or its file.
        data: Images of one size, or what ``data.load`` takes.
        options: See :class:`TrainTokenPriorOptions`.
    """
    chosen = fill(TrainTokenPriorOptions, **options)
    images, seed = datasets.load(data, chosen.size), chosen.seed
    net = fitting(autoencoder if isinstance(autoencoder, nn.Module) else load_autoencoder(autoencoder), images)
    if len(images.groups) != 1:
        raise InputError("Tokens need images of one size. Load the folder with aspect='crop'.")
    made = _new(net, images.batch(images.groups[0][:1]).images.shape[2:], chosen).to(place(chosen.device))
    learned, held = images.split(chosen.holdout, seed)
    known = encode_dataset(made.autoencoder, learned).cpu()
    others = encode_dataset(made.autoencoder, held).cpu()[:256] if len(held) else None

    def draw(step: int) -> tuple[Tensor, Tensor]:
        some = torch.randint(len(known), (chosen.batch_size,), generator=generator(seed, Stream.TOKEN_ORDER, step))
        return known[some], hidden(known[some], generator(seed, Stream.TOKEN_MASK, step))

    config = {**made.config, "data": learned.fingerprint, "batch_size": chosen.batch_size, "lr": chosen.lr,
              "optimizer": chosen.optimizer, "weights": fingerprint(made.autoencoder.state_dict())}  # fmt: skip
    train(Task(
        {"prior": Part(made.prior, lambda batch: surprise(made.prior, *batch), chosen.optimizer, chosen.lr)},
        draw, config, title(learned), chosen.usual_examples, "train-token-prior",
        {"data": images.name}, [made], updates=Updates(warmup=100),
        held_out=[] if others is None else [(others, hidden(others, generator(-1, Stream.TOKEN_MASK)))],
        preview=lambda: (sample_tokens(made).images, 8),
        write=lambda folder: guarded.save("codes", made, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return TrainingResult.of(made.eval().cpu(), chosen.folder)


def _new(autoencoder: Autoencoder, image_size: Sequence[int], chosen: TrainTokenPriorOptions) -> VQPrior:
    """A prior with fresh weights, and a frozen copy of the autoencoder."""
    spec = {"name": next(name for name, known in nets.NETS.items() if type(autoencoder) is known), **autoencoder.config}
    made: VQPrior = layers.drawn(lambda: VQPrior(spec, image_size, chosen.width, chosen.depth), chosen.seed)
    made.autoencoder.load_state_dict(autoencoder.state_dict())
    made.autoencoder.eval().requires_grad_(False)
    return made


@torch.no_grad()
def encode_dataset(autoencoder: Discrete, data: Dataset) -> Int64[Tensor, "n H W"]:
    """The tokens of all images, where the autoencoder is."""
    bar = Progress(batches(data, device=autoencoder.mean.device), "encoding", -(-len(data) // 32))
    return torch.cat([autoencoder.tokens(x) for x in bar])


# ---- what the prior learns, and how well ------------------------------------------------------------------------


def hidden(tokens: Int64[Tensor, "b H W"], source: torch.Generator) -> Bool[Tensor, "b H W"]:
    """Which tokens to mask: of each image a number drawn evenly from 1 to all, in places drawn evenly."""
    b, n = len(tokens), tokens[0].numel()
    rank = torch.rand(b, n, generator=source).argsort(1).argsort(1)
    return (rank < torch.randint(1, n + 1, (b, 1), generator=source)).view_as(tokens)


def surprise(prior: MaskedTokens, tokens: Int64[Tensor, "b H W"], mask: Bool[Tensor, "b H W"]) -> Float[Tensor, " b"]:
    """Mean cross-entropy of the masked tokens, in nats: in expectation at least -log p(tokens) / places."""
    logits = prior(tokens.masked_fill(mask, prior.hidden)).float()
    each = F.cross_entropy(logits, tokens, reduction="none") * mask
    return each.flatten(1).sum(1) / mask.flatten(1).sum(1)


@torch.no_grad()
def bits(made: VQPrior, data: Dataset, draws: int = 16, seed: int = 0) -> float:
    """Bits an image that its tokens cost with this prior, at most; see ``plain_bits``."""
    known = encode_dataset(made.autoencoder, data)
    losses = [
        surprise(made.prior, rows, hidden(rows, generator(seed, Stream.TOKEN_MASK, k)).to(rows.device))
        for k in range(draws)
        for rows in known.split(256)
    ]
    return float(torch.cat(losses).mean()) * known[0].numel() / math.log(2)


# ---- new images -------------------------------------------------------------------------------------------------


@torch.no_grad()
def write(
    prior: MaskedTokens, seeds: Sequence[int], steps: int = 16, temperature: float = 1.0
) -> Int64[Tensor, "b H W"]:
    """New grids of tokens, where the prior is; grid i depends on seeds[i] alone.

    Tokens are set at random places, few at first and more as the image takes shape: a cosine (Chang et al. 2022,
    sec. 3.3). With as many steps as places they come one by one, which is the exact model.
    """
    places, device = math.prod(prior.size), prior.place.device
    if steps < 1 or not temperature > 0:
        raise InputError(f"steps must be at least 1 and temperature above 0, got {steps} and {temperature:g}.")
    steps = min(steps, places)
    written = [max(i, places - math.floor(places * math.cos(math.pi / 2 * i / steps))) for i in range(steps + 1)]
    order = torch.stack([torch.randperm(places, generator=generator(s, Stream.TOKEN_PLACES)) for s in seeds]).to(device)
    tokens = torch.full((len(seeds), places), prior.hidden, device=device)
    for step, (start, stop) in enumerate(pairwise(written)):
        logits = prior(tokens.view(-1, *prior.size)).flatten(2).float() / temperature
        uniform = torch.stack(
            [torch.rand(logits.shape[1:], generator=generator(s, Stream.TOKEN_DRAW, step)) for s in seeds]
        )
        drawn = (logits - (-uniform.to(device).clamp(min=1e-20).log()).log()).argmax(1)  # Gumbel's trick
        here = order[:, start:stop]
        tokens.scatter_(1, here, drawn.gather(1, here))
    return tokens.view(-1, *prior.size)


@torch.no_grad()
def sample_tokens(model: VQPrior | str | Path, **options: Any) -> ImageResult:
    """New images out of tokens.

    Args:
        model: Of :func:`train_token_prior`, its file, or its run's folder.
        options: See :class:`SampleTokensOptions`.
    """
    chosen = fill(SampleTokensOptions, **options)
    n, size = chosen.n, chosen.batch_size
    if min(n, size) < 1:
        raise InputError(f"n and batch_size must be at least 1, got {n} and {size}.")
    made = model if isinstance(model, VQPrior) else load(model)
    if made is not model or chosen.device is not None:
        made.to(device_of(chosen.device))
    seeds = range(chosen.seed, chosen.seed + n)
    starts = Progress(range(0, n, size), "sampling")
    tokens = (write(made.prior, seeds[i : i + size], chosen.steps, chosen.temperature) for i in starts)
    images = torch.cat([made.decode(some).cpu() for some in tokens])
    return ImageResult(images, tuple(f"{seed:04d}" for seed in seeds), recipe("sample-tokens", vars(chosen), model))


def load(path: str | Path) -> VQPrior:
    """Read a file that :func:`train_token_prior` wrote, or a run's folder; raises CheckpointError for any other."""
    path = Path(path) / FILE if Path(path).is_dir() else path
    return guarded.load(path, {"codes": _built}, "train-token-prior")


def _built(**config: Any) -> VQPrior:
    """A prior by the keywords in its file, which have the names of the first files."""
    current = {"codec": "autoencoder", "picture": "image_size"}
    return VQPrior(**{current.get(name, name): value for name, value in config.items()})
