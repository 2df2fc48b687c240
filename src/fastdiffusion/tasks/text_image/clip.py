"""Pictures and words compared: train a dual encoder on captioned pictures, score a picture, search a folder.

    clip = train_clip("photos/", minutes=20, folder="runs/clip")
    score("photo.png", ["a cat", "a dog"], clip)
    search("photos/", "a black cat", model=clip)

The encoder in the package was trained on the emoji that the bundled generator was trained on, with their names in
fourteen languages; what is held out there is held out here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import trange

from ... import data as datasets
from ... import metrics
from ...data import Dataset, augment
from ...denoisers import expand
from ...errors import DataError, InputError, unknown
from ...io import guarded
from ...io.checkpoints import fingerprint
from ...io.images import flatten, open_image, to_tensor
from ...io.run_folder import Folder
from ...metrics.retrieval import r_precision
from ...nets import tokenizer as tokenizers
from ...nets.clip import LOSSES, Clip
from ...nets.text import normalized
from ...noise import generator
from ...schedules import uniform
from ...training.batches import Batches
from ...training.trainer import Part, train

FILE = "clip.safetensors"
CAPTION, AUGMENT, NOISE, LEVEL = range(48, 52)  # what a generator is for
LEVELS = {"sigma_min": 0.02, "sigma_max": 80.0}
AUGMENTS = ("scale", "shift", "brightness", "contrast", "saturation")  # what a caption seldom speaks of
KNOWN = 1000  # captions that a file keeps as a measure for others

# Half a U-Net. In the comments: parameters, and pictures of 64 px that one core trains on in a second.
SIZES: dict[str, dict[str, Any]] = {
    # 0.4 M, 700
    "tiny": {"patch": 8, "width": 32, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 32},
    # 1.1 M, 400
    "small": {
        "patch": 4, "width": 32, "multiples": [1, 2, 3], "blocks": [1, 1, 1], "attention": [2], "head": 32,
        "updown": False,
    },
    # 3.0 M, 150
    "base": {
        "patch": 4, "width": 64, "multiples": [1, 2, 3], "blocks": [1, 1, 1], "attention": [2], "head": 64,
        "updown": False,
    },
}  # fmt: skip


# ---- files ----------------------------------------------------------------------------------------------------------


def save(clip: Clip, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, atomically; ``dtype`` torch.float16 halves it, torch.int8 quarters it."""
    guarded.save("clip", clip, path, dtype)


def load(path: str | Path | None = None) -> Clip:
    """The encoder in the package, a file of :func:`save`, or a run's folder; raises CheckpointError for any other."""
    place = Path(str(files("fastdiffusion") / "weights" / FILE)) if path is None else Path(path)
    place = place / FILE if place.is_dir() else place
    return guarded.load(place, {"clip": Clip}, "train-clip")


# ---- training -------------------------------------------------------------------------------------------------------


def train_clip(
    data: Dataset | str,
    steps: int = 2000,
    net: str = "small",
    loss: str = "infonce",
    size: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 256,
    lr: float = 1e-2,
    optimizer: str = "muon",
    vocabulary: int = 4096,
    holdout: float = 0.05,
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Clip:
    """A dual encoder for these pictures and their captions; the same call goes on where it stopped.

    Args:
        data: Captioned pictures, or what ``data.load`` takes.
        steps: Of training.
        net: A name in ``SIZES``: of the image encoder.
        loss: "infonce", or "cloob" (InfoLOOB with Hopfield retrieval).
        size: Side of the pictures, if ``data`` is a name or folder.
        folder: Where checkpoints, metrics and the finished file go.
        batch_size: Pairs a step; each is told from all others of its step, so more is better.
        lr: Highest learning rate.
        optimizer: A name in ``optimizers.OPTIMIZERS``; Muon needs a quarter of AdamW's steps here.
        vocabulary: Most tokens of the tokenizer that is trained on the captions.
        holdout: Part of the pictures that is not trained on, for the recall in metrics.jsonl.
        minutes: End this session after so long.
        fresh: Forget what the folder holds.
        seed: Of everything.

    Raises:
        DataError: Pictures without captions.
        CheckpointError: The folder holds another run.
    """
    data = datasets.load(data, size) if isinstance(data, str) else data
    for name, value, registry in (("CLIP size", net, SIZES), ("CLIP loss", loss, LOSSES)):
        if value not in registry:
            raise unknown(name, value, registry)
    train_data, held = (_captioned(some) for some in data.split(holdout, seed))
    texts = list(dict.fromkeys(train_data.texts()))
    if len(texts) < 2:
        raise DataError(
            f"{data.name} has no captions to learn from. Put a NAME.txt beside each NAME.png, or a metadata.jsonl with "
            "file_name and text."
        )
    channels, side = data.shape[0], data.shape[1] if data.shape[1] == data.shape[2] else 0
    tokenizer = tokenizers.train(map(normalized, texts), vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, 1).initial_seed() % 2**63)
        clip = Clip(
            {
                "net": {**SIZES[net], "in_channels": channels},
                "sigma_data": round(datasets.measure_sigma_data(train_data), 4),
            },
            {"vocabulary": len(tokenizer), "width": 128, "depth": 2, "head": 32, "length": 24},
            side,
            _spread(texts, KNOWN),
            loss,
        )
    clip.text.set_vocabulary(tokenizer)
    examples = Batches(train_data, min(batch_size, len(train_data)), seed)

    def step_loss(step: int) -> Tensor:
        rows = examples.order(step)
        batch = train_data.batch(rows, generator(seed, CAPTION, step))
        plan = augment.draw(len(rows), generator(seed, AUGMENT, step), AUGMENTS, 0.5)
        image_vectors = clip.encode_image(augment.apply(to_tensor(batch.images), plan))
        return contrast(clip, image_vectors, clip.encode_text(batch.captions), batch.captions, batch.names)

    config = {"net": net, "loss": loss, "batch_size": batch_size, "lr": lr, "optimizer": optimizer,
              "vocabulary": vocabulary, "data": train_data.fingerprint}  # fmt: skip
    _run(clip, {"clip": Part(clip, step_loss, optimizer, lr)}, steps, config, folder, seed, minutes, fresh)
    run = None if folder is None else Folder(folder)
    if run is not None and len(held) and run.finished(steps) and "recall" not in run.metrics()[-1]:
        report(clip, held, run, steps)
    return clip


