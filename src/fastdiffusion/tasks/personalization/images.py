"""The images that a model is taught from: their latents, captions and masks, and which are kept to measure with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...data import Dataset, cache_folder, load_folder
from ...data.dataset import digest
from ...errors import CheckpointError, DataError, InputError, counted
from ...io.checkpoints import load_tensors, save_tensors
from ...io.images import as_input
from ...io.inputs import fit_mask, open_mask
from ...models import Model

LEAST, MOST = 3, 20  # images of a subject
OBJECTS = (
    "{}", "a {}", "an image of {}", "a drawing of {}", "a photo of {}", "a close-up of {}", "a small {}", "the {}",
    "a picture of a {}", "a rendering of {}", "one {}", "a good photo of {}",
)  # fmt: skip
STYLES = (
    "{}", "an image in the style of {}", "a drawing in the style of {}", "a painting in the style of {}", "{} style",
    "something in the style of {}", "a picture in the style of {}",
)  # fmt: skip
TEMPLATES = {"object": OBJECTS, "style": STYLES}


@dataclass(frozen=True)
class Examples:
    """Images as the denoiser takes them.

    Attributes:
        latents: One (c, h, w) for each image; of several sizes where images keep their shapes.
        captions: The captions of each image; empty where it has none.
        masks: How much each place of the latents counts, (1, h, w), or None.
        train: Rows that are trained on.
        held_out: Rows that are measured on.
        name: Of the folder.
        fingerprint: Of the images, captions and masks.
        notes: What a person should know, in sentences.
    """

    latents: Sequence[Float[Tensor, "c _ _"]]
    captions: Sequence[Sequence[str]]
    masks: Sequence[Float[Tensor, "1 _ _"]] | None
    train: Sequence[int]
    held_out: Sequence[int]
    name: str
    fingerprint: str
    notes: tuple[str, ...] = ()

    def groups(self) -> list[list[int]]:
        """Rows to train on of one size each, that of most images first."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i in self.train:
            sizes.setdefault(tuple(self.latents[i].shape), []).append(i)
        return sorted(sizes.values(), key=len, reverse=True)


