"""Pictures as conditions: what a picture shows, drawn anew, alone or mixed with words.

    adapter = train_adapter(model, clip, "emoji-scenes", steps=2000)
    vary("cat.png", n=16, words="on a blue background")

A model of words is frozen. An adapter turns the embedding of a picture (CLIP's or CLOOB's) into a few token states and
a pooled vector that the denoiser's attention takes for words: it learns to say what the picture's own captions say, by
the distillation of ``tasks.languages``. After unCLIP (Ramesh et al. 2022) and IP-Adapter (Ye et al. 2023,
arXiv:2308.06721), but nothing of the denoiser is trained.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from .. import data as datasets
from ..checkpoints import fingerprint, load_tensors, save_tensors, stored
from ..data import Dataset
from ..errors import CheckpointError, InputError
from ..models import Model
from ..nets.clip import Clip
from ..nets.layers import keywords
from ..noise import generator
from ..types import Cond
from . import clip as clips
from . import generation
from .files import model_hash
from .languages import Told, distill

ADAPTER = 43  # purpose of a generator
FILE = Path(__file__).parents[1] / "weights" / "adapter.safetensors"


class Adapter(nn.Module):
    """Unit vectors of an image encoder to ``tokens`` states and a pooled vector of a text encoder.

    Args:
        dim: Of the image embedding.
        width: Of the text encoder's states.
        tokens: How many states are said.
        hidden: Width of the layers between.
    """

    def __init__(self, dim: int = 192, width: int = 128, tokens: int = 6, hidden: int = 256):
        self.config = keywords(locals())
        super().__init__()
        self.tokens, self.width = tokens, width
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, (tokens + 1) * width),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, seen: Float[Tensor, "b e"]) -> Told:
        """(token states (b, n, d), mask, pooled (b, d)) of pictures."""
        states = self.layers(seen * seen.shape[-1] ** 0.5).unflatten(1, (self.tokens + 1, self.width))
        mask = torch.ones(len(seen), self.tokens, dtype=torch.bool, device=seen.device)
        return self.norm(states[:, 1:]), mask, states[:, 0]


def train_adapter(
    model: Model,
    clip: Clip,
    data: Dataset | str,
    steps: int = 2000,
    folder: str | Path | None = None,
    batch_size: int = 64,
    lr: float = 5e-3,
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Adapter:
    """An adapter from what ``clip`` sees to what ``model`` understands, of captioned pictures.

    The same call goes on where it stopped. Arguments as of ``languages.teach``.
    """
    data = datasets.load(data) if isinstance(data, str) else data
    if model.words is None:
        raise InputError("This model was trained without words: a picture cannot be put in their place.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, ADAPTER).initial_seed() % 2**63)
        adapter = Adapter(clip.dim, model.words.width)
    first = sorted({data.source(i) for i in range(len(data))})
    seen = clips.embedded(clip, datasets.Subset(data, first))
    place = {row: i for i, row in enumerate(first)}

    def rows(g: torch.Generator) -> tuple[Told, list[str]]:
        chosen = torch.randint(len(data), (batch_size,), generator=g).tolist()
        embedding = seen[[place[data.source(i)] for i in chosen]]
        return adapter(embedding), data.told(chosen).captions

    config: dict[str, Any] = {
        "clip": fingerprint(clip.state_dict()),
        "model": model_hash(model)[:16],
        "adapter": adapter.config,
        "data": data.fingerprint,
        "batch_size": batch_size,
        "lr": lr,
    }
    known = [data.told([i]).captions[0] for i in first[:: max(len(first) // 500, 1)]]
    distill(model, adapter, rows, known, steps, config, folder, lr, minutes, fresh, seed)
    return adapter.eval()


@torch.no_grad()
def condition(
    model: Model,
    clip: Clip,
    adapter: Adapter,
    pictures: list[str | Path | Image.Image],
    words: str = "",
    mix: float = 0.5,
) -> Cond:
    """What pictures, and words if there are any, ask a model for: one row per picture.

    Args:
        model: Of words.
        clip: The encoder that the adapter was trained with.
        adapter: See :func:`train_adapter`.
        pictures: Files or pictures.
        words: Said along with each.
        mix: The words' part of the pooled vector, 0 to 1; their tokens are all visible beside the pictures'.
    """
    if not 0 <= mix <= 1:
        raise InputError(f"mix must be from 0 to 1, got {mix}. Try 0.5.")
    seen = torch.cat([clip.see(clips.as_input(clip, picture)) for picture in pictures])
    emb, mask, pooled = adapter(seen)
    if words.strip():
        said = model.read([words] * len(pictures))
        assert said.emb is not None and said.mask is not None and said.pooled is not None
        emb, mask = torch.cat([emb, said.emb], 1), torch.cat([mask, said.mask], 1)
        pooled = torch.lerp(pooled, said.pooled, mix)
    return Cond(emb=emb, mask=mask, pooled=pooled)


def save(adapter: Adapter, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically."""
    save_tensors(path, stored(adapter.state_dict(), dtype), {"kind": "adapter", **adapter.config})


def load(path: str | Path) -> Adapter:
    """Read a file of :func:`save`; raises CheckpointError for any other."""
    config, tensors = load_tensors(path)
    try:
        if config.pop("kind") != "adapter" or any(type(v) is not int or not 0 < v <= 4096 for v in config.values()):
            raise ValueError("it is something else")
        adapter = Adapter(**config)
        adapter.load_state_dict({k: t.float() for k, t in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not an adapter that train_adapter made ({str(error)[:200]}).") from None
    return adapter.eval()


def shipped() -> tuple[Clip, Adapter]:
    """The image encoder and the adapter that belong to the emoji model in the package."""
    if not FILE.is_file():
        raise CheckpointError("This package came without the adapter for pictures. Train one: train_adapter.")
    return clips.load(), load(FILE)


def vary(
    picture: str | Path,
    words: str = "",
    n: int = 16,
    model: Model | str | Path = "emoji",
    strength: float = 1.0,
    mix: float = 0.5,
    scale: float = 3.0,
    steps: int = 12,
    seed: int = 0,
    size: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
) -> generation.Samples:
    """What a picture shows, drawn anew.

    Args:
        picture: A file.
        words: Said along with it.
        n: How many.
        model: The bundled one, or one of words whose text encoder it shares.
        strength: How far to go from the picture itself: 1 starts from noise and keeps only what the picture shows; less
            keeps its layout too, as ``sample``'s ``image`` and ``strength`` do; 0 is the picture.
        mix: The words' part, 0 to 1.
        scale: Of classifier-free guidance.
        steps, seed, size, batch_size, device: As of ``sample``.
    """
    said = f" {shlex.quote('words=' + words)} mix={mix:g}" if words.strip() else ""
    guide = f"like {shlex.quote(str(picture))} scale={scale:g}{said}"
    image = None if strength == 1 else picture
    return generation.sample(
        model, n=n, steps=steps, seed=seed, scale=1.0, guide=guide, image=image, strength=strength, size=size,
        batch_size=batch_size, device=device,
    )  # fmt: skip
