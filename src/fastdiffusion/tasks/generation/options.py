"""The options of the verbs that sample, without torch: Python's keywords and the command line's flags."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import choices
from ...errors import InputError, unknown
from ...options import option
from ..loading import LoadOptions
from .condition_options import ConditionOptions
from .regions import parse_regions

if TYPE_CHECKING:
    from PIL import Image

    from ..text_image.clip import Clip

SIZE = "Size in pixels: 64, or WIDTHxHEIGHT such as 96x64. By default the model's own."
Guidance = str | Callable[..., Any]
STRENGTH = 0.5  # by default, of a whole image
SEEDS = 1 << 64  # generators take no more bits of a seed, and other programs draw from as many
_SCHEDULED = re.compile(r"(.+?)[ _](karras|exponential)", re.IGNORECASE)  # as others write them: "DPM++ 2M Karras"


def seed_of(seed: object) -> int:
    """A seed: a whole number, also as text, or a new one for "random"."""
    if isinstance(seed, str) and seed.strip().lower() == "random":
        return secrets.randbelow(2**31)
    if isinstance(seed, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,30}\s*", seed):
        seed = int(seed)
    if type(seed) is not int or abs(seed) >= SEEDS:
        what = "a whole number" if type(seed) is not int else "of at most 64 bits"
        raise InputError(f"seed must be {what}, got {seed!r}. Example: seed=0, or seed='random'.")
    return seed


@dataclass(frozen=True)
class RunOptions(LoadOptions):
    """What every verb that samples takes, besides how its model is loaded.

    Attributes:
        n: Number of images.
        steps: Intervals of the sampler's table. Most samplers evaluate the model once in each
            (``fastdiffusion list-samplers`` says how often); classifier-free guidance doubles that.
        seed: Of image 0; image i has seed + i. "random" draws one, which the recipe then has.
        scale: The model's guidance; 1 is off. By default the model's own.
        guidance: Further guidance: specifications such as "cfg scale=3 interval=0.3..5" or
            "inpaint photo.png mask.png" (``guidance.GUIDANCE`` has them all), or functions from denoiser to
            denoiser. Of several, each wraps the one before.
        sampler: A name in ``samplers.SAMPLERS``; by default the table fitted to the model, else the
            model's own, ``dpmpp_2m`` or of latent consistency models ``consistency``.
        schedule: A name in ``schedules.SCHEDULES``; by default the model's own.
        batch_size: Images at once: for speed and memory only.
    """

    n: int = option(16, "Number of images.", "-n", "--n")
    steps: int = option(12, "Solver steps; what a step costs: fastdiffusion list-samplers.")
    seed: int = option(0, "Seed of image 0; image i has seed + i. Or: random.", kind=str, metavar="N")
    scale: float | None = option(
        None, "Strength of the guidance; 1 is off. By default the model's own.", "--scale", "--guidance-scale"
    )
    guidance: Guidance | Sequence[Guidance] | None = option(
        None,
        'Guidance, e.g. "cfg scale=3" or "inpaint photo.png mask.png"; repeated, they nest.',
        kind=list[str] | None,
        choices=choices.GUIDANCE,
    )
    sampler: str | None = option(
        None,
        "The sampler; by default the model's fitted one, else its usual one, mostly dpmpp_2m.",
        choices=choices.SAMPLERS,
    )
    schedule: str | None = option(
        None, "Spacing of the noise levels; by default the model's own.", choices=choices.SCHEDULES
    )
    batch_size: int = option(16, "Images computed at once, for speed and memory only.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n", "steps", "batch_size"):
            value = getattr(self, name)
            if not (type(value) is int and value >= 1):
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}. Example: {name}=16.")
        object.__setattr__(self, "seed", seed_of(self.seed))
        if named := _SCHEDULED.fullmatch(self.sampler or ""):
            object.__setattr__(self, "sampler", named[1])
            object.__setattr__(self, "schedule", self.schedule or named[2].lower())


@dataclass(frozen=True)
class SampleOptions(ConditionOptions, RunOptions):
    """Options of :func:`fastdiffusion.sample`, besides those of :class:`RunOptions` and of the conditions by images.

    Attributes:
        prompt: What to draw, for a text-to-image model, in the language of ``fastdiffusion.prompts``. Of several (a
            list, or lines), image i takes the i-th, round and round. None draws anything.
        classes: Names or indices, a list or "3,7"; image i takes the i-th, round and round. By default all in turn;
            "none" is unconditional.
        negative_prompt: A prompt to guide away from.
        regions: Prompts for parts of the image, "left: a tree; right: a house"; ``prompt`` is for the rest. A place is
            left, right, top, bottom, top left, ..., center, all, or left,top,right,bottom from 0 to 1; later ones lie
            over earlier ones.
        image: An image to start from; scaled and cropped to the size of the run.
        mask: Of ``image``, and of its size: white is drawn anew, black keeps its pixels exactly; gray changes by that
            strength. Files of 0 and 1, and strokes on transparency, are understood too.
        only: What ``image`` shows, "the hat, the tie": only where that is, it is drawn anew.
        outpaint: How many pixels to add to ``image``, "LEFT,TOP,RIGHT,BOTTOM", which are drawn: they start as its
            edges, continued. Without ``size`` the result is as large as both; with it they are scaled together.
        strength: How far to go from ``image``: the noise level to start from, sigma_data * s / (1 - s). 0 returns the
            image, 1 starts from noise. The ``steps`` cover the way from that level down, by a textbook table. By
            default 0.5; with a mask or ``only`` 1, and to outpaint 0.9.
        variation_seed: Image i is turned towards the noise of this seed + i, by ``variation_strength``.
        variation_strength: 0 (off) to 1.
        size: Pixels: a side of square images, "WIDTHxHEIGHT", or (height, width); by default the model's own. The same
            seed keeps its layout.
        rng: Whose noise: "own", or what AUTOMATIC1111 ("a1111", where its setting RNG is CPU) or ComfyUI ("comfy")
            draws for the seed. With "comfy" all images have the same seed, and are the rows of one batch.
        upscale: "x2" or "x4": enlarge the finished images by the restorer that ships.
        mark: Put an invisible mark into the finished images, which says that a program made them (docs/provenance.md).
    """

    prompt: str | Sequence[str] | None = option(
        None, 'What to draw: "a red heart". Also as --prompt.', "PROMPT", "--prompt", kind=str | None
    )
    classes: str | int | Sequence[str | int] | None = option(
        None, "Classes to draw, names or indices, e.g. 3,7; by default all in turn.", kind=str | None
    )
    negative_prompt: str = option("", "A prompt to guide away from.", "--negative", "--negative-prompt")
    regions: str | None = option(
        None, 'Prompts for parts of the image, e.g. "left: a tree; right: a house".', metavar="REGIONS"
    )
    image: str | Path | Image.Image | None = option(None, "An image to start from.", kind=Path | None)
    mask: str | Path | Image.Image | None = option(
        None, "A mask of --image: white is drawn anew, black is kept.", kind=Path | None
    )
    only: str = option("", 'What --image shows, "the hat": only where that is, it is drawn anew.')
    outpaint: str | Sequence[int] | None = option(
        None, "Pixels to add to --image and to draw.", kind=str | None, metavar="LEFT,TOP,RIGHT,BOTTOM"
    )
    strength: float | None = option(
        None,
        "How far to go from --image: 0 keeps it, 1 starts from noise; 0.5, with --mask or --only 1, to --outpaint 0.9.",
    )
    variation_seed: int = option(0, "Seed of a second noise, to move towards.")
    variation_strength: float = option(0.0, "How far to move towards --variation-seed, 0 to 1.")
    size: int | str | tuple[int, int] | None = option(None, SIZE, kind=str | None)
    rng: str = option("own", "Whose noise is drawn for a seed.", choices=choices.RNGS)
    upscale: str | None = option(
        None, "Enlarge the finished images by the restorer that ships.", choices=choices.UPSCALES
    )
    mark: bool = option(False, "Put an invisible mark into the images: a program made them.")

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        self.check_conditions()
        if type(self.variation_seed) is not int or abs(self.variation_seed) >= SEEDS:
            raise InputError(f"variation_seed must be a whole number of 64 bits, got {self.variation_seed!r}. Try 0.")
        for name in ("rng", "upscale"):
            if getattr(self, name) not in (known := {"rng": choices.RNGS, "upscale": (None, *choices.UPSCALES)}[name]):
                raise unknown(name, getattr(self, name), [choice for choice in known if choice])
        if self.regions is not None:
            parse_regions(self.regions)
        asked = {"mask": self.mask is not None, "only": bool(self.only), "outpaint": self.outpaint is not None}
        if any(asked.values()) and self.image is None:
            what = next(name for name, is_asked in asked.items() if is_asked)
            raise InputError(f"{what} changes an image, and there is none. Give it: image='in.png' (--image in.png).")
        if self.strength is None:
            object.__setattr__(
                self, "strength", 0.9 if self.outpaint else 1.0 if asked["mask"] or self.only else STRENGTH
            )
        if self.only and self.outpaint:
            raise InputError("only says where the image changes, and outpaint that it grows. Do one after the other.")
        for name in ("variation_strength", "strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name)!r}. Try 0.2.")
        if self.outpaint is not None:
            object.__setattr__(self, "outpaint", ",".join(map(str, borders(self.outpaint))))
        object.__setattr__(self, "size", plain_size(self.size))


@dataclass(frozen=True)
class StudyOptions(SampleOptions):
    """Options of :func:`fastdiffusion.study`: those of :class:`SampleOptions`, for every cell."""

    n: int = option(4, "Number of images in each cell.", "-n", "--n")


@dataclass(frozen=True)
class VariationsOptions(RunOptions):
    """Options of ``fastdiffusion.tasks.variations.variations``, besides those of :class:`RunOptions`.

    Attributes:
        mix: More images and words that the result is to show too, each "FILE:WEIGHT" or "WORDS:WEIGHT": they hold at
            once, as the parts of a prompt that AND joins. The image itself has the weight 1.
        strength: How far to go from the image itself: 1 starts from noise and keeps only what the image shows; less
            keeps its layout too, as of ``sample``; 0 is the image.
        temperature: Of the retrieval: 0 takes the nearest caption every time, 0.1 almost any.
        index: Of ``build_index``, or its file; by default the package's, of emoji.
        clip: The encoder that the index was built with; by default the package's.
        size: As of ``sample``.
    """

    mix: str | Sequence[str] = option(
        (), "Another image, or words, to show too; may be repeated.", kind=list[str] | None,
        metavar="IMAGE_OR_WORDS[:WEIGHT]",
    )  # fmt: skip
    strength: float = option(1.0, "How far to go: 0 keeps the image, less than 1 its layout, 1 only what it shows.")
    temperature: float = option(0.02, "How far afield to look: 0 takes the nearest, 0.1 almost anything.")
    index: Any = option(None, "What the command index wrote; by default the bundled one, of emoji.", kind=Path | None)
    clip: Clip | str | Path | None = option(None, "The encoder that the index was built with.", kind=Path | None)
    size: int | str | tuple[int, int] | None = option(None, SIZE, kind=str | None)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mix", (self.mix,) if isinstance(self.mix, str) else tuple(self.mix or ()))


@dataclass(frozen=True)
class ExportOptions(RunOptions):
    """Options of :func:`fastdiffusion.export`, besides those of :class:`RunOptions`, which are of its preview.

    Attributes:
        format: "fastdiffusion": model file, card and preview. "onnx" or "openvino": each network as a file,
            compared with torch. "diffusers": a folder in its layout, for models whose network is of its classes.
        name: Title of the card; by default what the model's data are called.
        license: Of the model, an SPDX identifier such as "apache-2.0".
        data_license: Of the images that it was trained on.
        prompt: What the preview shows, for a text-to-image model; several in lines.
    """

    n: int = option(32, "Number of samples in the preview.", "-n", "--n")
    format: str = option("fastdiffusion", "For which program.", choices=choices.EXPORTS)
    name: str | None = option(None, "Title of the card.")
    license: str | None = option(None, "License of the model, e.g. apache-2.0.")
    data_license: str | None = option(None, "License of the images that it was trained on.")
    prompt: str | None = option(None, "What the preview shows, for a text-to-image model.")


def borders(outpaint: str | Sequence[int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, of such numbers or their text; at least one is above 0."""
    parts = re.findall(r"[^\s,;x]+", outpaint) if isinstance(outpaint, str) else list(outpaint)
    numbers = [int(part) if re.fullmatch(r"\d{1,6}", str(part)) else -1 for part in parts]
    if len(numbers) != 4 or min(numbers) < 0 or not any(numbers):
        raise InputError(
            f"outpaint is the pixels to add: left, top, right and bottom, got {outpaint!r}. "
            "Example: outpaint='0,0,64,0'."
        )
    left, top, right, bottom = numbers
    return left, top, right, bottom


def plain_size(size: int | str | Sequence[int] | None) -> int | str | None:
    """A size as a recipe keeps it: a side, or "WIDTHxHEIGHT"."""
    sides = image_size(size)
    return None if sides is None else sides[0] if sides[0] == sides[1] else f"{sides[1]}x{sides[0]}"


def image_size(size: int | str | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) of a size as a person gives it: 64, "64", "96x64" (width x height), or (64, 96)."""
    if size is None:
        return None
    sides: Any = (size, size) if isinstance(size, int) else size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:[x×]\s*(\d{1,6}))?\s*", size.lower())
        sides = (int(match[2] or match[1]), int(match[1])) if match else ()
    sides = tuple(sides)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise InputError(
            f'size must be a whole number of at least 1, "WIDTHxHEIGHT" or (height, width), got {size!r}. '
            'Example: size="96x64".'
        )
    return sides
