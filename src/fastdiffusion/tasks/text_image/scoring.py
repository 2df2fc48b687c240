"""How well text fits an image, and which images of a folder fit a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ...data import Dataset, ImageFolder
from ...errors import InputError, warn
from ...io.images import to_tensor
from ...nets.clip import Clip
from .clip import as_input, mode, ready

EMOJI_ONLY = (
    "Experimental: the encoder in this package knows emoji only; of photographs its numbers mean nothing. Train "
    "one on such images with captions: fastdiffusion train-clip FOLDER, and name it with --model."
)


class ClipScore(NamedTuple):
    """How well a text fits an image.

    Attributes:
        prompt: The text.
        similarity: Cosine, -1 to 1; what is high differs from one model to another, hence:
        better_than: The part of the captions that the model knows which fit worse.
    """

    prompt: str
    similarity: float
    better_than: float


class SearchResult(NamedTuple):
    """An image of a folder, by its path there, and how well it fits."""

    path: str
    similarity: float


@torch.no_grad()
def clip_score(
    image: str | Path | Image.Image | Tensor,
    prompt: str | Sequence[str],
    model: Clip | str | Path | None = None,
    device: str | None = None,
) -> list[ClipScore]:
    """How well does each text fit an image?

    Args:
        image: A file, a PIL image, or a tensor (3, h, w) in [-1, 1].
        prompt: One text or several.
        model: An encoder, its file or folder; by default the emoji's, in fourteen languages.
        device: Where to compute; by default where the encoder is, or for a file the best there is.

    Raises:
        InputError: No text.
    """
    clip = ready(model, device)
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts or not all(text.strip() for text in texts):
        raise InputError("There is no text to compare with. Give one, e.g. 'a cat with heart eyes'.")
    shown = as_input(clip, image)
    if model is None and not _on_plain_ground(shown).all():
        warn(EMOJI_ONLY)
    vector = clip.encode_image(shown.to(clip.log_scale.device))[0]
    similar, usual = clip.encode_text(texts) @ vector, clip.encode_text(clip.known) @ vector
    return [
        ClipScore(text, float(value), float((usual < value).float().mean()))
        for text, value in zip(texts, similar, strict=True)
    ]


@torch.no_grad()
def search(
    folder: str | Path | Dataset,
    prompt: str,
    n: int = 16,
    model: Clip | str | Path | None = None,
    device: str | None = None,
) -> list[SearchResult]:
    """The ``n`` images of a folder that fit a text best, best first; unreadable files are passed over.

    Args:
        folder: Images in any depth, or a data set.
        prompt: What to look for.
        n: How many to name.
        model, device: As for :func:`clip_score`.
    """
    if not prompt.strip() or n < 1:
        raise InputError("Say what to look for and how many, e.g. search('photos/', 'a black cat', n=16).")
    clip = ready(model, device)
    data = (
        folder if isinstance(folder, Dataset) else ImageFolder(folder, clip.side or 64, aspect="pad", mode=mode(clip))
    )
    vector, results, plain = clip.encode_text([prompt])[0], [], True
    for group in data.groups:
        for first in range(0, len(group), 256):
            batch = data.batch(group[first : first + 256])
            shown = to_tensor(batch.images)
            plain = plain and bool(_on_plain_ground(shown).all())
            similar = clip.encode_image(shown.to(vector.device)) @ vector
            results += [SearchResult(name, value) for name, value in zip(batch.names, similar.tolist(), strict=True)]
    if model is None and not plain:
        warn(EMOJI_ONLY)
    return sorted(results, key=lambda result: -result.similarity)[:n]


def _on_plain_ground(images: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
    """Whether each side of an image has one color, the same all round: what emoji have, and hardly a photograph."""
    sides = [images[:, :, :2], images[:, :, -2:], images[..., :2], images[..., -2:]]
    median = torch.cat([side.flatten(2) for side in sides], 2).median(2, keepdim=True).values
    flat = [((side.flatten(2) - median).abs().amax(1) < 0.1).float().mean(1) for side in sides]
    return torch.stack(flat).amin(0) >= 0.9
