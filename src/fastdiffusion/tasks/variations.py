"""Pictures in place of words: what a picture shows, drawn anew, alone or with words.

    vary("cat.png", n=16, words="on blue")

    memory = remember(clip, "photos/")                    # for a model of one's own
    vary("cat.png", model="runs/photos", memory=memory, clip=clip)

An encoder of pictures (CLIP's or CLOOB's) finds, among all pictures that it remembers, those that are near the given
one, and each new picture is told the caption of one of them. Which one is drawn by the softmax over the similarities,
the retrieval of a Hopfield network (Ramsauer et al. 2021, arXiv:2008.02217). So nothing is trained, as in kNN-Diffusion
(Sheynin et al. 2022, arXiv:2204.02849), and the model is asked for nothing that it was never taught. A learned map from
vectors of pictures to those of words asks for means of things, which a small model draws as blobs (docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from .. import data as datasets
from ..data import Dataset
from ..errors import CheckpointError, DataError, InputError
from ..io.checkpoints import load_tensors, save_tensors, stored
from ..models import Model
from ..nets.clip import Clip
from ..noise import generator
from ..prompts import plain
from .generation import sample, samples
from .text_image import clip as clips

RETRIEVAL = 43  # purpose of a generator
FILE = "memory.safetensors"
ALIKE = 0.95  # cosine of two vectors by one encoder, rounded differently: far above those of two encoders


@dataclass(frozen=True)
class RetrievalIndex:
    """Vectors of pictures, and what is said of each.

    Attributes:
        vectors: Of unit length, by one encoder.
        captions: One of each.
        probe: What the same encoder sees in a picture of noise, so that another is told; None in old files.
    """

    vectors: Float[Tensor, "n d"]
    captions: Sequence[str]
    probe: Float[Tensor, " d"] | None = None

    def retrieve(self, vector: Float[Tensor, " d"], seeds: Sequence[int], temperature: float = 0.02) -> list[str]:
        """What is said of pictures that are near to ``vector``: for each seed one, drawn by exp(cosine / temperature).

        The temperature is positive, or 0 for the nearest.
        """
        if not temperature >= 0:
            raise InputError(f"temperature must be at least 0, got {temperature!r}. Try 0.02.")
        near = self.vectors @ torch.nn.functional.normalize(vector, dim=0)
        if temperature == 0:
            return [self.captions[int(near.argmax())]] * len(seeds)
        probabilities = ((near - near.max()) / max(temperature, 1e-6)).softmax(0)
        drawn = [int(torch.multinomial(probabilities, 1, generator=generator(seed, RETRIEVAL))) for seed in seeds]
        return [self.captions[i] for i in drawn]


def build_index(
    clip: Clip | str | Path, data: Dataset | str | Path, size: int | None = None, device: str | None = None
) -> RetrievalIndex:
    """The vectors and captions of a data set, each picture once.

    Args:
        clip: An encoder, its file or the folder of its training.
        data: Captioned pictures, or what ``data.load`` takes.
        size: Side of the pictures, if ``data`` is a name or folder.
        device: Where to compute; by default where the encoder is, or for a file the best there is.

    Raises:
        DataError: Pictures without captions.
    """
    net, data = clips.ready(clip, device), datasets.load(data, size)
    clips.fits(net, data)
    captions = data.annotations(range(len(data))).captions
    first = sorted({data.source(i) for i in range(len(data)) if captions[i]})
    if not first:
        raise DataError(f"{data.name} has no captions to remember. Put a NAME.txt beside each NAME.png.")
    return RetrievalIndex(clips.embedded(net, datasets.Subset(data, first)), [captions[i] for i in first], _probe(net))


@torch.no_grad()
def _probe(clip: Clip) -> Float[Tensor, " d"]:
    """What an encoder sees in a picture of noise."""
    side = clip.side or 64
    noise = torch.rand(1, clip.image.config["net"]["in_channels"], side, side, generator=generator(0, RETRIEVAL))
    return torch.nn.functional.normalize(clip.encode_image((2 * noise - 1).to(clip.log_scale.device)), dim=1)[0].cpu()


def save(index: RetrievalIndex, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically."""
    tensors = stored({"vectors": index.vectors}, dtype)
    if index.probe is not None:
        tensors["probe"] = index.probe
    save_tensors(path, tensors, {"kind": "memory", "captions": list(index.captions)})


def load(path: str | Path | None = None) -> RetrievalIndex:
    """Read a file of :func:`save`, by default the package's; raises CheckpointError for any other."""
    place = Path(__file__).parents[1] / "weights" / FILE if path is None else Path(path)
    config, tensors = load_tensors(place)
    vectors, captions = tensors.get("vectors"), config.get("captions")
    if config.get("kind") != "memory" or vectors is None or vectors.ndim != 2 or not isinstance(captions, list):
        raise CheckpointError(f"{place} holds no memory of pictures. Make one: fastdiffusion remember photos/.")
    if len(captions) != len(vectors) or not all(isinstance(caption, str) for caption in captions):
        raise CheckpointError(f"{place} has not one caption for each vector.")
    return RetrievalIndex(torch.nn.functional.normalize(vectors.float(), dim=1), captions, tensors.get("probe"))


def variations(
    image: str | Path,
    prompt: str = "",
    n: int = 16,
    model: Model | str | Path = "emoji",
    strength: float = 1.0,
    temperature: float = 0.02,
    index: RetrievalIndex | str | Path | None = None,
    clip: Clip | str | Path | None = None,
    scale: float | None = None,
    steps: int = 12,
    seed: int = 0,
    size: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
) -> samples.Samples:
    """What a picture shows, drawn anew; the recipes of the results hold words, and need the picture no more.

    Args:
        picture: A file.
        words: Said after what the picture shows, such as "on blue".
        n: How many.
        model: The bundled one, or one of words that was trained on such captions.
        strength: How far to go from the picture itself: 1 starts from noise and keeps only what the picture shows; less
            keeps its layout too, as ``sample``'s ``image`` and ``strength`` do; 0 is the picture.
        temperature: How far afield: 0 draws what is nearest every time, 0.1 almost anything.
        memory: Of :func:`remember`, or its file; by default the package's, of emoji.
        clip: The encoder that the memory was made with; by default the package's.
        scale: Of classifier-free guidance; by default the model's own.
        steps, seed, size, batch_size, device: As of ``sample``.
    """
    ready = index if isinstance(index, RetrievalIndex) else load(index)
    net = clips.ready(clip, device)
    if net.dim != ready.vectors.shape[1]:
        raise InputError(f"The memory holds vectors of {ready.vectors.shape[1]} numbers, the encoder makes {net.dim}.")
    other_encoder = ready.probe is not None and float(ready.probe.float() @ _probe(net)) < ALIKE
    if other_encoder or (index is None and clip is not None):
        raise InputError(
            "The memory was made with another encoder. Give both, as remember was told: --memory and --clip."
        )
    with torch.no_grad():
        vector = net.encode_image(clips.as_input(net, image).to(net.log_scale.device))[0].cpu()
    captions = ready.retrieve(vector, range(seed, seed + n), temperature)
    return sample.sample(
        model, [f"{plain(caption)} {prompt}".strip() for caption in captions], n=n, steps=steps, seed=seed, scale=scale,
        image=None if strength == 1 else image, strength=strength, size=size, batch_size=batch_size, device=device,
    )  # fmt: skip
