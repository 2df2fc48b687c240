"""Images and text compared: train a dual encoder on captioned images, score an image, search a folder.

    clip = train_clip("photos/", minutes=20, folder="runs/clip").model
    clip_score("photo.png", ["a cat", "a dog"], clip)
    search("photos/", "a black cat", model=clip)

The encoder in the package was trained on the emoji that the bundled generator was trained on, with their names in
fourteen languages; what is held out there is held out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ... import data as datasets
from ... import metrics
from ...data import Dataset, augment
from ...denoisers import expand
from ...device import device_of
from ...errors import DataError, InputError, counted, unknown, warn
from ...io import guarded
from ...io.checkpoints import fingerprint
from ...io.images import flatten, open_image, to_tensor
from ...io.run_folder import Folder
from ...metrics.retrieval import r_precision
from ...nets import tokenizer as tokenizers
from ...nets.clip import LOSSES, Clip
from ...nets.layers import drawn
from ...nets.text import normalized
from ...noise import Stream, generator
from ...options import fill
from ...progress import Progress
from ...schedules import uniform
from ...training.batches import Batches, title
from ...training.distributed import gathered, place
from ...training.options import TrainingOptions
from ...training.report import TrainingResult
from ...training.task import Part, Task, Whole
from ...training.trainer import Trainer, train
from .options import TrainClipOptions, TrainNoisyOptions

FILE = "clip.safetensors"
LEVELS = {"sigma_min": 0.02, "sigma_max": 80.0}
AUGMENTS = ("scale", "shift", "brightness", "contrast", "saturation")  # what a caption rarely mentions
LONGEST = 4096  # pixels of an image's longer side that are looked at
KNOWN = 1000  # captions that a file keeps as a measure for others

# Half a U-Net. In the comments: parameters, and images of 64 px that one core trains on in a second.
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
    return guarded.load(place / FILE if place.is_dir() else place, {"clip": Clip}, "train-clip")


def ready(model: Clip | str | Path | None, device: str | None = None) -> Clip:
    """An encoder, or the one of :func:`load`, on a device: by default where it is, or the best for a file's."""
    if isinstance(model, Clip):
        return model if device is None else model.to(device_of(device))
    return load(model).to(device_of(device))


# ---- training -------------------------------------------------------------------------------------------------------


def train_clip(data: Dataset | str, **options: Any) -> TrainingResult[Clip]:
    """A dual encoder for these images and their captions; the same call goes on where it stopped.

    Args:
        data: Captioned images, or what ``data.load`` takes.
        options: See :class:`TrainClipOptions`.

    Raises:
        DataError: Images without captions.
        CheckpointError: The folder holds another run.
    """
    chosen = fill(TrainClipOptions, **options)
    data = datasets.load(data, chosen.size)
    for name, value, registry in (("CLIP size", chosen.net, SIZES), ("CLIP loss", chosen.loss, LOSSES)):
        if value not in registry:
            raise unknown(name, value, registry)
    train_data, held = (_captioned(some) for some in data.split(chosen.holdout, chosen.seed))
    clip = _new(train_data, chosen)
    draw = _pairs(train_data, min(chosen.batch_size, len(train_data)), chosen.seed)

    def loss(batch: tuple[Tensor, Sequence[str], tuple[Sequence[str], Sequence[str]]]) -> Tensor:
        images, captions, everything = batch
        return contrast(clip, clip.encode_image(images), clip.encode_text(captions), *everything)

    config = {
        "net": chosen.net, "loss": chosen.loss, "batch_size": chosen.batch_size, "lr": chosen.lr,
        "optimizer": chosen.optimizer, "vocabulary": chosen.vocabulary, "data": train_data.fingerprint,
    }  # fmt: skip
    held_out = [_pairs(held, min(chosen.batch_size, len(held)), -1)(0)] if len(held) > 1 else []
    trainer = _run(clip, draw, loss, config, chosen, train_data, "train-clip", held_out)
    run = trainer.run if trainer.main else None
    if run is not None and len(held) and not any("recall" in line for line in run.metrics()[-1:]):
        report(clip.to(trainer.device), held, run, trainer.state.step)
    return TrainingResult.of(clip.cpu(), chosen.folder)


