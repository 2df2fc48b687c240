"""Variations of an image: what it shows, drawn anew, with a prompt or without.

    variations("cat.png", "on blue", n=16)
    variations("cat.png", mix=["crown.png:0.5", "a red heart:0.3"])

    index = build_index(clip, "photos/")                  # for a model of one's own
    variations("cat.png", model="runs/photos", index=index, clip=clip)

An image encoder (CLIP's or CLOOB's) finds, among all images of an index, those that are near the given one, and each
new image is conditioned on the caption of one of them, drawn by the softmax over the similarities: the retrieval of a
Hopfield network (Ramsauer et al. 2021, arXiv:2008.02217). So nothing is trained, as in kNN-Diffusion (Sheynin et al.
2022, arXiv:2204.02849), and the model draws nothing that it was never trained on. A learned map from embeddings of
images to those of texts asks for means of things, which a small model draws as blobs (docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import data as datasets
from ..data import Dataset
from ..errors import CheckpointError, DataError, InputError
from ..io.checkpoints import load_tensors, save_tensors, stored
from ..models import Model
from ..nets.clip import Clip
from ..noise import Stream, generator
from ..options import fill
from ..prompts import plain
from .generation import sample, samples
from .generation.condition_options import weighted
from .generation.options import VariationsOptions
from .text_image import clip as clips

FILE = "memory.safetensors"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
ALIKE = 0.95  # cosine of two vectors by one encoder, rounded differently: far above those of two encoders


@dataclass(frozen=True)
class RetrievalIndex:
    """Embeddings of images, and the caption of each.

    Attributes:
        vectors: Of unit length, by one encoder.
        captions: One of each.
        probe: The same encoder's embedding of an image of noise, to recognize another encoder; None in old files.
    """

    vectors: Float[Tensor, "n d"]
    captions: Sequence[str]
    probe: Float[Tensor, " d"] | None = None

    def retrieve(self, vector: Float[Tensor, " d"], seeds: Sequence[int], temperature: float = 0.02) -> list[str]:
        """Captions of images that are near to ``vector``: for each seed one, drawn by exp(cosine / temperature).

        The temperature is positive, or 0 for the nearest.
        """
        if not temperature >= 0:
            raise InputError(f"temperature must be at least 0, got {temperature!r}. Try 0.02.")
        near = self.vectors @ torch.nn.functional.normalize(vector, dim=0)
        if temperature == 0:
            return [self.captions[int(near.argmax())]] * len(seeds)
        probabilities = ((near - near.max()) / max(temperature, 1e-6)).softmax(0)
        drawn = [
            int(torch.multinomial(probabilities, 1, generator=generator(seed, Stream.RETRIEVAL))) for seed in seeds
        ]
        return [self.captions[i] for i in drawn]


def build_index(
    clip: Clip | str | Path, data: Dataset | str | Path, size: int | None = None, device: str | None = None
) -> RetrievalIndex:
    """The embeddings and captions of a data set, each image once.

    Args:
        clip: An encoder, its file or the folder of its training.
        data: Captioned images, or what ``data.load`` takes.
        size: Side of the images, if ``data`` is a name or folder.
        device: Where to compute; by default where the encoder is, or for a file the best there is.

    Raises:
        DataError: Images without captions.
    """
    net, data = clips.ready(clip, device), datasets.load(data, size)
    clips.fits(net, data)
    captions = data.annotations(range(len(data))).captions
    first = sorted({data.source(i) for i in range(len(data)) if captions[i]})
    if not first:
        raise DataError(f"{data.name} has no captions. Put a NAME.txt beside each NAME.png.")
    return RetrievalIndex(clips.embedded(net, datasets.Subset(data, first)), [captions[i] for i in first], _probe(net))


@torch.no_grad()
def _probe(clip: Clip) -> Float[Tensor, " d"]:
    """An encoder's embedding of an image of noise."""
    side = clip.side or 64
    noise = torch.rand(1, clip.image.config["net"]["in_channels"], side, side, generator=generator(0, Stream.RETRIEVAL))
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
        raise CheckpointError(f"{place} holds no retrieval index. Make one: fastdiffusion index photos/.")
    if len(captions) != len(vectors) or not all(isinstance(caption, str) for caption in captions):
        raise CheckpointError(f"{place} has not one caption for each vector.")
    return RetrievalIndex(torch.nn.functional.normalize(vectors.float(), dim=1), captions, tensors.get("probe"))


def variations(
    image: str | Path, prompt: str = "", model: Model | str | Path = "emoji", **options: Any
) -> samples.Samples:
    """What an image shows, drawn anew; the recipes of the results hold prompts, and need the image no more.

    Args:
        image: A file.
        prompt: Added to what the image shows, such as "on blue".
        model: The bundled one, or a text-to-image model that was trained on such captions.
        options: See :class:`VariationsOptions <fastdiffusion.tasks.generation.options.VariationsOptions>`: n, mix,
            strength, temperature, index, clip, scale, steps, seed, size, ...
    """
    chosen = fill(VariationsOptions, **options)
    index, clip = chosen.index, chosen.clip
    ready = index if isinstance(index, RetrievalIndex) else load(index)
    net = clips.ready(clip, chosen.device)
    if net.dim != ready.vectors.shape[1]:
        raise InputError(f"The index holds vectors of {ready.vectors.shape[1]} numbers, the encoder makes {net.dim}.")
    other_encoder = ready.probe is not None and float(ready.probe.float() @ _probe(net)) < ALIKE
    if other_encoder or (index is None and clip is not None):
        raise InputError(
            "The index was built with another encoder. Give both as they belong together: --index, --clip."
        )
    seeds = range(chosen.seed, chosen.seed + chosen.n)

    @torch.no_grad()
    def captions_of(source: str | Path) -> list[str]:
        vector = net.encode_image(clips.as_input(net, source).to(net.log_scale.device))[0].cpu()
        return [plain(caption) for caption in ready.retrieve(vector, seeds, chosen.temperature)]

    texts = [f"{caption} {prompt}".strip() for caption in captions_of(image)]
    for more in chosen.mix:
        source, weight = weighted(more)
        added = captions_of(source) if is_image(source) else [plain(source)] * chosen.n
        texts = [f"{text} AND {other}:{weight:g}" for text, other in zip(texts, added, strict=True)]
    rest = {key: value for key, value in vars(chosen).items() if key not in ("temperature", "index", "clip", "mix")}
    return sample.sample(model, texts, image=None if chosen.strength == 1 else image, **rest)


def is_image(source: str) -> bool:
    """Whether something to mix is a file, there or not, and not words."""
    return Path(source).suffix.lower() in SUFFIXES or (len(source) < 256 and Path(source).is_file())
