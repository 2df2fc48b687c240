"""Pictures as words: a codec with a codebook, and a small prior over which words stand together.

    codes = train_codes(codec, "digits", folder="runs/codes")
    pictures = sample_codes(codes, n=16)

The second stage of VQ-VAE (van den Oord et al. 2017, sec. 3.3). The prior hides some words and learns to tell them
from the others (MaskGIT, Chang et al. 2022). With the number of hidden words drawn evenly, its loss is a bound on the
likelihood of a model that writes the words one by one, in any order (Hoogeboom et al. 2022, arXiv:2110.02037).
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
from tqdm import tqdm

from ... import data as datasets
from ... import nets
from ...data import Dataset
from ...errors import InputError
from ...io import guarded
from ...io.checkpoints import fingerprint
from ...io.images import grid, save_png
from ...models import load_autoencoder
from ...nets import layers
from ...nets.autoencoders import Discrete
from ...nets.vq_prior import MaskedTokens
from ...noise import generator
from ...training.trainer import Part, train
from .train import batches, fitting

FILE = "codes.safetensors"
ORDER, HIDDEN, TOKENS, PLACES = range(61, 65)  # what a generator is for
PREVIEW_EVERY = 500


class VQPrior(nn.Module):
    """A codec of words and their prior, complete in one file.

    Args:
        codec: Name and keywords of the codec, as for ``nets.build``.
        picture: Height and width of the pictures.
        width: Channels of the prior.
        depth: Its layers.
    """

    def __init__(self, autoencoder: Mapping[str, Any], image_size: Sequence[int], width: int = 128, depth: int = 4):
        super().__init__()
        self.config = {"codec": dict(autoencoder), "picture": list(image_size), "width": width, "depth": depth}
        made = nets.build(autoencoder)
        if not isinstance(made, Discrete):
            raise InputError("A prior over words needs a codec that has words. Train one with kind vq, fsq or gumbel.")
        self.autoencoder, self.image_size = made, tuple(image_size)
        prior = {"name": "masked", "codebook": made.codebook_size, "width": width, "depth": depth}
        self.prior = cast("MaskedTokens", nets.build({**prior, "size": [-(-n // made.factor) for n in image_size]}))

    @property
    def plain_bits(self) -> float:
        """Bits a picture whose words are all alike and independent."""
        return math.prod(self.prior.size) * math.log2(self.autoencoder.codebook_size)

    def decode(self, tokens: Int64[Tensor, "b H W"]) -> Float[Tensor, "b c h w"]:
        """The pictures that words describe, in [-1, 1]."""
        y = self.autoencoder.decode(self.autoencoder.vectors(tokens))
        return y[..., : self.image_size[0], : self.image_size[1]].clamp(-1, 1)


def train_token_prior(
    autoencoder: Discrete | str | Path,
    data: Dataset | str,
    steps: int = 2000,
    width: int = 128,
    depth: int = 4,
    size: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 64,
    lr: float = 1e-2,
    optimizer: str = "muon",
    holdout: float = 0.05,
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> VQPrior:
    """A prior over a codec's words; the same call goes on where it stopped.

    Args:
        codec: Trained with kind "vq", "fsq" or "gumbel", or its file.
        data: Pictures of one size, or what ``data.load`` takes.
        steps: Of training.
        width: Channels of the prior.
        depth: Its layers.
        size: Side of the pictures, if ``data`` is a name or folder.
        folder: Where checkpoints, previews and the finished file go.
        batch_size: Pictures a step.
        lr: Highest learning rate.
        optimizer: A name in ``optimizers.OPTIMIZERS``.
        holdout: Part of the pictures that the prior never sees, to measure :func:`bits` with.
        minutes: End after so long; the same call goes on.
        fresh: Forget what the folder holds.
        seed: Of everything.
    """
    images = datasets.load(data, size)
    net = fitting(autoencoder if isinstance(autoencoder, nn.Module) else load_autoencoder(autoencoder), images)
    kind = next(name for name, known in nets.NETS.items() if type(net) is known)
    if len(images.groups) != 1:
        raise InputError("Words need pictures of one size. Load the folder with aspect='crop'.")
    spec = {"name": kind, **net.config}
    side = images.batch(images.groups[0][:1]).images.shape[2:]
    made: VQPrior = layers.drawn(lambda: VQPrior(spec, side, width, depth), seed)
    made.autoencoder.load_state_dict(net.state_dict())
    made.autoencoder.eval().requires_grad_(False)
    learned = images.split(holdout, seed)[0]
    known = encode_dataset(made.autoencoder, learned)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(known), (batch_size,), generator=generator(seed, ORDER, step))
        return surprise(made.prior, known[rows], seed, step).mean()

    config = {**made.config, "data": learned.fingerprint, "batch_size": batch_size, "lr": lr, "optimizer": optimizer,
              "weights": fingerprint(made.autoencoder.state_dict())}  # fmt: skip
    run, done = {"prior": Part(made.prior, loss, optimizer, lr)}, None
    for done in train(run, steps, config, folder, seed, 100, 0.5, minutes, fresh, "float32"):
        if folder is not None and (done.step % PREVIEW_EVERY == 0 or done.step == steps):
            made.prior.eval()
            save_png(grid(sample_tokens(made), 8, max(1, 48 // made.image_size[1])), Path(folder) / "preview.png")
            made.prior.train()
    made.eval()
    if folder is not None and (done is None or done.step == steps):  # finished: before, or now
        guarded.save("codes", made, Path(folder) / FILE)
    return made


@torch.no_grad()
def encode_dataset(autoencoder: Discrete, data: Dataset) -> Int64[Tensor, "n H W"]:
    """The words of all pictures."""
    bar = tqdm(batches(data), "reading", -(-len(data) // 32), disable=None, leave=False)
    return torch.cat([autoencoder.tokens(x) for x in bar])


# ---- what the prior learns, and how well ------------------------------------------------------------------------


def hidden(tokens: Int64[Tensor, "b H W"], source: torch.Generator) -> Bool[Tensor, "b H W"]:
    """Which words to hide: of each picture a number drawn evenly from 1 to all, in places drawn evenly."""
    b, n = len(tokens), tokens[0].numel()
    rank = torch.rand(b, n, generator=source).argsort(1).argsort(1)
    return (rank < torch.randint(1, n + 1, (b, 1), generator=source)).view_as(tokens)


def surprise(prior: MaskedTokens, tokens: Int64[Tensor, "b H W"], seed: int, key: int) -> Float[Tensor, " b"]:
    """Mean cross-entropy of the hidden words, in nats: in expectation at least -log p(codes) / places."""
    mask = hidden(tokens, generator(seed, HIDDEN, key)).to(tokens.device)
    logits = prior(tokens.masked_fill(mask, prior.hidden)).float()
    each = F.cross_entropy(logits, tokens, reduction="none") * mask
    return each.flatten(1).sum(1) / mask.flatten(1).sum(1)


@torch.no_grad()
def bits(made: VQPrior, data: Dataset, draws: int = 16, seed: int = 0) -> float:
    """Bits a picture that its words cost with this prior, at most; see ``plain_bits``."""
    known = encode_dataset(made.autoencoder, data)
    losses = [p for k in range(draws) for p in [surprise(made.prior, rows, seed, k) for rows in known.split(256)]]
    return float(torch.cat(losses).mean()) * known[0].numel() / math.log(2)


# ---- new pictures -----------------------------------------------------------------------------------------------


@torch.no_grad()
def write(
    prior: MaskedTokens, seeds: Sequence[int], steps: int = 16, temperature: float = 1.0
) -> Int64[Tensor, "b H W"]:
    """New grids of words; grid i depends on seeds[i] alone.

    Words are written at random places, few at first and more as the picture takes shape: a cosine (Chang et al. 2022,
    sec. 3.3). With as many steps as places they come one by one, which is the exact model.
    """
    places = math.prod(prior.size)
    if steps < 1 or not temperature > 0:
        raise InputError(f"steps must be at least 1 and temperature above 0, got {steps} and {temperature:g}.")
    steps = min(steps, places)
    written = [max(i, places - math.floor(places * math.cos(math.pi / 2 * i / steps))) for i in range(steps + 1)]
    order = torch.stack([torch.randperm(places, generator=generator(s, PLACES)) for s in seeds])
    tokens = torch.full((len(seeds), places), prior.hidden)
    for step, (start, stop) in enumerate(pairwise(written)):
        logits = prior(tokens.view(-1, *prior.size)).flatten(2).float() / temperature
        uniform = [torch.rand(logits.shape[1:], generator=generator(s, TOKENS, step)) for s in seeds]
        drawn = (logits - (-torch.stack(uniform).clamp(min=1e-20).log()).log()).argmax(1)  # Gumbel's trick
        here = order[:, start:stop]
        tokens.scatter_(1, here, drawn.gather(1, here))
    return tokens.view(-1, *prior.size)


@torch.no_grad()
def sample_tokens(
    model: VQPrior | str | Path,
    n: int = 16,
    steps: int = 16,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Float[Tensor, "n c h w"]:
    """New pictures in [-1, 1].

    Args:
        model: Of :func:`train_codes`, or its file.
        n: How many.
        steps: Calls of the prior, each writing several words; with as many as places, one by one.
        temperature: Below 1, likelier words: cleaner pictures, and fewer kinds.
        seed: Of picture 0; picture i has seed + i.
        batch_size: Pictures at once.
    """
    if min(n, batch_size) < 1:
        raise InputError(f"n and batch_size must be at least 1, got {n} and {batch_size}.")
    made = model if isinstance(model, VQPrior) else load(model)
    seeds = range(seed, seed + n)
    starts = tqdm(range(0, n, batch_size), "sampling", disable=None, leave=False)
    return torch.cat([made.decode(write(made.prior, seeds[i : i + batch_size], steps, temperature)) for i in starts])


def load(path: str | Path) -> VQPrior:
    """Read a file that :func:`train_codes` wrote; raises CheckpointError for any other."""

    def built(codec: Any, picture: Any, width: int, depth: int) -> VQPrior:  # by their names in files
        return VQPrior(codec, picture, width, depth)

    return guarded.load(path, {"codes": built}, "train-token-prior")