def _pairs(data: Dataset, n: int, seed: int) -> Callable[[int], tuple[Tensor, Sequence[str], Whole]]:
    """Draws images, one caption of each, and the captions and names of the whole batch, all of which are contrasted."""
    batches = Batches(data, n, seed)

    def draw(step: int) -> tuple[Tensor, Sequence[str], Whole]:
        batch = data.batch(batches.order(step), generator(seed, Stream.CLIP_CAPTION, step))
        images = _augmented(batch.images, seed, step)
        return images, batch.captions, Whole((batch.captions, batch.names))

    return draw


def _new(data: Dataset, chosen: TrainClipOptions) -> Clip:
    """An encoder with fresh weights and a tokenizer for these images and captions."""
    texts = list(dict.fromkeys(data.texts()))
    if len(texts) < 2:
        has = "one caption for all its images" if texts else "no captions"
        raise DataError(
            f"{data.name} has {has}, nothing to learn from. Put a NAME.txt beside each NAME.png, or a metadata.jsonl "
            "with file_name and text."
        )
    channels, side = data.shape[0], data.shape[1] if data.shape[1] == data.shape[2] else 0
    tokenizer = tokenizers.train(map(normalized, texts), chosen.vocabulary)
    image = {
        "net": {**SIZES[chosen.net], "in_channels": channels},
        "sigma_data": round(datasets.measure_sigma_data(data), 4),
    }
    text = {"vocabulary": len(tokenizer), "width": 128, "depth": 2, "head": 32, "length": 24}
    clip: Clip = drawn(lambda: Clip(image, text, side, _spread(texts, KNOWN), chosen.loss), chosen.seed, 1)
    clip.text.set_vocabulary(tokenizer)
    return clip


def _augmented(images: Tensor, seed: int, step: int) -> Tensor:
    """Images in [-1, 1], changed in what captions rarely mention."""
    plan = augment.draw(len(images), generator(seed, Stream.CLIP_AUGMENT, step), AUGMENTS, 0.5)
    return augment.apply(to_tensor(images), plan)


def _captioned(data: Dataset) -> Dataset:
    """The images that have a caption."""
    rows = (
        [i for i, text in enumerate(data.annotations(range(len(data))).captions) if text.strip()] if len(data) else []
    )
    if 0 < len(rows) < len(data):
        warn(f"Left out: {counted(len(data) - len(rows), 'image')} of {len(data):,}, without a caption.")
    return data if len(rows) == len(data) else datasets.Subset(data, rows)


def train_noisy(clip: Clip, data: Dataset, images: Dataset | None = None, **options: Any) -> Clip:
    """``clip`` with an image encoder for noisy images, or noisy latents.

    Noise-conditional, after Nichol et al. 2022 (GLIDE, arXiv:2112.10741, sec. 3.3). Captions keep their vectors; the
    new encoder learns to find, at all noise levels, where ``clip`` puts the clean image and its caption.

    Args:
        clip: A trained encoder; its text half is shared and stays as it is. It is moved to the device of the run.
        data: Captioned images like those it was trained on, or their latents.
        images: With latents, the images that they are of, row by row.
        options: See :class:`TrainNoisyOptions`. The encoder starts as the old one, or for latents anew, on a grid of
            the same size.
    """
    chosen = fill(TrainNoisyOptions, **options)
    seed, latent = chosen.seed, images is not None
    clip, made = clip.to(place(chosen.device)), _noisy(clip, data, latent, seed)
    batches = Batches(data, min(chosen.batch_size, len(data)), seed)
    known = embedded(clip, images) if images is not None else None

    def draw(step: int) -> tuple[Any, ...]:
        rows = batches.order(step)
        batch = data.batch(rows, generator(seed, Stream.CLIP_CAPTION, step))
        x = batch.images if latent else _augmented(batch.images, seed, step)
        sigma = uniform(torch.rand(len(rows), generator=generator(seed, Stream.CLIP_SIGMA, step)), **LEVELS)
        noise = torch.randn(x.shape, generator=generator(seed, Stream.CLIP_NOISE, step))
        everything = Whole((batch.captions, batch.names))
        return x, sigma, noise, None if known is None else known[rows], batch.captions, everything

    def loss(batch: tuple[Any, ...]) -> Tensor:
        x, sigma, noise, target, captions, everything = batch
        with torch.no_grad():
            text_vectors = clip.encode_text(captions)
            target = clip.encode_image(x) if target is None else target
        noisy_vectors = made.encode_image(x + expand(sigma, x) * noise, sigma)
        return (
            contrast(made, noisy_vectors, text_vectors, *everything) + 2 * (1 - (noisy_vectors * target).sum(1)).mean()
        )

    config = {
        "noisy": True, "clip": fingerprint(clip.state_dict()), "batch_size": chosen.batch_size, "lr": chosen.lr,
        "optimizer": chosen.optimizer, "data": data.fingerprint, "image": made.config["image"],
    }  # fmt: skip
    _run(made, draw, loss, config, chosen, data)
    return made.cpu()