def _captioned(data: Dataset) -> Dataset:
    """The pictures of which something is said."""
    rows = (
        [i for i, text in enumerate(data.annotations(range(len(data))).captions) if text.strip()] if len(data) else []
    )
    if 0 < len(rows) < len(data):
        warnings.warn(f"{len(data) - len(rows):,} of {len(data):,} pictures have no caption: left out.", stacklevel=3)
    return data if len(rows) == len(data) else datasets.Subset(data, rows)


def train_noisy(
    clip: Clip,
    data: Dataset,
    images: Dataset | None = None,
    steps: int = 1000,
    folder: str | Path | None = None,
    batch_size: int = 256,
    lr: float = 5e-3,
    optimizer: str = "muon",
    minutes: float | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Clip:
    """``clip`` with an image encoder that reads noisy pictures, or noisy latents.

    Noise-conditional, after Nichol et al. 2022 (GLIDE, arXiv:2112.10741, sec. 3.3). Words keep their vectors; the new
    encoder learns to find, at all noise levels, where ``clip`` puts the clean picture and its words.

    Args:
        clip: A trained encoder; its text half is shared and stays as it is.
        data: Captioned pictures like those it was trained on, or their latents.
        images: With latents, the pictures that they are of, row by row.
        steps: Of training. The encoder starts as the old one, or for latents anew, on a grid of the same size.
        folder, batch_size, lr, optimizer, minutes, fresh, seed: As for :func:`train_clip`.
    """
    latent, old = images is not None, clip.image.config
    sides = clip.side or data.shape[1] * old["net"]["patch"]
    patch = max(1, old["net"]["patch"] * data.shape[1] // sides) if latent else old["net"]["patch"]
    image = {**old, "net": {**old["net"], "in_channels": data.shape[0], "patch": patch}}
    if latent:
        some = data.batch(data.groups[0][:512]).images
        image["sigma_data"] = round(float(some.std()), 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, 2).initial_seed() % 2**63)
        made = Clip(image, clip.config["text"], 0 if latent else clip.side, clip.known, clip.config["loss"], True)
    own = {k: v for k, v in clip.state_dict().items() if not (latent and k.startswith("image."))}
    made.load_state_dict({**made.state_dict(), **own})
    made.requires_grad_(False).image.requires_grad_(True)
    examples = Batches(data, min(batch_size, len(data)), seed)
    image_vectors = embedded(clip, images) if images is not None else None

    def step_loss(step: int) -> Tensor:
        rows = examples.order(step)
        batch = data.batch(rows, generator(seed, CAPTION, step))
        x = batch.images if latent else augment.apply(
            to_tensor(batch.images), augment.draw(len(rows), generator(seed, AUGMENT, step), AUGMENTS, 0.5)
        )  # fmt: skip
        sigma = uniform(torch.rand(len(rows), generator=generator(seed, LEVEL, step)), **LEVELS)
        noise = torch.randn(x.shape, generator=generator(seed, NOISE, step))
        with torch.no_grad():
            text_vectors = clip.encode_text(batch.captions)
            target = clip.encode_image(x) if image_vectors is None else image_vectors[rows]
        noisy_vectors = made.encode_image(x + expand(sigma, x) * noise, sigma)
        return (
            contrast(made, noisy_vectors, text_vectors, batch.captions, batch.names)
            + 2 * (1 - (noisy_vectors * target).sum(1)).mean()
        )

    config = {"noisy": True, "clip": fingerprint(clip.state_dict()), "batch_size": batch_size, "lr": lr,
              "optimizer": optimizer, "data": data.fingerprint,
              "image": image}  # fmt: skip
    _run(made, {"clip": Part(made, step_loss, optimizer, lr)}, steps, config, folder, seed, minutes, fresh)
    return made


@torch.no_grad()
def embedded(clip: Clip, data: Dataset) -> Float[Tensor, "n d"]:
    """The vectors of all pictures of a data set, row by row."""
    vectors = torch.zeros(len(data), clip.dim)
    for group in data.groups:
        for first in trange(0, len(group), 256, desc="embedding", disable=None, leave=False):
            rows = group[first : first + 256]
            vectors[rows] = clip.encode_image(to_tensor(data.batch(rows).images))
    return vectors


def contrast(
    clip: Clip, image_vectors: Tensor, text_vectors: Tensor, captions: Sequence[str], names: Sequence[str]
) -> Tensor:
    """The loss of a batch; equal captions, and equal pictures, are not told apart."""
    same = torch.tensor([[a == b for b in captions] for a in captions])
    same |= torch.tensor([[a == b for b in names] for a in names])
    same &= ~torch.eye(len(names), dtype=torch.bool)
    return LOSSES[clip.config["loss"]](
        image_vectors, text_vectors, clip.log_scale.exp().clamp(max=100), same.to(image_vectors.device)
    )


def _run(
    clip: Clip,
    parts: dict[str, Part],
    steps: int,
    config: dict[str, Any],
    folder: str | Path | None,
    seed: int,
    minutes: float | None,
    fresh: bool,
) -> None:
    for _ in train(parts, steps, config, folder, seed, minutes=minutes, fresh=fresh, precision="float32"):
        pass  # bfloat16 would round products of 100 by a half
    clip.eval().requires_grad_(False)
    if folder is not None:
        save(clip, Path(folder) / FILE)


def _spread(texts: Sequence[str], n: int) -> list[str]:
    """``n`` of them, evenly."""
    return [texts[i * len(texts) // n] for i in range(n)] if len(texts) > n else list(texts)


class EmbeddedImages:
    """An encoder whose pictures are vectors already, as :func:`embedded` gives them."""

    def __init__(self, clip: Clip):
        self.encode_text = clip.encode_text

    @staticmethod
    def encode_image(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The same."""
        return vectors


def report(clip: Clip, held: Dataset, run: Folder, step: int, among: int = 100) -> None:
    """Add the recall on held-out pairs to ``metrics.jsonl``; chance is 1 / among."""
    captions = held.annotations(range(len(held))).captions
    pool = list(dict.fromkeys([*captions, *clip.known]))
    among = min(among, len(pool))
    result = r_precision(EmbeddedImages(clip), embedded(clip, held), captions, among, pool)
    run.append(
        {"step": step, "recall": result.value, "low": result.low, "high": result.high, "of": result.n, "among": among}
    )


def as_input(clip: Clip, image: str | Path | Image.Image | Tensor) -> Float[Tensor, "1 c h w"]:
    """A picture as the encoder takes it: in its proportions on a white square."""
    if isinstance(image, Tensor):
        return image[None] if image.ndim == 3 else image
    whole = flatten(open_image(image)).convert(mode(clip))
    longest, side = max(whole.size), clip.side or 64
    sheet = Image.new(whole.mode, (longest, longest), "white")
    sheet.paste(whole, ((longest - whole.width) // 2, (longest - whole.height) // 2))
    return to_tensor(sheet.resize((side, side), Image.Resampling.LANCZOS))[None]


def mode(clip: Clip) -> str:
    """Of the pictures that the encoder reads; raises InputError for one of latents."""
    channels = clip.image.config["net"]["in_channels"]
    if channels not in (1, 3):
        raise InputError(f"This encoder reads latents of {channels} channels, not pictures. Take the one it came from.")
    return "L" if channels == 1 else "RGB"


def fits(clip: Clip, data: Dataset) -> None:
    """Raise DataError unless the data are pictures of as many channels as the encoder reads."""
    wanted = clip.image.config["net"]["in_channels"]
    if data.shape[0] != wanted:
        raise DataError(
            f"The pictures of {data.name} have {data.shape[0]} channels, the encoder reads {wanted}. "
            f"Load the folder with mode={mode(clip)!r}, or train an encoder of such pictures."
        )


def gap(clip: Clip, images: Tensor, captions: Sequence[str]) -> tuple[float, float]:
    """The modality gap: distance of the mean picture from the mean words, before and after :func:`centered` closes it.

    Liang et al. 2022 (arXiv:2203.02053): pictures and words lie in two separate cones of the common sphere.
    """
    image_vectors, text_vectors = metrics.features(clip.encode_image, images), clip.encode_text(captions)
    open_gap = float((image_vectors.mean(0) - text_vectors.mean(0)).norm())
    # The means are taken on one half and evaluated on the other.
    a, b = (centered(v[1::2], v[::2]) for v in (image_vectors, text_vectors))
    return open_gap, float((a.mean(0) - b.mean(0)).norm())


def centered(vectors: Float[Tensor, "n d"], known: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Unit vectors without the mean direction of their kind, which ``known`` tells."""
    return torch.nn.functional.normalize(vectors - known.mean(0), dim=1)