def cached(kind: str, key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the user's cache, made and kept there if they are not: ``key`` covers all that decides them."""
    path = cache_folder() / kind / f"{key}.safetensors"
    try:
        return load_tensors(path)[1]
    except CheckpointError:
        made = dict(make())
        save_tensors(path, made, {})
        return made


def opened(
    model: Model,
    folder: Dataset | str | Path,
    size: int | None,
    holdout: float,
    seed: int,
    masks: str | Path | None = None,
    few: bool = False,
    aspect: str = "crop",
) -> Examples:
    """A folder's images for a model.

    Args:
        model: Its autoencoder makes the latents, which are kept in the cache by what the images and the model are.
        folder: Images, or their folder.
        size: Side in pixels; by default that of the model's images.
        holdout: Part that is measured on: at least one image, chosen by ``seed``.
        masks: A folder with a mask for each image, of its name.
        few: Whether it is one subject, of 3 to 20 images.
        aspect: "crop" cuts squares, "bucket" keeps shapes, "pad" adds white.

    Raises:
        DataError: Too few images, or too many of one subject; a mask is missing.
        InputError: A size that the model cannot make.
    """
    if len(model.image_shape) != 3:
        raise InputError("This model makes no single images, and cannot be taught from a folder of them.")
    channels, side = model.image_shape[0], size or model.pixels[0]
    step = model.factor * getattr(model.denoise, "patch", 1)
    if side % step:
        raise InputError(
            f"This model makes sizes that divide by {step}, got {side}. Try {max(side // step, 1) * step}."
        )
    data = load_folder(folder, side, aspect, mode={1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "RGB"), labels="none")
    if data.shape[0] != channels:
        raise InputError(f"This model makes {channels} channels, the images of {data.name} have {data.shape[0]}.")
    notes, report = [], data.report
    if report is not None and report.skipped:
        some = "; ".join(f"{one.name}: {one.reason}" for one in report.skipped[:3])
        notes.append(f"{counted(len(report.skipped), 'file')} could not be used ({some}).")
    keys = [_content(data, i) if few else data.key(i) for i in range(len(data))]
    distinct = list({key: i for i, key in reversed(list(enumerate(keys)))}.values())[::-1]
    if few and not LEAST <= len(distinct) <= MOST:
        why = f": {notes[0]}" if notes else "."
        raise DataError(
            f"A subject takes {LEAST} to {MOST} different images, and {data.name!r} has {len(distinct)}{why} "
            + ("Add some." if len(distinct) < LEAST else "Take the best of them, or finetune for a whole domain.")
        )
    if len(distinct) < 2:
        raise DataError(f"{data.name!r} has {counted(len(distinct), 'image')}: one is held out, so give at least two.")
    latents = _latents(model, data)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    held = sorted(distinct[i] for i in order[: max(1, round(holdout * len(distinct)))])
    texts = [data.texts([i]) for i in range(len(data))]
    places = None if masks is None else _masks(masks, data, latents, model.factor)
    train = [i for i, key in enumerate(keys) if key not in {keys[j] for j in held}]
    fingerprint = digest(data.fingerprint, side, held, "" if places is None else [m.tolist() for m in places])
    return Examples(latents, texts, places, train, held, data.name, fingerprint, tuple(notes))


def _content(data: Dataset, index: int) -> str:
    """An image by its pixels. Images of one subject look alike: what ``Dataset.key`` takes for copies are its views."""
    return digest(np.ascontiguousarray(data.batch([index]).images.numpy()))


def _latents(model: Model, data: Dataset) -> list[Tensor]:
    groups = data.groups

    def encoded() -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for group in groups:
            for first in range(0, len(group), 8):
                rows = group[first : first + 8]
                z = model.encode(as_input(data.batch(rows).images).to(model.device)).float().cpu()
                made |= {str(i): one.clone() for i, one in zip(rows, z, strict=True)}
        return made

    if model.autoencoder is None:
        made = encoded()
    else:
        made = cached("latents", digest("examples", data.fingerprint, data.shape, model.id), encoded)
    return [made[str(i)] for i in range(len(data))]


def _masks(folder: str | Path, data: Dataset, latents: Sequence[Tensor], factor: int) -> list[Float[Tensor, "1 _ _"]]:
    """Each image's mask at the size of its latents; squares are cut from masks as from images."""
    places = {path.stem: path for path in sorted(Path(folder).glob("*")) if path.is_file()}
    made = []
    for name, z in zip(data.annotations(range(len(data))).names, latents, strict=True):
        path = places.get(Path(name).stem)
        if path is None:
            raise DataError(f"{str(folder)!r} has no mask for {name!r}. Put one there, of the same name.")
        height, width = (n * factor for n in z.shape[-2:])
        values = fit_mask(open_mask(path), (height, width))
        small = torch.nn.functional.adaptive_avg_pool2d(values[None], (z.shape[-2], z.shape[-1]))[0]
        if not bool((small > 0.1).any()):
            raise DataError(f"The mask {path.name!r} is black all over. White is what counts.")
        made.append(small)
    return made


def templates_of(model: Model, subject: str, phrase: str) -> tuple[str, ...]:
    """Texts around a phrase whose words the model knows: others would be noise in what is learned."""
    unknown = getattr(model.conditioner, "unknown_words", lambda text: [])
    return tuple(text for text in TEMPLATES[subject] if set(unknown(text.format(phrase))) <= set(unknown(phrase)))


def caption(token: str, templates: Sequence[str], own: Sequence[str], choice: float) -> str:
    """An image's text: its caption with the token in it, or a template; ``choice`` of them is in [0, 1)."""
    if own:
        text = own[int(choice * len(own))]
        if not token or token in text:
            return text
        return f"{text} in the style of {token}" if STYLES[1] in templates else f"{token}, {text}"
    return templates[int(choice * len(templates))].format(token)