def _noisy(clip: Clip, data: Dataset, latent: bool, seed: int) -> Clip:
    """A copy of ``clip`` whose image encoder alone can learn; for latents that encoder is a new one."""
    old = clip.image.config
    patch, side = old["net"]["patch"], clip.side or data.shape[1] * old["net"]["patch"]
    if latent:
        patch = max(1, patch * data.shape[1] // side)
    image = {**old, "net": {**old["net"], "in_channels": data.shape[0], "patch": patch}}
    if latent:
        image["sigma_data"] = round(float(data.batch(data.groups[0][:512]).images.std()), 4)
    text, loss, side = clip.config["text"], clip.config["loss"], 0 if latent else clip.side
    made: Clip = drawn(lambda: Clip(image, text, side, clip.known, loss, True), seed, 2)
    own = {k: v for k, v in clip.state_dict().items() if not (latent and k.startswith("image."))}
    made.load_state_dict({**made.state_dict(), **own})
    made.requires_grad_(False).image.requires_grad_(True)
    return made


@torch.no_grad()
def embedded(clip: Clip, data: Dataset) -> Float[Tensor, "n d"]:
    """The vectors of all images of a data set, row by row, on the CPU."""
    vectors = torch.zeros(len(data), clip.dim)
    for group in data.groups:
        for first in Progress(range(0, len(group), 256), "embedding"):
            rows = group[first : first + 256]
            vectors[rows] = clip.encode_image(to_tensor(data.batch(rows).images).to(clip.log_scale.device)).cpu()
    return vectors


def contrast(
    clip: Clip, image_vectors: Tensor, text_vectors: Tensor, captions: Sequence[str], names: Sequence[str]
) -> Tensor:
    """The loss of a batch, over all processes; equal captions, and equal images, are not contrasted.

    Args:
        clip: Whose loss it is.
        image_vectors: Of this process's rows.
        text_vectors: Of their captions.
        captions: Of the whole batch.
        names: Of its images.
    """
    image_vectors, text_vectors = gathered(image_vectors), gathered(text_vectors)
    n = len(image_vectors)  # a row that cannot be divided is left out
    same = torch.tensor([[a == b for b in captions[:n]] for a in captions[:n]])
    same |= torch.tensor([[a == b for b in names[:n]] for a in names[:n]])
    same &= ~torch.eye(n, dtype=torch.bool)
    return LOSSES[clip.config["loss"]](
        image_vectors, text_vectors, clip.log_scale.exp().clamp(max=100), same.to(image_vectors.device)
    )


def _run(
    clip: Clip,
    draw: Callable[[int], Any],
    loss: Callable[[Any], Tensor],
    config: dict[str, Any],
    chosen: TrainingOptions,
    data: Dataset,
    command: str = "",
    held_out: Sequence[Any] = (),
) -> Trainer:
    """Train in place, on the device of the run."""
    trainer = train(Task(
        {"clip": Part(clip, loss, chosen.optimizer, chosen.lr)}, draw, config, title(data),
        chosen.usual_examples, command, {"data": data.name},
        held_out=held_out, write=lambda folder: save(clip, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    clip.requires_grad_(False)
    return trainer


def _spread(texts: Sequence[str], n: int) -> list[str]:
    """``n`` of them, evenly."""
    return [texts[i * len(texts) // n] for i in range(n)] if len(texts) > n else list(texts)


class EmbeddedImages:
    """An encoder whose images are vectors already, as :func:`embedded` gives them."""

    def __init__(self, clip: Clip):
        self.encode_text = clip.encode_text

    @staticmethod
    def encode_image(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The same."""
        return vectors


def report(clip: Clip, held: Dataset, run: Folder, step: int, among: int = 100) -> None:
    """Add the R-precision on held-out pairs, as "recall", to ``metrics.jsonl``; chance is 1 / among."""
    captions = held.annotations(range(len(held))).captions
    pool = list(dict.fromkeys([*captions, *clip.known]))
    among = min(among, len(pool))
    result = r_precision(EmbeddedImages(clip), embedded(clip, held), captions, among, pool)
    run.append(
        {"step": step, "recall": result.value, "low": result.low, "high": result.high, "of": result.n, "among": among}
    )


def as_input(clip: Clip, image: str | Path | Image.Image | Tensor) -> Float[Tensor, "1 c h w"]:
    """An image as the encoder takes it: in its proportions on a white square."""
    if isinstance(image, Tensor):
        return image[None] if image.ndim == 3 else image
    whole = flatten(open_image(image)).convert(mode(clip))
    if max(whole.size) > LONGEST:  # a line of pixels would be a square of gigabytes
        whole.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    longest, side = max(whole.size), clip.side or 64
    sheet = Image.new(whole.mode, (longest, longest), "white")
    sheet.paste(whole, ((longest - whole.width) // 2, (longest - whole.height) // 2))
    return to_tensor(sheet.resize((side, side), Image.Resampling.LANCZOS))[None]


def mode(clip: Clip) -> str:
    """Of the images that the encoder takes; raises InputError for one of latents."""
    channels = clip.image.config["net"]["in_channels"]
    if channels not in (1, 3):
        raise InputError(f"This encoder takes latents of {channels} channels, not images. Take the one it came from.")
    return "L" if channels == 1 else "RGB"


def fits(clip: Clip, data: Dataset) -> None:
    """Raise DataError unless the data are images of as many channels as the encoder takes."""
    wanted = clip.image.config["net"]["in_channels"]
    if data.shape[0] != wanted:
        raise DataError(
            f"The images of {data.name} have {data.shape[0]} channels, the encoder takes {wanted}. "
            f"Load the folder with mode={mode(clip)!r}, or train an encoder of such images."
        )


def gap(clip: Clip, images: Tensor, captions: Sequence[str]) -> tuple[float, float]:
    """The modality gap: distance of the mean image from the mean text, before and after :func:`centered` closes it.

    Liang et al. 2022 (arXiv:2203.02053): images and texts lie in two separate cones of the common sphere.
    """
    image_vectors = metrics.features(clip.encode_image, images.to(clip.log_scale.device))
    text_vectors = clip.encode_text(captions).cpu()
    open_gap = float((image_vectors.mean(0) - text_vectors.mean(0)).norm())
    # The means are taken on one half and evaluated on the other.
    a, b = (centered(v[1::2], v[::2]) for v in (image_vectors, text_vectors))
    return open_gap, float((a.mean(0) - b.mean(0)).norm())


def centered(vectors: Float[Tensor, "n d"], known: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Unit vectors without the mean direction of their kind, which is that of ``known``."""
    return torch.nn.functional.normalize(vectors - known.mean(0), dim=1)
