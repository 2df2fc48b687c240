"""What a model is not to forget: images that it made of its own prompts, and how far it moves away from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.dataset import digest
from ...errors import DataError, counted
from ...models import Model
from ...nets import perceptual
from ...noise import Stream, generator
from ..generation.sample import sample
from .images import cached
from .objective import Objective, conditions

STEPS = 12  # solver steps of the images that a model makes of its own prompts
LEVELS = (0.2, 0.4, 0.6, 0.8)  # where the distance is measured, as numbers that are even in (0, 1)
THINGS = (
    "a red apple", "a cat", "a dog", "a bird", "a fish", "a tree", "a flower", "the sun", "the moon", "a star", "a car",
    "a house", "a book", "a clock", "a key", "a crown", "a ball", "a boat", "a bicycle", "a train", "an airplane",
    "a cake", "a pizza", "a banana", "a lemon", "a grinning face", "a sad face", "a red heart", "a blue heart",
    "a green heart", "an umbrella", "a snowman", "a guitar", "a drum", "a camera", "a horse", "a cow", "a rabbit",
    "a mushroom", "a cactus", "a rocket", "a shoe", "a hat", "a glass", "a spoon", "a mountain", "a bridge", "a robot",
    "a ghost", "a turtle", "a lion", "an elephant", "a pig", "a butterfly", "a bee", "a snail", "a fox", "a bear",
    "a penguin", "a whale", "an octopus", "a frog", "a mouse", "an owl", "an egg", "a carrot", "a tomato", "bread",
    "cheese", "an ice cream", "a cup of tea", "a bottle", "a strawberry", "grapes", "a pear", "corn", "a palm tree",
    "a rose", "a leaf", "a cloud", "a rainbow", "a fire", "a bus", "a truck", "a ship", "a tent", "a castle", "a door",
    "a chair", "a bed", "a lamp", "a candle", "a bell", "a gift", "a balloon", "a pencil", "scissors", "a hammer",
    "a telephone", "a computer", "a letter", "a violin", "a trumpet", "a shirt", "a ring", "a skull", "a baby",
)  # fmt: skip
FEWEST = 4  # prompts of a file: two of them are measured on
COMPARED = 50  # prompts at most whose images are drawn before and after
EXAMPLES = 64  # trained on for each of these prompts: so its two images take a tenth of a run's evaluations, or less
COMPARED_STEPS = 8  # solver steps of these images


def prompts_of(file: str | Path | None, watched: int, held: int) -> tuple[list[str], list[str]]:
    """Prompts to measure on, and others to hold a model to; of a file with one a line, or of everyday things, in turn.

    No prompt is among both.
    """
    known = _known(file)
    watched = min(watched, len(known) // 2)
    rest = known[watched:]
    return known[:watched], [rest[i % len(rest)] for i in range(held)]


def compared_prompts(file: str | Path | None, held: Sequence[str], examples: int) -> list[str]:
    """Prompts that a model is not held to, for :func:`compared_images`: as many as a run of so many examples pays for.

    They are at least two, and at most ``COMPARED``.
    """
    left = [prompt for prompt in _known(file) if prompt not in held]
    return left[: max(2, min(COMPARED, examples // EXAMPLES))]


def _known(file: str | Path | None) -> list[str]:
    known: Sequence[str] = THINGS
    if file is not None:
        try:
            content = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{str(file)!r} cannot be read ({error}). Give a text file, a prompt a line.") from None
        known = list(dict.fromkeys(line.strip() for line in content.splitlines() if line.strip()))
        if len(known) < FEWEST:
            raise DataError(
                f"{str(file)!r} has {counted(len(known), 'prompt')}. Write at least {FEWEST}, one a line: some are "
                "measured on, and the model is held to others."
            )
    return list(known)


def own_images(model: Model, prompts: Sequence[str], seed: int, size: int | None = None) -> list[Tensor]:
    """Latents of the images that a model makes of its prompts, made once and kept in the cache."""
    side = None if size in (None, model.pixels[0]) else f"{size}"

    def make() -> dict[str, Tensor]:
        options = {} if side is None else {"size": side}
        made = sample(model, list(prompts), n=len(prompts), seed=seed, steps=STEPS, batch_size=8, **options).images
        rows = [model.encode(part.to(model.device)).float().cpu() for part in made.split(8)]
        return {"latents": torch.cat(rows)}

    key = digest("own", model.id, list(prompts), seed, STEPS, side or "")
    return list(cached("latents", key, make)["latents"])


class Retention:
    """How much of what a model answers to some prompts is left.

    1 - d / d0, where d is the distance of its estimates from those of the model as it was, on its own images with the
    same noise at the same levels, and d0 is how far these move when the prompts are exchanged for one another: 1 is
    unchanged, 0 as different as the answer to another prompt.

    Args:
        base: The model as it was.
        prompts: At least two.
        latents: The images that it made of them.
        seed: Of the noise.
    """

    def __init__(self, base: Model, prompts: Sequence[str], latents: Sequence[Tensor], seed: int = 0):
        self.prompts, objective = list(prompts), Objective(base)
        n, device = len(prompts), base.device
        levels = torch.tensor([LEVELS[i % len(LEVELS)] for i in range(n)])
        self.sigma, self.weight = objective.sigmas(levels).to(device), objective.weight
        noise = torch.randn(n, *latents[0].shape, generator=generator(seed, Stream.BATCH_NOISE, 1 << 20))
        shape = (-1, *[1] * (noise.ndim - 1))
        self.x = torch.stack(list(latents)).to(device) + self.sigma.reshape(shape) * noise.to(device)
        self.base = self._estimates(base, self.prompts)
        others = self._estimates(base, [*self.prompts[1:], self.prompts[0]])
        self.unit = self._distance(others)

    @torch.no_grad()
    def _estimates(self, model: Model, prompts: Sequence[str]) -> Float[Tensor, "n *d"]:
        rows = range(0, len(prompts), 8)
        parts = [slice(first, first + 8) for first in rows]
        return torch.cat([
            model.denoise(self.x[part], self.sigma[part], conditions(model, prompts[part])) for part in parts
        ])  # fmt: skip

    def _distance(self, estimates: Tensor) -> float:
        squared = (estimates - self.base).float().square().flatten(1).mean(1)
        return float((self.weight(self.sigma) * squared).mean().sqrt())

    def __call__(self, model: Model) -> float:
        """Of the model as it is now."""
        return max(1 - self._distance(self._estimates(model, self.prompts)) / max(self.unit, 1e-12), -1.0)


@torch.no_grad()
def compared_images(
    base: Model, model: Model, prompts: Sequence[str], seed: int, size: int | None = None
) -> tuple[float, Tensor]:
    """How much is left of the images that a model drew of some prompts; and the images, before and after.

    1 - d / d0, where d is the distance of what it draws now to what it drew before, from the same noise, in the
    features of :mod:`~fastdiffusion.nets.perceptual`, and d0 that of what it drew of one prompt to what it drew of the
    next. Both are drawn by the textbook's sampler: tables may be fitted to one and not to the other.
    """
    side = {} if size in (None, base.pixels[0]) else {"size": str(size)}
    before, after = (
        sample(one, list(prompts), n=len(prompts), seed=seed, steps=COMPARED_STEPS, batch_size=8, **side).images.float()
        for one in (replace(base, tables={}), replace(model, tables={}))
    )
    moved, apart = _distance_in_features(before, after), _distance_in_features(before, before.roll(1, 0))
    return max(1 - moved / max(apart, 1e-12), -1.0), torch.cat([before, after])


def _distance_in_features(a: Tensor, b: Tensor) -> float:
    pairs = zip(a.split(1), b.split(1), strict=True)  # one by one: the features of large images are large
    return float(torch.stack([perceptual.perceptual_distance(x, y).sqrt() for x, y in pairs]).mean())
